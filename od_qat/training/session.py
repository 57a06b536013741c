"""Opens the training session of a single process, or of one of several with parameter servers.

It works like TensorFlow's MonitoredTrainingSession, with three differences for several processes. A worker
waits only for the parameter servers (and at its start for the chief), so it may leave and return. It checks
every second whether the chief has initialised the variables (TensorFlow: every 30). And each process tells
the parameter servers when it ends.
"""

import os
import sys
import threading
import time
from typing import Callable, List, NamedTuple, Optional

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.errors import OdQatError
from od_qat.graph import session_config
from od_qat.training.signals import StopSignals

# The chief restores or initialises in seconds. TensorFlow's 30 seconds are longer than a short training.
_POLL_SECS = 1
# How long a process waits for others before it prints a message.
_PATIENCE_SECS = 20
# How long a worker waits for the chief, which may be restarted on another machine.
_LONGEST_WAIT_SECS = 7200
# Threads that wait for gradients of other workers end only with the session.
_STOP_GRACE_SECS = 5
# How long a process that starts after the end of training tries to tell the parameter servers, which may be
# gone too.
_TELL_SECS = 15
# How long a parameter server stays after the last message, since closing a session can hang if it is gone.
_GOODBYE_SECS = 5
# How long a parameter server waits for workers after the chief has ended; one may still build its graph.
_LAST_STEPS_SECS = 300


class Place(NamedTuple):
    """The place of this process among those of a training, with the names of trainer.train's arguments.

    Attributes:
      master: target of this process's TensorFlow server; '' if there is no cluster.
      task: index among the workers.
      worker_replicas: number of workers, the chief included.
      ps_tasks: number of parameter servers.
      worker_job_name: job and task, such as `worker/task:0`.
      is_chief: whether this process initialises and saves.
      server: tf.train.Server of this process, kept here since it ends when nothing refers to it; None if the
        caller keeps it.
    """

    master: str = ""
    task: int = 0
    worker_replicas: int = 1
    ps_tasks: int = 0
    worker_job_name: str = "lonely_worker"
    is_chief: bool = True
    server: object = None

    @property
    def is_alone(self) -> bool:
        """Whether no other process initialises or holds variables of this one."""
        return self.is_chief and not self.ps_tasks


class Saving(NamedTuple):
    """Where and how often a training saves.

    Attributes:
      folder: of the checkpoints, train_dir.
      events: folder of the TensorBoard events.
      secs: seconds between checkpoints; None if `steps` says how often.
      steps: steps between checkpoints; None if `secs` says how often.
      summary_secs: seconds between summaries.
    """

    folder: str
    events: str
    secs: Optional[int]
    steps: Optional[int]
    summary_secs: int


def make_scaffold(place: Place, saver, init_fn: Optional[Callable]):
    """Makes the tf.train.Scaffold of the default graph. Call it after the last op was added.

    A process among several waits until the variables are initialised. A single one has initialised or
    restored all of them, and does not ask: each question takes a quarter of a second.

    Args:
      place: the place of this process in the cluster.
      saver: tf.train.Saver of all variables.
      init_fn: restores a fine-tune checkpoint; None if there is none.
    """
    none_missing = tf.constant([], tf.string) if place.is_alone else None
    local_init = tf.group(
        tf.local_variables_initializer(), tf.tables_initializer(), name="local_and_table_initializers"
    )
    return tf.train.Scaffold(
        init_fn=init_fn,
        saver=saver,
        local_init_op=local_init,
        summary_op=tf.summary.merge_all(),
        ready_op=none_missing,
        ready_for_local_init_op=none_missing,
    )


def open_session(
    place: Place,
    scaffold,
    saving: Saving,
    hooks: List,
    signals: StopSignals,
):
    """Returns a MonitoredSession on the default graph, a context manager.

    Args:
      place: the place of this process in the cluster.
      scaffold: tf.train.Scaffold; the chief restores it from the checkpoints' folder or initialises it.
      saving: where and how often the chief saves.
      hooks: hooks to run before those that save.
      signals: if one of these ends the process, it is expected to return, and the parameter servers are not
        told that it has ended.
    """
    hooks = list(hooks)
    if place.is_chief:
        hooks.append(_SaverHook(saving, scaffold))
        hooks.append(
            tf.train.SummarySaverHook(
                save_secs=saving.summary_secs, output_dir=saving.events, scaffold=scaffold
            )
        )
    if place.ps_tasks:
        hooks.append(_TellServersHook(place, signals))  # last, as the servers may be gone afterwards
    return tf.train.MonitoredSession(
        _SessionCreator(place, scaffold, saving.folder), hooks, stop_grace_period_secs=_STOP_GRACE_SECS
    )


