"""Which known tree of the OD API a user's tree is like."""

import json
import os
from typing import Any, Dict, NamedTuple, Optional, Tuple

from od_qat.od_api.patching import record as records
from od_qat.od_api.patching.series import FOLDER, size
from od_qat.od_api.patching.tree import Tree, fingerprint

_GENERATIONS = os.path.join(FOLDER, "generations.json")


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
