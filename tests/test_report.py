"""od_qat.report: numbers arrive unchanged in every form, and pictures show the boxes where they are."""

import dataclasses
import io
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from od_qat.datasets.records import Example
from od_qat.errors import ConfigError, DataError, OdQatError
from od_qat.report import pictures, table
from od_qat.scoring import Detections, ModelScore, Score

ROWS = (
    table.Row("float .pb", map=0.4412, map50=0.7801, size_bytes=18900000, latency_ms=14.44),
    table.Row("int8 .tflite", map=0.4385, map50=0.7805, size_bytes=4800123, latency_ms=6.51),
    table.Row("post-training [int8] | raw", map=0.3021, map50=0.6, size_bytes=999, latency_ms=None),
)
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self):
        return True


def test_text():
    text = table.to_text(ROWS)
    lines = text.splitlines()
    assert lines[0].split() == ["model", "mAP", "points", "mAP@.5", "points", "size", "latency"]
    assert lines[2].split() == ["float", ".pb", "44.1", "78.0", "18.9", "MB", "14.4", "ms"]
    assert lines[3].split() == "int8 .tflite 43.9 -0.3 78.0 +0.0 4.8 MB 6.5 ms".split()
    assert lines[4].split() == "post-training [int8] | raw 30.2 -13.9 60.0 -18.0 999 B -".split()
    assert "points against float .pb" in text
    assert len({len(line) for line in lines[1:4]}) == 1  # aligned


def test_long_labels_and_large_numbers_fit_80_columns():
    row = table.Row("a label that is much longer than a table has room for", 1.0, 1.0, 99 * 10**9, 123456.7)
    rows = [row, dataclasses.replace(row, map=0.0, map50=0.0)]
    assert max(len(line) for line in table.to_text(rows).splitlines()) <= 80


def test_a_terminal_without_rich_gets_plain_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich", None)
    terminal = Terminal()
    table.print_table(ROWS, terminal)
    assert terminal.getvalue() == table.to_text(ROWS)


def test_a_pipe_gets_plain_text_and_a_terminal_a_table(capsys, monkeypatch):
    table.print_table(ROWS)
    assert capsys.readouterr().out == table.to_text(ROWS)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    table.print_table(ROWS, terminal)
    shown = terminal.getvalue()
    assert "\x1b[" in shown
    import re

    plain = re.sub(r"\x1b\[[0-9;]*m", "", shown)
    assert max(len(line.rstrip()) for line in plain.splitlines()) <= 80
    for expected in ("int8 .tflite", "-13.9", "[int8]", "4.8 MB", "6.5 ms", "44.1"):
        assert expected in plain


def test_another_row_than_the_first_can_be_what_is_compared_with():
    lines = table.to_text(ROWS, "int8 .tflite").splitlines()
    assert lines[2].split() == "float .pb 44.1 +0.3 78.0 +0.0 18.9 MB 14.4 ms".split()
    assert lines[3].split() == "int8 .tflite 43.9 78.0 4.8 MB 6.5 ms".split()
    assert "points against int8 .tflite" in lines[-1]
    value = table.as_json(ROWS, "int8 .tflite")
    assert value["baseline"] == "int8 .tflite"
    assert [row["map_points"] for row in value["rows"]] == [0.27, 0.0, -13.64]
    with pytest.raises(ConfigError, match="'int9'.*float .pb, int8"):
        table.to_text(ROWS, "int9")


def test_json_keeps_all_digits():
    value = json.loads(json.dumps(table.as_json(ROWS)))
    assert value["format"] == "od_qat_report/1" and value["baseline"] == "float .pb"
    first, second, third = value["rows"]
    assert first["map"] == 0.4412 and first["map_points"] == 0 and first["size_ratio"] == 1
    assert second["map_points"] == -0.27 and second["map50_points"] == pytest.approx(0.04)
    assert second["size_ratio"] == pytest.approx(4800123 / 18900000, abs=1e-4)
    assert second["latency_ratio"] == pytest.approx(6.51 / 14.44, abs=1e-4)
    assert third["latency_ms"] is None and third["latency_ratio"] is None


def test_a_row_from_a_model_score():
    score = Score(map=0.25, map50=0.5, map75=0.2, per_class={}, images=3, detections=7)
    assert table.row("x", ModelScore("m.pb", score, 1234, 5.5, {}, {})) == table.Row(
        "x", 0.25, 0.5, 1234, 5.5
    )


def test_no_rows():
    for render in (table.to_text, table.as_json, table.print_table):
        with pytest.raises(DataError, match="at least one"):
            render([])


