"""The whole programs of docs/python.md: from a graph of one's own to a .tflite that is run."""

import os
import re

import pytest

from tests.conftest import REPOSITORY

pytestmark = pytest.mark.tf1


def blocks():
    """Kind -> the text of the blocks of that kind."""
    with open(os.path.join(REPOSITORY, "docs", "python.md"), encoding="utf-8") as stream:
        return dict(re.findall(r"^```python (\w+)\n(.*?)^```$", stream.read(), re.M | re.S))


def programs():
    """The program of the page, and the same with what it shows for Keras in the places of its own lines."""
    shown = blocks()
    whole, keras = shown["whole"], shown["keras"]
    before, own = whole.split("def network(")[0], whole.split("    od_qat.create_eval_graph()")[1]
    return {"whole": whole, "keras": before + keras + "    od_qat.create_eval_graph()" + own}


@pytest.mark.parametrize("name", ["whole", "keras"])
def test_it_runs(name, tmp_path, monkeypatch, run_python):
    monkeypatch.chdir(tmp_path)
    done = run_python("-c", programs()[name], timeout=300)
    assert done.status == 0, done.errors[-2000:]
    assert done.output.splitlines()[0].startswith("quantized 2 weights and 2 activations")
    assert int(re.search(r"right: (\d+) of 200", done.output).group(1)) > 190
