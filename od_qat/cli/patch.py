"""`od-qat patch`: puts od_qat into a copy of the OD API."""

import argparse
import os
from typing import Any

from od_qat.cli import flags

NAME = "patch"
HELP = "put od_qat into your copy of the OD API"
DESCRIPTION = """\
Puts od_qat into your copy of the OD API. Its commands (legacy/train.py, legacy/eval.py,
export_inference_graph.py, export_tflite_ssd_graph.py, model_main.py) then quantize if their config has a
graph_rewriter block, on TensorFlow 1.15 and 2. Their command lines stay the same. od_qat must be installed
where they run.

Example:

  od-qat patch --od_api=models/research --check
  od-qat patch --od_api=models/research

It changes all files or none, and refuses files that you edited, by name. patches/README.md lists the patches.
Next: od-qat doctor --od_api=models/research. od-qat unpatch takes everything out again."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_tree(parser)
    flags.switch(
        parser,
        "--accept_unknown",
        "accept files of an unknown tree (another commit, your edits) if every change fits",
    )
    flags.switch(
        parser, "--compile_protos", "write the *_pb2.py files that the tree lacks (needs grpcio-tools)"
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
    """Prints the names of the files and the message; returns the exit status."""
    for name in outcome.files:
        print(name)
    print(outcome.message)
    return 0
