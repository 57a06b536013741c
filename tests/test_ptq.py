"""od-qat ptq: forms of post-training quantization beside QAT, with intervals, and whether QAT paid."""

import json
import os
import shutil

import numpy as np
import pytest

from od_qat import cli, scoring
from od_qat.datasets import records
from od_qat.model_files import tflite_graph
from od_qat.report import quantizations
from od_qat.scoring import candidates, intervals, latency_pairs, metrics
from od_qat.scoring.measures import DetectorMeasure
from tests import tiers
from tests.helpers import sessions, tiny_detector
from tests.helpers.all_among import require_all_among
from tests.test_agree import detections
from tests.test_scoring import EXAMPLES, NAMES

pytest.importorskip("ai_edge_litert")
try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)


BY_ID = dict(enumerate(NAMES, 1))
# As many as an interval needs.
MANY = EXAMPLES + [one._replace(image_id=one.image_id + " again") for one in EXAMPLES]


def right(part=1.0, score=0.9):
    """Detections that find the first part of all objects, and no others."""
    total = sum(len(example.boxes) for example in MANY)
    left = int(part * total)
    found = {}
    for example in MANY:
        count = min(left, len(example.boxes))
        left -= count
        found[example.image_id] = detections(
            *((tuple(box), int(key), score) for box, key in zip(example.boxes[:count], example.classes))
        )
    return found


# Samples of the images.


def test_a_sample_is_scored_as_copies_of_its_images():
    found = right(0.6)
    samples = [np.random.RandomState(seed).randint(0, len(MANY), len(MANY)) for seed in range(5)]
    maps = metrics.resampled_maps(MANY, found, NAMES, samples)
    for sample, value in zip(samples, maps):
        copies = [MANY[i]._replace(image_id=str(n)) for n, i in enumerate(sample)]
        of_copies = {str(n): found[MANY[i].image_id] for n, i in enumerate(sample)}
        assert value == pytest.approx(scoring.coco_metrics(copies, of_copies, NAMES).map)
    assert len(set(maps)) > 1


def test_intervals_of_models_and_of_their_difference():
    bootstrap = intervals.Bootstrap(DetectorMeasure(MANY.__iter__, BY_ID), samples=50)
    for label, part in (("all", 1.0), ("half", 0.5), ("again", 0.5)):
        bootstrap.add(label, right(part))
    assert bootstrap.of("all") == intervals.Interval(1.0, 1.0)
    half = bootstrap.of("half")
    assert 0 < half.low < scoring.coco_metrics(MANY, right(0.5), NAMES).map < half.high < 1
    # (The same images are drawn for both.)
    assert bootstrap.of_difference("again", "half") == intervals.Interval(0.0, 0.0)
    assert bootstrap.of_difference("all", "half").low > 0


def test_map_by_the_size_of_objects():
    """Quadrants of 64x48 images are 768 pixels, small; of twice the size medium; of eight times large."""
    for factor, label in ((1, "small"), (2, "medium"), (8, "large")):
        examples = [one._replace(height=one.height * factor, width=one.width * factor) for one in MANY]
        found = metrics.map_by_size(examples, right(), NAMES)
        assert found == {size: 1.0 if size == label else None for size in ("small", "medium", "large")}


# The verdict.


def model(label, value):
    nothing = intervals.Interval(0, 0)
    return quantizations.Model(label, "", value, nothing, None, {}, {}, {}, 0, {})


@pytest.mark.parametrize(
    "of_float, of_ptq, of_qat, says",
    [
        (1.0, 0.5, 1.0, "QAT paid. The difference, qat less ptq, is +"),
        (1.0, 1.0, 0.5, "QAT did not pay: post-training quantization is better. The difference, qat less"),
        (0.5, 0.5, 0.5, "QAT was not needed, as far as these images can tell"),
        (1.0, 0.5, 0.5, "These images cannot tell whether QAT paid. The difference, qat less ptq, is +0.0"),
    ],
)
def test_whether_qat_paid(of_float, of_ptq, of_qat, says):
    bootstrap = intervals.Bootstrap(DetectorMeasure(MANY.__iter__, BY_ID), samples=40)
    models = []
    for label, part in (("float", of_float), ("ptq", of_ptq), ("qat", of_qat)):
        found = right(part)
        bootstrap.add(label, found)
        models.append(model(label, scoring.coco_metrics(MANY, found, NAMES).map))
    assert quantizations._verdict(models, bootstrap, ["qat"], ["ptq"], "float").startswith(says)
    assert quantizations._verdict(models, bootstrap, [], ["ptq"], "float") is None
    assert "No int8 form was made" in quantizations._verdict(models, bootstrap, ["qat"], [], "float")


