"""Puts hunks into a file and takes them out again, to the byte. New lines get the file's own line ends."""

from typing import NamedTuple, Sequence, Tuple

from od_qat.od_api.patching.series import Hunk


class Edit(NamedTuple):
    """A change that was made, with what is needed to undo it.

    Attributes:
      line: index, from 0, of the first changed line in the patched file.
      added: number of lines that the patched file has there.
      removed: the lines that the original has there, with their ends.
    """

    line: int
    added: int
    removed: Tuple[bytes, ...]


def apply(data: bytes, hunks: Sequence[Hunk]) -> Tuple[bytes, Tuple[Edit, ...], Tuple[Hunk, ...]]:
    """Puts hunks into a file.

    Args:
      data: the file's bytes.
      hunks: in any order; the file must have the lines of each exactly once.

    Returns:
      the new bytes, the edits from the last line to the first, and the hunks that do not match (if there are
      any, nothing is changed).
    """
    lines = data.splitlines(keepends=True)
    bare = [line.rstrip(b"\r\n") for line in lines]
    places, failed = [], []
    for hunk in hunks:
        size = len(hunk.old)
        matches = [i for i in range(len(bare) - size + 1) if tuple(bare[i : i + size]) == hunk.old]
        if len(matches) == 1:
            places.append((matches[0], hunk))
        else:
            failed.append(hunk)
    if failed:
        return data, (), tuple(failed)
    edits = []
    shift = sum(len(hunk.new) - len(hunk.old) for _, hunk in places)
    for start, hunk in sorted(places, key=lambda place: -place[0]):
        removed = lines[start : start + len(hunk.old)]
        end = removed[0][len(bare[start]) :] or (lines[0][len(bare[0]) :] if len(lines) > 1 else b"\n")
        shift -= len(hunk.new) - len(hunk.old)
        edits.append(Edit(start + shift, len(hunk.new), tuple(removed)))
        lines[start : start + len(hunk.old)] = [line + end for line in hunk.new]
    return b"".join(lines), tuple(edits), ()


def take_back(data: bytes, edits: Sequence[Edit]) -> bytes:
    """Undoes the edits that `apply` returned, to the byte."""
    lines = data.splitlines(keepends=True)
    for edit in edits:
        lines[edit.line : edit.line + edit.added] = edit.removed
    return b"".join(lines)
