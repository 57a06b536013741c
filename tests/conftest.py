"""What all tests share. TensorFlow is not imported here: some tests check that it is not needed."""

import os
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if REPOSITORY not in sys.path:
    sys.path.insert(0, REPOSITORY)  # for an environment that od_qat is not installed in
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# A shell lets its background jobs ignore Ctrl-C, and they their children; the tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

from tests import tiers  # noqa: E402


def pytest_report_header(config):
    """Says what the run tests with, since skips depend on it."""
    from od_qat.cli import doctor

    found = [
        "{} {}".format(name, doctor.installed_version(name))
        for name in ("tensorflow", "tensorflow-cpu", "tf-object-detection-api")
        if doctor.installed_version(name)
    ]
    for variable in (
        "OD_API",
        "OD_QAT_BCCD",
        "OD_QAT_COCO_DETECTOR",
        "OD_QAT_SAMPLES",
        "OD_QAT_SAMPLES_TF2",
        "OD_QAT_CONTRIB_TESTS",
        "OD_QAT_GENERATIONS",
        "OD_QAT_TF1_PYTHON",
    ):
        if os.environ.get(variable):
            found.append("{}={}".format(variable, os.environ[variable]))
    return "od_qat, the {} tests, with: {}".format(tiers.TIER, ", ".join(found) or "no TensorFlow")


def pytest_collection_modifyitems(items):
    """Leaves out what the tier does not run."""
    tiers.leave_out(items)


def pytest_runtest_setup(item):
    """Leaves out what there is no time for."""
    tiers.skip_if_the_time_is_over(item)


@pytest.fixture
def path_as_it_was(monkeypatch):
    """The doctor puts what it looks at onto the path, where a later test would find it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(kilobytes, read_only=False) -> an empty file system in memory; skips where there is none."""
    mounted = []

    def mount(kilobytes, read_only=False):
        folder = str(tmp_path / "disk{}".format(len(mounted)))
        os.mkdir(folder)
        options = "size={}k{}".format(kilobytes, ",ro" if read_only else "")
        try:
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True, stderr=subprocess.PIPE
            )
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip("no file system can be mounted here: {}".format(error))
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", folder], check=True)


class Finished(NamedTuple):
    """A process that has ended: its status and what it printed."""

    status: int
    output: str
    errors: str


@pytest.fixture(scope="session")
def run_python():
    """run_python(arguments..., env={...}, timeout=seconds) -> Finished: this interpreter, with od_qat."""

    def run(*arguments, **options):
        environment = dict(os.environ)
        environment.update(options.get("env", {}))
        environment["PYTHONPATH"] = os.pathsep.join(
            filter(None, [REPOSITORY, environment.get("PYTHONPATH", "")])
        )
        done = subprocess.run(
            [sys.executable] + list(arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            env=environment,
            timeout=options.get("timeout", 120),
        )
        return Finished(
            done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
        )

    return run


@pytest.fixture(scope="session")
def tf():
    """tf.compat.v1, imported by the first test that asks for it."""
    from od_qat.compat import tf

    return tf


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory, tf):
    """A folder with small detectors, see test_scoring.build_models."""
    pytest.importorskip("ai_edge_litert")
    from tests.test_scoring import build_models

    folder = str(tmp_path_factory.mktemp("models"))
    build_models(tf, folder)
    return folder
