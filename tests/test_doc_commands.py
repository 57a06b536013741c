"""The commands that README and docs/ show.

A block that begins with ```sh tiny is run, with all others, in one folder with a tiny detector: the real
commands, word for word, in the order of PAGES. Any other shell block, and each command in the text, is only
read: its command and flags have to exist.
"""

import argparse
import contextlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

from od_qat import cli
from od_qat.cli import command_line
from od_qat.compat import tf
from tests.conftest import REPOSITORY
from tests.generations import road
from tests.helpers import tiny_classifier, tiny_detector

# The guide goes first, since the other pages use what its commands leave.
PAGES = ["docs/guide.md", "docs/commands.md", "README.md"]
PAGES += sorted(
    "docs/" + name for name in os.listdir(os.path.join(REPOSITORY, "docs")) if name.endswith(".md")
)
PAGES = list(dict.fromkeys(PAGES)) + ["patches/README.md"]
# Its flags may be in the text, without a command.
UPSTREAMS_COMMAND = os.path.join(road.installed() or "", "object_detection", "model_main_tf2.py")
# The same of slim's commands, which need not be installed.
FLAGS_OF_SLIM = {"--quantize", "--quantize_delay"}
# What `make test` hands on in the environment, and a user's shell does not have.
MAKE_VARIABLES = ("ARGS", "TESTS")


def read(page):
    with open(os.path.join(REPOSITORY, page), encoding="utf-8") as stream:
        return stream.read()


class Block(NamedTuple):
    """A fenced block of a page."""

    page: str
    kind: str
    text: str


def blocks(page):
    """All fenced blocks of a page."""
    return [Block(page, *found) for found in re.findall(r"^```(.*?)\n(.*?)^```$", read(page), re.M | re.S)]


def commands(text):
    """The words of each command of a shell block; a command may go over several lines."""
    found, open_lines = [], ""
    for line in text.replace("\\\n", " ").splitlines():
        open_lines += line
        try:
            words = shlex.split(open_lines, comments=True)
        except ValueError:  # a quotation goes on
            open_lines += "\n"
            continue
        open_lines = ""
        if words:
            found.append(words)
    assert not open_lines, "a quotation is not closed: " + open_lines
    return found


SHELL = [block for page in PAGES for block in blocks(page) if block.kind.split()[:1] == ["sh"]]
# Each once: README shows some of the guide's.
TINY = list(
    dict.fromkeys(
        tuple(words) for block in SHELL if block.kind == "sh tiny" for words in commands(block.text)
    )
)


# What is run.


def need_od_api():
    try:
        from od_qat import plugin  # noqa: F401
    except Exception as error:  # noqa: BLE001
        pytest.skip("the OD API cannot be imported: {}".format(error))


def write_photos(folder, count=8, size=64):
    """A PASCAL VOC folder of two classes."""
    for name in ("JPEGImages", "Annotations", os.path.join("ImageSets", "Main")):
        os.makedirs(os.path.join(folder, name))
    rng = np.random.RandomState(0)
    names = ["image{}".format(number) for number in range(count)]
    for name in names:
        image = Image.fromarray(rng.randint(0, 90, (size, size, 3)).astype(np.uint8))
        objects = ""
        for kind, width, height in zip(tiny_detector.CLASSES, (20, 30), (20, 12)):
            left, top = rng.randint(1, size - width), rng.randint(1, size - height)
            ImageDraw.Draw(image).rectangle([left, top, left + width, top + height], fill=(250, 120, 30))
            objects += (
                "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax>"
                "</bndbox></object>".format(kind, left, top, left + width, top + height)
            )
        image.save(os.path.join(folder, "JPEGImages", name + ".jpg"))
        with open(os.path.join(folder, "Annotations", name + ".xml"), "w") as stream:
            size_of = "<size><width>{0}</width><height>{0}</height></size>".format(size)
            stream.write("<annotation>{}{}</annotation>".format(size_of, objects))
    for name, members in (("train", names[:-2]), ("val", names[-2:])):
        with open(os.path.join(folder, "ImageSets", "Main", name + ".txt"), "w") as stream:
            stream.write("\n".join(members) + "\n")


