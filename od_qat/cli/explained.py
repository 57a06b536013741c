"""Turns errors, also those of the system and of TensorFlow, into one line that says what to do."""

import errno
import os
from typing import Optional

from od_qat.errors import OdQatError


def describe_error(error: BaseException, debug: bool = False) -> str:
    """Describes an error in one line: what it is and what to do."""
    if isinstance(error, OdQatError):
        return _one_line(str(error))
    known = _known_error(error)
    if known is not None:
        return _one_line(known)
    hint = "" if debug else "; run again with --debug for the traceback"
    return "{}: {}{}".format(type(error).__name__, _one_line(str(error), 300) or "no message", hint)


def _known_error(error: BaseException) -> Optional[str]:
    """Explains a known error of TensorFlow or the system; None for any other error."""
    message = _one_line(str(error), 300)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "the disk is full: at {}. Fix: free space there and run again".format(
            error.filename or "the output"
        )
    if isinstance(error, MemoryError):
        return "out of memory. Fix: lower train_config.batch_size or the input size, or close other programs"
    if isinstance(error, ModuleNotFoundError):
        return "the package {} is not installed. Fix: od-qat doctor says how to get what is missing".format(
            (error.name or "?").split(".")[0]
        )
    if isinstance(error, OSError) and error.filename and error.strerror:
        return "{}: at {}. Fix: correct the path or its permissions".format(
            error.strerror.lower(), error.filename
        )
    name = _tensorflow_error_name(error)
    explained = {
        "NotFoundError": (
            "a file or a variable of the checkpoint was not found",
            "check the paths of the config",
        ),
        "DataLossError": (
            "a checkpoint or record file is damaged",
            "use another checkpoint, or make it again",
        ),
        "PermissionDeniedError": ("a file cannot be read or written", "correct its permissions"),
    }
    if name == "ResourceExhaustedError":
        # (The whole text is searched: since TensorFlow 2.12 it begins with the place where the op was made.)
        if os.strerror(errno.ENOSPC) in str(error):
            return "the disk is full: {}. Fix: free space and run again".format(message)
        return "out of memory: {}. Fix: lower train_config.batch_size or the input size".format(message)
    if name in explained:
        what, fix = explained[name]
        return "{}: {}. Fix: {}".format(what, message, fix)
    return None


def _tensorflow_error_name(error: BaseException) -> Optional[str]:
    """The name of the tf.errors class of an error, found without importing TensorFlow; None for another."""
    for kind in type(error).__mro__:
        if kind.__module__.startswith("tensorflow.") and kind.__name__.endswith("Error"):
            return kind.__name__
    return None


def _one_line(text: str, limit: Optional[int] = None) -> str:
    line = " ".join(text.split())
    return line if limit is None or len(line) <= limit else line[: limit - 3] + "..."
