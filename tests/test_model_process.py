"""Models run in processes of their own: what these end by is said, and they end when their parent does."""

import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from od_qat import scoring
from od_qat.errors import ConfigError, ExportError
from od_qat.model_files.description import describe_model
from od_qat.scoring import workers
from tests.conftest import REPOSITORY
from tests.test_scoring import CANONICAL, EXAMPLES, png, write, write_record


def copy_of(model_dir, folder, name, old=b"", new=b""):
    """A copy of a model and its JSON, with one string in it changed; returns its path."""
    path = os.path.join(str(folder), name)
    for source in (os.path.join(model_dir, name), scoring.json_path(os.path.join(model_dir, name))):
        with open(source, "rb") as stream:
            content = stream.read()
        if source.endswith(name):
            assert content.count(old) == 1 or not old
            content = content.replace(old, new)
        write(os.path.join(str(folder), os.path.basename(source)), content)
    return path


def crashing(model_dir, folder):
    """Two bits flipped: LiteRT then writes detections to an array without room for any."""
    return copy_of(
        model_dir, folder, "int8.tflite", b"max_classes_per_detection", b"max_clasces_per_detection"
    )


def looping(tf, path):
    """A frozen graph with a loop that has no end."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name=CANONICAL["image"])
        start = tf.reduce_sum(tf.cast(image, tf.float32))
        end = tf.while_loop(lambda value: value >= 0.0, lambda value: value * 0.5, [start])
        shapes = {"boxes": [1, 1, 4], "classes": [1, 1], "scores": [1, 1], "count": [1]}
        for role, shape in shapes.items():
            tf.identity(tf.fill(shape, end), name=CANONICAL[role])
    write(path, graph.as_graph_def().SerializeToString())
    return path


@pytest.mark.parametrize("processes", [1, 2])
def test_a_tflite_that_crashes_the_interpreter_is_an_error(model_dir, tmp_path, processes):
    path = crashing(model_dir, tmp_path)
    with pytest.raises(ExportError, match="crashed") as caught:
        scoring.detect(path, EXAMPLES, processes=processes, progress=False)
    text = str(caught.value)
    assert "at {}, found signal 11 (SIGSEGV), at image image ".format(path) in text and "\n" not in text
    assert "damaged" in caught.value.fix
    # And the next model is none the worse for it.
    assert len(scoring.detect(os.path.join(model_dir, "int8.tflite"), EXAMPLES[:2], progress=False)) == 2


def test_latency_and_the_command_say_so_too(model_dir, tmp_path, tf, capfd):
    from od_qat import cli
    from od_qat.datasets import label_map

    path = crashing(model_dir, tmp_path)
    with pytest.raises(ExportError, match="SIGSEGV.*while its latency was measured"):
        scoring.latency(path, image=np.full([32, 32, 3], 255, np.uint8))
    record, labels = str(tmp_path / "val.record"), str(tmp_path / "labels.pbtxt")
    write_record(tf, record, EXAMPLES)
    label_map.write_label_map(labels, ["red", "green", "blue"])
    capfd.readouterr()
    arguments = ["--model", path, "--record", record, "--label_map", labels, "--processes", "1"]
    assert cli.main(["score"] + arguments) == 1
    printed = capfd.readouterr()
    (line,) = printed.err.splitlines()
    assert line.startswith("od-qat: error: the process that runs the model crashed: at {},".format(path))
    assert printed.out == ""


@pytest.mark.tf1
def test_an_endless_loop_is_ended(tf, tmp_path):
    path = looping(tf, str(tmp_path / "loop.pb"))
    start = time.time()
    with pytest.raises(ExportError, match="takes too long") as caught:
        scoring.detect(path, EXAMPLES[:1], progress=False, time_limit=2)
    assert time.time() - start < 40  # with TensorFlow's start
    assert "no end after 2 seconds, at image image 0" in str(caught.value)
    assert "--time_limit" in caught.value.fix and "\n" not in str(caught.value)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_time_limit_is_a_time(model_dir, seconds):
    with pytest.raises(ConfigError, match="time limit"):
        scoring.detect(os.path.join(model_dir, "int8.tflite"), EXAMPLES[:1], time_limit=seconds)


def test_a_process_that_somebody_kills_is_said(model_dir):
    model = describe_model(os.path.join(model_dir, "int8.tflite"))

    def examples():
        for number, example in enumerate(EXAMPLES):
            if number == 3:
                os.kill(pool.pids()[0], signal.SIGKILL)
                time.sleep(0.1)
            yield example

    with pytest.raises(ExportError, match=r"signal 9 \(SIGKILL\).*memory"):
        with workers.Pool(model) as pool:
            pool.detect(examples(), None, 1, False)


def test_one_process_with_tensorflow_is_kept_for_the_next_graph(model_dir, tmp_path, monkeypatch):
    """And opens files as they are then, from where its parent is then."""
    model = describe_model(os.path.join(model_dir, "named.pb"))
    with workers.Pool(model) as pool:
        pool.detect(EXAMPLES[:1], 1, 1, False)
        (first,) = pool.pids()
    copy_of(model_dir, tmp_path, "named.pb")
    monkeypatch.chdir(tmp_path)
    with workers.Pool(describe_model("named.pb")) as pool:
        assert len(pool.detect(EXAMPLES[:2], 2, 1, False)) == 2
        assert pool.pids() == [first]
    lite = describe_model(os.path.join(model_dir, "int8.tflite"))
    pids = set()
    for _ in range(2):
        with workers.Pool(lite) as pool:
            pool.detect(EXAMPLES[:1], 1, 1, False)
            pids.update(pool.pids())
    assert len(pids) == 2 and first not in pids and not any(map(runs, pids))


@pytest.mark.long  # TensorFlow waits ten seconds for memory to come free
def test_memory_that_the_machine_does_not_have_is_an_error(tf, tmp_path):
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name=CANONICAL["image"])
        many = tf.fill([2**20, 2**20], tf.reduce_max(tf.cast(image, tf.float32)))
        shapes = {"boxes": [1, 1, 4], "classes": [1, 1], "scores": [1, 1], "count": [1]}
        for role, shape in shapes.items():
            tf.fill(shape, tf.reduce_max(many), name=CANONICAL[role])
    write(str(tmp_path / "a.pb"), graph.as_graph_def().SerializeToString())
    with pytest.raises(ExportError) as caught:
        scoring.detect(str(tmp_path / "a.pb"), EXAMPLES[:1], progress=False)
    assert "1048576,1048576" in str(caught.value) and "\n" not in str(caught.value)


# The end of the parent.

# Decoding one takes a tenth of a second, so that there is time to end the parent.
LARGE = png(np.zeros([2500, 2500, 3], np.uint8))


def runs(pid):
    try:
        with open("/proc/{}/stat".format(pid)) as stream:
            return stream.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def model_processes(parent):
    """Pids of the processes that run models for a process."""
    with open("/proc/{0}/task/{0}/children".format(parent)) as stream:
        children = stream.read().split()
    found = []
    for child in children:
        with open("/proc/{}/cmdline".format(child), "rb") as stream:
            if b"model_process" in stream.read():
                found.append(int(child))
    return found


def ended_by(number, arguments, folder):
    """Sends a signal once two processes have worked for a while; the exit status and what was printed.

    Fails when a process outlives its parent.
    """
    environment = dict(os.environ, PYTHONPATH=REPOSITORY, PYTHONUNBUFFERED="1")
    parent = subprocess.Popen(
        [sys.executable] + arguments,
        cwd=str(folder),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        pids, deadline = [], time.time() + 90
        while len(pids) < 2 and time.time() < deadline and parent.poll() is None:
            time.sleep(0.05)
            pids = model_processes(parent.pid)
        assert len(pids) == 2, parent.communicate()[0]
        time.sleep(0.5)
        assert parent.poll() is None, parent.communicate()[0]
        parent.send_signal(number)
        printed = parent.communicate(timeout=60)[0].decode()
    finally:
        if parent.poll() is None:
            parent.kill()
    deadline = time.time() + 10
    while any(map(runs, pids)) and time.time() < deadline:
        time.sleep(0.05)
    assert not any(map(runs, pids))
    return parent.returncode, printed


def test_sigterm_and_ctrl_c_end_score_with_its_processes(model_dir, tmp_path, tf):
    from od_qat.datasets import label_map

    examples = [EXAMPLES[0]._replace(image_id=str(number), encoded=LARGE) for number in range(300)]
    write_record(tf, str(tmp_path / "val.record"), examples)
    label_map.write_label_map(str(tmp_path / "labels.pbtxt"), ["red", "green", "blue"])
    arguments = ["-m", "od_qat", "score", "--model", os.path.join(model_dir, "int8.tflite")]
    arguments += ["--record", "val.record", "--label_map", "labels.pbtxt", "--processes", "2"]
    # (As a shell says it: 143.)
    status, printed = ended_by(signal.SIGTERM, arguments, tmp_path)
    assert status in (-signal.SIGTERM, 143) and "Traceback" not in printed
    assert ended_by(signal.SIGINT, arguments, tmp_path) == (130, "od-qat: interrupted\n")


def test_kill_9_ends_the_processes_too_whatever_they_do(model_dir, tmp_path):
    (tmp_path / "image.png").write_bytes(LARGE)
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import collections, itertools, sys
            from od_qat import scoring
            Example = collections.namedtuple("Example", "image_id encoded")
            encoded = open("image.png", "rb").read()
            scoring.detect(sys.argv[1], (Example(n, encoded) for n in itertools.count()), processes=2)
            """
        )
    )
    arguments = ["script.py", os.path.join(model_dir, "int8.tflite")]
    assert ended_by(signal.SIGKILL, arguments, tmp_path)[0] == -signal.SIGKILL
