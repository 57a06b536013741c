"""The demo over several seeds: does the QAT .tflite keep the float model's mAP, and is it no worse than PTQ?

    python benchmarks/accuracy.py [--data builtin|voc:FOLDER] [--seeds 0 1 2] [--work_dir accuracy_out]

Runs `od-qat demo` once for each seed (a seed's finished steps are not repeated) and prints a line for each:
mAP@[.5:.95] of the float checkpoint, the PTQ .tflite and the QAT .tflite, in points.
"""

import argparse
import os

FLOAT, PTQ, QAT = "float checkpoint", "PTQ int8 .tflite", "QAT int8 .tflite"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", default="builtin")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work_dir", default="accuracy_out")
    arguments = parser.parse_args()

    from od_qat import demo
    from od_qat.files import write_json

    results = []
    for seed in arguments.seeds:
        report = demo.run(arguments.data, os.path.join(arguments.work_dir, "seed{}".format(seed)), seed=seed)
        rows = {row["label"]: row for row in report["rows"]["rows"]}
        results.append(
            {
                "seed": seed,
                "float": rows[FLOAT]["map"],
                "float_map50": rows[FLOAT]["map50"],
                "ptq": rows[PTQ]["map"],
                "qat": rows[QAT]["map"],
                "agreement": report["agreement"]["share"],
            }
        )
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
    write_json(os.path.join(arguments.work_dir, "accuracy.json"), {"data": arguments.data, "runs": results})


if __name__ == "__main__":
    main()
