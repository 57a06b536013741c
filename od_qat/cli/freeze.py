"""`od-qat freeze`: a frozen graph from a checkpoint and its .meta alone."""

import argparse
import os
import sys

from od_qat.cli import flags

NAME = "freeze"
HELP = "freeze a checkpoint and its .meta graph, without the code that built it"
DESCRIPTION = """\
Imports the graph of a .meta file, restores its checkpoint, finds the outputs, cuts off input queues, metrics
and optimizer, and writes a frozen .pb. A graph whose batch norms or dropouts are in training mode is refused,
since it computes other things than the model. TensorFlow imports the graph, so give it files that you trust.

Example:

  od-qat freeze --meta=eval/model.ckpt-300.meta --output=frozen.pb

Next: od-qat nodes frozen.pb."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("--meta", required=True, metavar="FILE", help="the .meta file of a checkpoint")
    parser.add_argument("--output", required=True, metavar="FILE", help="the .pb to write")
    parser.add_argument(
        "--checkpoint", metavar="PREFIX", help="the checkpoint, if it is not beside the .meta under its name"
    )
    parser.add_argument(
        "--output_nodes", metavar="NAMES", help="names of the outputs, separated by commas, if none are found"
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.meta, "graph")
    from od_qat import compat

    compat.enable_tf1_behaviour()
    from od_qat import checkpoints
    from od_qat.export import any_graph
    from od_qat.files import write_atomically
    from od_qat.model_files import names

    prefix = arguments.checkpoint or os.path.splitext(arguments.meta)[0]
    outputs = [name.strip() for name in (arguments.output_nodes or "").split(",") if name.strip()]
    graph = any_graph.imported(arguments.meta)
    cut = any_graph.freeze_graph(graph, checkpoints.normalised(prefix), outputs or None, arguments.meta)
    write_atomically(arguments.output, cut.graph_def.SerializeToString())
    print("input {} {}".format(names.CLASSIFIER_INPUT, list(cut.input_shape)), file=sys.stderr)
    print(",".join(cut.outputs))
    return 0
