"""od_qat.scoring.class_ids: a model with other class ids than the label map is named, a poor one is not."""

import os

import numpy as np
import pytest

from od_qat.datasets import records
from od_qat.scoring import class_ids
from od_qat.scoring.runners import Detections

DETECTOR = os.environ.get("OD_QAT_COCO_DETECTOR")
NAMES = {1: "cat", 2: "dog", 3: "cow", 7: "owl"}


def images(classes, detected, scores=None):
    """An image for each object, with a detection upon it."""
    examples, detections = [], {}
    for number, (class_id, found) in enumerate(zip(classes, detected)):
        box = np.array([[0.1, 0.1, 0.5, 0.5]], np.float32)
        examples.append(
            records.Example(str(number), b"", 40, 60, box, np.array([class_id]), np.zeros(1, bool))
        )
        # One elsewhere, surer, which says nothing of the object.
        boxes = np.concatenate([box + 0.4, box])
        detections[str(number)] = Detections(
            boxes, np.array([2, found], np.int64), np.array([0.9, 0.8], np.float32)
        )
    return examples, detections


def said(classes, detected, names=None):
    return class_ids.misfits("m.tflite", "map", names or NAMES, *images(classes, detected))


ALL = [1, 2, 3, 7] * 5


def test_ids_that_fit():
    assert said(ALL, ALL) == []


@pytest.mark.parametrize("shift", [-1, 1, 2])
def test_off_by_one(shift):
    lines = said(ALL, [number + shift for number in ALL])
    text = "the class ids of m.tflite are not those of map: as they are they name 0 % of the objects that it "
    text += "finds, moved by {:+d} they name 100 %".format(-shift)
    assert lines[-1].startswith(text)
    assert "class_id_offset" in lines[-1] and len(lines) == 2  # (some are beyond the map, too)


def test_renumbered():
    """COCO's ids against 1 to N."""
    names = dict(enumerate("abcdefgh", start=1))
    detected = {1: 1, 2: 2, 3: 4, 4: 6, 5: 7, 6: 9, 7: 10, 8: 13}
    classes = sorted(names) * 3
    lines = said(classes, [detected[number] for number in classes], names)
    assert "ids 9, 10, 13" in lines[0] and "was it trained on other data" in lines[0]
    assert "name 25 %" in lines[-1] and "3 'c' as 4" in lines[-1] and "'a'" not in lines[-1]


def test_ids_that_no_image_has():
    (line,) = said([1, 2] * 5, [1, 2, 1, 2, 1, 2, 1, 2, 7, 3])
    assert "none of the 10 images has, ids 3, 7; these 2 of its 20 detections" in line


@pytest.mark.parametrize("detected", [[2] * 20, [2, 2, 3, 7] * 5, [2, 3, 3, 7] * 5])
def test_a_poor_model_is_not_called_misnumbered(detected):
    """One that knows one class, and ones that take some classes for others."""
    assert not any("are not those" in line for line in said(ALL, detected))


def test_nothing_found():
    examples, detections = images(ALL, ALL)
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    assert class_ids.misfits("m", "map", NAMES, examples, dict.fromkeys(detections, none)) == []


@pytest.mark.skipif(
    not DETECTOR, reason="set OD_QAT_COCO_DETECTOR to the folder of a published COCO detector"
)
def test_a_published_detector(tmp_path, capsys):
    """Google's: with COCO's ids it scores, renumbered it is said why it does not."""
    pytest.importorskip("pycocotools")
    from od_qat import scoring
    from od_qat.datasets import coco

    arguments = [os.path.join(DETECTOR, "images"), os.path.join(DETECTOR, "instances.json")] * 2
    kept = coco.convert(*(arguments + [str(tmp_path / "kept")]), progress=False)
    renumbered = coco.convert(
        *(arguments + [str(tmp_path / "new")]), progress=False, renumber_categories=True
    )
    assert max(kept.names_by_id()) == 90 and max(renumbered.names_by_id()) == 80
    model = os.path.join(DETECTOR, "detect.tflite")
    good = scoring.score(model, kept.val_record, kept.label_map, max_images=48, progress=False)
    assert good.score.map > 0.15 and not any("are not those" in line for line in good.warnings)
    bad = scoring.score(model, renumbered.val_record, renumbered.label_map, max_images=48, progress=False)
    assert bad.score.map < 0.1 and "are not those of" in bad.warnings[-1]
    assert bad.warnings[-1] in capsys.readouterr().err
