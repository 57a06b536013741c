"""`od-qat nodes`: shows the inputs and outputs of a graph or a .tflite."""

import argparse
import os
import sys

from od_qat.cli import flags

NAME = "nodes"
HELP = "show the inputs and outputs of a graph or a .tflite"
DESCRIPTION = """\
Shows what a model takes and returns: names, shapes, types, scale and zero point, roles. In a graph it finds
the output nodes, whose names freezing and conversion ask for. Of a SavedModel it reads the signatures. No
model is run.

Example:

  od-qat nodes frozen_inference_graph.pb
  od-qat nodes detect.tflite

Standard output gets the names of the outputs, separated by commas. Standard error gets a table, and how the
outputs were found."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="a .pb, .pbtxt or .meta graph, a .tflite, or the folder of a SavedModel",
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    if not os.path.isdir(arguments.model):
        flags.require_file(arguments.model, "model")
    from od_qat.model_files import nodes

    found = nodes.find(arguments.model)
    # The names alone go to standard output, for `$(od-qat nodes ...)`.
    print(",".join(found.names))
    sys.stdout.flush()
    nodes.print_table(found.nodes, sys.stderr)
    print("{}: {}".format(found.kind, found.reason), file=sys.stderr)
    return 0
