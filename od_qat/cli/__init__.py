"""The command line: a file for each command, with its words, its flags and what it does with them.

command_line.py has the list of them and runs one; flags.py has what their flags have in common; explained.py
makes one line of an error.
"""

from od_qat.cli.command_line import build_parser, main

__all__ = ["build_parser", "main"]
