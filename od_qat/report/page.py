"""What quantization cost and gained: tables, pictures, JSON, one HTML file.

Importing this file imports neither TensorFlow, Pillow nor rich.
"""

import base64
import dataclasses
import html
import importlib.util
import io
import os
import re
import sys
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, TextIO, Tuple

from od_qat.errors import ConfigError, DataError
from od_qat.files import write_atomically, write_json
from od_qat.scoring.metrics import ClassNames, names_by_id

FORMAT = "od_qat_report/1"

_HEADERS = ("model", "mAP", "points", "mAP@.5", "points", "size", "latency")
_COLUMNS = 80


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in a comparison.

    Attributes:
      label: what to call it, "int8 .tflite" for example.
      map: COCO mAP at overlaps .50 to .95, 0 to 1.
      map50: COCO mAP at overlap .50, 0 to 1.
      size_bytes: of the file.
      latency_ms: median milliseconds an image, None when it was not measured.
    """

    label: str
    map: float
    map50: float
    size_bytes: int
    latency_ms: Optional[float] = None


def row(label: str, model_score: Any) -> Row:
    """The row of a scoring.ModelScore."""
    return Row(
        label=label,
        map=model_score.score.map,
        map50=model_score.score.map50,
        size_bytes=model_score.size_bytes,
        latency_ms=model_score.latency_ms,
    )


def _points(value: float, baseline: float) -> str:
    """The difference in points (hundredths), with its sign."""
    text = "{:+.1f}".format(100.0 * (value - baseline))
    return "+0.0" if text == "-0.0" else text


def _size(size_bytes: int) -> str:
    if size_bytes < 10**4:
        return "{:,} B".format(size_bytes)
    if size_bytes < 10**6:
        return "{:.0f} kB".format(size_bytes / 1e3)
    return "{:.1f} MB".format(size_bytes / 1e6)


def _baseline(rows: Sequence[Row], label: Optional[str]) -> Row:
    """The row with this label, which the others are compared with; the first without a label."""
    if not rows:
        raise DataError("a report needs at least one scored model", fix="score a model first")
    if label is None:
        return rows[0]
    for item in rows:
        if item.label == label:
            return item
    raise ConfigError(
        "no model of the report has the baseline's label",
        found=repr(label),
        allowed=", ".join(item.label for item in rows),
    )


def _cells(rows: Sequence[Row], label: Optional[str]) -> List[Tuple[str, ...]]:
    """The table's text; the baseline has no differences."""
    baseline = _baseline(rows, label)
    cells = []
    for item in rows:
        other = item is not baseline
        cells.append(
            (
                item.label,
                "{:.1f}".format(100.0 * item.map),
                _points(item.map, baseline.map) if other else "",
                "{:.1f}".format(100.0 * item.map50),
                _points(item.map50, baseline.map50) if other else "",
                _size(item.size_bytes),
                "-" if item.latency_ms is None else "{:.1f} ms".format(item.latency_ms),
            )
        )
    return cells


def _note(rows: Sequence[Row], label: Optional[str]) -> str:
    text = "mAP at overlaps .50 to .95 and at .50, in percent"
    if len(rows) > 1:
        text += "; points against {}".format(_baseline(rows, label).label)
    return text


