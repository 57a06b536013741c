"""The patches: into a tree and out of it to the byte, refusals, upstream's commands in a patched tree."""

import json
import os
import shutil
import stat
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from od_qat.cli import doctor
from od_qat.compat import IS_TF1
from od_qat.errors import OdQatError
from od_qat.od_api import old_protos, patching, source_changes
from tests import tiers
from tests.conftest import REPOSITORY
from tests.generations import fetch, record, road
from tests.helpers import tiny_detector

pytestmark = [pytest.mark.tf1, pytest.mark.usefixtures("path_as_it_was")]

FOLDER = os.environ.get("OD_QAT_GENERATIONS")
NO_FOLDER = "OD_QAT_GENERATIONS is not set to a folder filled by `make generations`"
TRAINER = "object_detection/legacy/trainer.py"
METRICS = "object_detection/utils/metrics.py"


needs_od_api = pytest.mark.skipif(road.installed() is None, reason="the OD API is not installed here")


# Patches a tree (`compile`: its protos too) and dies at a given call of os.replace.
KILLED = (
    "import os, sys\n"
    "from od_qat.od_api import patching\n"
    "replace, left = os.replace, [int(sys.argv[2])]\n"
    "def dying(source, target):\n"
    "    left[0] -= 1\n"
    "    return replace(source, target) if left[0] else os._exit(7)\n"
    "os.replace = dying\n"
    "patching.patch(sys.argv[1], compile_protos=bool(sys.argv[3]))\n"
)


