"""Writes a comparison of models as report.json, report.md and report.html, a page that loads nothing else."""

import base64
import dataclasses
import html
import os
from typing import Any, Dict, List, Optional, Sequence

from od_qat.errors import DataError
from od_qat.files import write_atomically, write_json
from od_qat.report.table import HEADERS, Row, baseline_of, cells_of, note_of, tone_of

FORMAT = "od_qat_report/1"
TITLE = "Quantization report"

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
_PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n<h1>{title}</h1>\n"
    '<div class="table"><table>\n<thead><tr>{head}</tr></thead>\n'
    "<tbody>\n{body}\n</tbody>\n</table></div>\n"
    '<p class="note">{note}</p>\n{conclusion}{figures}\n</body>\n</html>\n'
)
# The CSS class of a cell, by tone_of.
_CLASSES = {"red": "loss", "green": "gain"}


def to_markdown(rows: Sequence[Row], baseline: Optional[str] = None, conclusion: str = "") -> str:
    """The comparison as a Markdown table.

    Args:
      rows: the models.
      baseline: as for to_text.
      conclusion: a sentence below the table.

    Raises:
      DataError: if there are no rows.
      ConfigError: if no row has the baseline's label.
    """
    cells = [
        [cell.replace("|", "\\|").replace("\n", " ") for cell in line] for line in cells_of(rows, baseline)
    ]
    lines = ["| " + " | ".join(HEADERS) + " |", "| --- |" + " ---: |" * (len(HEADERS) - 1)]
    lines += ["| " + " | ".join(line) + " |" for line in cells]
    text = "\n".join(lines) + "\n\n" + note_of(rows, baseline) + "\n"
    return text + ("\n" + conclusion + "\n" if conclusion else "")


def to_json(rows: Sequence[Row], baseline: Optional[str] = None) -> Dict[str, Any]:
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


def write_report(
    output_dir: str,
    rows: Sequence[Row],
    pictures: Sequence[str] = (),
    title: str = TITLE,
    baseline: Optional[str] = None,
    conclusion: str = "",
) -> List[str]:
    """Writes report.json, report.md and report.html.

    Args:
      output_dir: folder for the files; it is made if it is missing.
      rows: the models.
      pictures: PNG files for the HTML.
      title: title of the HTML.
      baseline: label of the model that the others are compared with; by default the first.
      conclusion: a sentence below the table.

    Returns:
      the paths written.

    Raises:
      DataError: if there are no rows, or if a picture cannot be read; nothing is written then.
      ConfigError: if no row has the baseline's label.
      OdQatError: if the folder cannot be written.
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


def to_html(
    rows: Sequence[Row],
    pictures: Sequence[str] = (),
    title: str = TITLE,
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
      DataError: if there are no rows, or if a picture cannot be read.
      ConfigError: if no row has the baseline's label.
    """
    return _PAGE.format(
        title=html.escape(title),
        style=_STYLE,
        head="".join("<th>{}</th>".format(html.escape(header)) for header in HEADERS),
        body="\n".join(map(_html_row, cells_of(rows, baseline))),
        note=html.escape(note_of(rows, baseline)),
        conclusion="<p>{}</p>\n".format(html.escape(conclusion)) if conclusion else "",
        figures="\n".join(map(_html_figure, pictures)),
    )


def _html_row(cells: Sequence[str]) -> str:
    columns = []
    for header, cell in zip(HEADERS, cells):
        kind = _CLASSES.get(tone_of(header, cell))
        columns.append("<td{}>{}</td>".format(' class="%s"' % kind if kind else "", html.escape(cell)))
    return "<tr>{}</tr>".format("".join(columns))


def _html_figure(path: str) -> str:
    try:
        with open(path, "rb") as stream:
            data = base64.b64encode(stream.read()).decode("ascii")
    except OSError as error:
        raise DataError("cannot read the picture", where=path, found=error.strerror) from error
    caption = html.escape(os.path.splitext(os.path.basename(path))[0])
    return (
        '<figure><figcaption>{0}</figcaption><img alt="{0}" src="data:image/png;base64,{1}"></figure>'.format(
            caption, data
        )
    )
