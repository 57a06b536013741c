"""A user's OD API tree on the disk: where it is, and what its files hold."""

import hashlib
import os
from typing import NamedTuple, Optional

from od_qat.errors import EnvironmentProblem, OdQatError
from od_qat.od_api import locate


class PatchError(OdQatError):
    """A tree that cannot be patched or restored; it has not been touched."""


class Tree(NamedTuple):
    """Where an OD API is.

    Attributes:
      root: the folder that holds object_detection/ (upstream's models/research).
      slim: the folder that holds slim's nets/; None when the tree has none.
    """

    root: str
    slim: Optional[str]

    def path(self, name: str) -> Optional[str]:
        """Absolute path of `object_detection/...` or `slim/...`; None for slim's where there is none."""
        if name.startswith("slim/"):
            return self.slim and os.path.join(self.slim, *name.split("/")[1:])
        return os.path.join(self.root, *name.split("/"))

    def read(self, name: str) -> Optional[bytes]:
        """A file's bytes; None when it is not there."""
        path = self.path(name)
        if path is None or not os.path.isfile(path):
            return None
        with open(path, "rb") as stream:
            return stream.read()


def find_tree(path: Optional[str]) -> Tree:
    """The OD API in a folder: models/research, its parent, or a site-packages.

    Raises:
      EnvironmentProblem: when there is none.
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
    """sha256 of a file's content, whatever its line ends are."""
    return hashlib.sha256(data.replace(b"\r\n", b"\n")).hexdigest()


def digest(data: Optional[bytes]) -> Optional[str]:
    """sha256 of a file's bytes; None for a file that is not there."""
    return None if data is None else hashlib.sha256(data).hexdigest()
