"""Random small graphs of the supported patterns: structure, numerics and idempotence of both rewrites."""

import functools

import numpy as np
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from od_qat import compat

compat.enable_tf1_behaviour()

import tf_slim as slim  # noqa: E402

from od_qat.checkpoints import QUANT_VARIABLES  # noqa: E402
from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.errors import RewriteError  # noqa: E402
from od_qat.rewrite import api, policy  # noqa: E402
from tests.helpers import nets, sessions  # noqa: E402
from tests.zoo import build  # noqa: E402

pytestmark = pytest.mark.tf1

SIDE, BATCH = 16, 3
ACTIVATIONS = {
    "relu6": tf.nn.relu6,
    "relu": tf.nn.relu,
    "leaky": tf.nn.leaky_relu,
    "identity": tf.identity,
    "none": None,
}

# One stage of a network: what it is made of, and the choices that its kind leaves open.
STAGES = st.fixed_dictionaries(
    {
        "kind": st.sampled_from(
            ["conv", "depthwise", "separable", "atrous", "residual", "concat", "pool", "resize", "hard_swish"]
        ),
        "channels": st.sampled_from([2, 4, 6]),
        "kernel": st.sampled_from([1, 3]),
        "norm": st.sampled_from(["batch_norm", "batch_norm", "no_gamma", "bias", "nothing"]),
        "activation": st.sampled_from(sorted(ACTIVATIONS)),
        "swap": st.booleans(),  # the order of an add's or a concat's inputs
        "multiplier": st.sampled_from([1, 2]),
    }
)
NETWORKS = st.tuples(st.lists(STAGES, min_size=1, max_size=4), st.sampled_from(["conv", "matmul"]))
EXAMPLES = settings(
    max_examples=12,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
    print_blob=False,
)


def _layer(net, stage, scope, training, kind="conv", channels=None, activation=None):
    norm = {"is_training": training, "scale": stage["norm"] != "no_gamma", "decay": 0.9}
    has_norm = stage["norm"] in ("batch_norm", "no_gamma")
    common = {
        "activation_fn": ACTIVATIONS[activation or stage["activation"]],
        "normalizer_fn": slim.batch_norm if has_norm else None,
        "normalizer_params": norm if has_norm else None,
        "biases_initializer": None
        if stage["norm"] == "nothing"
        else tf.random_normal_initializer(stddev=0.1),
        "weights_initializer": tf.random_normal_initializer(stddev=0.4),
        "scope": scope,
    }
    channels = channels or stage["channels"]
    if kind == "depthwise":
        return slim.separable_conv2d(net, None, 3, depth_multiplier=stage["multiplier"], **common)
    if kind == "separable":
        return slim.separable_conv2d(net, channels, 3, depth_multiplier=stage["multiplier"], **common)
    return slim.conv2d(net, channels, stage["kernel"], rate=2 if kind == "atrous" else 1, **common)


def _stage(net, stage, scope, training):
    kind = stage["kind"]
    if kind in ("conv", "depthwise", "separable", "atrous"):
        return _layer(net, stage, scope, training, kind)
    if kind == "residual":
        channels = net.shape.as_list()[-1]
        with tf.variable_scope(scope):
            side = _layer(net, stage, "side", training, channels=channels, activation="identity")
            total = tf.add(side, net) if stage["swap"] else tf.add(net, side)
            activation = ACTIVATIONS[stage["activation"]]
            return activation(total) if activation else total
    if kind == "concat":
        with tf.variable_scope(scope):
            parts = [_layer(net, stage, "left", training), _layer(net, stage, "right", training)]
            return tf.concat(parts[::-1] if stage["swap"] else parts, 3)
    if kind == "pool":
        pool = tf.nn.max_pool if stage["swap"] else tf.nn.avg_pool
        return pool(net, [1, 2, 2, 1], [1, 2, 2, 1], "SAME", name=scope)
    if kind == "resize":
        size = [2 * side for side in net.shape.as_list()[1:3]]
        resize = tf.image.resize_nearest_neighbor if stage["swap"] else tf.image.resize_bilinear
        return resize(net, size, name=scope)
    net = _layer(net, stage, scope, training, activation="identity")
    with tf.name_scope(scope + "_hard_swish"):
        return net * tf.nn.relu6(net + 3.0) * (1.0 / 6.0)