def test_a_loss_that_cannot_be_seen_is_not_called_none():
    """Float and PTQ find as much, each in other images: other images could show a loss of many points."""
    bootstrap = intervals.Bootstrap(DetectorMeasure(MANY.__iter__, BY_ID), samples=40)
    of_first = right(0.5)
    of_last = {key: right()[key] if not len(of_first[key].scores) else right(0)[key] for key in of_first}
    for label, found in (("float", of_first), ("ptq", of_last), ("qat", of_last)):
        bootstrap.add(label, found)
    models = [model(label, 0.5) for label in ("float", "ptq", "qat")]
    loss = bootstrap.of_difference("ptq", "float")
    assert loss.low < -quantizations.TOLERANCE and loss.high > 0
    says = quantizations._verdict(models, bootstrap, ["qat"], ["ptq"], "float")
    assert says.startswith("These images cannot tell whether QAT paid.")
    assert "may have lost up to {:.1f} points. Score on more images.".format(-100 * loss.low) in says


def test_what_makes_figures_wrong_stands_beside_them(model_dir, tmp_path):
    path = str(tmp_path / "int8.tflite")
    shutil.copy(os.path.join(model_dir, "int8.tflite"), path)
    shutil.copy(os.path.join(model_dir, "int8.json"), str(tmp_path))
    measure = DetectorMeasure(EXAMPLES.__iter__, BY_ID, "map.pbtxt")
    found = quantizations.compare({"int8": path}, measure, threads=(1,))
    assert quantizations.warnings_of(found) == []
    with open(str(tmp_path / "int8.json")) as stream:
        beside = json.load(stream)
    with open(str(tmp_path / "int8.json"), "w") as stream:
        json.dump(dict(beside, class_id_offset=beside["class_id_offset"] - 1), stream)
    found = quantizations.compare({"int8": path}, measure, threads=(1,))
    (numbering,) = [one for one in quantizations.warnings_of(found) if "are not those of map.pbtxt" in one]
    assert "warning: " + numbering in quantizations.as_text(found)
    os.unlink(str(tmp_path / "int8.json"))
    found = quantizations.compare({"int8": path}, measure, threads=(1,))
    assert "int8.tflite has no int8.json beside it, so mean 127.5" in quantizations.as_text(found)


def test_without_the_float_model_nothing_says_what_ptq_lost():
    bootstrap = intervals.Bootstrap(DetectorMeasure(MANY.__iter__, BY_ID), samples=40)
    for label in ("ptq", "qat"):
        bootstrap.add(label, right(0.5))
    models = [model(label, 0.5) for label in ("ptq", "qat")]
    says = quantizations._verdict(models, bootstrap, ["qat"], ["ptq"], None)
    assert says.startswith("These images cannot tell whether QAT paid.")


def test_too_few_images_for_a_verdict():
    few = MANY[: intervals.LEAST_IMAGES - 1]
    bootstrap = intervals.Bootstrap(DetectorMeasure(few.__iter__, BY_ID), samples=10)
    models = []
    for label, part in (("float", 1.0), ("ptq", 0.5), ("qat", 1.0)):
        found = {one.image_id: right(part)[one.image_id] for one in few}
        bootstrap.add(label, found)
        models.append(model(label, scoring.coco_metrics(few, found, NAMES).map))
    assert np.isnan(bootstrap.of("qat").low)
    assert quantizations._verdict(models, bootstrap, ["qat"], ["ptq"], "float").startswith(
        "Too few images to say"
    )


def test_latency_in_turns(model_dir):
    paths = {kind: os.path.join(model_dir, kind + ".tflite") for kind in ("float32", "int8")}
    found = latency_pairs.medians(paths, None, rounds=2)
    assert set(found) == set(paths) and all(0 < value < 1000 for value in found.values())


# The command, with a detector of two steps.