def write_configs():
    """my.config is the one that the pages tell to copy, with the edits that they tell to make, but tiny."""
    from od_qat.od_api import pipeline

    edits = list(tiny_detector.SMALL) + [
        "model.ssd.feature_extractor.type=ssd_mobilenet_v1",
        "model.ssd.feature_extractor.num_layers=2",
        "model.ssd.anchor_generator.ssd_anchor_generator.num_layers=2",
        "train_config.batch_size=2",
        "train_config.num_steps=2",
        "train_config.data_augmentation_options=",
        "train_config.fine_tune_checkpoint=out/float/model.ckpt-2",
        "graph_rewriter.quantization.delay=0",
        "eval_config.num_visualizations=0",
    ]
    for reader, record in (("train_input_reader", "train"), ("eval_input_reader[0]", "val")):
        edits.append(reader + ".label_map_path=data/label_map.pbtxt")
        edits.append("{}.tf_record_input_reader.input_path=data/{}.record".format(reader, record))
    config = pipeline.load(os.path.join(REPOSITORY, "configs", "ssd_mobilenet_v2_qat.config"), edits)
    with open("my.config", "w") as stream:
        stream.write(pipeline.to_text(config))
    config.ClearField("graph_rewriter")
    config.train_config.ClearField("fine_tune_checkpoint")
    with open("float.config", "w") as stream:
        stream.write(pipeline.to_text(config))


def write_flowers():
    """What docs/classifiers.md tells to make: folders of photographs, and two configs."""
    blocks_ = []
    for seed, name in enumerate(("train", "val")):
        folder = tiny_classifier.write_folder(os.path.join("flowers", name), seed)
        blocks_.append('folder: "{}"'.format(folder))
    for kind in ("float", "qat"):
        with open("flowers_{}.config".format(kind), "w") as stream:
            stream.write(tiny_classifier.config(*blocks_, quantised=kind == "qat"))


