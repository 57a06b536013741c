"""The whole road once: data, float training, QAT, evaluation, export, scoring, one table and a few pictures.

Every step is one that a user can take alone (`od-qat data|train|eval|export|export-tflite|score`); this puts
them in a row, fits the demo's configs to the data at hand and skips what a former run has finished.
"""

import dataclasses
import json
import os
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.errors import ConfigError, DataError
from od_qat.files import write_atomically, write_json

CONFIG_FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), "configs")

# A score of a uint8 or int8 sigmoid has steps of 1/256.
_SCORE_STEP = 1.0 / 256
_AGREEMENT_IOU = 0.9
_PICTURES = 4
_SETTINGS = "demo_settings.json"


class Schedule(NamedTuple):
    """Which configs, steps of both trainings and the number of input pixels."""

    configs: str
    float_steps: int
    qat_steps: int
    pixels: int


# The built-in set has to be done in a quarter of an hour on two cores; a user's photographs get more.
BUILTIN_SCHEDULE = Schedule("demo_builtin", float_steps=1800, qat_steps=450, pixels=160 * 160)
FOLDER_SCHEDULE = Schedule("demo_folder", float_steps=1500, qat_steps=400, pixels=240 * 320)


def run(
    data: str = "builtin",
    work_dir: str = "demo_out",
    seed: int = 0,
    float_steps: Optional[int] = None,
    qat_steps: Optional[int] = None,
    train_list: str = "train",
    val_list: str = "val",
    processes: Optional[int] = None,
) -> Dict[str, Any]:
    """Runs the demo and writes `report.json`, `report.md` and `pictures/` into work_dir.

    Args:
      data: 'builtin', 'voc:FOLDER' or 'coco:FOLDER'.
      work_dir: everything goes here; a second run goes on from what is there.
      seed: of the data and of both trainings.
      float_steps, qat_steps: other lengths of training.
      train_list, val_list: of a VOC folder's ImageSets/Main.
      processes: for scoring.

    Returns:
      the report, as written to report.json.

    Raises:
      OdQatError: from any step.
    """
    started = time.time()
    schedule = BUILTIN_SCHEDULE if data == "builtin" else FOLDER_SCHEDULE
    schedule = schedule._replace(
        float_steps=float_steps or schedule.float_steps, qat_steps=qat_steps or schedule.qat_steps
    )
    settings = dict(schedule._asdict(), data=data, seed=seed, train_list=train_list, val_list=val_list)
    _keep_to_one_run(work_dir, settings)
    _say("1/6 data")
    dataset = _make_data(data, os.path.join(work_dir, "data"), seed, train_list, val_list)
    _say("1/6 data: " + dataset.summary())
    # Not before: a folder in which nothing was made is free for another try.
    write_json(os.path.join(work_dir, _SETTINGS), settings)
    # Nothing of TensorFlow is imported before the data is known to be good.
    from od_qat import commands

    paths = _Paths(work_dir)
    float_config, qat_config = _write_configs(dataset, schedule, paths)
    _say("2/6 float training, {} steps".format(schedule.float_steps))
    commands.train(float_config, paths.float_train, seed=seed, save_interval_secs=120)
    _say("3/6 quantization-aware training, {} steps".format(schedule.qat_steps))
    commands.train(qat_config, paths.qat_train, seed=seed, save_interval_secs=120)
    _say("4/6 evaluation of both checkpoints")
    float_metrics = commands.evaluate(float_config, paths.float_train, paths.float_eval, run_once=True)
    qat_metrics = commands.evaluate(qat_config, paths.qat_train, paths.qat_eval, run_once=True)
    _say("5/6 export")
    ptq = commands.export_tflite(float_config, paths.float_train, paths.ptq, ptq=True)
    qat = commands.export_tflite(qat_config, paths.qat_train, paths.qat)
    _say("6/6 scoring")
    return _report(dataset, paths, float_metrics, qat_metrics, ptq, qat, seed, processes, started)


def _keep_to_one_run(work_dir: str, settings: Dict[str, object]) -> None:
    """Refuses a folder with the steps of another run, which this one would take for its own.

    Raises:
      ConfigError: naming the setting.
    """
    path = os.path.join(work_dir, _SETTINGS)
    if not os.path.exists(path):
        return
    with open(path) as stream:
        former = json.load(stream)
    for name, value in sorted(settings.items()):
        if former.get(name) != value:
            raise ConfigError(
                "this folder holds another run of the demo",
                where=work_dir,
                found="{} {!r}".format(name, former.get(name)),
                allowed=repr(value),
                fix="choose another (make demo WORK=..., od-qat demo --work_dir ...), or remove this one",
            )


