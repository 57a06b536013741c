"""`od-qat run`: the OD API's own commands and scripts of users, as they are, plain and quantised."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from od_qat import cli
from od_qat.cli import run
from od_qat.errors import ConfigError
from tests.conftest import REPOSITORY
from tests.helpers import tiny_detector

pytestmark = pytest.mark.tf1

HAS_OD_API = importlib.util.find_spec("object_detection") is not None or bool(os.environ.get("OD_API"))
needs_od_api = pytest.mark.skipif(
    not HAS_OD_API, reason="the OD API is not installed here and OD_API is not set"
)
# A process builds a model in half a minute where cores are shared.
_SECONDS = 1500


def od_qat_run(folder, *arguments, **environment):
    """Runs `python -m od_qat run ...` in a folder; returns status, output and errors."""
    done = subprocess.run(
        [sys.executable, "-m", "od_qat", "run"] + list(arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        cwd=str(folder),
        env=dict(
            os.environ,
            PYTHONPATH=os.pathsep.join(filter(None, [REPOSITORY, os.environ.get("PYTHONPATH", "")])),
            **environment,
        ),
        timeout=_SECONDS,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


def last_line(text):
    return text.strip().splitlines()[-1]


class TestArguments(object):
    """What is od-qat's own and what is the program's, without running anything."""

    @pytest.fixture
    def called(self, monkeypatch):
        calls = []
        monkeypatch.setattr(run, "run", lambda *arguments: calls.append(arguments) or 7)
        return calls

    @pytest.mark.parametrize(
        "words, target, program",
        [
            (["run", "a.b"], "a.b", []),
            (["run", "a.b", "--", "--x-y=1", "-v", "z"], "a.b", ["--x-y=1", "-v", "z"]),
            (["run", "a.b", "--x-y=1", "--help"], "a.b", ["--x-y=1", "--help"]),
            (["--debug", "run", "a.b", "--", "--", "--debug"], "a.b", ["--", "--debug"]),
            (["run", "--debug", "my-script.py", "run"], "my-script.py", ["run"]),
        ],
    )
    def test_the_programs_stay_as_they_are(self, called, words, target, program, monkeypatch):
        monkeypatch.setenv("OD_QAT_DEBUG", "")
        assert cli.main(words) == 7  # the program's status
        assert called == [(target, program)]

    def test_no_program_is_a_usage_error(self, called, capsys):
        assert cli.main(["run"]) == 2
        assert "MODULE|SCRIPT" in capsys.readouterr().err
        assert called == []

    @pytest.mark.parametrize(
        "arguments, value",
        [
            (["--pipeline_config_path=a=b"], "a=b"),
            (["-pipeline_config_path", "c"], "c"),
            (["--pipeline_config_path"], None),
            (["--train_dir=x"], None),
        ],
    )
    def test_the_config_is_found_as_absl_finds_it(self, arguments, value):
        assert run._flag(arguments, "pipeline_config_path") == value

    @pytest.mark.parametrize(
        "path, name",
        [
            ("/x/research/object_detection/legacy/train.py", "object_detection.legacy.train"),
            ("/x/object_detection/y/object_detection/model_main.py", "object_detection.model_main"),
            ("/x/my_train.py", None),
        ],
    )
    def test_a_script_out_of_the_od_api_is_known(self, path, name):
        assert run._name_in_od_api(path) == name


SCRIPT = """
import os, sys
import neighbour
import tensorflow.compat.v1 as tf
from absl import flags
from object_detection.builders import graph_rewriter_builder
from object_detection.legacy import trainer

flags.DEFINE_integer("status", 0, "what to end with")
flags.DEFINE_string("raises", None, "what to raise")

def main(argv):
    import json
    print(json.dumps({
        "argv": argv, "name": __name__, "file": __file__, "path": sys.path[0],
        "main": sys.modules["__main__"].main is main,
        "rewriter": graph_rewriter_builder.build.__doc__, "trainer": trainer.train.__doc__,
        "eager": tf.executing_eagerly(),
    }))
    if flags.FLAGS.raises == "ours":
        from od_qat.errors import ConfigError
        raise ConfigError("bad thing", where="there", fix="mend it")
    if flags.FLAGS.raises:
        raise ValueError("of the program")
    return flags.FLAGS.status or None

if __name__ == "__main__":
    tf.app.run()
