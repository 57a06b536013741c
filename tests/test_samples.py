"""Upstream's quantized sample configs, as published, go the whole road with --override alone."""

import glob
import importlib.util
import io
import json
import os

import numpy as np
import pytest

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

from PIL import Image  # noqa: E402

from od_qat import (
    cli,  # noqa: E402
    compat,  # noqa: E402
)
from od_qat.datasets import label_map, sources  # noqa: E402
from od_qat.errors import ExportError  # noqa: E402
from od_qat.export import tflite, tflite_checks  # noqa: E402
from od_qat.od_api import pipeline  # noqa: E402
from tests.zoo import samples  # noqa: E402

ROWS = samples.rows()
# A folder with upstream's own files, models/research/object_detection/samples/configs.
PUBLISHED = os.environ.get("OD_QAT_SAMPLES", "")
STEPS = 2
# One trained on one machine, one on TPUs; between them both optimizers and losses, moving averages in
# evaluation, explicit padding, hard negatives, sync_replicas.
ALWAYS = (
    "facessd_mobilenet_v2_quantized_320x320_open_image_v4",
    "ssd_mobilenet_v1_0.75_depth_quantized_300x300_pets_sync",
)
# Those that upstream made for the Edge TPU.
EDGE_TPU = [name for name in ROWS if "edgetpu" in name]
# What its compiler maps, of the ops that detectors use (by the vendor's table). What follows the raw heads
# runs on the CPU.
EDGE_TPU_OPS = {"ADD", "CONCATENATION", "CONV_2D", "DEPTHWISE_CONV_2D", "LOGISTIC", "QUANTIZE", "RESHAPE"}
ON_CPU = {"DEQUANTIZE", "TFLite_Detection_PostProcess"}


def _published(name):
    return os.path.join(PUBLISHED, name + ".config")


@pytest.mark.tf1
@pytest.mark.parametrize("name", ROWS)
def test_the_row_says_what_the_published_file_says(name):
    if not PUBLISHED:
        pytest.skip(
            "upstream's samples are not here: OD_QAT_SAMPLES=models/research/object_detection/samples/configs"
        )
    theirs = samples.without_defaults(pipeline.load(_published(name)))
    assert str(samples.without_defaults(samples.message(ROWS[name]))) == str(theirs)


@pytest.mark.tf1
@pytest.mark.skipif(not PUBLISHED, reason="upstream's samples are not here (OD_QAT_SAMPLES)")
def test_no_published_quantized_sample_is_left_out():
    """Of SSDs for TF 1: the others' meta-architectures have no .tflite."""
    for path in glob.glob(os.path.join(PUBLISHED, "*.config")):
        with open(path, encoding="utf-8") as stream:
            if "graph_rewriter" in stream.read():
                assert os.path.basename(path)[: -len(".config")] in ROWS


@pytest.mark.tf1
def test_comparing_notices_a_single_value():
    config = samples.message(ROWS[ALWAYS[0]])
    other = samples.message(ROWS[ALWAYS[0]])
    other.model.ssd.feature_extractor.min_depth = 16  # the default
    assert samples.without_defaults(config) == samples.without_defaults(other)
    other.model.ssd.feature_extractor.min_depth = 8
    assert samples.without_defaults(config) != samples.without_defaults(other)
    assert config.train_config.optimizer.rms_prop_optimizer.decay == pytest.approx(0.9)  # (is the default)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data(number of classes) -> a small set: rectangles on noise, in as many classes."""
    made = {}

    def examples(split, count, names):
        ids = label_map.class_ids(names)
        for number in range(count):
            rng = np.random.RandomState(number)
            pixels = rng.randint(0, 255, (128, 160, 3)).astype(np.uint8)
            objects = []
            for _ in range(2):
                left, top = rng.randint(0, 80), rng.randint(0, 64)
                right, bottom = left + rng.randint(30, 80), top + rng.randint(30, 64)
                pixels[top:bottom, left:right] = rng.randint(0, 255, 3)
                objects.append(sources.SourceObject(names[rng.randint(len(names))], left, top, right, bottom))
            stream = io.BytesIO()
            Image.fromarray(pixels).save(stream, "PNG")
            image = sources.EncodedImage(stream.getvalue(), "png", 160, 128)
            key = "{}-{}".format(split, number)
            yield sources.encode_example(key, key + ".png", image, objects, ids)

    def make(classes):
        if classes not in made:
            names = ["class {}".format(number) for number in range(1, classes + 1)]
            made[classes] = sources.write_dataset(
                str(tmp_path_factory.mktemp("data")), names, examples("a", 6, names), examples("b", 2, names)
            )
        return made[classes]

    return make


