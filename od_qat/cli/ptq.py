"""`od-qat ptq`: all forms of post-training quantization of a float model, scored beside QAT."""

import argparse
import os
from typing import Any, Dict, List

from od_qat.cli import flags, kinds, measured
from od_qat.errors import ConfigError
from od_qat.model_files.names import FLOAT32, FORMS, QUANTIZED_FORMS

NAME = "ptq"
HELP = "quantize a float checkpoint in all ways without training, and score each"
DESCRIPTION = """\
Converts a float checkpoint to float32, float16, dynamic range and int8, with a range for each channel of the
weights and with one for all. Scores each .tflite on records: mAP with its 95 % interval, mAP by the size of
objects (of a classifier the accuracy), file size, latency with one and two threads, measured in turns. With
--qat it says whether training with quantization paid.

Example:

  od-qat ptq --pipeline_config_path=out/float_on.config --trained_checkpoint_prefix=out/float_on \\
      --output_directory=out/ptq --record=out/data/val.record --label_map=out/data/label_map.pbtxt \\
      --qat=out/tflite/detect.tflite

For a fair comparison the float checkpoint has been trained for as many steps as QAT was, from the same start
and with the same schedule. Otherwise the gain of QAT is the gain of more training."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_checkpoint_and_output(parser)
    parser.add_argument(
        "--record",
        required=True,
        metavar="FILE",
        help="the records to score on; for a classifier also a folder with one sub-folder for each class",
    )
    parser.add_argument("--label_map", metavar="FILE", help="their label map, for a detector")
    parser.add_argument(
        "--forms",
        default=",".join(FORMS),
        metavar="LIST",
        help="which forms, separated by commas (default: {}); float32, which the others are compared with, "
        "is always made".format(",".join(FORMS)),
    )
    parser.add_argument(
        "--qat",
        action="append",
        default=[],
        type=flags.labelled,
        metavar="[LABEL=]FILE",
        help="a .tflite or .pb of the same network trained with QAT; may be given several times",
    )
    parser.add_argument(
        "--calibration_images", type=flags.positive, default=100, metavar="N", help="for int8 (default 100)"
    )
    parser.add_argument("--max_images", type=flags.positive, metavar="N", help="score on the first N images")
    parser.add_argument("--processes", type=flags.positive, metavar="N", help="default: one for each core")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file, by class too")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    forms = _forms(arguments.forms)
    labels = list(forms)
    trained = [(label or "QAT", path) for label, path in arguments.qat]
    for label, path in trained:
        flags.require_file(path, "model")
        if label in labels:
            raise ConfigError(
                "two models have one label", where="--qat", found=label, fix="give it another: LABEL=FILE"
            )
        labels.append(label)
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    commands = kinds.commands_for(arguments.pipeline_config_path)
    measured.require_label_map(arguments.label_map, kinds.is_of_classifiers(commands))
    from od_qat import contents, files
    from od_qat.contents.model import RANGES
    from od_qat.report import quantizations

    if contents.read(arguments.trained_checkpoint_prefix).of_kind(RANGES):
        raise ConfigError(
            "post-training quantization begins with a float checkpoint",
            where=arguments.trained_checkpoint_prefix,
            found="one with ranges, of QAT",
            fix="give the float checkpoint, and what QAT made with --qat",
        )

    classifies = kinds.is_of_classifiers(commands)
    paths: Dict[str, str] = {}

    def measure() -> Any:
        found = paths.get(FLOAT32, "")
        return measured.open_measure(found, arguments.record, arguments.label_map, arguments.max_images)

    # (The classes of a classifier are in the JSON beside a model.)
    of_detector = None if classifies else measure()
    for form in forms:
        paths[form] = commands.export_tflite(
            arguments.pipeline_config_path,
            arguments.trained_checkpoint_prefix,
            os.path.join(arguments.output_directory, form),
            overrides=arguments.override,
            ptq=True,
            calibration_images=arguments.calibration_images,
            form=form,
        )
    paths.update(trained)
    measured.require_one_kind(list(paths.values()))
    found = quantizations.compare(
        paths,
        of_detector or measure(),
        [label for label, _ in trained],
        [form for form in forms if form in QUANTIZED_FORMS],
        of_float=FLOAT32,
        processes=arguments.processes,
    )
    if arguments.json:
        files.write_json(arguments.json, quantizations.as_json(found))
    print(quantizations.as_text(found))
    return 0


def _forms(text: str) -> List[str]:
    forms = [form for form in text.split(",") if form]
    wrong = [form for form in forms if form not in FORMS]
    if wrong or not forms:
        raise ConfigError(
            "unknown form",
            where="--forms",
            found=", ".join(wrong) or "none",
            allowed=", ".join(FORMS),
        )
    return [FLOAT32] + [form for form in forms if form != FLOAT32]
