"""Patches in a user's OD API tree: which generation it is, putting the series in, taking it out again.

A series is a list of unified diffs in od_qat/patches. Their hunks have the lines that they need and no more;
each has to match exactly, and once. Line ends are the file's own. All files change or none does: everything
is written beside its destination first, and a failure while renaming puts back what was there. The record,
object_detection/od_qat_patch.json, has what is needed to restore every byte.

Nothing here imports TensorFlow or the OD API.
"""

import hashlib
import json
import os
import shutil
import tempfile
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import od_qat
from od_qat import files
from od_qat.errors import EnvironmentProblem, OdQatError
from od_qat.od_api import locate, protos

FOLDER = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "patches")
GENERATIONS = os.path.join(FOLDER, "generations.json")
RECORD = "object_detection/od_qat_patch.json"
_FORMAT = "od_qat/patched/1"
# A folder that the first trees lack.
_NOT_EVERYWHERE = "object_detection/tpu_exporters/"
# Of files that are written beside their destination.
_ASIDE = ".od_qat_patch-"


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


class Hunk(NamedTuple):
    """One change of a patch: lines without their ends."""

    old: Tuple[bytes, ...]
    new: Tuple[bytes, ...]


class Edit(NamedTuple):
    """One change as it was made, for taking it back.

    Attributes:
      line: index, from 0, of the first changed line in the patched file.
      added: number of lines that stand there now.
      removed: the lines that stood there, with their ends.
    """

    line: int
    added: int
    removed: Tuple[bytes, ...]


class Identity(NamedTuple):
    """What a tree is.

    Attributes:
      series: of patches; None when no known tree is like it.
      nearest: the known tree that most of the compared files agree with.
      differs: files whose content is of no known tree, patched ones by what they were before.
      elsewhere: files whose content is of another known tree than `nearest`.
      record: of the patches that are in, None without.
    """

    series: Optional[str]
    nearest: Optional[str]
    differs: Tuple[str, ...]
    elsewhere: Tuple[str, ...]
    record: Optional[Dict[str, Any]]


class Outcome(NamedTuple):
    """What was done, and to which files (below the tree's root)."""

    message: str
    files: Tuple[str, ...]


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


def generations() -> Dict[str, Any]:
    """generations.json: the known trees, and which of them have which content of a file."""
    with open(GENERATIONS, encoding="utf-8") as stream:
        return json.load(stream)


def read_record(tree: Tree) -> Optional[Dict[str, Any]]:
    """What `patch` wrote into a tree; None when it is not patched.

    Raises:
      PatchError: for a damaged record.
    """
    data = tree.read(RECORD)
    if data is None:
        return None
    try:
        record = json.loads(data.decode("utf-8"))
        if record["format"] == _FORMAT:
            return record
        found = "format {!r}".format(record["format"])
    except (ValueError, KeyError, TypeError) as error:
        found = "{}: {}".format(type(error).__name__, error)
    raise PatchError(
        "cannot read the record of the patches",
        where=tree.path(RECORD),
        found=found,
        allowed=_FORMAT,
        fix="restore the tree from its source (git checkout, or unpack it anew) and remove the record",
    )


def identify(tree: Tree) -> Identity:
    """Compares a tree with the known ones, file by file."""
    known = generations()
    record = read_record(tree)
    originals = {} if record is None else {n: f["fingerprint"] for n, f in record["files"].items()}
    votes = {name: 0 for name in known["trees"]}
    owners = {}
    for name, contents in known["files"].items():
        data = tree.read(name)
        if data is None:
            continue
        found = originals.get(name) if name in originals else fingerprint(data)
        owners[name] = contents.get(found, [])
        for owner in owners[name]:
            votes[owner] += 1
    # Of two that are as near, the one that more has to be changed in.
    best = max(sorted(votes), key=lambda name: (votes[name], size(known["trees"][name]["series"])))
    nearest = best if votes[best] else None
    return Identity(
        series=nearest and known["trees"][nearest]["series"],
        nearest=nearest,
        differs=tuple(sorted(name for name, trees in owners.items() if not trees)),
        elsewhere=tuple(sorted(name for name, trees in owners.items() if trees and nearest not in trees)),
        record=record,
    )


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
            "od_qat has no such series of patches", found=series, allowed=", ".join(_all_series())
        ) from error


