"""The types of flags, and groups of flags that several commands have."""

import argparse
import os
import sys
from typing import Any, Tuple

from od_qat.errors import ConfigError


class Parser(argparse.ArgumentParser):
    """Takes no abbreviations, whose meaning a new flag could change, and reports usage errors in one line."""

    def __init__(self, **kwargs: Any) -> None:
        super(Parser, self).__init__(
            allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter, **kwargs
        )

    def error(self, message: str) -> None:
        sys.stderr.write("od-qat: error: {}; see `{} --help`\n".format(message, self.prog))
        raise SystemExit(2)


def subparser(subparsers: Any, name: str, help_text: str, description: str) -> argparse.ArgumentParser:
    """Adds a subcommand's parser, with the flag that all subcommands have."""
    parser = subparsers.add_parser(name, help=help_text, description=description)
    # No default: it would overwrite a --debug that was given before the subcommand.
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def boolean(text: str) -> bool:
    """Parses a switch as upstream's scripts do (absl): --run_once, --run_once=false."""
    value = text.lower()
    if value in ("true", "t", "1", "yes"):
        return True
    if value in ("false", "f", "0", "no"):
        return False
    raise argparse.ArgumentTypeError("found {!r}, allowed: true or false".format(text))


def positive(text: str) -> int:
    """Parses a whole number from 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError("found {!r}, allowed: a whole number from 1".format(text))
    return value


def threshold(text: str) -> Any:
    """Parses a score below 1, or 'config'."""
    if text == "config":
        return text
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value < 1.0:  # NaN included
        raise argparse.ArgumentTypeError("found {!r}, allowed: a number, 0 <= t < 1, or config".format(text))
    return value


def override(text: str) -> str:
    """Checks an override, dotted.path=value; messages/overrides.py applies it."""
    if not text.partition("=")[0].strip() or "=" not in text:
        raise argparse.ArgumentTypeError(
            "found {!r}, allowed: dotted.path=value, train_config.batch_size=8 for example".format(text)
        )
    return text


def switch(parser: argparse.ArgumentParser, name: str, help_text: str) -> None:
    """Adds a flag that is true when it stands alone."""
    parser.add_argument(
        name, nargs="?", const=True, default=False, type=boolean, metavar="BOOL", help=help_text
    )


def add_config(parser: argparse.ArgumentParser) -> None:
    """Adds the pipeline config and its overrides."""
    parser.add_argument(
        "--pipeline_config_path",
        required=True,
        metavar="FILE",
        help="the pipeline config, or the config of a classifier",
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        type=override,
        metavar="KEY=VALUE",
        help="change a field of the config, for example train_config.num_steps=500; an empty value, "
        "train_config.fine_tune_checkpoint=, clears the field; may be given several times",
    )


def add_checkpoint_and_output(parser: argparse.ArgumentParser) -> None:
    """Adds what both exports read, and the folder that they write to."""
    add_config(parser)
    parser.add_argument(
        "--trained_checkpoint_prefix",
        required=True,
        metavar="PREFIX",
        help="a checkpoint, train_dir/model.ckpt-N, or a train_dir, whose newest checkpoint is taken",
    )
    parser.add_argument("--output_directory", required=True, metavar="DIR", help="folder for the model")


def add_skip_invalid(parser: argparse.ArgumentParser) -> None:
    """Adds the flag for invalid images and annotations."""
    parser.add_argument(
        "--skip_invalid",
        action="store_true",
        help="leave out, list and count invalid objects, and images that cannot be read or whose annotation "
        "cannot, instead of stopping",
    )


def add_tree(parser: argparse.ArgumentParser) -> None:
    """Adds the OD API's tree."""
    parser.add_argument(
        "--od_api",
        default=os.environ.get("OD_API"),
        metavar="DIR",
        help="the models/research folder (default: the environment variable OD_API)",
    )
    switch(parser, "--check", "only say what would be done")


def labelled(text: str) -> Tuple[str, str]:
    """The label, which may be empty, and the path of [LABEL=]FILE."""
    label, equals, path = text.partition("=")
    return (label, path) if equals and not os.path.exists(text) else ("", text)


def require_file(path: str, what: str) -> None:
    """Raises ConfigError unless the file is there, before TensorFlow is imported, which takes seconds.

    Paths such as gs:// are left to TensorFlow.
    """
    if "://" in path or os.path.isfile(path):
        return
    found, fix = "no such file", "correct the path"
    if os.path.isdir(path):
        found, fix = _of_folder(path, what)
    raise ConfigError("cannot read the {}".format(what), where=path, found=found, fix=fix)


def _of_folder(path: str, what: str) -> Tuple[str, str]:
    """What was found, and the way on, where a folder was given in place of a file."""
    if what != "model":
        return "a folder", "correct the path"
    names = sorted(os.listdir(path))
    models = [name for name in names if name.endswith((".tflite", ".pb"))]
    if models:
        return "a folder", "name a file in it: {}".format(", ".join(models))
    if any(name == "checkpoint" or name.endswith(".index") for name in names):
        return "a folder of checkpoints", "export it first, with od-qat export-tflite"
    return "a folder", "correct the path"
