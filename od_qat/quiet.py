"""Keeps libraries from writing to the terminal if their errors reach the caller anyway."""

import contextlib
import logging
import os
import sys
import threading
from typing import Iterator


@contextlib.contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Discards what is written to file descriptor 2, for libraries that log there at any log level.

    TensorFlow does so while it loads ("All log messages before absl::InitializeLog() ..."), its converter
    while it runs, and LiteRT when it makes a delegate. Errors still reach the caller, as Python exceptions.
    With OD_QAT_DEBUG set, nothing is silenced.
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


@contextlib.contextmanager
def event_writer_silenced() -> Iterator[None]:
    """Discards what TensorFlow's thread that writes events prints if the disk is full.

    It logs and ends in a traceback, and the next call of the writer raises the same error. With OD_QAT_DEBUG
    set, nothing is silenced.
    """
    if os.environ.get("OD_QAT_DEBUG"):
        yield
        return
    log = logging.getLogger("tensorflow")
    former = getattr(threading, "excepthook", None)  # (none before Python 3.8)

    def silent(record) -> bool:
        return "EventFileWriter writer thread error" not in record.getMessage()

    def hook(arguments) -> None:
        if getattr(arguments.thread, "name", None) != "EventLoggerThread":
            former(arguments)

    log.addFilter(silent)
    if former is not None:
        threading.excepthook = hook
    try:
        yield
    finally:
        log.removeFilter(silent)
        if former is not None:
            threading.excepthook = former
