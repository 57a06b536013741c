"""Decides what a training starts from: its newest checkpoint, a fine-tune checkpoint, or fresh variables."""

import sys
from typing import Callable, Optional

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.errors import CheckpointError, ConfigError


def initializer(train_config, detection_model, newest: Optional[str]) -> Optional[Callable]:
    """Checks before the session starts what will be restored, and says so in one line.

    Resuming needs every variable; a fine-tune checkpoint needs every backbone variable.

    Args:
      train_config: train_pb2.TrainConfig.
      detection_model: the model in the default graph.
      newest: the training's own newest checkpoint, which the session restores; None at a start.

    Returns:
      init_fn of a tf.train.Scaffold; None if there is no fine-tune checkpoint to restore.

    Raises:
      CheckpointError: if a checkpoint does not fit the graph.
      ConfigError: see say_what_starts_fresh.
    """
    if newest:
        _check_resume(newest)
        return None
    if train_config.fine_tune_checkpoint:
        return _fine_tuning(train_config, detection_model)
    _say_what_is_not_downloaded()
    return None


def _say_what_is_not_downloaded() -> None:
    from od_qat.od_api import keras_models

    for backbone in keras_models.not_downloaded():
        print(
            "warning: {} starts fresh. Upstream's code would download ImageNet weights for it; od_qat "
            "downloads nothing. Fix: set train_config.fine_tune_checkpoint, to a model of the TF 2 zoo for "
            "example".format(backbone),
            file=sys.stderr,
        )


def _check_resume(newest: str) -> None:
    quant_names = checkpoints.quant_variable_names()
    if not quant_names:
        checkpoints.refuse_float_resume(newest)
    checkpoints.require_all(checkpoints.named(newest), newest, quant_names)
    print("resuming from {}".format(newest), file=sys.stderr)


def _fine_tuning(train_config, detection_model) -> Callable:
    from od_qat.od_api import keras_models, training

    prefix = train_config.fine_tune_checkpoint
    quant_names = checkpoints.quant_variable_names()
    variables = training.restore_map(detection_model, train_config)
    plan = checkpoints.plan_fine_tune(
        variables,
        prefix,
        quant_names,
        training.backbone_scope(variables.values()),
        whole_backbone=training.fine_tune_type(train_config) != "classification",
    )
    in_model = tf.trainable_variables() + tf.model_variables()
    fresh = checkpoints.fresh_model_variables(
        plan, prefix, [variable for variable in in_model if variable.op.name not in quant_names]
    )
    print(
        "fine-tuning from {}: {} variables restored, {} quantization variables fresh{}".format(
            prefix,
            len(plan.restored),
            len(quant_names) - sum(v.op.name in quant_names for v in plan.restored.values()),
            say_what_starts_fresh(
                train_config, fresh, prefix, bool(quant_names), keras_models.of_graph() is not None
            ),
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


def say_what_starts_fresh(
    train_config, fresh: checkpoints.FreshModel, prefix: str, quantised: bool, keras: bool = False
) -> str:
    """Describes the model variables that a fine-tune checkpoint does not fill; empty if it fills all.

    Raises:
      ConfigError: if quantized heads would start fresh by mistake. That is so if the checkpoint has the heads
        in the right shapes and load_all_detection_checkpoint_vars is absent, which means false. If some heads
        have another shape, for another number of classes, fresh heads are wanted.
    """
    field = "load_all_detection_checkpoint_vars"
    # A user who writes false means it, but most who leave the field out forgot it.
    silent = not train_config.HasField(field)
    if quantised and silent and not keras and fresh.fitting and not fresh.other_shapes:
        raise ConfigError(
            "trained heads would start fresh, though the checkpoint has them in the same shape",
            where="train_config." + field,
            found="not set, so {} restores the backbone alone and leaves out {} variables: {}".format(
                prefix, len(fresh.fitting), checkpoints.by_scope(fresh.fitting)
            ),
            fix="restore them with --override train_config.{0}=true (in the config, {0}: true), or set it to "
            "false to train them anew".format(field),
        )
    if not fresh.names:
        return ""
    how = "train_config.{}: true".format(field)
    if keras:
        how = 'train_config.fine_tune_checkpoint_type: "full"'
    said = ", {} model variables fresh: {}".format(len(fresh.names), checkpoints.by_scope(fresh.names))
    if fresh.fitting and (silent or keras):
        said += "; the checkpoint has {} of these in the same shape, which {} restores".format(
            len(fresh.fitting), how
        )
    return said


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
