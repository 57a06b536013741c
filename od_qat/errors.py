"""The exceptions that od_qat raises for everything that a user can put right.

All are OdQatErrors. Their messages always have the same form, in one line::

    what happened: at where (file or node), found ..., allowed: .... Fix: ...
"""

import re
from typing import Optional

# Lines of TensorFlow's messages without information, and the start of the last line before the cause.
_BOILERPLATE = re.compile(r"(Graph execution error|Detected at node|\d+ root error|Traceback|File \").*")
_LAST_BEFORE = "Node: "


class OdQatError(Exception):
    """Says what went wrong, where, what was found, what is allowed and what to do next.

    Args:
      what: what went wrong, in one clause.
      where: the file, node or config field.
      found: what was found there.
      allowed: what would be accepted.
      fix: what to do next, as an imperative.
    """

    def __init__(
        self,
        what: str,
        where: Optional[str] = None,
        found: Optional[str] = None,
        allowed: Optional[str] = None,
        fix: Optional[str] = None,
    ) -> None:
        self.what = what
        self.where = where
        self.found = found
        self.allowed = allowed
        self.fix = fix
        text = self.without_fix()
        super(OdQatError, self).__init__(text + ". Fix: " + fix if fix else text)

    def without_fix(self) -> str:
        """Returns the message without what to do next."""
        details = []
        if self.where:
            details.append("at {}".format(self.where))
        if self.found is not None:
            details.append("found {}".format(self.found))
        if self.allowed is not None:
            details.append("allowed: {}".format(self.allowed))
        return self.what + ": " + ", ".join(details) if details else self.what


def quoted(text: object, limit: int = 300) -> str:
    """Makes the text of a library or file fit into a message: one printable line, cut at `limit`."""
    line = "".join(one if one.isprintable() else "?" for one in " ".join(str(text).split()))
    return line if len(line) <= limit else line[: limit - 4] + " ..."


def first_line(error: Exception) -> str:
    """Returns the first line of an exception's text that has information, or else the exception's type."""
    lines = str(error).splitlines()
    for number, line in enumerate(lines[:-1]):
        if line.startswith(_LAST_BEFORE):
            lines = lines[number + 1 :]
            break
    for line in map(quoted, lines):
        if line and not _BOILERPLATE.match(line):
            return line.rstrip(".")
    return "out of memory" if isinstance(error, MemoryError) else type(error).__name__


class ConfigError(OdQatError, ValueError):
    """A pipeline config, label map, command line or argument that cannot be honoured."""


class DataError(OdQatError):
    """Records, images or annotations that are missing or damaged."""


class RewriteError(OdQatError, ValueError):
    """The graph cannot be rewritten, and is unchanged.

    It is a ValueError too, as tf.contrib.quantize raised that, and its callers may catch it.
    """


class CheckpointError(OdQatError):
    """A checkpoint that is missing, damaged or of another model."""


class ExportError(OdQatError):
    """A frozen graph or .tflite that cannot be written, or fails a check."""


class EnvironmentProblem(OdQatError):
    """Something that has to be installed is not, or not in a version that works."""


class MissingPackage(EnvironmentProblem, ImportError):
    """The same, raised by an import. Code that can do without the package catches it as an ImportError."""
