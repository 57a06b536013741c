"""Optional packages that libraries import, and that od_qat lets them import later."""

import os
import subprocess
import sys

import pytest

from od_qat.compat import IS_TF1
from od_qat.late_imports import imported_later


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A package `heavy_one` with a module `part`."""
    folder = tmp_path / "heavy_one"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "part.py").write_text("VALUE = 3\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "heavy_one.part"
    for name in ("heavy_one", "heavy_one.part"):
        sys.modules.pop(name, None)


def test_stand_in_imports_when_it_is_used(package):
    with imported_later(package):
        import heavy_one.part as stand_in
    assert package not in sys.modules
    assert stand_in.VALUE == 3
    assert sys.modules[package].VALUE == 3
    with pytest.raises(AttributeError):
        stand_in.NO_SUCH_VALUE  # noqa: B018


def test_stand_in_can_be_used_at_once(package):
    with imported_later(package):
        import heavy_one.part as stand_in

        assert stand_in.VALUE == 3
        assert sys.modules[package] is not stand_in
    assert sys.modules[package].VALUE == 3


def test_what_is_imported_already_stays(package):
    import heavy_one.part as original

    with imported_later(package):
        import heavy_one.part as again
    assert again is original and sys.modules[package] is original


def test_what_is_missing_stays_missing():
    with imported_later("no_such_package.part"), pytest.raises(ImportError):
        import no_such_package.part  # noqa: F401


_PROGRAM = """
import sys
import od_qat.plugin
import object_detection.utils.visualization_utils as drawing
early = [name for name in ("pandas", "sklearn", "matplotlib.pyplot") if name in sys.modules]
from tf_slim.losses import metric_learning
print(early, callable(drawing.plt.get_cmap), metric_learning.HAS_SKLEARN)
if metric_learning.HAS_SKLEARN:
    print(callable(metric_learning.metrics.v_measure_score))
"""


def test_commands_do_not_import_what_they_rarely_need():
    """The OD API's drawing and tf-slim's cluster loss still find what they need."""
    from importlib import util

    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    said = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=environment, stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    # (TensorFlow 1.15 itself imports pandas.)
    early = "['pandas']" if IS_TF1 and util.find_spec("pandas") is not None else "[]"
    if util.find_spec("sklearn") is None:
        assert said.split() == [early, "True", "False"]
    else:
        assert said.split() == [early, "True", "True", "True"]
