"""The gates on quantization ranges: each fires on what it is for, and a healthy run is silent."""

import json
import os

import numpy as np
import pytest

from od_qat import range_gates
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.errors import OdQatError
from od_qat.range_gates import Range
from od_qat.rewrite import api
from tests import nets

pytestmark = pytest.mark.tf1

RELU6 = "net/Conv/act_quant"


def _range(low, high, updates=None):
    return Range(np.array(low, np.float32), np.array(high, np.float32), updates)


@pytest.mark.parametrize(
    "found, reference, verdict",
    [
        (_range(-1.0, 3.0), None, "ok"),
        (_range(0.0, 6.0, 20), None, "ok"),  # a ReLU6 that reaches its end in every batch
        (_range(0.0, 6.0, 0), None, "never moved"),
        (_range(0.0, 6.0), None, "ok"),  # nothing counts: it cannot be told
        (_range(-6.0, 6.0), None, "never moved"),
        (_range([-6.0, -6.0], [6.0, 6.0]), None, "never moved"),
        (_range([-6.0, -2.0], [6.0, 2.0]), None, "ok"),
        (_range(0.0, 0.0, 20), None, "collapsed"),
        (_range(-4e-7, 4e-7), None, "collapsed"),
        (_range([-1.0, 0.0], [1.0, 0.0]), None, "ok"),  # one channel of a layer is pruned
        (_range(0.0, 0.004), 5.0, "collapsed"),
        (_range(0.0, 0.006), 5.0, "ok"),
        (_range(-100.0, 120.0), 2.0, "exploded"),
        (_range(-80.0, 100.0), 2.0, "ok"),
        (_range(-2.0, 7.0), 0.01, "ok"),  # a layer that woke up
        (_range(-100.0, 9800.0), None, "ok"),
        (_range(-300.0, 9800.0), None, "exploded"),
        (_range(0.5, 3.0), None, "inconsistent"),
        (_range(-3.0, -0.5), None, "inconsistent"),
        (_range(3.0, -3.0), None, "inconsistent"),
        (_range([-1.0, 2.0], [1.0, 3.0]), None, "inconsistent"),
        (_range(-1.0, np.inf), None, "not finite"),
        (_range([-1.0, np.nan], [1.0, 1.0]), None, "not finite"),
    ],
)
def test_verdicts(found, reference, verdict):
    assert range_gates.judge(found, reference) == verdict


def test_an_untrained_range_is_no_trouble_before_training():
    assert range_gates.judge(_range(-6.0, 6.0), trained=False) == "ok"


def test_messages_do_not_grow_with_the_graph():
    lines = range_gates.messages(
        ("layer_{}/act_quant".format(n), "collapsed", _range(0.0, 0.0)) for n in range(500)
    )
    assert list(lines) == ["collapsed"]
    line = lines["collapsed"]
    assert "\n" not in line and len(line) < 400
    assert "(500): layer_0/act_quant [0, 0]" in line and "and 497 more" in line
    assert "usual" in line and "Fix:" in line


class Run(object):
    """A session that trains small_ssd with the gates, its files in a folder."""

    def __init__(self, folder, dead_classes=False, rate=0.001):
        self.folder = str(folder)
        self.dead_classes = dead_classes
        self.rate = rate
        self.hook = None

    def train(self, steps, edits=None, before=None):
        """Trains; `edits` maps a number of steps done to {variable: function of its value}."""
        with tf.Graph().as_default() as graph:
            tf.set_random_seed(3)
            images = tf.random_uniform([2, 32, 32, 3], -1, 1, seed=4)
            boxes, scores = nets.small_ssd(images, True)
            loss = tf.reduce_mean(tf.square(boxes - 0.3))
            if not self.dead_classes:
                loss += tf.reduce_mean(tf.square(scores + 0.2))
            api.create_training_graph(graph)
            step = tf.train.get_or_create_global_step()
            train = tf.train.GradientDescentOptimizer(self.rate).minimize(loss, step)
            variables = {v.op.name: v for v in tf.global_variables()}
            self.hook = range_gates.RangeGatesHook(self.folder, step)
            hooks = [tf.train.StopAtStepHook(num_steps=steps), self.hook]
            with tf.train.MonitoredTrainingSession(
                checkpoint_dir=self.folder,
                hooks=hooks,
                save_checkpoint_secs=None,
                save_checkpoint_steps=10000,
                save_summaries_steps=None,
                log_step_count_steps=0,
            ) as session:
                done = 0
                while not session.should_stop():
                    for name, change in (edits or {}).get(done, {}).items():
                        raw = session._tf_sess()
                        variables[name].load(change(raw.run(variables[name])), raw)
                    session.run(train)
                    done += 1
        return self.hook.verdicts

    def json(self):
        with open(os.path.join(self.folder, "quant_ranges.json")) as stream:
            return json.load(stream)


