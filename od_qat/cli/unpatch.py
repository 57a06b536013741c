"""`od-qat unpatch`: take it out again, to the byte."""

import argparse

from od_qat.cli import flags
from od_qat.cli.patch import print_outcome

NAME = "unpatch"
HELP = "take it out again, to the byte"
DESCRIPTION = """\
Takes od_qat's patches out of an OD API tree: every byte is as it was before od-qat patch.

Example:

  od-qat unpatch --od_api=models/research

A tree whose patched files were edited since is refused, by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Its flags."""
    flags.add_tree(parser)


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat.od_api import patching

    return print_outcome(patching.unpatch(arguments.od_api, arguments.check))
