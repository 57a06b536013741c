"""What is wrong in the files that a data set is made from: all of it, before anything is written."""

import sys
from typing import Any, Dict, Tuple

from od_qat.datasets.label_map import shorten
from od_qat.errors import DataError

_LISTED = 20


class Findings(object):
    """Collects the problems of a data set's files; :meth:`settle` lists them, and stops where it must.

    Args:
      where: the folder or file that the data comes from, for the message.
      skip_images: images that cannot be read, or whose annotations cannot, may be left out.
      skip_objects: invalid objects may be left out.
    """

    def __init__(self, where: str, skip_images: bool = False, skip_objects: bool = False) -> None:
        self._where = where
        self._allowed = {"image": skip_images, "object": skip_objects}
        # (A list of images that is trained and scored on is read twice: a dict keeps each problem once.)
        self._problems: Dict[str, Tuple[str, DataError]] = {}

    def image(self, error: DataError) -> None:
        """An image that cannot be used."""
        self._problems.setdefault(str(error), ("image", error))

    def object(self, error: DataError) -> None:
        """An object that cannot be used; its image can."""
        self._problems.setdefault(str(error), ("object", error))

    def count(self, kind: str) -> int:
        """How many there are of 'image' or 'object'."""
        return sum(1 for found, _ in self._problems.values() if found == kind)

    def stops(self) -> bool:
        """Whether there is a problem that may not be left out."""
        return any(not self._allowed[kind] for kind, _ in self._problems.values())

    def settle(self) -> None:
        """Lists the problems on standard error, the first 20 and a count.

        Raises:
          DataError: where one of them may not be left out; of a single problem, its own.
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
    """A value from a file for a message: on one line, in ASCII where it cannot be encoded, cut where long."""
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