def scene(image_id="folder/one image.jpg", width=120, height=80):
    pixels = np.full((height, width, 3), 90, np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    boxes = np.array([[0.25, 0.25, 0.75, 0.5], [0.1, 0.6, 0.4, 0.9]], np.float32)
    return Example(image_id, stream.getvalue(), height, width, boxes, np.array([1, 2]), np.zeros(2, bool))


def found(example, scores, classes=None):
    classes = example.classes if classes is None else np.array(classes)
    return {example.image_id: Detections(example.boxes, classes, np.array(scores, np.float32))}


def panels_of(path, count):
    """The panels below their titles."""
    image = np.asarray(Image.open(path).convert("RGB")).astype(int)
    width = (image.shape[1] - pictures._GAP) // count
    title_height = pictures._TITLE_SIZE + 2 * pictures._GAP
    return [
        image[
            title_height : image.shape[0] - pictures._GAP,
            number * width + pictures._GAP : (number + 1) * width,
        ]
        for number in range(count)
    ]


def has_edge(panel, box, colour):
    """Whether the four sides of a normalised box are drawn in a colour, but for what labels cover."""
    height, width = panel.shape[:2]
    ymin, xmin, ymax, xmax = [
        int(round(value * (size - 1))) for value, size in zip(box, (height, width, height, width))
    ]
    sides = (
        panel[ymin, xmin : xmax + 1],
        panel[ymax, xmin : xmax + 1],
        panel[ymin : ymax + 1, xmin],
        panel[ymin : ymax + 1, xmax],
    )
    return all((side == colour).all(axis=1).mean() > 0.8 for side in sides)


def test_side_by_side(tmp_path):
    example = scene()
    detections = {"float": found(example, [0.9, 0.5]), "int8": found(example, [0.8, 0.3], [2, 2])}
    folder = str(tmp_path / "pictures")
    paths = pictures.side_by_side([example], detections, ["cat", "dog"], folder)
    assert paths == [os.path.join(folder, "one_image.png")] and os.listdir(folder) == ["one_image.png"]
    truth, first, second = panels_of(paths[0], 3)
    assert truth.shape[:2] == (320, 480)  # a small image is drawn larger
    cat, dog = pictures._COLOURS[:2]
    assert has_edge(truth, example.boxes[0], cat) and has_edge(truth, example.boxes[1], dog)
    assert has_edge(first, example.boxes[0], cat) and has_edge(first, example.boxes[1], dog)
    # In the second the class of one is wrong, and the other's score too low to be drawn.
    assert has_edge(second, example.boxes[0], dog) and not has_edge(second, example.boxes[0], cat)
    assert not has_edge(second, example.boxes[1], dog)
    # Two labels: two filled patches, with dark text on them, beside the boxes.
    assert (first == dog).all(axis=2).sum() > (second == dog).all(axis=2).sum() * 0.5 > 500
    assert (truth < 30).all(axis=2).sum() > 50
    lower = pictures.side_by_side(
        [example], detections, ["cat", "dog"], str(tmp_path / "b.png"), min_score=0.2
    )
    assert lower == [str(tmp_path / "b.png")]
    assert has_edge(panels_of(lower[0], 3)[2], example.boxes[1], dog)


def test_names_of_pictures(tmp_path):
    examples = [scene(name) for name in ("a/x.jpg", "b/x.jpg", "../..", "ü?*", "12")]
    detections = {"float": {}}
    for example in examples:
        detections["float"].update(found(example, [0.9, 0.9]))
    paths = pictures.side_by_side(examples, detections, {1: "cat"}, str(tmp_path))
    assert [os.path.basename(path) for path in paths] == ["x.png", "x-2.png", "image.png", "ü.png", "12.png"]
    assert sorted(os.listdir(str(tmp_path))) == sorted(os.path.basename(path) for path in paths)


@pytest.mark.parametrize("width, height", [(3, 2), (2000, 1500), (50, 900), (900, 20)])
def test_images_of_any_shape(tmp_path, width, height):
    example = scene("x", width, height)
    edges = np.array(
        [[0, 0, 1, 1], [-0.2, 0.9, 1.3, 1.2], [0.5, 0.5, 0.5, 0.5], [0.6, 0.6, 0.2, 0.2]], np.float32
    )
    example = example._replace(boxes=edges, classes=np.array([1, 2, 300, 1]))
    none = Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    (path,) = pictures.side_by_side([example], {"a title": {"x": none}}, ["c"], str(tmp_path))
    size = Image.open(path).size
    assert size[0] <= 2 * 980 + 20 and size[1] <= 1010


def test_what_cannot_be_drawn(tmp_path):
    example, other = scene("a"), scene("b")
    with pytest.raises(ConfigError, match="several images"):
        pictures.side_by_side([example, other], {}, ["cat"], str(tmp_path / "x.png"))
    with pytest.raises(DataError, match="at int8, found no detections for 'b'"):
        pictures.side_by_side([example, other], {"int8": found(example, [1, 1])}, ["cat"], str(tmp_path))
    with pytest.raises(DataError, match="cannot be decoded"):
        pictures.side_by_side([example._replace(encoded=b"x")], {}, ["cat"], str(tmp_path))
    assert os.listdir(str(tmp_path)) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(OdQatError, match="cannot write"):
        pictures.side_by_side([example], {}, ["cat"], str(tmp_path / "file"))


def test_importing_is_light():
    program = (
        "import sys; from od_qat.report import page_parts, pictures, plots, table; "
        "print(sorted({m.split('.')[0] for m in sys.modules}))"
    )
    environment = dict(os.environ, PYTHONPATH=REPOSITORY)
    modules = subprocess.check_output([sys.executable, "-c", program], env=environment).decode()
    assert "od_qat" in modules
    for heavy in ("tensorflow", "PIL", "rich", "pycocotools", "ai_edge_litert"):
        assert "'{}'".format(heavy) not in modules
