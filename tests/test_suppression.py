"""The score threshold of a .tflite: what the rule chooses, and what it leaves out of a published detector."""

import json
import math
import os

import numpy as np
import pytest

from od_qat.errors import ConfigError
from od_qat.export import suppression
from od_qat.model_files import tflite_file

COCO = os.environ.get("OD_QAT_COCO_DETECTOR", "")


@pytest.mark.tf1
@pytest.mark.parametrize(
    "of_config, asked, best, value, says",
    [
        (1e-8, None, [0.9, 0.6, 0.8], 0.05, "the default"),
        (1e-8, None, [], 0.05, "no image of the config"),
        (0.3, None, [0.9], 0.3, "the config's own"),
        (0.05, None, [], 0.05, "the config's own"),
        (1e-8, None, [0.1, 0.3, 0.2], 0.02, "scores are low"),
        (1e-3, None, [0.004], 1e-3, "scores are low"),
        (1e-8, None, [math.nan], 1e-8, "scores are low"),
        (1e-8, 0.2, [0.001], 0.2, "asked for"),
        (0.3, 0.0, [], 0.0, "asked for"),
        (1e-8, "config", [0.9], 1e-8, "the config's own"),
    ],
)
def test_the_rule(of_config, asked, best, value, says):
    chosen = suppression.choose(of_config, asked, best)
    assert chosen.value == pytest.approx(value)
    assert says in str(chosen)
    assert "\n" not in str(chosen)
    # What is left out is said where something is.
    assert ("are left out" in str(chosen)) == (value > of_config)


@pytest.mark.tf1
@pytest.mark.parametrize("asked", [1.0, -0.1, math.nan, math.inf, "0.5", "", True, [0.1]])
def test_what_is_no_threshold(asked):
    with pytest.raises(ConfigError, match="--score_threshold.*allowed: a number, 0 <= t < 1, or config"):
        suppression.choose(0.01, asked)


@pytest.mark.tf1
@pytest.mark.parametrize(
    "regular, classes, threads, lost",
    [(True, 3, 2, 2), (True, 90, 4, 4), (True, 3, 1, None), (True, 2, 2, None), (False, 90, 4, None)],
)
def test_the_class_that_is_lost_to_threads(regular, classes, threads, lost):
    options = {"use_regular_nms": regular, "num_classes": classes}
    assert tflite_file.class_lost_to_threads(options, threads) == lost
    warned = suppression.warning_of_threads(regular, classes)
    assert bool(warned) == (regular and classes >= 3) and "\n" not in warned


@pytest.mark.canary
@pytest.mark.parametrize("threads", [1, 2, 3, 4])
def test_litert_loses_that_class(threads, tmp_path):
    """Once this fails, a LiteRT without the defect is there, and the warnings can go."""
    module = pytest.importorskip("ai_edge_litert.interpreter")
    from od_qat.compat import tf
    from od_qat.export import tflite

    classes, anchors = 10, 40
    with tf.Graph().as_default() as graph:
        given = tf.placeholder(tf.float32, [1, anchors, classes + 1], name="given")
        tf.identity(given * 1.0, name="scores")
        tf.identity(tf.zeros([1, anchors, 4]) * tf.reduce_sum(given), name="boxes")
    random = np.random.RandomState(0)
    places = np.concatenate([random.uniform(0.1, 0.9, [anchors, 2]), np.full([anchors, 2], 0.01)], 1)
    parameters = tflite.PostProcess(classes, 10.0, 10.0, 5.0, 5.0, 0.1, 0.6, anchors, anchors, True)
    heads = tflite.add_post_process(
        graph.as_graph_def(), "boxes", "scores", places.astype(np.float32), parameters, False
    )
    names = ["TFLite_Detection_PostProcess"] + ["TFLite_Detection_PostProcess:%d" % i for i in (1, 2, 3)]
    model = tflite.convert_float(heads, "given", [1, anchors, classes + 1], names, tflite.FLOAT32)
    path = tmp_path / "heads.tflite"
    path.write_bytes(model)
    opened = module.Interpreter(model_content=model, num_threads=threads)
    opened.allocate_tensors()
    # Each anchor is of one class.
    scores = np.zeros([1, anchors, classes + 1], np.float32)
    scores[0, np.arange(anchors), 1 + np.arange(anchors) % classes] = 0.9
    opened.set_tensor(opened.get_input_details()[0]["index"], scores)
    opened.invoke()
    _, found, _, count = [opened.get_tensor(one["index"]) for one in opened.get_output_details()]
    missing = set(range(classes)) - set(found[0, : int(count[0])].astype(int))
    lost = tflite_file.class_lost_to_threads(tflite_file.read(str(path)).options, threads)
    assert missing == (set() if lost is None else {lost})


@pytest.mark.skipif(not COCO, reason="the published COCO detector is not here (OD_QAT_COCO_DETECTOR)")
def test_the_published_coco_detector_keeps_its_detections(tmp_path, capsys):
    """Its config's own threshold is 1e-8: several times the time of the fast NMS, and the same mAP."""
    pytest.importorskip("ai_edge_litert")
    pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")
    from benchmarks import nms
    from od_qat import commands, scoring
    from od_qat.scoring import images

    layers = "graph_rewriter.[od_qat.layers]."
    path = commands.export_tflite(
        os.path.join(COCO, "pipeline.config"),
        os.path.join(COCO, "model.ckpt-0"),
        str(tmp_path),
        "uint8",
        overrides=[layers + 'placement="contrib"', layers + "per_channel=false"],
    )
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("score threshold 0.05 (the default") and "own is 1e-08" in said
    with open(str(tmp_path / "detect.json")) as stream:
        written = json.load(stream)["nms"]
    assert written["score_threshold"] == 0.05 and written["kind"] == "regular"
    assert written["score_threshold_of_config"] == pytest.approx(1e-8)

    runners = nms.variants(path, [], str(tmp_path))
    runners["default"] = scoring.runners.open_runner(scoring.describe_model(path))
    compared = (nms.OWN, "default")
    with open(os.path.join(COCO, "instances.json")) as stream:
        pictures = json.load(stream)["images"][:12]
    for picture in pictures:
        with open(os.path.join(COCO, "images", picture["file_name"]), "rb") as stream:
            value = runners["default"].prepare(images.decode(stream.read()))
        found = {name: runners[name].detections(runners[name].run(value)) for name in compared}
        own, default = found[nms.OWN], found["default"]
        # The detections above the threshold are the same, one by one; so then is any mAP of them. What it
        # leaves out, `max_detections` had left out.
        kept = own.scores >= 0.05
        np.testing.assert_array_equal(default.boxes, own.boxes[kept])
        np.testing.assert_array_equal(default.classes, own.classes[kept])
        np.testing.assert_array_equal(default.scores, own.scores[kept])
        assert len(own.scores) - len(default.scores) <= 5
