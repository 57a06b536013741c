"""Steps a second of QAT with one and with two asynchronous workers, all on this machine.

    python benchmarks/workers.py [--config FILE] [--steps 80]

Processes on one machine share its cores: where one worker fills them, two gain nothing. Run it where each
worker can have cores of its own.
"""

import argparse
import os
import sys
import tempfile
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from tests import tiny  # noqa: E402
from tests.test_distributed import Cluster  # noqa: E402


def measure(config: str, workers: int, steps: int) -> float:
    """Global steps a second, from the chief's own lines between a fifth of the steps and the end."""
    program = ["-m", "od_qat", "train", "--pipeline_config_path", config]
    program += ["--override", "train_config.num_steps={}".format(steps)]
    program += ["--override", "train_config.startup_delay_steps=0"]
    seen = []
    with tempfile.TemporaryDirectory() as folder:
        trained = Cluster(folder, lambda train_dir: program + ["--train_dir", train_dir])

        def look() -> bool:
            lines = [line for line in trained.log("master").splitlines() if line.startswith("step ")]
            if lines:
                step = int(lines[-1].split()[1].partition("/")[0].rstrip(","))
                if not seen or seen[-1][1] != step:
                    seen.append((time.time(), step))
            return trained.processes["master"].poll() == 0

        try:
            for job in ("ps", "worker", "master")[:: 1 if workers == 2 else 2]:
                trained.start(job)
            trained.wait_for(look, "end of the chief")
        finally:
            trained.close()
    steady = [one for one in seen if one[1] >= steps // 5]
    return (steady[-1][1] - steady[0][1]) / (steady[-1][0] - steady[0][0])


def main() -> None:
    """Prints a line for each number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", help="default: the tests' tiny detector on made-up images")
    parser.add_argument("--steps", type=int, default=80)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = arguments.config
        if config is None:
            tiny.write_data(folder)
            config = tiny.write_config(folder, True, "qat")
        for workers in (1, 2):
            rate = measure(os.path.abspath(config), workers, arguments.steps)
            print(
                "{} workers: {:.2f} steps/s, load {:.1f}".format(workers, rate, os.getloadavg()[0]),
                flush=True,
            )


if __name__ == "__main__":
    main()
