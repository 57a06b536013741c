"""`od-qat compare`: what two models hold, and what differs."""

import argparse
import sys

from od_qat.cli import flags

NAME = "compare"
HELP = "show what differs between two models: checkpoints, graphs, .tflite files"
DESCRIPTION = """\
Compares what two models hold: size by kind (weights, batch norms, ranges, optimizer, graph), ops, the share
of weights and multiply-adds that is quantized, and each variable or constant that one of them lacks or that
has other values. Neither is run.

A model is a .tflite, a .pb, .pbtxt or .meta graph, the folder of a SavedModel, a checkpoint's prefix, or a
folder with checkpoints, of which the newest is taken.

Example:

  od-qat compare out/float out/qat
  od-qat compare out/tflite/tflite_graph.pb out/tflite/detect.tflite

It says in words why a QAT graph is as large as the float one, and what makes a QAT checkpoint one."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("a", metavar="A", help="a model")
    parser.add_argument("b", metavar="B", help="another one")
    parser.add_argument("--all", action="store_true", help="list everything, not the first 10 of each kind")
    parser.add_argument("--json", metavar="FILE", help="also write the comparison to this file, as JSON")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat import contents, files
    from od_qat.report import comparison

    for path in (arguments.a, arguments.b):
        if path.endswith(".tflite"):
            flags.require_file(path, "model")
    found = comparison.compare(contents.read(arguments.a), contents.read(arguments.b))
    if arguments.json:
        files.write_json(arguments.json, comparison.as_json(found))
    print(comparison.as_text(found, sys.maxsize if arguments.all else 10))
    return 0
