"""The record in a patched tree, object_detection/od_qat_patch.json: what was done to which file.

It has what is needed to restore every byte. A record of an older od_qat is read as today's.
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


def make(
    tree: Tree,
    series: str,
    nearest: str,
    changed: Mapping[str, bytes],
    edits: Mapping[str, Sequence[Edit]],
    created: Mapping[str, bytes],
) -> Dict[str, Any]:
    """The record of a patching that has not been done yet; see `done`.

    Args:
      tree: as it is before.
      series: name of the series that is put in.
      nearest: the known tree that it is like.
      changed: file -> its new content.
      edits: file -> what leads back.
      created: file that is new -> its content.
    """
    of_files = {}
    for name in sorted(changed):
        original = tree.read(name)
        of_files[name] = {
            "fingerprint": fingerprint(original),
            "original": digest(original),
            "patched": digest(changed[name]),
            # Lines as they are, bytes as Latin-1: JSON holds no bytes.
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
    """The same record once all files have their new content."""
    return dict(record, state=_DONE)


def is_done(record: Dict[str, Any]) -> bool:
    """False when the patching was interrupted."""
    return record["state"] == _DONE


def is_of_todays_patches(record: Dict[str, Any]) -> bool:
    """False when the series was another one, or has been changed since."""
    return record["patches"] == series_digest(record["series"])


def fingerprints(record: Optional[Dict[str, Any]]) -> Dict[str, str]:
    """File -> fingerprint of what it was before the patching."""
    return {} if record is None else {name: known["fingerprint"] for name, known in record["files"].items()}


def edited_since(tree: Tree, record: Dict[str, Any]) -> List[str]:
    """Patched files that have other contents now."""
    known = record["files"]
    return [name for name in sorted(known) if digest(tree.read(name)) != known[name]["patched"]]


def restored(tree: Tree, record: Dict[str, Any]) -> List[str]:
    """The files of a finished patching that are as before it again, by something else than unpatch.

    Raises:
      PatchError: when the tree has files edited after the patching beside them: then it is neither.
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
    """What brings a tree back to what it was.

    Attributes:
      originals: file -> its content before; those that have it again are left out.
      created: files that the patching made and that are there still.
    """

    originals: Dict[str, bytes]
    created: Tuple[str, ...]


def way_back(tree: Tree, record: Dict[str, Any]) -> WayBack:
    """Undoes the edits of a record, without writing anything.

    Raises:
      PatchError: naming the files that were edited after the patching.
    """
    originals, edited = {}, []
    for name, known in record["files"].items():
        data = tree.read(name)
        found = digest(data)
        if found == known["original"]:
            continue  # interrupted before it came to this file
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
            fix="take these edits back (or save the files elsewhere and restore them from their source)",
        )
    return WayBack(originals, tuple(sorted(name for name, found in created.items() if found)))
