"""Where does QAT pay? Float, PTQ and QAT of several detectors at equal training, over seeds.

    python benchmarks/where_qat_pays.py [--data builtin voc:FOLDER]
        [--detectors v1 v2 v3 edgetpu fpnlite coco] [--seeds 0 1 2] [--work_dir where_qat_pays_out]
        [--float_steps N] [--qat_steps N]

For each data set, detector and seed it trains a float detector, and from its checkpoint for equally many more
steps: in float, with QAT with a range for each channel of the weights, and with QAT with one range for all
(what uint8 devices take). The float detector that was trained on is quantized after training, per channel and
per tensor. It scores each .tflite, and the float detector as a frozen graph.

The detector `coco` begins its float training, of a third of the usual length, from a published detector of
COCO: the network of pipeline.config and the checkpoint model.ckpt-0 in the folder OD_QAT_COCO_DETECTOR.

Prints a Markdown table: mAP of the float detector, and what the others have more, in points: the mean over
the seeds and the half width of its interval of 95 % (Student's t). What is finished is not repeated.
"""

import argparse
import json
import os
from typing import Any, Dict, List, Sequence

import accuracy

TYPE = "model.ssd.feature_extractor.type="
# What upstream's MobileNet V3 and EdgeTPU have: six feature maps, for which the anchors are spread evenly.
SIX_MAPS = [
    "model.ssd.feature_extractor.num_layers=",
    "model.ssd.anchor_generator.ssd_anchor_generator.num_layers=6",
    "model.ssd.anchor_generator.ssd_anchor_generator.scales=",
]
# Name -> the half of the OD API, and what differs from the demo's detector of that half.
DETECTORS = {
    "v1": ("tf1", [TYPE + "ssd_mobilenet_v1"]),
    "v2": ("tf1", [TYPE + "ssd_mobilenet_v2"]),
    "v3": ("tf1", [TYPE + "ssd_mobilenet_v3_small"] + SIX_MAPS),
    "edgetpu": ("tf1", [TYPE + "ssd_mobilenet_edgetpu"] + SIX_MAPS),
    "fpnlite": ("tf2", []),
}
COCO = "coco"
COCO_FLOAT_STEPS = 500
# The images of the built-in data set are smaller than photographs.
BUILTIN_PIXELS = 128 * 128
FLOAT = "float"
FORMS = ("PTQ per channel", "PTQ per tensor", "QAT per channel", "QAT per tensor")
PER_TENSOR = ["graph_rewriter.[od_qat.layers].per_channel=false"]


def run(data: str, detector: str, seed: int, folder: str, steps: Dict[str, Any]) -> Dict[str, float]:
    """Trains and scores all of one seed; returns model -> mAP, 0 to 1."""
    from od_qat import commands, scoring
    from od_qat.cli import demo
    from od_qat.datasets import DatasetInfo

    half, overrides = DETECTORS.get(detector, ("tf1", []))
    schedule = demo.FOLDER_SCHEDULES[half]
    if data == "builtin":
        schedule = schedule._replace(pixels=BUILTIN_PIXELS)
    if detector == COCO:
        prefix = write_coco_configs(os.environ["OD_QAT_COCO_DETECTOR"], os.path.join(folder, "published"))
        schedule = schedule._replace(configs=prefix, float_steps=COCO_FLOAT_STEPS, pixels=None)
    report = demo.run(data, folder, seed=seed, detector=half, overrides=overrides, schedule=schedule, **steps)
    rows = {row["label"]: row["map"] for row in report["rows"]["rows"]}
    found = {
        FLOAT: rows[demo.FLOAT_ON],
        "PTQ per channel": rows[demo.PTQ_ON],
        "QAT per channel": rows[demo.QAT],
    }
    dataset = DatasetInfo.load(os.path.join(folder, "data"))
    names = dataset.names_by_id()

    def score(path: str) -> float:
        return scoring.score(path, dataset.val_record, class_names=names, progress=False).score.map

    float_on = os.path.join(folder, "float_on.config"), os.path.join(folder, "float_on", "train")
    out = os.path.join(folder, "per_tensor")
    path = commands.export_tflite(*float_on, os.path.join(out, "ptq"), ptq=True, form="int8_per_tensor")
    found["PTQ per tensor"] = score(path)
    config, train_dir = os.path.join(folder, "qat.config"), os.path.join(out, "train")
    commands.train(config, train_dir, overrides=PER_TENSOR, seed=seed)
    found["QAT per tensor"] = score(commands.export_tflite(config, train_dir, out, overrides=PER_TENSOR))
    return found


