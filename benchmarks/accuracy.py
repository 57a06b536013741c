"""The demo over several seeds: does the QAT .tflite keep the float model's mAP, and is it no worse than PTQ?

    python benchmarks/accuracy.py [--data builtin|voc:FOLDER] [--seeds 0 1 2] [--work_dir accuracy_out]
        [--placements full contrib]

Runs `od-qat demo` once for each seed (a seed's finished steps are not repeated) and prints a line for each:
mAP@[.5:.95] of the float checkpoint, the PTQ .tflite and the QAT .tflite, in points.

With `--placements full contrib` a second QAT from the same float checkpoint, with placement 'contrib', and
for each placement the mAP of the frozen graph with fake quants and of its .tflite. Those of 'contrib' are
uint8, per tensor: its weight ranges, each end by itself, fit no int8 kernel.
"""

import argparse
import os

FLOAT, PTQ, QAT, FROZEN = "float checkpoint", "PTQ int8 .tflite", "QAT int8 .tflite", "QAT frozen .pb"


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
    names = list(dataset.class_names)
    return {
        kind: scoring.score(path, dataset.val_record, class_names=names, progress=False).score.map
        for kind, path in models.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work_dir", default="accuracy_out")
    parser.add_argument("--placements", nargs="+", choices=("full", "contrib"), default=["full"])
    parser.add_argument(
        "--float_steps", type=int, help="another length of the float training than the demo's"
    )
    parser.add_argument("--qat_steps", type=int, help="another length of QAT than the demo's")
    arguments = parser.parse_args()

    from od_qat import demo
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
        )
        rows = {row["label"]: row for row in report["rows"]["rows"]}
        results.append(
            {
                "seed": seed,
                "float": rows[FLOAT]["map"],
                "float_map50": rows[FLOAT]["map50"],
                "ptq": rows[PTQ]["map"],
                "qat": rows[QAT]["map"],
                "agreement": report["agreement"]["share"],
                "placements": {"full": {"frozen": rows[FROZEN]["map"], "tflite": rows[QAT]["map"]}},
            }
        )
        if "contrib" in arguments.placements:
            results[-1]["placements"]["contrib"] = with_contrib_placement(folder, seed)
    print("seed  float  mAP@.5    PTQ    QAT  QAT-float  QAT-PTQ  agreement")
    for one in results:
        print(
            "{:4d}  {:5.1f}  {:6.1f}  {:5.1f}  {:5.1f}  {:+9.1f}  {:+7.1f}  {:8.1f}%".format(
                one["seed"],
                *(100 * one[key] for key in ("float", "float_map50", "ptq", "qat")),
                100 * (one["qat"] - one["float"]),
                100 * (one["qat"] - one["ptq"]),
                100 * one["agreement"],
            )
        )
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
    write_json(os.path.join(arguments.work_dir, "accuracy.json"), {"data": arguments.data, "runs": results})


if __name__ == "__main__":
    main()
