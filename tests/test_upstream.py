"""The OD API's own tests of what od_qat touches, with the plugin and in a patched tree (upstream.yaml)."""

import json
import os

import pytest
import yaml

from od_qat.od_api import patching
from tests.generations import road

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

pytestmark = [pytest.mark.tf1, pytest.mark.long]

with open(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "upstream.yaml"), encoding="utf-8"
) as stream:
    EXPECTED = yaml.safe_load(stream)


@pytest.fixture(scope="module")
def patched(tmp_path_factory):
    """A patched copy of the installed OD API."""
    source = patching.find_tree(road.installed())
    tree = road.copy(source, str(tmp_path_factory.mktemp("od_api") / "research"))
    patching.patch(tree)
    return tree


@pytest.mark.parametrize("way", ["plugin", "patches"])
@pytest.mark.parametrize("module", EXPECTED["modules"])
def test_upstreams_tests_pass_but_for_what_is_listed(module, way, patched, run_python):
    expected = EXPECTED["exceptions"].get(module, {})
    path = [patched, os.path.join(patched, "slim")] if way == "patches" else []
    path = os.pathsep.join(path + list(filter(None, [os.environ.get("PYTHONPATH")])))
    environment = {"PYTHONPATH": path, "OD_API": ""}
    done = run_python("-m", "tests.helpers.upstream_runner", module, timeout=540, env=environment)
    assert done.status == 0, done.errors[-2000:]
    result = json.loads(done.output.splitlines()[-1])
    assert result["file"].startswith(patched) == (way == "patches")
    assert bool(result["in_memory"]) == (way == "plugin"), result["in_memory"]
    assert set(result["failed"]) == set(expected), result["failed"]
    assert result["passed"] or expected  # (of the builder's two tests both are listed)
    assert result["skipped"] == {}  # (one that is skipped has not passed)