def _build(network, training):
    """images, the network's output, and a loss; quantised twins are found behind `output`."""
    stages, head = network
    tf.set_random_seed(3)
    images = tf.placeholder(tf.float32, [BATCH, SIDE, SIDE, 3], name="images")
    net = images
    for number, stage in enumerate(stages):
        net = _stage(net, stage, "stage{}".format(number), training)
    if head == "matmul":
        net = slim.fully_connected(tf.reduce_mean(net, [1, 2]), 5, activation_fn=None, scope="head")
    else:
        net = slim.conv2d(net, 5, 1, activation_fn=None, normalizer_fn=None, scope="head")
    # (An op that no pattern knows, which reads the fake quant where there is one.)
    output = tf.stop_gradient(net, name="output")
    return images, output, tf.reduce_mean(tf.square(net - 0.3))


def _images(seed=0):
    return np.random.RandomState(seed).uniform(-1, 1, [BATCH, SIDE, SIDE, 3]).astype(np.float32)


def _weighted(ops):
    return [op for op in ops if op.type in policy.WEIGHTED]


def _reads_fake_quant(op):
    """Whether an op's weights are fake-quantised (and then perhaps divided by the scale again)."""
    source = op.inputs[1].op
    while source.type in ("RealDiv", "Reshape", "Merge"):
        source = source.inputs[0].op
    return source.type.startswith("FakeQuant")


@EXAMPLES
@given(NETWORKS)
def test_structure_and_idempotence(network):
    variables = {}
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            _, output, loss = _build(network, training)
            layers = len(_weighted(nets.ops_needed_for(loss)))
            rewrite = api.create_training_graph if training else api.create_eval_graph
            report = rewrite(graph)
            # Every layer runs once, and its weights are quantised or it stands in the report.
            target = loss if training else output
            used = _weighted(nets.ops_needed_for(target))
            assert len(used) == layers
            floats = [op.name for op in used if not _reads_fake_quant(op)]
            assert set(floats) <= set(report.stays_float), (floats, report.stays_float)
            quants = [op for op in graph.get_operations() if op.type.startswith("FakeQuantWithMinMaxVars")]
            assert len(quants) == len(report.weights) + len(report.activations)
            assert report.ops_after == len(graph.get_operations())
            # ReLUs in front of a fake quant are absorbed in training; in eval no batch norm is left.
            if training:
                absorbed = [op for op in nets.ops_needed_for(loss) if op.type in ("Relu", "Relu6")]
                assert not [op for op in absorbed if op.outputs[0].consumers()[0] in quants]
            else:
                assert not [op for op in nets.ops_needed_for(output) if op.type in policy.BATCH_NORM]
            before = graph.as_graph_def()
            with pytest.raises(RewriteError, match="already"):
                rewrite(graph)
            assert graph.as_graph_def() == before
            variables[training] = {v.op.name for v in graph.get_collection(QUANT_VARIABLES)}
    # What an eval graph restores, a training run has saved.
    assert variables[False] <= variables[True]


