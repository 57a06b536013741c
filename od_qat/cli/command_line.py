"""Parses the command line, runs the command, and returns its exit status.

Flags have the names of the OD API's scripts. TensorFlow takes seconds to import, so each handler imports
what it needs and `--help` is instant.

Exit status: 0 done, 1 an error that is reported in one line, 2 wrong usage, 130 interrupted, 143 ended by
SIGTERM.
"""

import argparse
import atexit
import contextlib
import gc
import os
import sys
import traceback
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

import od_qat
from od_qat import late_imports
from od_qat.cli import (
    agree,
    compare,
    data,
    demo,
    demo_classifier,
    detect,
    doctor,
    evaluate,
    export,
    export_tflite,
    flags,
    freeze,
    install_od_api,
    layers,
    nodes,
    patch,
    ptq,
    report,
    run,
    score,
    targets,
    train,
    unpatch,
)
from od_qat.cli.explained import describe_error

_INTERRUPTED = 130
# Python's own is 700 (2,000 from 3.13).
_OBJECTS_UNTIL_COLLECTION = 100000

_DESCRIPTION = """\
Quantization-aware training (QAT) for detectors of the TensorFlow Object Detection API.

The steps from photographs to an int8 .tflite:

  od-qat doctor          lists what is installed and what is missing
  od-qat data ...        converts images and boxes to records and a label map
  od-qat train ...       trains in float or, if the config has a graph_rewriter block, with QAT
  od-qat eval ...        prints COCO metrics of a checkpoint and freezes it
  od-qat export-tflite   converts a checkpoint to detect.tflite and checks it
  od-qat score ...       prints COCO metrics, size and latency of the .tflite itself
  od-qat report ...      shows on one page whether it is right, what it lost, and where

`od-qat demo` runs all steps on a built-in data set. `od-qat COMMAND --help` has an example of each
command. docs/guide.md explains them in order."""


# In the order of `od-qat --help`. A module has NAME, HELP (a line), DESCRIPTION, add_arguments(parser) and
# handle(arguments) -> exit status.
_COMMANDS = (
    demo,
    demo_classifier,
    doctor,
    install_od_api,
    data,
    train,
    evaluate,
    export,
    export_tflite,
    ptq,
    score,
    report,
    nodes,
    compare,
    agree,
    layers,
    targets,
    detect,
    freeze,
    patch,
    unpatch,
    run,
)


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all subcommands. What it parses has the command's function as `handler`."""
    parser = flags.Parser(prog="od-qat", description=_DESCRIPTION)
    parser.add_argument("--version", action="version", version="od-qat " + od_qat.__version__)
    parser.add_argument("--debug", action="store_true", help="show tracebacks of errors")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND")
    subparsers.required = True
    for command in _COMMANDS:
        subparser = flags.subparser(subparsers, command.NAME, command.HELP, command.DESCRIPTION)
        command.add_arguments(subparser)
        subparser.set_defaults(handler=command.handle)
    return parser


def _split_program(argv: Sequence[str]) -> Tuple[List[str], List[str]]:
    """Splits `run MODULE -- --flag=a-b` into od-qat's own words and the program's, which stay as they are."""
    argv = list(argv)
    words = [position for position, argument in enumerate(argv) if not argument.startswith("-")]
    if not words or argv[words[0]] != "run" or len(words) < 2:
        return argv, []
    end = words[1] + 1
    program = argv[end:]
    return argv[:end], program[1:] if program[:1] == ["--"] else program


def _with_underscores(argv: Iterable[str]) -> List[str]:
    """--train-dir=a-b -> --train_dir=a-b: both spellings of a flag are accepted."""
    result = []
    for argument in argv:
        if argument.startswith("--") and len(argument) > 2:
            name, equals, value = argument[2:].partition("=")
            argument = "--" + name.replace("-", "_") + equals + value
        result.append(argument)
    return result


@contextlib.contextmanager
def _rare_collections() -> Iterator[None]:
    """Python seldom looks for cycles: a graph of 10,000 ops is no garbage, and the search takes a second."""
    usual = gc.get_threshold()
    gc.set_threshold(_OBJECTS_UNTIL_COLLECTION, *usual[1:])
    try:
        yield
    finally:
        gc.set_threshold(*usual)


def _only_for_this(command: str) -> None:
    """Sets up a process that runs one command, and no program of the user.

    Libraries then import late what is rarely needed, and at the end of the process Python looks for no
    cycles, which would take most of a second.
    """
    if command != run.NAME:
        late_imports.allow()
        atexit.register(gc.freeze)


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Runs the command line.

    Args:
      argv: the arguments; by default those of the process.

    Returns:
      the exit status, also where argparse raises SystemExit (help, usage errors).
    """
    of_process = argv is None
    argv, program_arguments = _split_program(sys.argv[1:] if argv is None else argv)
    try:
        arguments = build_parser().parse_args(_with_underscores(argv))
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    if of_process:
        _only_for_this(arguments.command)
    arguments.program_arguments = program_arguments
    if arguments.debug:
        os.environ.setdefault("OD_QAT_DEBUG", "1")
    try:
        with _rare_collections():
            status = arguments.handler(arguments)
        sys.stdout.flush()  # (here, so that a closed pipe is noticed below)
        return status
    except SystemExit as end:  # of a training that SIGTERM has ended
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        print("od-qat: interrupted", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        # The reader of our output has gone (`od-qat ... | head`). Python would complain at exit, too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (every error that nothing else handles is reported here)
        if arguments.debug:
            traceback.print_exc()
        print("od-qat: error: " + describe_error(error, arguments.debug), file=sys.stderr)
        return 1
