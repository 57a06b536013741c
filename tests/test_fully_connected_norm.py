"""Fused batch norms behind fully connected layers: tf-slim's default there, between two Reshapes."""

import numpy as np
import pytest

from od_qat.compat import IS_TF1, tf
from od_qat.rewrite import api
from tests.helpers import nets, sessions

slim = nets.slim
pytestmark = pytest.mark.tf1

FAKE_QUANT = "FakeQuantWithMinMaxVars"
NAMES = [
    "net/block/act_quant",
    "net/block/third/conv_quant",
    "net/block/third/weights_quant",
    "net/first/act_quant",
    "net/first/weights_quant",
    "net/fourth/act_quant",
    "net/fourth/weights_quant",
    "net/second/act_quant",
    "net/second/weights_quant",
]
EITHER = pytest.mark.parametrize("placement", ["contrib", "full"])


def _build(training, updates=tf.GraphKeys.UPDATE_OPS, batch=None):
    """Two layers with an activation, one with a residual sum, one with nothing behind it.

    Returns:
      vectors, float32 [batch, 16], and what comes out, [batch, 8].
    """
    tf.set_random_seed(5)
    vectors = tf.placeholder(tf.float32, [batch, 16], name="vectors")
    norm = {"is_training": training, "scale": True, "decay": 0.5, "updates_collections": updates}
    with slim.arg_scope([slim.fully_connected], normalizer_fn=slim.batch_norm, normalizer_params=norm):
        net = slim.fully_connected(vectors, 16, activation_fn=tf.nn.relu6, scope="net/first")
        net = slim.fully_connected(net, 16, activation_fn=tf.nn.relu, scope="net/second")
        more = slim.fully_connected(net, 16, activation_fn=None, scope="net/block/third")
        net = tf.nn.relu6(tf.add(net, more, name="net/add"), name="net/Relu6")
        net = slim.fully_connected(net, 8, activation_fn=None, scope="net/fourth")
    return vectors, tf.stop_gradient(net, name="output")


def _vectors(seed=1):
    return np.random.RandomState(seed).normal(size=[32, 16]).astype(np.float32)


def _run(training, rewrite, fetch_quants=False, **options):
    """Names of the fake quants, values by name, the averages after one step, and what `rewrite` returned."""
    with tf.Graph().as_default() as graph:
        vectors, output = _build(training, **options)
        report = rewrite(graph)
        quants = sorted((op for op in graph.get_operations() if op.type == FAKE_QUANT), key=lambda o: o.name)
        updates = graph.get_collection(tf.GraphKeys.UPDATE_OPS)
        variables = sorted(tf.trainable_variables() + tf.moving_average_variables(), key=lambda v: v.op.name)
        variables += [v for v in tf.global_variables() if "/moving_" in v.op.name and v not in variables]
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            given = {}
            for number, variable in enumerate(sorted(variables, key=lambda v: v.op.name)):
                random = np.random.RandomState(number)
                value = random.normal(size=variable.shape.as_list()) * 0.4
                positive = variable.op.name.endswith(("gamma", "moving_variance"))
                given[variable] = np.abs(value) + 0.5 if positive else value
            sessions.assign(session, given)
            fetches = {"output": graph.get_tensor_by_name("output:0")}
            if fetch_quants:
                fetches.update((op.name, op.outputs[0]) for op in quants)
            values, _ = session.run([fetches, updates], {vectors: _vectors()})
            averages = session.run([v for v in variables if "/moving_" in v.op.name])
            averages = np.concatenate(averages)
    return [op.name for op in quants], values, averages, report


@EITHER
@pytest.mark.parametrize("batch", [None, 32])
@pytest.mark.parametrize("training", [True, False])
def test_they_are_folded(training, batch, placement):
    rewrite = api.create_training_graph if training else api.create_eval_graph
    names, _, _, report = _run(training, lambda graph: rewrite(graph, placement=placement), batch=batch)
    assert report.folded == 4 and report.stays_float == {}
    assert names == [name + "/" + FAKE_QUANT for name in NAMES]
    patterns = {layer.op: layer.pattern for layer in report.layers}
    norm = next(part for part in patterns["net/first/MatMul"].split(" -> ") if "BatchNorm" in part)
    assert patterns["net/first/MatMul"] == "MatMul -> {} -> Relu6".format(norm)
    assert patterns["net/block/third/MatMul"].startswith("MatMul -> " + norm)


