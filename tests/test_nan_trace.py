"""A NaN is traced to the layer that makes it, in the session whose step failed."""

import os

import numpy as np
import pytest

from od_qat.compat import tf
from od_qat.rewrite import api
from od_qat.training import nan_trace
from tests.helpers import nets, sessions

pytestmark = [pytest.mark.tf1, pytest.mark.long_on_tf1]

NAN = float("nan")


class Net(object):
    """small_ssd, rewritten, trained from a queue in a finalised graph; steps check their losses."""

    def __init__(self, folder, batches, quant_delay=0, alter=lambda boxes: boxes):
        """`batches` are the fillings of the images, one after the other and round again."""
        self.folder = str(folder)
        self.graph = tf.Graph()
        with self.graph.as_default():
            tf.set_random_seed(7)
            noise = np.random.RandomState(0).uniform(-1, 1, [len(batches), 2, 32, 32, 3])
            data = noise + np.reshape(np.array(batches), [-1, 1, 1, 1, 1])
            filled = tf.data.Dataset.from_tensor_slices(data.astype(np.float32)).repeat()
            images = tf.data.make_one_shot_iterator(filled).get_next()
            queue = tf.FIFOQueue(1, [tf.float32], [[2, 32, 32, 3]])
            tf.train.add_queue_runner(tf.train.QueueRunner(queue, [queue.enqueue(images)]))
            boxes, scores = nets.small_ssd(queue.dequeue(), True)
            self.losses = [
                tf.reduce_mean(tf.square(alter(boxes) - 0.3), name="box_loss"),
                tf.reduce_mean(tf.square(scores + 0.2), name="class_loss"),
            ]
            step = tf.train.get_or_create_global_step()
            api.create_training_graph(self.graph, quant_delay=quant_delay)
            optimizer = tf.train.GradientDescentOptimizer(1e-4)
            self.gradients = optimizer.compute_gradients(tf.add_n(self.losses))
            checks = [tf.check_numerics(loss, "loss") for loss in self.losses]
            checks.append(tf.check_numerics(tf.global_norm([g for g, _ in self.gradients]), "gradients"))
            # (As in training: averages are updated whatever the checks say.)
            updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
            with tf.control_dependencies(checks):
                apply = optimizer.apply_gradients(self.gradients, step)
            self.train_op = tf.group(apply, *updates)
            self.variables = {v.op.name: v for v in tf.global_variables()}
            self.saver = tf.train.Saver()

    @staticmethod
    def _session():
        return tf.train.MonitoredTrainingSession(log_step_count_steps=0, config=sessions.plain_config())

    def fail(self, edits=None, save_after=False, steps=6, with_checkpoint=True):
        """Trains until a step fails, `edits` (variable -> value) made before; the trace, 'no failure'."""
        with self.graph.as_default(), self._session() as session:
            raw = session._tf_sess()
            if not save_after:
                checkpoint = self.saver.save(raw, os.path.join(self.folder, "model.ckpt"), 0)
            given = {self.variables[name]: value for name, value in (edits or {}).items()}
            sessions.assign(raw, {v: np.broadcast_to(value, v.shape.as_list()) for v, value in given.items()})
            if save_after:
                checkpoint = self.saver.save(raw, os.path.join(self.folder, "model.ckpt"), 0)
            try:
                for _ in range(steps):
                    session.run(self.train_op)
            except tf.errors.InvalidArgumentError:
                ops = len(self.graph.get_operations())
                found = nan_trace.trace(
                    raw, self.losses, self.gradients, checkpoint if with_checkpoint else None
                )
                assert len(self.graph.get_operations()) == ops
                return found
        return "no failure"


def _pairs(*quick):
    """Scopes with quant_delay 0 and 3; those that are not `quick` are long."""
    for scope in [scope for scope, _ in quick]:
        for delay in (0, 3):
            marks = () if (scope, delay) in quick else (pytest.mark.long,)
            yield pytest.param(scope, delay, marks=marks)


