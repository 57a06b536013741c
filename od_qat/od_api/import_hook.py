"""Applies source_changes.py to the OD API's modules while they are imported, and compiles its protos."""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
from types import CodeType
from typing import Optional

from od_qat.errors import EnvironmentProblem
from od_qat.late_imports import imported_later
from od_qat.od_api import old_protos, protos, source_changes
from od_qat.od_api.source_changes import SOURCE_CHANGES

_DRAWS = "object_detection.utils.visualization_utils"


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its changed source, without reading or writing its .pyc."""

    def get_code(self, fullname: str) -> CodeType:
        return compile(_changed(fullname, self.get_data(self.path)), self.path, "exec", dont_inherit=True)

    def exec_module(self, module) -> None:
        """Runs the module; the one that draws imports pyplot, a third of a second, only when it needs it."""
        if module.__name__ != _DRAWS:
            return super(_Loader, self).exec_module(module)
        import matplotlib

        matplotlib.use("Agg")  # (The module does so too. Pyplot is told of a change, so this comes first.)
        with imported_later("matplotlib.pyplot"):
            return super(_Loader, self).exec_module(module)


class _Compiler(importlib.abc.InspectLoader):
    """Makes a *_pb2 module of which the tree has only the .proto file."""

    def __init__(self, root: str) -> None:
        self._root = root

    def get_source(self, fullname: str) -> str:
        name = fullname.rpartition(".")[2] + ".py"
        return protos.compiled_in_memory(self._root)["{}/{}".format(protos.FOLDER, name)].decode("utf-8")


def _is_proto(fullname: str) -> bool:
    return fullname.startswith("object_detection.protos.") and fullname.endswith("_pb2")


def _changed(fullname: str, data: bytes) -> str:
    source = data.decode("utf-8").replace("\r\n", "\n")
    if _is_proto(fullname):
        return old_protos.modern(fullname, source)
    return source_changes.changed(source, SOURCE_CHANGES.get(fullname, ()))


class _Finder(importlib.abc.MetaPathFinder):
    """Loads the modules of SOURCE_CHANGES and the protos, and leaves every other module to Python."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in SOURCE_CHANGES and not _is_proto(fullname):
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None and _is_proto(fullname):
            return _spec_of_proto(fullname, path)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


def _spec_of_proto(fullname: str, folders) -> Optional[importlib.machinery.ModuleSpec]:
    source = fullname.rpartition(".")[2][: -len("_pb2")] + ".proto"
    for folder in folders or ():
        path = os.path.join(folder, source)
        if os.path.isfile(path):
            root = os.path.dirname(os.path.dirname(os.path.abspath(folder)))
            return importlib.util.spec_from_loader(fullname, _Compiler(root), origin=path, is_package=False)
    return None


_installed: Optional[_Finder] = None


def install() -> None:
    """Installs the hook. Further calls do nothing.

    Raises:
      EnvironmentProblem: if a module of SOURCE_CHANGES was imported before, without its changes.
    """
    global _installed
    if _installed is not None:
        return
    early = sorted(name for name in SOURCE_CHANGES if name in sys.modules and not _is_patched(name))
    if early:
        raise EnvironmentProblem(
            "the OD API was imported before od_qat.plugin",
            found=", ".join(early),
            fix="put `import od_qat.plugin` above every import of object_detection",
        )
    _installed = _Finder()
    sys.meta_path.insert(0, _installed)


def _is_patched(name: str) -> bool:
    """Whether the file of an imported module has its changes, from `od-qat patch`."""
    path = getattr(sys.modules[name], "__file__", None)
    if not path or not path.endswith(".py"):
        return False
    with open(path, "rb") as stream:
        data = stream.read()
    return _changed(name, data) == data.decode("utf-8").replace("\r\n", "\n")
