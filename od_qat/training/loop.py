"""Runs the training steps, and says what their errors mean."""

import re
from typing import List, NamedTuple, Optional

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.errors import DataError, OdQatError, first_line
from od_qat.quiet import event_writer_silenced
from od_qat.training import nan_trace
from od_qat.training.graph import Built
from od_qat.training.hooks import ProgressHook, StopOnSignalHook
from od_qat.training.range_gates import RangeGatesHook
from od_qat.training.session import Place, Saving, open_session
from od_qat.training.signals import StopSignals
from od_qat.training.task import Schedule, TrainingTask

# What the message of tf.check_numerics names.
_NOT_FINITE = re.compile(r"\b(Inf|NaN)\b")
# If one of these ops fails, a record or an image in it is wrong. (An error of the input's threads has no op.)
_OF_INPUT = re.compile(r"\b(IteratorGetNext|DecodeImage|DecodeJpeg|DecodePng)\b")


class TrainResult(NamedTuple):
    """The end of a training: the step, the mean loss of the last 50 steps, the newest checkpoint."""

    global_step: int
    loss: float
    checkpoint: Optional[str]


def run(
    built: Built,
    task: TrainingTask,
    place: Place,
    scaffold,
    saving: Saving,
    signals: StopSignals,
) -> TrainResult:
    """Runs the training steps. With num_steps 0 it runs until a signal comes.

    Args:
      built: the training graph, which is the default graph.
      task: what is trained.
      place: the place of this process in the cluster.
      scaffold: tf.train.Scaffold.
      saving: where and how often it saves.
      signals: the signals that end it early; they are kept from here on.

    Raises:
      OdQatError: if a loss is not finite (the message names its tensor and the layer that it comes from), if
        a range is not finite, or if a folder of `saving` cannot be written.
      DataError: if an image of the input cannot be read.
    """
    progress = ProgressHook(
        task.schedule.num_steps or None,
        built.global_step,
        built.total_loss,
        built.rates[0] if built.rates else None,
    )
    hooks = built.session_hooks + [progress, StopOnSignalHook(signals)]
    hooks += _hooks_of_steps(task.schedule, place) + _range_gates(built, place, saving)
    step = 0
    try:
        # The end of the session, which saves, is inside of the signals' context.
        with event_writer_silenced(), signals, open_session(
            place, scaffold, saving, hooks, signals
        ) as session:
            if place.is_chief:  # the others save nothing
                signals.listen()
            while not session.should_stop():
                try:
                    _, step = session.run([built.train_op, built.global_step])
                except tf.errors.InvalidArgumentError as error:
                    if not _NOT_FINITE.search(error.message):
                        raise
                    raise _not_finite(error, session, built, task, saving.folder) from error
    except BaseException as error:
        if place.is_chief:
            checkpoints.remove_unfinished(saving.folder)
        explained = _explained(error, task, saving.folder)
        if explained is None:
            raise
        raise explained from error
    # The session treats the end of the input silently as the end of training.
    newest = checkpoints.newest(saving.folder)
    if newest:
        step = checkpoints.step_of(newest) or step
    return TrainResult(int(step), progress.last_loss, newest)


def _hooks_of_steps(schedule: Schedule, place: Place) -> List:
    """The hooks that say at which step this process starts and ends."""
    num_steps, wait = schedule.num_steps, schedule.startup_delay_steps
    hooks = [tf.train.StopAtStepHook(last_step=num_steps)] if num_steps else []
    if wait and not place.is_chief and not schedule.sync_replicas:
        hooks.append(tf.train.GlobalStepWaiterHook(min(wait, num_steps or wait)))
    return hooks


def _range_gates(built: Built, place: Place, saving: Saving) -> List:
    """The hook of the ranges, behind the one that stops: its last look is then before the last save."""
    if not place.is_chief or not tf.get_collection(checkpoints.QUANT_VARIABLES):
        return []
    decay = getattr(built.report, "ema_decay", QatConfig().ema_decay)
    return [RangeGatesHook(saving.folder, built.global_step, decay, saving.events)]


def _explained(error: BaseException, task: TrainingTask, train_dir: str) -> Optional[OdQatError]:
    """The error to raise instead of one of TensorFlow's, if a user can mend its cause; None for others."""
    if not isinstance(error, OdQatError) and files.is_of_writing(error, train_dir):
        return files.cannot_write(train_dir, error)
    damaged = isinstance(error, (tf.errors.InvalidArgumentError, tf.errors.DataLossError))
    return _unreadable(error, task) if damaged and _OF_INPUT.search(error.message) else None


def _not_finite(error, session, built: Built, task: TrainingTask, train_dir: str) -> OdQatError:
    session = session._tf_sess() if hasattr(session, "_tf_sess") else session
    lines = error.message.splitlines()  # (the first may be a heading)
    where = next((line for line in lines if "NaN" in line or "Inf" in line), lines[0]).strip()
    try:
        # This only reads variables, so it works in the failed session.
        variables = dict.fromkeys(tf.trainable_variables() + tf.model_variables())
        bad = [variable.op.name for variable in nan_trace.not_finite(session, variables)]
    except Exception:  # noqa: BLE001  (the session may be gone; the loss is named all the same)
        bad = []
    found = "not finite variables: {}".format(", ".join(bad[:3])) if bad else "all variables finite"
    newest = checkpoints.newest(train_dir)
    try:
        traced = nan_trace.trace(session, built.losses, built.gradients, newest)
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
        fix="lower the learning rate, or set {}.gradient_clipping_by_norm (10.0 is usual); {}".format(
            task.where, "the newest checkpoint is from before" if newest else "nothing is saved yet"
        ),
    )


def _unreadable(error, task: TrainingTask) -> OdQatError:
    image, found = task.unreadable(), first_line(error)
    return DataError(
        "cannot read an image of the training input",
        where=task.where_input,
        found="{}: {}".format(image, found) if image else found,
        allowed=task.images,
        fix=task.fix_images,
    )


def input_ended(step: int, task: TrainingTask) -> OdQatError:
    """Makes the error for a training whose records ended before num_steps."""
    return OdQatError(
        "the training input ended",
        where=task.where_input,
        found="step {} of {}".format(step, task.schedule.num_steps),
        fix="set its num_epochs to 0, which reads the records for ever",
    )
