"""Does our training of a TF 2 model end where upstream's does? mAP after equally many float steps of both.

    od-qat demo --detector tf2 --work_dir out/demo_tf2
    python benchmarks/both_loops.py --work_dir out/demo_tf2 [--steps 200] [--repeats 3]

Continues the demo's float checkpoint without quantization and without a seed: with `od-qat train`, and with
upstream's eager loop (model_lib_v2.train_loop, in a process without od_qat). They take turns, `--repeats`
times, on one config and the same records. Evaluates each checkpoint with od_qat's evaluator, and prints mAP
in points, the means with their standard deviations, and the mean difference with its interval of 95 %
(Student's t).
"""

import argparse
import os
import shutil
import subprocess
import sys

import accuracy

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)

_WARM_UP = 20
# How often upstream's tf.function is called.
_CALLS = 10


def write_config(work_dir: str, steps: int) -> str:
    """Writes the demo's config of the continued float training, with another length; returns its path."""
    from od_qat.files import write_atomically
    from od_qat.od_api import pipeline

    rate = "train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate."
    overrides = [
        "train_config.num_steps={}".format(steps),
        rate + "total_steps={}".format(steps),
        rate + "warmup_steps={}".format(min(_WARM_UP, steps // 10)),
    ]
    config = pipeline.load(os.path.join(work_dir, "float_on.config"), overrides)
    path = os.path.join(work_dir, "both_loops", "float.config")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    write_atomically(path, pipeline.to_text(config))
    return path


def train(loop: str, config: str, folder: str, steps: int) -> None:
    """Trains in a process of its own."""
    command = [sys.executable, "-m", "od_qat", "train", "--pipeline_config_path", config]
    command += ["--train_dir", folder]
    if loop == "upstream":
        command = [sys.executable, os.path.abspath(__file__), "--upstream", config, folder]
        command += ["--steps", str(steps)]
    subprocess.run(command, check=True, env=dict(os.environ, PYTHONPATH=REPOSITORY), stdout=sys.stderr)


def evaluate(config: str, folder: str) -> float:
    """mAP of the newest checkpoint in a folder, in points."""
    from od_qat import commands

    metrics = commands.evaluate(config, folder, folder + "_eval", run_once=True)
    return 100 * metrics["DetectionBoxes_Precision/mAP"]


def main() -> None:
    """Trains, evaluates and prints."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work_dir", default=os.path.join("out", "demo_tf2"))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--upstream", nargs=2, metavar=("CONFIG", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        from benchmarks import against_eager

        # (A checkpoint is written at the end.)
        steps = arguments.steps
        against_eager.train_upstream(*arguments.upstream, steps // _CALLS, checkpoint_every_n=steps)
        return
    found = {"od_qat": [], "upstream": []}
    if arguments.steps % _CALLS:
        parser.error("--steps: a multiple of {}, the calls of upstream's tf.function".format(_CALLS))
    config = write_config(arguments.work_dir, arguments.steps)
    for number in range(arguments.repeats):
        for loop, points in found.items():
            folder = os.path.join(os.path.dirname(config), "{}_{}".format(loop, number))
            shutil.rmtree(folder, ignore_errors=True)
            train(loop, config, folder, arguments.steps)
            points.append(evaluate(config, folder))
            print("{} {}: {:.1f}".format(loop, number, points[-1]), flush=True)
    for loop, points in found.items():
        mean, deviation, _ = accuracy.statistics(points)
        print("{}: mean {:.2f}, deviation {:.2f}".format(loop, mean, deviation or 0))
    mean, _, half_width = accuracy.statistics([a - b for a, b in zip(found["od_qat"], found["upstream"])])
    print("od_qat - upstream: {:+.2f} +- {:.2f}".format(mean, half_width or float("nan")))


if __name__ == "__main__":
    main()
