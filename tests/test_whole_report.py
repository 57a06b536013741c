"""od-qat report: one page from all reports; its figures, its words, and a browser that shows it."""

import dataclasses
import html.parser
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

from od_qat import cli, scoring
from od_qat.analysis.advice import Advice
from od_qat.analysis.errors import Distribution, Error
from od_qat.analysis.results import LayerErrors, OfPoint
from od_qat.errors import ConfigError
from od_qat.report import answers, page, page_parts, plots, whole
from od_qat.report.layers import Layers
from od_qat.scoring import intervals
from od_qat.scoring.measures import DetectorMeasure
from tests.test_scoring import EXAMPLES, NAMES, write_record

pytest.importorskip("ai_edge_litert")

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BROWSER = os.environ.get("OD_QAT_BROWSER") or next(filter(None, map(shutil.which, BROWSERS)), None)
BY_ID = dict(enumerate(NAMES, 1))
MEASURE = DetectorMeasure(EXAMPLES.__iter__, BY_ID)
# A name that would end a script, or an attribute, if it were not escaped.
NASTY = "block</script><b>\"'1/act_quant"


def point(name, steps, clipped):
    distribution = Distribution(-1.0, 1.0)
    distribution.add(np.random.RandomState(0).randn(1000) / 2)
    return OfPoint(
        name,
        name,
        ("Conv2D",),
        -1.0,
        1.0,
        distribution.extent,
        clipped,
        (distribution.counts, list(distribution.edges)),
        Error(30.0 - steps, 0.99, 0.01, steps),
        Error(20.0, 0.98, 0.02, 2 * steps),
        None,
    )


LAYERS = Layers(
    "graph.pb",
    "itself without fake quants",
    LayerErrors(
        tuple(
            point(name, steps, steps / 100)
            for name, steps in ((NASTY, 0.31), ("conv_10", 0.4), ("conv_9", 0.3))
        ),
        Error(40.0, 0.99, 0.01, None),
        Error(35.0, 0.99, 0.01, None),
        Error(33.0, 0.99, 0.01, None),
        8,
    ),
    (Advice("Train longer & better.", "because", "a { b: 1 }"),),
)


@pytest.fixture(scope="module")
def given(model_dir):
    return whole.Given(
        os.path.join(model_dir, "uint8.tflite"),
        float_model=os.path.join(model_dir, "float32.tflite"),
        ptq={"PTQ": os.path.join(model_dir, "int8.tflite")},
        others={"a .pb": os.path.join(model_dir, "canonical.pb")},
    )


@pytest.fixture(scope="module")
def found(given):
    return whole.measure(given, MEASURE, whole.Options(layer_images=2, worst=2))


@pytest.fixture(scope="module")
def shown(found):
    return dataclasses.replace(found, layers=(LAYERS,))


def test_its_figures_are_those_of_the_other_commands(found, given):
    assert [one.label for one in found.models.models] == ["float", "a .pb", "PTQ", "this model"]
    this = found.models.models[-1]
    detected = scoring.detect(given.model, EXAMPLES, processes=1, progress=False)
    expected = scoring.coco_metrics(EXAMPLES, detected, BY_ID)
    assert (this.value, this.per_class) == (expected.map, expected.per_class)
    assert this.more == {"map50": expected.map50, "map75": expected.map75}
    assert this.size_bytes == os.path.getsize(given.model)
    of_float = scoring.detect(given.float_model, EXAMPLES, processes=1, progress=False)
    agreement = scoring.agreement(of_float, detected, iou=0.9, score_tolerance=0.1, min_score=0.3)
    (pair,) = found.pairs
    assert (pair.a, pair.b) == ("float", "this model") and pair.content["agreement"] == dataclasses.asdict(
        agreement
    )
    assert found.contents.size_bytes == this.size_bytes
    assert [one.target.name for one in found.targets] == ["xnnpack", "edge_tpu", "micro", "specification"]


def test_models_that_have_been_run_are_not_run_again(given, found, monkeypatch):
    label = "this model"
    detected = {
        name: scoring.detect(path, EXAMPLES, processes=1, progress=False)
        for name, path in given.paths().items()
    }

    def refuse(*_):
        raise AssertionError("run again")

    monkeypatch.setattr("od_qat.scoring.workers.detect", refuse)
    again = whole.measure(given, MEASURE, whole.Options(layer_images=2), detected)
    assert again.models.models[-1].value == found.models.models[-1].value
    assert again.models.models[-1].label == label


def accurate(found, first, this, low, high):
    """The answer on accuracy, for these values and this interval of their difference."""
    models = [dataclasses.replace(one, value=first) for one in found.models.models]
    models[-1] = dataclasses.replace(models[-1], value=this, difference=intervals.Interval(low, high))
    changed = dataclasses.replace(found, models=dataclasses.replace(found.models, models=tuple(models)))
    return next(one.answer for one in answers.answers(changed) if one.section == answers.ACCURACY)


