"""`od-qat nodes`: inputs and outputs of a graph or a .tflite."""

import argparse
import os
import sys

from od_qat.cli import flags

NAME = "nodes"
HELP = "inputs and outputs of a graph or a .tflite"
DESCRIPTION = """\
What goes into a model and what comes out: names, shapes, types, scale and zero point, roles. Of a graph it
finds the output nodes, the names that freezing and conversion ask for; of a SavedModel it reads the
signatures; a .tflite is read without being run.

Example:

  od-qat nodes frozen_inference_graph.pb
  od-qat nodes detect.tflite

Prints the outputs' names, with commas, and on standard error a table and how they were found."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
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
