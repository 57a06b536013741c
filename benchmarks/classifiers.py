"""The classifiers' demo over several seeds: what do QAT and PTQ cost at equal training?

    python benchmarks/classifiers.py [--seeds 0 1 2] [--work_dir classifiers_out]

Runs `od-qat demo-classifier` once for each seed and prints a line for each network and seed: accuracy on
1,000 images of MNIST, in points, of the float model that was trained on, of its PTQ .tflite and of the QAT
.tflite. Below stand the means of their differences over the seeds, with the standard deviations.
"""

import argparse
import json
import os
import statistics

_FLOAT, _PTQ, _QAT = "float .pb", "PTQ int8 .tflite", "QAT int8 .tflite"


def main() -> None:
    """Runs it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work_dir", default="classifiers_out")
    options = parser.parse_args()
    from od_qat import cli

    found = {}
    for seed in options.seeds:
        folder = os.path.join(options.work_dir, "seed{}".format(seed))
        if cli.main(["demo-classifier", "--work_dir=" + folder, "--seed={}".format(seed)]):
            raise SystemExit("the demo failed")
        with open(os.path.join(folder, "demo.json")) as stream:
            for network, rows in json.load(stream).items():
                points = {row["label"]: 100 * row["accuracy"] for row in rows}
                found.setdefault(network, []).append([points[one] for one in (_FLOAT, _PTQ, _QAT)])
    for network, rows in found.items():
        print("\n{}\n| seed | float | PTQ .tflite | QAT .tflite |\n| --- | --- | --- | --- |".format(network))
        for seed, row in zip(options.seeds, rows):
            print("| {} | {:.1f} | {:.1f} | {:.1f} |".format(seed, *row))
        for label, pair in (("QAT less float", (2, 0)), ("PTQ less float", (1, 0)), ("QAT less PTQ", (2, 1))):
            points = [row[pair[0]] - row[pair[1]] for row in rows]
            deviation = statistics.stdev(points) if len(points) > 1 else float("nan")
            print("{}: {:+.2f} points, deviation {:.2f}".format(label, statistics.mean(points), deviation))


if __name__ == "__main__":
    main()
