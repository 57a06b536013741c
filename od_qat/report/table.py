"""Makes the table that compares scored models, as text or on a terminal.

Importing this file does not import TensorFlow, Pillow or rich.
"""

import dataclasses
import importlib.util
import sys
import textwrap
from typing import Any, Dict, List, Optional, Sequence, TextIO, Tuple

from od_qat.errors import ConfigError, DataError

FORMAT = "od_qat_report/1"
HEADERS = ("model", "mAP", "points", "mAP@.5", "points", "size", "latency")
_COLUMNS = 80


@dataclasses.dataclass(frozen=True)
class Row:
    """One model in a comparison.

    Attributes:
      label: what to call it, "int8 .tflite" for example.
      map: COCO mAP at overlaps .50 to .95, 0 to 1.
      map50: COCO mAP at overlap .50, 0 to 1.
      size_bytes: of the file.
      latency_ms: median milliseconds for one image; None if it was not measured.
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


def points(value: float, baseline: float) -> str:
    """The difference in points (hundredths), with its sign."""
    text = "{:+.1f}".format(100.0 * (value - baseline))
    return "+0.0" if text == "-0.0" else text


def size(size_bytes: int) -> str:
    """A size in B, kB or MB."""
    if size_bytes < 10**4:
        return "{:,} B".format(size_bytes)
    if size_bytes < 10**6:
        return "{:.0f} kB".format(size_bytes / 1e3)
    return "{:.1f} MB".format(size_bytes / 1e6)


def baseline_of(rows: Sequence[Row], label: Optional[str]) -> Row:
    """The row that the others are compared with: the one with this label, or the first if it is None."""
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


def cells_of(rows: Sequence[Row], label: Optional[str]) -> List[Tuple[str, ...]]:
    """The cells as text, a tuple for each row in the order of HEADERS. The baseline has no differences."""
    baseline = baseline_of(rows, label)
    cells = []
    for item in rows:
        other = item is not baseline
        cells.append(
            (
                item.label,
                "{:.1f}".format(100.0 * item.map),
                points(item.map, baseline.map) if other else "",
                "{:.1f}".format(100.0 * item.map50),
                points(item.map50, baseline.map50) if other else "",
                size(item.size_bytes),
                "-" if item.latency_ms is None else "{:.1f} ms".format(item.latency_ms),
            )
        )
    return cells


def note_of(rows: Sequence[Row], label: Optional[str]) -> str:
    """The sentence below the table; it names the baseline."""
    text = "mAP at overlaps .50 to .95 and at .50, in percent"
    if len(rows) > 1:
        text += "; points against {}".format(baseline_of(rows, label).label)
    return text


def as_json(rows: Sequence[Row], baseline: Optional[str] = None) -> Dict[str, Any]:
    """The comparison as a value for JSON, with its differences in points.

    Args:
      rows: the models.
      baseline: as for to_text.

    Raises:
      DataError: if there are no rows.
      ConfigError: if no row has the baseline's label.
    """
    compared = baseline_of(rows, baseline)
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


def to_text(rows: Sequence[Row], baseline: Optional[str] = None) -> str:
    """The comparison as plain text, at most 80 columns wide.

    Args:
      rows: the models.
      baseline: label of the model that the others are compared with; by default the first.

    Raises:
      DataError: if there are no rows.
      ConfigError: if no row has the baseline's label.
    """
    return laid_out(HEADERS, cells_of(rows, baseline), note_of(rows, baseline))


def laid_out(headers: Sequence[str], cells: Sequence[Sequence[str]], note: str) -> str:
    """A table as plain text, at most 80 columns wide, its first column to the left."""
    cells = [headers] + list(cells)
    widths = [max(len(line[column]) for line in cells) for column in range(len(headers))]
    # The model's name gets the width that the numbers leave.
    widths[0] = min(widths[0], max(_COLUMNS - sum(widths[1:]) - 2 * (len(widths) - 1), 10))
    lines = []
    for line in cells:
        padded = [_shorten(line[0], widths[0]).ljust(widths[0])]
        padded += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:])]
        lines.append("  ".join(padded).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    lines += textwrap.wrap(note, _COLUMNS)
    return "\n".join(lines) + "\n"


def aligned(rows: Sequence[Sequence[str]]) -> List[str]:
    """Lines of cells, as wide as they are; the first column to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            [row[0].ljust(widths[0])] + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]
        ).rstrip()
        for row in rows
    ]


def _shorten(label: str, width: int) -> str:
    return label if len(label) <= width else label[: width - 3] + "..."


def print_table(rows: Sequence[Row], stream: Optional[TextIO] = None, baseline: Optional[str] = None) -> None:
    """Prints the comparison: a table on a terminal, plain text into a file or a pipe.

    Args:
      rows: the models.
      stream: by default standard output.
      baseline: as for to_text.

    Raises:
      DataError: if there are no rows.
      ConfigError: if no row has the baseline's label.
    """
    draw(HEADERS, cells_of(rows, baseline), note_of(rows, baseline), stream)


def draw(
    headers: Sequence[str], cells: Sequence[Sequence[str]], note: str, stream: Optional[TextIO] = None
) -> None:
    """Prints a table as :func:`print_table` does. Columns called `points` have their tone."""
    stream = stream or sys.stdout
    if not stream.isatty() or importlib.util.find_spec("rich") is None:  # (an optional package)
        stream.write(laid_out(headers, cells, note))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for number, header in enumerate(headers):
        table.add_column(header, justify="right" if number else "left", no_wrap=bool(number), overflow="fold")
    for line in cells:
        # Text, so that a label with brackets is not taken for markup.
        table.add_row(*[Text(cell, style=tone_of(header, cell)) for header, cell in zip(headers, line)])
    console = Console(file=stream)
    console.print(table)
    console.print(Text(note, style="dim"))


def tone_of(header: str, cell: str) -> str:
    """'green' for a gain, 'red' for a loss, '' for other cells and for differences below 0.5 points.

    Another training run with the same config could give such a difference.
    """
    if header != "points" or not cell:
        return ""
    value = float(cell)
    return "" if abs(value) < 0.5 else ("green" if value > 0 else "red")
