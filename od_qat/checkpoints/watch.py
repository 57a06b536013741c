"""Waits for the checkpoints of a training, and hands each to an evaluation."""

import gc
import sys
import time
from typing import Callable, Optional, TypeVar

from od_qat.checkpoints.on_disk import latest, newest
from od_qat.errors import CheckpointError

Result = TypeVar("Result")

# The files of the first checkpoint appear before the folder's list names it, by less than these seconds.
_BETWEEN_FILES = 5


class Watch(object):
    """The folder of a training, in which checkpoints appear.

    Args:
      folder: the train_dir.
      interval_secs: time between two looks.
      timeout_secs: how long it waits for a checkpoint; None for ever.
    """

    def __init__(self, folder: str, interval_secs: float, timeout_secs: Optional[float] = None) -> None:
        self._folder = folder
        self._interval = interval_secs
        self._timeout = timeout_secs

    def first(self, wait: bool) -> str:
        """The newest checkpoint; if there is none, the first that comes.

        Args:
          wait: whether to wait for one.

        Raises:
          CheckpointError: if there is none at the end.
        """
        if not wait:
            return latest(self._folder)
        told, deadline = False, _Deadline(self._timeout)
        while True:
            try:
                found = newest(self._folder)
            except CheckpointError:
                time.sleep(_BETWEEN_FILES)
                return latest(self._folder)
            if found:
                return found
            if not told:
                text = "no checkpoint in {} yet: looking again every {} s; Ctrl-C ends this"
                print(text.format(self._folder, self._interval), file=sys.stderr)
                told = True
            if not deadline.sleep(self._interval):
                return latest(self._folder)

    def each(self, act: Callable[[str], Result], most: int = 0) -> Result:
        """Calls a function with the newest checkpoint, and with each newer one as it appears.

        Args:
          act: takes the prefix of a checkpoint.
          most: the number of checkpoints after which it ends; 0 for no end.

        Returns:
          what the last call returned.

        Raises:
          CheckpointError: if there is no checkpoint, or if `act` raises it for one that is still there.
        """
        last, count, deadline = None, 0, _Deadline(self._timeout)
        while True:
            found = latest(self._folder)
            if found != last:
                try:
                    result = act(found)
                except CheckpointError:
                    # A training keeps its last five checkpoints, so this one may be gone by now.
                    if latest(self._folder) == found:
                        raise
                    continue
                gc.collect()  # (The graph of the evaluation holds itself in cycles.)
                last = found
                count += 1
                deadline = _Deadline(self._timeout)
                if count == most:
                    return result
            if not deadline.sleep(self._interval):
                print("no newer checkpoint in {:g} s: ends".format(self._timeout), file=sys.stderr)
                return result


class _Deadline(object):
    """How long to wait for a checkpoint, from now on."""

    def __init__(self, secs: Optional[float]) -> None:
        self._end = float("inf") if secs is None else time.time() + secs

    def sleep(self, secs: float) -> bool:
        """Sleeps, at most until the end of the time; returns False if that had come before."""
        left = self._end - time.time()
        if left <= 0:
            return False
        time.sleep(min(secs, left))
        return True
