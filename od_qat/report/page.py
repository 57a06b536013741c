"""Shows what whole.measure found as report.html, report.json and report.txt."""

import os
from typing import Any, Dict, Iterable, List, Sequence

from od_qat import files
from od_qat.analysis.results import OfPoint
from od_qat.report import (
    answers,
    comparison,
    layers,
    page_parts,
    plots,
    quantizations,
    table,
    target_report,
)
from od_qat.report.layers import Layers
from od_qat.report.page_parts import Cell, number, text
from od_qat.report.target_report import OfTarget
from od_qat.report.whole import Whole

FORMAT = "od_qat_report/2"
TITLE = "Quantization report"
_TONES = {"red": "loss", "green": "gain"}


def write(folder: str, whole: Whole, title: str = TITLE) -> List[str]:
    """Writes the three files; returns their paths.

    Raises:
      OdQatError: if the folder cannot be written; no file is changed then.
    """
    contents = {
        "report.html": as_html(whole, title),
        "report.json": files.json_text(as_json(whole)),
        "report.txt": as_text(whole) + "\n",
    }
    paths = {os.path.join(folder, name): content for name, content in contents.items()}
    files.write_together(paths)
    return list(paths)


def as_json(whole: Whole) -> Dict[str, Any]:
    """The whole, for json.dumps; without the pictures."""
    return {
        "format": FORMAT,
        "given": whole.given.paths(),
        "answers": [one._asdict() for one in answers.answers(whole)],
        "models": quantizations.as_json(whole.models),
        "agreement": [dict(one.content, a=one.a, b=one.b) for one in whole.pairs],
        "layers": [layers.as_json(one) for one in whole.layers],
        "targets": [target_report.as_json(one) for one in whole.targets],
        "contents": None if whole.contents is None else comparison.summary(whole.contents),
        "comparison": None if whole.comparison is None else comparison.as_json(whole.comparison),
        "missing": list(whole.missing),
    }


def as_text(whole: Whole) -> str:
    """The whole for a terminal."""
    parts = [summary(whole), quantizations.as_text(whole.models)]
    for one in whole.pairs:
        parts.append("{} and {}: {}".format(one.a, one.b, one.text))
    parts += [layers.as_text(one) for one in whole.layers]
    parts += [target_report.as_text(one) for one in whole.targets]
    if whole.comparison is not None:
        parts.append(comparison.as_text(whole.comparison))
    return ("\n\n" + 78 * "-" + "\n\n").join(parts)


def summary(whole: Whole) -> str:
    """The questions and answers, and what is missing, for a terminal."""
    lines: List[str] = []
    for one in answers.answers(whole):
        lines += [one.question] + ["  " + line for line in one.answer.splitlines()]
    lines += ["warning: " + line for line in quantizations.warnings_of(whole.models)]
    for one in whole.missing:
        lines += ["not in this report: " + one]
    return "\n".join(lines)


def as_html(whole: Whole, title: str = TITLE) -> str:
    """The whole as one document that loads nothing else."""
    sections = [
        (answers.ACCURACY, "Accuracy, size and latency", _accuracy(whole)),
        (answers.AGREEMENT, "Where results differ", _agreement(whole)),
        (answers.LAYERS, "Layers", _layers(whole)),
        (answers.DEVICES, "Devices", _devices(whole.targets)),
        (answers.CONTENTS, "What is in the file", _contents(whole)),
    ]
    shown = [(name, heading, list(parts)) for name, heading, parts in sections]
    shown = [one for one in shown if one[2]]
    links = " ".join(page_parts.link(name, heading) for name, heading, _ in shown)
    head = [text("h1", title), text("p", whole.given.model, "quiet"), "<nav>{}</nav>".format(links)]
    return page_parts.page(
        title,
        head
        + [_answers(whole)]
        + [page_parts.section(name, heading, parts) for name, heading, parts in shown]
        + list(_missing(whole)),
    )


def _answers(whole: Whole) -> str:
    items = [text("dt", one.question) + text("dd", one.answer) for one in answers.answers(whole)]
    return '<dl class="answers">\n{}\n</dl>'.format("\n".join(items))


def _missing(whole: Whole) -> Iterable[str]:
    if whole.missing:
        items = "\n".join(text("li", one) for one in whole.missing)
        yield page_parts.section("missing", "Not in this report", ["<ul>{}</ul>".format(items)])


def _accuracy(whole: Whole) -> Iterable[str]:
    found = whole.models
    rows = []
    headers = quantizations.headers_of(found)
    for model, cells in zip(found.models, quantizations.cells_of(found)):
        rows.append([_of_model(model, header, cell) for header, cell in zip(headers, cells)])
    for line in quantizations.warnings_of(found):
        yield text("p", "Warning: " + line, "loss")
    yield page_parts.table(headers, rows, "models")
    yield text("p", quantizations.note_of(found), "quiet")
    measured = [one for one in found.models if one.latency_ms]
    if measured:
        threads = min(measured[0].latency_ms)
        title = "milliseconds for an image, {} thread{}".format(threads, "" if threads == 1 else "s")
        items = [_bubble(one, threads) for one in measured]
        yield page_parts.scrolls(plots.bubbles(items, title, found.measure))
        yield text("p", "The area of a model is the size of its file.", "quiet")
    names = sorted({name for one in found.models for name in one.per_class})
    rows = [[name] + [_percent(one.per_class.get(name)) for one in found.models] for name in names]
    by_class = page_parts.table(["class"] + [one.label for one in found.models], rows, "classes", tall=True)
    yield page_parts.details("{} of each class ({})".format(found.measure, len(names)), [by_class])