"""


@needs_od_api
class TestAScriptOfTheUser(object):
    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        folder = tmp_path_factory.mktemp("script")
        (folder / "home").mkdir()
        (folder / "home" / "my_script.py").write_text(SCRIPT)
        (folder / "home" / "neighbour.py").write_text("")
        return folder

    def test_sees_what_python_would_show_it(self, folder):
        status, output, errors = od_qat_run(folder, "home/my_script.py", "--", "rest", "--status=3")
        assert status == 3, errors
        seen = json.loads(last_line(output))
        assert seen["argv"] == ["home/my_script.py", "rest"]
        assert (seen["name"], seen["file"]) == ("__main__", "home/my_script.py")
        assert seen["path"] == str(folder / "home") and seen["main"]
        assert seen["rewriter"] == "od_qat's od_qat.od_api.graph_rewriter:build"
        assert seen["trainer"] == "od_qat's od_qat.trainer:train"
        assert seen["eager"] is False

    @pytest.mark.long_on_tf1
    def test_as_a_module(self, folder):
        status, output, errors = od_qat_run(folder / "home", "my_script", "--", "--status=0")
        assert status == 0, errors
        seen = json.loads(last_line(output))
        assert seen["argv"] == [str(folder / "home" / "my_script.py")] and seen["main"]

    @pytest.mark.long_on_tf1
    def test_its_own_error_has_its_traceback(self, folder):
        status, _, errors = od_qat_run(folder, "home/my_script.py", "--", "--raises=own")
        assert status == 1
        assert last_line(errors) == "ValueError: of the program"
        assert 'File "home/my_script.py"' in errors
        assert "runpy" not in errors and "od_qat/cli/run.py" not in errors

    @pytest.mark.long_on_tf1
    def test_an_error_of_ours_is_one_line(self, folder):
        status, _, errors = od_qat_run(folder, "home/my_script.py", "--", "--raises=ours")
        assert status == 1
        assert last_line(errors) == "od-qat: error: bad thing: at there. Fix: mend it"
        assert "Traceback" not in errors

    @pytest.mark.long_on_tf1
    def test_a_bad_flag_is_absls_affair(self, folder):
        status, _, errors = od_qat_run(folder, "home/my_script.py", "--", "--status=many")
        assert status == 1
        assert "IllegalFlagValueError: flag --status=many" in last_line(errors)

    def test_may_change_the_import_path(self, folder):
        (folder / "home" / "pops.py").write_text("import sys\nsys.path[:] = sys.path[1:]\nprint('fine')\n")
        status, output, errors = od_qat_run(folder, "home/pops.py")
        assert (status, last_line(output)) == (0, "fine"), errors

    def test_what_is_not_there_is_named(self, folder):
        for target in ("home/none.py", "no_such_module", "no.such.module"):
            with pytest.raises(ConfigError, match="no such module or script.*" + target):
                run.run(target, [])
        with pytest.raises(ConfigError, match="package cannot be run: at object_detection.legacy"):
            run.run("object_detection.legacy", [])
        config = folder / "home" / "my.config"
        config.write_text("model {}")
        with pytest.raises(ConfigError, match="no Python script: at .*my.config, found a .config file"):
            run.run(str(config), [])


@needs_od_api
class TestNothingIsIgnoredSilently(object):
    """A command that cannot honour a graph_rewriter block stops and says what to run instead."""

    @pytest.fixture(scope="class")
    def folder(self, tmp_path_factory):
        import od_qat.plugin  # noqa: F401

        folder = tmp_path_factory.mktemp("refused")
        tiny_detector.write_data(str(folder))
        tiny_detector.write_config(str(folder), True, "qat")
        tiny_detector.write_config(str(folder), False, "float")
        tiny_detector.write_config(
            str(folder), True, "late", more=["graph_rewriter.quantization.delay=500000"]
        )
        return folder

    def refused(self, folder, command, config):
        with pytest.raises(ConfigError) as caught:
            run.run(command, ["--pipeline_config_path=" + str(folder / config)])
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_tf2_commands_of_a_tree_that_an_earlier_od_qat_patched(self, folder):
        """Their files call this. It tells how to get what the commands do now."""
        from od_qat.od_api import refusals

        command = "object_detection.model_main_tf2"
        refusals.refuse_block(command, str(folder / "float.config"))
        with pytest.raises(ConfigError, match="ignores the graph_rewriter.*od-qat unpatch, then"):
            refusals.refuse_block(command, str(folder / "qat.config"))
        block = "graph_rewriter { quantization { delay: 1 } }"
        with pytest.raises(ConfigError, match="ignores the graph_rewriter block"):
            refusals.refuse_block(command, str(folder / "float.config"), block)

    def test_tpus(self, folder):
        text = self.refused(folder, "object_detection.model_tpu_main", "qat.config")
        assert "TPU" in text and "object_detection.legacy.train" in text

    @pytest.mark.long_on_tf1
    def test_the_exporter_for_tpus(self, folder):
        command = "object_detection.tpu_exporters.export_saved_model_tpu"
        flags = ["--pipeline_config_file=qat.config", "--ckpt_path=none", "--export_dir=out"]
        status, _, errors = od_qat_run(folder, command, "--", *flags)
        assert status == 1
        assert "export_saved_model_tpu ignores the graph_rewriter block: at qat.config" in last_line(errors)
        assert "od-qat export" in last_line(errors) and not (folder / "out").exists()

    def test_an_estimator_with_a_delay_that_never_ends_or_on_tpus(self, folder):
        from od_qat.od_api import refusals

        def never(*arguments, **options):
            raise AssertionError("called")

        with pytest.raises(ConfigError, match="never start.*500000"):
            refusals.create_estimator_and_inputs(
                never, None, pipeline_config_path=str(folder / "late.config")
            )
        with pytest.raises(ConfigError, match="never start"):
            refusals.create_estimator_and_inputs(
                never,
                None,
                None,
                str(folder / "qat.config"),
                "graph_rewriter { quantization { delay: 9 } }",
                9,
            )
        with pytest.raises(ConfigError, match="TPU"):
            refusals.create_estimator_and_inputs(
                never, None, pipeline_config_path=str(folder / "qat.config"), use_tpu_estimator=True
            )
        # What it has nothing against goes through as it is.
        kept = refusals.create_estimator_and_inputs(
            lambda *arguments, **options: (arguments, options), "r", None, str(folder / "float.config"), x=1
        )
        assert kept == (("r", None, str(folder / "float.config")), {"x": 1})


@needs_od_api
@pytest.mark.long_on_tf1
@pytest.mark.parametrize("kind", [pytest.param("float", marks=pytest.mark.zoo), "qat"])
def test_the_od_apis_commands(tmp_path, kind):
    """Train, evaluate, export both ways, each with upstream's unchanged command line."""
    import od_qat.plugin  # noqa: F401
    from od_qat.compat import tf

    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    tiny_detector.write_config(folder, kind == "qat", "my", steps=3)
    config = "--pipeline_config_path=my.config"
    checkpoint = "--trained_checkpoint_prefix=train/model.ckpt-3"
    for command, flags in (
        ("legacy.train", ["--train_dir=train", "--alsologtostderr"]),
        ("legacy.eval", ["--checkpoint_dir=train", "--eval_dir=eval", "--run_once"]),
        ("export_inference_graph", ["--input_type=image_tensor", checkpoint, "--output_directory=export"]),
        ("export_tflite_ssd_graph", [checkpoint, "--output_directory=lite"]),
    ):
        status, _, errors = od_qat_run(tmp_path, "object_detection." + command, "--", config, *flags)
        assert status == 0, (command, errors[-3000:])
    names = tf.train.load_checkpoint(
        os.path.join(folder, "train", "model.ckpt-3")
    ).get_variable_to_shape_map()
    assert any("act_quant/max" in name for name in names) == (kind == "qat")
    assert os.path.exists(os.path.join(folder, "eval", "metrics-3.json"))
    for path in ("eval/frozen_eval_graph.pb", "export/frozen_inference_graph.pb", "lite/tflite_graph.pb"):
        assert (tiny_detector.fake_quants(os.path.join(folder, path)) > 0) == (kind == "qat")


