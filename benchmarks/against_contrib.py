"""od_qat on this TensorFlow against tf.contrib.quantize on TensorFlow 1.15, for docs/benchmarks.md.

    make setup setup-tf1
    .venv/bin/python benchmarks/against_contrib.py [--tf1_python .venv-tf1/bin/python] [--rounds 3]
    .venv/bin/python benchmarks/against_contrib.py --only_rewriting [--rounds 5]

For each model: train_step.py in a process of its own, ours and contrib's in turn (A B A B ...), medians over
the rounds; then the peak memory of a process that trains the float graph and of one that trains ours. Last,
or alone, what rewriting a training graph takes, ours and contrib's, for each op that is there and for each
that it adds: of SSD MobileNet V2, of the zoo's largest, and of the same net at three sizes.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
# Name in the zoo, size of the picture.
MODELS = (
    ("ssd_mobilenet_v2", 300),
    ("ssd_mobilenet_v1", 300),
    ("ssd_mobilenet_v2_fpnlite", 320),
    ("ssd_mobilenet_v3_large", 320),
)

# Size of the picture, a NASNet's cells. The second is the largest training graph of the zoo; the others
# differ in their number of ops alone.
REWRITING = (
    ("ssd_mobilenet_v2", 300, None),
    ("faster_rcnn_nas", 64, None),
    ("nasnet_cifar", 32, 6),
    ("nasnet_cifar", 32, 12),
    ("nasnet_cifar", 32, 18),
)


def run(python: str, model: str, size: int, *more: str) -> dict:
    """train_step.py in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.json")
        command = [python, os.path.join(HERE, "train_step.py"), "--model", model, "--size", str(size)]
        environment = dict(os.environ)
        # (TensorFlow 1.15's tools lie beside its Python.)
        environment["PATH"] = os.path.dirname(os.path.abspath(python)) + os.pathsep + environment["PATH"]
        subprocess.run(
            command + ["--json", path] + list(more),
            check=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        with open(path) as stream:
            return json.load(stream)


def compare(arguments, model: str, size: int) -> dict:
    """All figures of one model."""
    rounds = {"od_qat": [], "contrib": []}
    for _ in range(arguments.rounds):
        rounds["od_qat"].append(run(sys.executable, model, size, "--blocks", "3", "--steps", "4"))
        rounds["contrib"].append(
            run(arguments.tf1_python, model, size, "--blocks", "3", "--steps", "4", "--rewriter", "contrib")
        )

    def median(which, value):
        return statistics.median(value(one) for one in rounds[which])

    result = {"model": model, "size": size, "ops": rounds["od_qat"][0]["ops_before_rewriting"]}
    for which in rounds:
        result[which] = {
            "qat_over_float": median(which, lambda one: one["qat_over_float"]),
            "qat_step_seconds": median(which, lambda one: one["step_seconds"]["qat"]),
            "rewriting_seconds": median(which, lambda one: one["rewriting_seconds"]),
            "eval_rewriting_seconds": median(which, lambda one: one["eval_rewriting_seconds"]),
        }
    memory = {
        only: run(sys.executable, model, size, "--blocks", "1", "--only", only)["peak_memory_mb"]
        for only in ("float", "qat")
    }
    result["memory_over_float"] = memory["qat"] / memory["float"]
    result["memory_mb"] = memory
    return result


def table(results) -> str:
    """Markdown; steps as ratios, rewriting in seconds of the same run."""
    lines = [
        "| model | QAT step / float step, ours | contrib's | our QAT step / contrib's "
        "| rewriting, ours | contrib's | eval graph, ours | contrib's | memory / float |",
        "| --- " * 9 + "|",
    ]
    for one in results:
        ours, contrib = one["od_qat"], one["contrib"]
        lines.append(
            "| {} {} | {:.2f} | {:.2f} | {:.2f} | {:.2f} s | {:.2f} s | {:.2f} s | {:.2f} s "
            "| {:.2f} |".format(
                one["model"],
                one["size"],
                ours["qat_over_float"],
                contrib["qat_over_float"],
                ours["qat_step_seconds"] / contrib["qat_step_seconds"],
                ours["rewriting_seconds"],
                contrib["rewriting_seconds"],
                ours["eval_rewriting_seconds"],
                contrib["eval_rewriting_seconds"],
                one["memory_over_float"],
            )
        )
    return "\n".join(lines)


def rewriting(arguments) -> list:
    """Medians of what rewriting takes for each op, a dictionary for each model of REWRITING and rewriter."""
    pythons = {"od_qat": sys.executable, "contrib": arguments.tf1_python}
    pairs = [one + (rewriter,) for one in REWRITING for rewriter in pythons]
    runs = {pair: [] for pair in pairs}
    for _ in range(arguments.rounds):
        for model, size, cells, rewriter in pairs:
            more = ["--only", "rewriting", "--rewriter", rewriter]
            more += ["--cells", str(cells)] if cells else []
            runs[model, size, cells, rewriter].append(run(pythons[rewriter], model, size, *more))
    keys = ("rewriting_seconds", "rewriting_processor_seconds")
    keys += ("processor_microseconds_per_op", "processor_microseconds_per_added_op")
    return [
        dict(of_pair[0], **{key: statistics.median(one[key] for one in of_pair) for key in keys})
        for of_pair in runs.values()
    ]


def rewriting_table(results) -> str:
    """Markdown."""
    lines = [
        "| training graph | by | ops | ops added | rewriting | processor time | for each op "
        "| for each op added |",
        "| --- " * 8 + "|",
    ]
    for one in results:
        lines.append(
            "| {} {}{} | {} | {:,} | {:,} | {:.2f} s | {:.2f} s | {:.0f} us | {:.0f} us |".format(
                one["model"],
                one["size"],
                ", {} cells".format(one["cells"]) if one["cells"] else "",
                one["rewriter"],
                one["ops_before_rewriting"],
                one["ops_added"],
                one["rewriting_seconds"],
                one["rewriting_processor_seconds"],
                one["processor_microseconds_per_op"],
                one["processor_microseconds_per_added_op"],
            )
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tf1_python", default=os.path.join(".venv-tf1", "bin", "python"))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--models", nargs="+", choices=[name for name, _ in MODELS])
    parser.add_argument(
        "--only_rewriting", action="store_true", help="rewriting for each op, and nothing else"
    )
    parser.add_argument("--json", default="against_contrib.json")
    arguments = parser.parse_args()
    models = [] if arguments.only_rewriting else MODELS
    if not os.path.exists(arguments.tf1_python):
        sys.exit("against_contrib: no {}; make setup-tf1 makes it".format(arguments.tf1_python))
    results = {"models": [], "rewriting": []}
    for model, size in models:
        if not arguments.models or model in arguments.models:
            results["models"].append(compare(arguments, model, size))
            print(table(results["models"][-1:]), flush=True)
            write(results, arguments.json)
    if results["models"]:
        print("\n" + table(results["models"]))
    if not arguments.models:
        results["rewriting"] = rewriting(arguments)
        write(results, arguments.json)
        print("\n" + rewriting_table(results["rewriting"]))


def write(results, path: str) -> None:
    with open(path, "w") as stream:
        json.dump(results, stream, indent=2)


if __name__ == "__main__":
    main()