class _Paths(object):
    def __init__(self, work_dir: str) -> None:
        def below(*parts):
            return os.path.join(work_dir, *parts)

        self.float_config = below("float.config")
        self.qat_config = below("qat.config")
        self.float_train, self.qat_train = below("float", "train"), below("qat", "train")
        self.float_eval, self.qat_eval = below("float", "eval"), below("qat", "eval")
        self.ptq, self.qat = below("ptq"), below("qat", "tflite")
        self.work_dir = work_dir
        self.pictures = below("pictures")


def _say(text: str) -> None:
    print("== " + text, file=sys.stderr, flush=True)


def _make_data(data: str, output_dir: str, seed: int, train_list: str, val_list: str):
    from od_qat.datasets import builtin, coco, records, voc

    kind, _, folder = data.partition(":")
    done = os.path.join(output_dir, "dataset.json")
    if os.path.exists(done):
        return records.DatasetInfo.load(output_dir)
    if kind == "builtin":
        return builtin.build(output_dir, seed=seed)
    if kind == "voc" and folder:
        # Public sets have a few boxes without area (BCCD has two): dropped here, and counted aloud.
        return voc.convert(folder, output_dir, train_list=train_list, val_list=val_list, skip_invalid=True)
    if kind == "coco" and folder:
        return coco.convert(
            os.path.join(folder, "train2017"),
            os.path.join(folder, "annotations", "instances_train2017.json"),
            os.path.join(folder, "val2017"),
            os.path.join(folder, "annotations", "instances_val2017.json"),
            output_dir,
            skip_invalid=True,
        )
    raise ConfigError(
        "unknown data", found=repr(data), allowed="builtin, voc:FOLDER or coco:FOLDER", fix="set DATA=..."
    )


def fit_to_boxes(examples, pixels: int) -> Tuple[int, int, List[float]]:
    """Input height and width, and anchor scales, from the training set's own boxes.

    The input keeps the images' usual aspect ratio, so that round things stay round; the first feature map,
    the finest, gets the small and the usual boxes, the others what is larger.

    Args:
      examples: datasets.records.Example.
      pixels: height times width to aim at.

    Returns:
      height, width (multiples of 16) and four ascending scales, as shares of the shorter side.

    Raises:
      DataError: when no image has a box.
    """
    aspects, sides = [], []
    for example in examples:
        aspects.append(example.width / float(example.height))
        shorter = min(example.height, example.width)
        boxes = np.asarray(example.boxes, np.float64)
        if len(boxes):
            heights = (boxes[:, 2] - boxes[:, 0]) * example.height / shorter
            widths = (boxes[:, 3] - boxes[:, 1]) * example.width / shorter
            sides.extend(np.sqrt(heights * widths))
    if not sides:
        raise DataError(
            "the training set has no boxes",
            found="{} images".format(len(aspects)),
            fix="check the annotations, or the list that names the training images",
        )
    aspect = float(np.median(aspects))
    height = max(64, int(round(np.sqrt(pixels / aspect) / 16)) * 16)
    width = max(64, int(round(height * aspect / 16)) * 16)
    small, usual, large = np.quantile(sides, [0.05, 0.5, 0.95])
    first = float(np.clip(small, 0.02, 0.5))
    # SSD adds a square between neighbouring scales, their geometric mean: with the second scale here, the
    # square of the first feature map is the usual box.
    second = usual**2 / first
    # Boxes that are clearly larger (a rarer class, often) must find an anchor too, as long as that leaves the
    # usual ones theirs.
    larger = [side for side in sides if side > 1.3 * usual]
    if larger:
        second = min(second, max(np.median(larger), (0.8 * usual) ** 2 / first))
    last = float(np.clip(large, first * 1.3, 0.95))
    if second > 0.8:
        # Boxes of all sizes: equal steps.
        second = first * (last / first) ** (1 / 3.0)
    second = float(max(second, first * 1.3))
    last = max(last, second * 1.2)
    third = float(np.sqrt(second * last))
    return height, width, [round(scale, 4) for scale in (first, second, third, last)]


