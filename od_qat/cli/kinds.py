"""Finds the commands for a config or a model: those of detectors, or those of classifiers."""

from types import ModuleType
from typing import Dict

from od_qat.errors import ConfigError


def commands_for(config_path: str) -> ModuleType:
    """od_qat.commands for a detector's config, od_qat.classifiers.commands for a classifier's."""
    from od_qat.classifiers import config

    if config.is_classifiers(config_path):
        from od_qat.classifiers import commands
    else:
        from od_qat import commands
    return commands


def is_of_classifiers(commands: ModuleType) -> bool:
    """Whether what :func:`commands_for` has returned is for classifiers."""
    return commands.__name__.startswith("od_qat.classifiers.")


def refuse(flags: Dict[str, object], what: str) -> None:
    """Refuses flags that make no sense for the kind.

    Args:
      flags: name -> value; false or None for those that were not given.
      what: why, in words.

    Raises:
      ConfigError: with the name of the first.
    """
    for name, value in flags.items():
        if value not in (None, False):
            raise ConfigError(what, where=name, found=str(value), allowed="absent", fix="leave it out")
