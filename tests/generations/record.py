"""Writes od_qat/patches/ anew: the series from source_changes.py, and generations.json from the known trees.

  python -m tests.generations.record FOLDER [--check]

FOLDER is what fetch.py filled. --check writes nothing and says what differs; its exit status is 1 then.
"""

import difflib
import json
import os
import sys
from typing import Dict, List, Optional

from od_qat import files
from od_qat.od_api import patching, source_changes
from tests.generations import fetch

# The tree that gives a patch its line numbers: that of the last series it is in.
MODELS = {
    "2019": "tf-object-detection-0.0.3",
    "2020": "123-object-detection-0.1",
    "2021": "tf-models-research-object-detection-2.8.0.post1",
    "2022": "tf-object-detection-api-0.1",
    "2023": "tf-object-detection-api-0.1",
}

# Upstream's repository at commit 5eba85bc881d (the last state that is known), by what it changed after the
# package of 2022 was made: names in one of the files that are compared.
UPSTREAM = "tensorflow/models 5eba85bc881d"
_CHANGED_UPSTREAM = {"object_detection/utils/metrics.py": ((b"np.float", b"float"), (b"np.bool", b"bool"))}


class UpstreamTree(patching.Tree):
    """The tree of 2022 read as upstream's last state."""

    def read(self, name: str) -> Optional[bytes]:
        data = super(UpstreamTree, self).read(name)
        for old, new in _CHANGED_UPSTREAM.get(name, ()):
            data = data.replace(old, new)
        return data


# Files that no patch touches and that tell generations apart.
TELLING = (
    "object_detection/builders/model_builder.py",
    "object_detection/core/post_processing.py",
    "object_detection/inputs.py",
    "object_detection/model_lib.py",
    "object_detection/utils/ops.py",
    "slim/nets/mobilenet/mobilenet.py",
    "slim/deployment/model_deploy.py",
)


def file_of(module: str) -> str:
    """object_detection.x -> object_detection/x.py, nets.y -> slim/nets/y.py."""
    path = module.replace(".", "/") + ".py"
    return path if path.startswith("object_detection/") else "slim/" + path


def find(folder: str, name: str) -> patching.Tree:
    """The tree in an unpacked archive, which may be some folders down."""
    for root, folders, _ in sorted(os.walk(os.path.join(folder, name))):
        if "object_detection" in folders and os.path.isdir(os.path.join(root, "object_detection", "legacy")):
            return patching.find_tree(root)
    raise SystemExit("record: error: no OD API in {}; run make generations".format(name))


def model(folder: str, series: str) -> patching.Tree:
    """The tree that a series was made for."""
    tree = find(folder, MODELS[series])
    return UpstreamTree(*tree) if series == "2023" else tree


def diff(name: str, old: str, new: str) -> str:
    """A unified diff without context, but for one line beside what is only added."""
    a, b = old.splitlines(), new.splitlines()
    lines = ["--- a/" + name, "+++ b/" + name]
    for kind, a1, a2, b1, b2 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        before, after = [], []
        if kind == "insert":
            if a2 < len(a) and a[a2].strip() and a.count(a[a2]) == 1:
                after = [a[a2]]
            else:
                before = [a[a1 - 1]]
        start_a, start_b = a1 - len(before), b1 - len(before)
        size_a, size_b = [end - start + len(before) + len(after) for start, end in ((a1, a2), (b1, b2))]
        lines.append("@@ -{},{} +{},{} @@".format(start_a + 1, size_a, start_b + 1, size_b))
        lines += [" " + line for line in before]
        lines += ["-" + line for line in a[a1:a2]] + ["+" + line for line in b[b1:b2]]
        lines += [" " + line for line in after]
    return "\n".join(lines) + "\n"


def patches(folder: str) -> Dict[str, str]:
    """File in od_qat/patches -> its text, for every patch and every series."""
    written = {}
    for patch in (patch for patch in source_changes.PATCHES if patch.series):
        tree = model(folder, patch.series[-1])
        text = patch.why + "\n\n"
        for module, rows in patch.changes.items():
            path = file_of(module)
            data = tree.read(path)
            if data is None:  # (slim's scripts are in one of the known trees only)
                others = (find(folder, pin.folder).read(path) for pin in fetch.pins())
                data = next(filter(None, others))
            old = data.decode("utf-8").replace("\r\n", "\n")
            new = source_changes.changed(old, rows)
            assert new != old, "no row of {} changes {}".format(patch.name, module)
            text += diff(path, old, new)
        written[patch.name + ".patch"] = text
    for series in source_changes.SERIES:
        names = [patch.name + ".patch\n" for patch in source_changes.PATCHES if series in patch.series]
        written["series/" + series] = "".join(names)
    return written


def series_of(tree: patching.Tree) -> str:
    """The one series that goes into a tree, every hunk of it."""
    fitting = []
    for series in source_changes.SERIES:
        hunks = patching.read_series(series)
        found = [(tree.read(path), hunks[path]) for path in hunks if not patching.may_lack(tree, path)]
        if all(data is not None and not patching.apply(data, of_file)[2] for data, of_file in found):
            fitting.append(series)
    return max(fitting, key=patching.size)  # some are parts of others


def generations(folder: str) -> str:
    """generations.json: the known trees, and which have which content of a file."""
    trees, contents = {}, {}
    touched = [file_of(module) for patch in source_changes.PATCHES for module in patch.changes]
    known = [("{} {}".format(pin.name, pin.version), find(folder, pin.folder)) for pin in fetch.pins()]
    known.append((UPSTREAM, model(folder, "2023")))
    for name, tree in known:
        crlf = b"\r\n" in tree.read("object_detection/legacy/train.py")
        trees[name] = {
            "series": series_of(tree),
            "tensorflow": ["1.15"] if series_of(tree) == source_changes.SERIES[0] else ["1.15", "2"],
            "slim": tree.slim is not None,
            "line_ends": "CRLF" if crlf else "LF",
        }
        for path in sorted(touched + list(TELLING)):
            data = tree.read(path)
            if data is not None:
                owners = contents.setdefault(path, {}).setdefault(patching.fingerprint(data), [])
                owners.append(name)
    value = {"format": "od_qat/generations/1", "trees": trees, "files": contents}
    return json.dumps(value, indent=1) + "\n"


def main(arguments: List[str]) -> int:
    """Writes or checks; returns an exit status."""
    check = "--check" in arguments
    folders = [argument for argument in arguments if argument != "--check"]
    if len(folders) != 1:
        sys.exit(__doc__)
    different = _update(patches(folders[0]), check)
    different += _update({"generations.json": generations(folders[0])}, check)
    for name in different:
        print("{}: {}".format("differs" if check else "written", name))
    return 1 if check and different else 0


def _update(texts: Dict[str, str], check: bool) -> List[str]:
    """Writes what differs, unless it is a check; returns the names of what did."""
    different = []
    for name, text in sorted(texts.items()):
        path = os.path.join(patching.FOLDER, name)
        if os.path.isfile(path):
            with open(path, encoding="utf-8", newline="") as stream:
                if stream.read() == text:
                    continue
        different.append(name)
        if not check:
            files.write_atomically(path, text)
    return different


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