@EITHER
def test_folded_it_computes_what_it_computed(placement):
    def rewrite(graph):
        return api.experimental_create_eval_graph(graph, quant_delay=1000, placement=placement)

    _, floating, _, _ = _run(False, lambda graph: None)
    _, folded, _, _ = _run(False, rewrite)
    np.testing.assert_allclose(folded["output"], floating["output"], rtol=1e-4, atol=1e-5)


@EITHER
@pytest.mark.parametrize("updates", [tf.GraphKeys.UPDATE_OPS, None])
def test_a_delayed_training_graph_computes_what_it_computed(updates, placement):
    if updates is None and placement == "contrib":
        pytest.skip("contrib does not find those")

    def rewrite(graph):
        return api.experimental_create_training_graph(graph, quant_delay=1000, placement=placement)

    _, floating, averages, _ = _run(True, lambda graph: None, updates=updates)
    _, rewritten, same_averages, report = _run(True, rewrite, updates=updates)
    assert report.folded == 4
    np.testing.assert_allclose(rewritten["output"], floating["output"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(same_averages, averages, rtol=1e-5, atol=1e-6)


def test_once_frozen_it_uses_the_averages():
    def rewrite(graph):
        return api.experimental_create_training_graph(graph, quant_delay=1, freeze_bn_delay=1)

    _, evaluated, before, _ = _run(False, lambda graph: None)
    _, frozen, after, _ = _run(True, rewrite)
    np.testing.assert_array_equal(before, after)
    _, trained, _, _ = _run(True, lambda graph: None)
    error = np.abs(frozen["output"] - evaluated["output"]).mean()
    assert error < 0.1 * np.abs(trained["output"] - evaluated["output"]).mean()


@pytest.mark.parametrize("training", [True, False])
def test_channels_that_are_no_columns_are_not_folded(training):
    """A generator's first layer: 16 columns are 2 x 2 pixels of 4 channels each."""
    with tf.Graph().as_default() as graph:
        vectors = tf.placeholder(tf.float32, [2, 8])
        net = slim.fully_connected(vectors, 16, activation_fn=None, biases_initializer=None)
        net = slim.batch_norm(tf.reshape(net, [-1, 2, 2, 4]), is_training=training, fused=True)
        net = tf.reshape(net, [-1, 16])
        slim.fully_connected(net, 3, activation_fn=None)
        report = (api.create_training_graph if training else api.create_eval_graph)(graph)
    assert report.folded == 0 and len(report.weights) == 2


@pytest.mark.skipif(not IS_TF1, reason="tf.contrib.quantize, the oracle, runs on TensorFlow 1.15 only")
@pytest.mark.parametrize("batch", [None, 32])
def test_contrib_placement_is_contribs(batch):
    from tensorflow.contrib import quantize

    training = _run(True, quantize.create_training_graph, batch=batch)[0]
    ours = _run(True, lambda graph: api.create_training_graph(graph, placement="contrib"), batch=batch)[0]
    assert ours == training
    names, theirs, _, _ = _run(False, quantize.create_eval_graph, fetch_quants=True, batch=batch)
    ours = _run(
        False, lambda graph: api.create_eval_graph(graph, placement="contrib"), fetch_quants=True, batch=batch
    )
    assert ours[0] == names and len(names) == 9
    for name, value in theirs.items():
        np.testing.assert_allclose(ours[1][name], value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("training", [True, False])
def test_behind_an_identity_names_are_those_of_contribs_folded_layer(training):
    """contrib quantises the layer that it has folded away too, and that one first."""

    def names(rewrite):
        with tf.Graph().as_default() as graph:
            net = slim.fully_connected(
                tf.zeros([2, 4]), 4, activation_fn=None, biases_initializer=None, scope="one"
            )
            slim.batch_norm(tf.identity(net), is_training=training, activation_fn=tf.nn.relu6, scope="norm")
            rewrite(graph)
            return {op.name for op in graph.get_operations() if op.type == FAKE_QUANT}

    rewrite = api.create_training_graph if training else api.create_eval_graph
    ours = names(lambda graph: rewrite(graph, placement="contrib"))
    assert ours == {"one/{}_quant_1/{}".format(name, FAKE_QUANT) for name in ("weights", "act")}
    assert names(rewrite) == {name.replace("_1", "") for name in ours}
    if IS_TF1:
        from tensorflow.contrib import quantize

        rewrite = quantize.create_training_graph if training else quantize.create_eval_graph
        assert ours < names(rewrite)
