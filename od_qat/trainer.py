"""Drop-in for `object_detection/legacy/trainer.py`: the same signature, with quantization-aware training.

Against upstream's (tf-object-detection-api 0.1) it restores strictly, rewrites before the gradients, resumes
by itself, stops on the first loss that is not finite without saving it, and uses a MonitoredSession instead
of the Supervisor. The graph is built in training/graph.py, the session opened in training/session.py.
"""

import ctypes
import os
import re
import sys
from typing import Callable, NamedTuple, Optional

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.errors import CheckpointError, ConfigError, DataError, OdQatError
from od_qat.quiet import event_writer_silenced
from od_qat.training import nan_trace
from od_qat.training.graph import Built, add_summaries, aggregates, build, seed_the_unseeded
from od_qat.training.hooks import FiniteVariablesHook, ProgressHook, StopOnSignalHook
from od_qat.training.range_gates import RangeGatesHook
from od_qat.training.session import Place, open_session, tell_servers
from od_qat.training.signals import StopSignals, name_of

REPORT_FILE = "rewrite_report.json"
# What tf.check_numerics says.
_NOT_FINITE = re.compile(r"\b(Inf|NaN)\b")
# Ops whose failure is that of a record or of an image in it. (An error of the input's threads has no op.)
_OF_INPUT = re.compile(r"\b(IteratorGetNext|DecodeImage|DecodeJpeg|DecodePng)\b")


# How long a chief's step may take after a signal: it may wait for a parameter server that is gone.
# (Schedulers give 30 seconds or more before they kill.)
_PATIENCE_IN_CLUSTER_SECS = 25


class TrainResult(NamedTuple):
    """Where training ended: step, mean loss of the last 50 steps, newest checkpoint."""

    global_step: int
    loss: float
    checkpoint: Optional[str]


