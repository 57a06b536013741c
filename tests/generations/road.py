"""Upstream's commands in a patched tree, run as the OD API's users run them."""

import glob
import os
import shutil
import subprocess
import sys

from od_qat.od_api import patching
from tests.conftest import REPOSITORY
from tests.generations import record
from tests.helpers import tiny_detector

# What is run in a tree: of which half of the OD API, and whether the config has a graph_rewriter block.
KINDS = {"float": (False, False), "qat": (False, True), "tf2_float": (True, False), "tf2_qat": (True, True)}
# The commands of each half, in this order: each needs what those before it left.
COMMANDS = (
    "legacy/train.py",
    "legacy/eval.py",
    "export_inference_graph.py",
    "export_tflite_ssd_graph.py",
    "model_main.py",
)
_EVALUATION = "model_main_tf2.py --checkpoint_dir"
TF2_COMMANDS = ("model_main_tf2.py", _EVALUATION, "exporter_main_v2.py", "export_tflite_graph_tf2.py")

# Where each leaves a graph, in its folder.
_GRAPHS = {
    _EVALUATION: os.path.join("eval", "frozen_eval_graph.pb"),
    "exporter_main_v2.py": os.path.join("saved_model", "saved_model.pb"),
    "export_tflite_graph_tf2.py": os.path.join("saved_model", "saved_model.pb"),
    "legacy/eval.py": "frozen_eval_graph.pb",
    "export_inference_graph.py": "frozen_inference_graph.pb",
    "export_tflite_ssd_graph.py": "tflite_graph.pb",
    "model_main.py": os.path.join("export", "*", "*", "saved_model.pb"),
}


def installed():
    """The folder on the path that holds the OD API; None without."""
    return next((p for p in sys.path if os.path.isdir(os.path.join(p, "object_detection", "legacy"))), None)


def commands(kind):
    """The commands of a kind that this TensorFlow has; none of the TF 2 half on TensorFlow 1.15."""
    from od_qat.compat import IS_TF1

    if not KINDS[kind][0]:
        return COMMANDS
    return () if IS_TF1 else TF2_COMMANDS


def cannot(source):
    """Why a tree does not run on this TensorFlow; None when it does."""
    from od_qat.compat import IS_TF1

    works = patching.generations()["trees"][patching.identify(source).nearest]["tensorflow"]
    if not IS_TF1 and "2" not in works:
        return "a tree of 2019, which uses tensorflow.contrib throughout"
    return None


def prepare(source, folder, work, kind):
    """A patched copy of a tree, data and a config of two steps in the folder `work`.

    Args:
      source: the tree, as patching.find_tree gives it.
      folder: what `make generations` filled; a tree that is packaged without slim gets one of its year there.
      work: where everything goes.
      kind: of KINDS.

    Returns:
      models/research, slim and the config, for `run`.
    """
    tree = copy(source, os.path.join(work, "research"))
    slim = os.path.join(tree, "slim")
    if source.slim is None:
        slim = record.find(folder, record.MODELS["2019"]).slim
    patching.patch(tree)
    tiny_detector.write_data(work)
    of_six_layers = b"num_layers" not in source.read("object_detection/protos/ssd_pb2.py")
    tf2, quantised = KINDS[kind]
    return tree, slim, _config(work, quantised, of_six_layers and not tf2, tf2)


def copy(source, target):
    """A models/research folder of what a site-packages or an unpacked archive holds."""
    leave = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(
        os.path.join(source.root, "object_detection"), os.path.join(target, "object_detection"), False, leave
    )
    for name in ("nets", "deployment", "preprocessing") if source.slim else ():
        shutil.copytree(os.path.join(source.slim, name), os.path.join(target, "slim", name), False, leave)
    return target


def _config(work, quantised, of_six_layers, tf2):
    """Path of a config as people have it: without our extension, which trees of early 2019 do not know.

    Args:
      of_six_layers: for a tree that has no field for the number of feature maps, of early 2019.
    """
    from od_qat.od_api import layers_proto, pipeline

    path = tiny_detector.write_config(work, quantised, "config", steps=2, tf2=tf2)
    config = pipeline.load(path)
    if config.HasField("graph_rewriter"):
        config.graph_rewriter.ClearExtension(layers_proto.extension())
    if of_six_layers:
        config.model.ssd.feature_extractor.ClearField("num_layers")
        anchors = config.model.ssd.anchor_generator.ssd_anchor_generator
        anchors.num_layers = 6
        del anchors.scales[:]
    with open(path, "w") as stream:
        stream.write(pipeline.to_text(config))
    return path


def run(tree, slim, work, command, config, steps=2):
    """Runs a command in models/research with both folders on the path, in and out of folders of `work`.

    Returns:
      exit status and all output.
    """
    train_dir = os.path.join(work, "train")
    checkpoint = "--trained_checkpoint_prefix={}/model.ckpt-{}".format(train_dir, steps)
    writes = output(work, command)
    model_dir = "--model_dir=" + output(work, "model_main_tf2.py")
    trained = "--trained_checkpoint_dir=" + output(work, "model_main_tf2.py")
    flags = {
        # (Upstream's eager loop saves the model before it is built, and then each so many steps.)
        "model_main_tf2.py": [model_dir, "--num_train_steps={}".format(steps), "--checkpoint_every_n=1"],
        _EVALUATION: [model_dir, "--checkpoint_dir=" + output(work, _EVALUATION), "--eval_timeout=1"],
        "exporter_main_v2.py": [trained, "--output_directory=" + writes],
        "export_tflite_graph_tf2.py": [trained, "--output_directory=" + writes],
        "legacy/train.py": ["--logtostderr", "--train_dir=" + train_dir],
        "legacy/eval.py": ["--run_once", "--checkpoint_dir=" + train_dir, "--eval_dir=" + writes],
        "export_inference_graph.py": [checkpoint, "--output_directory=" + writes],
        "export_tflite_ssd_graph.py": [checkpoint, "--output_directory=" + writes],
        "model_main.py": ["--model_dir=" + writes],
    }[command]
    script = os.path.join("object_detection", *command.split(" ")[0].split("/"))
    return run_python(tree, slim, [script, "--pipeline_config_path=" + config] + flags)


def run_python(tree, slim, arguments):
    """Exit status and all output of Python in models/research, with both folders on the path."""
    # (What was on the path stays at its end: an Estimator in a folder of its own, for one.)
    path = [REPOSITORY, tree, slim] + list(filter(None, [os.environ.get("PYTHONPATH")]))
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(path))
    for own in ("OD_API", "TF_USE_LEGACY_KERAS", "TF_CPP_MIN_LOG_LEVEL", "TF2_BEHAVIOR"):  # (of this process)
        environment.pop(own, None)
    done = subprocess.run(
        [sys.executable] + list(arguments),
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    return done.returncode, done.stdout.decode("utf-8", "replace")


def output(work, command):
    """Where a command writes."""
    return os.path.join(work, command.split(" ")[0].replace("/", "_")[: -len(".py")])


def wrong_graph(work, command, quantised):
    """What is wrong with the graph that a command left behind: not there, or not (un)quantised; else None."""
    if command not in _GRAPHS:
        return None
    found = glob.glob(os.path.join(output(work, command), _GRAPHS[command]))
    if not found:
        # A float model's evaluation freezes nothing.
        freezes = quantised or command not in ("legacy/eval.py", _EVALUATION)
        return "no " + _GRAPHS[command] if freezes else None
    count = tiny_detector.fake_quants(found[0])
    if quantised != (count > 20):
        return "{} fake quants in {}".format(count, os.path.basename(found[0]))
    return None
