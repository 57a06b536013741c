"""Finds the known tree of the OD API that a user's tree is most like."""

import json
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

from od_qat.od_api.patching import record as records
from od_qat.od_api.patching.series import FOLDER, size
from od_qat.od_api.patching.tree import Tree, fingerprint

_GENERATIONS = os.path.join(FOLDER, "generations.json")


class Identity(NamedTuple):
    """What a tree is, compared with the known trees.

    Attributes:
      series: name of its series of patches; None if no known tree is like it.
      nearest: name of the known tree that agrees with most of the compared files; None if none does.
      differs: files whose content no known tree has. Of a patched file, the content before the patch counts.
      elsewhere: files whose content other known trees have, but not `nearest`.
      record: the record of the patches in it; None if it is not patched.
    """

    series: Optional[str]
    nearest: Optional[str]
    differs: Tuple[str, ...]
    elsewhere: Tuple[str, ...]
    record: Optional[Dict[str, Any]]


def generations() -> Dict[str, Any]:
    """generations.json: the known trees, and which of them have which content of a file."""
    with open(_GENERATIONS, encoding="utf-8") as stream:
        return json.load(stream)


def identify(tree: Tree) -> Identity:
    """Compares a tree with the known ones, file by file."""
    known = generations()
    record = records.read(tree)
    originals = records.fingerprints(record)
    votes = {name: 0 for name in known["trees"]}
    owners = {}
    for name, contents in known["files"].items():
        data = tree.read(name)
        if data is None:
            continue
        found = originals[name] if name in originals else fingerprint(data)
        owners[name] = contents.get(found, [])
        for owner in owners[name]:
            votes[owner] += 1
    # If two trees are equally near, the one whose series has more hunks is taken.
    best = max(sorted(votes), key=lambda name: (votes[name], size(known["trees"][name]["series"])))
    nearest = best if votes[best] else None
    return Identity(
        series=nearest and known["trees"][nearest]["series"],
        nearest=nearest,
        differs=tuple(sorted(name for name, trees in owners.items() if not trees)),
        elsewhere=tuple(sorted(name for name, trees in owners.items() if trees and nearest not in trees)),
        record=record,
    )
