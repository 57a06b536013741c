"""`od-qat report`: everything about an exported model, as one page."""

import argparse
import os
from typing import Dict, List, Tuple

from od_qat.cli import flags, measured
from od_qat.errors import ConfigError

NAME = "report"
HELP = "show on one page whether an exported model is right, what it lost, and where"
DESCRIPTION = """\
Measures a .tflite (or a frozen .pb) on records, beside the float model, the graph with fake quants that it
was made from, and post-training quantization. Of a classifier, --record may be a folder with one sub-folder
for each class, and accuracy stands for mAP. Writes report.html, a page that needs no network, report.json
and report.txt: whether it is fully quantized, its mAP with a 95 % interval, latency and size, whether QAT was
worth it, where detections differ, which layer adds the error, and what devices do with each op.

Example:

  od-qat report out/tflite/detect.tflite --record=out/data/val.record --label_map=out/data/label_map.pbtxt \\
      --float=out/float_on/eval/frozen_eval_graph.pb --graph=out/qat/eval/frozen_eval_graph.pb \\
      --ptq=out/float_on/ptq/detect.tflite --output_dir=out/report

Whatever is not given is left out, and the page says so. For a fair answer to whether QAT was worth it, the
float model has to be trained on for as many steps as QAT took, and --ptq has to be made of that."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("model", metavar="MODEL", help="a .tflite or a frozen .pb")
    parser.add_argument(
        "--record", required=True, metavar="FILE", help="the records; for shards a pattern, 'val.record-*'"
    )
    parser.add_argument("--label_map", metavar="FILE", help="their label map, for a detector")
    parser.add_argument("--output_dir", required=True, metavar="DIR", help="folder for the three files")
    parser.add_argument(
        "--float", metavar="FILE", dest="float_model", help="the float model, a frozen .pb or a .tflite"
    )
    parser.add_argument(
        "--graph", metavar="FILE", help="the frozen graph with fake quants (frozen_eval_graph.pb)"
    )
    for flag, what in (
        ("--ptq", "a .tflite that post-training quantization made of the float model"),
        ("--beside", "another model for the table"),
    ):
        parser.add_argument(
            flag,
            action="append",
            default=[],
            type=flags.labelled,
            metavar="[LABEL=]FILE",
            help=what + "; may be given several times",
        )
    parser.add_argument("--title", default=None, help="of the page")
    parser.add_argument("--max_images", type=flags.positive, metavar="N", help="run on the first N images")
    parser.add_argument(
        "--layer_images",
        type=flags.positive,
        default=8,
        metavar="N",
        help="images for the layers (default 8)",
    )
    parser.add_argument(
        "--worst",
        type=flags.positive,
        default=6,
        metavar="N",
        help="how many images that differ are drawn (default 6)",
    )
    parser.add_argument("--processes", type=flags.positive, metavar="N", help="default: one for each core")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    others = [path for _, path in arguments.ptq + arguments.beside]
    classifies = measured.require_one_kind([arguments.model, arguments.float_model, arguments.graph] + others)
    measured.require_label_map(arguments.label_map, classifies)
    from od_qat import files
    from od_qat.report import page, whole

    given = whole.Given(
        arguments.model,
        arguments.float_model,
        arguments.graph,
        _named(arguments.ptq, "PTQ", "--ptq"),
        _named(arguments.beside, "", "--beside"),
    )
    _require_labels(given, whole)
    files.require_folder_possible(arguments.output_dir)
    measure = measured.open_measure(
        arguments.model, arguments.record, arguments.label_map, arguments.max_images
    )
    found = whole.measure(
        given, measure, whole.Options(arguments.layer_images, arguments.worst, arguments.processes)
    )
    paths = page.write(arguments.output_dir, found, arguments.title or page.TITLE)
    print(page.summary(found))
    print("\n" + paths[0])
    return 0


def _named(given: List[Tuple[str, str]], default: str, flag: str) -> Dict[str, str]:
    """Label -> path; without a label, the default or the file's name."""
    found: Dict[str, str] = {}
    for label, path in given:
        label = label or default or os.path.basename(path)
        if label in found:
            raise ConfigError(
                "two models have one label", where=flag, found=label, fix="give it another: LABEL=FILE"
            )
        found[label] = path
    return found


def _require_labels(given, whole) -> None:
    own = (whole.FLOAT, whole.GRAPH, whole.MODEL)
    for flag, labels in (("--ptq", given.ptq), ("--beside", given.others)):
        for label in labels:
            if label in own or (flag == "--beside" and label in given.ptq):
                raise ConfigError(
                    "two models have one label", where=flag, found=label, fix="give it another: LABEL=FILE"
                )
