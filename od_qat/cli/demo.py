"""`od-qat demo`: runs all steps once, from the data to a table of scores and a few pictures.

A user can take every step alone (`od-qat data|train|eval|export|export-tflite|score`). The demo runs them one
after the other, fits its configs to the data, and skips what an earlier run has finished.
"""

import argparse
import dataclasses
import itertools
import os
import sys
import time
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import od_qat
from od_qat.cli import flags, one_run
from od_qat.errors import ConfigError, DataError
from od_qat.files import write_atomically, write_json

NAME = "demo"
HELP = "run all steps on a small data set"
DESCRIPTION = """\
Runs all steps on a small data set: float training, QAT, evaluation, export, scores, pictures. From the float
checkpoint it also trains in float for as many steps as QAT takes, so that the table compares equal training.

Example:

  od-qat demo --work_dir=demo_out
  od-qat demo --data=voc:VOCdevkit/VOC2012 --work_dir=voc_out
  od-qat demo --detector=tf2 --work_dir=tf2_out

A second run continues where the first stopped. Next: the same steps with your own config."""

CONFIG_FOLDER = os.path.join(os.path.dirname(od_qat.__file__), "configs")

# A score of a uint8 or int8 sigmoid has steps of 1/256.
_SCORE_STEP = 1.0 / 256
_AGREEMENT_IOU = 0.9
_PICTURES = 4

# The rows of the demo's table.
FLOAT, FLOAT_FROZEN, PTQ = "float checkpoint", "float frozen .pb", "PTQ int8 .tflite"
FLOAT_ON, PTQ_ON = "float trained on, frozen .pb", "float trained on, PTQ .tflite"
EVAL_GRAPH, QAT_FROZEN, QAT = "fake-quant eval graph", "QAT frozen .pb", "QAT int8 .tflite"


class Schedule(NamedTuple):
    """The configs of a demo and the length of its trainings.

    Attributes:
      configs: prefix of the two configs' names.
      float_steps: steps of the float training.
      qat_steps: steps of QAT, and of the continued float training that it is compared with.
      pixels: height times width of the input. With it, input and anchors are fitted to the data; None keeps
        the config's own input and anchors.
      multiple: what the fitted height and width are multiples of.
    """

    configs: str
    float_steps: int
    qat_steps: int
    pixels: Optional[int]
    multiple: int = 16


