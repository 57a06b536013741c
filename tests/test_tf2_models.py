"""CenterNet, Faster R-CNN and EfficientDet of the TF 2 half: trained, resumed, evaluated and exported."""

import importlib.util
import json
import os

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.datasets import records  # noqa: E402
from od_qat.errors import ConfigError  # noqa: E402
from tests.helpers import sessions, tiny_classifier, tiny_detector  # noqa: E402
from tests.zoo import configs  # noqa: E402

try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

from od_qat import checkpoints, scoring  # noqa: E402
from od_qat.checkpoints import object_based  # noqa: E402
from od_qat.export import tflite_checks  # noqa: E402
from od_qat.model_files.names import POST_PROCESS  # noqa: E402
from od_qat.od_api import (  # noqa: E402
    config_checks,
    fine_tuning,
    halves,
    keras_models,
    models,
    pipeline,
)

pytestmark = pytest.mark.skipif(IS_TF1, reason="TF 2 models need TensorFlow 2")

needs_official = pytest.mark.skipif(
    importlib.util.find_spec("official") is None, reason="needs pip install --no-deps tf-models-official"
)
ROWS = {row["name"]: row for row in configs.rows("tf2_models.yaml")}
CENTER_NET, FASTER_RCNN = "center_net_mobilenet_v2_fpn", "faster_rcnn_resnet50_keras"
RATE = "train_config.optimizer.momentum_optimizer.learning_rate.cosine_decay_learning_rate."
STILL = [RATE + "warmup_learning_rate=1e-9", RATE + "learning_rate_base=1e-8"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("models"))
    tiny_detector.write_data(folder)
    return folder


def _config(folder, name, quantised, more=(), row=None, file="other"):
    text = configs.text(row or ROWS[name])
    more = ["train_config.batch_size=2", "train_config.num_steps=1"] + list(more)
    return tiny_detector.write_config(folder, quantised, file, more=more, model=text)


class Road(object):
    """QAT of one step."""

    def __init__(self, name, folder):
        self.name, self.folder = name, os.path.join(folder, name)
        self.config = _config(folder, name, True, STILL, file=name)
        self.checkpoint = commands.train(self.config, self.path("qat"), seed=1).checkpoint

    def path(self, *names):
        return os.path.join(self.folder, *names)


def _cases():
    for name, marks in (
        ("center_net_mobilenet_v2_fpn", [pytest.mark.zoo]),
        ("center_net_mobilenet_v2", [pytest.mark.long]),
        ("center_net_resnet_v1_50_fpn", [pytest.mark.long]),
        ("center_net_hourglass_10", [pytest.mark.long]),
        ("ssd_resnet50_v1_fpn_keras", [pytest.mark.long]),
        ("ssd_efficientnet-b0_bifpn_keras", [pytest.mark.long, needs_official]),
        ("faster_rcnn_resnet50_keras", [pytest.mark.zoo]),
        ("faster_rcnn_inception_resnet_v2_keras", [pytest.mark.long]),
        ("faster_rcnn_resnet50_fpn_keras", [pytest.mark.long]),
    ):
        yield pytest.param(name, id=name, marks=marks)


@pytest.fixture(scope="module", params=_cases())
def road(request, folder):
    with sessions.all_plain():
        yield Road(request.param, folder)


def _values(checkpoint):
    reader = tf.train.load_checkpoint(checkpoint)
    return {
        name: reader.get_tensor(name) for name in checkpoints.shapes(checkpoint) if name.startswith("model/")
    }


def test_all_ranges_move(road):
    with open(road.path("qat", "quant_ranges.json")) as stream:
        ranges = json.load(stream)
    with open(road.path("qat", "rewrite_report.json")) as stream:
        report = json.load(stream)
    assert set(ranges) == set(report["weights"] + report["activations"])
    # (Between the stages of a Faster R-CNN: boxes, and the crops at these.)
    floats = {reason.split(" for ")[1].split(" ")[0] for reason in report["stays_float"].values()}
    assert floats == ({"CropAndResize", "Unpack"} if road.name.startswith("faster_rcnn") else set())
    reader = tf.train.load_checkpoint(road.checkpoint)
    steps = {
        name: reader.get_tensor(key)
        for name, key in object_based.extra_keys(road.checkpoint).items()
        if name.endswith("/max/local_step")
    }
    assert len(steps) == len(report["activations"]) and set(steps.values()) == {1.0}


