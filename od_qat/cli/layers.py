"""`od-qat layers`: which layer of a quantized model adds the error, and what to try."""

import argparse
import itertools
import os
import sys
from typing import Iterator

from od_qat.cli import flags
from od_qat.errors import ConfigError

NAME = "layers"
HELP = "show which layers of a quantized model add the error"
DESCRIPTION = """\
Compares each quantized tensor of a model with a reference, on some images: a frozen graph with fake quants
with itself without them, or a .tflite with the graph that it was made from. For each it prints the range, the
share of values beyond it, the error that the layer adds, and the error that has piled up there.

Example:

  od-qat layers out/qat/eval/frozen_eval_graph.pb --record=out/data/val.record
  od-qat layers out/tflite/detect.tflite --record=out/data/val.record

The first says what quantization costs, and where. The second says whether the .tflite computes what was
trained: there, a layer that adds more than 0.4 steps is wrong."""

_IMAGES = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("model", metavar="MODEL", help="a frozen .pb with fake quants, or a .tflite")
    parser.add_argument(
        "--record",
        metavar="FILE",
        help="records with the images, for shards a pattern; or a picture, or a folder of pictures",
        required=True,
    )
    parser.add_argument(
        "--reference",
        metavar="FILE",
        help="for a .pb the float graph (default: itself without fake quants), for a .tflite its graph "
        "(default: tflite_graph.pb beside it)",
    )
    parser.add_argument(
        "--images", type=flags.positive, default=_IMAGES, metavar="N", help="how many to run (default 8)"
    )
    parser.add_argument(
        "--leave_one_out",
        type=flags.positive,
        metavar="N",
        help="of a detector's .pb, also score the N layers with the lowest signal-to-noise ratio: each alone "
        "quantized, and each alone float (takes N times two scorings; needs --label_map)",
    )
    parser.add_argument("--label_map", metavar="FILE", help="the label map of the records, for the scores")
    parser.add_argument(
        "--max_images", type=flags.positive, metavar="N", help="score on the first N images (default: all)"
    )
    parser.add_argument("--all", action="store_true", help="list all layers, not the 15 that add most")
    parser.add_argument("--json", metavar="FILE", help="also write all figures to this file, as JSON")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat import files
    from od_qat.report import layers, leave_one_out

    flags.require_file(arguments.model, "model")
    if arguments.reference is not None:
        flags.require_file(arguments.reference, "reference")
    if arguments.leave_one_out and (arguments.label_map is None or not arguments.model.endswith(".pb")):
        raise ConfigError(
            "leaving out layers needs a graph and the label map of its records",
            where="--leave_one_out",
            found="{}, {}".format(arguments.model, arguments.label_map or "no --label_map"),
            fix="give frozen_eval_graph.pb and --label_map",
        )
    if arguments.leave_one_out and _is_of_pictures(arguments.record):
        raise ConfigError(
            "leaving out layers needs records, with the right boxes",
            where="--record",
            found=arguments.record,
            fix="convert the pictures and their boxes with od-qat data",
        )
    found = layers.measure(
        arguments.model, itertools.islice(_pictures(arguments.record), arguments.images), arguments.reference
    )
    scores = None
    if arguments.leave_one_out:
        scores = leave_one_out.score(
            found, arguments.record, arguments.label_map, arguments.leave_one_out, arguments.max_images
        )
    if arguments.json:
        content = layers.as_json(found)
        if scores is not None:
            content["leave_one_out"] = leave_one_out.as_json(scores)
        files.write_json(arguments.json, content)
    print(layers.as_text(found, sys.maxsize if arguments.all else 15))
    if scores is not None:
        print("\n" + leave_one_out.as_text(scores))
    return 0


def _is_of_pictures(path: str) -> bool:
    from od_qat.report import found_in_pictures

    return os.path.isdir(path) or path.lower().endswith(found_in_pictures.EXTENSIONS)


def _pictures(path: str) -> Iterator[object]:
    from od_qat.datasets import records
    from od_qat.report import found_in_pictures
    from od_qat.scoring import images

    if _is_of_pictures(path):
        for name in found_in_pictures.paths_of([path]):
            photograph = found_in_pictures.Photograph.read(name)
            yield images.decode(photograph.encoded, name)
        return
    if not records.is_pattern(path):
        flags.require_file(path, "record file")
    for example in records.read_examples(path):
        yield images.decode(example.encoded, str(example.image_id))
