"""The OD API's own tests of what od_qat touches, with the plugin and in a patched tree (upstream.yaml)."""

import fnmatch
import json
import os
import shutil

import pytest
import yaml

from od_qat.compat import IS_TF1
from od_qat.od_api import patching
from tests.generations import road
from tests.helpers import tiny_detector

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

pytestmark = [pytest.mark.tf1, pytest.mark.long]

with open(
    os.path.join(os.path.dirname(os.path.abspath(__file__)), "upstream.yaml"), encoding="utf-8"
) as stream:
    EXPECTED = yaml.safe_load(stream)


# What model_lib_tf2_test reads, and the package of the OD API does not have: a config, a record, a label map.
_CONFIG = os.path.join("samples", "configs", "ssd_mobilenet_v2_pets_keras.config")
_RECORD = os.path.join("test_data", "pets_examples.record")
_LABEL_MAP = os.path.join("data", "pet_label_map.pbtxt")


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    """Two copies of the installed OD API by way, `plugin` as it is and `patches`, with our data in both."""
    source, folder = patching.find_tree(road.installed()), str(tmp_path_factory.mktemp("od_api"))
    copies = {way: road.copy(source, os.path.join(folder, way)) for way in ("plugin", "patches")}
    patching.patch(copies["patches"])
    record, label_map = tiny_detector.write_data(folder)
    config = tiny_detector.write_config(folder, False, "float", tf2=True)
    for tree in copies.values():
        for path, name in ((config, _CONFIG), (record, _RECORD), (label_map, _LABEL_MAP)):
            target = os.path.join(tree, "object_detection", name)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            shutil.copy(path, target)
    return copies


@pytest.mark.parametrize("way", ["plugin", "patches"])
@pytest.mark.parametrize("module", EXPECTED["modules"])
def test_upstreams_tests_pass_but_for_what_is_listed(module, way, trees, run_python):
    if IS_TF1 and module.endswith("_tf2_test"):
        pytest.skip("the TF 2 half needs TensorFlow 2")
    expected = EXPECTED["exceptions"].get(module, {})
    path = [trees[way], os.path.join(trees[way], "slim")] + [os.environ.get("PYTHONPATH")]
    environment = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "OD_API": ""}
    environment["TF2_BEHAVIOR"] = "0" if IS_TF1 else "1"
    arguments = ["-m", "tests.helpers.upstream_runner", module] + sorted(EXPECTED["left_out"].get(module, {}))
    done = run_python(*arguments, timeout=1500, env=environment)
    assert done.status == 0, done.errors[-2000:]
    result = json.loads(done.output.splitlines()[-1])
    assert result["file"].startswith(trees[way])
    assert way == "plugin" or not result["in_memory"], result["in_memory"]
    if not module.endswith("_tf2_test"):  # (of an extractor's module nothing is changed)
        assert result["in_memory"] or way != "plugin"
    for kind, is_expected in (("failed", True), ("passed", False)):
        matched = {one: any(fnmatch.fnmatchcase(one, name) for name in expected) for one in result[kind]}
        assert set(matched.values()) <= {is_expected}, result[kind]
    assert all(fnmatch.filter(result["failed"], name) for name in expected), result["passed"]
    assert result["passed"] or expected  # (of the builder's two tests both are listed)
    # (One that is skipped has not passed.)
    skipped = EXPECTED["skipped"].get(module, {})
    assert all(any(fnmatch.fnmatchcase(one, name) for name in skipped) for one in result["skipped"])
    assert all(fnmatch.filter(result["skipped"], name) for name in skipped), result["skipped"]
