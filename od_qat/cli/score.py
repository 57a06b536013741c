"""`od-qat score`: prints metrics, size and latency of a .tflite or .pb."""

import argparse
import dataclasses
import os

from od_qat.cli import flags, measured
from od_qat.errors import ConfigError

NAME = "score"
HELP = "print metrics, size and latency of a .tflite or .pb"
DESCRIPTION = """\
Runs a .tflite or a frozen .pb on records and prints its COCO metrics, size and latency. Of a classifier it
prints the accuracy; it needs no label map.

Example:

  od-qat score --model=out/tflite/detect.tflite --record=out/data/val.record \\
      --label_map=out/data/label_map.pbtxt

Next: compare with the float model's score. A loss of 0.3 points of mAP is usual, a loss of several is not."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("--model", required=True, metavar="FILE", help="a .tflite or a frozen .pb")
    parser.add_argument(
        "--record",
        required=True,
        metavar="FILE",
        help="the records to score on, for shards a pattern, 'val.record-*'; for a classifier also a folder "
        "with one sub-folder for each class",
    )
    parser.add_argument("--label_map", metavar="FILE", help="the label map of a detector's records")
    parser.add_argument("--processes", type=flags.positive, metavar="N", help="default: one for each core")
    parser.add_argument(
        "--max_images", type=flags.positive, metavar="N", help="score only the first N images"
    )
    parser.add_argument("--json", metavar="FILE", help="also write the scores to this file, as JSON")
    parser.add_argument(
        "--time_limit",
        type=float,
        metavar="SECONDS",
        help="time limit for loading the model and for each image (default 60)",
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat.model_files import description

    flags.require_file(arguments.model, "model")
    if description.is_classifiers(arguments.model):
        return _handle_classifier(arguments)
    return _handle_detector(arguments)


def _handle_detector(arguments: argparse.Namespace) -> int:
    from od_qat import files, scoring
    from od_qat.datasets import records
    from od_qat.model_files import tflite_file
    from od_qat.report import table

    if arguments.label_map is None:
        raise ConfigError(
            "a detector is scored with the label map of its records",
            where="--label_map",
            found="none",
            fix="pass --label_map=FILE",
        )
    if not records.is_pattern(arguments.record):
        flags.require_file(arguments.record, "record file")
    flags.require_file(arguments.label_map, "label map")

    result = scoring.score(
        arguments.model,
        arguments.record,
        arguments.label_map,
        processes=arguments.processes,
        max_images=arguments.max_images,
        time_limit=scoring.TIME_LIMIT if arguments.time_limit is None else arguments.time_limit,
    )
    # (Read from the file itself: the mAP belongs to this threshold, whatever the JSON beside it says.)
    options = tflite_file.read(arguments.model).options if arguments.model.endswith(".tflite") else {}
    if arguments.json:
        content = {"model": arguments.model, "size_bytes": result.size_bytes, "latency_ms": result.latency_ms}
        content["warnings"] = list(result.warnings)
        content.update(dataclasses.asdict(result.score))
        if options:
            content["post_processing"] = options
        files.write_json(arguments.json, content)
    table.print_table([table.row(os.path.basename(arguments.model), result)])
    if options:
        print("scored with " + tflite_file.suppression(options))
    return 0


def _handle_classifier(arguments: argparse.Namespace) -> int:
    measured.require_label_map(arguments.label_map, classifies=True)
    from od_qat import files, scoring
    from od_qat.classifiers import score
    from od_qat.report import accuracy_table

    result = score.score(
        arguments.model,
        arguments.record,
        processes=arguments.processes,
        max_images=arguments.max_images,
        time_limit=scoring.TIME_LIMIT if arguments.time_limit is None else arguments.time_limit,
    )
    if arguments.json:
        files.write_json(arguments.json, dataclasses.asdict(result))
    accuracy_table.print_table([accuracy_table.row(os.path.basename(arguments.model), result)])
    return 0
