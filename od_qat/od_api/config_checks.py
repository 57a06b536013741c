"""Checks the values of a pipeline config before anything is read, built or trained.

protobuf checks only types, and the OD API checks little more. Some wrong values end in an error that names no
field, some never end, and some train or suppress nonsense. The values refused here make no sense for any
model.
"""

import difflib
import math
import os
import re
from typing import NamedTuple, Optional, Tuple

from od_qat.errors import ConfigError, quoted
from od_qat.od_api import halves

# Pixels of a side. The feature extractors take no smaller image, and a larger one fits no machine.
_SMALLEST, _LARGEST = 33, 16384
# The least number of batches of images that training holds: one is filled, one waits, and one is in use.
_BATCHES_HELD = 3
_BYTES_OF_PIXEL = 3 * 4  # float32, three channels


class Bounds(NamedTuple):
    """An interval of finite numbers.

    Attributes:
      low, high: its ends.
      above: whether `low` itself is left out.
      whole: whether the text says "a whole number"; :meth:`holds` does not check it.
    """

    low: float
    high: float = math.inf
    above: bool = False
    whole: bool = False

    def holds(self, value: float) -> bool:
        """Whether a number lies within. NaN and infinity never do."""
        return (
            math.isfinite(value)
            and (value > self.low if self.above else value >= self.low)
            and value <= self.high
        )

    def __str__(self) -> str:
        kind = "a whole number" if self.whole else "a number"
        if self.high < math.inf:
            if self.above:
                return "{} above {:g}, up to {:g}".format(kind, self.low, self.high)
            return "{} from {:g} to {:g}".format(kind, self.low, self.high)
        return "{} {} {:g}".format(kind, "above" if self.above else "from", self.low)


_POSITIVE, _FROM_0, _FRACTION = Bounds(0, above=True), Bounds(0), Bounds(0, 1)
_COUNT, _WHOLE = Bounds(1, whole=True), Bounds(0, whole=True)
_SIDE = Bounds(_SMALLEST, _LARGEST, whole=True)

# Tables of fields: the path below the table's message, and the allowed values. A path is followed only
# through messages that are set, so that among alternatives only the chosen one is checked. A field that the
# tree's proto lacks is skipped.

_RESIZER = (
    ("fixed_shape_resizer.height", _SIDE),
    ("fixed_shape_resizer.width", _SIDE),
    ("keep_aspect_ratio_resizer.min_dimension", _SIDE),
    ("keep_aspect_ratio_resizer.max_dimension", _SIDE),
    ("conditional_shape_resizer.size_threshold", _SIDE),
    ("pad_to_multiple_resizer.multiple", Bounds(1, _LARGEST, whole=True)),
)
_SUPPRESSION = (
    ("iou_threshold", _FRACTION),
    ("max_detections_per_class", _COUNT),
    ("max_total_detections", _COUNT),
    ("max_classes_per_detection", _COUNT),
    ("soft_nms_sigma", _FROM_0),
)
_SSD = (
    ("feature_extractor.depth_multiplier", _POSITIVE),
    ("post_processing.logit_scale", _POSITIVE),
    ("loss.classification_weight", _FROM_0),
    ("loss.localization_weight", _FROM_0),
)
_FASTER_RCNN = (
    ("first_stage_nms_iou_threshold", _FRACTION),
    ("first_stage_nms_score_threshold", _FRACTION),
    ("first_stage_max_proposals", _COUNT),
    ("first_stage_minibatch_size", _COUNT),
    ("first_stage_localization_loss_weight", _FROM_0),
    ("first_stage_objectness_loss_weight", _FROM_0),
    ("second_stage_batch_size", _COUNT),
    ("second_stage_localization_loss_weight", _FROM_0),
    ("second_stage_classification_loss_weight", _FROM_0),
    ("second_stage_post_processing.logit_scale", _POSITIVE),
)
_CENTER_NET = (
    ("feature_extractor.depth_multiplier", _POSITIVE),
    ("object_center_params.object_center_loss_weight", _FROM_0),
    ("object_center_params.min_box_overlap_iou", _FRACTION),
    ("object_center_params.max_box_predictions", _COUNT),
    ("object_detection_task.task_loss_weight", _FROM_0),
    ("object_detection_task.scale_loss_weight", _FROM_0),
    ("object_detection_task.offset_loss_weight", _FROM_0),
)
_OF_SMALL_RESNETS = ("resnet_v1_18_fpn", "resnet_v1_34_fpn")
_TABLES = {"ssd": _SSD, "faster_rcnn": _FASTER_RCNN, "center_net": _CENTER_NET}
# Fields of CenterNet that need more than the boxes and classes of an image, which is what a trainer of od_qat
# reads from records.
_CENTER_NET_BEYOND_BOXES = (
    "keypoint_estimation_task",
    "mask_estimation_task",
    "densepose_estimation_task",
    "track_estimation_task",
    "temporal_offset_task",
    "deepmac_mask_estimation",
    "object_center_params.use_labeled_classes",
    "object_center_params.keypoint_weights_for_center",
)
# A rate of 0 within a schedule pauses the training. A negative one would raise the loss.
_LEARNING_RATE = (
    ("constant_learning_rate.learning_rate", _POSITIVE),
    ("exponential_decay_learning_rate.initial_learning_rate", _POSITIVE),
    ("exponential_decay_learning_rate.decay_steps", _COUNT),
    ("exponential_decay_learning_rate.decay_factor", _POSITIVE),
    ("exponential_decay_learning_rate.burnin_learning_rate", _FROM_0),
    ("exponential_decay_learning_rate.min_learning_rate", _FROM_0),
    ("manual_step_learning_rate.initial_learning_rate", _FROM_0),
    ("cosine_decay_learning_rate.learning_rate_base", _POSITIVE),
    ("cosine_decay_learning_rate.total_steps", _COUNT),
    ("cosine_decay_learning_rate.warmup_learning_rate", _FROM_0),
)
_OPTIMIZER = (
    ("rms_prop_optimizer.momentum_optimizer_value", _FRACTION),
    ("rms_prop_optimizer.decay", _FRACTION),
    ("rms_prop_optimizer.epsilon", _POSITIVE),
    ("momentum_optimizer.momentum_optimizer_value", _FRACTION),
    ("adam_optimizer.epsilon", _POSITIVE),
    ("moving_average_decay", _FRACTION),
)
_TRAINING = (
    ("batch_size", _COUNT),
    ("gradient_clipping_by_norm", _FROM_0),
    ("bias_grad_multiplier", _FROM_0),
    ("startup_delay_steps", _FROM_0),
    ("keep_checkpoint_every_n_hours", _POSITIVE),
)
_OF_NAMES = ("freeze_variables", "update_trainable_variables")


