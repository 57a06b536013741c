"""Keeps a demo's folder to one run: another would take its files for its own."""

import json
import os
from typing import Mapping

from od_qat import files
from od_qat.errors import ConfigError

_FILE = "demo_settings.json"


def require(work_dir: str, settings: Mapping[str, object]) -> None:
    """Refuses a folder that holds a run with other settings.

    Raises:
      ConfigError: with the setting that differs.
    """
    path = os.path.join(work_dir, _FILE)
    if not os.path.exists(path):
        return
    with open(path) as stream:
        former = json.load(stream)
    for name, value in sorted(settings.items()):
        if former.get(name) != value:
            raise ConfigError(
                "this folder holds another run of the demo",
                where=work_dir,
                found="{} {!r}".format(name, former.get(name)),
                allowed=repr(value),
                fix="choose another (--work_dir, make demo WORK=...), or remove this one",
            )


def keep(work_dir: str, settings: Mapping[str, object]) -> None:
    """Notes the settings of the run that the folder now holds."""
    files.write_json(os.path.join(work_dir, _FILE), dict(settings))
