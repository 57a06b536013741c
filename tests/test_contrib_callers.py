"""Arguments that the four functions refuse: a line that contrib's callers catch, and the graph as it was."""

import inspect

import numpy as np
import pytest

from od_qat.compat import tf
from od_qat.errors import ConfigError, RewriteError
from od_qat.rewrite import api
from tests.helpers import nets

slim = nets.slim
pytestmark = pytest.mark.tf1

FUNCTIONS = (
    api.create_training_graph,
    api.create_eval_graph,
    api.experimental_create_training_graph,
    api.experimental_create_eval_graph,
)
STEPS = [-1, 1.5, 2000.0, "5", True, float("nan"), float("inf"), 2**63, 10**30]
BITS = [0, 1, 9, 16, -8, 8.0, "8", None, True]
WRONG = {
    "input_graph": ["graph", 5, tf.Graph, tf.GraphDef()],
    "weight_bits": BITS,
    "activation_bits": BITS,
    "symmetric": [None, "no", 1],
    "quant_delay": STEPS,
    "freeze_bn_delay": STEPS,
    "scope": [3, b"net", ["net"], "nothing", "net/Con", "net.*", "/"],
    "placement": [None, "Full", 3],
    "per_channel": [None, 1, "no"],
    "rules": [None, 5, "net", [None], {"net": False}],
    "ema_decay": [0, 1, -1, None, "0.9", float("nan"), True],
}
CASES = [(function, name) for function in FUNCTIONS for name in inspect.signature(function).parameters]


def _build():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [2, 8, 8, 3])
        slim.conv2d(images, 4, 3, normalizer_fn=slim.batch_norm, scope="net/Conv")
    return graph


@pytest.fixture(scope="module")
def graph():
    return _build()


@pytest.mark.parametrize(
    "function, name", CASES, ids=["{}-{}".format(function.__name__, name) for function, name in CASES]
)
def test_a_wrong_argument(function, name, graph):
    before = graph.as_graph_def()
    for value in WRONG[name]:
        options = dict({"input_graph": graph}, **{name: value})
        with pytest.raises(ValueError) as raised:  # contrib's callers may catch that
            function(**options)
        assert isinstance(raised.value, (ConfigError, RewriteError)), value
        text = str(raised.value)
        assert "\n" not in text and name in text and len(text) < 400, text
        assert raised.value.allowed or raised.value.fix, text
    assert graph.as_graph_def() == before


@pytest.mark.parametrize("quant_delay, freeze_bn_delay", [(100, 50), (1, 0), (100, 99)])
def test_norms_that_would_freeze_too_early(quant_delay, freeze_bn_delay, graph):
    with pytest.raises(ConfigError, match="freeze_bn_delay.*at least quant_delay"):
        api.experimental_create_training_graph(
            graph, quant_delay=quant_delay, freeze_bn_delay=freeze_bn_delay
        )


@pytest.mark.parametrize(
    "options",
    [
        {"quant_delay": None},
        {"quant_delay": np.int64(3), "freeze_bn_delay": np.int32(3)},
        {"freeze_bn_delay": 0},
        {"scope": "net/"},
        {"scope": ""},
        {"rules": []},
    ],
    ids=str,
)
def test_what_is_as_good(options):
    assert api.experimental_create_training_graph(_build(), **options).folded == 1
