"""The OD API's own tests of what od_qat touches, with the plugin in place (upstream.yaml)."""

import json
import os

import pytest
import yaml

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

pytestmark = [pytest.mark.tf1, pytest.mark.matrix]

with open(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "upstream.yaml"), encoding="utf-8"
) as stream:
    EXPECTED = yaml.safe_load(stream)


@pytest.mark.parametrize("module", EXPECTED["modules"])
def test_upstreams_tests_pass_but_for_what_is_listed(module, run_python):
    expected = EXPECTED["exceptions"].get(module, {})
    done = run_python("-m", "tests.upstream_runner", module, timeout=540)
    assert done.status == 0, done.errors[-2000:]
    result = json.loads(done.output.splitlines()[-1])
    assert set(result["failed"]) == set(expected), result["failed"]
    assert result["skipped"] == {}  # (one that is skipped has not passed)
