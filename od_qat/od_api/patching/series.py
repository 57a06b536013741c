"""The patches of od_qat: unified diffs in od_qat/patches, and which of them make a series.

Their hunks have the lines that they need and no more.
"""

import hashlib
import os
from typing import Dict, List, NamedTuple, Optional, Tuple

import od_qat
from od_qat.od_api.patching.tree import PatchError

FOLDER = os.path.join(os.path.dirname(os.path.abspath(od_qat.__file__)), "patches")


class Hunk(NamedTuple):
    """One change of a patch: lines without their ends."""

    old: Tuple[bytes, ...]
    new: Tuple[bytes, ...]


def read_series(series: str) -> Dict[str, List[Hunk]]:
    """All hunks of a series: file -> hunks, in the order of its patches."""
    found: Dict[str, List[Hunk]] = {}
    for name in names_of(series):
        with open(os.path.join(FOLDER, name), "rb") as stream:
            for path, hunks in parse(stream.read()).items():
                found.setdefault(path, []).extend(hunks)
    return found


def names_of(series: str) -> List[str]:
    """The patches of a series, in order: the lines of its file.

    Raises:
      PatchError: when there is no such series.
    """
    try:
        with open(os.path.join(FOLDER, "series", series), encoding="utf-8") as stream:
            return stream.read().split()
    except OSError as error:
        raise PatchError(
            "od_qat has no such series of patches", found=series, allowed=", ".join(all_series())
        ) from error


def all_series() -> List[str]:
    """Names of all series."""
    return sorted(os.listdir(os.path.join(FOLDER, "series")))


def size(series: str) -> int:
    """Number of hunks."""
    return sum(map(len, read_series(series).values()))


def digest(series: str) -> Optional[str]:
    """Of what a series changes; None for one that there is no longer."""
    if series not in all_series():
        return None
    return hashlib.sha256(repr(sorted(read_series(series).items())).encode("utf-8")).hexdigest()


def parse(text: bytes) -> Dict[str, List[Hunk]]:
    """The hunks of a unified diff, by the path below `b/`; no file is new or gone in our patches."""
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
