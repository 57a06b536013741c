"""What od-qat's commands take: seconds, processor seconds, memory, and what a training writes.

    python benchmarks/commands.py [--trees . OTHER] [--data builtin|voc:FOLDER] [--rounds 3]
        [--commands train train-qat export-tflite eval score score-2 doctor help] [--detector v1|tf2]

The detector is an SSD MobileNet V1 0.75 at 300x300. `train` and `train-qat` are one step at batch 8;
`export-tflite`, `eval` and `score` are of what `train-qat` made, on the first 128 training images; `score-2`
has two processes. With `--detector tf2` the detector is an SSD MobileNet V2 FPNLite of the TF 2 half.

With several trees, which are working copies of this repository (`git worktree add OTHER COMMIT` makes one of
an older commit), they take turns, `--rounds` times (A B A B ...), all in this Python. Prints the medians as a
Markdown table. On a shared machine only their ratios mean anything, and on a busy one only those of processor
time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Callable, Dict, List

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)

_IMAGES = 128
_OF_V1 = [
    "model.ssd.feature_extractor.type=ssd_mobilenet_v1",
    "model.ssd.feature_extractor.depth_multiplier=0.75",
    "graph_rewriter.quantization.delay=0",
]
# Detector -> its config, and what differs from it.
_DETECTORS = {
    "v1": ("ssd_mobilenet_v2_qat.config", _OF_V1),
    "tf2": ("demo_tf2_folder_qat.config", []),
}
_OF_A_TRAINING = ("export-tflite", "eval", "score", "score-2")
_COMMANDS = ("train", "train-qat") + _OF_A_TRAINING + ("doctor", "help")
# One measured run.
_Used = Dict[str, float]


class Bench(object):
    """The data, the configs, and the commands to run.

    Attributes:
      commands: name -> function of the folder of a tree's outputs, which returns the words of the command.
    """

    def __init__(self, folder: str, data: str, detector: str) -> None:
        from od_qat.cli import demo

        self._dataset = demo.make_data(data, os.path.join(folder, "data"), 0, "train", "val", False)
        self._configs = self._write_configs(folder, detector)
        self.commands: Dict[str, Callable[[str], List[str]]] = {
            "train": lambda out: self._train("float", out),
            "train-qat": lambda out: self._train("qat", out),
            "export-tflite": self._export,
            "eval": self._eval,
            "score": lambda out: self._score(out, 1),
            "score-2": lambda out: self._score(out, 2),
            "doctor": lambda out: ["doctor"],
            "help": lambda out: ["--help"],
        }

    def _write_configs(self, folder: str, detector: str) -> Dict[str, str]:
        from od_qat.od_api import pipeline

        name, different = _DETECTORS[detector]
        dataset = self._dataset
        config = pipeline.load(
            os.path.join(REPOSITORY, "od_qat", "configs", name),
            [
                "model.ssd.num_classes={}".format(max(dataset.names_by_id())),
                "train_config.batch_size=8",
                "train_config.num_steps=1",
                "train_config.fine_tune_checkpoint=",
                "eval_config.num_examples={}".format(_IMAGES),
                "train_input_reader.label_map_path=" + dataset.label_map,
                "train_input_reader.tf_record_input_reader.input_path=" + dataset.train_record,
                "eval_input_reader.0.label_map_path=" + dataset.label_map,
                "eval_input_reader.0.tf_record_input_reader.input_path=" + dataset.train_record,
            ]
            + different,
        )
        found = {}
        for kind in ("qat", "float"):
            if kind == "float":
                config.ClearField("graph_rewriter")
            found[kind] = os.path.join(folder, kind + ".config")
            with open(found[kind], "w") as stream:
                stream.write(pipeline.to_text(config))
        return found

    def _train(self, kind: str, out: str) -> List[str]:
        folder = os.path.join(out, kind)
        shutil.rmtree(folder, ignore_errors=True)
        return ["train", "--pipeline_config_path", self._configs[kind], "--train_dir", folder]

    def _export(self, out: str) -> List[str]:
        words = ["export-tflite", "--pipeline_config_path", self._configs["qat"]]
        words += ["--trained_checkpoint_prefix", os.path.join(out, "qat")]
        return words + ["--output_directory", os.path.join(out, "tflite")]

    def _eval(self, out: str) -> List[str]:
        folder = os.path.join(out, "eval")
        shutil.rmtree(folder, ignore_errors=True)
        words = ["eval", "--pipeline_config_path", self._configs["qat"], "--run_once"]
        return words + ["--checkpoint_dir", os.path.join(out, "qat"), "--eval_dir", folder]

    def _score(self, out: str, processes: int) -> List[str]:
        words = ["score", "--model", os.path.join(out, "tflite", "detect.tflite")]
        words += ["--record", self._dataset.train_record, "--label_map", self._dataset.label_map]
        return words + ["--max_images", str(_IMAGES), "--processes", str(processes)]


# Starts a command from a small process. (The peak memory of a process begins with that of its parent.)
_LAUNCHER = """
import json, os, sys, time
started = time.time()
said = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
streams = [(os.POSIX_SPAWN_DUP2, said, 1), (os.POSIX_SPAWN_DUP2, said, 2)]
process = os.posix_spawn(sys.executable, [sys.executable] + sys.argv[2:], os.environ, file_actions=streams)
_, status, used = os.wait4(process, 0)
print(json.dumps({
    "failed": status != 0,
    "seconds": time.time() - started,
    "processor seconds": used.ru_utime + used.ru_stime,
    "peak MB": used.ru_maxrss / 1024.0,
}))
"""


def run(tree: str, words: List[str]) -> _Used:
    """Runs a command in a process of its own; the memory is that of its largest process."""
    environment = dict(os.environ, PYTHONPATH=tree)
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "said")
        command = [sys.executable, "-S", "-c", _LAUNCHER, path, "-m", "od_qat"] + words
        used = json.loads(subprocess.check_output(command, cwd=tree, env=environment).decode())
        if used.pop("failed"):
            with open(path, encoding="utf-8", errors="replace") as stream:
                sys.exit("commands: {}: {} failed:\n{}".format(tree, " ".join(words), stream.read()))
    return used


def written(folder: str) -> float:
    """The size of a folder's files, in MB."""
    return sum(os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)) / 1e6


