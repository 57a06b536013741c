"""`od-qat targets`: which ops of a .tflite a device takes, and why it does not take the others."""

import argparse
import sys

from od_qat.cli import flags

NAME = "targets"
HELP = "show which ops of a .tflite devices take, and why not"
DESCRIPTION = """\
Compares each op of a .tflite with the rules of LiteRT's CPU kernels (XNNPACK), of the Edge TPU, of LiteRT for
microcontrollers, and of TensorFlow Lite's quantization specification. For each op that a device does not take
it says which rule is broken, what was found, and the way round. The rules are data, read from the vendors'
documents; each names its own. The model is not run.

Example:

  od-qat targets out/tflite/detect.tflite --target=edge_tpu

What a file cannot tell, and only the vendor's compiler knows, is said so."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("model", metavar="MODEL", help="a .tflite, also of somebody else's")
    parser.add_argument(
        "--target",
        action="append",
        metavar="NAME",
        help="xnnpack, edge_tpu, micro or specification; may be given several times (default: all)",
    )
    parser.add_argument("--all", action="store_true", help="list all reasons, not the first 10")
    parser.add_argument("--json", metavar="FILE", help="also write every op and reason to this file, as JSON")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat import files
    from od_qat.model_files import tflite_graph
    from od_qat.report import target_report
    from od_qat.targets import rules

    flags.require_file(arguments.model, "model")
    chosen = [rules.load(name) for name in arguments.target or rules.NAMES]
    graph = tflite_graph.read(arguments.model)
    found = [target_report.OfTarget(graph, target) for target in chosen]
    if arguments.json:
        files.write_json(arguments.json, [target_report.as_json(one) for one in found])
    print("\n\n".join(target_report.as_text(one, sys.maxsize if arguments.all else 10) for one in found))
    return 0
