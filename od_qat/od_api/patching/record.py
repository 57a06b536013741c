"""The record in a patched tree, object_detection/od_qat_patch.json, which says what was done to which file.

It has what is needed to restore every byte. The records of older versions of od_qat can be read too.
"""

import json
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import od_qat
from od_qat.od_api.patching.hunks import Edit, take_back
from od_qat.od_api.patching.series import digest as series_digest
from od_qat.od_api.patching.tree import PatchError, Tree, digest, fingerprint

RECORD = "object_detection/od_qat_patch.json"
_FORMAT = "od_qat/patched/1"
_UNFINISHED, _DONE = "unfinished", "done"


def read(tree: Tree) -> Optional[Dict[str, Any]]:
    """Reads the record that `patch` wrote into a tree; None if the tree is not patched.

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


def make(
    tree: Tree,
    series: str,
    nearest: str,
    changed: Mapping[str, bytes],
    edits: Mapping[str, Sequence[Edit]],
    created: Mapping[str, bytes],
) -> Dict[str, Any]:
    """Makes the record of a patching before it starts; `done` marks it as finished.

    Args:
      tree: the tree before the patching.
      series: name of the series that is put in.
      nearest: the known tree that it is most like.
      changed: file -> its new content.
      edits: file -> the edits, which lead back to its old content.
      created: new file -> its content.
    """
    of_files = {}
    for name in sorted(changed):
        original = tree.read(name)
        of_files[name] = {
            "fingerprint": fingerprint(original),
            "original": digest(original),
            "patched": digest(changed[name]),
            # JSON holds no bytes, so the lines are stored as Latin-1 text.
            "edits": [
                {"line": e.line, "added": e.added, "removed": [r.decode("latin-1") for r in e.removed]}
                for e in edits[name]
            ],
        }
    return {
        "format": _FORMAT,
        "od_qat": od_qat.__version__,
        "series": series,
        "patches": series_digest(series),
        "tree": nearest,
        "state": _UNFINISHED,
        "files": of_files,
        "created": {name: digest(data) for name, data in sorted(created.items())},
    }


def done(record: Dict[str, Any]) -> Dict[str, Any]:
    """The same record, marked as finished, for when all files have their new content."""
    return dict(record, state=_DONE)


def is_done(record: Dict[str, Any]) -> bool:
    """Whether the patching was finished; it was interrupted otherwise."""
    return record["state"] == _DONE


def is_of_todays_patches(record: Dict[str, Any]) -> bool:
    """Whether the tree was patched with the series as this od_qat has it."""
    return record["patches"] == series_digest(record["series"])


def fingerprints(record: Optional[Dict[str, Any]]) -> Dict[str, str]:
    """File -> fingerprint of its content before the patching; empty without a record."""
    return {} if record is None else {name: known["fingerprint"] for name, known in record["files"].items()}


def edited_since(tree: Tree, record: Dict[str, Any]) -> List[str]:
    """The patched files whose content has changed since the patching."""
    known = record["files"]
    return [name for name in sorted(known) if digest(tree.read(name)) != known[name]["patched"]]


def restored(tree: Tree, record: Dict[str, Any]) -> List[str]:
    """The files of a finished patching that something other than unpatch (git, for example) has restored.

    Raises:
      PatchError: if other files were edited after the patching, so that the tree is neither patched nor
        restored.
    """
    if not is_done(record):
        return []
    found, edited = [], []
    for name in edited_since(tree, record):
        original = digest(tree.read(name)) == record["files"][name]["original"]
        (found if original else edited).append(name)
    if found and edited:
        raise PatchError(
            "a part of the patched files was restored, others were edited",
            where=tree.root,
            found="restored: {}; edited: {}".format(", ".join(found), ", ".join(edited)),
            fix="undo the edits, then run od-qat patch again",
        )
    return found


class WayBack(NamedTuple):
    """What is needed to restore a tree.

    Attributes:
      originals: file -> its original content, without the files that have it already.
      created: the files that the patching created and that still exist.
    """

    originals: Dict[str, bytes]
    created: Tuple[str, ...]


def way_back(tree: Tree, record: Dict[str, Any]) -> WayBack:
    """Undoes the edits of a record in memory. It writes nothing.

    Raises:
      PatchError: if files were edited after the patching, with their names, or if the record does not lead
        back to the original.
    """
    originals, edited = {}, []
    for name, known in record["files"].items():
        data = tree.read(name)
        found = digest(data)
        if found == known["original"]:
            continue  # (the patching was interrupted before this file)
        if found != known["patched"]:
            edited.append(name)
            continue
        edits = [
            Edit(e["line"], e["added"], tuple(r.encode("latin-1") for r in e["removed"]))
            for e in known["edits"]
        ]
        originals[name] = take_back(data, edits)
        if digest(originals[name]) != known["original"]:
            raise PatchError(
                "the record does not lead back to the original",
                where=tree.path(RECORD),
                found=name,
                fix="restore the tree from its source",
            )
    created = {name: digest(tree.read(name)) for name in record["created"]}
    edited += [name for name, found in created.items() if found not in (None, record["created"][name])]
    if edited:
        raise PatchError(
            "files were edited after patching",
            where=tree.root,
            found=", ".join(sorted(edited)),
            fix="undo these edits (or save the files elsewhere and restore them from their source)",
        )
    return WayBack(originals, tuple(sorted(name for name, found in created.items() if found)))