def train(
    create_tensor_dict_fn: Callable,
    create_model_fn: Callable,
    train_config,
    master: str,
    task: int,
    num_clones: int,
    worker_replicas: int,
    clone_on_cpu: bool,
    ps_tasks: int,
    worker_job_name: str,
    is_chief: bool,
    train_dir: str,
    graph_hook_fn: Optional[Callable] = None,
    *,
    save_interval_secs: int = 600,
    summary_interval_secs: int = 60,
    seed: Optional[int] = None,
    on_start: Optional[Callable] = None,
) -> TrainResult:
    """Trains a detection model until `train_config.num_steps`, resuming from `train_dir`.

    SIGTERM and Ctrl-C end it early, with the state saved; called off the main thread it leaves signals alone.

    Args:
      create_tensor_dict_fn: gives the tensors of one example.
      create_model_fn: gives a DetectionModel.
      train_config: train_pb2.TrainConfig.
      master: target of the TensorFlow server, '' for this process.
      task: index of this worker.
      num_clones: clones on this machine; batch_size is split among them.
      worker_replicas: workers, the chief included.
      clone_on_cpu: clones go to CPUs.
      ps_tasks: parameter servers.
      worker_job_name: job name of this worker.
      is_chief: whether this process initialises and saves.
      train_dir: checkpoints and TensorBoard events.
      graph_hook_fn: rewrites the default graph once the losses are built, before the gradients.
      save_interval_secs: a killed run loses no more than this.
      summary_interval_secs: between TensorBoard summaries.
      seed: graph seed; examples then also come in the order that it gives, augmented by one thread.
      on_start: called without arguments when everything has been checked, before the first step.

    Returns:
      TrainResult.

    Raises:
      KeyboardInterrupt, SystemExit(143): when a signal has ended it and all is saved, unless a handler of the
        caller's own stands in for these.
      ConfigError, CheckpointError: before the first step.
      OdQatError: when a loss is no longer finite, naming its tensor and the layer that it comes from, or a
        quantization range is not.
    """
    from od_qat.od_api import config_checks, graph_rewriter, training

    config_checks.check_training(train_config)
    _keep_freed_memory()
    place = Place(master, task, worker_replicas, ps_tasks, worker_job_name, is_chief)
    if num_clones != 1 and train_config.sync_replicas:
        raise ConfigError(
            "sync_replicas works with one clone a worker",
            found="num_clones={}".format(num_clones),
            allowed="1",
        )
    if train_config.sync_replicas and not aggregates(train_config, worker_replicas):
        print(
            "sync_replicas with one worker: each step takes the whole batch of {}".format(
                train_config.batch_size
            ),
            file=sys.stderr,
        )
    # (od_qat.commands has done so, naming the config's file; other callers have not.)
    graph_rewriter.require_delay_below(
        train_config.num_steps,
        getattr(graph_hook_fn, "quant_delay", 0),
        where="graph_rewriter.quantization.delay",
    )
    if train_config.fine_tune_checkpoint:
        training.fine_tune_type(train_config)
    deploy = training.model_deploy.DeploymentConfig(
        num_clones=num_clones,
        clone_on_cpu=clone_on_cpu,
        replica_id=task,
        num_replicas=worker_replicas,
        num_ps_tasks=ps_tasks,
        worker_job_name=worker_job_name,
    )
    signals = StopSignals(_PATIENCE_IN_CLUSTER_SECS if ps_tasks else None)
    with tf.Graph().as_default():
        if seed is not None and not is_chief:
            seed += 1 + task  # each worker draws its own images
        if seed is not None:
            tf.set_random_seed(seed)
        built = build(
            deploy,
            create_tensor_dict_fn,
            create_model_fn,
            train_config,
            graph_hook_fn,
            worker_replicas,
            is_chief,
            inputs_in_order=seed is not None,
            signals=signals,
        )
        if seed is not None:
            seed_the_unseeded(tf.get_default_graph(), seed)
        saver = tf.train.Saver(
            keep_checkpoint_every_n_hours=train_config.keep_checkpoint_every_n_hours,
            save_relative_paths=True,
        )
        # A worker finds everything restored by the chief; its train_dir may be another machine's.
        newest = checkpoints.newest(train_dir)
        init_fn = _initializer(train_config, built.detection_model, newest) if is_chief else None
        if newest and train_config.num_steps and (checkpoints.step_of(newest) or 0) >= train_config.num_steps:
            print(
                "training has ended already, at step {}".format(checkpoints.step_of(newest)), file=sys.stderr
            )
            if place.ps_tasks:
                tell_servers(place)
            return TrainResult(checkpoints.step_of(newest), float("nan"), newest)
        if is_chief:
            if on_start:
                on_start()
            _say_what_was_rewritten(built.report, train_dir)
        add_summaries(built.total_loss, built.rates)
        result = _run(
            built,
            train_config,
            place,
            tf.train.Scaffold(
                init_fn=init_fn, saver=saver, local_init_op=_local_init(), summary_op=tf.summary.merge_all()
            ),
            train_dir,
            signals,
            save_secs=save_interval_secs,
            summary_secs=summary_interval_secs,
        )
    if signals.received is not None:
        print(
            "{}: step {} is saved as {}; the same command goes on from there".format(
                name_of(signals.received), result.global_step, result.checkpoint
            ),
            file=sys.stderr,
        )
        signals.deliver()
        return result
    if train_config.num_steps and is_chief and result.global_step < train_config.num_steps:
        raise _input_ended(result.global_step, train_config.num_steps)
    return result