class _SaverHook(tf.train.CheckpointSaverHook):
    """Saves into the folder of checkpoints, and writes its events and the graph into that of events.

    TensorFlow's hook begins with a checkpoint of the state that the session starts from, and writes the graph
    as graph.pbtxt and four times into the events. This one writes it once, for TensorBoard; each checkpoint's
    .meta file has it too.
    """

    def __init__(self, saving: Saving, scaffold) -> None:
        super(_SaverHook, self).__init__(
            saving.events, save_secs=saving.secs, save_steps=saving.steps, scaffold=scaffold
        )
        self._save_path = os.path.join(saving.folder, checkpoints.basename())
        self._events = saving.events
        self._has_graph = False

    def begin(self) -> None:
        """Opens the events, without a graph; one that the cache opens has two copies of it."""
        writers = tf.summary.FileWriterCache._cache
        if self._events not in writers:
            writers[self._events] = tf.summary.FileWriter(self._events)
        super(_SaverHook, self).begin()

    def after_create_session(self, session, coord) -> None:
        """Writes the graph, once. The time to the next checkpoint begins here."""
        if not self._has_graph:
            tf.summary.FileWriterCache.get(self._events).add_graph(tf.get_default_graph())
            self._has_graph = True
        self._timer.update_last_triggered_step(session.run(self._global_step_tensor))


