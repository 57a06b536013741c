"""Finds the OD API and puts it on the import path."""

import importlib.util
import os
import sys
from typing import Optional

from od_qat.errors import EnvironmentProblem
from od_qat.od_api import protos

# The environment variable with the path of the user's own clone: the `research` folder of tensorflow/models,
# which holds object_detection and slim.
PATH_VARIABLE = "OD_API"

WHICH_FOLDER = "pass --od_api=/path/to/models/research, or set {} to it".format(PATH_VARIABLE)
_HOW_TO_GET_IT = "od-qat install-od-api, or set {}=/path/to/models/research to use your own clone".format(
    PATH_VARIABLE
)


def require_folder(path: str) -> None:
    """Raises EnvironmentProblem if there is no folder of that name."""
    if not os.path.isdir(path):
        raise EnvironmentProblem(
            "no such folder",
            where=path,
            found="a file" if os.path.exists(path) else "nothing",
            allowed="a models/research folder",
            fix=WHICH_FOLDER,
        )


def research_folder(path: str) -> str:
    """The models/research folder: the path itself or, in a whole clone of `models`, its `research`."""
    inside = os.path.join(path, "research")
    return inside if _holds_it(inside) and not _holds_it(path) else path


def _holds_it(folder: str) -> bool:
    return os.path.isfile(os.path.join(folder, "object_detection", "__init__.py"))


def imported_from() -> str:
    """The folder of the `object_detection` that is imported: a models/research or a site-packages."""
    spec = importlib.util.find_spec("object_detection")
    return os.path.dirname(
        os.path.dirname(spec.origin or os.path.join(spec.submodule_search_locations[0], ""))
    )


def add_to_path(root: Optional[str] = None) -> None:
    """Makes `object_detection` and slim's packages importable.

    Args:
      root: a `models/research` folder, or a `models` folder. The default is the environment variable OD_API
        or, without that, the installed OD API.

    Raises:
      EnvironmentProblem: if no OD API is found, or if its protos are missing and cannot be compiled.
    """
    root = root or os.environ.get(PATH_VARIABLE)
    if root:
        require_folder(root)
        root = os.path.abspath(research_folder(root))
        slim = os.path.join(root, "slim")
        needed_files = [os.path.join(root, "object_detection", "__init__.py")]
        if importlib.util.find_spec("nets") is None:  # (some packages of the OD API have no slim)
            needed_files.append(os.path.join(slim, "nets"))
        for needed in needed_files:
            if not os.path.exists(needed):
                raise EnvironmentProblem(
                    "this is not a models/research folder",
                    where=root,
                    found="no {}".format(os.path.relpath(needed, root)),
                    allowed="a folder with object_detection/ and slim/nets/",
                    fix=WHICH_FOLDER,
                )
        for folder in (slim, root):
            # They go to the front, also of another tree in PYTHONPATH.
            sys.path[:] = [folder] + [other for other in sys.path if other != folder]
    for package in ("object_detection", "nets", "deployment"):
        if importlib.util.find_spec(package) is None:
            raise EnvironmentProblem(
                "the Object Detection API is not installed",
                found="no package {}".format(package),
                fix=_HOW_TO_GET_IT,
            )
    # (Protos that are not compiled are no error, since the import hook compiles them with grpcio-tools.)
    tree = imported_from()
    if "pipeline_pb2.py" in protos.missing(tree):
        protos.require_protoc(tree)
    elif importlib.util.find_spec("object_detection.protos.pipeline_pb2") is None:
        raise EnvironmentProblem(
            "the OD API has no protos",
            where=tree,
            found="neither {0}/pipeline_pb2.py nor {0}/pipeline.proto".format(protos.FOLDER),
            fix="restore the folder from its source",
        )