def test_it_becomes_a_tflite_of_int8_up_to_its_heads(road, capsys):
    of_tensorflow = road.name.startswith("center_net")  # the ops of its post-processing
    if road.name.startswith("faster_rcnn"):
        with pytest.raises(ConfigError, match="only SSD models and CenterNet have a .tflite"):
            commands.export_tflite(road.config, road.path("qat"), road.path("no"))
        return
    path = commands.export_tflite(road.config, road.path("qat"), road.path("tflite"))
    said = capsys.readouterr().err
    assert "does not compute what its graph does" not in said
    with open(path, "rb") as stream:
        inspection = tflite_checks.inspect(stream.read(), ends_in_layers=of_tensorflow)
    assert inspection.float_tensors == [] and inspection.ops["CONV_2D"] > 10
    with open(road.path("tflite", "detect.json")) as stream:
        beside = json.load(stream)
    if of_tensorflow:
        assert "TOPK_V2" in inspection.after_layers
        assert beside["float_post_processing"] == sorted(inspection.after_layers)
        assert "behind them is float: " + ", ".join(beside["float_post_processing"]) in said
    else:
        assert "float_post_processing" not in beside and inspection.ops[POST_PROCESS] == 1


@pytest.mark.long
def test_qat_starts_from_the_float_model(road):
    config = _config(os.path.dirname(road.folder), road.name, False)
    checkpoint = commands.train(config, road.path("float"), seed=1).checkpoint
    more = ["train_config.fine_tune_checkpoint=" + checkpoint]
    after = _values(commands.train(road.config, road.path("tuned"), overrides=more, seed=1).checkpoint)
    before = _values(checkpoint)
    kernels = [name for name in before if "kernel" in name]
    assert set(before) == set(after) and len(kernels) >= 20
    assert all(abs(before[name] - after[name]).max() < 1e-6 for name in kernels)


def _detections(road, path):
    return scoring.score(
        path,
        os.path.join(os.path.dirname(road.folder), "data.record"),
        class_names=list(tiny_detector.CLASSES),
        processes=1,
        progress=False,
    ).detections


@pytest.mark.long
def test_it_resumes_and_is_evaluated_and_exported(road, capsys):
    result = commands.train(road.config, road.path("qat"), overrides=["train_config.num_steps=2"], seed=1)
    assert result.global_step == 2 and "resuming from" in capsys.readouterr().err
    metrics = commands.evaluate(road.config, road.path("qat"), road.path("eval"), run_once=True)
    assert "DetectionBoxes_Precision/mAP" in metrics
    frozen = commands.export(road.config, road.path("qat"), road.path("out"))
    paths = [road.path("eval", "frozen_eval_graph.pb"), frozen]
    assert all(tiny_detector.fake_quants(path) > 40 for path in paths)
    if not road.name.startswith("faster_rcnn"):
        paths.append(commands.export_tflite(road.config, road.path("qat"), road.path("again")))
    expected, exported, *of_tflite = [_detections(road, path) for path in paths]
    for detections in expected.values():
        # (A Faster R-CNN that has hardly been trained may propose nothing.)
        assert len(detections.scores) or road.name.startswith("faster_rcnn")
        assert set(detections.classes) <= {1, 2, 3}
    assert _apart(expected, exported) < 1e-4
    for found in of_tflite:
        assert _apart(expected, found) <= 4.0 / 256 + _noise(road, paths[0], expected)


def _apart(one, other):
    """How far the best scores of an image are from each other, at most."""
    best = [
        [found.scores.max() if len(found.scores) else 0.0 for found in each.values()] for each in (one, other)
    ]
    return np.abs(np.subtract(*best)).max()


def _noise(road, path, expected):
    """How far the best scores of a graph move if some pixels are one level off. (Rounding does as much.)"""
    random, changed = np.random.RandomState(0), []
    for example in records.read_examples(os.path.join(os.path.dirname(road.folder), "data.record")):
        pixels = scoring.decode(example.encoded).astype(int)
        pixels = np.clip(pixels + random.randint(-1, 2, pixels.shape), 0, 255).astype(np.uint8)
        changed.append(example._replace(encoded=tiny_classifier.encoded(pixels)))
    return _apart(expected, scoring.detect(path, changed, processes=1, progress=False))


