"""Patches a tree and takes the patches out, step by step. All files change or none does."""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

from od_qat import files
from od_qat.errors import OdQatError
from od_qat.od_api import protos
from od_qat.od_api.patching import record as records
from od_qat.od_api.patching.generation import Identity, generations, identify
from od_qat.od_api.patching.hunks import Edit, apply
from od_qat.od_api.patching.record import RECORD
from od_qat.od_api.patching.series import Hunk, all_series, read_series, size
from od_qat.od_api.patching.tree import PatchError, Tree, find_tree

# A folder that the first trees lack, and scripts of slim that are in clones only.
_NOT_EVERYWHERE = (
    "object_detection/tpu_exporters/",
    "slim/train_image_classifier.py",
    "slim/eval_image_classifier.py",
    "slim/export_inference_graph.py",
)
# The prefix of files that are written beside their destination.
_ASIDE = ".od_qat_patch-"


class Outcome(NamedTuple):
    """What was done or would be done, and to which files (below the tree's root)."""

    message: str
    files: Tuple[str, ...]


class Refusal(NamedTuple):
    """A file that the hunks of a series cannot be put into, and why."""

    file: str
    why: str


class Trial(NamedTuple):
    """The result of trying a series on a tree, which writes nothing.

    Attributes:
      series: its name.
      changed: file -> its new content.
      edits: file -> the edits, which lead back to its old content.
      refusals: the files that its hunks cannot be put into.
    """

    series: str
    changed: Dict[str, bytes]
    edits: Dict[str, Tuple[Edit, ...]]
    refusals: Tuple[Refusal, ...]


def patch(
    path: Optional[str], check: bool = False, accept_unknown: bool = False, compile_protos: bool = False
) -> Outcome:
    """Puts the series that fits into a tree.

    Args:
      path: see find_tree.
      check: only say what would be done.
      accept_unknown: also patch files whose content no known tree has, if every hunk matches.
      compile_protos: also write the *_pb2.py that the tree lacks, compiled from its .proto files.

    Raises:
      PatchError: if a hunk does not match or a file was edited, with the names of the files. The tree is then
        unchanged.
    """
    tree = find_tree(path)
    found = identify(tree)
    if found.record is not None:
        reason = _reason_to_patch_again(tree, found.record, compile_protos)
        if reason is None:
            return _patched_already(tree, found.record)
        if check:
            return Outcome("can be patched again: " + reason, tuple(found.record["files"]))
        compile_protos = _make_room(path, tree, found.record, compile_protos)
        found = identify(tree)
    trial = _fitting_series(tree, found, accept_unknown)
    compiled = protos.compile_missing(tree.root) if compile_protos else {}
    names = sorted(trial.changed) + sorted(compiled)
    summary = "series {} (nearest: {}), {} files".format(trial.series, found.nearest, len(names))
    if check:
        return Outcome("can be patched: {}".format(summary), tuple(names))
    _write(path, tree, trial, found.nearest, compiled)
    lacking = len(protos.missing(tree.root))
    note = (
        "; {} of its protos are not compiled: --compile_protos does that".format(lacking) if lacking else ""
    )
    return Outcome("patched: {}{}; od-qat unpatch restores it".format(summary, note), tuple(names))


def _reason_to_patch_again(tree: Tree, record: Dict[str, Any], compile_protos: bool) -> Optional[str]:
    """Why a tree that has a record has to be patched again; None if it need not be.

    Files that git or a copy restored have no patches, whatever the record says. And if protos are to be
    compiled, a new record has to list them.
    """
    restored = records.restored(tree, record)
    if compile_protos and protos.missing(tree.root):
        as_patched = records.is_done(record) and not records.edited_since(tree, record)
        return "its protos are not compiled" if restored or as_patched else None
    return "files were restored since" if restored else None


def _patched_already(tree: Tree, record: Dict[str, Any]) -> Outcome:
    if not records.is_done(record):
        raise PatchError(
            "an earlier patching of this tree was interrupted",
            where=tree.path(RECORD),
            fix="run od-qat unpatch, which restores it, then od-qat patch again",
        )
    edited = records.edited_since(tree, record)
    note = "; edited since: {}".format(", ".join(edited)) if edited else ""
    if not records.is_of_todays_patches(record):
        note += (
            "; with the patches of od_qat {}: for the current ones, run od-qat unpatch, then patch".format(
                record["od_qat"]
            )
        )
    return Outcome("patched already, nothing to do: series {}{}".format(record["series"], note), ())


def _make_room(path: Optional[str], tree: Tree, record: Dict[str, Any], compile_protos: bool) -> bool:
    """Takes out an earlier patching. Returns whether the next one has to compile protos."""
    compile_protos = compile_protos or bool(record["created"])
    if compile_protos and (record["created"] or protos.missing(tree.root)):
        protos.require_protoc(tree.root)
        protos.compile_missing(tree.root)  # (if it fails, the patches stay in)
    unpatch(path)
    return compile_protos


