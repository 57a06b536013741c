"""One flow, one way: what docs/architecture.md says about imports, held against the source."""

import ast
import os

import pytest

pytestmark = pytest.mark.tf1

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PACKAGE = os.path.join(REPOSITORY, "od_qat")

# A module imports only what stands above it, wherever in the module the import is. A package's modules share
# its place; among themselves they only may not go in a circle.
ORDER = (
    "errors",
    "files",
    "quiet",
    "late_imports",
    "compat",
    "config",
    "graph",
    "checkpoints",
    "rewrite",
    "messages",
    "ranges",
    "training",
    "model_files",
    "contents",
    "targets",
    "analysis",
    "datasets",
    "od_api",
    "plugin",
    "plugin_tf2",
    "trainer",
    "export",
    "evaluator",
    "commands",  # what the OD API's scripts do around the drop-ins
    "tf2_drop_ins",
    "scoring",
    "classifiers",
    "report",
    "cli",
    "__main__",
)

# Package -> the only room that imports it. (slim's `datasets` and `scripts` count by their full path only.)
ROOM_OF = {"object_detection": "od_api", "nets": "classifiers", "preprocessing": "classifiers"}
# The modules that detectors alone need, and what may import both them and classifiers'.
DETECTORS = (
    "od_api",
    "datasets",
    "plugin_tf2",
    "trainer",
    "evaluator",
    "commands",
    "tf2_drop_ins",
    "export.center_net_tflite",
    "export.detections",
    "export.network",
    "export.serving",
    "export.ssd_network",
    "export.ssd_saved_model",
    "export.ssd_tflite",
    "export.suppression",
    "export.tflite_network",
    "scoring.class_ids",
    "scoring.intervals",
    "scoring.matching",
    "scoring.metrics",
    "scoring.model_score",
)
OF_BOTH = ("cli", "report")
VERSION_NAMES = ("TF_VERSION", "IS_TF1", "VERSION")


def _modules():
    """Dotted name below od_qat -> path, without od_qat/__init__.py, which binds its names lazily."""
    found = {}
    for folder, _, names in os.walk(PACKAGE):
        for name in names:
            if not name.endswith(".py"):
                continue
            path = os.path.join(folder, name)
            dotted = os.path.relpath(path, PACKAGE)[:-3].replace(os.sep, ".")
            if dotted.endswith("__init__") and dotted != "__init__":
                dotted = dotted[: -len(".__init__")]
            found[dotted] = path
    del found["__init__"]
    return found


MODULES = _modules()


def _tree(module):
    with open(MODULES[module], encoding="utf-8") as stream:
        return ast.parse(stream.read(), MODULES[module])


def _full_name(node, alias, module):
    """od_qat.x.y of `from od_qat.x import y`, relative imports resolved."""
    base = node.module or ""
    if node.level:
        parts = ("od_qat." + module).split(".")
        is_package = os.path.basename(MODULES[module]) == "__init__.py"
        parts = parts[: len(parts) - node.level + (1 if is_package else 0)]
        base = ".".join(parts + ([node.module] if node.module else []))
    return base + "." + alias.name


def imports_of(tree, module):
    """Every imported name with its line, those inside functions included."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield _full_name(node, alias, module), node.lineno
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "__import__"):
            if node.args and isinstance(getattr(node.args[0], "s", None), str):
                yield node.args[0].s, node.lineno


def own_module(name):
    """The module below od_qat that an imported name belongs to; None for other packages and od_qat itself."""
    parts = name.split(".")
    if parts[0] != "od_qat":
        return None
    for length in range(len(parts), 1, -1):
        dotted = ".".join(parts[1:length])
        if dotted in MODULES:
            return dotted
    return None


def rank(module):
    """Place in ORDER of a module, or of the package that it is in."""
    top = module.split(".")[0]
    assert top in ORDER, "od_qat.{} has no place in ORDER of tests/test_layering.py".format(module)
    return ORDER.index(top)


def wrong_imports(tree, module):
    """`line: name` of every import of something that stands below the module."""
    wrong = []
    for name, line in imports_of(tree, module):
        target = own_module(name)
        if target is not None and rank(target) > rank(module):
            wrong.append("{}: {}".format(line, name))
    return wrong


def version_branches(tree):
    """Lines that use compat's version names or compare a `__version__`."""
    lines = []
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or getattr(node, "id", None)
        if isinstance(node, (ast.Name, ast.Attribute)) and name in VERSION_NAMES:
            lines.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and any(alias.name in VERSION_NAMES for alias in node.names):
            lines.append(node.lineno)
        elif isinstance(node, ast.Compare):
            inside = [getattr(part, "attr", None) or getattr(part, "id", None) for part in ast.walk(node)]
            if "__version__" in inside:
                lines.append(node.lineno)
    return sorted(set(lines))


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_only_what_stands_above(module):
    assert wrong_imports(_tree(module), module) == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_a_package_of_upstreams_has_one_room(module):
    names = [name.split(".")[0] for name, _ in imports_of(_tree(module), module)]
    assert [name for name in names if ROOM_OF.get(name, module.split(".")[0]) != module.split(".")[0]] == []