def _bubble(one: quantizations.Model, threads: int) -> plots.Bubble:
    milliseconds, percent = one.latency_ms[threads], 100 * one.value
    says = "{}: {:.1f} %, {:.1f} ms, {}".format(one.label, percent, milliseconds, table.size(one.size_bytes))
    return plots.Bubble(one.label, milliseconds, percent, one.size_bytes, says)


def _of_model(model: quantizations.Model, header: str, shown: str) -> Cell:
    if header == "model":
        return Cell(shown)
    if header == "size":
        return Cell(shown, model.size_bytes)
    try:
        value = float(shown.split(" ")[0])
    except ValueError:
        return Cell(shown)
    return Cell(shown, value, _TONES.get(table.tone_of(header, shown), ""))


def _percent(value: Any) -> Cell:
    return number(None if value is None else 100 * value, "{:.1f}")


def _agreement(whole: Whole) -> Iterable[str]:
    for one in whole.pairs:
        yield text("h3", "{} and {}".format(one.a, one.b))
        yield text("p", one.said)
        rows = [[why, number(count, "{}")] for why, count in one.reasons.items() if count]
        if rows:
            yield page_parts.table(["where they differ", one.noun], rows)
        if one.shares is not None:
            yield text("p", one.shares.as_text())
        if one.pictures:
            yield page_parts.details(
                "The {} images that differ most".format(len(one.pictures)),
                [page_parts.picture(data, caption) for caption, data in one.pictures],
            )


_LAYER_HEADERS = (
    "layer",
    "range",
    "values",
    "clipped",
    "own error, steps",
    "own, dB",
    "piled up, steps",
    "piled up, dB",
    "weights, dB",
    "values against the range",
)


def _layers(whole: Whole) -> Iterable[str]:
    for place, one in enumerate(whole.layers):
        yield text("h3", "{}, against {}".format(one.path, one.reference))
        yield text("p", _ends(one))
        for advice in one.advice:
            yield text("p", "{} ({})".format(advice.what, advice.why))
            if advice.config:
                yield text("pre", advice.config)
        rows = [_of_point(point) for point in one.errors.worst()]
        yield page_parts.table(
            _LAYER_HEADERS, rows, "layers{}".format(place), "Show layers with this in their name", tall=True
        )
        if one.errors.unmatched:
            yield text("p", "Not found in the .tflite: {}.".format(", ".join(one.errors.unmatched)), "quiet")
    if whole.layers:
        yield text("p", layers.LEGEND, "quiet")


def _ends(found: Layers) -> str:
    errors = found.errors
    said = "{} layers, on {} images.".format(len(errors.points), errors.images)
    if errors.weights_only is not None and errors.activations_only is not None and errors.both is not None:
        said += (
            " At the worst output the signal-to-noise ratio is {:.1f} dB: {:.1f} dB with the weights alone "
            "quantized, {:.1f} dB with the activations alone."
        ).format(errors.both.sqnr_db, errors.weights_only.sqnr_db, errors.activations_only.sqnr_db)
    return said


def _of_point(point: OfPoint) -> Sequence[Any]:
    counts, edges = point.histogram
    return (
        point.name,
        Cell("[{:.3g}, {:.3g}]".format(point.low, point.high), point.high - point.low),
        Cell("[{:.3g}, {:.3g}]".format(*point.extent), point.extent[1] - point.extent[0]),
        number(100 * point.clipped, "{:.2f} %"),
        number(point.own.steps, "{:.2f}"),
        number(point.own.sqnr_db, "{:.0f}"),
        number(point.piled_up.steps, "{:.2f}"),
        number(point.piled_up.sqnr_db, "{:.0f}"),
        number(None if point.weights is None else point.weights.error.sqnr_db, "{:.0f}"),
        Cell("", point.clipped, markup=plots.histogram(counts, edges, point.low, point.high)),
    )


def _devices(found: Sequence[OfTarget]) -> Iterable[str]:
    for one in found:
        whole_text = target_report.as_text(one, limit=1000).splitlines()
        yield text("h3", whole_text[0])
        yield text("p", whole_text[1].strip())
        if whole_text[2:]:
            yield page_parts.details("Reasons and limits", [text("pre", "\n".join(whole_text[2:]))])


def _contents(whole: Whole) -> Iterable[str]:
    both = [whole.contents] if whole.comparison is None else [whole.comparison.a, whole.contents]
    both = [one for one in both if one is not None]
    if not both:
        return
    headers = ["", "this model"] if len(both) == 1 else ["", "A: float", "B: this model"]
    yield page_parts.table(headers, comparison.rows_of(both))
    types: Dict[str, None] = {}
    for one in both:
        types.update(dict.fromkeys(one.op_types()))
    counts = [one.op_types() for one in both]
    rows = [[name] + [number(of.get(name, 0), "{:.0f}") for of in counts] for name in sorted(types)]
    table_of_ops = page_parts.table(["op"] + headers[1:], rows, "ops", tall=True)
    yield page_parts.details("Ops of each type", [table_of_ops])
    for one in [] if whole.comparison is None else whole.comparison.words:
        yield text("p", one)
    if whole.inspection is not None and whole.inspection.float_tensors:
        yield text("h3", "Float tensors before the post-processing")
        yield text("p", ", ".join(whole.inspection.float_tensors))
