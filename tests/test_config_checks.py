"""Fields of a pipeline config that make no sense: one line, before anything is read or built."""

import glob
import os

import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.errors import ConfigError  # noqa: E402
from od_qat.od_api import halves  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402

pytestmark = pytest.mark.tf1

try:
    from od_qat import commands
    from od_qat.od_api import config_checks, models, pipeline
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

CONFIG = os.path.join(REPOSITORY, "od_qat", "configs", "ssd_mobilenet_v2_qat.config")
NMS = "model.ssd.post_processing.batch_non_max_suppression."
OPTIMIZER = "train_config.optimizer."
RATE = "momentum_optimizer.learning_rate."
FASTER_RCNN = """
model {
  faster_rcnn {
    num_classes: 2
    image_resizer { keep_aspect_ratio_resizer { min_dimension: 600 max_dimension: 1024 } }
    feature_extractor { type: "faster_rcnn_resnet50" }
    second_stage_post_processing { score_converter: SOFTMAX }
  }
}
"""

MODEL = [
    (
        ["model.ssd.image_resizer.fixed_shape_resizer.height=0"],
        "resizer.height, found 0, allowed: .* 33 to 16384",
    ),
    (["model.ssd.image_resizer.fixed_shape_resizer.width=8"], "resizer.width, found 8"),
    (["model.ssd.image_resizer.fixed_shape_resizer.width=-1"], "resizer.width, found -1"),
    (["model.ssd.image_resizer.fixed_shape_resizer.height=2000000000"], "resizer.height, found 2000000000"),
    (
        ["model.ssd.image_resizer="],
        "no image resizer oneof.*image_resizer, found nothing, allowed: .*fixed_shape",
    ),
    (["model.ssd.image_resizer={keep_aspect_ratio_resizer {min_dimension: 0}}"], "min_dimension, found 0"),
    (["model.ssd.image_resizer={pad_to_multiple_resizer {multiple: 0}}"], "multiple, found 0"),
    (
        ["model.ssd.image_resizer={keep_aspect_ratio_resizer {min_dimension: 900 max_dimension: 600}}"],
        "min_dimension, found 900, allowed: up to max_dimension, 600",
    ),
    ([NMS + "iou_threshold=7"], "iou_threshold, found 7, allowed: a number from 0 to 1"),
    ([NMS + "iou_threshold=nan"], "iou_threshold, found nan"),
    ([NMS + "score_threshold=1.5"], "score_threshold, found 1.5"),
    ([NMS + "score_threshold=nan"], "score_threshold, found nan"),
    (["model.ssd.post_processing.score_converter=IDENTITY", NMS + "score_threshold=inf"], "a finite number"),
    ([NMS + "max_total_detections=0"], "max_total_detections, found 0, allowed: a whole number from 1"),
    ([NMS + "max_detections_per_class=-1"], "max_detections_per_class, found -1"),
    ([NMS + "max_detections_per_class=200"], "max_detections_per_class, found 200, allowed: up to max_total"),
    (
        ["model.ssd.feature_extractor.type=ssd_mobilenet_v4"],
        "unknown .*found 'ssd_mobilenet_v4', allowed: ssd_mobilenet_v",
    ),
    (["model.ssd.feature_extractor.type="], "no feature extractor"),
    (["model.ssd.feature_extractor.depth_multiplier=0"], "depth_multiplier, found 0"),
    (["model.ssd.loss.classification_weight=-1"], "classification_weight, found -1"),
]
TRAINING = [
    (["train_config="], "no train_config: at .*train_config, found nothing"),
    (
        ["train_config.optimizer="],
        "no optimizer: .*allowed: rms_prop_optimizer, momentum_optimizer, adam_opt",
    ),
    (
        [OPTIMIZER + "adam_optimizer={}"],
        "no learning rate: .*adam_optimizer.learning_rate.*constant_learning",
    ),
    (["train_config.batch_size=0"], "batch_size, found 0"),
    (["train_config.batch_size=100000000"], "does not fit into this machine's memory: .*batch_size=8"),
    (["train_config.gradient_clipping_by_norm=nan"], "clipping_by_norm, found nan"),
    (["train_config.freeze_variables=a(b"], r"freeze_variables\[0\], found 'a\(b', allowed: a regular expr"),
    ([OPTIMIZER + "momentum_optimizer.momentum_optimizer_value=2"], "momentum_optimizer_value, found 2"),
    ([OPTIMIZER + "moving_average_decay=-1"], "moving_average_decay, found -1"),
    (
        [OPTIMIZER + "adam_optimizer={epsilon: 0 learning_rate {constant_learning_rate {}}}"],
        "epsilon, found 0",
    ),
    ([OPTIMIZER + RATE + "manual_step_learning_rate={}"], "no schedule"),
    (
        [OPTIMIZER + RATE + "manual_step_learning_rate={schedule {step: 9} schedule {step: 9}}"],
        r"schedule\[1\].step, found 9, allowed: a step after the previous one, 9",
    ),
    (
        [OPTIMIZER + RATE + "manual_step_learning_rate={schedule {step: 9 learning_rate: -1}}"],
        r"schedule\[0\].learning_rate, found -1",
    ),
    (
        [OPTIMIZER + RATE + "cosine_decay_learning_rate={total_steps: 9 warmup_steps: 10}"],
        "total_steps, found 9, allowed: at least warmup_steps.* 10",
    ),
    (
        [OPTIMIZER + RATE + "cosine_decay_learning_rate={warmup_learning_rate: 1}"],
        "warmup_learning_rate, found 1, allowed: up to learning_rate_base, 0.002",
    ),
    ([OPTIMIZER + RATE + "exponential_decay_learning_rate={decay_steps: 0}"], "decay_steps, found 0"),
    ([OPTIMIZER + RATE + "exponential_decay_learning_rate={decay_factor: inf}"], "decay_factor, found inf"),
]
TRAINING += [
    (
        [OPTIMIZER + optimizer + "={learning_rate {" + schedule.format(rate) + "}}"],
        "learning_rate.*found {}, allowed".format(rate),
    )
    for optimizer in ("rms_prop_optimizer", "momentum_optimizer", "adam_optimizer")
    for schedule in (
        "constant_learning_rate {{learning_rate: {}}}",
        "exponential_decay_learning_rate {{initial_learning_rate: {}}}",
        "manual_step_learning_rate {{schedule {{step: 1}} initial_learning_rate: {}}}",
        "cosine_decay_learning_rate {{learning_rate_base: {}}}",
    )
    for rate in ("-0.01", "nan", "inf")
]