class _Sample(object):
    """One sample's config file, and the command line that runs it on the small set."""

    def __init__(self, name, folder, info):
        self.name = name
        self.folder = folder
        self.config = os.path.join(folder, "sample.config")
        self.train_dir = os.path.join(folder, "train")
        if PUBLISHED:
            self.config = _published(name)
        else:
            with open(self.config, "w") as stream:
                stream.write(samples.text(ROWS[name]))
        self._overrides = [
            "train_config.batch_size=2",
            "train_config.num_steps={}".format(STEPS),
            "train_config.fine_tune_checkpoint=",
            "graph_rewriter.quantization.delay=1",
            "train_input_reader.label_map_path=" + info.label_map,
            "train_input_reader.tf_record_input_reader.input_path[0]=" + info.train_record,
            "eval_input_reader[0].label_map_path=" + info.label_map,
            "eval_input_reader[0].tf_record_input_reader.input_path[0]=" + info.val_record,
        ]

    def run(self, command, *flags):
        words = [command, "--pipeline_config_path", self.config]
        for override in self._overrides:
            words += ["--override", override]
        assert cli.main(words + list(flags)) == 0

    def path(self, *names):
        return os.path.join(self.folder, *names)


def _rows():
    for name in ROWS:
        marks = []
        if name not in ALWAYS:
            marks.append(pytest.mark.zoo)
        yield pytest.param(name, id=name, marks=marks)


@pytest.fixture(scope="module", params=_rows())
def trained(request, tmp_path_factory, data):
    """A sample with a checkpoint after STEPS steps."""
    classes = ROWS[request.param]["config"]["model"]["ssd"]["num_classes"]
    sample = _Sample(request.param, str(tmp_path_factory.mktemp("sample")), data(classes))
    sample.run("train", "--train_dir", sample.train_dir, "--seed", "1")
    return sample


@pytest.mark.long
@pytest.mark.tf1
def test_it_is_evaluated_and_exported(trained):
    assert os.path.exists(trained.path("train", "model.ckpt-{}.index".format(STEPS)))
    trained.run(
        "eval", "--checkpoint_dir", trained.train_dir, "--eval_dir", trained.path("eval"), "--run_once"
    )
    with open(trained.path("eval", "metrics-{}.json".format(STEPS))) as stream:
        assert any("mAP" in metric for metric in json.load(stream))
    out = trained.path("export")
    trained.run("export", "--trained_checkpoint_prefix", trained.train_dir, "--output_directory", out)
    with open(trained.path("export", "frozen_inference_graph.json")) as stream:
        assert json.load(stream)["quantized"] is True


@pytest.mark.long
@pytest.mark.tf1
@pytest.mark.skipif(
    not any(importlib.util.find_spec(name) for name in ("ai_edge_litert", "tflite_runtime")),
    reason="the interpreter is not installed",
)
def test_it_becomes_a_tflite_without_a_float_tensor(trained):
    types = compat.FAKE_QUANT_TYPES  # int8 first, where there is int8
    for inference_type in types if trained.name in EDGE_TPU else types[:1]:
        out = trained.path("tflite", inference_type)
        trained.run(
            "export-tflite",
            *("--trained_checkpoint_prefix", trained.train_dir, "--output_directory", out),
            *("--inference_type", inference_type),
        )
        with open(os.path.join(out, "detect.tflite"), "rb") as stream:
            inspection = tflite_checks.inspect(stream.read())
        assert inspection.float_tensors == []
        assert "PACK" not in inspection.ops  # an upsampling is one op
        if trained.name in EDGE_TPU:
            assert set(inspection.ops) - ON_CPU <= EDGE_TPU_OPS


@pytest.mark.tf1
@pytest.mark.skipif(
    "int8" in compat.FAKE_QUANT_TYPES, reason="this TensorFlow's converter writes int8 from trained ranges"
)
def test_int8_is_refused_where_the_converter_has_none():
    with pytest.raises(ExportError, match="does not write int8.*TensorFlow 1.15.*Fix: .*TensorFlow 2"):
        tflite.convert(compat.tf.GraphDef(), "image", [1, 8, 8, 3], ["out"], "int8", 127.5, 127.5)


@pytest.mark.tf1
@pytest.mark.skipif(not compat.IS_TF1, reason="the converter of TensorFlow 2 ends with an exception")
def test_what_the_converter_of_tensorflow_1_aborted_with_is_told():
    tf = compat.tf
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, 8, 8, 3], "image")
        quantised = tf.fake_quant_with_min_max_args(image, -1.0, 1.0)
        tf.nn.max_pool(
            tf.add(quantised, quantised, name="sum"), [1, 2, 2, 1], [1, 2, 2, 1], "SAME", name="out"
        )
    with pytest.raises(ExportError, match="converter failed: found Array .*lacking min/max data"):
        tflite.convert(graph.as_graph_def(), "image", [1, 8, 8, 3], ["out"], "uint8", 127.5, 127.5)