def check(config, where: str, training: bool = False) -> None:
    """Checks the model and, for training, train_config.

    Args:
      config: TrainEvalPipelineConfig.
      where: its path, for the message.
      training: whether the model will be trained.

    Raises:
      ConfigError: for the first wrong field, with its allowed values and the override that sets it.
    """
    kind = config.model.WhichOneof("model")
    model = getattr(config.model, kind)
    path = "model." + kind
    try:
        resizer = "image_resizer"
        if kind in _TABLES:
            _check_feature_extractor(kind, model.feature_extractor.type, path + ".feature_extractor.type")
            _check_resizer(model.image_resizer, _join(path, resizer))
            _check_table(model, path, _TABLES[kind])
            post_processing = "second_stage_post_processing" if kind == "faster_rcnn" else "post_processing"
            _check_post_processing(model, path, post_processing)
        if kind == "center_net":
            _check_tasks(model, path)
        if halves.is_active() and config.eval_config.use_moving_averages:
            raise _no_moving_averages("eval_config.use_moving_averages")
        if training:
            if not config.HasField("train_config"):
                raise _missing(
                    "the config has no train_config", "train_config", "a block with batch_size, optimizer"
                )
            check_training(config.train_config, _least_pixels(getattr(model, resizer, None)))
    except ConfigError as error:
        raise ConfigError(
            error.what,
            where="{}, {}".format(where, error.where),
            found=error.found,
            allowed=error.allowed,
            fix=error.fix,
        ) from error


def check_training(train_config, pixels: int = _SMALLEST**2) -> None:
    """Checks a train_config, for callers that have no other part of the config.

    Args:
      train_config: train_pb2.TrainConfig.
      pixels: the least number of pixels of an image in a batch.

    Raises:
      ConfigError: see `check`.
    """
    path = "train_config"
    _check_table(train_config, path, _TRAINING)
    if halves.is_active():
        _check_training_of_tf2(train_config, path)
    _check_batch_size(train_config, pixels)
    for name in _OF_NAMES:
        for number, pattern in enumerate(getattr(train_config, name, ())):
            _check_pattern(pattern, "{}.{}[{}]".format(path, name, number))
    optimizer, path = train_config.optimizer, path + ".optimizer"
    chosen = _chosen(optimizer, "optimizer", path)
    _check_table(optimizer, path, _OPTIMIZER)
    path = "{}.{}.learning_rate".format(path, chosen)
    learning_rate = getattr(optimizer, chosen).learning_rate
    schedule = _chosen(learning_rate, "learning_rate", path)
    _check_table(learning_rate, path, _LEARNING_RATE)
    _check_schedule(getattr(learning_rate, schedule), schedule, _join(path, schedule))


