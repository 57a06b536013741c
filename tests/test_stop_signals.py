"""SIGTERM and Ctrl-C: the state is saved and the process ends as usual; a second one ends it at once."""

import glob
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import pytest

from tests.conftest import REPOSITORY

pytestmark = [
    pytest.mark.tf1,
    pytest.mark.skipif(os.name != "posix", reason="signals are otherwise elsewhere"),
]

# A loop as a training's: a step, a look, at the end a save. It ends by itself after 30 s, and says how.
PROGRAM = """
import signal, sys, threading, time
from od_qat.training.signals import StopSignals

def loop(step):
    with StopSignals({patience}) as signals:
        signals.listen()
        print("begun", flush=True)
        until = time.time() + 30
        while signals.received is None and time.time() < until:
            step()
        print("saved", flush=True)
    if signals.received is not None:
        signals.deliver()
    print("returned", flush=True)

def short():
    time.sleep(0.05)

def endless():
    # (On the main thread this holds Python's own handlers up, as a step that hangs inside TensorFlow does.)
    threading.Lock().acquire() and threading.Event().wait(30)

{body}
"""


class Program(object):
    """A process of PROGRAM; its signals are sent once the loop has begun."""

    def __init__(self, body, patience=None):
        code = textwrap.dedent(PROGRAM).format(body=textwrap.dedent(body), patience=patience)
        self._process = subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # (A test run in the background of a script ignores SIGINT, and its children would.)
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def signalled(self, *numbers):
        """Sends them within the loop, one after the other; returns status, output and errors."""
        line = self._process.stdout.readline()
        assert line == b"begun\n", self._process.stderr.read()
        for number in numbers:
            time.sleep(0.7)
            self._process.send_signal(number)
        output, errors = self._process.communicate(timeout=60)
        return self._process.returncode, output.decode(), errors.decode()


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_first_signal_saves_and_ends(name, status):
    ended, output, errors = Program("loop(short)").signalled(getattr(signal, name))
    # (Python ends after a KeyboardInterrupt by the signal itself, before 3.8 with 1.)
    assert ended in ((status,) if name == "SIGTERM" else (-signal.SIGINT, 1))
    assert output == "saved\n"
    assert errors.startswith(name + ": this step ends and what was trained is saved; a second signal ends at")
    assert "KeyboardInterrupt" in errors or name == "SIGTERM"


@pytest.mark.parametrize("name, status", [("SIGTERM", 143), ("SIGINT", 130)])
def test_the_second_signal_ends_at_once(name, status):
    started = time.time()
    ended, output, _ = Program("loop(endless)").signalled(getattr(signal, name), getattr(signal, name))
    assert (ended, output) == (status, "")
    assert time.time() - started < 20


def test_a_signal_that_is_passed_on_twice_is_one():
    program = Program("loop(short)")
    assert program._process.stdout.readline() == b"begun\n"
    for _ in range(3):
        program._process.send_signal(signal.SIGTERM)
    output, _ = program._process.communicate(timeout=60)
    assert (program._process.returncode, output) == (143, b"saved\n")


def test_a_step_that_waits_for_others_is_not_waited_for_long():
    ended, output, errors = Program("loop(endless)", patience=1).signalled(signal.SIGTERM)
    assert (ended, output) == (143, "")
    assert "has not ended within 1 s, so nothing is saved" in errors


def test_handlers_of_the_caller_are_called_and_put_back():
    body = """
        signal.signal(signal.SIGTERM, lambda *arguments: print("mine", flush=True))
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        loop(short)
        signal.getsignal(signal.SIGTERM)()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    """
    ended, output, errors = Program(body).signalled(signal.SIGINT, signal.SIGTERM)
    assert (ended, output) == (0, "saved\nmine\nreturned\nmine\n"), errors
    assert errors.splitlines() == [errors.strip()] and errors.startswith("SIGTERM: ")


def test_off_the_main_thread_signals_are_left_alone():
    body = """
        former = signal.getsignal(signal.SIGTERM)
        thread = threading.Thread(target=loop, args=(short,), daemon=True)
        thread.start()
        assert signal.getsignal(signal.SIGTERM) == former
        thread.join()
    """
    ended, output, _ = Program(body).signalled(signal.SIGTERM)
    assert (ended, output) == (-signal.SIGTERM, "")


@pytest.mark.long_on_tf1
def test_a_training(tmp_path, capsys):
    """od-qat train on the main thread of this process: what is said is there, and is gone on from."""
    from od_qat import compat

    compat.enable_tf1_behaviour()
    try:
        from od_qat import checkpoints, cli
    except Exception as error:  # noqa: BLE001
        pytest.skip("the OD API cannot be imported: {}".format(error))
    pytest.importorskip("object_detection")
    from tests.helpers import tiny_detector

    tiny_detector.write_data(str(tmp_path))
    config = tiny_detector.write_config(str(tmp_path), False, "float", 100000)
    train_dir = str(tmp_path / "train")
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]

    def terminate():
        while signal.getsignal(signal.SIGTERM) == handlers[0]:
            time.sleep(0.1)
        time.sleep(2)
        os.kill(os.getpid(), signal.SIGTERM)

    beside = threading.Thread(target=terminate, daemon=True)
    beside.start()
    command = ["train", "--pipeline_config_path=" + config, "--train_dir=" + train_dir]
    assert cli.main(command) == 143
    said = capsys.readouterr().err.strip().splitlines()[-1]
    newest = checkpoints.newest(train_dir)
    step = checkpoints.step_of(newest)
    assert step > 0
    assert said == "SIGTERM: step {} is saved as {}; the same command goes on from there".format(step, newest)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert not glob.glob(os.path.join(train_dir, "*temp*"))
