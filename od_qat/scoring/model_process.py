"""Runs a model in a process of its own, so that a damaged or hostile file ends in an error and not in a
crash.

The interpreter trusts a .tflite, so a damaged one can end the process that runs it. Any model can loop for
ever. The process is started anew: it holds nothing of the caller and, for a .tflite, does not import
TensorFlow. Before each thing that it does with the model, it sets an alarm. Its exit status tells whether the
alarm, another signal or the process itself ended it. It is no sandbox: the process may do what the user may.

The process ends when its parent ends, in whatever way. It has a session of its own, so that Ctrl-C reaches
only the parent.
"""

import collections
import multiprocessing
import os
import pickle
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from multiprocessing.connection import Connection
from typing import Any, Optional

import numpy as np

from od_qat.errors import ConfigError, EnvironmentProblem, ExportError, OdQatError
from od_qat.model_files.description import ModelDescription
from od_qat.scoring import images, runners

# Seconds for loading a model, and for each image.
TIME_LIMIT = 60.0
# How many seconds after its parent the process ends if a fork of the parent keeps the connection open.
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 5.0
# When memory runs out, this process is ended and not the caller. (Linux; see proc(5).)
_OUT_OF_MEMORY_SCORE = b"500"

_WARM_UP_RUNS = 3
# A slow model is measured with fewer runs: more would take long and change little.
_MAX_SECONDS = 20.0
_MIN_RUNS = 5
_ANY_SIZE = (300, 300)


# What runs in the caller.


def require_time_limit(seconds: float) -> None:
    """Raises ConfigError unless it is a positive number of seconds."""
    if not 0 < seconds < 1e6:
        raise ConfigError(
            "the time limit cannot be used",
            found=str(seconds),
            allowed="seconds above 0, fewer than a million",
        )


