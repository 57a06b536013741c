"""`od-qat unpatch`: takes od_qat out of a copy of the OD API."""

import argparse

from od_qat.cli import flags
from od_qat.cli.patch import print_outcome

NAME = "unpatch"
HELP = "take od_qat out of your copy of the OD API again"
DESCRIPTION = """\
Takes od_qat's patches out of your copy of the OD API. Every byte is then as it was before od-qat patch.

Example:

  od-qat unpatch --od_api=models/research

It refuses patched files that were edited since, by name."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.add_tree(parser)


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    from od_qat.od_api import patching

    return print_outcome(patching.unpatch(arguments.od_api, arguments.check))