def _check_training_of_tf2(train_config, path: str) -> None:
    """Refuses what upstream's TF 2 half refuses, and what od_qat cannot train in it."""
    if train_config.load_all_detection_checkpoint_vars:
        raise ConfigError(
            "the type of the fine-tune checkpoint says what is restored: fine_tune_checkpoint_type: "
            '"full" in TF 2',
            where=_join(path, "load_all_detection_checkpoint_vars"),
            found="true",
            allowed="absent",
            fix="set {} to full, and drop this field".format(_join(path, "fine_tune_checkpoint_type")),
        )
    if train_config.optimizer.use_moving_average:
        raise _no_moving_averages(_join(path, "optimizer.use_moving_average"))


def _no_moving_averages(path: str) -> ConfigError:
    return ConfigError(
        "od_qat keeps no moving averages of a TF 2 model",
        where=path,
        found="true",
        allowed="false",
        fix="--override {}=false".format(path),
    )


def _check_table(message, path: str, table: Tuple[Tuple[str, Bounds], ...]) -> None:
    for name, bounds in table:
        value = _value(message, name)
        if value is not None and not bounds.holds(value):
            raise _wrong(_join(path, name), value, str(bounds))


def _value(message, path: str):
    """The value of a field; None if a message on the path is not set, or if the tree's proto lacks it."""
    steps = path.split(".")
    for step in steps[:-1]:
        if step not in message.DESCRIPTOR.fields_by_name or not message.HasField(step):
            return None
        message = getattr(message, step)
    return getattr(message, steps[-1], None)


def _is_given(message, path: str) -> bool:
    """Whether a field is set, and neither false nor empty."""
    steps = path.split(".")
    for step in steps[:-1]:
        if step not in message.DESCRIPTOR.fields_by_name or not message.HasField(step):
            return False
        message = getattr(message, step)
    return any(
        field.name == steps[-1] and (field.message_type is not None or bool(value))
        for field, value in message.ListFields()
    )


def _join(*steps: str) -> str:
    return ".".join(steps)


def _wrong(path: str, value, allowed: str) -> ConfigError:
    found = "{:g}".format(value) if isinstance(value, float) else str(value)
    return ConfigError(
        "a value that makes no sense",
        where=path,
        found=found,
        allowed=allowed,
        fix="set it in the config, or pass --override {}=...".format(path),
    )


def _missing(what: str, path: str, allowed: str) -> ConfigError:
    return ConfigError(
        what, where=path, found="nothing", allowed=allowed, fix="add it, as in the configs of od_qat/configs"
    )


def _chosen(message, alternatives: str, path: str) -> str:
    """The name of the alternative that is set."""
    found = message.WhichOneof(alternatives)
    if found is None:
        names = [field.name for field in message.DESCRIPTOR.oneofs_by_name[alternatives].fields]
        raise _missing("the config has no {}".format(alternatives.replace("_", " ")), path, ", ".join(names))
    return found


# Models.


def _check_tasks(center_net, path: str) -> None:
    """Refuses a CenterNet that predicts, or is trained on, other things than boxes."""
    for name in _CENTER_NET_BEYOND_BOXES:
        if _is_given(center_net, name):
            raise ConfigError(
                "od_qat trains CenterNet for boxes only, as it reads boxes and classes from records",
                where=_join(path, name),
                found="a value",
                allowed="object_detection_task",
                fix="take it out: --override {}=".format(_join(path, name)),
            )
    if not center_net.HasField("object_detection_task"):
        where = _join(path, "object_detection_task")
        raise _missing("CenterNet has no boxes to predict", where, "a block with task_loss_weight")


def _check_feature_extractor(kind: str, name: str, path: str) -> None:
    from object_detection.builders import model_builder

    keras = "_KERAS" if halves.is_active() else ""
    name_of_map = "{}{}_FEATURE_EXTRACTOR_CLASS_MAP".format(kind.upper(), keras)
    if kind == "center_net":
        name_of_map = "CENTER_NET_EXTRACTOR_FUNCTION_MAP"
    known = getattr(model_builder, name_of_map, None)
    if not known or name in known:
        if kind == "center_net" and name in _OF_SMALL_RESNETS:
            _require_small_resnets(name, path)
        return
    nearest = sorted(known, key=lambda other: (-difflib.SequenceMatcher(None, name, other).ratio(), other))
    raise ConfigError(
        "unknown feature extractor" if name else "the model has no feature extractor",
        where=path,
        found=quoted(repr(name)),
        allowed=", ".join(nearest),
        fix="write {}, or another of these".format(nearest[0]),
    )


def _require_small_resnets(name: str, path: str) -> None:
    from object_detection.models.keras_models import resnet_v1

    if not hasattr(resnet_v1.resnet, "ResNet"):
        raise ConfigError(
            "the OD API cannot build this feature extractor: it asks Keras for a function that this version "
            "of Keras does not have",
            where=path,
            found="{} (no {}.ResNet)".format(name, resnet_v1.resnet.__name__),
            fix="write resnet_v1_50_fpn, or another",
        )


