"""od-qat agree: where the detections of two models differ."""

import json
import os
import shutil

import numpy as np
import pytest
from PIL import Image

from od_qat import cli, scoring
from od_qat.errors import DataError
from od_qat.report import disagreement
from od_qat.scoring import Detections
from tests.test_scoring import EXAMPLES, NAMES, write_record

OBJECT = (0.1, 0.1, 0.5, 0.5)
# Overlaps OBJECT by two thirds, and by 0.98.
MOVED, NEAR = (0.1, 0.18, 0.5, 0.58), (0.1, 0.1, 0.5, 0.508)
ELSEWHERE = (0.6, 0.6, 0.9, 0.9)


def detections(*found):
    boxes, classes, scores = zip(*found) if found else ((), (), ())
    return Detections(
        np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int64), np.array(scores, np.float32)
    )


@pytest.mark.parametrize(
    "other, reason",
    [
        ((OBJECT, 1, 0.5), disagreement.SCORE),
        ((MOVED, 1, 0.9), disagreement.BOX),
        ((OBJECT, 2, 0.9), disagreement.CLASS),
        ((ELSEWHERE, 1, 0.9), disagreement.ALONE),
    ],
)
def test_why_a_detection_has_no_match(other, reason):
    found = disagreement.disagreement({"x": detections((OBJECT, 1, 0.9))}, {"x": detections(other)})
    (image,) = found.images
    assert [(one.model, one.reason) for one in image.alone] in (
        [("a", reason), ("b", reason)],
        [("b", reason), ("a", reason)],
    )
    assert found.reasons[reason] == 2 and sum(found.reasons.values()) == 2
    assert found.agreement.share == 0 and image.matched == 0
    of_a = next(one for one in image.alone if one.model == "a")
    assert of_a.other_score == pytest.approx(0 if reason == disagreement.ALONE else other[2])
    assert of_a.box == pytest.approx(OBJECT)


def test_matches_and_their_differences():
    a = {"one": detections((OBJECT, 1, 0.9), (ELSEWHERE, 2, 0.8)), "two": detections((OBJECT, 1, 0.7))}
    b = {"one": detections((NEAR, 1, 0.85), (ELSEWHERE, 2, 0.82)), "two": detections((ELSEWHERE, 1, 0.35))}
    found = disagreement.disagreement(a, b)
    assert [image.image_id for image in found.images] == ["two", "one"]  # the worst first
    two, one = found.images
    assert one.alone == () and one.matched == 4
    assert one.score_differences == pytest.approx((-0.05, 0.02))
    (overlap,) = scoring.iou_matrix(np.array(OBJECT), np.array(NEAR)).reshape(-1)
    assert one.overlaps == pytest.approx((overlap, 1.0))
    assert two.weight == pytest.approx(0.7 + 0.35)
    assert found.agreement == scoring.agreement(a, b)
    assert found.quantiles()["score"] == pytest.approx([0.035, 0.0485, 0.05])
    text = disagreement.as_text(found)
    assert "66.7 % of the detections agree, in 2 images" in text
    assert "A: 2 of 3 are in B; B: 2 of 3 are in A" in text and "no match: 2 nothing there" in text


def test_one_to_one():
    """Two boxes of an object in one model have one match in the other."""
    found = disagreement.disagreement(
        {"x": detections((OBJECT, 1, 0.9), (NEAR, 1, 0.88))}, {"x": detections((OBJECT, 1, 0.9))}
    )
    (alone,) = found.images[0].alone
    assert (alone.model, alone.score, alone.reason) == ("a", pytest.approx(0.88), disagreement.TWICE)


def test_no_detections_agree():
    found = disagreement.disagreement({"x": detections()}, {"x": detections()})
    assert found.agreement.share == 1.0 and found.quantiles() == {"score": [], "box": []}
    assert "100.0 % of the detections agree" in disagreement.as_text(found)


def test_other_images_are_refused():
    with pytest.raises(DataError, match="not run on the same images"):
        disagreement.disagreement({"x": detections()}, {"y": detections()})


@pytest.fixture
def record(tf, tmp_path):
    path, label_map = str(tmp_path / "val.record"), str(tmp_path / "label_map.pbtxt")
    write_record(tf, path, EXAMPLES, None)
    with open(label_map, "w") as stream:
        for number, name in enumerate(NAMES, 1):
            stream.write("item {{ id: {} name: '{}' }}\n".format(number, name))
    return ["--record=" + path, "--label_map=" + label_map]


def test_the_command(model_dir, record, tmp_path, capsys):
    a, b = (os.path.join(model_dir, kind + ".tflite") for kind in ("float32", "int8"))
    pictures = str(tmp_path / "pictures")
    assert cli.main(["agree", a, b, "--pictures", pictures] + record) == 0
    assert "100.0 % of the detections agree, in 10 images" in capsys.readouterr().out
    assert not os.path.exists(pictures)


def test_what_differs_is_said_and_drawn(model_dir, record, tmp_path, capsys):
    """The second model's JSON shifts its classes."""
    a = os.path.join(model_dir, "int8.tflite")
    b = shutil.copy(a, str(tmp_path / "shifted.tflite"))
    with open(os.path.join(model_dir, "int8.json")) as stream:
        beside = json.load(stream)
    with open(str(tmp_path / "shifted.json"), "w") as stream:
        json.dump(dict(beside, model="shifted.tflite", class_id_offset=2), stream)
    pictures, out = str(tmp_path / "pictures"), str(tmp_path / "found.json")
    flags = ["--pictures", pictures, "--json", out, "--worst=3", "--max_images=6"]
    assert cli.main(["agree", a, b] + flags + record) == 0
    said = capsys.readouterr().out
    with open(out) as stream:
        found = json.load(stream)
    objects = sum(len(example.boxes) for example in EXAMPLES[:6])
    assert found["agreement"]["detections_a"] == found["agreement"]["detections_b"] == objects
    assert found["agreement"]["share"] == 0.0 and found["reasons"]["another class"] == 2 * objects
    assert "no match: {} another class".format(2 * objects) in said
    first = found["images"][0]
    assert first["image_id"] == "image 2"  # of four blue quadrants, the best scores
    names = sorted(os.listdir(pictures))
    assert len(names) == 3 and names[0] == "001-image_2.png"
    with Image.open(os.path.join(pictures, names[0])) as drawn:
        assert drawn.size[0] > 3 * 480  # ground truth, A and B


@pytest.mark.parametrize(
    "flags, status, says",
    [
        (["--iou=2"], 2, "--iou: found '2', allowed: a number, 0 to 1"),
        (["--record=none"], 1, "cannot read the record file: at none"),
    ],
)
def test_wrong_flags(flags, status, says, model_dir, record, capsys):
    path = os.path.join(model_dir, "int8.tflite")
    try:
        found = cli.main(["agree", path, path] + record + flags)
    except SystemExit as error:
        found = error.code
    assert found == status and says in capsys.readouterr().err