def _run(
    built: Built,
    train_config,
    place: Place,
    scaffold,
    train_dir: str,
    signals: StopSignals,
    **intervals,
) -> TrainResult:
    """Runs the training steps; with num_steps 0 until a signal comes."""
    num_steps = train_config.num_steps
    progress = ProgressHook(
        num_steps or None, built.global_step, built.total_loss, built.rates[0] if built.rates else None
    )
    # (Model variables are the batch norms' averages too.)
    finite = FiniteVariablesHook(dict.fromkeys(tf.trainable_variables() + tf.model_variables()))
    hooks = built.session_hooks + [progress, finite, StopOnSignalHook(signals)]
    if num_steps:
        hooks.append(tf.train.StopAtStepHook(last_step=num_steps))
    if not place.is_chief and not train_config.sync_replicas and train_config.startup_delay_steps:
        wait = train_config.startup_delay_steps
        hooks.append(tf.train.GlobalStepWaiterHook(min(wait, num_steps or wait)))
    if place.is_chief and tf.get_collection(checkpoints.QUANT_VARIABLES):
        # (Behind the hook that stops: the last look then comes before the last checkpoint.)
        decay = getattr(built.report, "ema_decay", QatConfig().ema_decay)
        hooks.append(RangeGatesHook(train_dir, built.global_step, decay))
    step = 0
    try:
        # (The session's end, which saves, is still within the signals'.)
        with event_writer_silenced(), signals, open_session(
            place, scaffold, train_dir, hooks, signals=signals, **intervals
        ) as session:
            if place.is_chief:  # the others have nothing to save
                signals.listen()
            while not session.should_stop():
                try:
                    _, step = session.run([built.train_op, built.global_step])
                except tf.errors.InvalidArgumentError as error:
                    if not _NOT_FINITE.search(error.message):
                        raise
                    raise _not_finite(error, finite, session, built, train_dir) from error
    except BaseException as error:
        if place.is_chief:
            checkpoints.remove_unfinished(train_dir)
        if not isinstance(error, OdQatError) and files.is_of_writing(error, train_dir):
            raise files.cannot_write(train_dir, error) from error
        damaged = isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError))
        if damaged and _OF_INPUT.search(error.message):
            raise _unreadable(error) from error
        raise
    # (The session takes the end of the input for the end of training, without a word.)
    newest = checkpoints.newest(train_dir)
    if newest:
        step = checkpoints.step_of(newest) or step
    return TrainResult(int(step), progress.last_loss, newest)


