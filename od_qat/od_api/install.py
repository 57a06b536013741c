"""Brings the OD API, and what it needs, into the environment that runs this. Nothing there is replaced.

pip cannot do that in one go: the OD API, lvis and tf-keras each name dependencies that would put a second
TensorFlow or another OpenCV on top of those that are there. So these three come by hash and without
dependencies. They go into a folder aside first, and are renamed into place when they are whole. What they
really import comes by pip as usual, with everything that is installed as a constraint.
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
# Without these an OD API is not whole.
_NEEDED_FILES = (
    "object_detection/protos/pipeline_pb2.py",
    "object_detection/legacy/trainer.py",
    "nets/mobilenet/mobilenet_v2.py",
    "deployment/model_deploy.py",
)
# Folders of slim that detectors do not need. Their names are so common that others have packages of the same.
_MAY_BE_LEFT_OUT = ("datasets", "preprocessing")
_ASIDE = ".od_qat-"
# What pip says when no index answers.
_OFFLINE = re.compile(
    r"NewConnectionError|Max retries|Temporary failure in name resolution|ProxyError|ConnectTimeout|"
    r"connection broken by"
)


class Plan(NamedTuple):
    """What is to be done.

    Attributes:
      tensorflow: name and version of the TensorFlow that is here.
      here: what is here already and stays, each with its version, as text.
      notes: what the user should know of that.
      needed: what pip installs as usual, beside what is here.
      pins: what comes by hash and without dependencies.
      replaced: packages, installed by pip, that a pin takes the place of.
    """

    tensorflow: packages.Installed
    here: List[str]
    notes: List[str]
    needed: List[Pin]
    pins: List[Pin]
    replaced: List[str]


def make_plan(replace: bool = False) -> Plan:
    """Looks at what is here.

    Args:
      replace: other versions than the pinned ones, of the packages that come by hash, are replaced.

    Raises:
      EnvironmentProblem: without a TensorFlow, with one that no tf-keras is known for, and with an OD API
        that is not whole.
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
            "there is no TensorFlow, which has to come first: tf-keras is chosen by its version",
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
    """Notes that a package stays, after a look at whether it will do."""
    plan.here.append("{} {}".format(pin.name, version) if version else pin.module)
    if pin.name == _OD_API:
        folder = locate.imported_from()
        missing = _first_missing(folder)
        if missing:
            raise EnvironmentProblem(
                "the OD API that is here is not whole",
                where=folder,
                found="no {}".format(missing),
                fix="pip uninstall {}, or remove its folders there, then run this again".format(_OD_API),
            )
        if version is None:
            plan.notes.append("The OD API in {} is another's; it stays.".format(folder))
    elif version and packages.minor(version) != packages.minor(pin.version):
        plan.notes.append(
            "{} {} is not the version for this environment ({}); it stays, --replace replaces it.".format(
                pin.name, version, pin.version
            )
        )


def _first_missing(folder: str) -> Optional[str]:
    """The first file that an OD API has to have and does not. Slim may be elsewhere on the path."""
    for path in _NEEDED_FILES:
        # (protos.py compiles what is not.)
        alternatives = (path, path.replace("_pb2.py", ".proto"))
        package = path.split("/")[0]
        if any(os.path.exists(os.path.join(folder, alternative)) for alternative in alternatives):
            continue
        if package == "object_detection" or _place_of(package) is None:
            return path
    return None


def _place_of(package: str) -> Optional[str]:
    """Where a package is found, None without one. (A folder without Python files is none.)"""
    spec = importlib.util.find_spec(package)
    return spec.origin if spec is not None else None


def install(plan: Plan, say: Callable[[str], None]) -> str:
    """Carries a plan out.

    Args:
      plan: of make_plan.
      say: gets a line before each step that takes time.

    Returns:
      the folder that packages are in.

    Raises:
      EnvironmentProblem: where pip fails, with the place of its output. Nothing has then changed, but for
        what pip may have installed of `plan.needed`.
    """
    _require_pip()
    destination = _destination()
    for name in os.listdir(destination):
        if name.startswith(_ASIDE):  # of a run that was killed
            shutil.rmtree(os.path.join(destination, name), ignore_errors=True)
    if plan.needed:
        names = ", ".join(pin.name for pin in plan.needed)
        say("Installing {} and what they need; what is here keeps its version".format(names))
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
    """Where pip would install to: the environment's packages or, if those cannot be written, the user's."""
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
    """name==version of everything that is installed."""
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
                "the OD API that pip brought is not whole",
                found="no {}".format(_first_missing(whole)),
                fix="run this again; report it if it stays so",
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
    """Removes folders from what is to be installed where a package of that name is here already.

    Raises:
      EnvironmentProblem: where it is one that detectors need.
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
                fix="remove that one, or make an environment of its own for od_qat",
            )
        say("Left out: slim's {0}, as another package {0} is here; detectors do not need it".format(name))
        shutil.rmtree(os.path.join(whole, name))
        for record in _records(whole):
            _remove_from_record(record, name)


def _records(whole: str) -> List[str]:
    folders = [name for name in os.listdir(whole) if name.endswith(".dist-info")]
    return [os.path.join(whole, name, "RECORD") for name in folders]


def _remove_from_record(record: str, package: str) -> None:
    """Takes a package's files out of a RECORD: pip uninstall would remove those of the other package."""
    with open(record, newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.reader(stream) if not row[0].startswith(package + "/")]
    with open(record, "w", newline="", encoding="utf-8") as stream:
        csv.writer(stream, lineterminator="\n").writerows(rows)


def _move_all(whole: str, destination: str) -> None:
    """Renames everything into place, or nothing. A package is known to pip by what is renamed last."""
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
        environment["PIP_USER"] = "0"  # pip takes no folder where its settings say --user
    streams.setdefault("stdout", subprocess.PIPE)
    return subprocess.run([sys.executable, "-m", "pip"] + arguments, env=environment, **streams)


def _run_pip(arguments: List[str], wanted: List[Pin]) -> None:
    """Runs pip; its output goes into a log, which stays where pip fails."""
    handle, log = tempfile.mkstemp(prefix="od-qat-install-", suffix=".log")
    try:
        with os.fdopen(handle, "wb") as stream:
            status = _pip(arguments, stdout=stream, stderr=subprocess.STDOUT).returncode
    except BaseException:  # Ctrl-C, too
        os.unlink(log)
        raise
    if status == 0:
        os.unlink(log)
        return
    with open(log, encoding="utf-8", errors="replace") as stream:
        text = stream.read()
    # (After "ERROR: Exception:" comes a traceback, whose last line says what it is.)
    said = [line for line in text.splitlines() if re.match(r"ERROR: (?!Exception:)", line)]
    found = (said or text.splitlines()[-1:] or ["nothing"])[0].replace("ERROR: ", "")
    what, fix = "pip failed", "remove the cause and run this again; it goes on from here"
    if os.strerror(errno.ENOSPC) in text:
        what, found, fix = "the disk is full", os.strerror(errno.ENOSPC), "free space and run this again"
    elif _OFFLINE.search(text):
        what, fix = "pip reached no package index", "check the network, or pip's settings (pip config list)"
    raise EnvironmentProblem(
        "{}, asked for {}".format(what, ", ".join(pin.name for pin in wanted)),
        found=quoted(found),
        fix="{}. All that pip said: {}".format(fix, log),
    )
