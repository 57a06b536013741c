"""Finds which packages are installed, and which the OD API needs (requirements/ beside this file lists them).

Names and versions come from the packages' metadata. No package is imported, so a broken TensorFlow can be
examined too.
"""

import importlib.util
import os
import re
from typing import Iterator, List, NamedTuple, Optional

REQUIREMENTS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "requirements")

_TENSORFLOW_NAMES = (
    "tensorflow",
    "tensorflow-cpu",
    "tensorflow-gpu",
    "tensorflow-intel",
    "tf-nightly",
    "tensorflow-cpu-aws",
    "tensorflow-aarch64",
    "tensorflow-macos",
    "tensorflow-rocm",
    "intel-tensorflow",
    "nvidia-tensorflow",
)
# The modules of packages whose module has another name.
_MODULES = {
    "opencv-python-headless": "cv2",  # or another build of OpenCV
    "tf-object-detection-api": "object_detection",
}


class Installed(NamedTuple):
    """A package that is installed: its name and its version."""

    name: str
    version: str


class Pin(NamedTuple):
    """A line of a list in requirements/.

    Attributes:
      name: of the package.
      version: of the package; empty if the line allows several.
      line: as pip takes it, without the comment.
    """

    name: str
    version: str
    line: str

    @property
    def module(self) -> str:
        """The name of its module."""
        return _MODULES.get(self.name, self.name.replace("-", "_"))


def read_list(name: str) -> List[Pin]:
    """Reads the lines of a file in requirements/."""
    pins = []
    with open(os.path.join(REQUIREMENTS, name), encoding="utf-8") as stream:
        for text in stream:
            line = re.sub(r"(^|\s)#.*", "", text).strip()
            if line:
                match = re.match(r"([A-Za-z0-9._-]+)(?:==(\S+))?", line)
                pins.append(Pin(match.group(1), match.group(2) or "", line))
    return pins


def needed_and_missing() -> List[Pin]:
    """The packages that the OD API imports (needed.in) and that are not installed."""
    return [pin for pin in read_list("needed.in") if not is_importable(pin.module)]


def tf_keras_pin(tensorflow: str) -> Optional[Pin]:
    """The tf-keras for a version of TensorFlow; None if none is known."""
    return next((pin for pin in read_list("tf_keras.txt") if minor(pin.version) == minor(tensorflow)), None)


def minor(version: str) -> str:
    """The first two parts of a version: '2.21' for '2.21.0'."""
    return ".".join(version.split(".")[:2])


def installed_version(distribution: str) -> Optional[str]:
    """The version of an installed package; None if it is not installed."""
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7
        try:
            import importlib_metadata as metadata
        except ImportError:
            return _version_of_old(distribution)
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _version_of_old(distribution: str) -> Optional[str]:
    try:
        import pkg_resources
    except ImportError:
        return None
    try:
        return pkg_resources.get_distribution(distribution).version
    except pkg_resources.DistributionNotFound:
        return None


def is_importable(module: str) -> bool:
    """Whether a module can be found. It is not imported."""
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):
        return False


def tensorflows() -> List[Installed]:
    """The installed packages that contain TensorFlow: none, one or, by mistake, several."""
    if not is_importable("tensorflow"):
        return []
    named = [(name, installed_version(name)) for name in _TENSORFLOW_NAMES]
    return [Installed(name, version) for name, version in named if version] or list(_other_builds())


def _other_builds() -> Iterator[Installed]:
    """Packages of any other name that have a module tensorflow."""
    try:
        from importlib import metadata
    except ImportError:  # Python 3.7, whose TensorFlow 1.15 has one of the names
        return
    for distribution in metadata.distributions():
        if "tensorflow" in (distribution.read_text("top_level.txt") or "").split():
            yield Installed(distribution.metadata["Name"], distribution.version)