def run(words):
    """Runs a command; returns its exit status and what it printed."""
    assert words[0] == "od-qat", words
    if words[1] == "run":  # absl keeps the flags of one program in a process
        environment = dict(
            os.environ, PYTHONPATH=os.pathsep.join([REPOSITORY, os.environ.get("PYTHONPATH", "")])
        )
        done = subprocess.run(
            [sys.executable, "-m", "od_qat"] + list(words[1:]),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        return done.returncode, done.stdout.decode("utf-8", "replace")
    output = io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        status = cli.main(list(words[1:]))
    return status, output.getvalue()


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """The folder where all have been run, and command -> (exit status, output)."""
    pytest.importorskip("ai_edge_litert", reason="the interpreter is not installed")
    need_od_api()
    from od_qat.od_api import patching
    from tests.generations import road

    folder, before = str(tmp_path_factory.mktemp("shown")), os.getcwd()
    os.chdir(folder)
    try:
        write_photos("photos")
        write_configs()
        write_flowers()
        road.copy(patching.find_tree(road.installed()), os.path.join("models", "research"))
        yield folder, {words: run(words) for words in TINY}
    finally:
        os.chdir(before)
        shutil.rmtree(folder)


@pytest.mark.parametrize("words", TINY, ids=" ".join)
def test_a_command_that_is_shown_runs(ran, words):
    status, output = ran[1][words]
    assert status == 0, output


def test_they_leave_what_the_pages_say(ran):
    for name in (
        "data/train.record data/val.record data/label_map.pbtxt data/dataset.json "
        "out/train/pipeline.config out/train/rewrite_report.json out/train/quant_ranges.json "
        "out/eval/metrics-2.json out/eval/frozen_eval_graph.pb "
        "out/tflite/detect.tflite out/tflite/detect.json out/tflite/tflite_graph.pb "
        "out/export/frozen_inference_graph.pb out/export/frozen_inference_graph.json"
    ).split():
        assert os.path.isfile(os.path.join(ran[0], *name.split("/"))), name


# What is read.


def parsers():
    """Command -> its parser."""
    parser = cli.build_parser()
    (action,) = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return action.choices


def flags_of(parser):
    """Its flags, and those of its own subcommands."""
    found = set()
    for action in parser._actions:
        found.update(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found.update(*map(flags_of, action.choices.values()))
    return found


def require_parsed(words):
    own, _ = command_line._split_program(words)
    try:
        cli.build_parser().parse_args(command_line._with_underscores(own))
    except SystemExit as end:
        assert not end.code, "od-qat does not take: " + " ".join(words)


def require_known(words):
    """Fails for a command that a user could not give as it is shown."""
    program = os.path.basename(words[0])
    if program == "od-qat":
        require_parsed(words[1:])
    elif program == "make":
        own = [name for name in os.environ if name.startswith(("MAKE", "MFLAGS")) or name in MAKE_VARIABLES]
        done = subprocess.run(
            ["make", "-n"] + words[1:],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env={name: value for name, value in os.environ.items() if name not in own},
        )
        text = done.stdout.decode()
        assert done.returncode == 0, text
        for line in text.replace("\\\n", " ").splitlines():
            if " -m od_qat " in line and "case " not in line:
                require_parsed(shlex.split(line.split(" -m od_qat ")[1]))
        with open(os.path.join(REPOSITORY, "Makefile"), encoding="utf-8") as stream:
            variables = set(re.findall(r"^([A-Z_]+) \??=", stream.read(), re.M))
        assert {word.partition("=")[0] for word in words[1:] if "=" in word} <= variables
    elif program == "python":
        source = read(words[1])
        for word in words[2:]:
            assert not word.startswith("--") or '"{}"'.format(word) in source, word
    else:
        assert program in ("pip", "export"), words


@pytest.mark.parametrize("page", PAGES)
def test_every_other_command_of_a_block_is_one(page):
    of_page = [block for block in SHELL if block.page == page and block.kind != "sh tiny"]
    for block in of_page:
        for words in commands(block.text):
            require_known(words)


@pytest.mark.parametrize("page", PAGES)
def test_no_command_is_shown_in_another_kind_of_block(page):
    """There it would be neither run nor read."""
    of_others = [block for block in blocks(page) if block.kind.split()[:1] != ["sh"]]
    text = "\n".join(block.text for block in of_others) + "\n".join(re.findall(r"^    .*$", read(page), re.M))
    assert re.findall(r"^ *(?:\$ )?(?:od-qat|make|python -m od_qat) .*$", text, re.M) == []


@pytest.mark.parametrize("page", PAGES)
def test_commands_and_flags_in_the_text_exist(page):
    known = parsers()
    scripts = "".join(
        read("benchmarks/" + name)
        for name in os.listdir(os.path.join(REPOSITORY, "benchmarks"))
        if name.endswith(".py")
    )
    every_flag = set().union(*map(flags_of, known.values())) | set(re.findall(r'"(--\w+)"', scripts))
    every_flag |= FLAGS_OF_SLIM
    if os.path.exists(UPSTREAMS_COMMAND):
        every_flag |= {"--" + name for name in re.findall(r"DEFINE_\w+\(\s*'(\w+)'", read(UPSTREAMS_COMMAND))}
    text = re.sub(r"^```.*?^```$", "", read(page), flags=re.M | re.S)
    makefile = read("Makefile")
    for span in re.findall(r"`([^`]+)`", text):
        words = span.split()
        if words[0] == "od-qat" and len(words) > 1 and words[1].islower():
            assert words[1] in known, span
            own, _ = command_line._split_program(words[1:])
            used = {word.partition("=")[0] for word in own if word.startswith("--")}
            assert used <= flags_of(known[words[1]]), span
        elif words[0] == "make" and len(words) > 1:
            assert re.search("^{}:".format(re.escape(words[1])), makefile, re.M), span
        elif words[0].startswith("--") and len(words[0]) > 2:
            assert words[0].partition("=")[0] in every_flag, span


def test_every_command_is_on_a_page():
    text = "".join(map(read, PAGES))
    assert [name for name in parsers() if "od-qat " + name not in text] == []


PYTHON = [block.text for block in blocks("docs/python.md") if block.kind == "python"]


def test_the_trainer_that_is_shown_is_od_qats():
    need_od_api()
    names = {}
    exec(PYTHON[0], names)
    assert names["trainer"].train.__module__.startswith("od_qat.")


def test_the_rewriting_that_is_shown_runs():
    import tf_slim as slim

    names = {}
    for source in PYTHON[1:]:
        with tf.Graph().as_default():
            net = slim.conv2d(tf.placeholder(tf.float32, [1, 8, 8, 3]), 4, 3, scope="Conv")
            slim.conv2d(net, 4, 1, scope="BoxPredictor_0/ClassPredictor")
            with contextlib.redirect_stdout(io.StringIO()):
                exec(source, names)
    assert list(names["report"].stays_float) == ["BoxPredictor_0/ClassPredictor/Conv2D"]