def _check_resizer(resizer, path: str) -> None:
    _chosen(resizer, "image_resizer_oneof", path)
    _check_table(resizer, path, _RESIZER)
    name = "keep_aspect_ratio_resizer"
    if resizer.WhichOneof("image_resizer_oneof") == name:
        sides = resizer.keep_aspect_ratio_resizer
        if sides.min_dimension > sides.max_dimension:
            allowed = "up to max_dimension, {}".format(sides.max_dimension)
            raise _wrong(_join(path, name, "min_dimension"), sides.min_dimension, allowed)


def _check_post_processing(model, path: str, name: str) -> None:
    if name not in model.DESCRIPTOR.fields_by_name or not model.HasField(name):
        return
    post_processing, path = getattr(model, name), _join(path, name)
    name = "batch_non_max_suppression"
    suppression = getattr(post_processing, name)
    _check_table(suppression, _join(path, name), _SUPPRESSION)
    if suppression.max_detections_per_class > suppression.max_total_detections:
        raise _wrong(
            _join(path, name, "max_detections_per_class"),
            suppression.max_detections_per_class,
            "up to max_total_detections, {}".format(suppression.max_total_detections),
        )
    # (Without a converter the scores are logits, which may be any number.)
    converters = post_processing.DESCRIPTOR.fields_by_name["score_converter"].enum_type
    converted = converters.values_by_number[post_processing.score_converter].name != "IDENTITY"
    bounds = _FRACTION if converted else Bounds(-math.inf)
    if not bounds.holds(suppression.score_threshold):
        allowed = str(bounds) if converted else "a finite number"
        raise _wrong(_join(path, name, "score_threshold"), suppression.score_threshold, allowed)


# Training.


def _check_schedule(schedule, name: str, path: str) -> None:
    if name == "manual_step_learning_rate":
        if not schedule.schedule:
            raise _missing(
                "the learning rate has no schedule",
                _join(path, "schedule"),
                "schedule { step learning_rate }",
            )
        last = 0
        for number, part in enumerate(schedule.schedule):
            below = "{}.schedule[{}]".format(path, number)
            if part.step <= last:
                raise _wrong(
                    _join(below, "step"), part.step, "a step after the previous one, {}".format(last)
                )
            last = part.step
            _check_table(part, below, (("learning_rate", _FROM_0),))
    elif name == "cosine_decay_learning_rate":
        before = schedule.warmup_steps + getattr(schedule, "hold_base_rate_steps", 0)
        if before > schedule.total_steps:
            allowed = "at least warmup_steps and hold_base_rate_steps together, {}".format(before)
            raise _wrong(_join(path, "total_steps"), schedule.total_steps, allowed)
        if schedule.warmup_steps and schedule.warmup_learning_rate > schedule.learning_rate_base:
            raise _wrong(
                _join(path, "warmup_learning_rate"),
                schedule.warmup_learning_rate,
                "up to learning_rate_base, {:g}".format(schedule.learning_rate_base),
            )


def _check_pattern(pattern: str, path: str) -> None:
    try:
        re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise _wrong(
            path, quoted(repr(pattern)), "a regular expression of variable names ({})".format(error)
        ) from error


def _least_pixels(resizer) -> int:
    """About the least number of pixels of an image: the shorter side squared if only that is known."""
    if resizer is None:
        return _SMALLEST**2
    chosen = resizer.WhichOneof("image_resizer_oneof")
    if chosen == "fixed_shape_resizer":
        return resizer.fixed_shape_resizer.height * resizer.fixed_shape_resizer.width
    if chosen == "keep_aspect_ratio_resizer":
        return resizer.keep_aspect_ratio_resizer.min_dimension**2
    return _SMALLEST**2


def _check_batch_size(train_config, pixels: int) -> None:
    """Raises ConfigError if the images of the batches alone, without the network, do not fit into memory."""
    memory = _memory_bytes()
    if memory is None:
        return
    replicas = train_config.replicas_to_aggregate if train_config.sync_replicas else 1
    of_one = _BATCHES_HELD * pixels * _BYTES_OF_PIXEL
    most = memory // of_one * max(1, replicas)
    if train_config.batch_size > most:
        raise ConfigError(
            "a batch of this size does not fit into this machine's memory",
            where="train_config.batch_size",
            found="{}: the images of {} batches, one filled, one waiting, one in use, are {:,.0f} GB".format(
                train_config.batch_size, _BATCHES_HELD, train_config.batch_size * of_one / 1e9
            ),
            allowed="at most {} with {:,.0f} GB, and far less with what the network takes".format(
                most, memory / 1e9
            ),
            fix="--override train_config.batch_size=8 (8 to 64 are usual)",
        )


def _memory_bytes() -> Optional[int]:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not on Unix
        return None