def _is_below(module, places):
    return any(module == place or module.startswith(place + ".") for place in places)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_detectors_and_classifiers_import_nothing_of_each_other(module):
    other = DETECTORS if _is_below(module, ["classifiers"]) else ["classifiers"]
    if _is_below(module, OF_BOTH):
        return
    targets = {own_module(name) for name, _ in imports_of(_tree(module), module)} - {None}
    assert [target for target in sorted(targets) if _is_below(target, other)] == []


@pytest.mark.parametrize("module", sorted(MODULES))
def test_only_compat_branches_on_versions(module):
    if module != "compat":
        assert version_branches(_tree(module)) == []


def test_every_entry_of_the_order_is_a_module():
    assert [entry for entry in ORDER if entry not in MODULES] == []


def test_nothing_imports_itself_in_a_circle():
    edges = {}
    for module in MODULES:
        targets = {own_module(name) for name, _ in imports_of(_tree(module), module)}
        edges[module] = targets - {None, module}
    done, on_the_way = set(), []

    def visit(module):
        assert module not in on_the_way, " -> ".join(on_the_way[on_the_way.index(module) :] + [module])
        if module in done:
            return
        on_the_way.append(module)
        for target in sorted(edges[module]):
            # A package's __init__ gives its modules' names out; that they import each other is no circle.
            if not module.startswith(target + "."):
                visit(target)
        on_the_way.pop()
        done.add(module)

    for module in sorted(edges):
        visit(module)


def test_the_architecture_page_gives_the_same_order():
    with open(os.path.join(REPOSITORY, "docs", "architecture.md"), encoding="utf-8") as stream:
        text = stream.read()
    flow = next(block for block in text.split("\n\n") if "->" in block and "errors" in block)
    steps = [name.strip() for step in flow.split("->") for name in step.split(",")]
    assert steps == [entry for entry in ORDER if entry != "__main__"]


class TestTheChecksThemselves(object):
    """Each finds what it is for."""

    def test_an_import_from_below_is_found_even_in_a_function(self):
        tree = ast.parse("def f():\n    from od_qat import cli\n")
        assert wrong_imports(tree, "rewrite.plan") == ["2: od_qat.cli"]

    def test_a_relative_import_and_a_name_of_a_module_are_resolved(self):
        tree = ast.parse("from ..cli import main\nfrom od_qat.errors import OdQatError\n")
        assert wrong_imports(tree, "rewrite.plan") == ["1: od_qat.cli.main"]

    @pytest.mark.parametrize(
        "source",
        [
            "if tf.__version__ < '2': pass",
            "from od_qat.compat import IS_TF1",
            "x = 1 if compat.TF_VERSION >= (2, 0) else 2",
        ],
    )
    def test_a_version_branch_is_found(self, source):
        assert version_branches(ast.parse(source)) == [1]


LIGHT = "import sys, {}; print(sorted({{'tensorflow', 'object_detection', 'tf_slim'}} & set(sys.modules)))"


@pytest.mark.parametrize("module", ["od_qat", "od_qat.cli", "od_qat.cli.doctor"])
def test_importing_is_light(run_python, module):
    done = run_python("-c", LIGHT.format(module))
    assert (done.status, done.output.strip(), done.errors) == (0, "[]", "")


def test_public_names_are_there_and_unknown_ones_are_not():
    import od_qat
    from od_qat.rewrite import api

    for name in od_qat.__all__:
        assert getattr(od_qat, name) is not None
        assert name in dir(od_qat)
    assert od_qat.create_training_graph is api.create_training_graph
    with pytest.raises(AttributeError, match="no_such_name"):
        od_qat.no_such_name  # noqa: B018
