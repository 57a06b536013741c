"""Lets libraries import packages only when they use them, in a process of the command line.

TensorFlow, tf-slim and the OD API import pandas, scikit-learn, pyplot and Keras for things that most commands
do not do, and that takes as long as the rest. A program of the user gets these packages as ever.
"""

import contextlib
import importlib
import importlib.machinery
import importlib.util
import sys
import types
from typing import Iterator, List

_allowed = False


def allow() -> None:
    """Lets `imported_later` do what it says, from now on in this process. Without it, it does nothing."""
    global _allowed
    _allowed = True


class _Later(types.ModuleType):
    """Stands for a module, which is imported when something in it is first used.

    Who imported the stand-in keeps it; it then has what the module has.
    """

    def __init__(self, name: str) -> None:
        super(_Later, self).__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)

    def __getattr__(self, name: str):
        if name == "__file__":  # (asked of all modules by who looks for the source of something)
            raise AttributeError(name)
        _remove(self)
        module = importlib.import_module(self.__name__)
        self.__dict__.update(vars(module))
        return getattr(module, name)


def _remove(stand_in: _Later) -> None:
    if sys.modules.get(stand_in.__name__) is stand_in:
        sys.modules.pop(stand_in.__name__, None)


@contextlib.contextmanager
def imported_later(*names: str) -> Iterator[None]:
    """Within it, `import NAME` gives a stand-in, which imports the module when it is first used.

    Packages that are not installed are reported as missing, as ever.

    Args:
      *names: of modules.
    """
    standing: List[_Later] = []
    for name in names if _allowed else ():
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
