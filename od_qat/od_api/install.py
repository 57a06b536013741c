"""Installs the OD API and the packages that it needs into the environment that runs od_qat.

No installed package is replaced unless the user asks for it. pip alone cannot do that: the OD API, lvis and
tf-keras each name dependencies that would put a second TensorFlow or another OpenCV on top of the installed
ones. So these three are installed by hash and without dependencies, first into a temporary folder, from which
they are renamed into place when they are complete. The packages that they really import are installed by pip
as usual, with every installed version as a constraint.
"""

import csv
import errno
import importlib.util
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
from typing import Callable, List, NamedTuple, Optional, Tuple

from od_qat.errors import EnvironmentProblem, quoted
from od_qat.files import cannot_write
from od_qat.od_api import locate, packages
from od_qat.od_api.packages import Pin

_OD_API = "tf-object-detection-api"
# An OD API without one of these files is incomplete.
_NEEDED_FILES = (
    "object_detection/protos/pipeline_pb2.py",
    "object_detection/legacy/trainer.py",
    "nets/mobilenet/mobilenet_v2.py",
    "deployment/model_deploy.py",
)
# Folders of slim that detectors do not need. Their names are common, so other packages may have them too.
_MAY_BE_LEFT_OUT = ("datasets", "preprocessing")
_ASIDE = ".od_qat-"
# What pip writes if no index answers.
_OFFLINE = re.compile(
    r"NewConnectionError|Max retries|Temporary failure in name resolution|ProxyError|ConnectTimeout|"
    r"connection broken by"
)


class Plan(NamedTuple):
    """What to install.

    Attributes:
      tensorflow: name and version of the installed TensorFlow.
      here: texts that name what is installed and stays, with its version.
      notes: texts for the user about `here`.
      needed: packages that pip installs as usual.
      pins: packages that are installed by hash and without dependencies.
      replaced: names of packages, installed by pip, that a pin replaces.
    """

    tensorflow: packages.Installed
    here: List[str]
    notes: List[str]
    needed: List[Pin]
    pins: List[Pin]
    replaced: List[str]


def make_plan(replace: bool = False) -> Plan:
    """Decides what to install, by what is installed.

    Args:
      replace: whether to replace the packages that come by hash if their versions are not the pinned ones.

    Raises:
      EnvironmentProblem: if there is no TensorFlow, if no tf-keras is known for it, or if the installed OD
        API is incomplete.
    """
    tensorflow = _tensorflow()
    plan = Plan(tensorflow, [], [], packages.needed_and_missing(), [], [])
    for pin in _wanted(tensorflow.version):
        own = os.environ.get(locate.PATH_VARIABLE)
        if pin.name == _OD_API and own:
            locate.require_folder(own)
            plan.here.append("an OD API of your own ({})".format(own))
            continue
        version = packages.installed_version(pin.name)
        is_here = packages.is_importable(pin.module)
        if is_here and not (replace and version not in (None, pin.version)):
            _keep(plan, pin, version)
            continue
        if version is not None:
            plan.replaced.append(pin.name)
        plan.pins.append(pin)
    return plan


def _tensorflow() -> packages.Installed:
    found = packages.tensorflows()
    if not found:
        raise EnvironmentProblem(
            "TensorFlow is not installed; it has to come first, as tf-keras is chosen by its version",
            where=sys.executable,
            fix="pip install tensorflow (or tensorflow-cpu, or any other build), then run this again",
        )
    return found[0]


def _wanted(tensorflow: str) -> List[Pin]:
    """The pins for a version of TensorFlow."""
    wanted = packages.read_list("pinned.txt")
    known = packages.read_list("tf_keras.txt")
    pin = packages.tf_keras_pin(tensorflow)
    if pin is not None:
        return wanted + [pin]
    if _numbers(tensorflow) < _numbers(known[0].version):
        return wanted  # its tf.keras is Keras 2 itself
    if not packages.is_importable(known[0].module):
        raise EnvironmentProblem(
            "no tf-keras is known for this TensorFlow",
            found="TensorFlow {}".format(tensorflow),
            allowed="up to {}".format(packages.minor(known[-1].version)),
            fix="pip install --no-deps 'tf-keras=={}.*', then run this again".format(
                packages.minor(tensorflow)
            ),
        )
    return wanted


def _numbers(version: str) -> Tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:2])


