"""What only a concat reads has the concat's range in an eval graph: it is rounded once, not twice."""

import numpy as np
import pytest

from od_qat.compat import tf
from od_qat.config import LayerRule
from od_qat.export import tflite_checks
from od_qat.rewrite import api
from tests.helpers import nets, sessions
from tests.helpers.small_road import SIZE, conv, converted, frozen, trained

pytestmark = pytest.mark.tf1

FAKE_QUANT = "FakeQuantWithMinMaxVars"


def _heads(net):
    """As those of an SSD, which the OD API flattens with the size of the batch."""
    heads = [conv(net, name) for name in ("one", "two")]
    return tf.concat([tf.reshape(head, [tf.shape(head)[0], -1, 8]) for head in heads], 1)


def _read_beside(net):
    one = conv(net, "one")
    return conv(tf.concat([one, conv(net, "two")], 3), "out"), conv(one, "three")


def _read_by_two(net):
    one, two, three = [conv(net, name) for name in ("one", "two", "three")]
    return tf.concat([one, two], 3), tf.concat([three, one], 3)


def _concat_of_a_concat(net):
    inner = tf.concat([conv(net, "one"), tf.nn.relu6(conv(net, "two"))], 3)
    return tf.concat([tf.nn.max_pool2d(inner, 2, 2, "SAME"), conv(net, "three")[:, ::2, ::2]], 3)


def _output_beside(net):
    one = conv(net, "one")
    tf.identity(tf.reshape(one, [-1]), name="boxes")
    return tf.concat([one, conv(net, "two")], 3)


def _twins(net):
    """Two ReLUs of one concat, which share a fake quant; the second ReLU leads to a layer."""
    both = tf.concat([conv(net, "one"), conv(net, "two")], 3)
    joined = tf.concat([tf.nn.relu(both), conv(net, "three")], 3)
    return conv(joined, "four"), conv(tf.nn.relu(both), "five")


FIRST = "one/concat_quant"
# What has another range than its own, and whose that is.
CASES = [
    (_heads, {}, {"one/act_quant": FIRST, "two/act_quant": FIRST}),
    (_heads, {"placement": "contrib"}, {}),
    (_heads, {"rules": (LayerRule("two/.*", activation_bits=4),)}, {"one/act_quant": FIRST}),
    (_read_beside, {}, {"two/act_quant": FIRST}),
    (_read_by_two, {}, {"two/act_quant": FIRST, "three/act_quant": "three/concat_quant"}),
    (
        _concat_of_a_concat,
        {},
        {name: "one/concat_quant_1" for name in ("one/act_quant", "two/act_quant", "three/act_quant", FIRST)},
    ),
    (_output_beside, {}, {"two/act_quant": FIRST}),
]


def _ranges(net, create, **options):
    """Name of each fake quant of an activation -> the name of the one whose range it has."""
    with tf.Graph().as_default() as graph:
        for output in tf.nest.flatten(net(tf.placeholder(tf.float32, [4, SIZE, SIZE, 8]))):
            tf.stop_gradient(output)
        report = create(graph, **options)
        found = {}
        for operation in graph.get_operations():
            name = operation.name.rpartition("/")[0]
            if operation.type == FAKE_QUANT and name in report.activations:
                found[name] = operation.inputs[2].op.name.rpartition("/")[0]
    assert set(found) == set(report.activations)
    return found


@pytest.mark.parametrize("net, options, expected", CASES)
def test_in_evaluation(net, options, expected):
    found = _ranges(net, api.create_eval_graph, **options)
    found = {name: read[: -len("/max")] for name, read in found.items()}
    assert {name: read for name, read in found.items() if read != name} == expected


def test_twins_keep_their_own():
    found = _ranges(_twins, api.create_eval_graph)
    (relu,) = [name for name in found if name.endswith("relu_quant")]
    assert found[relu] == relu + "/max"


def test_in_training_each_has_its_own():
    assert all(read.startswith(name) for name, read in _ranges(_heads, api.create_training_graph).items())


def test_heads_are_rounded_once():
    """The values are those of one fake quant on the float heads, which two fake quants do not give."""
    own, joined = (-0.7, 0.9), (-1.1, 1.3)

    def rounded(tensor, ends):
        return tf.quantization.fake_quant_with_min_max_vars(tensor, *ends)

    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [2, 32, 32, 3])
        boxes = tf.stop_gradient(nets.small_ssd(images, False)[0])
        api.create_eval_graph(graph)
        heads = [graph.get_tensor_by_name("Head_{}/box/BiasAdd:0".format(number)) for number in range(2)]
        flat = [tf.reshape(head, [2, -1, 4]) for head in heads]
        once = tf.concat([rounded(head, joined) for head in flat], 1)
        twice = tf.concat([rounded(rounded(head, own), joined) for head in flat], 1)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for variable in tf.global_variables():
                pattern, _, end = variable.op.name.rpartition("/box/")[2].partition("/")
                if pattern in ("act_quant", "concat_quant") and end in ("min", "max"):
                    ends = own if pattern == "act_quant" else joined
                    variable.load(ends[end == "max"], session)
            given = {images: np.random.RandomState(0).uniform(-1, 1, [2, 32, 32, 3])}
            found, once, twice = session.run([boxes, once, twice], given)
    np.testing.assert_array_equal(found, once)
    assert np.abs(twice - once).max() > 0.004


def test_the_tflite_has_no_op_that_requantizes(tmp_path):
    def net(images, training):
        heads = [conv(images, "one", spread=0.01), conv(images, "two")]
        return tf.concat([tf.reshape(head, [int(images.shape[0]), -1, 8]) for head in heads], 1)

    model = converted(frozen(net, trained(net, str(tmp_path))))
    ops = tflite_checks.inspect(model).ops
    assert ops["CONCATENATION"] == 1 and "QUANTIZE" not in ops
