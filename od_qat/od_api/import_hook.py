"""Applies source_changes.py to the OD API's modules while they are imported."""

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from types import CodeType, ModuleType
from typing import Optional

from od_qat.errors import EnvironmentProblem
from od_qat.od_api.source_changes import REPLACED_ATTRIBUTES, SOURCE_CHANGES, WRAPPED_ATTRIBUTES

_CHANGED = frozenset(SOURCE_CHANGES) | frozenset(REPLACED_ATTRIBUTES) | frozenset(WRAPPED_ATTRIBUTES)


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles a module from its changed source, without reading or writing its .pyc."""

    def get_code(self, fullname: str) -> CodeType:
        source = self.get_data(self.path).decode("utf-8")
        for fragment, replacement in SOURCE_CHANGES.get(fullname, ()):
            source = source.replace(fragment, replacement)
        return compile(source, self.path, "exec", dont_inherit=True)

    def exec_module(self, module: ModuleType) -> None:
        super(_Loader, self).exec_module(module)
        for attribute, target in REPLACED_ATTRIBUTES.get(module.__name__, {}).items():
            setattr(module, attribute, _LateBound(target))
        for attribute, target in WRAPPED_ATTRIBUTES.get(module.__name__, {}).items():
            setattr(module, attribute, _LateBound(target, getattr(module, attribute)))


class _LateBound(object):
    """Calls `package.module:function`, importing it at the first call.

    Late, because our trainer itself imports the OD API; what it stands for is one call away.

    Args:
      target: that name.
      *first: arguments that come before those of the call.
    """

    def __init__(self, target: str, *first: object) -> None:
        self._target = target
        self._first = first
        self.__doc__ = "od_qat's {}".format(target)

    def __call__(self, *args, **kwargs):
        module, _, name = self._target.partition(":")
        return getattr(importlib.import_module(module), name)(*(self._first + args), **kwargs)


class _Finder(importlib.abc.MetaPathFinder):
    """Hands the modules of the tables to _Loader; every other module is left to Python."""

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in _CHANGED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path)
        if spec is None or not isinstance(spec.loader, importlib.machinery.SourceFileLoader):
            return None
        spec.loader = _Loader(fullname, spec.origin)
        return spec


_installed: Optional[_Finder] = None


def install() -> None:
    """Puts the hook in place, once.

    Raises:
      EnvironmentProblem: when a module of the tables has been imported already, unchanged.
    """
    global _installed
    if _installed is not None:
        return
    early = sorted(name for name in _CHANGED if name in sys.modules)
    if early:
        raise EnvironmentProblem(
            "the OD API was imported before od_qat.plugin",
            found=", ".join(early),
            fix="put `import od_qat.plugin` above every import of object_detection",
        )
    _installed = _Finder()
    sys.meta_path.insert(0, _installed)