def _write_configs(dataset, schedule: Schedule, paths: _Paths) -> Tuple[str, str]:
    from od_qat.datasets import records
    from od_qat.od_api import pipeline

    height, width, scales = fit_to_boxes(records.read_examples(dataset.train_record), schedule.pixels)
    common = [
        "model.ssd.num_classes={}".format(len(dataset.class_names)),
        "model.ssd.image_resizer.fixed_shape_resizer.height={}".format(height),
        "model.ssd.image_resizer.fixed_shape_resizer.width={}".format(width),
        "model.ssd.anchor_generator.ssd_anchor_generator.scales={}".format(scales),
        "train_input_reader.label_map_path={}".format(dataset.label_map),
        "train_input_reader.tf_record_input_reader.input_path={}".format(dataset.train_record),
        "eval_input_reader.0.label_map_path={}".format(dataset.label_map),
        "eval_input_reader.0.tf_record_input_reader.input_path={}".format(dataset.val_record),
    ]
    for source, steps, path, more in (
        (schedule.configs + "_float.config", schedule.float_steps, paths.float_config, []),
        (
            schedule.configs + "_qat.config",
            schedule.qat_steps,
            paths.qat_config,
            [
                "train_config.fine_tune_checkpoint={}".format(
                    os.path.abspath(
                        os.path.join(paths.float_train, "model.ckpt-{}".format(schedule.float_steps))
                    )
                )
            ],
        ),
    ):
        config = pipeline.load(os.path.join(CONFIG_FOLDER, source), common + more)
        config.train_config.num_steps = steps
        optimizer = config.train_config.optimizer
        schedule_of_rate = getattr(
            optimizer, optimizer.WhichOneof("optimizer")
        ).learning_rate.cosine_decay_learning_rate
        schedule_of_rate.total_steps = steps
        schedule_of_rate.warmup_steps = max(1, min(schedule_of_rate.warmup_steps, steps // 10))
        write_atomically(path, pipeline.to_text(config))
    print(
        "input {}x{}, anchor scales {}".format(height, width, " ".join(str(s) for s in scales)),
        file=sys.stderr,
    )
    return paths.float_config, paths.qat_config


def _report(dataset, paths, float_metrics, qat_metrics, ptq, qat, seed, processes, started) -> Dict[str, Any]:
    from od_qat import evaluator, report, scoring
    from od_qat.datasets import records

    examples = list(records.read_examples(dataset.val_record))
    models = {
        "frozen": os.path.join(paths.qat_eval, evaluator.FROZEN_NAME),
        "float": os.path.join(paths.float_eval, evaluator.FROZEN_NAME),
        "ptq": ptq,
        "qat": qat,
    }
    scores = {
        name: scoring.score(
            path, dataset.val_record, class_names=list(dataset.class_names), processes=processes
        )
        for name, path in models.items()
    }
    rows = [
        report.Row("float checkpoint", *_of_checkpoint(float_metrics, paths.float_train)),
        report.row("float frozen .pb", scores["float"]),
        report.row("PTQ int8 .tflite", scores["ptq"]),
        report.Row("fake-quant eval graph", *_of_checkpoint(qat_metrics, paths.qat_train)),
        report.row("QAT frozen .pb", scores["frozen"]),
        report.row("QAT int8 .tflite", scores["qat"]),
    ]
    agreement = scoring.agreement(
        scores["frozen"].detections,
        scores["qat"].detections,
        iou=_AGREEMENT_IOU,
        score_tolerance=2 * _SCORE_STEP,
    )
    pictures = report.side_by_side(
        examples[:_PICTURES],
        {"float": scores["float"].detections, "int8": scores["qat"].detections},
        list(dataset.class_names),
        paths.pictures,
    )
    report.write_report(paths.work_dir, rows, pictures, title="od_qat demo")
    result = {
        "seed": seed,
        "minutes": round((time.time() - started) / 60.0, 1),
        "validation_images": len(examples),
        "rows": report.to_json(rows),
        "agreement": dataclasses.asdict(agreement),
    }
    write_json(os.path.join(paths.work_dir, "demo.json"), result)
    report.print_table(rows)
    print(
        "the .tflite and the frozen .pb agree on {:.1f} % of their detections (IoU {}, 2 score steps)".format(
            100 * agreement.share, _AGREEMENT_IOU
        )
    )
    print("{} minutes; report.html and pictures/ are in {}".format(result["minutes"], paths.work_dir))
    return result


def _of_checkpoint(metrics: Dict[str, float], train_dir: str) -> Tuple[float, float, int]:
    """mAP, mAP at .5 and the size of the newest checkpoint, slots of the optimizer included."""
    from od_qat import checkpoints

    prefix = checkpoints.latest(train_dir)
    folder = os.path.dirname(prefix)
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for name in os.listdir(folder)
        if name.startswith(os.path.basename(prefix) + ".data")
    )
    return metrics["DetectionBoxes_Precision/mAP"], metrics["DetectionBoxes_Precision/mAP@.50IOU"], size
