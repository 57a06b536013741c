"""`od-qat export`: checkpoint -> frozen_inference_graph.pb."""

import argparse

from od_qat.cli import flags

NAME = "export"
HELP = "checkpoint -> frozen_inference_graph.pb"
DESCRIPTION = """\
Writes frozen_inference_graph.pb, with fake quants when the config has a graph_rewriter block.

Example:

  od-qat export --pipeline_config_path=out/qat/pipeline.config \\
      --trained_checkpoint_prefix=out/qat/model.ckpt-300 --output_directory=out/export

Next: od-qat score, with the .pb as the model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_checkpoint_and_output(parser)
    # Upstream's script requires it, so commands that were written for that one have it.
    parser.add_argument(
        "--input_type", choices=["image_tensor"], default="image_tensor", help=argparse.SUPPRESS
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    from od_qat import commands

    path = commands.export(
        arguments.pipeline_config_path,
        arguments.trained_checkpoint_prefix,
        arguments.output_directory,
        overrides=arguments.override,
    )
    print(path)
    return 0