FORMS = ["float32", "float16", "dynamic_range", "int8", "int8_per_tensor"]
if tiers.TIER == "quick":
    FORMS = ["float32", "int8"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """All forms of a float checkpoint, beside a frozen graph of QAT: the folder, and the JSON."""
    folder = str(tmp_path_factory.mktemp("ptq"))
    tiny_detector.write_data(folder)
    float_config = tiny_detector.write_config(folder, False, "float", steps=2)
    with sessions.all_plain():
        commands.train(float_config, os.path.join(folder, "float"), seed=1)
    out = os.path.join(folder, "found.json")
    status = cli.main(
        [
            "ptq",
            "--pipeline_config_path=" + float_config,
            "--trained_checkpoint_prefix=" + os.path.join(folder, "float"),
            "--output_directory=" + os.path.join(folder, "out"),
            "--record=" + os.path.join(folder, "data.record"),
            "--label_map=" + os.path.join(folder, "label_map.pbtxt"),
            "--calibration_images=2",
            "--forms=" + ",".join(FORMS),
            "--max_images=4",
            "--json=" + out,
        ]
    )
    assert status == 0
    with open(out) as stream:
        return folder, json.load(stream)


def test_all_forms_are_scored(made):
    folder, found = made
    assert [one["label"] for one in found["models"]] == FORMS and found["images"] == 4
    for one in found["models"]:
        assert one["size_bytes"] == os.path.getsize(one["path"])
        assert set(one["latency_ms"]) == {"1", "2"} and one["interval"]["low"] is None  # of 4 images
    sizes = {one["label"]: one["size_bytes"] for one in found["models"]}
    assert sizes["float32"] > 2 * sizes["int8"]
    assert sizes["float32"] > 1.5 * sizes.get("float16", 0)
    assert found["verdict"] is None


@pytest.mark.parametrize("form", FORMS)
def test_the_candidates_of_a_form_can_be_read(made, form):
    folder, _ = made
    path = os.path.join(folder, "out", form, "detect.tflite")
    examples = list(records.read_examples(os.path.join(folder, "data.record")))[:2]
    detected = scoring.detect(path, examples, processes=1, progress=False)
    require_all_among(candidates.open_reader(path), detected, examples)


@pytest.mark.parametrize("form", [form for form in FORMS if form != "float16"])
def test_a_form_is_what_it_is_called(made, form):
    folder, _ = made
    graph = tflite_graph.read(os.path.join(folder, "out", form, "detect.tflite"))
    convs = [op for op in graph.ops if op.type == "CONV_2D"]
    weights = [graph.weights(op) for op in convs]
    assert {tensor.dtype for tensor in weights} <= ({"float32"} if form == "float32" else {"int8", "float32"})
    inputs = {graph.tensors[op.inputs[0]].dtype for op in convs}
    assert inputs == ({"int8"} if form.startswith("int8") else {"float32"})
    scales = {len(tensor.scales) for tensor in weights if tensor.dtype == "int8"}
    assert (scales == {1}) == (form == "int8_per_tensor")
    with open(os.path.join(folder, "out", form, "detect.json")) as stream:
        beside = json.load(stream)
    assert beside["quantized"] == form.startswith("int8")
    assert beside["inputs"][0]["dtype"] == ("uint8" if form.startswith("int8") else "float32")


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--forms=int4"], "unknown form: at --forms, found int4, allowed: float32, float16"),
        (["--qat=none.tflite"], "cannot read the model: at none.tflite"),
        (["--label_map=none"], "cannot read the label map: at none"),
        pytest.param(
            ["--trained_checkpoint_prefix={qat}"],
            "begins with a float checkpoint: at {qat}, found one with ranges",
            marks=pytest.mark.zoo,
        ),
        (["--forms=int8", "--qat=int8={tflite}"], "two models have one label: at --qat, found int8"),
    ],
)
def test_wrong_flags(made, flags, says, tmp_path, capsys):
    folder, _ = made
    tflite = os.path.join(folder, "out", "int8", "detect.tflite")
    out = str(tmp_path / "out")
    arguments = [
        "--pipeline_config_path=" + os.path.join(folder, "float.config"),
        "--trained_checkpoint_prefix=" + os.path.join(folder, "float"),
        "--output_directory=" + out,
        "--record=" + os.path.join(folder, "data.record"),
        "--label_map=" + os.path.join(folder, "label_map.pbtxt"),
    ]
    qat = os.path.join(folder, "qat")
    if "{qat}" in says:
        config = tiny_detector.write_config(folder, True, "qat", steps=1)
        with sessions.all_plain():
            commands.train(config, qat, seed=1)
    flags = [flag.format(tflite=tflite, qat=qat) for flag in flags]
    assert cli.main(["ptq"] + arguments + flags) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("od-qat: error")]
    assert says.format(qat=qat) in line
    assert not os.path.exists(out)
