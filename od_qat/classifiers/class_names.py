"""Keeps the names of a network's classes beside its checkpoints, since sub-folders have no fixed place."""

import os
from typing import Sequence, Tuple

from od_qat import files
from od_qat.compat import tf
from od_qat.errors import DataError

FILE = "classes.txt"


def of_run(train_dir: str) -> Tuple[str, ...]:
    """The names of a training's classes, in the order of the network's outputs; empty if none are kept."""
    path = os.path.join(train_dir, FILE)
    if not tf.gfile.Exists(path):
        return ()
    return tuple(files.read(path).decode("utf-8").splitlines())


def require_same(train_dir: str, names: Sequence[str]) -> None:
    """Raises DataError unless a training that goes on has the classes that it began with."""
    former = of_run(train_dir)
    if former and names and former != tuple(names):
        raise DataError(
            "the classes are not those of the training that is to go on",
            where=train_dir,
            found=", ".join(names[:8]),
            allowed=", ".join(former[:8]),
            fix="name the sub-folders as before, or give another train_dir",
        )


def save(train_dir: str, names: Sequence[str]) -> None:
    """Writes them, if there are any."""
    if names:
        files.write_atomically(os.path.join(train_dir, FILE), "".join(name + "\n" for name in names))