def content(root):
    """Everything in a folder: path -> bytes and mode."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            with open(path, "rb") as stream:
                found[os.path.relpath(path, root)] = (stream.read(), stat.S_IMODE(os.stat(path).st_mode))
    return found


def _edit(tree, name, change):
    path = os.path.join(tree, *name.split("/"))
    with open(path, "rb") as stream:
        data = change(stream.read())
    with open(path, "wb") as stream:
        stream.write(data)


@pytest.fixture(scope="module")
def _template(tmp_path_factory):
    return road.copy(
        patching.find_tree(road.installed()), str(tmp_path_factory.mktemp("od_api") / "research")
    )


@pytest.fixture
def tree(_template, tmp_path):
    """A copy of the installed OD API that a test may change."""
    return shutil.copytree(_template, str(tmp_path / "research"))


def _generations():
    """Every tree, or the reason why there is none."""
    if FOLDER:
        return [pytest.param(pin, id=pin.folder) for pin in fetch.pins()]
    return [pytest.param(None, id="none", marks=pytest.mark.skip(reason=NO_FOLDER))]


# Scripts of slim that packages of the OD API leave out.
IN_CLONES = [
    "slim/{}.py".format(name)
    for name in ("train_image_classifier", "eval_image_classifier", "export_inference_graph")
]


@needs_od_api
class TestATree(object):
    def test_patch_and_unpatch_restore_every_byte(self, tree):
        os.chmod(os.path.join(tree, TRAINER), 0o640)
        before = content(tree)
        outcome = patching.patch(tree)
        after = content(tree)
        assert set(after) - set(before) == {os.path.normpath(patching.RECORD)}
        changed = {name for name in before if after[name] != before[name]}
        assert changed == {os.path.normpath(name) for name in outcome.files}
        assert after[os.path.normpath(TRAINER)][1] == 0o640
        assert patching.unpatch(tree).files == tuple(sorted(outcome.files))
        assert content(tree) == before

    def test_on_disk_is_what_the_plugin_makes_in_memory(self, tree):
        originals = patching.find_tree(shutil.copytree(tree, tree + "-original"))
        patching.patch(tree)
        for module, rows in source_changes.SOURCE_CHANGES.items():
            name = record.file_of(module)
            if originals.read(name) is None:
                assert name in IN_CLONES
                continue
            patched = patching.find_tree(tree).read(name).decode()
            if module in source_changes.PATCHES[-1].changes:
                continue  # changed in memory only
            assert patched == source_changes.changed(originals.read(name).decode(), rows), name
            assert source_changes.changed(patched, rows) == patched, name  # the plugin finds nothing to do
            compile(patched, name, "exec")

    def test_twice_is_a_no_op(self, tree):
        patching.patch(tree)
        before = content(tree)
        outcome = patching.patch(tree)
        assert (outcome.files, "nothing to do" in outcome.message) == ((), True)
        assert content(tree) == before
        patching.unpatch(tree)
        outcome = patching.unpatch(tree)
        assert (outcome.files, "nothing to do" in outcome.message) == ((), True)

    def test_check_says_and_does_nothing(self, tree):
        before = content(tree)
        would = patching.patch(tree, check=True)
        assert content(tree) == before
        assert would.files == patching.patch(tree).files
        before = content(tree)
        assert patching.unpatch(tree, check=True).files == would.files
        assert content(tree) == before

    def test_local_edits_are_refused_by_name(self, tree):
        _edit(tree, TRAINER, lambda data: data.replace(b"import functools", b"import functools  # mine"))
        _edit(tree, METRICS, lambda data: data.replace(b"np.NAN", b"0.0"))
        os.unlink(os.path.join(tree, "object_detection", "exporter.py"))
        before = content(tree)
        with pytest.raises(patching.PatchError) as refusal:
            patching.patch(tree)
        assert TRAINER + " (edited)" in refusal.value.found
        assert METRICS + " (no match)" in refusal.value.found
        assert "object_detection/exporter.py (not there)" in refusal.value.found
        assert refusal.value.found.count("(") == 3
        assert content(tree) == before

    @pytest.mark.parametrize(
        "old, new, why",
        [
            (b"import", b"import", "edited"),
            (b"from keras.applications", b"from tensorflow.keras.applications", "no match"),
        ],
    )
    def test_an_edit_that_only_the_nearest_series_touches_is_refused_too(self, tree, old, new, why):
        path = "object_detection/models/keras_models/resnet_v1.py"
        _edit(tree, path, lambda data: data.replace(old, new) + b"# mine\n")
        before = content(tree)
        with pytest.raises(patching.PatchError) as refusal:
            patching.patch(tree)
        assert refusal.value.found == "{} ({})".format(path, why)
        assert content(tree) == before

    @pytest.mark.parametrize(
        "program", ["patch -p1 -s --no-backup-if-mismatch -i", "git apply --unidiff-zero"]
    )
    def test_by_hand_they_do_the_same(self, tree, program):
        """What patches/README.md says of patch and git."""
        if not shutil.which(program.split()[0]):
            pytest.skip("there is no {} here".format(program.split()[0]))
        by_hand = shutil.copytree(tree, tree + "-by-hand")
        patching.patch(tree)
        os.unlink(os.path.join(tree, patching.RECORD))
        for name in patching.names_of("2022"):
            if name == "image-classifiers.patch":
                continue  # (a package has no such scripts)
            subprocess.check_call(program.split() + [os.path.join(patching.FOLDER, name)], cwd=by_hand)
        assert content(by_hand) == content(tree)

    @pytest.mark.parametrize("how_many", [1, None])
    def test_a_tree_that_was_restored_by_other_means_is_patched_again(self, tree, how_many):
        originals = shutil.copytree(tree, tree + "-original")
        names = patching.patch(tree).files
        patched = content(tree)
        for name in names[:how_many]:  # (the record is no file of git's, and stays)
            shutil.copy2(os.path.join(originals, name), os.path.join(tree, name))
        (patches,) = [c for c in doctor.examine(tree, quick=True) if c.name == "patches"]
        assert (patches.status, "no longer in" in patches.found) == ("problem", True)
        assert patching.patch(tree, check=True).files == names
        assert patching.patch(tree).files == names
        assert content(tree) == patched
        shutil.copy2(os.path.join(originals, names[0]), os.path.join(tree, names[0]))
        _edit(tree, names[1], lambda data: data + b"# mine\n")
        with pytest.raises(patching.PatchError, match="restored: {}; edited: {}".format(*names[:2])):
            patching.patch(tree)

    def test_edits_beside_the_hunks_are_taken_when_asked(self, tree):
        _edit(tree, TRAINER, lambda data: data.replace(b"import functools", b"import functools  # mine"))
        before = content(tree)
        patching.patch(tree, accept_unknown=True)
        assert b"# mine" in patching.find_tree(tree).read(TRAINER)
        patching.unpatch(tree)
        assert content(tree) == before
        _edit(tree, METRICS, lambda data: data.replace(b"np.NAN", b"0.0"))
        with pytest.raises(patching.PatchError, match="metrics.py"):
            patching.patch(tree, accept_unknown=True)

    def test_an_edit_elsewhere_is_the_users_own(self, tree):
        _edit(tree, "object_detection/eval_util.py", lambda data: data + b"# mine\n")
        before = content(tree)
        patching.patch(tree)
        patching.unpatch(tree)
        assert content(tree) == before

    def test_edits_after_patching_stop_unpatch(self, tree):
        patching.patch(tree)
        _edit(tree, TRAINER, lambda data: data + b"# mine\n")
        before = content(tree)
        with pytest.raises(patching.PatchError) as refusal:
            patching.unpatch(tree)
        assert refusal.value.found == TRAINER
        assert content(tree) == before
        assert "edited since: " + TRAINER in patching.patch(tree).message

    @pytest.mark.parametrize("failing", [0, 1, 11])
    @pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
    def test_a_failure_in_the_middle_changes_nothing(self, tree, monkeypatch, failing, error):
        before = content(tree)
        self._fail_at(monkeypatch, failing, error)
        with pytest.raises((OdQatError, KeyboardInterrupt)):
            patching.patch(tree)
        monkeypatch.undo()
        assert content(tree) == before
        patching.patch(tree)
        patched = content(tree)
        self._fail_at(monkeypatch, failing, error)
        with pytest.raises((OdQatError, KeyboardInterrupt)):
            patching.unpatch(tree)
        monkeypatch.undo()
        assert content(tree) == patched
        patching.unpatch(tree)
        assert content(tree) == before

    @staticmethod
    def _fail_at(monkeypatch, failing, error):
        replace, calls = os.replace, []

        def failing_replace(source, target):
            if target.endswith(".py"):
                calls.append(target)
                if len(calls) == failing + 1:
                    raise error
            return replace(source, target)

        monkeypatch.setattr(os, "replace", failing_replace)

    def test_a_patching_that_was_killed_can_be_taken_back(self, tree):
        before = content(tree)
        environment = dict(os.environ, PYTHONPATH=REPOSITORY)
        assert subprocess.call([sys.executable, "-c", KILLED, tree, "9", ""], env=environment) == 7
        assert content(tree) != before
        with pytest.raises(patching.PatchError, match="interrupted"):
            patching.patch(tree)
        patching.unpatch(tree)
        assert content(tree) == before

    def test_line_ends_are_the_files_own(self, tree):
        for folder, _, names in os.walk(tree):
            for name in names:
                if name.endswith(".py"):
                    path = os.path.relpath(os.path.join(folder, name), tree)
                    _edit(tree, path, lambda data: data.replace(b"\n", b"\r\n"))
        before = content(tree)
        outcome = patching.patch(tree)
        assert patching.identify(patching.find_tree(tree)).nearest == "tf-object-detection-api 0.1"
        for name in outcome.files:
            data = patching.find_tree(tree).read(name)
            assert data.count(b"\n") == data.count(b"\r\n"), name
        patching.unpatch(tree)
        assert content(tree) == before

    def test_upstreams_last_state_has_a_series_of_its_own(self, tree):
        upstream = record.UpstreamTree(*patching.find_tree(tree))
        _edit(tree, METRICS, lambda data: upstream.read(METRICS))
        before = content(tree)
        identity = patching.identify(patching.find_tree(tree))
        assert (identity.nearest, identity.series, identity.differs) == (record.UPSTREAM, "2023", ())
        assert METRICS in patching.patch(tree).files
        assert b"np.NAN" not in patching.find_tree(tree).read(METRICS)
        patching.unpatch(tree)
        assert content(tree) == before

    def test_an_edited_file_gets_every_change_that_it_needs(self, tree):
        """Between two series that both go in, the one that changes more."""
        _edit(tree, METRICS, lambda data: data + b"# mine\n")
        assert "series 2022" in patching.patch(tree, accept_unknown=True).message
        assert b"np.float " not in patching.find_tree(tree).read(METRICS)

    def test_a_site_packages_is_a_tree_too(self, tree, tmp_path):
        os.rename(os.path.join(tree, "slim", "nets"), os.path.join(tree, "nets"))
        before = content(tree)
        assert "slim/nets/nasnet/nasnet.py" in patching.patch(tree).files
        patching.unpatch(tree)
        assert content(tree) == before

    def test_patches_of_another_od_qat_are_told_and_taken_out(self, tree):
        before = content(tree)
        patching.patch(tree)
        path = os.path.join(tree, patching.RECORD)
        with open(path) as stream:
            record_ = json.load(stream)
        for change in ({"patches": "0"}, {"series": "1999"}):
            with open(path, "w") as stream:
                json.dump(dict(record_, od_qat="0.0.1", **change), stream)
            assert "of od_qat 0.0.1" in patching.patch(tree).message
        patching.unpatch(tree)
        assert content(tree) == before

    def test_a_damaged_record_is_named(self, tree):
        patching.patch(tree)
        _edit(tree, patching.RECORD, lambda data: data[:100])
        for command in (patching.patch, patching.unpatch):
            with pytest.raises(patching.PatchError, match="od_qat_patch.json"):
                command(tree)

    def test_patched_by_other_means_is_recognised(self, tree):
        patching.patch(tree)
        os.unlink(os.path.join(tree, patching.RECORD))
        with pytest.raises(patching.PatchError, match="changed already, without a record"):
            patching.patch(tree)

    def test_doctor_says_what_a_tree_is(self, tree):
        def found(folder=tree):
            checks = {check.name: check for check in doctor.examine(folder, quick=True)}
            names = ("OD API tree", "differs from it", "patches", "its protos")
            return [checks[name] for name in names]

        kind, differs, patches, protos = found()
        # (The folder around it is a clone of `models`.)
        assert [c.found for c in found(os.path.dirname(tree))] == [c.found for c in found()]
        assert "2022, nearest to tf-object-detection-api 0.1" in kind.found
        assert (kind.status, differs.status, protos.status) == ("ok", "ok", "ok")
        assert "not in" in patches.found and "od-qat patch" in patches.fix
        patching.patch(tree)
        assert "patched already" in found()[2].found
        patching.unpatch(tree)
        _edit(tree, METRICS, lambda data: data + b"# mine\n")
        assert METRICS in found()[1].found
        assert METRICS in found()[2].found

    def test_the_commands_exit_statuses(self, tree, run_python):
        done = run_python("-m", "od_qat", "patch", "--od-api", tree)
        assert (done.status, done.errors) == (0, "")
        assert TRAINER in done.output and "patched: series 2022" in done.output
        assert "pip install --no-deps " + REPOSITORY in done.output
        _edit(tree, METRICS, lambda data: data + b"# mine\n")
        done = run_python("-m", "od_qat", "unpatch", env={"OD_API": tree})
        assert done.status == 1 and METRICS in done.errors
        _edit(tree, METRICS, lambda data: data[: -len(b"# mine\n")])
        assert run_python("-m", "od_qat", "unpatch", env={"OD_API": tree}).status == 0
        done = run_python("-m", "od_qat", "patch", env={"OD_API": ""})
        assert done.status == 1 and "--od_api" in done.errors
        done = run_python("-m", "od_qat", "patch", "--od_api", os.path.join(tree, "slim"))
        assert done.status == 1 and "not a models/research folder" in done.errors


LINES = st.lists(
    st.binary(max_size=3).filter(lambda line: not set(line) & set(b"\r\n\x0b\x0c\x1c\x1d\x1e\x85"))
)


@settings(max_examples=150, deadline=None)
@given(old=LINES, new=LINES, before=LINES, end=st.sampled_from([b"\n", b"\r\n"]), last=st.booleans())
def test_taking_back_is_the_inverse_of_applying(old, new, before, end, last):
    """A block that is there once, among lines that are not, is replaced; and it comes back to the byte."""
    old = tuple(b"<" + line for line in old) + (b"<mark",)
    hunk, other = patching.Hunk(old, tuple(new)), patching.Hunk((b">tail",), (b">tail", b">added"))
    lines = list(before) + list(old) + [b">tail"]
    data = end.join(lines) + (end if last else b"")
    result, edits, failed = patching.apply(data, [other, hunk])
    if failed:
        assert before.count(b"<mark") or before.count(b">tail") or result == data
        return
    assert result == b"".join(line + end for line in list(before) + list(new) + [b">tail", b">added"])
    assert patching.take_back(result, edits) == data


def test_a_hunk_must_match_exactly_and_once():
    hunk = patching.Hunk((b"a", b"b"), (b"c",))
    for data in (b"a\nx\nb\n", b"a\nb\na\nb\n", b"a \nb\n", b""):
        assert patching.apply(data, [hunk]) == (data, (), (hunk,))
    assert patching.apply(b"a\r\nb\nx", [hunk])[0] == b"c\r\nx"


def test_every_series_is_read_as_it_stands():
    for series in source_changes.SERIES:
        hunks = patching.read_series(series)
        names = [name + ".patch" for name in (p.name for p in source_changes.PATCHES if series in p.series)]
        assert patching.names_of(series) == names
        assert len(hunks) >= 9
        total = 0
        for name in names:
            with open(os.path.join(patching.FOLDER, name), "rb") as stream:
                total += sum(line.startswith(b"@@") for line in stream)
        assert sum(map(len, hunks.values())) == total
        assert all(hunk.old for of_file in hunks.values() for hunk in of_file)


def test_the_readme_names_every_patch_and_tree():
    with open(os.path.join(patching.FOLDER, "README.md"), encoding="utf-8") as stream:
        text = stream.read()
    missing = [p.name for p in source_changes.PATCHES if p.series and "`{}.patch`".format(p.name) not in text]
    assert missing == []
    assert [name for name in patching.generations()["trees"] if name not in text] == []
    assert [series for series in source_changes.SERIES if series not in text] == []


class TestTheGenerations(object):
    """Trees that upstream's users have; see tests/generations/trees.txt."""

    @pytest.mark.parametrize("pin", _generations())
    def test_patch_and_unpatch_restore_every_byte(self, pin, tmp_path):
        source = record.find(FOLDER, pin.folder)
        tree = road.copy(source, str(tmp_path / "research"))
        before = content(tree)
        identity = patching.identify(patching.find_tree(tree))
        assert identity.nearest == "{} {}".format(pin.name, pin.version)
        assert (identity.differs, identity.elsewhere) == ((), ())
        said = {check.name: check for check in doctor.examine(tree, quick=True)}
        assert "nearest to {} {}".format(pin.name, pin.version) in said["OD API tree"].found
        for_tf1 = "2" not in patching.generations()["trees"][identity.nearest]["tensorflow"]
        assert said["OD API tree"].status == ("problem" if for_tf1 and not IS_TF1 else "ok")
        assert said["differs from it"].status == "ok"
        outcome = patching.patch(tree)
        for name in outcome.files:
            compile(patching.find_tree(tree).read(name), name, "exec")
        patching.unpatch(tree)
        assert content(tree) == before

    @pytest.mark.skipif(not FOLDER, reason=NO_FOLDER)
    def test_the_patches_are_what_the_source_changes_say(self, capsys):
        assert record.main([FOLDER, "--check"]) == 0, capsys.readouterr().out

    @pytest.mark.parametrize("pin", _generations())
    def test_its_protos_load(self, pin, run_python):
        root = record.find(FOLDER, pin.folder).root
        done = run_python("-B", "-c", _LOAD_PROTOS, env={"PYTHONPATH": root})
        assert (done.status, done.output.strip()) == (0, "ssd_mobilenet_v2 True"), done.errors


