"""Runs one of tf.contrib.quantize's own test files against od_qat (contrib_tests.yaml says which, and how).

    python -m tests.helpers.contrib_runner instead|beside FOLDER/quantize_test.py

instead: with od_qat's functions in contrib's place. beside: with contrib's own, on TensorFlow 1.15, and
od_qat's on a copy of each graph, which has to get the same fake quants and foldings.

The last line is JSON, {test: {"passed": number of its cases, "failed": {case: error}}}. A case is one turn of
the loops over parameters that most of contrib's tests are.
"""

import functools
import json
import os
import re
import sys
import types
import unittest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.errors import RewriteError  # noqa: E402
from od_qat.rewrite import api  # noqa: E402

FUNCTIONS = (
    "create_training_graph",
    "create_eval_graph",
    "experimental_create_training_graph",
    "experimental_create_eval_graph",
)
# On TensorFlow 2: where what the files import has gone, and what has become an error.
_MOVED = (
    (r"from tensorflow\.contrib\.quantize\.python import (\w+)", r"\1 = None"),
    (r"from tensorflow\.contrib\.layers\.python\.layers import layers", "from tf_slim.layers import layers"),
    (
        r"from tensorflow\.contrib\.framework\.python\.ops import variables",
        "from tf_slim.ops import variables",
    ),
    (r"(height|width) / 2", r"\1 // 2"),  # (a size has to be an integer)
    (r"depth_multiplier=1\.0", "depth_multiplier=1"),
)
# contrib's tests of folding alone run one step; its fake quants then do nothing yet.
_LATE = 100


# In contrib's place.


def _quantize(
    graph,
    is_training,
    weight_bits=8,
    activation_bits=8,
    symmetric=False,
    ema_decay=0.999,
    quant_delay=None,
    vars_collection=None,
    scope=None,
):
    """For contrib's internal Quantize: od_qat folds in the same call."""
    options = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "symmetric": symmetric,
        "quant_delay": quant_delay,
        "scope": scope,
        "placement": "contrib",
    }
    if is_training:
        api.experimental_create_training_graph(graph, ema_decay=ema_decay, **options)
    else:
        api.experimental_create_eval_graph(graph, **options)


def _fold_alone(graph, is_training, freeze_batch_norm_delay=None):
    """For contrib's internal FoldBatchNorms where no Quantize follows."""
    assert is_training
    api.experimental_create_training_graph(
        graph, quant_delay=_LATE, freeze_bn_delay=freeze_batch_norm_delay, placement="contrib"
    )


def _fold_in_quantize(graph, is_training, freeze_batch_norm_delay=None):
    """For contrib's internal FoldBatchNorms where a Quantize follows, which does both."""


def _instead(module):
    fold = _fold_alone if module == "fold_batch_norms_test" else _fold_in_quantize
    functions = {name: functools.partial(getattr(api, name), placement="contrib") for name in FUNCTIONS}
    return {
        "quantize_graph": types.SimpleNamespace(**functions),
        "quantize": types.SimpleNamespace(Quantize=_quantize),
        "fold_batch_norms": types.SimpleNamespace(FoldBatchNorms=fold),
    }


# Beside contrib.


class _Beside(object):
    """contrib's functions; whenever they have changed a graph, od_qat's have to do the same to a copy."""

    def __init__(self, module) -> None:
        from tensorflow.contrib.quantize.python import fold_batch_norms, quantize, quantize_graph

        self._theirs = {"fold": fold_batch_norms.FoldBatchNorms, "quantize": quantize.Quantize}
        self._folds_alone = module == "fold_batch_norms_test"
        self._copies = {}  # graph -> its copy from before it was folded
        functions = {
            name: functools.partial(self._rewrite, getattr(quantize_graph, name), getattr(api, name))
            for name in FUNCTIONS
        }
        self.stand_ins = {
            "quantize_graph": types.SimpleNamespace(**functions),
            "quantize": types.SimpleNamespace(Quantize=self._quantize),
            "fold_batch_norms": types.SimpleNamespace(FoldBatchNorms=self._fold),
        }

    def _rewrite(self, theirs, ours, input_graph=None, **options):
        graph = input_graph if input_graph is not None else tf.get_default_graph()
        copy = _copy(graph)
        theirs(graph, **options)
        _compare(graph, copy, functools.partial(ours, copy, placement="contrib", **options))

    def _fold(self, graph, **options):
        copy = _copy(graph)
        self._theirs["fold"](graph, **options)
        if self._folds_alone:
            _compare(graph, copy, functools.partial(_fold_alone, copy, **options), folds_alone=True)
        else:
            self._copies[graph] = copy

    def _quantize(self, graph, is_training, **options):
        copy = self._copies.pop(graph, None) or _copy(graph)
        self._theirs["quantize"](graph, is_training, **options)
        _compare(graph, copy, functools.partial(_quantize, copy, is_training, **options))