def _all_series() -> List[str]:
    return sorted(os.listdir(os.path.join(FOLDER, "series")))


def size(series: str) -> int:
    """Number of hunks."""
    return sum(map(len, read_series(series).values()))


def _digest(series: str) -> Optional[str]:
    """Of what a series changes; None for one that there is no longer."""
    if series not in _all_series():
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


def apply(data: bytes, hunks: Sequence[Hunk]) -> Tuple[bytes, Tuple[Edit, ...], Tuple[Hunk, ...]]:
    """Makes the changes of a file.

    Args:
      data: the file's bytes.
      hunks: in any order; the lines of each must be there exactly once.

    Returns:
      the new bytes, the edits from the last line to the first, and the hunks that do not match (then nothing
      is changed).
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
    """The inverse of apply, to the byte."""
    lines = data.splitlines(keepends=True)
    for edit in edits:
        lines[edit.line : edit.line + edit.added] = edit.removed
    return b"".join(lines)


def patch(
    path: Optional[str], check: bool = False, accept_unknown: bool = False, compile_protos: bool = False
) -> Outcome:
    """Puts the series that fits into a tree.

    Args:
      path: see find_tree.
      check: only say what would be done.
      accept_unknown: patch files whose content is of no known tree, too, if every hunk matches.
      compile_protos: make the missing *_pb2.py from the tree's .proto files.

    Raises:
      PatchError: naming the files, when a hunk does not match or a file was edited. The tree is as before.
    """
    tree = find_tree(path)
    found = identify(tree)
    if found.record is not None:
        to_compile = compile_protos and bool(protos.missing(tree.root))
        if not restored(tree, found.record) and not (to_compile and _is_as_patched(tree, found.record)):
            return _patched_already(tree, found.record)
        # What git or a copy put back has no patches, whatever the record says; and the record of protos that
        # are compiled later is made anew.
        if check:
            reason = "its protos are not compiled" if to_compile else "files were restored since"
            return Outcome("can be patched again: " + reason, tuple(found.record["files"]))
        compile_protos = compile_protos or bool(found.record["created"])
        if to_compile or found.record["created"]:
            protos.require_protoc(tree.root)
            protos.compile_missing(tree.root)  # what fails is to fail before the patches are taken out
        unpatch(path)
        found = identify(tree)
    if found.series is None:
        raise PatchError(
            "no known generation of the OD API is like this tree",
            where=tree.root,
            allowed=", ".join(sorted(generations()["trees"])),
            fix="use one of these, or `import od_qat.plugin`, which changes nothing on disk",
        )
    series, changed, edits, refused = _try_series(tree, found, accept_unknown)
    if refused:
        raise PatchError(
            "the patches do not go into this tree",
            where=tree.root,
            found=", ".join(sorted(refused)),
            allowed="files as upstream left them (nearest: {})".format(found.nearest),
            fix="restore these files; if they are of another upstream commit, or the edits are yours, pass "
            "--accept_unknown, which needs every hunk to match; or use od-qat run, which changes no file",
        )
    compiled = protos.compile_missing(tree.root) if compile_protos else {}
    every = sorted(changed) + sorted(compiled)
    summary = "series {} (nearest: {}), {} files".format(series, found.nearest, len(every))
    if check:
        return Outcome("can be patched: {}".format(summary), tuple(every))
    originals = {name: tree.read(name) for name in changed}
    record = {
        "format": _FORMAT,
        "od_qat": od_qat.__version__,
        "series": series,
        "patches": _digest(series),
        "tree": found.nearest,
        "state": "unfinished",
        "files": {
            name: {
                "fingerprint": fingerprint(originals[name]),
                "original": _sha256(originals[name]),
                "patched": _sha256(changed[name]),
                # Lines as they are, bytes as Latin-1: JSON holds no bytes.
                "edits": [
                    {"line": e.line, "added": e.added, "removed": [r.decode("latin-1") for r in e.removed]}
                    for e in edits[name]
                ],
            }
            for name in sorted(changed)
        },
        "created": {name: _sha256(data) for name, data in sorted(compiled.items())},
    }
    # First, so that a tree whose patching was killed can be restored.
    files.write_json(tree.path(RECORD), record)
    try:
        _swap(tree, dict(changed, **compiled))
        record["state"] = "done"
        files.write_json(tree.path(RECORD), record)
    except BaseException:
        unpatch(path)
        raise
    lacking = len(protos.missing(tree.root))
    note = (
        "; {} of its protos are not compiled: --compile_protos does that".format(lacking) if lacking else ""
    )
    return Outcome("patched: {}{}; od-qat unpatch restores it".format(summary, note), tuple(every))


def _try_series(tree: Tree, found: Identity, accept_unknown: bool):
    """The series of the nearest tree, or else another that goes in wholly.

    Returns:
      its name, the new contents by file, the edits by file, and the files that refuse it, each with why.
    """
    others = [name for name in _all_series() if name != found.series]
    others.sort(key=size, reverse=True)
    first = None
    for name in [found.series] + others:
        answer = (name,) + _try(tree, read_series(name), found.differs, accept_unknown)
        if not answer[3]:
            return answer
        first = first or answer
        if not accept_unknown and any(why.partition(" (")[0] in found.differs for why in answer[3]):
            break  # another series may not touch that file, and the user's commands would lack what is in it
    return first


def may_lack(tree: Tree, name: str) -> bool:
    """Whether a tree is without a file that it need not have: of slim, or of what the first trees lack."""
    return tree.path(name) is None or (name.startswith(_NOT_EVERYWHERE) and tree.read(name) is None)


def _try(tree: Tree, series: Dict[str, List[Hunk]], unknown: Sequence[str], accept_unknown: bool):
    changed, edits, refused = {}, {}, []
    for name, hunks in series.items():
        if may_lack(tree, name):
            continue
        data = tree.read(name)
        if data is None:
            refused.append("{} (not there)".format(name))
            continue
        changed[name], edits[name], failed = apply(data, hunks)
        if failed:
            done = not apply(data, [Hunk(hunk.new, hunk.old) for hunk in hunks])[2]
            refused.append(
                "{} ({})".format(name, "changed already, without a record" if done else "no match")
            )
        elif name in unknown and not accept_unknown:
            refused.append(name + " (edited)")
    return changed, edits, refused


def restored(tree: Tree, record: Dict[str, Any]) -> List[str]:
    """The files of a finished patching that are as before it again, by something else than unpatch.

    Raises:
      PatchError: when the tree has files edited after the patching beside them: then it is neither.
    """
    if record["state"] != "done":
        return []
    found, edited = [], []
    for name, known in sorted(record["files"].items()):
        state = _sha256(tree.read(name))
        if state != known["patched"]:
            (found if state == known["original"] else edited).append(name)
    if found and edited:
        raise PatchError(
            "a part of the patched files was restored, others were edited",
            where=tree.root,
            found="restored: {}; edited: {}".format(", ".join(found), ", ".join(edited)),
            fix="undo the edits, then run od-qat patch again",
        )
    return found


def _patched_already(tree: Tree, record: Dict[str, Any]) -> Outcome:
    if record["state"] != "done":
        raise PatchError(
            "an earlier patching of this tree was interrupted",
            where=tree.path(RECORD),
            fix="run od-qat unpatch, which restores it, then od-qat patch again",
        )
    edited = _edited_since(tree, record)
    note = "; edited since: {}".format(", ".join(edited)) if edited else ""
    if record["patches"] != _digest(record["series"]):
        note += "; of od_qat {}: od-qat unpatch, then patch again, for today's".format(record["od_qat"])
    return Outcome("patched already, nothing to do: series {}{}".format(record["series"], note), ())


def _edited_since(tree: Tree, record: Dict[str, Any]) -> List[str]:
    known = record["files"]
    return [name for name in sorted(known) if _sha256(tree.read(name)) != known[name]["patched"]]


def _is_as_patched(tree: Tree, record: Dict[str, Any]) -> bool:
    return record["state"] == "done" and not _edited_since(tree, record)


def unpatch(path: Optional[str], check: bool = False) -> Outcome:
    """Restores every byte of a patched tree and removes the record.

    Args:
      path: see find_tree.
      check: only say what would be done.

    Raises:
      PatchError: naming the files that were edited after patching. The tree is as before.
    """
    tree = find_tree(path)
    record = read_record(tree)
    if record is None:
        return Outcome("not patched, nothing to do", ())
    restored, edited = {}, []
    for name, known in record["files"].items():
        data = tree.read(name)
        found = _sha256(data)
        if found == known["original"]:
            continue  # interrupted before it came to this file
        if found != known["patched"]:
            edited.append(name)
            continue
        edits = [
            Edit(e["line"], e["added"], tuple(r.encode("latin-1") for r in e["removed"]))
            for e in known["edits"]
        ]
        restored[name] = take_back(data, edits)
        if _sha256(restored[name]) != known["original"]:
            raise PatchError(
                "the record does not lead back to the original",
                where=tree.path(RECORD),
                found=name,
                fix="restore the tree from its source",
            )
    created = {name: _sha256(tree.read(name)) for name in record["created"]}
    edited += [name for name, found in created.items() if found not in (None, record["created"][name])]
    if edited:
        raise PatchError(
            "files were edited after patching",
            where=tree.root,
            found=", ".join(sorted(edited)),
            fix="take these edits back (or save the files elsewhere and restore them from their source)",
        )
    gone = sorted(name for name, found in created.items() if found)
    names = tuple(sorted(restored) + gone)
    if check:
        return Outcome("can be restored: {} files".format(len(names)), names)
    _swap(tree, restored)
    for name in gone:
        os.unlink(tree.path(name))
    os.unlink(tree.path(RECORD))
    touched = list(record["files"]) + list(record["created"])
    for folder in {os.path.dirname(os.path.realpath(tree.path(name))) for name in touched}:
        for left in os.listdir(folder):  # by a patching that was killed
            if left.startswith(_ASIDE):
                os.unlink(os.path.join(folder, left))
    return Outcome("restored: {} files".format(len(names)), names)


def _sha256(data: Optional[bytes]) -> Optional[str]:
    return None if data is None else hashlib.sha256(data).hexdigest()


def _swap(tree: Tree, contents: Dict[str, bytes]) -> None:
    """Gives files new contents: all of them, or none.

    Raises:
      OdQatError: naming the file that could not be written.
    """
    ready: List[Tuple[str, str, Optional[bytes]]] = []
    done: List[Tuple[str, Optional[bytes]]] = []
    current = tree.root
    try:
        for name, data in contents.items():
            current = os.path.realpath(tree.path(name))
            ready.append((_write_aside(current, data), current, tree.read(name)))
        for aside, target, before in ready:
            current = target
            os.replace(aside, target)
            done.append((target, before))
    except BaseException as error:
        for target, before in reversed(done):
            if before is None:
                os.unlink(target)
            else:
                os.replace(_write_aside(target, before), target)
        if not isinstance(error, OSError):
            raise
        raise OdQatError(
            "cannot write into the tree, which is as it was",
            where=current,
            found=error.strerror or str(error),
            fix="free space there, or correct the permissions",
        ) from error
    finally:
        for aside, _, _ in ready:
            if os.path.exists(aside):
                os.unlink(aside)


def _write_aside(target: str, data: bytes) -> str:
    handle, aside = tempfile.mkstemp(dir=os.path.dirname(target), prefix=_ASIDE)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if os.path.exists(target):
            shutil.copymode(target, aside)
        else:
            os.chmod(aside, 0o644)
    except BaseException:
        os.unlink(aside)
        raise
    return aside
