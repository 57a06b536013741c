"""SIGTERM and Ctrl-C while training: the step in progress ends, the state is saved, then the process ends.

Preempted machines and batch schedulers send SIGTERM, and SIGKILL half a minute later or so.
"""

import os
import signal
import sys
import threading
import time
from typing import Dict, Optional

# What ends a training. (SIGKILL cannot be caught; a killed run goes on from its newest checkpoint.)
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A launcher may pass on a signal that the whole process group has got already: that is still the first.
_SAME_SECS = 0.5


class StopSignals(object):
    """Keeps the first signal for the training to see between two steps; a second one ends it all at once.

    A context manager, which puts the former handlers back. Nothing is changed before `listen`, nor where a
    caller cannot change it: off the main thread, and for a signal that is ignored (`nohup`, a script's
    background job) or has a handler that is not Python's.

    Args:
      patience_secs: how long a step in progress may go on after the signal, None for as long as it takes. One
        that waits for other processes may never end.
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
        """From here on there is something to save: signals are kept."""
        if threading.current_thread() is not threading.main_thread():
            return
        former = {number: signal.getsignal(number) for number in _SIGNALS}
        self._former = {n: h for n, h in former.items() if h is not None and h != signal.SIG_IGN}
        if not self._former:
            return
        # Python runs its handlers on the main thread between two instructions, which a step that hangs inside
        # TensorFlow never comes to. What it writes into this pipe is read by a thread at once.
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
        """Ends as the signal would have ended the process; to be called when all is saved.

        A handler of the caller's own is called, and this returns if that does. Python's own for SIGINT raises
        KeyboardInterrupt.

        Raises:
          SystemExit: with the status 128 + signal, where there was none.
        """
        former = self._former[self.received]
        if not callable(former):
            raise SystemExit(128 + self.received)
        former(self.received, None)


def name_of(number: int) -> str:
    """15 -> 'SIGTERM'."""
    return signal.Signals(number).name


def _keep(number, frame) -> None:
    """The handler: the thread does it all."""


def _say(text: str) -> None:
    print("\n" + text if sys.stderr.isatty() else text, file=sys.stderr, flush=True)


def _end_at_once(number: int) -> None:
    """As SIGKILL would, which a training survives; no thread that hangs can hold it up."""
    os._exit(128 + number)
