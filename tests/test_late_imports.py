"""Optional packages that libraries import, and that od_qat lets them import later."""

import importlib.util
import os
import subprocess
import sys

import pytest

from od_qat import late_imports
from od_qat.late_imports import imported_later

pytestmark = pytest.mark.tf1


@pytest.fixture(autouse=True)
def allowed(monkeypatch):
    monkeypatch.setattr(late_imports, "_allowed", True)


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


def _environment():
    return dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))


_PROGRAM = """
import sys
import od_qat.late_imports
od_qat.late_imports.allow()
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
    said = subprocess.run(
        [sys.executable, "-c", _PROGRAM], env=_environment(), stdout=subprocess.PIPE, check=True
    ).stdout.decode()
    if importlib.util.find_spec("sklearn") is None:
        assert said.split() == ["[]", "True", "False"]
    else:
        assert said.split() == ["[]", "True", "True", "True"]


def test_programs_of_the_user_import_as_ever(package, monkeypatch):
    monkeypatch.setattr(late_imports, "_allowed", False)
    with imported_later(package):
        import heavy_one.part as original
    assert sys.modules[package] is original


def test_stand_in_is_a_module_for_who_looks_at_all(package):
    """It has a spec, no file yet, and what is in the module once that is used."""
    with imported_later(package):
        import heavy_one.part as stand_in

        assert importlib.util.find_spec(package) is stand_in.__spec__
        assert not hasattr(stand_in, "__file__")
        assert sys.modules[package] is stand_in
    assert stand_in.VALUE == 3
    assert "VALUE" in dir(stand_in)


_WITHOUT_TF_SLIM = """
import importlib.util
find_spec = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "tf_slim" else find_spec(name, *rest)
import sys
sys.modules["tf_slim"] = None  # (an import of it then fails)
import od_qat.compat
od_qat.compat.enable_tf1_behaviour()
"""


def test_tf_slim_may_be_missing():
    """Graphs of other makers can be rewritten and frozen without it."""
    subprocess.run([sys.executable, "-c", _WITHOUT_TF_SLIM], check=True, env=_environment())