@pytest.mark.parametrize(
    "options, says",
    [
        ({"ptq": True}, "would quantize the places of its boxes too.*--ptq"),
        ({"inference_type": "uint8"}, "int8 heads only: at --inference_type"),
        ({"fast_nms": True}, "has no suppression.*--fast_nms"),
        ({"score_threshold": 0.1}, "has no threshold.*--score_threshold"),
    ],
)
def test_what_the_tflite_of_a_center_net_cannot_have(options, says, folder):
    quantised = not options.get("ptq")
    config = _config(folder, CENTER_NET, quantised)
    prefix = os.path.join(folder, "ckpt-1")  # (is not read)
    with pytest.raises(ConfigError, match=says):
        commands.export_tflite(config, prefix, os.path.join(folder, "no"), **options)


# What is said, and what is refused.


def test_nothing_is_downloaded_and_what_would_have_been_is_named(folder, capsys):
    row = dict(ROWS["center_net_mobilenet_v2_fpn"], depth=1.0)
    config = pipeline.load(_config(folder, "wide", False, row=row))
    with halves.active(config), tf.Graph().as_default():
        model = models.model_fn(config, True)()
        assert fine_tuning.of_config(config.train_config, model) is None
    said = capsys.readouterr().err
    assert "warning: MobileNet V2 of width 1 starts fresh. Upstream's code would download" in said
    with tf.Graph().as_default():
        assert keras_models.not_downloaded() == []


@pytest.mark.parametrize(
    "name, more, says",
    [
        (
            CENTER_NET,
            "center_net.feature_extractor.type=mobilenet_v9",
            "unknown feature extractor.*found 'mobilenet_v9', allowed: mobilenet_v2.*hourglass_10",
        ),
        (
            CENTER_NET,
            "center_net.object_center_params.max_box_predictions=0",
            "max_box_predictions, found 0, allowed: a whole number from 1",
        ),
        (
            CENTER_NET,
            "center_net.image_resizer.fixed_shape_resizer.height=0",
            "center_net.image_resizer.fixed_shape_resizer.height, found 0",
        ),
        (CENTER_NET, "center_net.object_detection_task=", "no boxes to predict.*object_detection_task"),
        (
            CENTER_NET,
            "center_net.mask_estimation_task.task_loss_weight=1",
            "boxes only.*center_net.mask_estimation_task.*Fix: take it out",
        ),
        (
            CENTER_NET,
            "center_net.object_center_params.use_labeled_classes=true",
            "boxes only.*use_labeled_classes",
        ),
        (
            FASTER_RCNN,
            "faster_rcnn.feature_extractor.type=faster_rcnn_resnet51_keras",
            "unknown feature extractor.*allowed: faster_rcnn_resnet.*_keras",
        ),
        (FASTER_RCNN, "faster_rcnn.first_stage_max_proposals=0", "first_stage_max_proposals, found 0"),
    ],
)
def test_what_these_models_cannot_have(name, more, says, folder):
    config = _config(folder, name, True)
    with pytest.raises(ConfigError, match=says) as caught:
        commands.train(config, os.path.join(folder, "no"), overrides=["model." + more])
    assert "\n" not in str(caught.value)
    assert not os.path.exists(os.path.join(folder, "no"))


def test_a_tree_whose_keras_has_no_resnet(folder, monkeypatch):
    """Trees that were patched before od_qat changed that import have the module that upstream imports."""
    from object_detection.models.keras_models import resnet_v1

    monkeypatch.setattr(resnet_v1, "resnet", tf.keras.applications.resnet)
    config = pipeline.load(_config(folder, CENTER_NET, True))
    config.model.center_net.feature_extractor.type = "resnet_v1_18_fpn"
    says = "asks Keras for a function .*found resnet_v1_18_fpn .no .*applications.resnet.ResNet"
    with halves.active(config), pytest.raises(ConfigError, match=says):
        config_checks.check(config, "here", training=True)


@pytest.mark.parametrize("name", [CENTER_NET, FASTER_RCNN])
def test_what_is_false_is_not_refused(name, folder):
    config = pipeline.load(_config(folder, name, True))
    if name == CENTER_NET:
        config.model.center_net.object_center_params.use_labeled_classes = False
    with halves.active(config):
        config_checks.check(config, "here", training=True)