@pytest.mark.skipif(not IS_TF1, reason="tf.contrib.quantize, the oracle, runs on TensorFlow 1.15 only")
@EXAMPLES
@given(NETWORKS)
def test_contrib_placement_is_contribs(network):
    from tensorflow.contrib import quantize

    for training in (True, False):
        theirs = quantize.create_training_graph if training else quantize.create_eval_graph
        ours = api.create_training_graph if training else api.create_eval_graph
        found = []
        for rewrite in (theirs, functools.partial(ours, placement="contrib")):
            with tf.Graph().as_default() as graph:
                images, output, _ = _build(network, training)
                try:
                    rewrite(graph)
                except (ValueError, tf.errors.InvalidArgumentError):
                    assert rewrite is theirs, "od_qat fails where contrib does not"
                    event("contrib fails")
                    return
                quants = [
                    (op.name, op.get_attr("num_bits"), op.get_attr("narrow_range"))
                    for op in graph.get_operations()
                    if op.type.startswith("FakeQuant")
                ]
                value = None if training else build.run_with_values(output, images, _images())
                found.append((sorted(quants), value))
        assert found[0][0] == found[1][0]
        if not training:
            np.testing.assert_allclose(
                found[1][1], found[0][1], atol=1e-5 * max(np.ptp(found[0][1]), 1e-6), rtol=0
            )


def _values(graph_variables):
    values = {}
    for variable in graph_variables:
        name, shape = variable.op.name, variable.shape.as_list()
        random = np.random.RandomState(len(name) + sum(map(ord, name)))
        if name.endswith(("moving_variance", "gamma")):
            values[name] = random.uniform(0.5, 1.5, shape)
        elif name.endswith(("/max",)):
            values[name] = np.full(shape, 4.0)
        elif name.endswith(("/min",)):
            values[name] = np.full(shape, -4.0)
        else:
            values[name] = random.normal(0.0, 0.3, shape)
    return values


@EXAMPLES
@given(NETWORKS)
def test_folded_eval_graph_computes_the_float_graph_while_quantization_is_off(network):
    results = []
    for rewrite in (False, True):
        with tf.Graph().as_default() as graph:
            images, output, _ = _build(network, False)
            if rewrite:
                api.experimental_create_eval_graph(graph, quant_delay=1000)
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                values = _values(v for v in tf.global_variables() if v.dtype.base_dtype == tf.float32)
                named = [v for v in tf.global_variables() if v.op.name in values]
                sessions.assign(session, {v: values[v.op.name] for v in named})
                results.append(session.run(output, {images: _images()}))
    size = max(np.abs(results[0]).max(), 1e-3)
    np.testing.assert_allclose(results[0], results[1], atol=1e-4 * size)


@EXAMPLES
@given(NETWORKS)
def test_training_graph_computes_the_float_graph_before_the_delay(network):
    results = []
    for rewrite in (False, True):
        with tf.Graph().as_default() as graph:
            images, _, loss = _build(network, True)
            if rewrite:
                api.create_training_graph(graph, quant_delay=1000)
            variables = sorted(tf.trainable_variables(), key=lambda v: v.op.name)
            gradients = tf.gradients(loss, variables)
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                values = _values(variables)
                sessions.assign(session, {v: values[v.op.name] for v in variables})
                results.append(session.run([loss] + gradients, {images: _images()}))
    for one, other in zip(*results):
        size = max(np.abs(one).max(), 1e-4)
        np.testing.assert_allclose(one, other, atol=2e-3 * size, rtol=2e-3)


@EXAMPLES
@given(NETWORKS)
def test_quantised_training_stays_finite_and_ranges_hold_zero(network):
    with tf.Graph().as_default() as graph:
        images, _, loss = _build(network, True)
        api.create_training_graph(graph)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train = tf.train.GradientDescentOptimizer(0.01).minimize(loss)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for seed in range(3):
                _, value = session.run([train, loss], {images: _images(seed)})
                assert np.isfinite(value)
            ranges = session.run({v.op.name: v for v in graph.get_collection(QUANT_VARIABLES)})
    for name, value in ranges.items():
        assert np.all(np.isfinite(value)), name
        if name.endswith("_quant/min"):
            assert np.all(value <= 0), name
        if name.endswith("_quant/max"):
            assert np.all(value >= 0), name
