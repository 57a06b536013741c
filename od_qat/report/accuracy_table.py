"""Makes the table that compares scored classifiers."""

from typing import Any, List, NamedTuple, Optional, Sequence, TextIO, Tuple

from od_qat.report import table

HEADERS = ("model", "accuracy", "points", "size", "latency")


class Row(NamedTuple):
    """One model in a comparison.

    Attributes:
      label: what to call it.
      accuracy: 0 to 1.
      size_bytes: of the file.
      latency_ms: median milliseconds for one image; None if it was not measured.
    """

    label: str
    accuracy: float
    size_bytes: int
    latency_ms: Optional[float] = None


def row(label: str, score: Any) -> Row:
    """The row of a classifiers.score.ClassifierScore."""
    return Row(label, score.accuracy, score.size_bytes, score.latency_ms)


def cells_of(rows: Sequence[Row]) -> List[Tuple[str, ...]]:
    """The cells as text, in the order of HEADERS. The first row is what the others are compared with."""
    return [
        (
            item.label,
            "{:.1f}".format(100 * item.accuracy),
            table.points(item.accuracy, rows[0].accuracy) if number else "",
            table.size(item.size_bytes),
            "-" if item.latency_ms is None else "{:.2f} ms".format(item.latency_ms),
        )
        for number, item in enumerate(rows)
    ]


def note_of(rows: Sequence[Row]) -> str:
    """The sentence below the table."""
    return "accuracy in percent" + ("; points against {}".format(rows[0].label) if len(rows) > 1 else "")


def print_table(rows: Sequence[Row], stream: Optional[TextIO] = None) -> None:
    """Prints the comparison."""
    table.draw(HEADERS, cells_of(rows), note_of(rows), stream)
