"""SIGTERM and Ctrl-C end a training after its step: the state is saved, then the process ends.

Preempted machines and batch schedulers send SIGTERM, and SIGKILL about half a minute later.
"""

import os
import signal
import sys
import threading
import time
from typing import Dict, Optional

# The signals that end a training. (SIGKILL cannot be caught; a killed run continues from its newest
# checkpoint.)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher may pass on a signal that the whole process group already got. That still counts as the first.
_SAME_SECS = 0.5


class StopSignals(object):
    """Keeps the first signal, which the training sees between two steps. A second one ends the process at
    once.

    It is a context manager that puts the former handlers back. It changes no handler before `listen`. It
    leaves alone what it cannot change (off the main thread, or a handler that is not Python's) and signals
    that are ignored (`nohup`, a script's background job).

    Args:
      patience_secs: how long the step in progress may take after the signal; None for no limit. A step that
        waits for other processes may never end.
    """

    def __init__(self, patience_secs: Optional[float] = None) -> None:
        self._patience = patience_secs
        self._former: Dict[int, object] = {}
        self._first_at = 0.0
        self._thread: Optional[threading.Thread] = None
        self._ended = threading.Event()
        self.received: Optional[int] = None

    def __enter__(self) -> "StopSignals":
        return self

    def listen(self) -> None:
        """Keeps signals from now on, since now there is something to save."""
        if threading.current_thread() is not threading.main_thread():
            return
        former = {number: signal.getsignal(number) for number in _SIGNALS}
        self._former = {n: h for n, h in former.items() if h is not None and h != signal.SIG_IGN}
        if not self._former:
            return
        # Python runs its handlers on the main thread between two instructions. A step that hangs inside
        # TensorFlow never gets there, so a thread reads the signals from this pipe at once.
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        self._former_wakeup = signal.set_wakeup_fd(self._writer)
        for number in self._former:
            signal.signal(number, _keep)
        self._thread = threading.Thread(target=self._watch, name="stop_signals", daemon=True)
        self._thread.start()

    def __exit__(self, *exc_info) -> None:
        self._ended.set()
        if self._thread is None:
            return
        for number, handler in self._former.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._former_wakeup)
        os.write(self._writer, b"\0")
        self._thread.join()
        self._thread = None
        os.close(self._reader)
        os.close(self._writer)

    def _watch(self) -> None:
        while True:
            number = os.read(self._reader, 1)[0]
            if not number:
                return
            if number not in self._former:
                continue
            if self.received is None:
                self._first_at = time.time()
                self.received = number
                _say(
                    "{}: this step ends and what was trained is saved; a second signal ends at once".format(
                        name_of(number)
                    )
                )
                if self._patience is not None:
                    threading.Thread(target=self._lose_patience, daemon=True).start()
            elif time.time() - self._first_at > _SAME_SECS:
                _end_at_once(number)

    def _lose_patience(self) -> None:
        if not self._ended.wait(self._patience):
            _say(
                "the step has not ended within {:g} s, so nothing is saved; the newest checkpoint is from "
                "before".format(self._patience)
            )
            _end_at_once(self.received)

    def deliver(self) -> None:
        """Ends the process as the signal would have done. Call it when everything is saved.

        If the caller had a handler of its own, that is called, and this returns if the handler does. Python's
        handler for SIGINT raises KeyboardInterrupt.

        Raises:
          SystemExit: with the status 128 + signal, if there was no handler.
        """
        former = self._former[self.received]
        if not callable(former):
            raise SystemExit(128 + self.received)
        former(self.received, None)


def name_of(number: int) -> str:
    """The name of a signal: 'SIGTERM' for 15."""
    return signal.Signals(number).name


def _keep(number, frame) -> None:
    """A handler that does nothing; the thread reads the signal from the pipe."""


def _say(text: str) -> None:
    print("\n" + text if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _end_at_once(number: int) -> None:
    """Ends the process as SIGKILL would. No hanging thread can delay it, and the training can be resumed."""
    os._exit(128 + number)
