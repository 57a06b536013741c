"""What README and docs/ say is what the code knows: tables, links and commands."""

import os
import re

import pytest

from tests import doc_tables
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.tf1

_DOCS = sorted(name for name in os.listdir(os.path.join(REPOSITORY, "docs")) if name.endswith(".md"))
PAGES = ["README.md", "patches/README.md"] + ["docs/" + name for name in _DOCS]


def read(page):
    """The text of a page."""
    with open(os.path.join(REPOSITORY, page), encoding="utf-8") as stream:
        return stream.read()


@pytest.mark.parametrize("table", doc_tables.TABLES, ids=lambda table: os.path.basename(table.page))
def test_a_made_table_is_what_its_generator_makes(table):
    assert read(table.page) == doc_tables.filled(table), "run `python -m tests.doc_tables`"
    assert "not run" not in table.make()


def test_the_readme_is_short():
    assert len(read("README.md").splitlines()) <= 150


def anchors(page):
    """The anchors that GitHub gives a page's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", read(page), flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    wrong = []
    for target in re.findall(r"\]\(([^)#]*(?:#[^)]*)?)\)", read(page)):
        path, _, anchor = target.partition("#")
        if "://" in path:
            continue
        there = os.path.normpath(os.path.join(os.path.dirname(page), path)) if path else page
        if not os.path.exists(os.path.join(REPOSITORY, there)):
            wrong.append(target)
        elif anchor and anchor not in anchors(there):
            wrong.append(target)
    assert wrong == []


def test_every_page_is_reached_from_the_readme():
    linked = set(re.findall(r"\]\((docs/[a-z0-9_]+\.md)\)", read("README.md")))
    assert {page for page in PAGES if page.startswith("docs")} == linked