def test_a_healthy_run_is_silent_and_writes_its_ranges(tmp_path, capsys):
    run = Run(tmp_path)
    verdicts = run.train(110)
    assert capsys.readouterr().err == ""
    assert set(verdicts.values()) == {"ok"} and len(verdicts) == 25
    written = run.json()
    assert sorted(written) == sorted(verdicts)
    low, high, verdict = written[RELU6]
    assert (low, verdict) == (0.0, "ok") and 0.0 < high < 6.0
    run.train(20)  # resumed: the ranges that are there are what it is compared with
    assert capsys.readouterr().err == ""


def test_a_relu6_that_always_saturates_is_not_called_unmoved(tmp_path, capsys):
    gamma = {0: {"net/Conv/BatchNorm/gamma": lambda value: value * 50}}
    run = Run(tmp_path, rate=0.0)
    run.train(12, gamma)
    assert run.json()[RELU6][:2] == [0.0, 6.0]
    assert "never moved" not in capsys.readouterr().err


def test_ranges_of_a_dead_branch_never_move(tmp_path, capsys):
    run = Run(tmp_path, dead_classes=True)
    verdicts = run.train(30)
    unmoved = sorted(name for name, verdict in verdicts.items() if verdict == "never moved")
    assert unmoved == [
        "Head_0/class/act_quant",
        "Head_0/class/concat_quant",
        "Head_0/class/weights_quant",
        "Head_1/class/act_quant",
        "Head_1/class/weights_quant",
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # once, though it was looked at twice
    assert "never moved (5)" in lines[0] and "/class/" in lines[0] and "[-6, 6]" in lines[0]
    assert "and 2 more" in lines[0]


def test_few_steps_are_not_judged(tmp_path, capsys):
    Run(tmp_path, dead_classes=True).train(5)
    assert capsys.readouterr().err == ""


def test_a_dead_layer_collapses(tmp_path, capsys):
    zero = {
        0: {
            "net/down/BatchNorm/gamma": np.zeros_like,
            "net/down/BatchNorm/beta": np.zeros_like,
        }
    }
    verdicts = Run(tmp_path, rate=0.0).train(12, zero)
    collapsed = {name for name, verdict in verdicts.items() if verdict == "collapsed"}
    # (Their heads see zeros, and have no bias yet.)
    assert {"net/down/act_quant", "net/down/weights_quant"} <= collapsed
    assert all(name.startswith(("net/down/", "Head_1/")) for name in collapsed)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "collapsed" in error and "constant" in error


@pytest.mark.parametrize(
    "done, name, factor, quant",
    [
        # Past any sense at once; and 300 times what it was after warm-up.
        (5, "net/block/project/BatchNorm/gamma", 1e6, "net/block/project/act_quant"),
        (150, "net/Conv/BatchNorm/gamma", 300.0, "net/Conv/weights_quant"),
    ],
)
def test_an_explosion_is_named(tmp_path, capsys, done, name, factor, quant):
    edits = {done: {name: lambda value: value * factor}}
    run = Run(tmp_path, rate=0.0)
    verdicts = run.train(done + 60, edits)
    assert verdicts[quant] == "exploded"
    assert run.json()[quant][2] == "exploded"
    assert "exploded" in capsys.readouterr().err
    # What feeds it has not changed.
    if "project" in quant:
        assert verdicts[RELU6] == "ok"


def test_growth_is_measured_against_the_resumed_run(tmp_path):
    Run(tmp_path, rate=0.0).train(110)
    edits = {0: {"net/Conv/BatchNorm/gamma": lambda value: value * 300}}
    assert Run(tmp_path, rate=0.0).train(12, edits)["net/Conv/weights_quant"] == "exploded"


def test_an_inconsistent_range_is_named(tmp_path, capsys):
    edits = {0: {"Head_0/class/act_quant/min": lambda value: np.float32(1.0)}}
    verdicts = Run(tmp_path, dead_classes=True).train(12, edits)
    assert verdicts["Head_0/class/act_quant"] == "inconsistent"
    assert "inconsistent (1): Head_0/class/act_quant [1, 6]" in capsys.readouterr().err


def test_a_range_that_is_not_finite_ends_training_before_it_is_saved(tmp_path):
    edits = {3: {"Head_0/class/act_quant/max": lambda value: np.float32(np.nan)}}
    run = Run(tmp_path, dead_classes=True)
    with pytest.raises(OdQatError, match="Head_0/class/act_quant.*earlier checkpoint"):
        run.train(12, edits)
    assert run.json()["Head_0/class/act_quant"] == [0.0, None, "not finite"]
    newest = tf.train.load_checkpoint(tf.train.latest_checkpoint(run.folder))
    assert np.isfinite(newest.get_tensor("Head_0/class/act_quant/max"))


def test_tensorboard_counts_each_kind(tmp_path):
    Run(tmp_path, dead_classes=True).train(12)
    tf.summary.FileWriterCache.get(str(tmp_path)).flush()
    counts = {}
    for name in os.listdir(str(tmp_path)):
        if name.startswith("events"):
            for event in tf.train.summary_iterator(str(tmp_path / name)):
                counts.update((value.tag, value.simple_value) for value in event.summary.value)
    assert counts["range_gates/never_moved"] == 5
    assert counts["range_gates/exploded"] == 0


def _checkpoint(folder, values):
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in values.items():
            tf.Variable(np.float32(value), name=name)
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, os.path.join(str(folder), "model.ckpt"))


