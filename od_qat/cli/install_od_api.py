"""`od-qat install-od-api`: installs the OD API into the environment that runs it."""

import argparse
import signal
from typing import Any

from od_qat.cli import flags

NAME = "install-od-api"
HELP = "install the OD API into this environment"
DESCRIPTION = """\
Installs the OD API into the environment that od-qat runs in. It installs tf-object-detection-api, lvis and
the tf-keras of your TensorFlow by hash, without the dependencies that they name, and adds the packages that
they really import. It replaces no package that is installed, TensorFlow least of all.

Example:

  od-qat install-od-api

Install TensorFlow first. In a new environment, `pip install '.[tf]'` in od_qat's folder installs both. Where
TensorFlow is installed, on a notebook service for example, `pip install .` leaves it alone. If you have a
clone of models/research, set OD_API to it, and the OD API is left out. A second run does what is left to do.
Next: od-qat doctor."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds its flags."""
    flags.switch(parser, "--check", "only say what would be done")
    flags.switch(
        parser,
        "--replace",
        "replace tf-object-detection-api, lvis and tf-keras if their versions are not the pinned ones",
    )


def handle(arguments: argparse.Namespace) -> int:
    """Runs it; returns the exit status."""
    # With this, SIGTERM removes the temporary files, as Ctrl-C does.
    former = signal.signal(signal.SIGTERM, _end)
    try:
        _carry_out(arguments)
    finally:
        signal.signal(signal.SIGTERM, former)
    return 0


def _carry_out(arguments: argparse.Namespace) -> None:
    from od_qat.od_api import install

    plan = install.make_plan(arguments.replace)
    _say("TensorFlow {0.version} ({0.name}) is installed and stays as it is".format(plan.tensorflow))
    if plan.here:
        _say("Installed already: {}".format(", ".join(plan.here)))
    for note in plan.notes:
        _say(note)
    wanted = plan.needed + plan.pins
    if not wanted:
        _say("Nothing to do. Next: od-qat doctor")
    elif arguments.check:
        _say("Would install: {}".format(", ".join(pin.line.split(" --hash")[0] for pin in wanted)))
    else:
        folder = install.install(plan, _say)
        _say("Done: {} packages into {}. Next: od-qat doctor".format(len(wanted), folder))


def _say(text: str) -> None:
    print(text, flush=True)


def _end(unused_number: int, unused_frame: Any) -> None:
    raise SystemExit(143)
