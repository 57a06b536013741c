"""What a training of one step takes beside the step: processor and wall seconds, memory, and what it writes.

    python benchmarks/one_step.py [--trees . OTHER] [--data builtin|voc:FOLDER] [--rounds 3]

Runs `od-qat train` for one step, in float and with QAT, of an SSD MobileNet V1 0.75 at 300x300 and batch 8.
With several trees, which are working copies of this repository (`git worktree add OTHER COMMIT` makes one of
an older commit), they take turns, `--rounds` times (A B A B ...), all in this Python. Prints the medians as
JSON. On a shared machine only their ratios mean anything, and on a busy one only those of processor time.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Dict, List

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)


def write_configs(folder: str, data: str) -> Dict[str, str]:
    """Makes the data and the configs; returns kind -> path of the config."""
    from od_qat.cli import demo
    from od_qat.od_api import pipeline

    dataset = demo.make_data(data, os.path.join(folder, "data"), 0, "train", "val", False)
    path = os.path.join(REPOSITORY, "od_qat", "configs", "ssd_mobilenet_v2_qat.config")
    config = pipeline.load(
        path,
        [
            "model.ssd.num_classes={}".format(max(dataset.names_by_id())),
            "model.ssd.feature_extractor.type=ssd_mobilenet_v1",
            "model.ssd.feature_extractor.depth_multiplier=0.75",
            "train_config.batch_size=8",
            "train_config.num_steps=1",
            "train_config.fine_tune_checkpoint=",
            "train_input_reader.label_map_path=" + dataset.label_map,
            "train_input_reader.tf_record_input_reader.input_path=" + dataset.train_record,
            "eval_input_reader.0.label_map_path=" + dataset.label_map,
            "eval_input_reader.0.tf_record_input_reader.input_path=" + dataset.val_record,
            "graph_rewriter.quantization.delay=0",
        ],
    )
    found = {}
    for kind in ("qat", "float"):
        if kind == "float":
            config.ClearField("graph_rewriter")
        found[kind] = os.path.join(folder, kind + ".config")
        with open(found[kind], "w") as stream:
            stream.write(pipeline.to_text(config))
    return found


def run(tree: str, config: str, folder: str) -> Dict[str, float]:
    """Runs the training of one step in a process of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "od_qat", "train", "--pipeline_config_path", config]
    command += ["--train_dir", folder]
    environment = dict(os.environ, PYTHONPATH=tree)
    started = time.time()
    with tempfile.TemporaryFile() as said:
        process = subprocess.Popen(command, cwd=tree, env=environment, stdout=said, stderr=said)
        _, status, used = os.wait4(process.pid, 0)
        if status:
            said.seek(0)
            sys.exit("one_step: {} ended with {}:\n{}".format(tree, status, said.read().decode()))
    sizes = [os.path.getsize(os.path.join(folder, name)) for name in os.listdir(folder)]
    return {
        "wall_seconds": time.time() - started,
        "processor_seconds": used.ru_utime + used.ru_stime,
        "peak_memory_mb": used.ru_maxrss / 1024.0,
        "written_mb": sum(sizes) / 1e6,
    }


def main() -> None:
    """Measures, and prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trees", nargs="+", default=[REPOSITORY])
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    found: Dict[str, Dict[str, List[Dict[str, float]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        configs = write_configs(folder, arguments.data)
        for number in range(arguments.rounds):
            for tree in arguments.trees:
                for kind, config in configs.items():
                    one = run(os.path.abspath(tree), config, os.path.join(folder, "train"))
                    found.setdefault(tree, {}).setdefault(kind, []).append(one)
                    print(number, tree, kind, one, file=sys.stderr, flush=True)
    medians = {
        tree: {
            kind: {name: statistics.median(one[name] for one in runs) for name in runs[0]}
            for kind, runs in kinds.items()
        }
        for tree, kinds in found.items()
    }
    print(json.dumps(medians, indent=2))


if __name__ == "__main__":
    main()
