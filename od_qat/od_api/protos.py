"""Compiles the OD API's .proto files where nobody has: upstream's repository has no *_pb2.py.

The plugin compiles in memory; `od-qat patch --compile_protos` writes the same into the tree.
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
    """The *_pb2.py (below FOLDER) that a models/research folder has a .proto for, but not compiled."""
    folder = os.path.join(root, *FOLDER.split("/"))
    names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
    compiled = [name[: -len(".proto")] + "_pb2.py" for name in names if name.endswith(".proto")]
    return [name for name in compiled if name not in names]


@functools.lru_cache(maxsize=None)
def compiled_in_memory(root: str) -> Dict[str, bytes]:
    """`compile_missing`, once in a process."""
    return compile_missing(root)


def compile_missing(root: str) -> Dict[str, bytes]:
    """Compiles what is missing, and writes nothing into the tree.

    Returns:
      path below the root -> content.

    Raises:
      EnvironmentProblem: without grpcio-tools, or where protoc fails, with its message.
    """
    names = missing(root)
    if not names:
        return {}
    require_protoc(root)
    with tempfile.TemporaryDirectory() as out:
        sources = [os.path.join(root, FOLDER, name[: -len("_pb2.py")] + ".proto") for name in names]
        # In a process of its own: beside TensorFlow in one, the protobuf in each would end both.
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
    """Raises EnvironmentProblem, which names the tree, where grpcio-tools is not installed."""
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
    """The command for a grpcio-tools that fits the protobuf that is here, which TensorFlow chose."""
    version = packages.installed_version("protobuf")
    return "pip install grpcio-tools{}".format(" protobuf=={}".format(version) if version else "")


def is_available() -> bool:
    """Whether grpcio-tools is installed."""
    return importlib.util.find_spec("grpc_tools") is not None
