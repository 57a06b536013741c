"""The parts that pages are made of: escaped text, tables that sort, pictures; and the style of it all.

A page loads nothing: its style, its script and its pictures are in it.
"""

import base64
import html
from typing import Any, Iterable, List, NamedTuple, Optional, Sequence, Union

_STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --quiet: #57606a; --page: #fff; --line: #d8dee4;
  --panel: #f6f8fa; --loss: #b3261e; --gain: #1a7f37; --accent: #0b57d0; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --quiet: #9198a1; --page: #0d1117;
  --line: #30363d; --panel: #161b22; --loss: #ff7b72; --gain: #3fb950; --accent: #79b0ff; } }
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); margin: 0 auto;
  max-width: 76rem; padding: 1rem; }
h1 { font-size: 1.5rem; margin: 1rem 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem; border-top: 1px solid var(--line); padding-top: 1.5rem; }
h3 { font-size: 1rem; margin: 1.5rem 0 .5rem; overflow-wrap: anywhere; }
p { max-width: 46rem; overflow-wrap: anywhere; }
a { color: var(--accent); }
nav a { margin-right: 1rem; white-space: nowrap; }
.quiet, figcaption { color: var(--quiet); font-size: .9rem; }
dl.answers { max-width: 60rem; }
dl.answers dt { font-weight: 600; margin-top: .8rem; }
dl.answers dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; }
.scroll { overflow-x: auto; }
.tall { max-height: 34rem; overflow-y: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th { font-weight: 600; background: var(--page); position: sticky; top: 0; }
th:first-child, td:first-child { text-align: left; }
td:first-child { white-space: normal; overflow-wrap: anywhere; min-width: 9rem; max-width: 26rem; }
.tall td:first-child { min-width: 16rem; }
td.loss, p.loss { color: var(--loss); } td.gain { color: var(--gain); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0; cursor: pointer; }
th button::after { content: " \\2195"; color: var(--quiet); font-weight: 400; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
th[aria-sort=descending] button::after { content: " \\2193"; }
input[type=search] { font: inherit; color: inherit; background: var(--panel); border: 1px solid var(--line);
  border-radius: .3rem; padding: .3rem .6rem; width: 100%; max-width: 22rem; margin: .5rem 0; }
pre { background: var(--panel); padding: .6rem .8rem; overflow-x: auto; border-radius: .3rem; }
details { margin: .5rem 0; } summary { cursor: pointer; }
figure { margin: 1.2rem 0; } figure img { max-width: 100%; height: auto; display: block; }
svg.plot { width: 100%; min-width: 34rem; max-width: 46rem; height: auto; font: 12px system-ui, sans-serif; }
svg.plot line { stroke: var(--line); } svg.plot text.axis { fill: var(--quiet); }
svg.plot text.label { fill: var(--text); }
.bubble { fill-opacity: .55; stroke-width: 1.5; }
.c0 { fill: #4c8bf5; stroke: #4c8bf5; } .c1 { fill: #e69f00; stroke: #e69f00; }
.c2 { fill: #1a9e77; stroke: #1a9e77; } .c3 { fill: #cc79a7; stroke: #cc79a7; }
.c4 { fill: #d55e00; stroke: #d55e00; } .c5 { fill: #8a8f98; stroke: #8a8f98; }
svg.histogram rect.in { fill: var(--quiet); } svg.histogram rect.out { fill: var(--loss); }
@media (max-width: 40rem) { figure { overflow-x: auto; } figure img { max-width: none; height: 60vw; } }
"""
# Sorts the rows of a table by a column, by numbers where the cells have them, and shows the rows of a search.
_SCRIPT = """
document.querySelectorAll("table.sorts").forEach(function (table) {
  var body = table.tBodies[0];
  table.querySelectorAll("th").forEach(function (head, column) {
    head.querySelector("button").addEventListener("click", function () {
      var falling = head.getAttribute("aria-sort") === "descending" ? 1 : -1;
      table.querySelectorAll("th").forEach(function (one) { one.removeAttribute("aria-sort"); });
      head.setAttribute("aria-sort", falling < 0 ? "descending" : "ascending");
      Array.from(body.rows).map(function (row) {
        var cell = row.cells[column], number = parseFloat(cell.dataset.value);
        return { row: row, number: number, text: cell.textContent };
      }).sort(function (a, b) {
        if (isNaN(a.number) !== isNaN(b.number)) { return isNaN(a.number) ? 1 : -1; }
        var order = isNaN(a.number) ? a.text.localeCompare(b.text) : a.number - b.number;
        return order * falling;
      }).forEach(function (one) { body.appendChild(one.row); });
    });
  });
});
document.querySelectorAll("input[type=search]").forEach(function (input) {
  var table = document.getElementById(input.dataset.table);
  input.addEventListener("input", function () {
    var wanted = input.value.toLowerCase();
    Array.from(table.tBodies[0].rows).forEach(function (row) {
      row.hidden = row.cells[0].textContent.toLowerCase().indexOf(wanted) < 0;
    });
  });
});
"""
_PAGE = (
    '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
    '<link rel="icon" href="data:,">\n'
    "<title>{title}</title>\n<style>{style}</style>\n</head>\n<body>\n{body}\n<script>{script}</script>\n"
    "</body>\n</html>\n"
)


class Cell(NamedTuple):
    """A cell of a table.

    Attributes:
      text: what it shows.
      value: by which its column is sorted; None for its text.
      tone: 'loss', 'gain' or ''.
      markup: HTML in place of the text.
    """

    text: str
    value: Optional[float] = None
    tone: str = ""
    markup: Optional[str] = None


def page(title: str, parts: Iterable[str]) -> str:
    """A whole document of parts, each HTML."""
    return _PAGE.format(title=html.escape(title), style=_STYLE, body="\n".join(parts), script=_SCRIPT)


def text(tag: str, content: str, kind: str = "") -> str:
    """An element with text in it."""
    return "<{0}{1}>{2}</{0}>".format(
        tag, ' class="{}"'.format(kind) if kind else "", html.escape(content, quote=False)
    )


def section(name: str, title: str, parts: Iterable[str]) -> str:
    """A section that links can lead to."""
    return '<section id="{}">\n{}\n{}\n</section>'.format(name, text("h2", title), "\n".join(parts))


def details(title: str, parts: Iterable[str]) -> str:
    """Parts that a click on the title shows."""
    return "<details>{}\n{}\n</details>".format(text("summary", title), "\n".join(parts))


def scrolls(part: str) -> str:
    """A part that is moved sideways where the screen is narrower."""
    return '<div class="scroll">{}</div>'.format(part)


def link(target: str, content: str) -> str:
    """A link to a section of the page."""
    return '<a href="#{}">{}</a>'.format(target, html.escape(content))


def table(
    headers: Sequence[str],
    rows: Iterable[Sequence[Union[str, Cell]]],
    name: Optional[str] = None,
    search: str = "",
    tall: bool = False,
) -> str:
    """A table; with a name, its columns sort it when their titles are clicked.

    Args:
      headers: titles of the columns.
      rows: cells, of each row as many as there are headers.
      name: unique on the page.
      search: what a search field above it is called; it shows the rows whose first cell has the text.
      tall: whether it scrolls by itself where it is long.
    """
    heads = [_head(header, name is not None) for header in headers]
    lines = [_row(row) for row in rows]
    attributes = ' class="sorts" id="{}"'.format(name) if name else ""
    field = ""
    if search and name:
        field = '<input type="search" data-table="{0}" placeholder="{1}" aria-label="{1}">\n'.format(
            name, html.escape(search, quote=True)
        )
    return (
        '{}<div class="scroll{}"><table{}>\n<thead><tr>{}</tr></thead>\n<tbody>\n{}\n</tbody></table></div>'
    ).format(field, " tall" if tall else "", attributes, "".join(heads), "\n".join(lines))


def _head(title: str, sorts: bool) -> str:
    shown = html.escape(title)
    return "<th>{}</th>".format('<button type="button">{}</button>'.format(shown) if sorts else shown)


def _row(cells: Sequence[Union[str, Cell]]) -> str:
    found: List[str] = []
    for one in cells:
        cell = Cell(one) if isinstance(one, str) else one
        found.append(
            "<td{}{}>{}</td>".format(
                ' class="{}"'.format(cell.tone) if cell.tone else "",
                "" if cell.value is None else ' data-value="{!r}"'.format(float(cell.value)),
                html.escape(cell.text) if cell.markup is None else cell.markup,
            )
        )
    return "<tr>{}</tr>".format("".join(found))


def picture(data: bytes, caption: str, kind: str = "jpeg") -> str:
    """A picture with its caption; `kind` is png or jpeg."""
    shown = html.escape(caption, quote=True)
    encoded = base64.b64encode(data).decode("ascii")
    image = '<img alt="{}" src="data:image/{};base64,{}">'.format(shown, kind, encoded)
    return "<figure><figcaption>{}</figcaption>{}</figure>".format(shown, image)


def number(value: Any, shown: str) -> Cell:
    """A cell that is sorted by a number; an empty one without it."""
    return Cell("-") if value is None else Cell(shown.format(value), float(value))