def main() -> None:
    """Measures, and prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", nargs="+", default=[REPOSITORY])
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--detector", choices=tuple(_DETECTORS), default="v1")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--commands",
        nargs="+",
        choices=_COMMANDS,
        default=_COMMANDS,
        metavar="COMMAND",
        help="by default all",
    )
    parser.add_argument("--json", help="write the figures to this file too")
    arguments = parser.parse_args()
    if set(arguments.commands) & set(_OF_A_TRAINING) and "train-qat" not in arguments.commands:
        parser.error("--commands {} need train-qat in front of them".format(" ".join(_OF_A_TRAINING)))
    if set(arguments.commands) & {"score", "score-2"} and "export-tflite" not in arguments.commands:
        parser.error("--commands score and score-2 need export-tflite in front of them")
    if len(set(arguments.trees)) < len(arguments.trees):
        parser.error("--trees names one twice")
    found: Dict[str, Dict[str, List[_Used]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, arguments.data, arguments.detector)
        for number in range(arguments.rounds):
            for name in arguments.commands:
                for index, tree in enumerate(arguments.trees):
                    out = os.path.join(folder, str(index))
                    words = bench.commands[name](out)
                    one = run(os.path.abspath(tree), words)
                    if words[0] == "train":
                        one["written MB"] = written(words[-1])
                    found.setdefault(name, {}).setdefault(tree, []).append(one)
                    print(number, tree, name, one, file=sys.stderr, flush=True)
    print_table(found, arguments.trees)
    if arguments.json:
        with open(arguments.json, "w") as stream:
            json.dump(found, stream, indent=2)


def print_table(found: Dict[str, Dict[str, List[_Used]]], trees: List[str]) -> None:
    """A row for each command and figure, with the medians of each tree and the last by the first."""
    last = ["ratio"] if len(trees) > 1 else []
    print("| command | | " + " | ".join(trees + last) + " |")
    print("| --- | --- |" + " --- |" * (len(trees) + len(last)))
    for name, by_tree in found.items():
        for figure in by_tree[trees[0]][0]:
            medians = [statistics.median(one[figure] for one in by_tree[tree]) for tree in trees]
            cells = ["{:.2f}".format(value) if value < 100 else "{:.0f}".format(value) for value in medians]
            if last:
                cells.append("{:.2f}".format(medians[-1] / medians[0]))
            print("| {} | {} | {} |".format(name, figure, " | ".join(cells)))


if __name__ == "__main__":
    main()
