"""`od-qat train`: train a float model or, with quantization, a QAT model."""

import argparse
import math

from od_qat.cli import flags

NAME = "train"
HELP = "train a float model or, with quantization, a QAT model"
DESCRIPTION = """\
Trains what a pipeline config describes; with a graph_rewriter block in it, with quantization.

Example, 300 steps of QAT from a float checkpoint:

  od-qat train --pipeline_config_path=my_qat.config --train_dir=out/qat \\
      --override train_config.fine_tune_checkpoint=out/float/model.ckpt-900

A run that stopped goes on from its newest checkpoint. SIGTERM and Ctrl-C end it with all saved, a second one
at once. Next: od-qat eval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_config(parser)
    parser.add_argument("--train_dir", required=True, metavar="DIR", help="checkpoints and events go here")
    parser.add_argument(
        "--num_clones", type=flags.positive, default=1, metavar="N", help="GPUs to use (default 1)"
    )
    flags.switch(parser, "--clone_on_cpu", "put the clones on CPUs")
    parser.add_argument(
        "--save_interval_secs",
        type=flags.positive,
        default=600,
        metavar="SECONDS",
        help="seconds between checkpoints (default 600)",
    )
    parser.add_argument(
        "--seed", type=int, metavar="N", help="a run that can be repeated: seeds all, one input thread"
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    from od_qat import commands

    result = commands.train(
        arguments.pipeline_config_path,
        arguments.train_dir,
        overrides=arguments.override,
        num_clones=arguments.num_clones,
        clone_on_cpu=arguments.clone_on_cpu,
        save_interval_secs=arguments.save_interval_secs,
        seed=arguments.seed,
    )
    checkpoint = getattr(result, "checkpoint", None)
    if checkpoint:
        # (No loss where training had ended already.)
        loss = "" if math.isnan(result.loss) else ", loss {:.4f}".format(result.loss)
        print("step {}{}: {}".format(result.global_step, loss, checkpoint))
    return 0
