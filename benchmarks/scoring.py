"""What scoring costs: seconds with one and with two processes, and memory on few and on many images.

    python benchmarks/scoring.py MODEL --record FILE --label_map FILE [--images 1000] [--rounds 3]
    python benchmarks/scoring.py MODEL --record FILE --label_map FILE --memory [--images 1000 10000]

The images of the record are repeated, each time under other ids, until there are enough. The first form runs
`od-qat score` with one and with two processes in turns, and prints the median seconds and their ratio. With
--memory, `od-qat report` runs once for each number of images; of each run the seconds are printed, and the
memory of its largest process.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from typing import List, Tuple

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, REPOSITORY)


def repeat(record: str, count: int, path: str) -> None:
    """Writes `count` examples: those of the record, again and again."""
    from od_qat.compat import tf

    with tf.python_io.TFRecordWriter(path) as writer:
        number = 0
        while number < count:
            for serialized in tf.python_io.tf_record_iterator(record):
                if number == count:
                    break
                example = tf.train.Example.FromString(serialized)
                source_id = example.features.feature["image/source_id"].bytes_list
                source_id.value[:] = [b"%d" % number]
                writer.write(example.SerializeToString())
                number += 1


def run(arguments: List[str]) -> Tuple[float, float]:
    """Runs `od-qat` with arguments; returns its seconds and the MiB of its largest process."""
    command = [sys.executable, "-m", "od_qat"] + arguments
    started = time.time()
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    if status != 0:
        sys.exit("scoring: error: {} ended with status {}".format(" ".join(arguments), status))
    return time.time() - started, usage.ru_maxrss / 1024.0


def main() -> None:
    """Prints a line for each run, and what follows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--record", required=True)
    parser.add_argument("--label_map", required=True)
    parser.add_argument("--images", type=int, nargs="+", default=[1000])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        record = os.path.join(folder, "repeated.record")
        data = ["--record=" + record, "--label_map=" + os.path.abspath(options.label_map)]
        for count in options.images:
            repeat(options.record, count, record)
            if options.memory:
                wanted = [
                    "report",
                    os.path.abspath(options.model),
                    "--output_dir=" + os.path.join(folder, "report"),
                ]
                seconds, memory = run(wanted + data)
                print("{} images: {:.0f} s, {:.0f} MiB".format(count, seconds, memory), flush=True)
                continue
            taken = {1: [], 2: []}
            for _ in range(options.rounds):
                for processes in taken:
                    wanted = ["score", "--model=" + os.path.abspath(options.model)]
                    seconds, _ = run(wanted + data + ["--processes={}".format(processes)])
                    taken[processes].append(seconds)
            one, two = (statistics.median(taken[processes]) for processes in (1, 2))
            print(
                "{} images: {:.1f} s with one process, {:.1f} s with two: {:.2f} times as fast".format(
                    count, one, two, one / two
                )
            )


if __name__ == "__main__":
    main()