def _keep(plan: Plan, pin: Pin, version: Optional[str]) -> None:
    """Notes that a package stays. Raises EnvironmentProblem for an OD API that is incomplete."""
    plan.here.append("{} {}".format(pin.name, version) if version else pin.module)
    if pin.name == _OD_API:
        folder = locate.imported_from()
        missing = _first_missing(folder)
        if missing:
            raise EnvironmentProblem(
                "the installed OD API is incomplete",
                where=folder,
                found="no {}".format(missing),
                fix="pip uninstall {}, or remove its folders there, then run this again".format(_OD_API),
            )
        if version is None:
            plan.notes.append(
                "The OD API in {} is not tf-object-detection-api; it stays as it is.".format(folder)
            )
    elif version and packages.minor(version) != packages.minor(pin.version):
        plan.notes.append(
            "{} {} is not the version for this environment ({}); it stays unless you pass --replace.".format(
                pin.name, version, pin.version
            )
        )


def _first_missing(folder: str) -> Optional[str]:
    """The first needed file that an OD API lacks, or None. Slim may be elsewhere on the path."""
    for path in _NEEDED_FILES:
        # (A .proto file is enough, as protos.py can compile it.)
        alternatives = (path, path.replace("_pb2.py", ".proto"))
        package = path.split("/")[0]
        if any(os.path.exists(os.path.join(folder, alternative)) for alternative in alternatives):
            continue
        if package == "object_detection" or _place_of(package) is None:
            return path
    return None


def _place_of(package: str) -> Optional[str]:
    """The file of a package that is installed, or None. (A folder without Python files is no package.)"""
    spec = importlib.util.find_spec(package)
    return spec.origin if spec is not None else None


def install(plan: Plan, say: Callable[[str], None]) -> str:
    """Carries out a plan.

    Args:
      plan: from make_plan.
      say: is called with a line of text before each step that takes time.

    Returns:
      the folder that the packages are in.

    Raises:
      EnvironmentProblem: if pip is missing or may not install into this Python, if pip fails (with the path
        of its log), or if another package has the name of a folder that detectors need. By then pip may have
        installed packages of `plan.needed` or removed those of `plan.replaced`; nothing else has changed.
      OdQatError: if the folder cannot be written.
    """
    _require_pip()
    destination = _destination()
    for name in os.listdir(destination):
        if name.startswith(_ASIDE):  # left by a run that was killed
            shutil.rmtree(os.path.join(destination, name), ignore_errors=True)
    if plan.needed:
        names = ", ".join(pin.name for pin in plan.needed)
        say("Installing {} and what they need; installed packages keep their versions".format(names))
        _install_beside(plan.needed)
    if plan.pins:
        names = ", ".join("{} {}".format(pin.name, pin.version) for pin in plan.pins)
        say("Installing {} by hash, without dependencies".format(names))
        _install_aside(plan, destination, say)
    importlib.invalidate_caches()
    return destination


def _require_pip() -> None:
    if not packages.is_importable("pip"):
        raise EnvironmentProblem(
            "this environment has no pip",
            where=sys.executable,
            fix="python -m ensurepip (in an environment of uv: uv pip install pip)",
        )


