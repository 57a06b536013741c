"""Keeping C++ libraries off the terminal."""

import contextlib
import os
import sys
from typing import Iterator


@contextlib.contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Sends file descriptor 2 to nowhere, for libraries that log to it whatever their log level is.

    TensorFlow does while it loads ("All log messages before absl::InitializeLog() ..."), its converter while
    it runs, LiteRT when it makes a delegate. Errors still reach the caller, as Python exceptions. With
    OD_QAT_DEBUG set, nothing is silenced.
    """
    saved = None
    if not os.environ.get("OD_QAT_DEBUG"):
        try:
            sys.stderr.flush()
            saved = os.dup(2)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 2)
            os.close(null)
        except (AttributeError, OSError):  # no stderr at all (a daemon, pythonw)
            pass
    try:
        yield
    finally:
        if saved is not None:
            os.dup2(saved, 2)
            os.close(saved)
