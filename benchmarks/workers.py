"""Steps a second of QAT with one and with two asynchronous workers, all on this machine.

    python benchmarks/workers.py [--config FILE] [--steps 200] [--rounds 2]

Each worker is kept to cores of its own, the first half of the machine's and the second; the parameter server
may run on all. One worker has half of the machine then, as if the other half were another machine (without
the network between). One and two take turns; medians are printed, and their ratio.
"""

import argparse
import os
import re
import statistics
import sys
import tempfile
from typing import List, Tuple

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests.helpers import tiny_detector  # noqa: E402
from tests.test_distributed import Cluster  # noqa: E402

_SIZE = "model.ssd.image_resizer.fixed_shape_resizer."
_SMALL_DETECTOR = (
    _SIZE + "height=160",
    _SIZE + "width=160",
    "model.ssd.feature_extractor.depth_multiplier=0.5",
    "train_config.batch_size=8",
)


def measure(config: str, workers: int, steps: int) -> float:
    """Global steps a second: the median between the chief's lines, from when all workers train.

    (Not the mean: once a minute the chief writes summaries, of which a short run has more or fewer.)
    """
    program = ["-m", "od_qat", "train", "--pipeline_config_path", config]
    program += ["--override", "train_config.num_steps={}".format(steps)]
    program += ["--override", "train_config.startup_delay_steps=0"]
    jobs = ("master", "worker")[:workers]
    alone = []  # steps of lines that came before all trained
    with tempfile.TemporaryDirectory() as folder:
        trained = Cluster(folder, lambda train_dir: program + ["--train_dir", train_dir])

        def look() -> bool:
            if not all("\nstep " in trained.log(job) for job in jobs):
                alone[:] = [step for step, _ in _lines(trained.log("master"))]
            return trained.processes["master"].poll() == 0

        cores = sorted(os.sched_getaffinity(0))
        half = len(cores) // 2
        try:
            trained.start("ps")
            for job, own in zip(jobs, (cores[:half], cores[half : 2 * half])):
                os.sched_setaffinity(0, own)  # (a process starts with its parent's)
                trained.start(job)
            os.sched_setaffinity(0, cores)
            trained.wait_for(look, "end of the chief")
            lines = _lines(trained.log("master"))[len(alone) :]
        finally:
            trained.close()
    if len(lines) < 4:
        sys.exit("workers: error: {} lines while all trained; give more --steps".format(len(lines)))
    rates = [(after[0] - before[0]) / (after[1] - before[1]) for before, after in zip(lines, lines[1:])]
    return statistics.median(rates)


def _lines(log: str) -> List[Tuple[int, float]]:
    """Step and seconds since the start of each line of progress, which says the mean rate since then."""
    found = re.findall(r"^step (\d+)\S*  loss .*  ([\d.]+) steps/s$", log, re.MULTILINE)
    return [(int(step), int(step) / float(rate)) for step, rate in found if float(rate)]


def main() -> None:
    """Prints a line for each run, the medians and their ratio."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="default: an SSDLite MobileNet V1 at 160x160 on made-up images")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    if len(os.sched_getaffinity(0)) < 2:
        sys.exit("workers: error: one core, which two workers cannot share; run it on a machine with more")
    rates = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        config = arguments.config
        if config is None:
            tiny_detector.write_data(folder)
            config = tiny_detector.write_config(folder, True, "qat", more=_SMALL_DETECTOR)
        for _ in range(arguments.rounds):
            for workers, found in rates.items():
                found.append(measure(os.path.abspath(config), workers, arguments.steps))
                print("{} workers: {:.2f} steps/s".format(workers, found[-1]), flush=True)
    one, two = (statistics.median(found) for found in rates.values())
    print("medians: 1 worker {:.2f} steps/s, 2 workers {:.2f}: {:.2f} times".format(one, two, two / one))


if __name__ == "__main__":
    main()
