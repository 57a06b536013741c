"""tf.contrib.quantize's own tests: which hold for od_qat, and which cannot (contrib_tests.yaml)."""

import json
import os

import pytest
import yaml

from od_qat.compat import IS_TF1

FOLDER = os.environ.get("OD_QAT_CONTRIB_TESTS")
pytestmark = [
    pytest.mark.tf1,
    pytest.mark.skipif(
        not FOLDER,
        reason="OD_QAT_CONTRIB_TESTS names no folder of contrib's tests "
        "(TensorFlow 1.15, tensorflow/contrib/quantize/python)",
    ),
]
WAYS = ["instead"] + (["beside"] if IS_TF1 else [])

with open(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "contrib_tests.yaml"), encoding="utf-8"
) as stream:
    EXPECTED = yaml.safe_load(stream)


@pytest.mark.timeout(3000)
@pytest.mark.parametrize("way, file", [(way, file) for way in WAYS for file in EXPECTED[way]])
def test_contribs_tests_pass_but_for_what_is_listed(way, file, run_python):
    path = os.path.join(FOLDER, file + ".py")
    done = run_python("-m", "tests.helpers.contrib_runner", way, path, timeout=3000)
    assert done.status == 0, done.errors[-2000:]
    result = json.loads(done.output.splitlines()[-1])
    failing = {
        test: "{} of {}".format(len(found["failed"]), len(found["failed"]) + found["passed"])
        for test, found in result.items()
        if found["failed"]
    }
    listed = EXPECTED[way][file]
    errors = {test: list(result[test]["failed"].items())[:1] for test in failing if test not in listed}
    assert failing == {test: one["fails"] for test, one in listed.items()}, errors
    assert any(found["passed"] for found in result.values())


def test_every_exception_has_its_reason():
    reasons = [
        one["why"] for files in EXPECTED.values() for tests in files.values() for one in tests.values()
    ]
    assert reasons and all(len(reason.split()) > 5 for reason in reasons)
