"""A process of its own for a model: what a damaged or hostile file does to it is caught and said.

The interpreter trusts a .tflite, so a damaged one can end the process that runs it; any model can loop for
ever. The process is started afresh, so it holds nothing of the caller's and, for a .tflite, does not import
TensorFlow. It sets itself an alarm before each thing that it does with the model, and its end, by the alarm,
by another signal or by itself, is read from its exit status. It is no sandbox: the process may do what the
user may.

The process ends when its parent does, however that ends, and has a session of its own, so that Ctrl-C reaches
the parent alone.
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

# Seconds for loading a model or for one image.
TIME_LIMIT = 60.0
# How long after its parent the process may end, when a fork of the parent keeps the connection open.
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 5.0
# When memory ends, this process goes first, not the caller. (Linux; see proc(5).)
_OUT_OF_MEMORY_SCORE = b"500"

_WARM_UP_RUNS = 3
# A slow model is measured with fewer runs, so that nobody waits for a number that is not going to change.
_MAX_SECONDS = 20.0
_MIN_RUNS = 5
_ANY_SIZE = (300, 300)


# In the caller.


def require_time_limit(seconds: float) -> None:
    """Raises ConfigError unless it is a time."""
    if not 0 < seconds < 1e6:
        raise ConfigError(
            "the time limit is not one", found=str(seconds), allowed="seconds above 0, fewer than a million"
        )


class ModelProcess(object):
    """The process, seen from its parent. It does one request after the other; each has one answer."""

    def __init__(self, description: ModelDescription, threads: int, time_limit: float) -> None:
        """Starts the process and asks it to open the model; :meth:`answer` says when it has."""
        self._connection, theirs = multiprocessing.Pipe()
        # What native code writes while it dies. (With OD_QAT_DEBUG the terminal has all of it.)
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
        # What it has been asked for, and has not answered.
        self._asked = collections.deque()  # type: Deque[str]
        self.open(description, threads, time_limit)

    @property
    def connection(self) -> Connection:
        """To wait for the answer with multiprocessing.connection.wait."""
        return self._connection

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def open(self, description: ModelDescription, threads: int, time_limit: float) -> None:
        """Asks for another model in the place of the last."""
        self._description, self._time_limit = description, time_limit
        try:
            folder = os.getcwd()  # type: Optional[str]
        except OSError:  # it has been removed
            folder = None
        self._ask("while it was loaded", "open", description, threads, time_limit, folder)

    def detect(self, image_id: Any, encoded: bytes) -> None:
        """Asks for the Detections in an image."""
        shown = str(image_id)
        shown = shown if shown.isprintable() else ascii(shown)
        self._ask("at image {}".format(shown), "detect", image_id, encoded)

    def latency(self, image: Optional[np.ndarray], runs: int) -> None:
        """Asks for the median milliseconds of one image."""
        self._ask("while its latency was measured", "latency", image, runs)

    def close_model(self) -> None:
        """Asks for what the model holds to be freed."""
        self._ask("while it was closed", "close")

    def _ask(self, doing: str, *request: Any) -> None:
        self._asked.append(doing)
        try:
            self._connection.send(request)
        except (BrokenPipeError, ConnectionResetError):
            raise self._what_ended_it() from None

    def answer(self) -> Any:
        """Waits for it.

        Raises:
          OdQatError: what the process raised; or how it ended, if it did.
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
        """Whether it has not ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """Ends it whatever it does."""
        self._process.kill()
        self._process.wait()
        self._let_go()

    def end(self) -> None:
        """Ends it when it has answered."""
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
        # (Where TensorFlow gives up, it says why in a line with F, and the stack comes after.)
        fatal = [line for line in lines if line.startswith("F0") or ": F " in line or "what():" in line]
        return ", saying: {}".format((fatal or lines)[-1][:200]) if lines else ""


# In the process.


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
        except Exception as error:  # (every kind: the caller is who has to know)
            answer = (True, _that_can_be_sent(error))
        finally:
            _set_alarm(0)
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


def _read(connection: Connection, requests: "queue.Queue", parent: int) -> None:
    """Takes requests while the model runs, so that the next image is there when it has ended.

    Ends the process when there will be none: not by the interpreter's own end, which takes TensorFlow a while
    and would wait for the model.
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

    # The alarm ends the process wherever it is, also in native code, if nobody has set it aside.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGALRM])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # A file that asks for more than the machine has gets an error instead of the machine's last page.
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
    except Exception:  # (whatever its class does)
        return OdQatError("{}: {}".format(type(error).__name__, " ".join(str(error).split())[:300]))


class _Server(object):
    """What can be asked for, by name."""

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
            # The time that TensorFlow takes is not the model's.
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
