"""Patches in a user's OD API tree: which generation it is, putting the series in, taking it out again.

A series is a list of unified diffs in od_qat/patches. Each of their hunks has to match exactly, and once. All
files change or none does: everything is written beside its destination first, and a failure while renaming
puts back what was there. A record in the tree has what is needed to restore every byte.

Nothing here imports TensorFlow or the OD API.
"""

from od_qat.od_api.patching.generation import Identity, generations, identify
from od_qat.od_api.patching.hunks import apply, take_back
from od_qat.od_api.patching.record import RECORD
from od_qat.od_api.patching.series import FOLDER, Hunk, names_of, read_series, size
from od_qat.od_api.patching.steps import Outcome, may_lack, patch, unpatch
from od_qat.od_api.patching.tree import PatchError, Tree, find_tree, fingerprint

__all__ = [
    "FOLDER",
    "RECORD",
    "Hunk",
    "Identity",
    "Outcome",
    "PatchError",
    "Tree",
    "apply",
    "find_tree",
    "fingerprint",
    "generations",
    "identify",
    "may_lack",
    "names_of",
    "patch",
    "read_series",
    "size",
    "take_back",
    "unpatch",
]
