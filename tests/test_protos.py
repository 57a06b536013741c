"""Protos that nobody has compiled: a clone of upstream's repository, under the plugin and patched."""

import os
import shutil
import subprocess
import sys

import pytest

from od_qat.cli import doctor
from od_qat.errors import EnvironmentProblem
from od_qat.od_api import locate, patching, protos
from tests.conftest import REPOSITORY
from tests.generations import road
from tests.helpers import proto_source
from tests.test_patching import KILLED, content, needs_od_api

pytestmark = [pytest.mark.tf1, pytest.mark.usefixtures("path_as_it_was"), needs_od_api]

# Every definition that was compiled, in a form of its own of the file it came from.
_DEFINITIONS = (
    "import importlib, json, os, sys\n"
    "import od_qat.plugin\n"
    "from google.protobuf import descriptor_pb2\n"
    "names = sys.argv[1].split(',')\n"
    "found = {}\n"
    "for name in names:\n"
    "    module = importlib.import_module('object_detection.protos.' + name + '_pb2')\n"
    "    proto = descriptor_pb2.FileDescriptorProto()\n"
    "    module.DESCRIPTOR.CopyToProto(proto)\n"
    "    found[name] = str(proto)\n"
    "from object_detection.legacy import trainer\n"
    "config = importlib.import_module('object_detection.protos.pipeline_pb2').TrainEvalPipelineConfig()\n"
    "config.graph_rewriter.quantization.delay = 7\n"
    "print(json.dumps([trainer.__file__, found], sort_keys=True))\n"
)


@pytest.fixture(scope="module")
def _template(tmp_path_factory):
    tree = road.copy(patching.find_tree(road.installed()), str(tmp_path_factory.mktemp("clone") / "research"))
    locate.add_to_path()
    return tree, proto_source.write(tree)


@pytest.fixture
def clone(_template, tmp_path):
    """(a models/research folder without a *_pb2.py, the names of its protos)."""
    tree, names = _template
    return shutil.copytree(tree, str(tmp_path / "research")), names


def _definitions(run_python, tree, names):
    done = run_python(
        "-c", _DEFINITIONS, ",".join(names), env={"OD_API": tree, "PYTHONDONTWRITEBYTECODE": "1"}
    )
    assert done.status == 0, done.errors
    return done.output.splitlines()[-1]


@pytest.mark.long_on_tf1
def test_the_plugin_compiles_them_in_memory(clone, run_python):
    tree, names = clone
    before = content(tree)
    found = _definitions(run_python, tree, names)
    assert content(tree) == before
    assert os.path.join(tree, "object_detection") in found
    # The same as of the package, which has them compiled.
    with_them = shutil.copytree(tree, tree + "-compiled")
    folder = os.path.join(with_them, "object_detection", "protos")
    shutil.rmtree(folder)
    shutil.copytree(
        os.path.join(patching.find_tree(road.installed()).root, "object_detection", "protos"), folder
    )
    assert _definitions(run_python, with_them, names) == found.replace(tree, with_them)


def test_without_a_compiler_it_is_named(clone, monkeypatch):
    tree, names = clone
    monkeypatch.setattr(protos, "is_available", lambda: False)
    with pytest.raises(
        EnvironmentProblem, match="{} .proto files.*pip install grpcio-tools".format(len(names))
    ):
        protos.compile_missing(tree)
    with pytest.raises(EnvironmentProblem, match="pip install grpcio-tools"):
        patching.patch(tree, compile_protos=True)
    assert not os.path.exists(os.path.join(tree, patching.RECORD))
    patching.patch(tree)
    before = content(tree)
    with pytest.raises(EnvironmentProblem, match="pip install grpcio-tools"):
        patching.patch(tree, compile_protos=True)
    assert content(tree) == before


def test_they_go_into_the_tree_only_when_asked(clone, run_python):
    """At once, or into a tree that is patched already."""
    tree, names = clone
    before = content(tree)
    compiled = {"object_detection/protos/{}_pb2.py".format(name) for name in names}
    for first in ((), (False,)):
        for asked in first + (True,):
            outcome = patching.patch(tree, compile_protos=asked)
            assert asked == (compiled <= set(outcome.files))
            assert asked != ("{} of its protos are not compiled".format(len(names)) in outcome.message)
        assert not protos.missing(tree)
        assert "nothing to do" in patching.patch(tree, compile_protos=True).message
        patching.unpatch(tree)
        assert content(tree) == before


@pytest.mark.parametrize("calls", [3, 30])
def test_a_patching_that_was_killed_leaves_none(clone, calls):
    tree, _ = clone
    before = content(tree)
    done = subprocess.call(
        [sys.executable, "-c", KILLED, tree, str(calls), "compile"],
        env=dict(os.environ, PYTHONPATH=REPOSITORY),
    )
    assert done == 7 and content(tree) != before
    patching.unpatch(tree)
    assert content(tree) == before


def test_protoc_compiles_or_nothing_is_changed(clone):
    tree, _ = clone
    with open(os.path.join(tree, "object_detection", "protos", "mine.proto"), "w") as stream:
        stream.write(
            'syntax = "proto2"; package object_detection.protos; message Mine { optional Thine a = 1; }'
        )
    before = content(tree)
    with pytest.raises(EnvironmentProblem, match="protoc failed.*Thine"):
        patching.patch(tree, compile_protos=True)
    assert content(tree) == before


def test_the_doctor_knows(clone, monkeypatch):
    tree, names = clone

    def found():
        return {check.name: check for check in doctor.examine(tree, quick=True)}["its protos"]

    assert found().status == "ok" and "{} not compiled".format(len(names)) in found().found
    monkeypatch.setattr(protos, "is_available", lambda: False)
    assert found().status == "missing" and "grpcio-tools" in found().fix


def test_a_tree_without_any_is_named(clone, run_python):
    tree, names = clone
    for name in names:
        os.unlink(os.path.join(tree, "object_detection", "protos", name + ".proto"))
    done = run_python("-c", "import od_qat.plugin", env={"OD_API": tree})
    assert done.status == 1 and "has no protos" in done.errors and "pipeline.proto" in done.errors