@pytest.mark.parametrize(
    "first, this, low, high, says",
    [
        (0.60, 0.599, -0.005, 0.004, "Yes, to 1 point, as far as these images can tell. mAP 59.9, where"),
        (0.60, 0.51, -0.19, 0.004, "These images cannot tell: it may have lost up to 19.0 points. mAP 51.0"),
        (0.60, 0.51, -0.19, -0.004, "No. mAP 51.0, where float has 60.0: -9.0 points"),
        (0.60, 0.65, 0.01, 0.09, "It is better. mAP 65.0"),
        (0.001, 0.0, -0.001, 0.001, "That cannot be told, since both find next to nothing."),
    ],
)
def test_no_loss_is_claimed_that_images_do_not_exclude(found, first, this, low, high, says):
    assert accurate(found, first, this, low, high).startswith(says)


def test_layers_that_were_not_found_are_counted(found):
    errors = dataclasses.replace(LAYERS.errors, unmatched=("conv_2", "boxes"))
    of_tflite = dataclasses.replace(LAYERS, path="detect.tflite", errors=errors, advice=())
    changed = dataclasses.replace(found, layers=(of_tflite,))
    (said,) = [one.answer for one in answers.answers(changed) if one.section == answers.AGREEMENT]
    assert "none of the 3 ops that were found" in said and "no op" not in said
    assert "what was not found in the .tflite, 2 layers of its graph: conv_2, boxes." in said


@pytest.mark.parametrize(
    "role, file, says",
    [
        ("float_model", "uint8.tflite", "the float model is quantized: at {}, found 100 % of its weights"),
        ("graph", "canonical.pb", "the graph with fake quants is float: at {}, found 0 % of its weights"),
        ("ptq", "float32.tflite", "what post-training quantization made is float: at {}, found 0 %"),
    ],
)
def test_a_model_in_a_wrong_role_is_refused(role, file, says, model_dir):
    path = os.path.join(model_dir, file)
    given = whole.Given(
        os.path.join(model_dir, "int8.tflite"), **{role: {"PTQ": path} if role == "ptq" else path}
    )
    with pytest.raises(ConfigError) as caught:
        whole.measure(given, MEASURE)
    assert str(caught.value).startswith(says.format(path)) and "--beside" in str(caught.value)


def test_sizes_are_sorted_by_bytes(shown):
    for one in shown.models.models:
        assert 'data-value="{!r}"'.format(float(one.size_bytes)) in page.as_html(shown)


def test_what_is_missing_is_said(found, model_dir):
    assert any("--graph" in one for one in found.missing)
    assert any("tflite_graph.pb" in one and "beside it" in one for one in found.missing)
    alone = whole.measure(
        whole.Given(os.path.join(model_dir, "canonical.pb")), DetectorMeasure(EXAMPLES[:3].__iter__, BY_ID)
    )
    said = "\n".join(alone.missing)
    assert "--float" in said and "they take a .tflite" in said and "canonical.pb" in said
    accuracy = next(one for one in answers.answers(alone) if one.section == answers.ACCURACY)
    assert accuracy.question == "How accurate is it?" and "is not given" in accuracy.answer
    text = page.as_html(alone)
    assert 'id="missing"' in text and "--float" in text and 'id="devices"' not in text


def test_answers(shown):
    of_question = {one.question: one for one in answers.answers(shown)}
    assert of_question["Is it fully quantized?"].answer.startswith("Yes.")
    accurate = of_question["Is it as accurate as the float model?"].answer
    this, first = shown.models.models[-1], shown.models.models[0]
    assert "mAP {:.1f}, where float has {:.1f}".format(100 * this.value, 100 * first.value) in accurate
    left_out = of_question["What does its post-processing leave out?"].answer
    assert (
        left_out.startswith("It has regular NMS, score threshold 0.2, at most") and "COCO's mAP" in left_out
    )
    hurts = of_question["Which layer hurts most?"].answer
    assert hurts.startswith("conv_10 adds most: 0.40 steps") and "Train longer & better." in hurts
    big = of_question["Why is it this big?"].answer
    assert "of weights" in big and "of the float model's" in big
    assert "52 of" not in of_question["Will my device take it?"].answer
    inspection = shown.inspection._replace(float_tensors=["one", "two", "three", "four"])
    islands = dataclasses.replace(shown, inspection=inspection)
    assert answers.answers(islands)[0].answer == "No. 4 tensors are float: one, two, three and 1 more."