_LOAD_PROTOS = """
import importlib, os
from od_qat.od_api import import_hook, layers_proto
import_hook.install()
import object_detection.protos
layers_proto.extension()
folder = list(object_detection.protos.__path__)[0]
for name in sorted(os.listdir(folder)):
    if name.endswith("_pb2.py"):
        importlib.import_module("object_detection.protos." + name[:-3])
from google.protobuf import text_format
from object_detection.protos import losses_pb2, pipeline_pb2
config = pipeline_pb2.TrainEvalPipelineConfig()
text_format.Parse('model { ssd { feature_extractor { type: "ssd_mobilenet_v2" } } } '
                  'graph_rewriter { quantization { delay: 3 } }', config)
print(config.model.ssd.feature_extractor.type, config.HasField("graph_rewriter"))
"""


class TestOldProtos(object):
    NAME = "object_detection.protos.od_qat_test_pb2"

    def _definition(self, package):
        from google.protobuf import descriptor_pb2

        proto = descriptor_pb2.FileDescriptorProto(name=package + ".proto", package=package, syntax="proto2")
        message = proto.message_type.add(name="Thing")
        message.field.add(name="size", number=1, type=5, label=1, default_value="7")
        proto.enum_type.add(name="Kind").value.add(name="SMALL", number=2)
        return proto.SerializeToString()

    @pytest.mark.parametrize("text", [False, True])
    def test_what_protoc_wrote_becomes_what_it_writes_today(self, text):
        pytest.importorskip("google.protobuf.internal.builder", reason="protobuf takes the old form")
        definition = self._definition("od_qat_test_of_{}".format("text" if text else "bytes"))
        literal = "_b({!r})".format(definition.decode("latin-1")) if text else repr(definition)
        source = "DESCRIPTOR = _descriptor.FileDescriptor(\n  name='x',\n  serialized_pb={}\n)\n".format(
            literal
        )
        assert old_protos.is_old(source)
        modern = old_protos.modern(self.NAME, source)
        assert not old_protos.is_old(modern)
        names = {"__name__": self.NAME}
        exec(compile(modern, self.NAME, "exec"), names)
        assert names["Thing"]().size == 7
        assert names["SMALL"] == 2
        assert old_protos.modern(self.NAME, modern) == modern


