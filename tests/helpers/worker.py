"""One process of a training whose model is one number, or a small net of Keras layers with QAT.

python -m tests.helpers.worker TRAIN_DIR STEPS sync|async SECONDS_A_STEP
"""

import sys
import time
from unittest import mock

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import checkpoints  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from od_qat.training import cluster  # noqa: E402
from od_qat.training import session as training_session  # noqa: E402
from od_qat.training.hooks import StopOnSignalHook  # noqa: E402
from od_qat.training.signals import StopSignals  # noqa: E402


class _Slow(tf.train.SessionRunHook):
    """Gives the test time, and says the step."""

    def __init__(self, seconds):
        self._seconds = seconds

    def before_run(self, run_context):
        time.sleep(self._seconds)
        return tf.train.SessionRunArgs(tf.train.get_global_step())

    def after_run(self, run_context, run_values):
        print("step {}".format(run_values.results), flush=True)


def number(place):
    """The loss of one number, which is to become 3."""
    return tf.square(tf.get_variable("slope", initializer=0.0) - 3.0)


def keras_net(place):
    """The loss of a small net of Keras layers, made and rewritten as the trainer does it with a detector.

    The layers have the device of this process. It is for od_qat to put their variables elsewhere.
    """
    from deployment import model_deploy

    from od_qat.config import QatConfig
    from od_qat.od_api import halves, keras_models
    from od_qat.rewrite import api
    from tests.helpers import keras_layers

    deploy = model_deploy.DeploymentConfig(
        num_replicas=place.worker_replicas,
        num_ps_tasks=place.ps_tasks,
        worker_job_name=place.worker_job_name,
    )
    with mock.patch.object(halves, "_is_tf2", True), tf.device(deploy.clone_device(0)):
        with keras_models.variables_of_one_model(deploy):
            net = keras_layers.Functional(training=True)
            net.predict = net.__call__
            net.regularization_losses = list
            keras_models.remember(net)
            found = net.predict(tf.random.uniform([4, 16, 16, 3], -1, 1))
            loss = tf.reduce_mean(tf.square(found - 3.0))
        keras_models.collect(net)
    with tf.device(deploy.variables_device()):
        api.rewrite(QatConfig(), training=True, outputs=keras_models.outputs())
    return loss


def main(train_dir, steps, synchronous, seconds):
    """Takes this process's place in the cluster, and trains until that step."""
    tf.logging.set_verbosity(tf.logging.INFO)  # says what is restored
    place = cluster.join()
    if place is not None:
        train(place, train_dir, steps, synchronous, seconds)


def train(place, train_dir, steps, synchronous=False, seconds=0.0, model=number):
    """Trains a model, one of the functions above, and returns its graph."""
    worker = "/job:{}/device:CPU:0".format(place.worker_job_name)
    with tf.Graph().as_default() as graph, tf.device(
        tf.train.replica_device_setter(place.ps_tasks, worker_device=worker)
    ):
        step = tf.train.get_or_create_global_step()
        optimizer = tf.train.GradientDescentOptimizer(0.01)
        signals = StopSignals()
        hooks = [StopOnSignalHook(signals), tf.train.StopAtStepHook(last_step=steps), _Slow(seconds)]
        if synchronous:
            optimizer = tf.train.SyncReplicasOptimizer(
                optimizer, replicas_to_aggregate=2, total_num_replicas=place.worker_replicas
            )
            hooks.append(optimizer.make_session_run_hook(place.is_chief))
            if place.is_chief:
                hooks.append(training_session.SynchronousChiefHook(optimizer, place.worker_replicas, signals))
        loss = model(place)
        update = optimizer.minimize(loss, global_step=step)
        update = tf.group(update, *tf.get_collection(tf.GraphKeys.UPDATE_OPS))
        tf.summary.scalar("loss", loss)
        scaffold = tf.train.Scaffold(summary_op=tf.summary.merge_all(), saver=checkpoints.saver())
        saving = training_session.Saving(train_dir, train_dir, secs=1, steps=None, summary_secs=60)
        with signals, training_session.open_session(place, scaffold, saving, hooks, signals) as session:
            if place.is_chief:
                signals.listen()
            while not session.should_stop():
                session.run(update)
    if signals.received is not None:
        signals.deliver()
    print("ended", flush=True)
    return graph


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sync", float(sys.argv[4]))