class ModelProcess(object):
    """The process as its parent sees it. It handles one request after the other and answers each."""

    def __init__(self, description: ModelDescription, threads: int, time_limit: float) -> None:
        """Starts the process and asks it to open the model; :meth:`answer` says when it has."""
        self._connection, theirs = multiprocessing.Pipe()
        # Native code writes here while it crashes. (With OD_QAT_DEBUG it writes to the terminal.)
        self._log = None if os.environ.get("OD_QAT_DEBUG") else tempfile.TemporaryFile()
        program = "import sys; sys.path[:] = {!r}; from od_qat.scoring import model_process; {}".format(
            list(map(str, sys.path)), "model_process.serve({}, {})".format(theirs.fileno(), os.getpid())
        )
        output = 2 if self._log is None else self._log
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", program],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        # The requests that it has not answered.
        self._asked = collections.deque()  # type: Deque[str]
        self.open(description, threads, time_limit)

    @property
    def connection(self) -> Connection:
        """The connection, to wait for the answer with multiprocessing.connection.wait."""
        return self._connection

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def open(self, description: ModelDescription, threads: int, time_limit: float) -> None:
        """Asks it to open another model in place of the last."""
        self._description, self._time_limit = description, time_limit
        try:
            folder = os.getcwd()  # type: Optional[str]
        except OSError:  # the folder was removed
            folder = None
        self._ask("while it was loaded", "open", description, threads, time_limit, folder)

    def detect(self, image_id: Any, encoded: bytes) -> None:
        """Asks for the Detections of an image."""
        shown = str(image_id)
        shown = shown if shown.isprintable() else ascii(shown)
        self._ask("at image {}".format(shown), "detect", image_id, encoded)

    def latency(self, image: Optional[np.ndarray], runs: int) -> None:
        """Asks for the median milliseconds of one image."""
        self._ask("while its latency was measured", "latency", image, runs)

    def close_model(self) -> None:
        """Asks it to free what the model holds."""
        self._ask("while it was closed", "close")

    def _ask(self, doing: str, *request: Any) -> None:
        self._asked.append(doing)
        try:
            self._connection.send(request)
        except (BrokenPipeError, ConnectionResetError):
            raise self._what_ended_it() from None

    def answer(self) -> Any:
        """Waits for the next answer and returns it.

        Raises:
          OdQatError: the error that the process raised, or how the process ended.
        """
        try:
            failed, value = self._connection.recv()
        except (EOFError, OSError):
            raise self._what_ended_it() from None
        self._asked.popleft()
        if failed:
            raise value
        return value

    def is_alive(self) -> bool:
        """Whether the process is running."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        self._let_go()

    def end(self) -> None:
        """Ends the process after its answers."""
        self._connection.close()
        try:
            self._process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        self._connection.close()
        if self._log is not None:
            self._log.close()

    def _what_ended_it(self) -> OdQatError:
        status = self._process.wait()
        said = self._last_words()
        self._let_go()
        where, doing = self._description.path, self._asked[0]
        if status == -signal.SIGALRM:
            return ExportError(
                "the model takes too long",
                where=where,
                found="no end after {:g} seconds, {}".format(self._time_limit, doing),
                fix="it may have an endless loop; if it is only slow, allow it more with --time_limit",
            )
        if status >= 0:
            return EnvironmentProblem(
                "the process that runs the model ended by itself",
                where=where,
                found="status {}, {}{}".format(status, doing, said),
                fix="run it again with OD_QAT_DEBUG=1 in the environment, which shows all that it writes",
            )
        try:
            name = "signal {} ({})".format(-status, signal.Signals(-status).name)
        except ValueError:
            name = "signal {}".format(-status)
        if status in (-signal.SIGKILL, -signal.SIGTERM):
            fix = "somebody ended it, or the memory did not suffice: use fewer processes"
        else:
            fix = "the file is damaged, or made for another version: copy or export it again"
        return ExportError(
            "the process that runs the model crashed",
            where=where,
            found="{}, {}{}".format(name, doing, said),
            fix=fix,
        )

    def _last_words(self) -> str:
        """The last line that the process wrote, after a comma."""
        if self._log is None:
            return ""
        self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, self._log.tell() - 4000))
        lines = self._log.read().decode("utf-8", "replace").splitlines()
        lines = ["".join(filter(str.isprintable, line)).strip() for line in lines]
        lines = [line for line in lines if line]
        # (If TensorFlow aborts, a line with F says why, and the stack follows.)
        fatal = [line for line in lines if line.startswith("F0") or ": F " in line or "what():" in line]
        return ", saying: {}".format((fatal or lines)[-1][:200]) if lines else ""


# What runs in the process.


def serve(descriptor: int, parent: int) -> None:
    """Answers requests until the parent ends or closes the connection."""
    _set_limits()
    connection = Connection(descriptor)
    requests = queue.Queue()  # type: queue.Queue
    threading.Thread(target=_read, args=(connection, requests, parent), daemon=True).start()
    server = _Server()
    while True:
        request = requests.get()
        try:
            answer = (False, getattr(server, request[0])(*request[1:]))
        except Exception as error:  # (of any kind: the caller has to know)
            answer = (True, _that_can_be_sent(error))
        finally:
            _set_alarm(0)
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


def _read(connection: Connection, requests: "queue.Queue", parent: int) -> None:
    """Reads requests while the model runs, so that the next image is there when the model is done.

    It ends the process when no more will come. It does not use Python's own exit, which takes long with
    TensorFlow and would wait for the model.
    """
    while os.getppid() == parent:
        if connection.poll(_SECONDS_BETWEEN_LOOKS):
            try:
                requests.put(connection.recv())
            except (EOFError, OSError):
                break
    os._exit(0)


def _set_limits() -> None:
    import resource

    # The alarm ends the process wherever it is, also in native code, unless somebody blocked it.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A file that asks for more memory than the machine has gets an error.
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    if soft == resource.RLIM_INFINITY or soft > machine:
        resource.setrlimit(resource.RLIMIT_DATA, (machine, hard))
    try:
        with open("/proc/self/oom_score_adj", "wb") as stream:
            stream.write(_OUT_OF_MEMORY_SCORE)
    except OSError:
        pass


def _set_alarm(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


def _that_can_be_sent(error: Exception) -> Exception:
    try:
        pickle.loads(pickle.dumps(error))
        return error
    except Exception:  # (its class may do anything)
        return OdQatError("{}: {}".format(type(error).__name__, " ".join(str(error).split())[:300]))


class _Server(object):
    """The requests that the process handles, by name."""

    def __init__(self) -> None:
        self._runner = None  # type: Any
        self._time_limit = TIME_LIMIT

    def open(
        self, description: ModelDescription, threads: int, time_limit: float, folder: Optional[str]
    ) -> None:
        self._time_limit = time_limit
        if folder is not None:
            os.chdir(folder)
        if not description.is_tflite:
            # Importing TensorFlow does not count as time of the model.
            from od_qat import compat  # noqa: F401
        _set_alarm(time_limit)
        self._runner = runners.open_runner(description, threads)

    def detect(self, image_id: Any, encoded: bytes) -> runners.Detections:
        _set_alarm(self._time_limit)
        return self._runner.detect(images.decode(encoded, str(image_id)))

    def latency(self, image: Optional[np.ndarray], runs: int) -> float:
        runner = self._runner
        if image is None:
            size = runner.image_size or _ANY_SIZE
            image = np.random.RandomState(0).randint(0, 256, tuple(size) + (3,)).astype(np.uint8)
        _set_alarm(self._time_limit)
        value = runner.prepare(image)
        for _ in range(_WARM_UP_RUNS):
            _set_alarm(self._time_limit)
            runner.run(value)
        seconds = []
        end = time.perf_counter() + _MAX_SECONDS
        while len(seconds) < runs and (len(seconds) < _MIN_RUNS or time.perf_counter() < end):
            _set_alarm(self._time_limit)
            start = time.perf_counter()
            runner.run(value)
            seconds.append(time.perf_counter() - start)
        return 1000.0 * float(np.median(seconds))

    def close(self) -> None:
        if self._runner is not None:
            _set_alarm(self._time_limit)
            self._runner.close()
            self._runner = None
