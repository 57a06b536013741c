"""Decides what a training starts from: its newest checkpoint, a fine-tune checkpoint, or fresh variables."""

import sys
from typing import Callable, Optional

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.errors import CheckpointError
from od_qat.training.task import FineTuning, TrainingTask


def initializer(task: TrainingTask, newest: Optional[str]) -> Optional[Callable]:
    """Checks before the session starts what will be restored, and says so in one line.

    Resuming needs every variable.

    Args:
      task: the model in the default graph.
      newest: the training's own newest checkpoint, which the session restores; None at a start.

    Returns:
      init_fn of a tf.train.Scaffold; None if there is no fine-tune checkpoint to restore.

    Raises:
      CheckpointError: if a checkpoint does not fit the graph.
      ConfigError: if the config's fine-tuning makes no sense for the graph.
    """
    if newest:
        _check_resume(newest)
        return None
    fine_tuning = task.fine_tuning()
    return None if fine_tuning is None else _restorer(fine_tuning)


def _check_resume(newest: str) -> None:
    quant_names = checkpoints.quant_variable_names()
    if not quant_names:
        checkpoints.refuse_float_resume(newest)
    checkpoints.require_all(checkpoints.named(newest), newest, quant_names)
    print("resuming from {}".format(newest), file=sys.stderr)


def _restorer(fine_tuning: FineTuning) -> Callable:
    quant_names = checkpoints.quant_variable_names()
    restored = fine_tuning.plan.restored
    print(
        "fine-tuning from {}: {} variables restored, {} quantization variables fresh{}".format(
            fine_tuning.prefix,
            len(restored),
            len(quant_names) - sum(v.op.name in quant_names for v in restored.values()),
            fine_tuning.fresh,
        ),
        file=sys.stderr,
    )
    restorer = tf.train.Saver(restored)
    start_averages = _averages_from_variables(restored.values())

    def restore(scaffold, session):
        try:
            restorer.restore(session, fine_tuning.prefix)
            session.run(start_averages)
        except tf.errors.DataLossError as error:
            raise CheckpointError(
                "the checkpoint is damaged", where=fine_tuning.prefix, found=error.message.splitlines()[0]
            ) from error

    return restore


def _averages_from_variables(restored):
    """Lets moving averages that the checkpoint lacks start from the restored values, not from random ones."""
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
