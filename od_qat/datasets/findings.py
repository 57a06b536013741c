"""Collects everything that is wrong in the files of a data set, before anything is written."""

import sys
from typing import Any, Dict, Tuple

from od_qat.datasets.label_map import shorten
from od_qat.errors import DataError

_LISTED = 20


class Findings(object):
    """Collects the problems of a data set's files; :meth:`settle` lists them, and raises if it must.

    Args:
      where: the folder or file that the data comes from, for the message.
      skip_images: whether images may be left out that cannot be read, or whose annotations cannot.
      skip_objects: whether invalid objects may be left out.
    """

    def __init__(self, where: str, skip_images: bool = False, skip_objects: bool = False) -> None:
        self._where = where
        self._allowed = {"image": skip_images, "object": skip_objects}
        # (A dict keeps each problem once. A list of images that is both trained and scored on is read twice.)
        self._problems: Dict[str, Tuple[str, DataError]] = {}

    def image(self, error: DataError) -> None:
        """Adds an image that cannot be used."""
        self._problems.setdefault(str(error), ("image", error))

    def object(self, error: DataError) -> None:
        """Adds an object that cannot be used, in an image that can."""
        self._problems.setdefault(str(error), ("object", error))

    def count(self, kind: str) -> int:
        """The number of problems of a kind, 'image' or 'object'."""
        return sum(1 for found, _ in self._problems.values() if found == kind)

    def stops(self) -> bool:
        """Whether there is a problem that may not be left out."""
        return any(not self._allowed[kind] for kind, _ in self._problems.values())

    def settle(self) -> None:
        """Lists the first 20 problems on standard error, and the number of the others.

        Raises:
          DataError: if one of them may not be left out. A single problem is raised itself.
        """
        stops = self.stops()
        if stops and len(self._problems) == 1:
            raise next(iter(self._problems.values()))[1]
        for kind, error in list(self._problems.values())[:_LISTED]:
            left = "left out" if not stops else "--skip_invalid leaves out"
            print("{} ({} the {})".format(error.without_fix(), left, kind), file=sys.stderr)
        if len(self._problems) > _LISTED:
            print("... and {} more".format(len(self._problems) - _LISTED), file=sys.stderr)
        if stops:
            raise DataError(
                "the data has files or objects that cannot be used",
                where=self._where,
                found="{} problems, listed above".format(len(self._problems)),
                fix="correct them, or pass --skip_invalid, which leaves out {}".format(self._counted()),
            )

    def _counted(self) -> str:
        counts = [(self.count("image"), "image"), (self.count("object"), "object")]
        return " and ".join("{} {}{}".format(n, kind, "" if n == 1 else "s") for n, kind in counts if n)


def example_of(found: Any) -> str:
    """A value from a file, for a message: one line, shortened, and in ASCII if it cannot be encoded."""
    try:
        text = repr(found)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "a number of {} bits".format(found.bit_length()) if isinstance(found, int) else "a long number"
    text = text.encode("ascii", "backslashreplace").decode() if not _encodable(text) else text
    return shorten(text)


def _encodable(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
