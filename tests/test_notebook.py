"""docs/notebook.ipynb: its commands exist, and Jupyter runs it, with few steps."""

import json
import os
import re
import shlex
import sys

import pytest

from tests.conftest import REPOSITORY
from tests.test_doc_commands import need_od_api, require_parsed, write_photos

PATH = os.path.join(REPOSITORY, "docs", "notebook.ipynb")
# The cell of a user's choices, for a test.
CHOICES = """
PHOTOS = "photos"
FLOAT_STEPS, QAT_STEPS = 4, 2
MORE = (
    "--override train_config.batch_size=2 --override model.ssd.feature_extractor.depth_multiplier=0.25 "
    "--override model.ssd.feature_extractor.min_depth=8"
)
"""


def read():
    with open(PATH, encoding="utf-8") as stream:
        return json.load(stream)


def code_cells():
    return ["".join(cell["source"]) for cell in read()["cells"] if cell["cell_type"] == "code"]


def commands():
    """The words of each command, with what Python fills in: folders, and flags, which are left out."""
    lines = [
        line[1:]
        for cell in code_cells()
        for line in cell.replace("\\\n", "").splitlines()
        if line.startswith("!")
    ]
    lines = [line.replace("{CONFIGS}", "configs").replace("{PHOTOS}", "photos") for line in lines]
    return [shlex.split(re.sub(r"\{[^}]*\}", "", line)) for line in lines]


def test_it_is_saved_without_outputs():
    content = read()
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in content["cells"]}) == len(content["cells"])
    for cell in content["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)


def test_its_links_lead_to_pages():
    text = "".join("".join(cell["source"]) for cell in read()["cells"])
    pages = re.findall(r"\]\(([\w./-]+)(?:#[\w-]+)?\)", text)
    assert pages and all(os.path.isfile(os.path.join(REPOSITORY, "docs", page)) for page in pages)


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_its_commands_exist(words):
    assert words[0] == "od-qat"
    require_parsed(words[1:])


@pytest.mark.long
def test_jupyter_runs_it(tmp_path, monkeypatch):
    nbclient = pytest.importorskip("nbclient", reason="requirements/notebook.in is not installed")
    import nbformat

    need_od_api()
    write_photos(str(tmp_path / "photos"))
    content = nbformat.read(PATH, as_version=4)
    (choices,) = [cell for cell in content.cells if "FLOAT_STEPS, QAT_STEPS =" in cell.source]
    choices.source = CHOICES
    # The command, as an installation would have it.
    (tmp_path / "bin").mkdir()
    script = tmp_path / "bin" / "od-qat"
    script.write_text('#!/bin/sh\nexec {} -m od_qat "$@"\n'.format(sys.executable))
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path / "bin") + os.pathsep + os.environ["PATH"])
    monkeypatch.setenv("PYTHONPATH", REPOSITORY + os.pathsep + os.environ.get("PYTHONPATH", ""))
    nbclient.NotebookClient(
        content, timeout=1200, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    said = "\n".join(output.get("text", "") for cell in content.cells for output in cell.get("outputs", ()))
    assert "error:" not in said, said[-3000:]
    for name in ("out/tflite/labels.txt", "out/report/report.html", "out/detected/image0.png"):
        assert (tmp_path / name).is_file(), said[-3000:]
    assert re.search(r"\d+ detections in 8 pictures", said)
    assert "Was quantization-aware training worth it?" in said
