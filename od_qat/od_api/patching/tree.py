"""Finds a user's OD API tree on the disk, and reads its files."""

import hashlib
import os
from typing import NamedTuple, Optional

from od_qat.errors import EnvironmentProblem, OdQatError
from od_qat.od_api import locate


class PatchError(OdQatError):
    """A tree that cannot be patched or restored; it has not been touched."""


class Tree(NamedTuple):
    """The folders of an OD API.

    Attributes:
      root: the folder that holds object_detection/ (upstream's models/research).
      slim: the folder that holds slim's nets/; None if the tree has none.
    """

    root: str
    slim: Optional[str]

    def path(self, name: str) -> Optional[str]:
        """The path of `object_detection/...` or `slim/...`; None for slim's files if the tree has no slim."""
        if name.startswith("slim/"):
            return self.slim and os.path.join(self.slim, *name.split("/")[1:])
        return os.path.join(self.root, *name.split("/"))

    def read(self, name: str) -> Optional[bytes]:
        """A file's bytes; None if it is not there."""
        path = self.path(name)
        if path is None or not os.path.isfile(path):
            return None
        with open(path, "rb") as stream:
            return stream.read()


def find_tree(path: Optional[str]) -> Tree:
    """Finds the OD API in a folder: models/research, its parent, or a site-packages.

    Raises:
      EnvironmentProblem: if there is none.
    """
    if not path:
        raise EnvironmentProblem("no OD API tree given", fix=locate.WHICH_FOLDER)
    locate.require_folder(path)
    root = os.path.realpath(locate.research_folder(path))
    if os.path.isfile(os.path.join(root, "object_detection", "__init__.py")):
        slims = [os.path.join(root, "slim"), root]
        return Tree(root, next((s for s in slims if os.path.isdir(os.path.join(s, "nets"))), None))
    raise EnvironmentProblem(
        "this is not a models/research folder",
        where=path,
        found="no object_detection/__init__.py",
        allowed="a folder with object_detection/ in it",
        fix=locate.WHICH_FOLDER,
    )


def fingerprint(data: bytes) -> str:
    """The sha256 of a file's content, the same for any line ends."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()


def digest(data: Optional[bytes]) -> Optional[str]:
    """The sha256 of a file's bytes; None for a file that is not there."""
    return None if data is None else hashlib.sha256(data).hexdigest()
