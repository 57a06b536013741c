"""`od-qat export`: converts a checkpoint to frozen_inference_graph.pb."""

import argparse

from od_qat.cli import flags, kinds

NAME = "export"
HELP = "convert a checkpoint to frozen_inference_graph.pb"
DESCRIPTION = """\
Converts a checkpoint to frozen_inference_graph.pb, with fake quants if the config has a graph_rewriter block.

Example:

  od-qat export --pipeline_config_path=out/qat/pipeline.config \\
      --trained_checkpoint_prefix=out/qat/model.ckpt-300 --output_directory=out/export

Next: od-qat score, with the .pb as the model."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_checkpoint_and_output(parser)
    # Upstream's script requires this flag, so command lines written for that script have it.
    parser.add_argument(
        "--input_type", choices=["image_tensor"], default="image_tensor", help=argparse.SUPPRESS
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    path = kinds.commands_for(arguments.pipeline_config_path).export(
        arguments.pipeline_config_path,
        arguments.trained_checkpoint_prefix,
        arguments.output_directory,
        overrides=arguments.override,
    )
    print(path)
    return 0
