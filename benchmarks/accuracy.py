"""The demo over several seeds: what does quantization cost at equal training, with QAT and with PTQ?

    python benchmarks/accuracy.py [--data builtin|voc:FOLDER] [--detector tf1|tf2] [--seeds 0 1 2]
        [--work_dir accuracy_out] [--placements full contrib]

Runs `od-qat demo` once for each seed (a seed's finished steps are not repeated) and prints a line for each:
mAP@[.5:.95] in points of the float checkpoint and of what equally many more steps from it make: the float
model trained on, its PTQ .tflite and the QAT .tflite. Below stand the means of their differences over the
seeds, the standard deviations, and intervals of 95 % of the means (Student's t).

With `--placements full contrib` a second QAT from the same float checkpoint, with placement 'contrib', and
for each placement the mAP of the frozen graph with fake quants and of its .tflite. Those of 'contrib' are
uint8, per tensor: its weight ranges, each end by itself, fit no int8 kernel.
"""

import argparse
import math
import os
from typing import Dict, Optional, Sequence, Tuple

# 97.5 % quantiles of Student's t by degrees of freedom.
_STUDENTS_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
_DIFFERENCES = (("qat", "float_on"), ("ptq_on", "float_on"), ("qat", "ptq_on"), ("float_on", "float"))


def differences(results: Sequence[dict]) -> Dict[str, Dict[str, Optional[float]]]:
    """How the models of one seed differ in mAP, over the seeds.

    Args:
      results: one for each seed, with mAP (0 to 1) of "float", "float_on", "ptq_on" and "qat".

    Returns:
      for "qat - float_on" and the like "mean", "deviation" (of the sample) and "half_width" of the mean's
      interval of 95 %, in points; the latter two are None with one seed.
    """
    found = {}
    for one, other in _DIFFERENCES:
        points = [100 * (result[one] - result[other]) for result in results]
        mean, deviation, half_width = statistics(points)
        found["{} - {}".format(one, other)] = {
            "mean": mean,
            "deviation": deviation,
            "half_width": half_width,
        }
    return found


def statistics(points: Sequence[float]) -> Tuple[float, Optional[float], Optional[float]]:
    """Mean, sample deviation, half the width of the mean's interval of 95 %; both None with one point."""
    count, mean = len(points), sum(points) / len(points)
    if count < 2:
        return mean, None, None
    deviation = math.sqrt(sum((value - mean) ** 2 for value in points) / (count - 1))
    quantile = _STUDENTS_T[count - 2] if count - 2 < len(_STUDENTS_T) else 2.0
    return mean, deviation, quantile * deviation / math.sqrt(count)


def with_contrib_placement(work_dir: str, seed: int) -> dict:
    """QAT from a finished demo's float checkpoint, placement 'contrib'; mAP of both its models.

    Args:
      work_dir: the demo's folder; everything goes into its subfolder contrib_placement.
      seed: of the training.
    """
    from od_qat import commands, evaluator, scoring
    from od_qat.datasets.info import DatasetInfo

    dataset = DatasetInfo.load(os.path.join(work_dir, "data"))
    config = os.path.join(work_dir, "qat.config")
    layers = "graph_rewriter.[od_qat.layers]."
    overrides = [layers + 'placement="contrib"', layers + "per_channel=false"]
    folder = os.path.join(work_dir, "contrib_placement")
    train_dir, eval_dir = os.path.join(folder, "train"), os.path.join(folder, "eval")
    commands.train(config, train_dir, overrides=overrides, seed=seed)
    commands.evaluate(config, train_dir, eval_dir, run_once=True, overrides=overrides)
    models = {
        "frozen": os.path.join(eval_dir, evaluator.FROZEN_NAME),
        "tflite": commands.export_tflite(config, train_dir, folder, "uint8", overrides=overrides),
    }
    names = dataset.names_by_id()
    return {
        kind: scoring.score(path, dataset.val_record, class_names=names, progress=False).score.map
        for kind, path in models.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--detector", default="tf1", choices=("tf1", "tf2"), help="as of od-qat demo")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work_dir", default="accuracy_out")
    parser.add_argument("--placements", nargs="+", choices=("full", "contrib"), default=["full"])
    parser.add_argument(
        "--float_steps", type=int, help="another length of the float training than the demo's"
    )
    parser.add_argument("--qat_steps", type=int, help="another length of QAT than the demo's")
    arguments = parser.parse_args()

    from od_qat.cli import demo
    from od_qat.files import write_json

    results = []
    for seed in arguments.seeds:
        folder = os.path.join(arguments.work_dir, "seed{}".format(seed))
        report = demo.run(
            arguments.data,
            folder,
            seed=seed,
            float_steps=arguments.float_steps,
            qat_steps=arguments.qat_steps,
            detector=arguments.detector,
        )
        rows = {row["label"]: row for row in report["rows"]["rows"]}
        results.append(
            {
                "seed": seed,
                "minutes": report["minutes"],
                "float": rows[demo.FLOAT]["map"],
                "float_map50": rows[demo.FLOAT]["map50"],
                "ptq": rows[demo.PTQ]["map"],
                "float_on": rows[demo.FLOAT_ON]["map"],
                "float_on_map50": rows[demo.FLOAT_ON]["map50"],
                "ptq_on": rows[demo.PTQ_ON]["map"],
                "qat": rows[demo.QAT]["map"],
                "qat_map50": rows[demo.QAT]["map50"],
                "agreement": report["agreement"]["share"],
                "placements": {
                    "full": {"frozen": rows[demo.QAT_FROZEN]["map"], "tflite": rows[demo.QAT]["map"]}
                },
            }
        )
        if "contrib" in arguments.placements:
            results[-1]["placements"]["contrib"] = with_contrib_placement(folder, seed)
    # "on": trained on for as long as QAT.
    columns = ("float", "ptq", "float_on", "float_on_map50", "ptq_on", "qat", "qat_map50", "agreement")
    print("seed  minutes  " + "  ".join(columns))
    for one in results:
        cells = ["{:.1f}".format(100 * one[name]).rjust(len(name)) for name in columns]
        print("{:4d}  {:7.1f}  ".format(one["seed"], one["minutes"]) + "  ".join(cells))
    found = differences(results)
    for name, value in found.items():
        text = "{:18} {:+.2f} points".format(name, value["mean"])
        if len(results) > 1:
            low, high = value["mean"] - value["half_width"], value["mean"] + value["half_width"]
            text += ", deviation {:.2f}, mean's interval of 95 % {:+.2f} to {:+.2f}".format(
                value["deviation"], low, high
            )
        print(text)
    if "contrib" in arguments.placements:
        print("seed  placement  frozen .pb  .tflite")
        for one in results:
            for placement, kind in (("full", "int8"), ("contrib", "uint8")):
                scores = one["placements"][placement]
                print(
                    "{:4d}  {:9}  {:10.1f}  {:7.1f} {}".format(
                        one["seed"], placement, 100 * scores["frozen"], 100 * scores["tflite"], kind
                    )
                )
    write_json(
        os.path.join(arguments.work_dir, "accuracy.json"),
        {
            "data": arguments.data,
            "detector": arguments.detector,
            "runs": results,
            "differences": found,
        },
    )


if __name__ == "__main__":
    main()