def _copy(graph):
    meta_graph = tf.train.export_meta_graph(
        graph=graph, collection_list=list(graph.get_all_collection_keys())
    )
    with tf.Graph().as_default() as copy:
        tf.train.import_meta_graph(meta_graph)
    return copy


def _compare(theirs, copy, rewrite, folds_alone=False):
    if any(op.type.startswith("FakeQuant") and "_quant" in op.name for op in copy.get_operations()):
        return  # (contrib's tests rewrite a graph again, to see that this does nothing; od_qat refuses)
    try:
        rewrite()
    except RewriteError as error:
        if "nothing to quantize" not in str(error):
            raise
    found = [_inserted(graph, folds_alone) for graph in (theirs, copy)]
    if found[0] != found[1]:
        raise AssertionError(
            "contrib {}, od_qat {}".format(*[sorted(one - other) for one, other in (found, found[::-1])])
        )


def _inserted(graph, folds_alone):
    names = {op.name for op in graph.get_operations() if re.search("(^|/)mul_fold$", op.name)}
    if not folds_alone:
        names |= {op.name for op in graph.get_operations() if op.type.startswith("FakeQuant")}
    return names


# Running a file.


def _load(path, stand_ins):
    """The module of a test file; its loops make a subtest of each turn."""
    name = os.path.splitext(os.path.basename(path))[0]
    with open(path, encoding="utf-8") as stream:
        source = stream.read()
    for old, new in () if IS_TF1 else _MOVED:
        source = re.sub(old, new, source)
    module = types.ModuleType(name)
    exec(compile(source, path, "exec"), module.__dict__)
    for called, stand_in in stand_ins(name).items():
        if hasattr(module, called):
            setattr(module, called, stand_in)
    for case in vars(module).values():
        if isinstance(case, type) and issubclass(case, unittest.TestCase):
            for method in [name for name in vars(case) if re.match("_Run.*Test", name)]:
                setattr(case, method, _in_subtests(getattr(case, method)))
    return module


def _in_subtests(loop):
    @functools.wraps(loop)
    def run(self, test, *rest):
        numbers = iter(range(1, 1000))

        def one(*arguments, **keywords):
            with self.subTest(case=next(numbers)):
                test(*arguments, **keywords)

        loop(self, one, *rest)

    return run


class _Result(unittest.TestResult):
    def __init__(self):
        super(_Result, self).__init__()
        self.found = {}

    def _of(self, test):
        name = ".".join(test.id().split(".")[-2:])
        return self.found.setdefault(name, {"passed": 0, "failed": {}})

    def addSubTest(self, test, subtest, error):
        if error is None:
            self._of(test)["passed"] += 1
        else:
            case = "{}".format(subtest.params["case"])
            self._of(test)["failed"][case] = _text(error)

    def addSuccess(self, test):
        if not self._of(test)["passed"]:
            self._of(test)["passed"] = 1

    def addError(self, test, error):
        self._of(test)["failed"]["all"] = _text(error)

    addFailure = addError


def _text(error):
    return "{}: {}".format(error[0].__name__, " ".join(str(error[1]).split()))[:400]


def main(way, path):
    stand_ins = {"instead": _instead, "beside": lambda module: _Beside(module).stand_ins}[way]
    result = _Result()
    unittest.defaultTestLoader.loadTestsFromModule(_load(path, stand_ins)).run(result)
    print(json.dumps(result.found))


if __name__ == "__main__":
    main(*sys.argv[1:])
