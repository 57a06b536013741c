"""od-qat detect: what a model finds in pictures, printed, written and drawn."""

import csv
import json
import os
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from od_qat import cli, scoring
from tests.conftest import REPOSITORY
from tests.test_scoring import EXAMPLES, NAMES


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for example in EXAMPLES[:4]:
        (folder / (example.image_id.replace(" ", "_") + ".png")).write_bytes(example.encoded)
    (folder / "notes.txt").write_text("no picture")
    return str(folder)


@pytest.fixture
def label_map(tmp_path):
    path = tmp_path / "label_map.pbtxt"
    path.write_text(
        "".join("item {{ id: {} name: '{}' }}\n".format(key, name) for key, name in enumerate(NAMES, 1))
    )
    return "--label_map=" + str(path)


def test_all_pictures_of_a_folder(model_dir, photos, label_map, tmp_path, capsys):
    model = os.path.join(model_dir, "int8.tflite")
    out = {name: str(tmp_path / name) for name in ("found.json", "found.csv", "drawn")}
    flags = ["--json", out["found.json"], "--csv", out["found.csv"], "--output_dir", out["drawn"]]
    assert cli.main(["detect", model, photos, label_map] + flags) == 0
    expected = scoring.detect(model, EXAMPLES[:4], progress=False)
    with open(out["found.json"]) as stream:
        found = json.load(stream)
    lines = capsys.readouterr().out.splitlines()
    assert len(found) == 4
    rows = 0
    for picture, line, example in zip(found, lines, EXAMPLES):
        of_image = expected[example.image_id]
        keep = of_image.scores >= 0.5
        assert [one["score"] for one in picture["detections"]] == pytest.approx(list(of_image.scores[keep]))
        assert [one["box"] for one in picture["detections"]] == pytest.approx(
            [pytest.approx(list(box)) for box in of_image.boxes[keep]]
        )
        names = [NAMES[key - 1] for key in of_image.classes[keep]]
        assert [one["name"] for one in picture["detections"]] == names
        assert line.startswith(picture["picture"] + ": " + names[0])
        rows += len(names)
        with Image.open(os.path.join(out["drawn"], os.path.basename(picture["picture"]))) as drawn:
            assert drawn.size == (example.width, example.height)
            changed = np.asarray(drawn.convert("RGB")) != scoring.decode(example.encoded, "")
            assert changed.any()
    assert rows >= 6
    with open(out["found.csv"]) as stream:
        table = list(csv.DictReader(stream))
    assert len(table) == rows and float(table[0]["score"]) == pytest.approx(
        found[0]["detections"][0]["score"]
    )


def test_one_picture_and_a_higher_score(model_dir, photos, capsys):
    picture = os.path.join(photos, "image_0.png")
    assert cli.main(["detect", os.path.join(model_dir, "canonical.pb"), picture, "--min_score=1"]) == 0
    assert capsys.readouterr().out == picture + ": nothing\n"


def test_no_picture_is_overwritten_or_left_out_unsaid(model_dir, photos, capsys):
    model = os.path.join(model_dir, "int8.tflite")
    shutil.copy(os.path.join(photos, "image_0.png"), os.path.join(photos, "other.webp"))
    before = {name: open(os.path.join(photos, name), "rb").read() for name in os.listdir(photos)}
    assert cli.main(["detect", model, photos, "--output_dir", photos]) == 1
    said = capsys.readouterr().err
    assert "warning: 1 pictures of {} are left out, other.webp first".format(photos) in said
    assert "a drawing would take the place of a picture: at " in said
    assert before == {name: open(os.path.join(photos, name), "rb").read() for name in os.listdir(photos)}


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_the_program_of_the_docs(model_dir, photos, kind, run_python):
    """It needs nothing of od_qat, and finds what od-qat finds."""
    with open(os.path.join(REPOSITORY, "docs", "export.md")) as stream:
        (program,) = re.findall(r"^```python litert\n(.*?)^```$", stream.read(), re.M | re.S)
    assert "od_qat" not in program and len(program.splitlines()) <= 30
    model, example = os.path.join(model_dir, kind + ".tflite"), EXAMPLES[0]
    done = run_python("-c", program, model, os.path.join(photos, "image_0.png"))
    assert done.status == 0, done.errors
    found = [[float(word) for word in line.split()] for line in done.output.splitlines()]
    expected = scoring.detect(model, [example], progress=False)[example.image_id]
    assert len(found) == len(expected.scores) > 1
    for line, class_id, score, box in zip(found, expected.classes, expected.scores, expected.boxes):
        # (Pillow averages when it makes a picture smaller, TensorFlow does not.)
        assert line[0] == class_id and line[1] == pytest.approx(score, abs=0.05)
        assert np.clip(line[2:], 0, 1) == pytest.approx(box, abs=0.002)


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["none.jpg"], "no such picture: at none.jpg"),
        (
            ["empty"],
            "the folder has no pictures: at empty, found 1 other files and folders, allowed: .jpg",
        ),
        (["empty/notes.txt"], "image"),
        (["photos", "--min_score=3"], "--min_score, found 3.0"),
        (["photos", "--label_map=none"], "none"),
    ],
)
def test_wrong_input(arguments, says, model_dir, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.move(os.path.join(photos, "notes.txt"), str(tmp_path / "empty" / "notes.txt"))
    model = os.path.join(model_dir, "int8.tflite")
    assert cli.main(["detect", model] + arguments + ["--output_dir=out"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("od-qat: error: ") and says in line
    assert not os.path.exists("out")