def _fitting_series(tree: Tree, found: Identity, accept_unknown: bool) -> Trial:
    """The series of the nearest tree or, if that does not fit, another all of whose hunks fit.

    Raises:
      PatchError: if none fits, with the files that do not take the first.
    """
    if found.series is None:
        raise PatchError(
            "no known generation of the OD API is like this tree",
            where=tree.root,
            allowed=", ".join(sorted(generations()["trees"])),
            fix="use one of these, or `import od_qat.plugin`, which changes nothing on disk",
        )
    first = trial = _try(tree, found.series, found.differs, accept_unknown)
    others = sorted(all_series(), key=size, reverse=True)
    others.remove(found.series)
    # (If an edited file is refused, no other series is tried. One that leaves the file alone might fit, and
    # the user's commands would then lack its changes.)
    while trial.refusals and others and (accept_unknown or not _touches(trial, found.differs)):
        trial = _try(tree, others.pop(0), found.differs, accept_unknown)
    if not trial.refusals:
        return trial
    raise PatchError(
        "the patches do not fit this tree",
        where=tree.root,
        found=", ".join(sorted("{} ({})".format(*refusal) for refusal in first.refusals)),
        allowed="files as upstream left them (nearest: {})".format(found.nearest),
        fix="restore these files; if they are of another upstream commit, or the edits are yours, pass "
        "--accept_unknown, which needs every hunk to match; or use od-qat run, which changes no file",
    )


def _touches(trial: Trial, files_: Sequence[str]) -> bool:
    return any(refusal.file in files_ for refusal in trial.refusals)


def may_lack(tree: Tree, name: str) -> bool:
    """Whether a tree lacks a file that it need not have: one of slim, or one that the first trees lack."""
    return tree.path(name) is None or (name.startswith(_NOT_EVERYWHERE) and tree.read(name) is None)


def _try(tree: Tree, series: str, unknown: Sequence[str], accept_unknown: bool) -> Trial:
    changed: Dict[str, bytes] = {}
    edits: Dict[str, Tuple[Edit, ...]] = {}
    refusals: List[Refusal] = []
    for name, hunks in read_series(series).items():
        if may_lack(tree, name):
            continue
        data = tree.read(name)
        if data is None:
            refusals.append(Refusal(name, "not there"))
            continue
        changed[name], edits[name], failed = apply(data, hunks)
        if failed:
            done = not apply(data, [Hunk(hunk.new, hunk.old) for hunk in hunks])[2]
            refusals.append(Refusal(name, "changed already, without a record" if done else "no match"))
        elif name in unknown and not accept_unknown:
            refusals.append(Refusal(name, "edited"))
    return Trial(series, changed, edits, tuple(refusals))


def _write(
    path: Optional[str], tree: Tree, trial: Trial, nearest: Optional[str], compiled: Dict[str, bytes]
) -> None:
    """Writes a series and compiled protos into a tree. If that fails, it restores the tree."""
    record = records.make(tree, trial.series, nearest, trial.changed, trial.edits, compiled)
    # The record comes first, so that a tree whose patching was killed can be restored.
    files.write_json(tree.path(RECORD), record)
    try:
        _swap(tree, dict(trial.changed, **compiled))
        files.write_json(tree.path(RECORD), records.done(record))
    except BaseException:
        unpatch(path)
        raise


def unpatch(path: Optional[str], check: bool = False) -> Outcome:
    """Restores every byte of a patched tree and removes the record.

    Args:
      path: see find_tree.
      check: only say what would be done.

    Raises:
      PatchError: if files were edited after the patching, with their names. The tree is then unchanged.
    """
    tree = find_tree(path)
    record = records.read(tree)
    if record is None:
        return Outcome("not patched, nothing to do", ())
    back = records.way_back(tree, record)
    names = tuple(sorted(back.originals)) + back.created
    if check:
        return Outcome("can be restored: {} files".format(len(names)), names)
    _swap(tree, back.originals)
    for name in back.created + (RECORD,):
        os.unlink(tree.path(name))
    _remove_left_asides(tree, list(record["files"]) + list(record["created"]))
    return Outcome("restored: {} files".format(len(names)), names)


def _remove_left_asides(tree: Tree, names: Sequence[str]) -> None:
    """Removes the files that a killed patching left beside their destinations."""
    for folder in {os.path.dirname(os.path.realpath(tree.path(name))) for name in names}:
        for left in os.listdir(folder):
            if left.startswith(_ASIDE):
                os.unlink(os.path.join(folder, left))


def _swap(tree: Tree, contents: Dict[str, bytes]) -> None:
    """Gives files new contents: all of them, or none.

    Raises:
      OdQatError: with the file that could not be written.
    """
    by_path = {os.path.realpath(tree.path(name)): data for name, data in contents.items()}
    try:
        files.replace_together(by_path, _ASIDE)
    except OdQatError as error:
        raise OdQatError(
            "cannot write into the tree, which is unchanged",
            where=error.where,
            found=error.found,
            fix="free space there, or correct the permissions",
        ) from error
