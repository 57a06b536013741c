"""The tables in docs/ that are made from what the code or the tests know.

    python -m tests.doc_tables

writes each between its marks; what stands around it is written by hand. test_readme.py compares.
"""

import os
from typing import Callable, NamedTuple, Tuple

from od_qat.files import write_atomically
from od_qat.rewrite import policy
from tests.conftest import REPOSITORY
from tests.generations import matrix


class Table(NamedTuple):
    """A table, the page that it stands in, and the marks around it."""

    page: str
    first: str
    last: str
    make: Callable[[], str]


TABLES: Tuple[Table, ...] = (
    Table(
        os.path.join(REPOSITORY, "docs", "supported_ops.md"),
        "<!-- ops: made by `python -m tests.doc_tables` from od_qat/rewrite/policy.py -->",
        "<!-- end of ops -->",
        policy.table,
    ),
    Table(
        os.path.join(REPOSITORY, "docs", "commands.md"),
        "<!-- matrix: made by `python -m tests.doc_tables` from tests/generations/matrix.json -->",
        "<!-- end of matrix -->",
        lambda: matrix.table(matrix.load()),
    ),
)


def filled(table: Table) -> str:
    """The page's text with the table as it should be now."""
    with open(table.page, encoding="utf-8") as stream:
        before, first, rest = stream.read().partition(table.first)
    _, last, after = rest.partition(table.last)
    if not first or not last:
        raise ValueError("{} lacks the marks {} and {}".format(table.page, table.first, table.last))
    return "{}{}\n{}\n{}{}".format(before, first, table.make(), last, after)


def write() -> None:
    """Makes all tables anew."""
    for table in TABLES:
        write_atomically(table.page, filled(table))


if __name__ == "__main__":
    write()
