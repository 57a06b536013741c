"""Our training of a TF 2 model beside upstream's: time of a step, and from the command to the first step.

    python benchmarks/against_eager.py [--models ssd_mobilenet_v2_fpnlite_320x320 ssd_mobilenet_v2_320x320]
        [--batch 16] [--size SIZE] [--steps 12] [--rounds 2]

Runs `od-qat train`, float and QAT, and upstream's eager loop (model_lib_v2.train_loop below a
MirroredStrategy, as model_main_tf2.py runs it, in a process without od_qat) on the same config and records,
one after the other, `--rounds` times (A B C A B C ...). Each is a process of its own; the time of a step is
that between two lines that it prints, the first steps left out. Upstream's prints one for each
`--steps_of_call` steps, which are one call of its tf.function; it writes no summaries where TensorBoard is
not installed, and never images. Prints the medians and their ratios; only ratios mean anything on a shared
machine.
"""

import argparse
import importlib.util
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from typing import List, NamedTuple

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)

# What is printed while steps are counted, by either program.
_STEP = re.compile(r"^step (\d+)")
_MODELS = ("ssd_mobilenet_v2_fpnlite_320x320", "ssd_mobilenet_v2_320x320")
# Steps that are no measure: TensorFlow chooses its kernels and fills its pools.
_WARM_UP = 3
# od-qat train prints ten lines; below 20 steps that is one for each.
_MOST_STEPS = 19


class Run(NamedTuple):
    """Seconds of a step, and from the command to the end of the first step (to within a step)."""

    step: float
    first: float


def run(command: List[str]) -> Run:
    """Runs a training, and takes the time of each line that says a step."""
    environment = dict(os.environ, PYTHONPATH=REPOSITORY)
    started, stamps, said = time.time(), [], []
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, universal_newlines=True
    )
    with process.stdout as stream:
        for line in stream:
            said.append(line)
            found = _STEP.match(line)
            # (The last line of od-qat train says the last step once more, and its checkpoint.)
            if found and (not stamps or int(found.group(1)) > stamps[-1][0]) and "ckpt" not in line:
                stamps.append((int(found.group(1)), time.time()))
    if process.wait() or not stamps:
        sys.exit(
            "against_eager: {} ended with {}:\n{}".format(command, process.returncode, "".join(said[-30:]))
        )
    steps = [
        (after - before) / (number - previous)
        for (previous, before), (number, after) in zip(stamps, stamps[1:])
        if previous >= _WARM_UP
    ]
    if not steps:
        sys.exit("against_eager: {} printed too few steps: {}".format(command, [n for n, _ in stamps]))
    step = statistics.median(steps)
    first, when = stamps[0]
    return Run(step, when - started - (first - 1) * step)


def ours(config: str, folder: str) -> List[str]:
    """The command of a training by od_qat."""
    return [sys.executable, "-m", "od_qat", "train", "--pipeline_config_path", config, "--train_dir", folder]


def upstreams(config: str, folder: str, steps_of_call: int) -> List[str]:
    """The command of a training by upstream."""
    return [sys.executable, os.path.abspath(__file__), "--upstream", config, folder, str(steps_of_call)]


class _Clock(object):
    """Stands for the module `time` in upstream's loop, which asks it for the time once a call has ended."""

    def __init__(self, steps_of_call: int) -> None:
        self._steps_of_call, self._asked = steps_of_call, 0

    def time(self) -> float:
        """The time. The loop asks once before its first call, and twice after each."""
        if self._asked % 2:
            print("step {}".format((self._asked // 2 + 1) * self._steps_of_call), flush=True)
        self._asked += 1
        return time.time()


def _add_missing_names(tf) -> None:
    """Adds what upstream's modules and tf-slim look up in TensorFlow, where it has moved or is missing."""
    from tensorflow.python.ops import control_flow_ops

    from tests.helpers import keras_nets

    if not hasattr(tf.compat.v1, "estimator"):  # (the eager loop does not use it)
        tf.compat.v1.estimator = keras_nets.Absent("estimator")
    for name in ("case", "cond", "while_loop", "Assert"):
        if not hasattr(control_flow_ops, name):
            setattr(control_flow_ops, name, getattr(tf.compat.v1, name))
    if importlib.util.find_spec("tensorboard") is None:
        tf.compat.v1.compat.v2.summary.scalar = lambda *args, **kwargs: None


def train_upstream(config: str, folder: str, steps_of_call: int, **options: int) -> None:
    """Trains with upstream's eager loop and its options, until the config's num_steps."""
    if importlib.util.find_spec("tf_keras"):
        os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import tensorflow as tf

    from tests.helpers import keras_nets

    _add_missing_names(tf)
    with keras_nets.absent_packages():
        from object_detection import model_lib_v2
    assert "od_qat" not in sys.modules and tf.executing_eagerly()
    model_lib_v2.time = _Clock(steps_of_call)
    with tf.distribute.MirroredStrategy().scope():
        model_lib_v2.train_loop(
            config, folder, num_steps_per_iteration=steps_of_call, record_summaries=False, **options
        )


def compare(model: str, arguments) -> dict:
    """The medians of a model's trainings, and their ratios."""
    from benchmarks import tf2_samples
    from od_qat import plugin  # noqa: F401
    from tests.helpers import tiny_detector

    runs = {"float": [], "qat": [], "upstream": []}
    with tempfile.TemporaryDirectory() as folder:
        tiny_detector.write_data(folder, images=64)
        configs = {
            kind: tf2_samples.write_config(
                folder, model, arguments.batch, arguments.steps, kind == "qat", arguments.size
            )
            for kind in ("float", "qat")
        }
        for number in range(arguments.rounds):
            for kind, found in runs.items():
                out = os.path.join(folder, "{}_{}".format(kind, number))
                command = ours(configs.get(kind), out)
                if kind == "upstream":
                    command = upstreams(configs["float"], out, arguments.steps_of_call)
                found.append(run(command))
                print("{} {}: {}".format(model, kind, found[-1]), file=sys.stderr, flush=True)
    steps = {kind: statistics.median(one.step for one in found) for kind, found in runs.items()}
    firsts = {kind: statistics.median(one.first for one in found) for kind, found in runs.items()}
    return {
        "model": model,
        "batch": arguments.batch,
        "step_seconds": steps,
        "seconds_to_first_step": firsts,
        "qat_over_float": steps["qat"] / steps["float"],
        "float_over_upstream": steps["float"] / steps["upstream"],
        "first_step_float_over_upstream": firsts["float"] / firsts["upstream"],
    }


def main() -> None:
    """Compares, and prints JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=_MODELS, help="TF 2 configs, by their short names")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, help="side of the images; the config's own by default")
    parser.add_argument(
        "--steps", type=int, default=12, help="of each training, up to {}".format(_MOST_STEPS)
    )
    parser.add_argument("--steps_of_call", type=int, default=3, help="in a call of upstream's tf.function")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--upstream", nargs=3, metavar=("CONFIG", "FOLDER", "STEPS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.upstream:
        config, folder, steps_of_call = arguments.upstream
        train_upstream(config, folder, int(steps_of_call))
        return
    if not _WARM_UP + arguments.steps_of_call < arguments.steps <= _MOST_STEPS:
        parser.error("--steps: from {} to {}".format(_WARM_UP + arguments.steps_of_call + 1, _MOST_STEPS))
    print(json.dumps([compare(model, arguments) for model in arguments.models], indent=2))


if __name__ == "__main__":
    main()