@pytest.mark.parametrize(
    "scope, quant_delay", _pairs(("net/Conv", 0), ("net/residual/expand", 3), ("Head_1/box", 0))
)
def test_weights_that_are_nan(tmp_path, scope, quant_delay):
    found = Net(tmp_path, [0.0], quant_delay).fail({scope + "/weights": NAN})
    assert found.where.startswith(scope + "/")
    assert found.cause == "its variable {}/weights is not finite".format(scope)


@pytest.mark.parametrize("scope, quant_delay", _pairs(("Head_0/class", 3), ("Head_1/box", 0)))
def test_one_bias_that_is_nan(tmp_path, scope, quant_delay):
    """It comes in between a layer and its fake quant."""
    biases = [0.0, NAN, 0.0] if "class" in scope else [0.0, NAN, 0.0, 0.0]
    found = Net(tmp_path, [0.0], quant_delay).fail({scope + "/biases": biases})
    assert found.where.startswith(scope + "/act_quant/")
    assert found.cause == "its variable {}/biases is not finite".format(scope)


@pytest.mark.parametrize("quant_delay", [0, pytest.param(3, marks=pytest.mark.long)])
def test_images_that_are_nan(tmp_path, quant_delay):
    found = Net(tmp_path, [NAN], quant_delay).fail()
    assert found.where == "net/Conv/Conv2D (Conv2D)"
    assert found.cause.startswith("its input fifo_queue_Dequeue:0 is not finite")


def test_one_bad_batch_is_met_again(tmp_path):
    found = Net(tmp_path, [0.0, 0.0, NAN]).fail()
    assert found.where == "net/Conv/Conv2D (Conv2D)"
    assert found.cause.startswith("its input fifo_queue_Dequeue:0 is not finite")


def test_one_bad_batch_that_is_not_met_again_blames_nobody(tmp_path, monkeypatch):
    """The averages that took it in are its victims."""
    batches = [0.0, 0.0, NAN] + [0.0] * (nan_trace.BATCHES + 2)
    assert Net(tmp_path, batches).fail() is None
    assert Net(tmp_path, batches).fail(with_checkpoint=False) is None
    # They would be blamed if they were not set back: the test above does test something.
    monkeypatch.setattr(nan_trace._State, "heal", lambda self: None)
    blamed = Net(tmp_path, batches).fail()
    assert "moving statistic" in blamed.cause or "range" in blamed.cause


def test_a_range_that_was_bad_in_the_checkpoint(tmp_path):
    name = "net/block/project/act_quant/net/block/project/act_quant/max/biased"
    found = Net(tmp_path, [0.0]).fail({name: NAN}, save_after=True)
    assert found.where.startswith("net/block/project/act_quant/FakeQuant")
    assert found.cause == "its range {} is not finite".format(name)


def test_a_moving_variance_that_was_bad_in_the_checkpoint(tmp_path):
    name = "net/down/BatchNorm/moving_variance"
    found = Net(tmp_path, [0.0]).fail({name: NAN}, save_after=True)
    assert found.where.startswith("net/down/")
    assert found.cause == "its moving statistic {} is not finite".format(name)


def test_an_output_that_overflows(tmp_path):
    """Sums of 8 products of numbers near 1e38."""
    found = Net(tmp_path, [0.0]).fail(
        {"Head_0/class/weights": 1.5e38, "net/residual/project/BatchNorm/beta": 9.0}
    )
    assert found.where == "Head_0/class/Conv2D (Conv2D)"
    assert found.cause == "its own output, from finite input, weights and range"


def test_an_op_behind_the_last_layer(tmp_path):
    found = Net(tmp_path, [0.0], alter=lambda boxes: tf.log(boxes - 1e3, name="bad_log")).fail()
    assert found.where == "box_loss (Mean)"
    assert found.cause == "its input is not finite from bad_log (Log) on"


def test_a_gradient_alone(tmp_path):
    """sqrt(0) is 0, its gradient is infinite."""
    net = Net(tmp_path, [0.0], alter=lambda boxes: tf.sqrt(tf.square(boxes * 1e-30)))
    found = net.fail()
    assert found.where.startswith("the gradient of Head_")
    assert "/box/" in found.where
    assert found.cause.startswith("losses and layers are finite")


def test_a_healthy_run_fails_nowhere(tmp_path):
    assert Net(tmp_path, [0.0]).fail() == "no failure"
