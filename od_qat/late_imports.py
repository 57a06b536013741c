"""Lets libraries import optional packages only when they use them."""

import contextlib
import importlib
import importlib.util
import sys
import types
from typing import Iterator, List


class _Later(types.ModuleType):
    """Stands for a module, which is imported when something in it is first used."""

    def __getattr__(self, name: str):
        _remove(self)
        return getattr(importlib.import_module(self.__name__), name)


def _remove(stand_in: _Later) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        del sys.modules[stand_in.__name__]


@contextlib.contextmanager
def imported_later(*names: str) -> Iterator[None]:
    """Within it, `import NAME` gives a stand-in, which imports the module when it is first used.

    It is for libraries that import much for little: tf-slim imports scikit-learn for one loss, the OD API
    matplotlib for pictures that it rarely draws. Modules that are not installed are reported as missing, as
    ever.

    Args:
      *names: of modules that are imported by name as a whole (`import a.b`, not `from a.b import c`).
    """
    standing: List[_Later] = []
    for name in names:
        if name not in sys.modules and _is_installed(name.partition(".")[0]):
            standing.append(_Later(name))
            sys.modules[name] = standing[-1]
    try:
        yield
    finally:
        for one in standing:
            _remove(one)


def _is_installed(package: str) -> bool:
    return package in sys.modules or importlib.util.find_spec(package) is not None
