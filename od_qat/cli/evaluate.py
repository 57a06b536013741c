"""`od-qat eval`: scores checkpoints and freezes them."""

import argparse
from typing import Any, Dict

from od_qat.cli import flags, kinds

NAME = "eval"
HELP = "score checkpoints and freeze them"
DESCRIPTION = """\
Evaluates the checkpoints of a training: prints COCO metrics, of a classifier the accuracy, and freezes the
model as frozen_eval_graph.pb.

Example:

  od-qat eval --pipeline_config_path=out/qat/pipeline.config --checkpoint_dir=out/qat \\
      --eval_dir=out/eval --run_once

Without --run_once it waits for the next checkpoint, so that it can run beside the training.
Next: od-qat export-tflite."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_config(parser)
    parser.add_argument(
        "--checkpoint_dir", required=True, metavar="DIR", help="the --train_dir of the training"
    )
    parser.add_argument(
        "--eval_dir", required=True, metavar="DIR", help="folder for metrics and the frozen graph"
    )
    flags.switch(parser, "--run_once", "evaluate the newest checkpoint and end")
    flags.switch(parser, "--eval_training_data", "evaluate on the training records instead")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    metrics = kinds.commands_for(arguments.pipeline_config_path).evaluate(
        arguments.pipeline_config_path,
        arguments.checkpoint_dir,
        arguments.eval_dir,
        run_once=arguments.run_once,
        eval_training_data=arguments.eval_training_data,
        overrides=arguments.override,
    )
    _print_metrics(metrics or {})
    return 0


def _print_metrics(metrics: Dict[str, Any]) -> None:
    if metrics:
        width = max(len(name) for name in metrics)
        for name in sorted(metrics):
            print("{}  {:.4f}".format(name.ljust(width), float(metrics[name])))