class _SessionCreator(tf.train.SessionCreator):
    """Creates the session, also again after a parameter server was lost.

    The chief then restores its newest checkpoint.
    """

    def __init__(self, place: Place, scaffold, train_dir: str) -> None:
        self._place = place
        self._scaffold = scaffold
        self._train_dir = train_dir

    def create_session(self):
        """Restores or initialises the variables in the chief; waits for that in other workers."""
        scaffold, place = self._scaffold, self._place
        scaffold.finalize()
        manager = tf.train.SessionManager(
            local_init_op=scaffold.local_init_op,
            ready_op=None if place.is_alone else scaffold.ready_op,
            ready_for_local_init_op=None if place.is_alone else scaffold.ready_for_local_init_op,
            graph=tf.get_default_graph(),
            recovery_wait_secs=_POLL_SECS,
        )
        config = _session_config(place)
        if place.ps_tasks:
            # TensorFlow says what it waits for in its log, which od_qat silences.
            told = threading.Timer(_PATIENCE_SECS, _say_what_is_waited_for, [place])
            told.daemon = True
            told.start()
            try:
                return self._session(manager, config)
            except tf.errors.DeadlineExceededError as error:
                raise OdQatError(
                    "the chief has not started the training",
                    where=place.worker_job_name,
                    found="nothing after {} minutes".format(_LONGEST_WAIT_SECS // 60),
                    fix="start the process that TF_CONFIG calls master, then this one again",
                ) from error
            finally:
                told.cancel()
        return self._session(manager, config)

    def _session(self, manager, config):
        scaffold, place = self._scaffold, self._place
        if not place.is_chief:
            return manager.wait_for_session(place.master, config=config, max_wait_secs=_LONGEST_WAIT_SECS)
        # The session restores by folder, so that the saver also knows the older checkpoints. If the folder
        # was moved, its list has wrong paths, and the session restores by the path of the checkpoint.
        newest = checkpoints.newest(self._train_dir)
        moved = newest and newest != tf.train.get_checkpoint_state(self._train_dir).model_checkpoint_path
        return manager.prepare_session(
            place.master,
            saver=scaffold.saver,
            checkpoint_dir=None if moved else self._train_dir,
            checkpoint_filename_with_path=newest if moved else None,
            config=config,
            init_op=scaffold.init_op,
            init_feed_dict=scaffold.init_feed_dict,
            init_fn=scaffold.init_fn,
        )


def _say_what_is_waited_for(place: Place) -> None:
    print(
        "{} waits for {}: are they started, and reachable from here at the addresses in TF_CONFIG?".format(
            place.worker_job_name,
            "the parameter servers" if place.is_chief else "the parameter servers and the chief",
        ),
        file=sys.stderr,
    )


def _session_config(place: Place):
    """Makes the config; a worker uses only the parameter servers and itself, no other worker."""
    filters = ["/job:ps", "/job:" + place.worker_job_name] if place.ps_tasks else []
    return session_config.for_many_runs(allow_soft_placement=True, device_filters=filters)


class SynchronousChiefHook(tf.train.SessionRunHook):
    """Applies the workers' gradients in a thread of its own, and lets the workers end with the chief.

    At the end of a training, TensorFlow's own thread waits for gradients that nobody sends. It delays the end
    and prints 'Coordinator stopped with threads still running'. The workers would wait for ever for the token
    of a step that nobody makes.

    Args:
      optimizer: tf.train.SyncReplicasOptimizer, after its apply_gradients was called.
      worker_replicas: number of workers, the chief included.
      signals: if one of these ends the chief, it is expected to return, and the workers wait for it.
    """

    def __init__(self, optimizer, worker_replicas: int, signals: StopSignals) -> None:
        self._optimizer = optimizer
        self._signals = signals
        self._tokens = 2 * worker_replicas

    def begin(self) -> None:
        """Builds the op that releases workers, and replaces TensorFlow's thread."""
        self._runner = self._optimizer.get_chief_queue_runner()
        self._runner.create_threads = self._create_threads  # the optimizer's hook calls it
        # It has no public name, but the same one in TensorFlow 1.15 and 2.21.
        queue = self._optimizer._sync_token_queue
        step = tf.cast(tf.train.get_global_step(), queue.dtypes[0])
        with tf.device(queue.queue_ref.device):
            self._release = queue.enqueue_many(tf.fill([self._tokens], step))

    def _create_threads(self, session, coord, daemon: bool = True, start: bool = True) -> List:
        def apply_gradients() -> None:
            try:
                while not coord.should_stop():
                    session.run(self._runner.enqueue_ops[0])
            except (tf.errors.CancelledError, RuntimeError):
                pass  # the session has been closed
            except tf.errors.OpError as error:
                if not coord.should_stop():
                    coord.request_stop(error)

        threading.Thread(target=apply_gradients, name="synchronous_chief", daemon=True).start()
        return []  # the coordinator need not wait, as the thread ends with the session

    def end(self, session) -> None:
        """Adds tokens, so that workers finish their step and see that training has ended.

        It adds none if a signal ends the chief.
        """
        if self._signals.received is None:
            session.run(self._release)


class _TellServersHook(tf.train.SessionRunHook):
    """Tells each parameter server that this process has ended (see `serve`)."""

    def __init__(self, place: Place, signals: StopSignals) -> None:
        self._place = place
        self._signals = signals

    def begin(self) -> None:
        """Builds the ops."""
        self._tell = _tell_ops(self._place)

    def end(self, session) -> None:
        """Tells the servers, unless a signal ends the process, which is then expected to return.

        (If the process fails, TensorFlow does not call this.)
        """
        if self._signals.received is None:
            session.run(self._tell)


def tell_servers(place: Place) -> None:
    """Tells the parameter servers that this process found the training ended, so that they do not wait."""

    def tell() -> None:
        with tf.Graph().as_default():
            said = _tell_ops(place)
            with tf.Session(place.master, config=_session_config(place)) as session:
                session.run(said)

    # It runs in a thread, as a connection to a server that is gone never returns.
    thread = threading.Thread(target=tell, name="tell_servers", daemon=True)
    thread.start()
    thread.join(_TELL_SECS)


def _tell_ops(place: Place) -> List:
    return [_ended(task, place.is_chief).enqueue(True) for task in range(place.ps_tasks)]


def _ended(task: int, chief: bool):
    """Returns a queue on a parameter server whose size is the number of processes that have ended.

    Nothing is taken out, as a dequeue that is cancelled while an element arrives may lose it.
    """
    with tf.device("/job:ps/task:{}/device:CPU:0".format(task)):
        name = "od_qat_chief_ended" if chief else "od_qat_workers_ended"
        return tf.FIFOQueue(-1, tf.bool, shapes=[[]], shared_name=name)


def serve(server, task: int, worker_replicas: int) -> None:
    """Runs a parameter server until all workers have ended, or five minutes after the chief has.

    Args:
      server: tf.train.Server of this process.
      task: index among the parameter servers.
      worker_replicas: number of workers, the chief included.
    """
    ended, until = 0, None
    with tf.Graph().as_default():
        sizes = [_ended(task, chief).size() for chief in (True, False)]
        config = tf.ConfigProto(device_filters=["/job:ps/task:{}".format(task)])
        with tf.Session(server.target, config=config) as session:
            while ended < worker_replicas and (until is None or time.time() < until):
                time.sleep(_POLL_SECS)
                chief, workers = session.run(sizes)
                ended = chief + workers
                if chief and until is None:
                    until = time.time() + _LAST_STEPS_SECS
            time.sleep(_GOODBYE_SECS)
    print("training has ended: {} of {} workers".format(ended, worker_replicas), file=sys.stderr)