@pytest.mark.parametrize("overrides, says", MODEL + TRAINING, ids=lambda value: str(value)[:60])
def test_what_makes_no_sense_is_refused(overrides, says):
    config = pipeline.load(CONFIG, overrides)
    with pytest.raises(ConfigError, match=says) as caught:
        config_checks.check(config, CONFIG, training=True)
    assert str(caught.value).count(CONFIG) == 1 and "Fix: " in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "change, says",
    [
        ("first_stage_nms_iou_threshold: 7", "first_stage_nms_iou_threshold, found 7"),
        ("first_stage_max_proposals: 0", "first_stage_max_proposals, found 0"),
        (
            "second_stage_post_processing { batch_non_max_suppression { max_total_detections: 0 } }",
            "second_stage_post_processing.batch_non_max_suppression.max_total_detections, found 0",
        ),
        ('feature_extractor { type: "resnet50" }', "found 'resnet50', allowed: faster_rcnn_resnet50, "),
    ],
)
def test_faster_rcnn(change, says, tmp_path):
    path = tmp_path / "a.config"
    path.write_text(FASTER_RCNN)
    config_checks.check(pipeline.load(str(path)), "a.config")
    path.write_text(FASTER_RCNN)
    config = pipeline.load(str(path))
    pipeline.merge(config, "model { faster_rcnn { %s } }" % change)
    with pytest.raises(ConfigError, match=says):
        config_checks.check(config, "a.config")


@pytest.mark.parametrize(
    "overrides",
    [
        [NMS + "score_threshold=1e-8", NMS + "iou_threshold=1"],
        ["model.ssd.post_processing.score_converter=IDENTITY", NMS + "score_threshold=-10"],
        [OPTIMIZER + RATE + "manual_step_learning_rate={schedule {step: 9 learning_rate: 0}}"],
        [OPTIMIZER + RATE + "cosine_decay_learning_rate={total_steps: 10 warmup_steps: 10}"],
        ["train_config.batch_size=512"],
    ],
)
def test_what_is_unusual_is_taken(overrides):
    config_checks.check(pipeline.load(CONFIG, overrides), CONFIG, training=True)


def test_configs_in_use_are_taken():
    paths = glob.glob(os.path.join(REPOSITORY, "od_qat", "configs", "*.config"))
    paths = [
        path for path in paths if not path.endswith("_mnist_qat.config")
    ]  # (test_classifiers.py has these)
    published = os.environ.get("OD_QAT_COCO_DETECTOR")
    paths += glob.glob(os.path.join(published, "*.config")) if published else []
    paths += glob.glob(os.path.join(os.environ.get("OD_QAT_SAMPLES", "/nowhere"), "*.config"))
    assert len(paths) >= 5
    for path in paths:
        config = pipeline.load(path)
        if compat.HAS_TF2_MODELS or not halves.is_tf2(config):
            with halves.active(config):
                config_checks.check(config, path, training=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda more: commands.train(CONFIG, "no/train", overrides=more),
        lambda more: commands.evaluate(CONFIG, "no/train", "no/eval", overrides=more),
        lambda more: commands.export(CONFIG, "no/model.ckpt-1", "no/out", overrides=more),
        lambda more: commands.export_tflite(CONFIG, "no/model.ckpt-1", "no/out", overrides=more),
    ],
)
def test_every_command_looks_first(call):
    with pytest.raises(ConfigError, match="iou_threshold, found 7"):
        call([NMS + "iou_threshold=7"])
    assert not os.path.exists("no")


def test_the_drop_in_trainer_looks_at_what_it_gets():
    from od_qat import trainer

    config = pipeline.load(CONFIG, ["train_config.batch_size=100000000"]).train_config
    with pytest.raises(ConfigError, match="does not fit into this machine's memory"):
        trainer.train(None, None, config, "", 0, 1, 1, False, 0, "lonely_worker", True, "no/train")


def test_what_the_od_apis_builder_does_not_take_names_the_model():
    config = pipeline.load(CONFIG, ["model.ssd.box_coder="])
    with pytest.raises(
        ConfigError, match="cannot build this model: at model.ssd, found [A-Z][A-Za-z]+Error: "
    ):
        models.model_fn(config, is_training=False)()
