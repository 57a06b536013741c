"""The command line, with a file for each command that has its help, its flags and its handler.

command_line.py lists the commands and runs one. flags.py has what their flags have in common. explained.py
turns an error into one line.
"""

from od_qat.cli.command_line import build_parser, main

__all__ = ["build_parser", "main"]