def write_coco_configs(folder: str, output_dir: str) -> str:
    """The demo's two configs with the published detector's network; returns the prefix of their names.

    The float training begins from the published checkpoint. The demo has QAT begin from the float training.
    """
    from od_qat.cli import demo
    from od_qat.files import write_atomically
    from od_qat.od_api import pipeline

    published = pipeline.load(os.path.join(folder, "pipeline.config"))
    # (The demo names the configs by an absolute path, as it may run in another folder.)
    prefix = os.path.abspath(os.path.join(output_dir, COCO))
    for form in ("float", "qat"):
        name = "{}_{}.config".format(demo.FOLDER_SCHEDULES["tf1"].configs, form)
        config = pipeline.load(os.path.join(demo.CONFIG_FOLDER, name))
        config.model.CopyFrom(published.model)
        config.train_config.fine_tune_checkpoint = os.path.join(folder, "model.ckpt-0")
        config.train_config.fine_tune_checkpoint_type = "detection"
        config.train_config.load_all_detection_checkpoint_vars = True
        os.makedirs(output_dir, exist_ok=True)
        write_atomically("{}_{}.config".format(prefix, form), pipeline.to_text(config))
    return prefix


def kept(path: str, make: Any) -> Dict[str, float]:
    """The content of a JSON file, which is made if it is missing."""
    from od_qat.files import write_json

    if not os.path.exists(path):
        write_json(path, make())
    with open(path) as stream:
        return json.load(stream)


def cells(results: Sequence[Dict[str, float]]) -> List[str]:
    """The float mAP, and what each other model has more, in points."""
    values = [100 * one[FLOAT] for one in results]
    found = ["{:.1f}".format(sum(values) / len(values))]
    for form in FORMS:
        mean, _, half_width = accuracy.statistics([100 * (one[form] - one[FLOAT]) for one in results])
        found.append("{:+.1f}{}".format(mean, "" if half_width is None else " ± {:.1f}".format(half_width)))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=["builtin"], help="as of od-qat demo")
    parser.add_argument("--detectors", nargs="+", default=list(DETECTORS), choices=[*DETECTORS, COCO])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--work_dir", default="where_qat_pays_out")
    parser.add_argument("--float_steps", type=int, help="another length of the float training")
    parser.add_argument("--qat_steps", type=int, help="another length of QAT and of float training beside it")
    arguments = parser.parse_args()
    if COCO in arguments.detectors and not os.environ.get("OD_QAT_COCO_DETECTOR"):
        parser.error("detector coco: set OD_QAT_COCO_DETECTOR to the folder of a published COCO detector")
    steps = {"float_steps": arguments.float_steps, "qat_steps": arguments.qat_steps}
    print("| data | detector | float | " + " | ".join(FORMS) + " |")
    print("| --- |" + " --- |" * (2 + len(FORMS)), flush=True)
    for data in arguments.data:
        for detector in arguments.detectors:
            results = []
            for seed in arguments.seeds:
                name = os.path.basename(data.rstrip("/")).replace(":", "_")
                folder = os.path.join(arguments.work_dir, name, detector, "seed{}".format(seed))
                results.append(
                    kept(
                        os.path.join(folder, "map.json"),
                        lambda: run(data, detector, seed, folder, steps),  # noqa: B023  (called at once)
                    )
                )
            print("| {} | {} | {} |".format(data, detector, " | ".join(cells(results))), flush=True)


if __name__ == "__main__":
    main()