@needs_od_api
@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", ["installed"] + [pin.folder for pin in fetch.pins()])
def test_upstreams_commands_run_as_they_are_in_a_patched_tree(name, tmp_path):
    """Two steps of QAT, an evaluation and both exports, by scripts that know nothing of od_qat."""
    source = _tree_of(name)
    reason = road.cannot(source)
    if reason:
        pytest.skip(reason)
    work = str(tmp_path)
    tree, slim, config = road.prepare(source, FOLDER, work, "qat")
    for command in road.COMMANDS[:-1]:  # (model_main is in the matrix)
        status, text = road.run(tree, slim, work, command, config)
        assert status == 0, text[-3000:]
        assert road.wrong_graph(work, command, quantised=True) is None
    with open(os.path.join(work, "train", "rewrite_report.json")) as stream:
        assert json.load(stream)["weights"]
    assert os.path.exists(os.path.join(road.output(work, "legacy/eval.py"), "metrics-2.json"))


@needs_od_api
@pytest.mark.timeout(7200)
@pytest.mark.parametrize(
    "name",
    [pytest.param("installed", marks=pytest.mark.zoo)]
    + [pytest.param(pin.folder, marks=pytest.mark.long) for pin in fetch.pins()],
)
def test_upstreams_tf2_commands_run_as_they_are_in_a_patched_tree(name, tmp_path):
    """Two steps of QAT; the evaluation and both exports too, but for a quick look."""
    source, names = _tree_of(name), road.commands("tf2_qat")
    reason = road.cannot(source) or (None if names else "the TF 2 half needs TensorFlow 2")
    if reason:
        pytest.skip(reason)
    work = str(tmp_path)
    tree, slim, config = road.prepare(source, FOLDER, work, "tf2_qat")
    for command in names if tiers.ALL else (names[0], names[-1]):
        status, text = road.run(tree, slim, work, command, config)
        assert status == 0, text[-3000:]
        assert road.wrong_graph(work, command, quantised=True) is None
    assert os.path.exists(os.path.join(road.output(work, names[0]), "ckpt-2.index"))


def _tree_of(name):
    if name == "installed":
        return patching.find_tree(road.installed())
    if not FOLDER:
        pytest.skip(NO_FOLDER)
    return record.find(FOLDER, name)


@needs_od_api
@pytest.mark.long_on_tf1
def test_the_exporter_for_tpus_of_a_patched_tree_stops_at_the_block(tree, tmp_path):
    tiny_detector.write_data(str(tmp_path))
    patching.patch(tree)
    code = (
        "import sys; from object_detection.tpu_exporters import export_saved_model_tpu_lib as exporter; "
        "print(exporter.parse_pipeline_config(sys.argv[1])[1])"
    )
    if not IS_TF1:  # (by itself it cannot be imported there)
        code = "import od_qat.plugin; " + code
    for quantised in (True, False) if tiers.ALL else (True,):
        config = tiny_detector.write_config(str(tmp_path), quantised, "config", steps=2)
        status, text = road.run_python(tree, os.path.join(tree, "slim"), ["-c", code, config])
        refused = "export_saved_model_tpu ignores the graph_rewriter block" in text
        assert (bool(status), refused) == (quantised, quantised), text[-3000:]
