"""`od-qat run`: runs a module or script of the OD API, or a user's own, with `od_qat.plugin` imported first.

The program runs as under `python -m MODULE` or `python SCRIPT`: with the same sys.argv, sys.path[0],
__name__, absl flags and tf.app.run, exit status and tracebacks. Only od_qat's own errors are raised to the
caller.
"""

import argparse
import importlib
import importlib.util
import os
import runpy
import sys
import traceback
from typing import Optional, Sequence

from od_qat.errors import ConfigError, OdQatError
from od_qat.od_api import locate

NAME = "run"
HELP = "run a command of the OD API, or your own script, as it is"
DESCRIPTION = """\
Runs a command of the OD API, or your own script that uses it, as it is: on this TensorFlow, and with
quantization if its config has a graph_rewriter block. It changes no file of the OD API.

Example:

  od-qat run object_detection.legacy.train -- --pipeline_config_path=my.config --train_dir=out/train
  od-qat run models/research/object_detection/export_inference_graph.py -- --input_type=image_tensor ...

The exit status is the command's own. In a notebook, `import od_qat.plugin` at its top does the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("target", metavar="MODULE|SCRIPT", help="for example object_detection.legacy.train")
    # (For the usage line only: main() removes them before argparse sees them.)
    parser.add_argument(
        "arguments", nargs="*", metavar="-- ARGUMENTS", help="arguments of the program, after --"
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    return run(arguments.target, arguments.program_arguments)


# These run in TensorFlow's own mode.
TF2_COMMANDS = (
    "object_detection.model_main_tf2",
    "object_detection.exporter_main_v2",
    "object_detection.export_tflite_graph_tf2",
)
# slim's commands for classifiers, by their names as modules below research/slim.
COMMANDS_OF_SLIM = (
    "nets.mobilenet_v1_train",
    "nets.mobilenet_v1_eval",
    "train_image_classifier",
    "eval_image_classifier",
    "export_inference_graph",
)
# The flag that all of the OD API's commands have.
_CONFIG_FLAG = "pipeline_config_path"
_ALLOWED = "a module such as object_detection.legacy.train, or the path of a .py script"


def run(target: str, arguments: Sequence[str]) -> int:
    """Runs a module or a script as the main program.

    Args:
      target: dotted name of a module, or path of a script.
      arguments: the program's arguments, without its name.

    Returns:
      the exit status with which Python would have ended.

    Raises:
      ConfigError: if there is no such program, or if it cannot honour the config's graph_rewriter block.
      OdQatError: from the program.
    """
    from od_qat.od_api import refusals

    script = os.path.isfile(target)
    _require_python(target, script)
    if script and _name_in_slim(target):
        # (As a module it gets od_qat's changes while it is imported.)
        return _run_command_of_slim(target, arguments)
    module = _name_in_od_api(target) if script else target
    if script and module:
        _use_tree_of(target, module)
    config = _flag(arguments, _CONFIG_FLAG)
    if module in refusals.UNABLE:
        locate.add_to_path()
        refusals.refuse_command(module, config)

    # It puts everything in place.
    importlib.import_module("od_qat.plugin_tf2" if module in TF2_COMMANDS else "od_qat.plugin")

    first = os.path.dirname(os.path.abspath(target)) if script else os.getcwd()
    sys.path.insert(0, first)
    if not script:
        _require_module(target)
    if target in COMMANDS_OF_SLIM:
        _require_datasets(target)
    return _run(target, script, target, arguments, first)


def _run_command_of_slim(path: str, arguments: Sequence[str]) -> int:
    """Runs a script of slim's folder, or a copy of one, as a module."""
    name = _name_in_slim(path)
    root = _folder_above(path, name)
    if os.path.isdir(os.path.join(os.path.dirname(root), "object_detection")):
        _use_tree_of(path, "slim." + name)
    importlib.import_module("od_qat.plugin")
    sys.path.insert(0, root)
    _require_datasets(path)
    return _run(name, False, path, arguments, root)


def _name_in_slim(path: str) -> Optional[str]:
    """`slim/nets/mobilenet_v1_train.py` -> `nets.mobilenet_v1_train`; None if it is no command of slim's."""
    folder, name = os.path.split(os.path.splitext(os.path.abspath(path))[0])
    name = "nets." + name if os.path.basename(folder) == "nets" else name
    return name if name in COMMANDS_OF_SLIM else None


