"""Finds out which generation a user's OD API tree is of, patches it, and takes the patches out again.

A series is a list of unified diffs in od_qat/patches. Each of their hunks has to match exactly once. All
files change or none does: every file is written beside its destination first, and if a rename fails, the
files renamed before are put back. A record in the tree has what is needed to restore every byte.

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
