"""od-qat detect: what a model finds in pictures, printed, written and drawn."""

import csv
import json
import os
import re
import shutil
import zipfile

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


def test_a_damaged_picture_is_named_and_the_others_are_taken(model_dir, photos, tmp_path, capsys):
    model, broken = os.path.join(model_dir, "int8.tflite"), os.path.join(photos, "image_1.png")
    with open(broken, "r+b") as stream:
        stream.truncate(60)
    with open(os.path.join(photos, "._image_0.png"), "wb") as stream:
        stream.write(b"macOS")
    os.mkdir(os.path.join(photos, "more"))
    out = str(tmp_path / "found.json")
    assert cli.main(["detect", model, photos, "--json", out]) == 1
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 3 and "image_1" not in said.out
    lines = said.err.splitlines()
    assert lines[0] == "warning: pictures in folders of {} are left out: more".format(photos)
    assert lines[1].startswith(
        "warning: an image cannot be decoded: at image {}, found 60 byt".format(broken)
    )
    assert lines[2] == "od-qat: 1 of 4 pictures cannot be read"
    with open(out) as stream:
        assert len(json.load(stream)) == 3


def test_photographs_are_turned_upright(model_dir, photos, tmp_path):
    """Cameras store what they see sideways, with a tag that says how to turn it."""
    model, upright = os.path.join(model_dir, "int8.tflite"), os.path.join(photos, "image_0.png")
    (tmp_path / "turned").mkdir()
    with Image.open(upright) as image:
        tag = Image.Exif()
        tag[0x0112] = 6  # (to be turned a quarter clockwise)
        image.convert("RGB").transpose(Image.ROTATE_90).save(str(tmp_path / "turned" / "a.png"), exif=tag)
    found = []
    for path in (upright, str(tmp_path / "turned" / "a.png")):
        assert cli.main(["detect", model, path, "--json", str(tmp_path / "found.json")]) == 0
        with open(str(tmp_path / "found.json")) as stream:
            found.append(json.load(stream)[0]["detections"])
    assert found[0] == found[1] != []


def test_damaged_metadata_costs_the_names_only(model_dir, photos, tmp_path, capsys):
    pytest.importorskip("flatbuffers")
    from tests.test_metadata import attach

    path = str(tmp_path / "cut.tflite")
    attach(os.path.join(model_dir, "int8.tflite"), path)
    with zipfile.ZipFile(path) as archive:
        start = archive.infolist()[0].header_offset
    with open(path, "r+b") as stream:
        stream.truncate(start)
    assert cli.main(["detect", path, os.path.join(photos, "image_0.png")]) == 0
    said = capsys.readouterr()
    assert "warning: classes are shown by number: the metadata of the .tflite is damaged" in said.err
    assert re.search(r"image_0.png: \d 0\.", said.out)


def test_a_name_that_is_not_utf8(model_dir, photos, tmp_path, capsys):
    name = os.path.join(os.fsencode(photos), b"caf\xe9.png")
    shutil.copy(os.path.join(photos, "image_0.png"), name)
    out = str(tmp_path / "found.csv")
    assert cli.main(["detect", os.path.join(model_dir, "int8.tflite"), photos, "--csv", out]) == 0
    assert "caf\\xe9.png: " in capsys.readouterr().out
    with open(out) as stream:
        assert "caf\\xe9.png," in stream.read()


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
        (["photos", "--output_dir=empty/notes.txt"], "a file, {}/empty/notes.txt, where a folder is wanted"),
    ],
)
def test_wrong_input(arguments, says, model_dir, photos, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    shutil.move(os.path.join(photos, "notes.txt"), str(tmp_path / "empty" / "notes.txt"))
    model = os.path.join(model_dir, "int8.tflite")
    assert cli.main(["detect", model, "--output_dir=out"] + arguments) == 1
    said = capsys.readouterr()
    (line,) = said.err.strip().splitlines()
    assert line.startswith("od-qat: error: ") and says.format(tmp_path) in line and not said.out
    assert not os.path.exists("out")