def to_text(rows: Sequence[Row], baseline: Optional[str] = None) -> str:
    """The comparison as plain text, at most 80 columns wide.

    Args:
      rows: the models.
      baseline: label of the model that the others are compared with; default is the first.

    Raises:
      DataError: without rows.
      ConfigError: no row has the baseline's label.
    """
    cells = [_HEADERS] + _cells(rows, baseline)
    widths = [max(len(line[column]) for line in cells) for column in range(len(_HEADERS))]
    # The model's name gets what the numbers leave of a line.
    widths[0] = min(widths[0], max(_COLUMNS - sum(widths[1:]) - 2 * (len(widths) - 1), 10))
    lines = []
    for line in cells:
        padded = [_shorten(line[0], widths[0]).ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += _wrapped(_note(rows, baseline), _COLUMNS)
    return "\n".join(lines) + "\n"


def _shorten(label: str, width: int) -> str:
    return label if len(label) <= width else label[: width - 3] + "..."


def _wrapped(text: str, width: int) -> List[str]:
    import textwrap

    return textwrap.wrap(text, width)


def print_table(rows: Sequence[Row], stream: Optional[TextIO] = None, baseline: Optional[str] = None) -> None:
    """Prints the comparison: a table on a terminal, plain text into a file or a pipe.

    Args:
      rows: the models.
      stream: default is standard output.
      baseline: as for to_text.

    Raises:
      DataError: without rows.
      ConfigError: no row has the baseline's label.
    """
    stream = stream or sys.stdout
    cells = _cells(rows, baseline)
    if not stream.isatty() or importlib.util.find_spec("rich") is None:  # (an optional package)
        stream.write(to_text(rows, baseline))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(_HEADERS):
        table.add_column(header, justify="right" if number else "left", no_wrap=bool(number), overflow="fold")
    for line in cells:
        # Text, so that a label with brackets is not taken for markup.
        table.add_row(*[Text(cell, style=_style(column, cell)) for column, cell in enumerate(line)])
    console = Console(file=stream)
    console.print(table)
    console.print(Text(_note(rows, baseline), style="dim"))


def _style(column: int, cell: str) -> str:
    """Differences below half a point of accuracy are what a new training run would give."""
    if column not in (2, 4) or not cell:
        return ""
    value = float(cell)
    return "" if abs(value) < 0.5 else ("green" if value > 0 else "red")


def to_markdown(rows: Sequence[Row], baseline: Optional[str] = None, conclusion: str = "") -> str:
    """The comparison as a Markdown table.

    Args:
      rows: the models.
      baseline: as for to_text.
      conclusion: a sentence below the table.

    Raises:
      DataError: without rows.
      ConfigError: no row has the baseline's label.
    """
    cells = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in _cells(rows, baseline)
    ]
    lines = ["| " + " | ".join(_HEADERS) + " |", "| --- |" + " ---: |" * (len(_HEADERS) - 1)]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    text = "\n".join(lines) + "\n\n" + _note(rows, baseline) + "\n"
    return text + ("\n" + conclusion + "\n" if conclusion else "")


def to_json(rows: Sequence[Row], baseline: Optional[str] = None) -> Dict[str, Any]:
    """The comparison as a value for JSON, with its differences in points.

    Args:
      rows: the models.
      baseline: as for to_text.

    Raises:
      DataError: without rows.
      ConfigError: no row has the baseline's label.
    """
    compared = _baseline(rows, baseline)
    values = []
    for item in rows:
        value = dataclasses.asdict(item)  # type: Dict[str, Any]
        value["map_points"] = round(100.0 * (item.map - compared.map), 4)
        value["map50_points"] = round(100.0 * (item.map50 - compared.map50), 4)
        value["size_ratio"] = round(item.size_bytes / compared.size_bytes, 4) if compared.size_bytes else None
        measured = item.latency_ms is not None and compared.latency_ms
        value["latency_ratio"] = round(item.latency_ms / compared.latency_ms, 4) if measured else None
        values.append(value)
    return {"format": FORMAT, "baseline": compared.label, "rows": values}


def write_report(
    output_dir: str,
    rows: Sequence[Row],
    pictures: Sequence[str] = (),
    title: str = "Quantization report",
    baseline: Optional[str] = None,
    conclusion: str = "",
) -> List[str]:
    """Writes report.json, report.md and report.html.

    Args:
      output_dir: made when missing.
      rows: the models.
      pictures: PNG files for the HTML.
      title: of the HTML.
      baseline: label of the model that the others are compared with; default is the first.
      conclusion: a sentence below the table.

    Returns:
      the paths written.

    Raises:
      DataError: without rows, or a picture cannot be read; nothing is written.
      ConfigError: no row has the baseline's label.
      OdQatError: when the folder cannot be written.
    """
    contents = (
        ("report.md", to_markdown(rows, baseline, conclusion)),
        ("report.html", to_html(rows, pictures, title, baseline, conclusion)),
    )
    json_file = os.path.join(output_dir, "report.json")
    write_json(json_file, to_json(rows, baseline))
    paths = [json_file]
    for name, content in contents:
        paths.append(os.path.join(output_dir, name))
        write_atomically(paths[-1], content)
    return paths


