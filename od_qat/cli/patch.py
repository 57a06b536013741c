"""`od-qat patch`: put od_qat into an OD API tree of yours."""

import argparse
import os
from typing import Any

from od_qat.cli import flags

NAME = "patch"
HELP = "put od_qat into an OD API tree of yours"
DESCRIPTION = """\
Puts od_qat into an OD API tree: your own commands (legacy/train.py, legacy/eval.py,
export_inference_graph.py, export_tflite_ssd_graph.py, model_main.py) then quantise as their config's
graph_rewriter block says, on TensorFlow 1.15 and 2, with the command lines that they always had. od_qat must
be installed where they run.

Example:

  od-qat patch --od_api=models/research --check
  od-qat patch --od_api=models/research

All files change or none does; a tree with edits in one of them is refused, by name. The patches are in
patches/, with a README. Next: od-qat doctor --od_api=models/research; od-qat unpatch takes it all back."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_tree(parser)
    flags.switch(
        parser,
        "--accept_unknown",
        "take files that are as no known tree has them (another commit, your edits), if every hunk matches",
    )
    flags.switch(
        parser, "--compile_protos", "make the *_pb2.py that are missing, in the tree (needs grpcio-tools)"
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat.od_api import patching

    outcome = patching.patch(
        arguments.od_api, arguments.check, arguments.accept_unknown, arguments.compile_protos
    )
    status = print_outcome(outcome)
    if outcome.files and not arguments.check:
        # (The Python that runs this need not be the one that runs the tree's commands.)
        source = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
        what = source if os.path.isfile(os.path.join(source, "pyproject.toml")) else "od_qat"
        print("The Python that runs the tree's commands needs od_qat: pip install --no-deps {}".format(what))
    return status


def print_outcome(outcome: Any) -> int:
    """Names of the files, and the message; returns the exit status."""
    for name in outcome.files:
        print(name)
    print(outcome.message)
    return 0
