"""One process of a training whose model is one number.

python -m tests.helpers.worker TRAIN_DIR STEPS sync|async SECONDS_A_STEP
"""

import sys
import time

from od_qat import compat

compat.enable_tf1_behaviour()
compat.tf.logging.set_verbosity(compat.tf.logging.INFO)  # says what is restored

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


def main(train_dir, steps, synchronous, seconds):
    place = cluster.join()
    if place is None:
        return
    worker = "/job:{}/device:CPU:0".format(place.worker_job_name)
    with tf.Graph().as_default(), tf.device(
        tf.train.replica_device_setter(place.ps_tasks, worker_device=worker)
    ):
        step = tf.train.get_or_create_global_step()
        slope = tf.get_variable("slope", initializer=0.0)
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
        update = optimizer.minimize(tf.square(slope - 3.0), global_step=step)
        tf.summary.scalar("slope", slope)
        scaffold = tf.train.Scaffold(summary_op=tf.summary.merge_all())
        with signals, training_session.open_session(
            place, scaffold, train_dir, hooks, save_secs=1, summary_secs=60, signals=signals
        ) as session:
            if place.is_chief:
                signals.listen()
            while not session.should_stop():
                session.run(update)
    if signals.received is not None:
        signals.deliver()
    print("ended", flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), sys.argv[3] == "sync", float(sys.argv[4]))