def test_a_checkpoint_to_be_exported_is_looked_at(tmp_path, capsys):
    values = {
        "a/act_quant/min": 0.0,
        "a/act_quant/max": 6.0,
        "a/act_quant/a/act_quant/max/local_step": 7.0,
        "b/act_quant/min": 0.0,
        "b/act_quant/max": 6.0,
        "b/act_quant/b/act_quant/max/local_step": 0.0,
        "b/weights_quant/min": -1.0,
        "b/weights_quant/max": 1.0,
        "c/weights_quant/min": 0.0,
        "c/weights_quant/max": 0.0,
        "other/min": 0.0,  # not of the graph
        "other/max": 0.0,
    }
    prefix = _checkpoint(tmp_path, values)
    quant_names = [name for name in values if "_quant/" in name and "local_step" not in name]
    lines = range_gates.warn_of_checkpoint(prefix, quant_names)
    assert capsys.readouterr().err.splitlines() == lines
    assert len(lines) == 2
    assert "never moved (1): b/act_quant [0, 6];" in lines[0]
    assert "collapsed (1): c/weights_quant [0, 0];" in lines[1]


def test_a_checkpoint_with_a_nan_range_is_refused(tmp_path):
    values = {"a/act_quant/min": 0.0, "a/act_quant/max": np.nan}
    prefix = _checkpoint(tmp_path, values)
    with pytest.raises(OdQatError, match="a/act_quant"):
        range_gates.warn_of_checkpoint(prefix, values)


def test_a_graph_without_ranges_is_left_alone(tmp_path):
    with tf.Graph().as_default():
        assert tf.get_collection(QUANT_VARIABLES) == []
        step = tf.train.get_or_create_global_step()
        train = tf.assign_add(step, 1)
        hook = range_gates.RangeGatesHook(str(tmp_path), step)
        hooks = [tf.train.StopAtStepHook(num_steps=12), hook]
        with tf.train.MonitoredTrainingSession(hooks=hooks, log_step_count_steps=0) as session:
            while not session.should_stop():
                session.run(train)
    assert os.listdir(str(tmp_path)) == []