@needs_od_api
@pytest.mark.long_on_tf1
@pytest.mark.parametrize("kind", ["float", "qat"])
def test_model_main(tmp_path, kind):
    """With an Estimator: trains, evaluates and exports at its end."""
    import od_qat.plugin  # noqa: F401
    from od_qat.compat import tf

    if not hasattr(tf, "estimator") and importlib.util.find_spec("tensorflow_estimator") is None:
        pytest.skip("an optional extra: tensorflow-estimator")
    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    tiny_detector.write_config(folder, kind == "qat", "my", steps=3)
    flags = ["--pipeline_config_path=my.config", "--model_dir=model"]
    status, _, errors = od_qat_run(tmp_path, "object_detection.model_main", "--", *flags)
    assert status == 0, errors[-3000:]
    names = tf.train.load_checkpoint(
        os.path.join(folder, "model", "model.ckpt-3")
    ).get_variable_to_shape_map()
    assert any("act_quant/max" in name for name in names) == (kind == "qat")
    assert any(name.startswith("events") for name in os.listdir(os.path.join(folder, "model", "eval_0")))
    (saved,) = os.listdir(os.path.join(folder, "model", "export", "Servo"))
    exported = tiny_detector.fake_quants(
        os.path.join(folder, "model", "export", "Servo", saved, "saved_model.pb")
    )
    assert exported > 20 if kind == "qat" else exported == 0


_WITH_A_CYCLE = """
import gc

class Log(object):
    def __init__(self):
        self.itself, self.stream = self, open("log.txt", "w")

    def __del__(self):
        self.stream.write("closed")
        self.stream.close()

log = Log()
gc.collect()  # (as in a longer program; it is then looked at only at the end)
"""


@needs_od_api
def test_a_program_ends_as_it_does_by_itself(tmp_path):
    """What is left in cycles is finalized, which od-qat's own commands leave out."""
    (tmp_path / "cycle.py").write_text(_WITH_A_CYCLE)
    status, _, errors = od_qat_run(tmp_path, "cycle")
    assert status == 0, errors
    assert (tmp_path / "log.txt").read_text() == "closed"
