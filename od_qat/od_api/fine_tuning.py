"""Decides what a detector takes from a fine-tune checkpoint, and says what starts fresh."""

import sys
from typing import Dict, Iterable, Optional

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.od_api import halves, keras_models
from od_qat.training.task import FineTuning


def of_config(train_config, detection_model) -> Optional[FineTuning]:
    """What the fine-tune checkpoint of a config fills in the default graph; None if the config names none.

    A fine-tune checkpoint needs every backbone variable.

    Args:
      train_config: train_pb2.TrainConfig.
      detection_model: the model in the default graph.

    Raises:
      CheckpointError: if the checkpoint does not fit the graph.
      ConfigError: see say_what_starts_fresh.
    """
    prefix = train_config.fine_tune_checkpoint
    if not prefix:
        _say_what_is_not_downloaded()
        return None
    quant_names = checkpoints.quant_variable_names()
    variables = restore_map(detection_model, train_config)
    plan = checkpoints.plan_fine_tune(
        variables,
        prefix,
        quant_names,
        backbone_scope(variables.values()),
        whole_backbone=fine_tune_type(train_config) != "classification",
    )
    in_model = tf.trainable_variables() + tf.model_variables()
    fresh = checkpoints.fresh_model_variables(
        plan, prefix, [variable for variable in in_model if variable.op.name not in quant_names]
    )
    keras = keras_models.of_graph() is not None
    said = say_what_starts_fresh(train_config, fresh, prefix, bool(quant_names), keras)
    return FineTuning(prefix, plan, said)


def _say_what_is_not_downloaded() -> None:
    for backbone in keras_models.not_downloaded():
        print(
            "warning: {} starts fresh. Upstream's code would download ImageNet weights for it; od_qat "
            "downloads nothing. Fix: set train_config.fine_tune_checkpoint, to a model of the TF 2 zoo for "
            "example".format(backbone),
            file=sys.stderr,
        )


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


def fine_tune_type(train_config) -> str:
    """The type of model that the fine-tune checkpoint is of: detection, classification or, in TF 2, full.

    Raises:
      ConfigError: for another type.
    """
    kind = train_config.fine_tune_checkpoint_type or (
        "detection" if train_config.from_detection_checkpoint else "classification"
    )
    allowed = _FINE_TUNE_TYPES[halves.is_active()]
    if kind not in allowed:
        raise ConfigError(
            "unknown kind of fine-tune checkpoint",
            where="train_config.fine_tune_checkpoint_type",
            found=repr(kind),
            allowed=", ".join("{} ({})".format(name, allowed[name]) for name in sorted(allowed)),
        )
    return kind


# By whether the model is of the TF 2 half.
_FINE_TUNE_TYPES = {
    False: {"detection": "of this model", "classification": "of its feature extractor"},
    True: {
        "classification": "of its backbone",
        "detection": "of this model, without its heads",
        "full": "of this model",
    },
}


def restore_map(detection_model, train_config) -> Dict[str, object]:
    """Name in the fine-tune checkpoint -> variable, for the type of checkpoint that the config names.

    Raises:
      ConfigError: for an unknown type.
      CheckpointError: if the checkpoint is of the other half of the OD API.
    """
    kind = fine_tune_type(train_config)
    checkpoints.require_kind(train_config.fine_tune_checkpoint)
    if keras_models.of_graph() is not None:
        return keras_models.restore_map(detection_model, train_config.fine_tune_checkpoint, kind)
    return detection_model.restore_map(
        fine_tune_checkpoint_type=kind,
        load_all_detection_checkpoint_vars=train_config.load_all_detection_checkpoint_vars,
    )


# Every meta-architecture of the OD API builds its feature extractor below a scope with one of these names.
_BACKBONE_SCOPES = ("FeatureExtractor", "FirstStageFeatureExtractor")


def backbone_scope(variables: Iterable) -> str:
    """The scope of a model's feature extractor, by the names of its variables; empty if none is in one.

    (Of a Keras model all that upstream would restore has to be there.)
    """
    if halves.is_active():
        return ""
    names = [variable.op.name for variable in variables]
    return next((scope for scope in _BACKBONE_SCOPES if any(n.startswith(scope) for n in names)), "")