def _require_datasets(command: str) -> None:
    if _find("datasets.dataset_factory") is None:
        raise ConfigError(
            "slim's commands read their records with slim's package `datasets`, which is not here",
            where=command,
            allowed="research/slim of the TensorFlow models, which has datasets/ and these commands",
            fix="set OD_API to the models/research folder of a clone; or train with `od-qat train`, which "
            "reads the same records",
        )


def _run(target: str, script: bool, shown: str, arguments: Sequence[str], first: str) -> int:
    """Runs a script, or a module by its name, with the import path as it is; returns the exit status.

    Args:
      target: path or name.
      script: whether it is a path.
      shown: what the program sees as its own name.
      arguments: the program's arguments.
      first: the folder to take off the import path afterwards.
    """
    former = sys.argv
    sys.argv = [shown] + list(arguments)
    try:
        if script:
            runpy.run_path(target, run_name="__main__")
        else:
            runpy.run_module(target, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        return _status(end)
    except OdQatError:
        raise
    except Exception as error:  # noqa: BLE001  (the program's own, shown as Python would)
        traceback.print_exception(type(error), error, _of_the_program(error.__traceback__))
        return 1
    finally:
        sys.argv = former
        if first in sys.path:  # (the program may have removed it)
            sys.path.remove(first)
    return 0


def _status(end: SystemExit) -> int:
    """The exit status by Python's rule: None is 0, a number is itself, anything else is printed and is 1."""
    if end.code is None:
        return 0
    if isinstance(end.code, int):
        return end.code
    print(end.code, file=sys.stderr)
    return 1


def _of_the_program(trace):
    """A traceback without the frames of this file and of runpy."""
    own = (os.path.abspath(__file__), os.path.abspath(runpy.__file__))
    inner = trace
    while inner is not None:
        name = inner.tb_frame.f_code.co_filename
        if os.path.abspath(name) not in own and name != "<frozen runpy>":
            return inner
        inner = inner.tb_next
    return trace


def _require_python(target: str, script: bool) -> None:
    """Raises ConfigError, before anything is imported, for a target that cannot be a Python program."""
    extension = os.path.splitext(target)[1]
    if script and extension not in ("", ".py"):
        raise ConfigError(
            "this is no Python script", where=target, found="a {} file".format(extension), allowed=_ALLOWED
        )
    if not script and (os.sep in target or extension == ".py"):
        raise ConfigError(
            "there is no such module or script",
            where=target,
            found="a folder" if os.path.isdir(target) else "nothing",
            allowed=_ALLOWED,
            fix="correct the path; a relative one starts from {}".format(os.getcwd()),
        )


def _require_module(name: str) -> None:
    spec = _find(name)
    if spec is None:
        raise ConfigError(
            "there is no such module or script",
            where=name,
            allowed=_ALLOWED,
            fix="packages of the OD API leave it out; give its path in a clone, models/research/slim/..."
            if name in COMMANDS_OF_SLIM
            else "correct the name; modules are found in this folder and where Python finds packages",
        )
    if spec.submodule_search_locations is not None and _find(name + ".__main__") is None:
        raise ConfigError(
            "this package cannot be run", where=name, found="no __main__ in it", allowed=_ALLOWED
        )


def _find(name: str):
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def _name_in_od_api(path: str) -> Optional[str]:
    """`.../object_detection/legacy/train.py` -> `object_detection.legacy.train`; None for other scripts."""
    parts = os.path.splitext(os.path.abspath(path))[0].split(os.sep)
    if "object_detection" not in parts[:-1]:
        return None
    return ".".join(parts[len(parts) - 1 - parts[::-1].index("object_detection") :])


def _use_tree_of(path: str, module: str) -> None:
    """Makes a script of a models/research folder use that folder's OD API, unless OD_API is set."""
    root = _folder_above(path, module)
    if os.path.isdir(os.path.join(root, "slim", "nets")):
        os.environ.setdefault(locate.PATH_VARIABLE, root)


def _folder_above(path: str, module: str) -> str:
    """The folder on the import path below which a script is a module of that name."""
    root = os.path.abspath(path)
    for _ in module.split("."):
        root = os.path.dirname(root)
    return root


def _flag(arguments: Sequence[str], name: str) -> Optional[str]:
    """The value of --name=value or --name value, with one dash or two, as absl takes them."""
    for position, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if argument.startswith("-") and flag.lstrip("-") == name:
            return value if equals else next(iter(arguments[position + 1 :]), None)
    return None
