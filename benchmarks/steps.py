"""A QAT step against a float step, and the rewriting: several networks, small work and usual work.

    python benchmarks/steps.py [--trees . OTHER] [--rounds 1] [--rows NAME ...]

Runs train_step.py for each row, in a process of its own, in which the two graphs take turns (A B A B ...).
With several trees, which are working copies of this repository (`git worktree add OTHER COMMIT` makes one of
an older commit), these take turns too, and `--rounds` says how often.

Prints the medians as a Markdown table: a QAT step by a float step, in seconds and in processor seconds, and
the processor seconds that the rewriting of the training and of the eval graph takes. `make bench` runs the
rows of detectors of the TF 1 half; `--rows all` adds one of the TF 2 half and a classifier. On a shared
machine the seconds of short steps vary by a tenth from process to process; the processor seconds do not.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from typing import Dict, List

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# Name -> the flags of train_step.py. A process should take less than a minute.
_SMALL = ["--blocks", "8", "--steps", "12"]
_USUAL = ["--blocks", "4", "--steps", "4"]
_DETECTORS = {
    "V2 0.35, 160x160, batch 4": ["--size", "160", "--depth", "0.35", "--batch", "4"] + _SMALL,
    "V1 0.25, 96x96, batch 8": ["--model", "ssd_mobilenet_v1", "--size", "96", "--depth", "0.25"]
    + ["--batch", "8"]
    + _SMALL,
    "V2, 300x300, batch 4": ["--size", "300", "--batch", "4"] + _USUAL,
    "V2 0.5, 256x256, batch 16": ["--size", "256", "--depth", "0.5", "--batch", "16"] + _USUAL,
    "V3 large, 320x320, batch 4": ["--model", "ssd_mobilenet_v3_large", "--size", "320", "--batch", "4"]
    + _USUAL,
}
_OTHERS = {
    "V2 FPNLite of TF 2, 160x160, batch 8": ["--model", "ssd_mobilenet_v2_fpnlite_320x320", "--size", "160"]
    + ["--batch", "8"]
    + _USUAL,
    "classifier V2, 224x224, batch 8": ["--model", "mobilenet_v2", "--size", "224", "--batch", "8"] + _USUAL,
}
_ROWS = dict(_DETECTORS, **_OTHERS)
_FIGURES = ("step, seconds", "step, processor seconds", "rewriting, training graph", "rewriting, eval graph")


def measure(tree: str, flags: List[str]) -> Dict[str, float]:
    """Runs this train_step.py on the od_qat and the zoo of a working copy; returns the figures."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "figures.json")
        script = os.path.join(REPOSITORY, "benchmarks", "train_step.py")
        ended = subprocess.run(
            [sys.executable, script, "--json", path] + flags,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=dict(os.environ, PYTHONPATH=tree, OD_QAT_TREE=tree),
        )
        if ended.returncode:
            text = ended.stdout.decode("utf-8", "replace")
            sys.exit("steps: {} {} of {} failed:\n{}".format(script, " ".join(flags), tree, text))
        with open(path) as stream:
            found = json.load(stream)
    processor = found["step_processor_seconds"]
    values = (
        found["qat_over_float"],
        processor["qat"] / processor["float"],
        found["rewriting_processor_seconds"],
        found["eval_rewriting_processor_seconds"],
    )
    return dict(zip(_FIGURES, values))


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", nargs="+", default=[REPOSITORY])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--rows", nargs="+", metavar="NAME", default=list(_DETECTORS), help="or: all")
    arguments = parser.parse_args()
    rows = list(_ROWS) if arguments.rows == ["all"] else arguments.rows
    for name in rows:
        if name not in _ROWS:
            parser.error("no row {!r}; allowed: all, {}".format(name, ", ".join(map(repr, _ROWS))))
    print("| network | " + " | ".join(_FIGURES) + " |")
    print("| --- |" + " --- |" * len(_FIGURES), flush=True)
    for name in rows:
        runs: Dict[str, List[Dict[str, float]]] = {tree: [] for tree in arguments.trees}
        for number in range(arguments.rounds):
            for tree in arguments.trees:
                runs[tree].append(measure(os.path.abspath(tree), _ROWS[name]))
                print(number, tree, name, runs[tree][-1], file=sys.stderr, flush=True)
        for tree in arguments.trees:
            cells = [statistics.median(one[figure] for one in runs[tree]) for figure in _FIGURES]
            label = name if len(arguments.trees) == 1 else "{} ({})".format(name, tree)
            print(
                "| {} | {} |".format(label, " | ".join("{:.2f}".format(cell) for cell in cells)), flush=True
            )


if __name__ == "__main__":
    main()
