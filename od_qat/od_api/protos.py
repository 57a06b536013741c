"""Compiles the OD API's .proto files, since upstream's repository has no *_pb2.py.

The plugin compiles them in memory; `od-qat patch --compile_protos` writes the same files into the tree.
"""

import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from typing import Dict, List

from od_qat.errors import EnvironmentProblem
from od_qat.od_api import packages

FOLDER = "object_detection/protos"


def missing(root: str) -> List[str]:
    """The names of the *_pb2.py in FOLDER that a models/research folder lacks although it has the .proto."""
    folder = os.path.join(root, *FOLDER.split("/"))
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    compiled = [name[: -len(".proto")] + "_pb2.py" for name in names if name.endswith(".proto")]
    return [name for name in compiled if name not in names]


@functools.lru_cache(maxsize=None)
def compiled_in_memory(root: str) -> Dict[str, bytes]:
    """Does what `compile_missing` does, once in a process."""
    return compile_missing(root)


def compile_missing(root: str) -> Dict[str, bytes]:
    """Compiles the missing *_pb2.py, without writing anything into the tree.

    Returns:
      path below the root -> content.

    Raises:
      EnvironmentProblem: if grpcio-tools is not installed, or if protoc fails, with protoc's message.
    """
    names = missing(root)
    if not names:
        return {}
    require_protoc(root)
    with tempfile.TemporaryDirectory() as out:
        sources = [os.path.join(root, FOLDER, name[: -len("_pb2.py")] + ".proto") for name in names]
        # It runs in a process of its own: in one process, its protobuf and TensorFlow's would crash.
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "grpc_tools.protoc",
            "-I" + root,
            "--python_out=" + out,
        ]
        done = subprocess.run(command + sources, stderr=subprocess.PIPE)
        if done.returncode:
            raise EnvironmentProblem(
                "protoc failed",
                where=root,
                found="; ".join(done.stderr.decode("utf-8", "replace").split("\n")[:5])
                or "status {}".format(done.returncode),
                fix="correct the .proto files",
            )
        result = {}
        for name in names:
            with open(os.path.join(out, FOLDER, name), "rb") as stream:
                result["{}/{}".format(FOLDER, name)] = stream.read()
        return result


def require_protoc(root: str) -> None:
    """Raises EnvironmentProblem, with the tree's path, if grpcio-tools is not installed."""
    if not is_available():
        raise EnvironmentProblem(
            "the OD API's protos are not compiled, and grpcio-tools, which compiles them, is not installed",
            where=root,
            found="{} .proto files without *_pb2.py".format(len(missing(root))),
            fix="{}; or run protoc yourself: protoc {}/*.proto --python_out=. in this folder".format(
                how_to_get_protoc(), FOLDER
            ),
        )


def how_to_get_protoc() -> str:
    """The command that installs a grpcio-tools for the installed protobuf, whose version TensorFlow chose."""
    version = packages.installed_version("protobuf")
    return "pip install grpcio-tools{}".format(" protobuf=={}".format(version) if version else "")


def is_available() -> bool:
    """Whether grpcio-tools is installed."""
    return importlib.util.find_spec("grpc_tools") is not None
