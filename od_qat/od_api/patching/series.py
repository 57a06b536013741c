"""Reads the patches of od_qat, which are unified diffs in od_qat/patches, and the series that they form.

Their hunks have no more lines than they need.
"""

import hashlib
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import od_qat
from od_qat.od_api.patching.tree import PatchError

FOLDER = os.path.join(os.path.dirname(os.path.abspath(od_qat.__file__)), "patches")


class Hunk(NamedTuple):
    """One change of a patch: the old and the new lines, without their ends."""

    old: Tuple[bytes, ...]
    new: Tuple[bytes, ...]


def read_series(series: str) -> Dict[str, List[Hunk]]:
    """Reads all hunks of a series: file -> hunks, in the order of its patches."""
    found: Dict[str, List[Hunk]] = {}
    for name in names_of(series):
        with open(os.path.join(FOLDER, name), "rb") as stream:
            for path, hunks in parse(stream.read()).items():
                found.setdefault(path, []).extend(hunks)
    return found


def names_of(series: str) -> List[str]:
    """The names of the patches of a series, in order, from its file.

    Raises:
      PatchError: if there is no such series.
    """
    try:
        with open(os.path.join(FOLDER, "series", series), encoding="utf-8") as stream:
            return stream.read().split()
    except OSError as error:
        raise PatchError(
            "od_qat has no such series of patches", found=series, allowed=", ".join(all_series())
        ) from error


def all_series() -> List[str]:
    """The names of all series."""
    return sorted(os.listdir(os.path.join(FOLDER, "series")))


def size(series: str) -> int:
    """The number of hunks in a series."""
    return sum(map(len, read_series(series).values()))


def digest(series: str) -> Optional[str]:
    """The sha256 of the hunks of a series; None if there is no such series."""
    if series not in all_series():
        return None
    return hashlib.sha256(repr(sorted(read_series(series).items())).encode("utf-8")).hexdigest()


def parse(text: bytes) -> Dict[str, List[Hunk]]:
    """The hunks of a unified diff, by the path below `b/`. (od_qat's patches add and delete no files.)"""
    found: Dict[str, List[Hunk]] = {}
    old: List[bytes] = []
    new: List[bytes] = []
    counts = [0, 0]
    hunks: List[Hunk] = []
    for line in text.splitlines():
        if any(counts):
            kind, content = line[:1], line[1:]
            if kind in b" -":
                old.append(content)
                counts[0] -= 1
            if kind in b" +":
                new.append(content)
                counts[1] -= 1
            if not any(counts):
                hunks.append(Hunk(tuple(old), tuple(new)))
        elif line.startswith(b"+++ b/"):
            hunks = found.setdefault(line[len(b"+++ b/") :].split(b"\t")[0].decode("utf-8"), [])
        elif line.startswith(b"@@ "):
            old, new = [], []
            ranges = [part.partition(b",") for part in line.split()[1:3]]
            counts = [int(count) if comma else 1 for _, comma, count in ranges]
    return found
