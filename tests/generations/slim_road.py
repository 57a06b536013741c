"""slim's commands for classifiers in a patched tree, with --quantize, run as slim's users run them."""

import os
import shutil

from od_qat.od_api import patching
from tests.generations import road
from tests.helpers import tiny_classifier, tiny_detector

KIND = "slim"
_TRAIN, _EVAL = "slim/nets/mobilenet_v1_train.py", "slim/nets/mobilenet_v1_eval.py"
# What only clones have.
_SCRIPTS = tuple(
    "slim/{}.py".format(name)
    for name in ("train_image_classifier", "eval_image_classifier", "export_inference_graph")
)
# Where each leaves a graph, below `work`, and how many fake quants it has: of the weights and the outputs of
# MobileNet V1's 28 layers, and of LeNet's 4.
_GRAPHS = {
    _EVAL: (os.path.join("mobilenet_eval", "frozen_eval_graph.pb"), 56),
    _SCRIPTS[1]: (os.path.join("lenet", "frozen_eval_graph.pb"), 8),
    _SCRIPTS[2]: (os.path.join("lenet", "graph.pb"), 8),
}


def commands(source):
    """The commands that a tree has, each behind those that it needs; none where slim is missing."""
    if source.slim is None:
        return ()
    return tuple(
        command
        for command in (_TRAIN, _EVAL) + _SCRIPTS
        if os.path.exists(os.path.join(source.slim, os.path.relpath(command, "slim")))
    )


def cannot(tree, command):
    """Why a command of a patched tree does not run on Python 3; None when it does."""
    with open(os.path.join(tree, *command.split("/")), "rb") as stream:
        of_python_2 = b".iteritems()" in stream.read()
    return "upstream's script in this tree is for Python 2 (dict.iteritems)" if of_python_2 else None


def prepare(source, work):
    """A patched copy of a tree and data in the folder `work`; returns models/research."""
    tree = road.copy(source, os.path.join(work, "research"))
    slim = os.path.join(tree, "slim")
    shutil.copytree(os.path.join(source.slim, "datasets"), os.path.join(slim, "datasets"))
    for command in commands(source):
        path = os.path.join(tree, *command.split("/"))
        if not os.path.exists(path):
            shutil.copy(os.path.join(source.slim, os.path.relpath(command, "slim")), path)
    patching.patch(tree)
    # (As slim's ImageNet converter leaves them, and as its MNIST converter does.)
    for part in ("train", "validation"):
        tiny_classifier.write_records(os.path.join(work, "imagenet", part + "-00000-of-00001"))
    for part in ("train", "test"):
        tiny_classifier.write_records(
            os.path.join(work, "mnist", "mnist_{}.tfrecord".format(part)), grey=True
        )
    return tree


def run(tree, work, command):
    """Runs a command in models/research; returns its exit status and all output."""
    trained, out = os.path.join(work, "mobilenet"), os.path.join(work, "lenet")
    # (mobilenet_v1_eval.py wants the best 5 of the classes.)
    mobilenet = ["--dataset_dir=" + os.path.join(work, "imagenet"), "--checkpoint_dir=" + trained]
    mobilenet += ["--quantize", "--image_size=32", "--depth_multiplier=0.25", "--num_classes=7"]
    lenet = ["--dataset_name=mnist", "--dataset_dir=" + os.path.join(work, "mnist"), "--model_name=lenet"]
    flags = {
        _TRAIN: mobilenet + ["--batch_size=4", "--number_of_steps=3"],
        _EVAL: mobilenet + ["--batch_size=6", "--num_examples=36", "--eval_dir=" + trained + "_eval"],
        _SCRIPTS[0]: lenet
        + ["--train_dir=" + out, "--max_number_of_steps=3", "--batch_size=4"]
        + ["--quantize_delay=0", "--clone_on_cpu"],
        _SCRIPTS[1]: lenet
        + ["--checkpoint_path=" + out, "--eval_dir=" + out, "--quantize", "--max_num_batches=1"],
        _SCRIPTS[2]: lenet
        + ["--output_file=" + os.path.join(out, "graph.pb"), "--quantize", "--use_grayscale"],
    }[command]
    return road.run_python(tree, os.path.join(tree, "slim"), [os.path.join(*command.split("/"))] + flags)


def wrong_graph(work, command):
    """What is wrong with the graph that a command left behind; None if nothing is, or it leaves none."""
    if command not in _GRAPHS:
        return None
    name, expected = _GRAPHS[command]
    path = os.path.join(work, name)
    if not os.path.exists(path):
        return "no " + name
    count = tiny_detector.fake_quants(path)
    return None if count == expected else "{} fake quants in {}".format(count, name)