_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1b1f24; background: #fff; margin: 2rem auto;
       max-width: 76rem; padding: 0 1rem; }
h1 { font-size: 1.5rem; font-weight: 600; margin: 0 0 1rem; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .4rem 1rem .4rem 0; text-align: right; border-bottom: 1px solid #d8dee4;
         white-space: nowrap; }
th { font-weight: 600; }
th:first-child, td:first-child { text-align: left; white-space: normal; }
td.loss { color: #b3261e; }
td.gain { color: #1a7f37; }
.note { color: #57606a; font-size: .9rem; }
figure { margin: 2rem 0; }
figure img { max-width: 100%; height: auto; display: block; }
figcaption { color: #57606a; font-size: .9rem; margin-bottom: .4rem; }
"""


def to_html(
    rows: Sequence[Row],
    pictures: Sequence[str] = (),
    title: str = "Quantization report",
    baseline: Optional[str] = None,
    conclusion: str = "",
) -> str:
    """The comparison and pictures as one HTML document that loads nothing else.

    Args:
      rows: the models.
      pictures: PNG files, taken into the document.
      title: heading.
      baseline: as for to_text.
      conclusion: a sentence below the table.

    Raises:
      DataError: without rows, or a picture cannot be read.
      ConfigError: no row has the baseline's label.
    """
    colours = {"red": "loss", "green": "gain"}
    body = []
    for line in _cells(rows, baseline):
        columns = []
        for column, cell in enumerate(line):
            kind = colours.get(_style(column, cell))
            columns.append("<td{}>{}</td>".format(' class="%s"' % kind if kind else "", html.escape(cell)))
        body.append("<tr>{}</tr>".format("".join(columns)))
    figures = []
    for path in pictures:
        try:
            with open(path, "rb") as stream:
                data = base64.b64encode(stream.read()).decode("ascii")
        except OSError as error:
            raise DataError("cannot read the picture", where=path, found=error.strerror) from error
        caption = html.escape(os.path.splitext(os.path.basename(path))[0])
        figures.append(
            "<figure><figcaption>{0}</figcaption>"
            '<img alt="{0}" src="data:image/png;base64,{1}"></figure>'.format(caption, data)
        )
    head = "".join("<th>{}</th>".format(html.escape(header)) for header in _HEADERS)
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
        '<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
        "<tbody>\n{body}\n</tbody>\n</table></div>\n"
        '<p class="note">{note}</p>\n{conclusion}{figures}\n</body>\n</html>\n'
    ).format(
        title=html.escape(title),
        style=_STYLE,
        head=head,
        body="\n".join(body),
        note=html.escape(_note(rows, baseline)),
        conclusion="<p>{}</p>\n".format(html.escape(conclusion)) if conclusion else "",
        figures="\n".join(figures),
    )


# Pictures. Colours that are told apart on most photographs, by most eyes; white or black text follows from
# their brightness.
_COLOURS = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
    (170, 255, 195),
)
_PANEL_WIDTH = 480  # pixels that a panel has at least, so that labels are legible beside their boxes
_PANEL_LIMIT = 960  # and at most, in either direction
_GAP = 8
_BACKGROUND = (255, 255, 255)
_TITLE_COLOUR = (27, 31, 36)
_TITLE_SIZE, _LABEL_SIZE = 18, 13
GROUND_TRUTH = "ground truth"


def side_by_side(
    examples: Iterable[Any],
    detections: Mapping[str, Mapping[Any, Any]],
    class_names: ClassNames,
    output_path: str,
    min_score: float = 0.4,
) -> List[str]:
    """Writes a PNG for each image: the ground truth, then each model's detections.

    Args:
      examples: datasets.records.Example, with their encoded images.
      detections: title -> image_id -> scoring.Detections.
      class_names: names from id 1 on, or id -> name.
      output_path: a folder, for files named after the images; or, for a single example, a .png.
      min_score: detections below are not drawn.

    Returns:
      the paths, in the order of the examples.

    Raises:
      DataError: an image cannot be decoded, or a model was not run on it.
      ConfigError: several examples and one .png.
      OdQatError: when a file cannot be written.
    """
    examples = list(examples)
    names = names_by_id(class_names)
    one_file = output_path.lower().endswith(".png")
    if one_file and len(examples) != 1:
        raise ConfigError(
            "one picture cannot show several images",
            where=output_path,
            found="{} examples".format(len(examples)),
            fix="give a folder, or one example",
        )
    for title, of_model in detections.items():
        missing = [example.image_id for example in examples if example.image_id not in of_model]
        if missing:
            raise DataError(
                "a model was not run on an image that is to be drawn",
                where=title,
                found="no detections for {!r}".format(missing[0]),
                fix="give examples that all models were run on",
            )
    paths, taken = [], set()
    for example in examples:
        of_image = [(title, of_model[example.image_id]) for title, of_model in detections.items()]
        picture = _picture(example, of_image, names, min_score)
        stream = io.BytesIO()
        picture.save(stream, format="PNG")
        path = output_path if one_file else os.path.join(output_path, _file_name(example.image_id, taken))
        write_atomically(path, stream.getvalue())
        paths.append(path)
    return paths


def _file_name(image_id: Any, taken: set) -> str:
    """A file name for any image id, different from those taken."""
    stem = os.path.splitext(os.path.basename(str(image_id)))[0]
    stem = re.sub(r"[^\w.-]+", "_", stem).strip("._") or "image"
    name, number = stem, 1
    while name.lower() in taken:
        number += 1
        name = "{}-{}".format(stem, number)
    taken.add(name.lower())
    return name + ".png"


def _picture(example: Any, of_image: Sequence[Tuple[str, Any]], names: Mapping[int, str], min_score: float):
    from PIL import Image, ImageDraw

    from od_qat.scoring.images import decode

    photograph = Image.fromarray(decode(example.encoded, str(example.image_id)))
    width, height = photograph.size
    factor = min(max(_PANEL_WIDTH / width, 1.0), _PANEL_LIMIT / width, _PANEL_LIMIT / height)
    size = (max(1, int(round(width * factor))), max(1, int(round(height * factor))))
    photograph = photograph.resize(size, Image.BICUBIC)

    truth = [
        (box, int(class_id), names.get(int(class_id), str(class_id)))
        for box, class_id in zip(example.boxes, example.classes)
    ]
    panels = [("{} ({})".format(GROUND_TRUTH, len(truth)), truth)]
    for title, found in of_image:
        drawn = [
            (box, int(class_id), "{} {:.2f}".format(names.get(int(class_id), str(class_id)), score))
            for box, class_id, score in zip(found.boxes, found.classes, found.scores)
            if score >= min_score
        ]
        panels.append(("{} ({} at {:g} or more)".format(title, len(drawn), min_score), drawn))

    title_font = _font(_TITLE_SIZE)
    title_height = _TITLE_SIZE + 2 * _GAP
    # A tall, narrow image still needs room for its title.
    panels = [(_drawable(title_font, title), boxes) for title, boxes in panels]
    panel_width = max([size[0]] + [_text_size(title_font, title)[0] for title, _ in panels])
    sheet = Image.new(
        "RGB",
        (len(panels) * (panel_width + _GAP) + _GAP, title_height + size[1] + _GAP),
        _BACKGROUND,
    )
    for number, (title, boxes) in enumerate(panels):
        left = _GAP + number * (panel_width + _GAP)
        ImageDraw.Draw(sheet).text((left, _GAP), title, fill=_TITLE_COLOUR, font=title_font)
        panel = photograph.copy()
        _draw_boxes(panel, boxes)
        sheet.paste(panel, (left, title_height))
    return sheet


def _draw_boxes(panel: Any, boxes: Sequence[Tuple[Any, int, str]]) -> None:
    """Draws boxes [(normalised ymin, xmin, ymax, xmax; class id; label)], best first, onto an image."""
    from PIL import ImageDraw

    draw = ImageDraw.Draw(panel)
    font = _font(_LABEL_SIZE)
    width, height = panel.size
    edges = []
    for box, class_id, label in boxes:
        ymin, xmin, ymax, xmax = [float(value) for value in box]
        edge = (
            int(round(min(max(xmin, 0.0), 1.0) * (width - 1))),
            int(round(min(max(ymin, 0.0), 1.0) * (height - 1))),
            int(round(min(max(xmax, 0.0), 1.0) * (width - 1))),
            int(round(min(max(ymax, 0.0), 1.0) * (height - 1))),
        )
        if edge[2] >= edge[0] and edge[3] >= edge[1]:
            edges.append((edge, _COLOURS[(class_id - 1) % len(_COLOURS)], label))
    for (left, top, right, bottom), colour, _ in reversed(edges):
        draw.rectangle((left, top, right, bottom), outline=colour, width=2)
    # Labels go on top of all boxes, each to the first of a few places beside its box that is still free.
    occupied = []  # type: List[Tuple[int, int, int, int]]
    for edge, colour, label in edges:
        label = _drawable(font, label)
        text_width, text_height = _text_size(font, label)
        place = _label_place(edge, (text_width + 5, text_height + 3), panel.size, occupied)
        occupied.append(place)
        draw.rectangle(place, fill=colour)
        dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 140
        draw.text((place[0] + 3, place[1] + 1), label, fill=(0, 0, 0) if dark else (255, 255, 255), font=font)


def _label_place(edge, size, panel_size, occupied) -> Tuple[int, int, int, int]:
    (left, top, right, bottom), (width, height) = edge, size
    candidates = (
        (left, top - height),  # above the box
        (left, bottom + 1),  # below it
        (left, top),  # inside, in a corner
        (right - width, bottom - height),
        (right - width, top - height),
        (right - width, bottom + 1),
        (right + 1, top),  # beside it
        (left - width, top),
    )
    best, least = None, None
    for x, y in candidates:
        x = min(max(x, 0), max(panel_size[0] - width - 1, 0))
        y = min(max(y, 0), max(panel_size[1] - height - 1, 0))
        place = (x, y, x + width, y + height)
        covered = sum(_overlap(place, other) for other in occupied)
        if least is None or covered < least:
            best, least = place, covered
        if not covered:
            break
    return best


def _overlap(first, second) -> int:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    return max(width, 0) * max(height, 0)


def _font(size: int):
    """Pillow's own scalable font; Pillow before 10.1 has none, then a common one or its small bitmap font."""
    from PIL import ImageFont

    try:
        return ImageFont.load_default(size)
    except (TypeError, OSError, ImportError):
        pass
    try:
        return ImageFont.truetype("DejaVuSans.ttf", size)
    except OSError:
        return ImageFont.load_default()


def _drawable(font, text: str) -> str:
    """What a font has of a text: the small bitmap font knows Latin letters only, and fails on others."""
    from PIL import ImageFont

    if isinstance(font, ImageFont.FreeTypeFont):
        return text
    return text.encode("latin-1", "replace").decode("latin-1")


def _text_size(font, text: str) -> Tuple[int, int]:
    """Width and height that a text takes from the point where it is drawn, pixels."""
    if hasattr(font, "getbbox"):
        _, _, right, bottom = font.getbbox(text)
        return int(right + 0.5), int(bottom + 0.5)
    return font.getsize(text)
