"""`od-qat train`: trains in float or, if the config has a graph_rewriter block, with QAT."""

import argparse
import math

from od_qat.cli import flags, kinds

NAME = "train"
HELP = "train in float or, with a graph_rewriter block, with QAT"
DESCRIPTION = """\
Trains the model of a pipeline config, or of a classifier's (docs/classifiers.md). If the config has a
graph_rewriter block, it trains with QAT.

Example: QAT from a float checkpoint.

  od-qat train --pipeline_config_path=my_qat.config --train_dir=out/qat \\
      --override train_config.fine_tune_checkpoint=out/float/model.ckpt-900

A run that stopped continues from its newest checkpoint. SIGTERM or Ctrl-C ends it after everything is saved;
a second one ends it at once. Next: od-qat eval."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_config(parser)
    parser.add_argument("--train_dir", required=True, metavar="DIR", help="folder for checkpoints and events")
    parser.add_argument(
        "--num_clones", type=flags.positive, default=1, metavar="N", help="number of GPUs to use (default 1)"
    )
    flags.switch(parser, "--clone_on_cpu", "put the clones on CPUs, to try --num_clones without GPUs")
    parser.add_argument(
        "--save_interval_secs",
        type=flags.positive,
        default=600,
        metavar="SECONDS",
        help="time between checkpoints (default 600)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        metavar="N",
        help="make the run repeatable: seed everything and read with one thread",
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    flags.require_file(arguments.pipeline_config_path, "pipeline config")
    result = kinds.commands_for(arguments.pipeline_config_path).train(
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
        # (There is no loss if training had ended before.)
        loss = "" if math.isnan(result.loss) else ", loss {:.4f}".format(result.loss)
        print("step {}{}: {}".format(result.global_step, loss, checkpoint))
    return 0