def _keep_freed_memory() -> None:
    """Lets glibc keep what a step frees for the next one.

    Activations are large enough for malloc to map and unmap each, and the page faults of that are a fifth of
    a training step's processor time on a CPU.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
    except OSError:  # not glibc
        return
    trim_threshold, top_pad, mmap_max = -1, -2, -4
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 2**31 - 1)
    libc.mallopt(top_pad, 256 * 2**20)


def _local_init():
    return tf.group(
        tf.local_variables_initializer(), tf.tables_initializer(), name="local_and_table_initializers"
    )


def _initializer(train_config, detection_model, newest: Optional[str]) -> Optional[Callable]:
    """Checks what will be restored, before the session starts, and says it in one line.

    Resuming needs every variable; a fine-tune checkpoint needs every backbone variable.
    """
    from od_qat.od_api import training

    quant_names = checkpoints.quant_variable_names()
    if newest:
        if not quant_names:
            checkpoints.refuse_float_resume(newest)
        checkpoints.require_all({v.op.name: v for v in tf.global_variables()}, newest, quant_names)
        print("resuming from {}".format(newest), file=sys.stderr)
        return None
    prefix = train_config.fine_tune_checkpoint
    if not prefix:
        return None
    variables = training.restore_map(detection_model, train_config)
    backbone = next(
        (
            scope
            for scope in training.BACKBONE_SCOPES
            if any(v.op.name.startswith(scope) for v in variables.values())
        ),
        "",
    )
    plan = checkpoints.plan_fine_tune(
        variables,
        prefix,
        quant_names,
        backbone,
        whole_backbone=training.fine_tune_type(train_config) != "classification",
    )
    in_model = tf.trainable_variables() + tf.model_variables()
    fresh = checkpoints.fresh_model_variables(
        plan, prefix, [variable for variable in in_model if variable.op.name not in quant_names]
    )
    said_of_fresh = say_what_starts_fresh(train_config, fresh, prefix, bool(quant_names))
    print(
        "fine-tuning from {}: {} variables restored, {} quantization variables fresh{}".format(
            prefix,
            len(plan.restored),
            len(quant_names) - sum(v.op.name in quant_names for v in plan.restored.values()),
            said_of_fresh,
        ),
        file=sys.stderr,
    )
    restorer = tf.train.Saver(plan.restored)
    start_averages = _averages_from_variables(plan.restored.values())

    def restore(scaffold, session):
        try:
            restorer.restore(session, prefix)
            session.run(start_averages)
        except tf.errors.DataLossError as error:
            raise CheckpointError(
                "the checkpoint is damaged", where=prefix, found=error.message.splitlines()[0]
            ) from error

    return restore


def say_what_starts_fresh(train_config, fresh: checkpoints.FreshModel, prefix: str, quantised: bool) -> str:
    """Words about the model variables that a fine-tune checkpoint does not fill; empty when it fills all.

    Raises:
      ConfigError: when quantised heads would start fresh by mistake: the checkpoint has them as they are
        needed, and load_all_detection_checkpoint_vars, false when absent, does not say so. Where some have
        another shape, for another number of classes, fresh heads are what one wants.
    """
    field = "load_all_detection_checkpoint_vars"
    # (false in so many words is a wish; absent it is mostly forgotten.)
    silent = not train_config.HasField(field)
    if quantised and silent and fresh.fitting and not fresh.other_shapes:
        raise ConfigError(
            "trained heads would start fresh, though the checkpoint has them in the same shape",
            where="train_config." + field,
            found="not set, so {} restores the backbone alone and leaves out {} variables: {}".format(
                prefix, len(fresh.fitting), checkpoints.by_scope(fresh.fitting)
            ),
            fix="--override train_config.{0}=true (in the config, {0}: true) restores them, and false, said "
            "so, trains them anew".format(field),
        )
    if not fresh.names:
        return ""
    said = ", {} model variables fresh: {}".format(len(fresh.names), checkpoints.by_scope(fresh.names))
    if fresh.fitting and silent:
        said += "; the checkpoint has {} of these in the same shape, which train_config.{}: true ".format(
            len(fresh.fitting), field
        )
        said += "restores"
    return said


def _averages_from_variables(restored):
    """Moving averages that the checkpoint has not start from the restored values, not from random ones."""
    restored = list(restored)
    known = set(variable.op.name for variable in restored)
    averages = {variable.op.name: variable for variable in tf.global_variables()}
    pairs = [(averages.get(variable.op.name + checkpoints.AVERAGE), variable) for variable in restored]
    with tf.name_scope(None):
        return tf.group(
            *[
                tf.assign(average, variable)
                for average, variable in pairs
                if average is not None and average.op.name not in known
            ],
            name="start_averages",
        )


def _say_what_was_rewritten(report, train_dir: str) -> None:
    """One line, and everything in `rewrite_report.json`. (A hook of a caller's own may return nothing.)"""
    if not hasattr(report, "as_dict"):
        return
    path = os.path.join(train_dir, REPORT_FILE)
    files.write_json(path, report.as_dict())
    print("{}; each layer in {}".format(report, path), file=sys.stderr)


def _not_finite(error, finite: FiniteVariablesHook, session, built: Built, train_dir: str) -> OdQatError:
    session = session._tf_sess() if hasattr(session, "_tf_sess") else session
    lines = error.message.splitlines()  # (the first may be a heading)
    where = next((line for line in lines if "NaN" in line or "Inf" in line), lines[0]).strip()
    try:
        # The check itself reads variables only, so it works in the failed session.
        bad = finite.bad_variables(session)
    except Exception:  # noqa: BLE001  (the session may be gone; the loss is named all the same)
        bad = []
    found = "not finite variables: {}".format(", ".join(bad[:3])) if bad else "all variables finite"
    try:
        traced = nan_trace.trace(session, built.losses, built.gradients, checkpoints.newest(train_dir))
    except Exception as trouble:  # noqa: BLE001  (the same; the loss is named all the same)
        found += "; not traced to a layer ({})".format(type(trouble).__name__)
    else:
        if traced is None:
            found += "; the next {} batches are finite, so that batch's images or boxes are suspect".format(
                nan_trace.BATCHES
            )
        else:
            found += "; first at {}: {}".format(traced.where, traced.cause)
    return OdQatError(
        "training stopped: a value is not finite",
        where=where,
        found=found,
        fix="lower the learning rate, or set train_config.gradient_clipping_by_norm (10.0 is usual); "
        "the newest checkpoint is from before",
    )


def _unreadable(error) -> OdQatError:
    return DataError(
        "cannot read an image of the training input",
        where="train_input_reader",
        found=error.message.splitlines()[0],
        allowed="tf.Examples with JPEG or PNG images",
        fix="make the records anew (`od-qat data` decodes each image once)",
    )


def _input_ended(step: int, num_steps: int) -> OdQatError:
    return OdQatError(
        "the training input ended",
        where="train_input_reader",
        found="step {} of {}".format(step, num_steps),
        fix="set its num_epochs to 0, which reads the records for ever",
    )