def test_files(shown, tmp_path):
    paths = page.write(str(tmp_path / "out"), shown, "Red & <blue>")
    assert sorted(os.path.basename(path) for path in paths) == ["report.html", "report.json", "report.txt"]
    with open(str(tmp_path / "out" / "report.json")) as stream:
        content = json.load(stream)
    assert content["format"] == "od_qat_report/2" and content["given"] == shown.given.paths()
    assert content["models"]["models"][-1]["value"] == shown.models.models[-1].value
    assert content["layers"][0]["points"][0]["name"] == NASTY
    assert content["answers"][0]["question"] == "Is it fully quantized?"
    assert (
        (tmp_path / "out" / "report.txt").read_text(encoding="utf-8").startswith("Is it fully quantized?\n")
    )


class Parsed(html.parser.HTMLParser):
    """Whether each tag ends, the cells of tables by their table's id, and what the page would load."""

    def __init__(self, text):
        super(Parsed, self).__init__()
        self.open, self.cells, self.loads, self.anchors, self.ids = [], {}, [], [], []
        self._table, self._inside = None, False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in ("meta", "img", "link", "input"):
            self.open.append(tag)
        if tag == "table":
            self._table = self.cells.setdefault(attributes.get("id"), [])
        self._inside = tag == "td"
        if self._inside:
            self._table.append("")
        if "id" in attributes:
            self.ids.append(attributes["id"])
        for key in ("href", "src"):
            if key in attributes:
                (self.anchors if tag == "a" else self.loads).append(attributes[key])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self._inside = False

    def handle_data(self, data):
        if self._inside:
            self._table[-1] += data


def test_the_page_is_whole_and_loads_nothing(shown):
    text = page.as_html(shown, "Red & <blue>")
    parsed = Parsed(text)
    assert parsed.open == [] and len(set(parsed.ids)) == len(parsed.ids)
    assert "<title>Red &amp; &lt;blue&gt;</title>" in text
    assert all(one.startswith("data:") for one in parsed.loads)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"<pre>.*?</pre>", "", text, flags=re.S))
    # Every link leads to a section.
    assert parsed.anchors and all(one[1:] in parsed.ids for one in parsed.anchors)
    assert parsed.cells["models"][:2] == ["float", "{:.1f}".format(100 * shown.models.models[0].value)]
    layers = parsed.cells["layers0"]
    assert len(layers) == 3 * 10 and layers[::10] == ["conv_10", NASTY, "conv_9"]
    assert text.count("<script>") == 1 and "<b>" not in text


_STEPS = """
<script>
var errors = [];
window.addEventListener("error", function (event) { errors.push(event.message); });
console.error = function (text) { errors.push(text); };
window.addEventListener("load", function () {
  function rows(id) {
    return Array.from(document.querySelectorAll("#" + id + " tbody tr")).filter(function (row) {
      return row.offsetParent !== null;
    }).map(function (row) { return row.cells[0].textContent; });
  }
  function click(id, title) {
    Array.from(document.querySelectorAll("#" + id + " th")).filter(function (head) {
      return head.textContent === title;
    })[0].querySelector("button").click();
  }
  var found = { first: rows("layers0") };
  found.width = document.documentElement.scrollWidth;
  found.view = window.innerWidth;
  click("layers0", "clipped");
  found.falling = rows("layers0");
  click("layers0", "clipped"); found.rising = rows("layers0");
  click("layers0", "layer"); found.names = rows("layers0");
  found.sort = document.querySelector("#layers0 th").getAttribute("aria-sort");
  var search = document.querySelector("input[type=search]");
  search.value = "CONV_"; search.dispatchEvent(new Event("input")); found.search = rows("layers0");
  document.querySelectorAll("details").forEach(function (one) { one.querySelector("summary").click(); });
  found.open = Array.from(document.querySelectorAll("details")).every(function (one) { return one.open; });
  found.pictures = Array.from(document.images).map(function (one) { return one.naturalWidth; });
  found.background = getComputedStyle(document.body).backgroundColor;
  found.errors = errors;
  document.title = JSON.stringify(found);
});
</script>
"""