def _destination() -> str:
    """The folder that pip would install into: the environment's or, if that cannot be written, the user's."""
    marker = os.path.join(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED")
    if sys.prefix == sys.base_prefix and os.path.exists(marker):
        raise EnvironmentProblem(
            "this Python is the system's, which pip must not install into",
            where=sys.executable,
            fix="make an environment (python3 -m venv ENV), and install od_qat and TensorFlow there",
        )
    folder = sysconfig.get_path("purelib")
    if not os.access(folder, os.W_OK) and site.ENABLE_USER_SITE:
        folder = site.getusersitepackages()
    try:
        os.makedirs(folder, exist_ok=True)
        os.rmdir(tempfile.mkdtemp(dir=folder, prefix=_ASIDE))
    except OSError as error:
        raise cannot_write(folder, error) from error
    return folder


def _install_beside(needed: List[Pin]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        constraints = os.path.join(folder, "here.txt")
        with open(constraints, "w", encoding="utf-8") as stream:
            stream.write("\n".join(_installed_now()) + "\n")
        _run_pip(["install", "--constraint", constraints] + [pin.line for pin in needed], needed)


def _installed_now() -> List[str]:
    """A line, name==version, for each installed package."""
    listing = _pip(["list", "--format=freeze"], stderr=subprocess.DEVNULL)
    lines = listing.stdout.decode("utf-8", "replace").splitlines()
    return [line for line in lines if re.match(r"[A-Za-z0-9._-]+==[0-9A-Za-z.!+_-]+$", line)]


def _install_aside(plan: Plan, destination: str, say: Callable[[str], None]) -> None:
    aside = tempfile.mkdtemp(dir=destination, prefix=_ASIDE)
    try:
        lines = os.path.join(aside, "pins.txt")
        with open(lines, "w", encoding="utf-8") as stream:
            stream.write("\n".join(pin.line for pin in plan.pins) + "\n")
        whole = os.path.join(aside, "packages")
        _run_pip(
            ["install", "--no-deps", "--require-hashes", "--target", whole, "--requirement", lines], plan.pins
        )
        if any(pin.name == _OD_API for pin in plan.pins) and _first_missing(whole):
            raise EnvironmentProblem(
                "the OD API that pip installed is incomplete",
                found="no {}".format(_first_missing(whole)),
                fix="run this again; report it if it happens again",
            )
        if plan.replaced:
            _run_pip(["uninstall", "--yes"] + plan.replaced, plan.pins)
            importlib.invalidate_caches()
        _leave_out_others_names(whole, say)
        _move_all(whole, destination)
    except OSError as error:
        raise cannot_write(destination, error) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _leave_out_others_names(whole: str, say: Callable[[str], None]) -> None:
    """Leaves out the folders whose name an installed package has.

    Raises:
      EnvironmentProblem: if detectors need such a folder.
    """
    for name in sorted(os.listdir(whole)):
        place = None if name.endswith(".dist-info") else _place_of(name)
        if place is None:
            continue
        if name not in _MAY_BE_LEFT_OUT:
            raise EnvironmentProblem(
                "a package of the same name is in the way",
                where=place,
                found="a package {}, which the OD API has too".format(name),
                fix="remove that package, or make a separate environment for od_qat",
            )
        say(
            "Left out: slim's {0}, as another package {0} is installed; detectors do not need it".format(name)
        )
        shutil.rmtree(os.path.join(whole, name))
        for record in _records(whole):
            _remove_from_record(record, name)


def _records(whole: str) -> List[str]:
    folders = [name for name in os.listdir(whole) if name.endswith(".dist-info")]
    return [os.path.join(whole, name, "RECORD") for name in folders]


def _remove_from_record(record: str, package: str) -> None:
    """Removes a package's files from a RECORD, by which pip uninstall would delete the other package's."""
    with open(record, newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.reader(stream) if not row[0].startswith(package + "/")]
    with open(record, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def _move_all(whole: str, destination: str) -> None:
    """Renames everything into place, or nothing. The .dist-info folders, which pip looks for, come last."""
    names = sorted(os.listdir(whole), key=lambda name: (name.endswith(".dist-info"), name))
    moved = []
    try:
        for name in names:
            os.rename(os.path.join(whole, name), os.path.join(destination, name))
            moved.append(name)
    except BaseException:
        for name in moved:
            os.rename(os.path.join(destination, name), os.path.join(whole, name))
        raise


def _pip(arguments: List[str], **streams) -> "subprocess.CompletedProcess[bytes]":
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1")
    if "--target" in arguments:
        environment["PIP_USER"] = "0"  # pip refuses --target if its settings say --user
    streams.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([sys.executable, "-m", "pip"] + arguments, env=environment, **streams)


def _run_pip(arguments: List[str], wanted: List[Pin]) -> None:
    """Runs pip. Its output goes into a log file, which is kept if pip fails."""
    handle, log = tempfile.mkstemp(prefix="od-qat-install-", suffix=".log")
    try:
        with os.fdopen(handle, "wb") as stream:
            status = _pip(arguments, stdout=stream, stderr=subprocess.STDOUT).returncode
    except BaseException:  # (Ctrl-C, too)
        os.unlink(log)
        raise
    if status == 0:
        os.unlink(log)
        return
    with open(log, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    # (After "ERROR: Exception:" comes a traceback, whose last line names the exception.)
    said = [line for line in text.splitlines() if re.match(r"ERROR: (?!Exception:)", line)]
    found = (said or text.splitlines()[-1:] or ["nothing"])[0].replace("ERROR: ", "")
    what, fix = "pip failed", "remove the cause and run this again; it continues from here"
    if os.strerror(errno.ENOSPC) in text:
        what, found, fix = "the disk is full", os.strerror(errno.ENOSPC), "free space and run this again"
    elif _OFFLINE.search(text):
        what, fix = "pip reached no package index", "check the network, or pip's settings (pip config list)"
    raise EnvironmentProblem(
        "{}, asked for {}".format(what, ", ".join(pin.name for pin in wanted)),
        found=quoted(found),
        fix="{}. All of pip's output: {}".format(fix, log),
    )
