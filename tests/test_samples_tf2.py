"""Upstream's configs of the TF 2 half, as published, are read, built and rewritten for training."""

import glob
import importlib.util
import os
import re

import pytest

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

from od_qat import commands, compat  # noqa: E402  (commands imports the plugin)
from od_qat.compat import tf  # noqa: E402
from od_qat.errors import ConfigError, MissingPackage  # noqa: E402
from od_qat.od_api import config_checks, graph_rewriter, halves, models, pipeline  # noqa: E402
from od_qat.od_api.detector_task import DetectorTask  # noqa: E402
from od_qat.training import graph as training_graph  # noqa: E402
from od_qat.training.session import Place  # noqa: E402
from od_qat.training.signals import StopSignals  # noqa: E402
from tests.helpers import tiny_detector  # noqa: E402
from tests.zoo import configs, samples  # noqa: E402

ROWS = samples.rows(tf2=True)
# A folder with upstream's own files, models/research/object_detection/configs/tf2.
PUBLISHED = os.environ.get("OD_QAT_SAMPLES_TF2", "")
# ResNets take no image below 129 pixels, and a pyramid up to level 7 wants a multiple of 128.
SIZE = 256

needs_tf2 = pytest.mark.skipif(compat.IS_TF1, reason="TF 2 models need TensorFlow 2")


def _missing(row):
    """The module that a row's model needs and that is not installed; None if it has all."""
    name = row.get("needs")
    try:
        return name if name and importlib.util.find_spec(name) is None else None
    except ImportError:  # (a package above it is missing)
        return name


def _published(name):
    return os.path.join(PUBLISHED, name + ".config")


@pytest.mark.parametrize("name", ROWS)
def test_the_row_says_what_the_published_file_says(name):
    if not PUBLISHED:
        pytest.skip(
            "upstream's configs are not here: OD_QAT_SAMPLES_TF2=models/research/object_detection/configs/tf2"
        )
    theirs = samples.without_defaults(pipeline.load(_published(name)))
    assert str(samples.without_defaults(samples.message(ROWS[name]))) == str(theirs)


@pytest.mark.skipif(not PUBLISHED, reason="upstream's configs are not here (OD_QAT_SAMPLES_TF2)")
def test_no_published_config_is_left_out():
    assert {os.path.basename(path)[: -len(".config")] for path in glob.glob(_published("*"))} == set(ROWS)


def _small(name, folder):
    """The path of a row's config, and overrides for small images, tiny_detector's record and QAT."""
    row = ROWS[name]
    (kind,) = row["config"]["model"]
    (resizer,) = row["config"]["model"][kind]["image_resizer"]
    sides = {
        "fixed_shape_resizer": ("height", "width"),
        "keep_aspect_ratio_resizer": ("min_dimension", "max_dimension"),
    }
    overrides = [
        "model.{}.image_resizer.{}.{}={}".format(kind, resizer, side, SIZE) for side in sides[resizer]
    ]
    overrides += ["train_config.batch_size=2", "train_config.fine_tune_checkpoint="]
    overrides.append("graph_rewriter.quantization.delay=0")
    overrides.append("train_input_reader.label_map_path=" + os.path.join(folder, "label_map.pbtxt"))
    record = os.path.join(folder, "data.record")
    overrides.append("train_input_reader.tf_record_input_reader.input_path[0]=" + record)
    if PUBLISHED:
        return _published(name), overrides
    path = os.path.join(folder, name + ".config")
    with open(path, "w") as stream:
        stream.write(samples.text(row))
    return path, overrides


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("samples"))
    tiny_detector.write_data(folder)
    return folder


def _build(config):
    """The training graph of a config, as the trainer has it, in the default graph; what it is made of."""
    config_checks.check(config, "sample", training=True)
    inputs, model = models.input_fn(config.train_input_reader), models.model_fn(config, is_training=True)
    return training_graph.build(
        DetectorTask(inputs, model, config.train_config),
        training_graph.deployment(Place(), 1, True),
        graph_rewriter.build(config.graph_rewriter, is_training=True),
        Place(),
        StopSignals(),
    )


# Ops of losses, which pick by products with zeros and ones, and of the crops between stages.
_NOT_OF_LAYERS = re.compile(
    "^Loss/|MatMulGather|BalancedPositiveNegativeSampler|BooleanMask|MultiLevelRoIAlign"
)


def _trained():
    for name, row in ROWS.items():
        if "refused" not in row and not _missing(row):
            marks = [pytest.mark.zoo]
            # (Networks of up to 190 million weights.)
            marks += [] if "ssd" in row["config"]["model"] else [pytest.mark.long]
            yield pytest.param(name, id=name, marks=marks)


@needs_tf2
@pytest.mark.parametrize("name", _trained())
def test_it_is_built_and_rewritten(name, folder):
    config = pipeline.load(*_small(name, folder))
    with halves.active(config), tf.Graph().as_default() as graph:
        report = _build(config).report
        in_gradients = {op.name for op in graph.get_operations() if op.name.startswith("gradients/")}
    assert len(report.layers) > 30 and in_gradients
    float_layers = {layer.op: "" for layer in report.layers if layer.weights is None}
    left = dict(report.stays_float, **float_layers)
    allowed = configs.float_reasons(config.model.WhichOneof("model"))
    assert {op for op in left if not _NOT_OF_LAYERS.search(op) and left[op] not in allowed} == set()


@needs_tf2
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if _missing(row)])
def test_what_it_needs_is_asked_for(name, folder):
    config = pipeline.load(*_small(name, folder))
    with halves.active(config), tf.Graph().as_default():
        with pytest.raises(MissingPackage, match="found {}.*Fix: pip".format(re.escape(ROWS[name]["needs"]))):
            _build(config)


@needs_tf2
@pytest.mark.parametrize("name", [name for name, row in ROWS.items() if "refused" in row])
def test_what_is_not_trained_is_refused(name, folder):
    path, overrides = _small(name, folder)
    with pytest.raises(ConfigError, match=ROWS[name]["refused"]) as caught:
        commands.train(path, os.path.join(folder, "no"), overrides)
    assert "\n" not in str(caught.value) and not os.path.exists(os.path.join(folder, "no"))