@pytest.mark.skipif(not BROWSER, reason="no Chromium here (OD_QAT_BROWSER names one)")
@pytest.mark.parametrize("width, dark", [(390, False), (1280, True)])
def test_a_browser_shows_it(shown, tmp_path, width, dark):
    path = tmp_path / "page.html"
    path.write_text(page.as_html(shown).replace("<body>", "<body>" + _STEPS, 1), encoding="utf-8")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += ["--window-size={},900".format(width), "--user-data-dir=" + str(tmp_path / "profile")]
    command += ["--blink-settings=preferredColorScheme={}".format(0 if dark else 1), path.as_uri()]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, timeout=120)
    text = done.stdout.decode("utf-8")
    seen = json.loads(html.unescape(re.search(r"<title>(.*?)</title>", text, re.S).group(1)))
    assert seen["errors"] == []
    assert seen["first"] == ["conv_10", NASTY, "conv_9"] == seen["falling"]
    assert seen["rising"] == ["conv_9", NASTY, "conv_10"]
    assert seen["names"] == sorted(seen["names"], reverse=True) and seen["sort"] == "descending"
    assert seen["search"] == ["conv_9", "conv_10"]
    assert seen["open"] and all(seen["pictures"])
    # Nothing is wider than the screen: tables are moved inside their own place.
    assert seen["width"] <= seen["view"]
    assert seen["background"] == ("rgb(13, 17, 23)" if dark else "rgb(255, 255, 255)")


def test_cells():
    assert page_parts.table(["a"], [["<"], [page_parts.Cell("x", 0.5, "loss")]]).count("<td") == 2
    text = page_parts.table(["a"], [[page_parts.number(None, "{}")], [page_parts.number(2, "{:.1f}")]])
    assert "<td>-</td>" in text and '<td data-value="2.0">2.0</td>' in text


@pytest.mark.parametrize("values", [[0, 0], [100, 100], [78.8, 78.8 + 1e-9], [76.9, 77.2], [0.05]])
def test_an_axis_of_percents_has_labels_that_differ(values):
    ticks = plots._ticks(values, zero=False)
    labels = [plots._number(tick) for tick in ticks]
    assert len(set(labels)) == len(labels) >= 3 and 0 <= ticks[0] < ticks[-1] <= 100
    assert all(ticks[0] - 1e-9 <= value <= ticks[-1] + 1e-9 for value in values)


def test_a_plot_has_a_place_for_every_model():
    items = [plots.Bubble("m{}".format(number), 5.0, 70.0, 1000 * (number + 1), "<m>") for number in range(4)]
    text = plots.bubbles(items, "ms", "mAP")
    assert text.count("<circle") == 4 and "<m>" not in text
    places = re.findall(r'class="label" x="[^"]*" y="([^"]*)"', text)
    assert len(set(places)) == 4
    for one in (
        plots.bubbles(items[:1], "ms", "mAP"),
        plots.bubbles([items[0]._replace(x=0.0, area=0)], "", ""),
    ):
        assert "nan" not in one and "inf" not in one


# The command.


@pytest.fixture
def flags(tf, tmp_path):
    record, label_map = str(tmp_path / "val.record"), str(tmp_path / "label_map.pbtxt")
    write_record(tf, record, EXAMPLES, None)
    with open(label_map, "w") as stream:
        stream.writelines("item {{ id: {} name: '{}' }}\n".format(*one) for one in BY_ID.items())
    return ["--record", record, "--label_map", label_map, "--output_dir", str(tmp_path / "report")]


def test_the_command(model_dir, flags, tmp_path, capsys):
    model, other = (os.path.join(model_dir, name + ".tflite") for name in ("uint8", "float32"))
    assert cli.main(["report", model, "--float", other, "--layer_images=1", "--max_images=3"] + flags) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "Is it fully quantized?" and lines[-1] == str(tmp_path / "report" / "report.html")
    assert any(line.startswith("not in this report: ") for line in lines)
    with open(str(tmp_path / "report" / "report.json")) as stream:
        assert json.load(stream)["models"]["images"] == 3


@pytest.mark.parametrize(
    "more, says",
    [
        (["--float=none.pb"], "cannot read the model: at none.pb"),
        (["--ptq=this model={model}"], "two models have one label: at --ptq, found this model"),
        (["--beside=x={model}", "--beside=x={model}"], "two models have one label: at --beside, found x"),
        (["--label_map=none.pbtxt"], "cannot read the label map: at none.pbtxt"),
        (["--record=none.record"], "none.record"),
    ],
)
def test_wrong_input(more, says, model_dir, flags, tmp_path, capsys):
    model = os.path.join(model_dir, "uint8.tflite")
    assert cli.main(["report", model] + flags + [one.format(model=model) for one in more]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert says in line
    assert not (tmp_path / "report").exists()


@pytest.mark.parametrize("name", ["cut.tflite", "cut.pb"])
def test_a_truncated_model(name, model_dir, flags, tmp_path, capsys):
    source = os.path.join(model_dir, "uint8.tflite" if name.endswith("tflite") else "canonical.pb")
    with open(source, "rb") as stream:
        (tmp_path / name).write_bytes(stream.read()[:700])
    assert cli.main(["report", str(tmp_path / name)] + flags) == 1
    assert name in capsys.readouterr().err.strip().splitlines()[-1]
    assert not (tmp_path / "report").exists()
