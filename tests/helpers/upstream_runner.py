"""Runs one of the OD API's own test modules with the plugin of its half in place.

    python -m tests.helpers.upstream_runner NAME [TEST ...]

does not run the tests that are named, as `Class.method`.

The last line is JSON, {"file": path, "passed": [...], "skipped": {test: reason}, "failed": {test: error},
"in_memory": [modules whose files lack what `od-qat patch` writes, so that the plugin changed them]}, tests as
`Class.method`. A process for each module: upstream's tests leave flags and default graphs behind.
"""

import importlib
import json
import sys
import unittest

TF2 = sys.argv[1].endswith("_tf2_test")
importlib.import_module("od_qat.plugin_tf2" if TF2 else "od_qat.plugin")  # (before object_detection)

from od_qat.od_api import source_changes  # noqa: E402

_PATCHED = {}
for _patch in source_changes.PATCHES:
    for _name_of, _rows in _patch.changes.items() if _patch.series and _patch.in_memory else ():
        _PATCHED[_name_of] = _PATCHED.get(_name_of, ()) + _rows
_QUANTIZE = (
    "from tensorflow.contrib import quantize as contrib_quantize",
    "import od_qat as contrib_quantize",
)
# What the tests themselves import of contrib: the rewriter becomes ours, on TensorFlow 1.15 too.
source_changes.SOURCE_CHANGES.update(
    {
        "object_detection.builders.graph_rewriter_builder_tf1_test": (_QUANTIZE,),
        "object_detection.models.ssd_mobiledet_feature_extractor_tf1_test": (_QUANTIZE,),
        "object_detection.models.ssd_spaghettinet_feature_extractor_tf1_test": (_QUANTIZE,),
        # For tests on a TPU.
        "object_detection.utils.test_case": (
            ("from tensorflow.contrib import tpu as contrib_tpu", "contrib_tpu = None"),
        ),
    }
)


class _Result(unittest.TestResult):
    def __init__(self):
        super(_Result, self).__init__()
        self.passed = []
        self.skipped_for = {}
        self.failed = {}

    def addSuccess(self, test):
        self.passed.append(_name(test))

    def addSkip(self, test, reason):
        if not test.id().endswith(".test_session"):  # (TensorFlow's own, in every test case)
            self.skipped_for[_name(test)] = reason

    def addError(self, test, error):
        self._fail(test, error)

    def addFailure(self, test, error):
        self._fail(test, error)

    def addSubTest(self, test, subtest, error):
        if error is not None:
            self._fail(test, error)

    def _fail(self, test, error):
        text = " ".join(str(error[1]).split())
        self.failed[_name(test)] = "{}: {}".format(error[0].__name__, text[:300])


def _name(test):
    return ".".join(test.id().split(".")[-2:])


def _is_patched(name):
    """Whether the file of a module has what `od-qat patch` writes."""
    with open(sys.modules[name].__file__, encoding="utf-8") as stream:
        source = stream.read().replace("\r\n", "\n")
    return source_changes.changed(source, _PATCHED[name]) == source


def _chosen(suite, left_out):
    """The tests of a suite but for some."""
    for one in suite:
        if isinstance(one, unittest.TestSuite):
            yield from _chosen(one, left_out)
        elif _name(one) not in left_out:
            yield one


def main(module, *left_out):
    from absl import flags

    flags.FLAGS(sys.argv[:1])
    tests = importlib.import_module(module)
    result = _Result()
    loaded = unittest.defaultTestLoader.loadTestsFromModule(tests)
    unittest.TestSuite(_chosen(loaded, left_out)).run(result)
    in_memory = [name for name in sorted(_PATCHED) if name in sys.modules and not _is_patched(name)]
    found = {"passed": result.passed, "skipped": result.skipped_for, "failed": result.failed}
    print(json.dumps(dict(found, file=tests.__file__, in_memory=in_memory)))


if __name__ == "__main__":
    main(*sys.argv[1:])