# By the half of the OD API that the detector is of. The built-in data set has to be done in eight minutes on
# two cores, or in twelve with TF 2's detector; photographs may take longer.
BUILTIN_SCHEDULES = {
    "tf1": Schedule("demo_builtin", float_steps=2400, qat_steps=500, pixels=None),
    "tf2": Schedule("demo_tf2_builtin", float_steps=2400, qat_steps=500, pixels=None),
}
FOLDER_SCHEDULES = {
    "tf1": Schedule("demo_folder", float_steps=1500, qat_steps=400, pixels=240 * 320),
    # (An FPN adds a map of 32 pixels a cell, twice as large, to one of 16.)
    "tf2": Schedule("demo_tf2_folder", float_steps=1500, qat_steps=400, pixels=224 * 288, multiple=32),
}
DETECTORS = tuple(BUILTIN_SCHEDULES)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument(
        "--data", default="builtin", metavar="DATA", help="builtin (the default), voc:FOLDER or coco:FOLDER"
    )
    parser.add_argument(
        "--work_dir", default="demo_out", metavar="DIR", help="folder for everything (default demo_out)"
    )
    parser.add_argument(
        "--detector",
        choices=DETECTORS,
        default="tf1",
        help="tf1, an SSD MobileNet V1 (the default), or tf2, an SSD MobileNet V2 FPNLite of Keras layers",
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of data and trainings")
    parser.add_argument("--train_list", default="train", metavar="NAME", help="the VOC list to train on")
    parser.add_argument("--val_list", default="val", metavar="NAME", help="the VOC list to score on")
    parser.add_argument("--float_steps", type=flags.positive, metavar="N", help="steps of the float training")
    parser.add_argument(
        "--qat_steps",
        type=flags.positive,
        metavar="N",
        help="steps of QAT and of the float training beside it",
    )
    parser.add_argument(
        "--processes",
        type=flags.positive,
        metavar="N",
        help="processes for scoring (default: one for each core)",
    )
    flags.add_skip_invalid(parser)


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    kind, _, folder = arguments.data.partition(":")
    if kind in ("voc", "coco") and folder and not os.path.isdir(folder):
        raise ConfigError(
            "no such folder", where=folder, fix="give the folder of the data set after " + kind + ":"
        )
    run(
        data=arguments.data,
        work_dir=arguments.work_dir,
        seed=arguments.seed,
        float_steps=arguments.float_steps,
        qat_steps=arguments.qat_steps,
        train_list=arguments.train_list,
        val_list=arguments.val_list,
        processes=arguments.processes,
        skip_invalid=arguments.skip_invalid,
        detector=arguments.detector,
    )
    return 0


def run(
    data: str = "builtin",
    work_dir: str = "demo_out",
    seed: int = 0,
    float_steps: Optional[int] = None,
    qat_steps: Optional[int] = None,
    train_list: str = "train",
    val_list: str = "val",
    processes: Optional[int] = None,
    skip_invalid: bool = False,
    detector: str = "tf1",
    overrides: Sequence[str] = (),
    schedule: Optional[Schedule] = None,
) -> Dict[str, Any]:
    """Runs the demo. work_dir then has report.html, report.txt, report.json, demo.json and pictures/.

    Args:
      data: 'builtin', 'voc:FOLDER' or 'coco:FOLDER'.
      work_dir: folder for everything; a second run continues from what is there.
      seed: seed of the data and of the trainings.
      float_steps, qat_steps: steps of the trainings, in place of the defaults. The continued float training
        that QAT is compared with takes as many steps as QAT.
      train_list, val_list: names of lists in a VOC folder's ImageSets/Main.
      processes: number of processes for scoring.
      skip_invalid: leave unreadable images out too; invalid objects (public sets have a few boxes without
        area) are left out, listed and counted in any case.
      detector: 'tf1' or 'tf2', the half of the OD API that the detector is of.
      overrides: `dotted.path=value` edits of all configs, for another detector.
      schedule: in place of the one for the data and the detector.

    Returns:
      the content of demo.json.

    Raises:
      OdQatError: from any step.
    """
    started = time.time()
    schedule = schedule or (BUILTIN_SCHEDULES if data == "builtin" else FOLDER_SCHEDULES)[detector]
    schedule = schedule._replace(
        float_steps=float_steps or schedule.float_steps, qat_steps=qat_steps or schedule.qat_steps
    )
    settings = dict(schedule._asdict(), data=data, seed=seed, train_list=train_list, val_list=val_list)
    del settings["multiple"]  # It follows from the configs.
    if overrides:
        settings["overrides"] = list(overrides)
    one_run.require(work_dir, settings)
    _say("1/8 data")
    dataset = make_data(data, os.path.join(work_dir, "data"), seed, train_list, val_list, skip_invalid)
    _say("1/8 data: " + dataset.summary())
    # This is not done earlier, so that a folder without data can be used again with other settings.
    one_run.keep(work_dir, settings)
    # (The trainer is imported once the data is known to be good.)
    from od_qat import commands, evaluator

    paths = _Paths(work_dir)
    _write_configs(dataset, schedule, paths, overrides)
    _say("2/8 float training, {} steps".format(schedule.float_steps))
    commands.train(paths.float_config, paths.float_train, seed=seed, save_interval_secs=120)
    _say("3/8 quantization-aware training from its checkpoint, {} steps".format(schedule.qat_steps))
    commands.train(paths.qat_config, paths.qat_train, seed=seed, save_interval_secs=120)
    _say("4/8 the same training without quantization, {} steps".format(schedule.qat_steps))
    commands.train(paths.float_on_config, paths.float_on_train, seed=seed, save_interval_secs=120)
    _say("5/8 evaluation of the three checkpoints")
    float_metrics = commands.evaluate(paths.float_config, paths.float_train, paths.float_eval, run_once=True)
    commands.evaluate(paths.float_on_config, paths.float_on_train, paths.float_on_eval, run_once=True)
    qat_metrics = commands.evaluate(paths.qat_config, paths.qat_train, paths.qat_eval, run_once=True)
    _say("6/8 export")
    models = {
        FLOAT_FROZEN: os.path.join(paths.float_eval, evaluator.FROZEN_NAME),
        PTQ: commands.export_tflite(paths.float_config, paths.float_train, paths.ptq, ptq=True),
        FLOAT_ON: os.path.join(paths.float_on_eval, evaluator.FROZEN_NAME),
        PTQ_ON: commands.export_tflite(paths.float_on_config, paths.float_on_train, paths.ptq_on, ptq=True),
        QAT_FROZEN: os.path.join(paths.qat_eval, evaluator.FROZEN_NAME),
        QAT: commands.export_tflite(paths.qat_config, paths.qat_train, paths.qat),
    }
    _say("7/8 scoring")
    checkpoints = {
        FLOAT: _of_checkpoint(float_metrics, paths.float_train),
        EVAL_GRAPH: _of_checkpoint(qat_metrics, paths.qat_train),
    }
    return _report(dataset, paths, checkpoints, models, seed, processes, started)


class _Paths(object):
    def __init__(self, work_dir: str) -> None:
        def below(*parts):
            return os.path.join(work_dir, *parts)

        self.float_config, self.float_on_config = below("float.config"), below("float_on.config")
        self.qat_config = below("qat.config")
        self.float_train, self.float_eval = below("float", "train"), below("float", "eval")
        self.float_on_train, self.float_on_eval = below("float_on", "train"), below("float_on", "eval")
        self.qat_train, self.qat_eval = below("qat", "train"), below("qat", "eval")
        self.ptq, self.ptq_on, self.qat = below("ptq"), below("float_on", "ptq"), below("qat", "tflite")
        self.work_dir = work_dir
        self.pictures = below("pictures")


def _say(text: str) -> None:
    print("== " + text, file=sys.stderr, flush=True)


def make_data(data: str, output_dir: str, seed: int, train_list: str, val_list: str, skip_invalid: bool):
    """Makes or converts the data, unless the folder has it; returns its DatasetInfo. See :func:`run`."""
    from od_qat.datasets import DatasetInfo, builtin, coco, voc

    kind, _, folder = data.partition(":")
    done = os.path.join(output_dir, "dataset.json")
    if os.path.exists(done):
        return DatasetInfo.load(output_dir)
    if kind == "builtin":
        return builtin.build(output_dir, seed=seed)
    if kind == "voc" and folder:
        # Public data sets have a few boxes without area (BCCD has two). They are left out and counted.
        return voc.convert(
            folder, output_dir, train_list, val_list, skip_invalid=skip_invalid, skip_invalid_objects=True
        )
    if kind == "coco" and folder:
        return coco.convert(
            os.path.join(folder, "train2017"),
            os.path.join(folder, "annotations", "instances_train2017.json"),
            os.path.join(folder, "val2017"),
            os.path.join(folder, "annotations", "instances_val2017.json"),
            output_dir,
            skip_invalid=skip_invalid,
            skip_invalid_objects=True,
        )
    raise ConfigError(
        "unknown data", found=repr(data), allowed="builtin, voc:FOLDER or coco:FOLDER", fix="set DATA=..."
    )


def fit_to_boxes(examples, pixels: int, multiple: int = 16) -> Tuple[int, int, List[float]]:
    """Chooses the input height and width and the anchor scales by the boxes of the training set.

    The input has the images' median aspect ratio, so that objects keep their shapes. The first feature map,
    which is the finest, gets the small and the usual boxes; the others get the larger boxes.

    Args:
      examples: datasets.records.Example.
      pixels: height times width to aim at.
      multiple: what height and width have to be multiples of.

    Returns:
      height, width and four ascending scales, as shares of the shorter side.

    Raises:
      DataError: if no image has a box.
    """
    import numpy as np

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
    height = max(64, int(round(np.sqrt(pixels / aspect) / multiple)) * multiple)
    width = max(64, int(round(height * aspect / multiple)) * multiple)
    small, usual, large = np.quantile(sides, [0.05, 0.5, 0.95])
    first = float(np.clip(small, 0.02, 0.5))
    # SSD adds a square anchor at the geometric mean of neighbouring scales. With this second scale, the added
    # anchor of the first feature map has the size of the usual box.
    second = usual**2 / first
    # Boxes that are clearly larger (often of a rarer class) need an anchor too, as long as the usual boxes
    # keep theirs.
    larger = [side for side in sides if side > 1.3 * usual]
    if larger:
        second = min(second, max(np.median(larger), (0.8 * usual) ** 2 / first))
    last = float(np.clip(large, first * 1.3, 0.95))
    if second > 0.8:
        # The boxes have all sizes, so each scale is the same multiple of the one before.
        second = first * (last / first) ** (1 / 3.0)
    second = float(max(second, first * 1.3))
    last = max(last, second * 1.2)
    third = float(np.sqrt(second * last))
    return height, width, [round(scale, 4) for scale in (first, second, third, last)]


def _write_configs(dataset, schedule: Schedule, paths: _Paths, overrides: Sequence[str] = ()) -> None:
    """The configs of the three trainings; float_on.config is qat.config without its graph_rewriter block."""
    from od_qat.datasets import records
    from od_qat.od_api import halves, pipeline

    common = [
        "model.ssd.num_classes={}".format(max(dataset.names_by_id())),
        "train_input_reader.label_map_path={}".format(dataset.label_map),
        "train_input_reader.tf_record_input_reader.input_path={}".format(dataset.train_record),
        "eval_input_reader.0.label_map_path={}".format(dataset.label_map),
        "eval_input_reader.0.tf_record_input_reader.input_path={}".format(dataset.val_record),
    ]
    if schedule.pixels is not None:
        examples = records.read_examples(dataset.train_record)
        height, width, scales = fit_to_boxes(examples, schedule.pixels, schedule.multiple)
        common += [
            "model.ssd.image_resizer.fixed_shape_resizer.height={}".format(height),
            "model.ssd.image_resizer.fixed_shape_resizer.width={}".format(width),
            "model.ssd.anchor_generator.ssd_anchor_generator.scales={}".format(scales),
        ]
        text = "input {}x{}, anchor scales {}".format(height, width, " ".join(str(s) for s in scales))
        print(text, file=sys.stderr)
    common += overrides
    source = os.path.join(CONFIG_FOLDER, schedule.configs)
    config = pipeline.load(source + "_float.config", common)
    _set_steps(config.train_config, schedule.float_steps)
    write_atomically(paths.float_config, pipeline.to_text(config))
    trained = "{}-{}".format("ckpt" if halves.is_tf2(config) else "model.ckpt", schedule.float_steps)
    trained = os.path.abspath(os.path.join(paths.float_train, trained))
    fine_tuning = ["train_config.fine_tune_checkpoint={}".format(trained)]
    config = pipeline.load(source + "_qat.config", common + fine_tuning)
    _set_steps(config.train_config, schedule.qat_steps)
    write_atomically(paths.qat_config, pipeline.to_text(config))
    config.ClearField("graph_rewriter")
    write_atomically(paths.float_on_config, pipeline.to_text(config))


def _set_steps(train_config, steps: int) -> None:
    train_config.num_steps = steps
    optimizer = getattr(train_config.optimizer, train_config.optimizer.WhichOneof("optimizer"))
    rate = optimizer.learning_rate.cosine_decay_learning_rate
    rate.total_steps = steps
    rate.warmup_steps = max(1, min(rate.warmup_steps, steps // 10))


def _report(dataset, paths, checkpoints, models, seed, processes, started) -> Dict[str, Any]:
    """Scores the models, draws pictures and writes everything into the work_dir.

    Args:
      checkpoints: label -> mAP, mAP at .5 and size of the checkpoints, which the evaluator has scored.
      models: label -> path of the models to score.
    """
    from od_qat import scoring
    from od_qat.datasets import records
    from od_qat.report import page, pictures, table, whole
    from od_qat.scoring import measures

    measure = measures.DetectorMeasure(
        lambda: records.read_examples(dataset.val_record), dataset.names_by_id()
    )
    scores = {
        label: scoring.score(path, dataset.val_record, class_names=dataset.names_by_id(), processes=processes)
        for label, path in models.items()
    }
    rows = [
        table.Row(label, *checkpoints[label]) if label in checkpoints else table.row(label, scores[label])
        for label in (FLOAT, FLOAT_FROZEN, PTQ, FLOAT_ON, PTQ_ON, EVAL_GRAPH, QAT_FROZEN, QAT)
    ]
    agreement = scoring.agreement(
        scores[QAT_FROZEN].detections,
        scores[QAT].detections,
        iou=_AGREEMENT_IOU,
        score_tolerance=2 * _SCORE_STEP,
    )
    pictures.side_by_side(
        itertools.islice(measure.images, _PICTURES),
        {"float": scores[FLOAT_ON].detections, "int8": scores[QAT].detections},
        dataset.names_by_id(),
        paths.pictures,
    )
    cost = what_quantization_cost(*[scores[label].score.map for label in (FLOAT_ON, PTQ_ON, QAT)])
    _say("8/8 report")
    given = whole.Given(models[QAT], models[FLOAT_ON], models[QAT_FROZEN], {"PTQ": models[PTQ_ON]}, {})
    of_given = {whole.FLOAT: FLOAT_ON, whole.GRAPH: QAT_FROZEN, whole.MODEL: QAT, "PTQ": PTQ_ON}
    found = whole.measure(
        given,
        measure,
        whole.Options(processes=processes),
        {label: scores[of].detections for label, of in of_given.items()},
    )
    page.write(paths.work_dir, found, "od_qat demo")
    result = {
        "seed": seed,
        "minutes": round((time.time() - started) / 60.0, 1),
        "validation_images": len(measure.images),
        "rows": table.as_json(rows, FLOAT_ON),
        "agreement": dataclasses.asdict(agreement),
    }
    write_json(os.path.join(paths.work_dir, "demo.json"), result)
    table.print_table(rows, baseline=FLOAT_ON)
    print("\n{}\n".format(page.summary(found)))
    print(
        "the .tflite and the frozen .pb agree on {:.1f} % of their detections (IoU {}, 2 score steps)".format(
            100 * agreement.share, _AGREEMENT_IOU
        )
    )
    print("{} minutes; report.html and pictures/ are in {}".format(result["minutes"], paths.work_dir))
    print(cost)
    return result


def what_quantization_cost(float_on: float, ptq: float, qat: float) -> str:
    """The sentence of the last line: the differences in mAP after equally long training.

    Args:
      float_on: mAP (0 to 1) of the float model that was trained further for as many steps as QAT took.
      ptq: mAP of the .tflite that post-training quantization makes of it.
      qat: mAP of QAT's .tflite.
    """
    return (
        "at equal training (mAP {:.1f} in float) QAT's .tflite differs by {:+.1f} points, PTQ's by {:+.1f}; "
        "one seed: benchmarks/accuracy.py measures how far seeds differ"
    ).format(100 * float_on, *[round(100 * (value - float_on), 1) + 0.0 for value in (qat, ptq)])


def _of_checkpoint(metrics: Dict[str, float], train_dir: str) -> Tuple[float, float, int]:
    """The mAP, mAP at .5 and size in bytes of the newest checkpoint, including the optimizer's slots."""
    from od_qat import checkpoints

    prefix = checkpoints.latest(train_dir)
    folder = os.path.dirname(prefix)
    size = sum(
        os.path.getsize(os.path.join(folder, name))
        for name in os.listdir(folder)
        if name.startswith(os.path.basename(prefix) + ".data")
    )
    return metrics["DetectionBoxes_Precision/mAP"], metrics["DetectionBoxes_Precision/mAP@.50IOU"], size
