"""Batch norms that are arithmetic (`fused=False`): recognised by their shape, folded as fused ones are."""

import numpy as np
import pytest

from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import IS_TF1, tf
from od_qat.rewrite import api
from tests.helpers import nets, sessions

slim = nets.slim
pytestmark = pytest.mark.tf1

ORACLE = pytest.mark.skipif(
    not IS_TF1, reason="tf.contrib.quantize, the oracle, runs on TensorFlow 1.15 only"
)
# gamma, beta
PARAMETERS = [
    (True, True),
    pytest.param(False, True, marks=pytest.mark.long),
    pytest.param(True, False, marks=pytest.mark.long),
    pytest.param(False, False, marks=pytest.mark.long_on_tf1),
]
FAKE_QUANT = "FakeQuantWithMinMaxVars"


def _build(training, scale=True, center=True, fused=False):
    """Convolutions, depthwise ones and a fully connected layer.

    Returns:
      images, three outputs and a loss.
    """
    tf.set_random_seed(7)
    images = tf.placeholder(tf.float32, [None, 32, 32, 3], name="images")
    boxes, scores = nets.small_ssd(
        images, training, batch_norm_scale=scale, epsilon=0.01, fused=fused, center=center
    )
    vector = tf.reduce_mean(images, [1, 2])
    norm = {"is_training": training, "scale": scale, "center": center, "decay": 0.9, "fused": False}
    for name in ("fc1", "fc2"):
        vector = slim.fully_connected(
            vector,
            8,
            activation_fn=tf.nn.relu6,
            normalizer_fn=slim.batch_norm,
            normalizer_params=norm,
            scope="top/" + name,
        )
    outputs = [boxes, scores, vector]
    loss = sum(tf.reduce_mean(tf.square(output - 0.3)) for output in outputs)
    return images, outputs, loss


LAYERS, BATCH_NORMS = nets.LAYERS + 2, nets.BATCH_NORMS + 2


def _images(seed=0):
    return np.random.RandomState(seed).uniform(-1, 1, [4, 32, 32, 3]).astype(np.float32)


def _set(session, variables):
    """Values that depend on the variables' order by name only."""
    values = {}
    for number, variable in enumerate(sorted(variables, key=lambda v: v.op.name)):
        random, shape = np.random.RandomState(number), variable.shape.as_list()
        if variable.op.name.endswith(("gamma", "moving_variance")):
            value = random.uniform(0.5, 1.5, shape)
        elif variable.op.name.endswith("weights"):
            value = random.normal(0, 0.4, shape)
        else:
            value = random.uniform(-0.3, 0.3, shape)
        values[variable] = value.astype(np.float32)
    sessions.assign(session, values)


def _network_variables():
    return [v for v in tf.global_variables() if "quant" not in v.op.name]


@pytest.mark.parametrize("scale, center", PARAMETERS)
@pytest.mark.parametrize("training", [True, False])
def test_every_layer_is_folded(training, scale, center):
    with tf.Graph().as_default() as graph:
        _build(training, scale, center)
        report = (api.create_training_graph if training else api.create_eval_graph)(graph)
    assert report.folded == BATCH_NORMS
    assert len(report.weights) == LAYERS
    assert report.stays_float == {}
    layers = {layer.op: layer for layer in report.layers}
    assert layers["top/fc1/MatMul"].pattern == "MatMul -> batch norm (unfused) -> Relu6"
    assert layers["top/fc1/MatMul"].activations == ("top/fc1/act_quant",)
    depthwise = layers["net/block/depthwise/depthwise"]
    assert depthwise.pattern == "DepthwiseConv2dNative -> batch norm (unfused) -> Relu6"


def test_fake_quants_are_those_of_fused_batch_norms():
    for rewrite, training in ((api.create_training_graph, True), (api.create_eval_graph, False)):
        names = []
        for fused in (True, False):
            with tf.Graph().as_default() as graph:
                _build(training, fused=fused)
                report = rewrite(graph)
                variables = sorted(v.op.name for v in tf.get_collection(QUANT_VARIABLES))
            names.append((sorted(report.weights), sorted(report.activations), variables))
        assert names[0] == names[1]


def _loss_and_gradients(training, rewrite, scale=True, center=True):
    with tf.Graph().as_default() as graph:
        images, _, loss = _build(training, scale, center)
        if rewrite:
            report = rewrite(graph)
            assert report.folded == BATCH_NORMS
        variables = sorted(tf.trainable_variables(), key=lambda v: v.op.name)
        gradients = tf.gradients(loss, variables)
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            _set(session, _network_variables())
            values = session.run([loss] + gradients, {images: _images()})
            session.run(updates, {images: _images()})
            moving = sorted((v.op.name, v) for v in tf.global_variables() if "moving_" in v.op.name)
            statistics = session.run([v for _, v in moving])
    names = ["loss"] + [v.op.name for v in variables] + [name for name, _ in moving]
    return dict(zip(names, values + statistics))


def _assert_equal(found, expected, rtol=1e-4, atol=1e-6):
    assert list(found) == list(expected)
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("scale, center", PARAMETERS)
@pytest.mark.parametrize("training", [True, False])
def test_without_fake_quants_loss_gradients_and_statistics_are_the_float_graphs(training, scale, center):
    floating = _loss_and_gradients(training, None, scale, center)
    delayed = _loss_and_gradients(
        training, lambda g: api.create_training_graph(g, quant_delay=1000), scale, center
    )
    _assert_equal(delayed, floating)
    quantised = _loss_and_gradients(training, api.create_training_graph, scale, center)
    assert not np.allclose(floating["loss"], quantised["loss"], rtol=1e-7)
    np.testing.assert_allclose(floating["loss"], quantised["loss"], rtol=0.05)


@pytest.mark.parametrize("scale, center", PARAMETERS)
def test_frozen_batch_norms_give_the_gradients_of_moving_statistics(scale, center):
    frozen = _loss_and_gradients(
        True, lambda g: api.experimental_create_training_graph(g, freeze_bn_delay=1), scale, center
    )
    inference = _loss_and_gradients(False, api.create_training_graph, scale, center)
    _assert_equal(frozen, inference, rtol=1e-3, atol=1e-5)


def test_before_the_freeze_gradients_are_those_without_one():
    plain = _loss_and_gradients(True, api.create_training_graph)
    later = _loss_and_gradients(
        True, lambda g: api.experimental_create_training_graph(g, freeze_bn_delay=1000)
    )
    _assert_equal(later, plain)


def test_training_weights_are_those_of_inference_divided_by_the_scale():
    with tf.Graph().as_default() as graph:
        images, _, loss = _build(True, scale=False)
        api.create_training_graph(graph)
        used = graph.get_operation_by_name("top/fc1/MatMul").inputs[1]
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            _set(session, _network_variables())
            weights, variance, got = session.run(
                ["top/fc1/weights:0", "top/fc1/BatchNorm/moving_variance:0", used]
            )
    scale = 1 / np.sqrt(variance + 0.001)
    scaled = weights * scale
    step = (scaled.max() - scaled.min()) / 254
    assert np.abs(got - weights).max() > 0
    # (A range that is not symmetric is moved by up to half a step to put 0 on one.)
    assert np.abs(got * scale - scaled).max() <= 1.01 * step


@pytest.mark.parametrize("scale, center", PARAMETERS)
def test_eval_without_fake_quants_is_the_float_graphs(scale, center):
    results = []
    for rewrite in (False, True):
        with tf.Graph().as_default() as graph:
            images, outputs, _ = _build(False, scale, center)
            outputs = [tf.stop_gradient(output) for output in outputs]
            if rewrite:
                api.experimental_create_eval_graph(graph, quant_delay=10**6)
                convolutions = [op for op in nets.ops_needed_for(*outputs) if op.type == "Conv2D"]
                assert sum(op.name.endswith("_Fold") for op in convolutions) == 5
                assert not [op for op in nets.ops_needed_for(*outputs) if "batchnorm" in op.name]
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                _set(session, _network_variables())
                results.append(session.run(outputs, {images: _images()}))
    for a, b in zip(*results):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_names_play_no_part_and_the_order_of_factors_neither():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [None, 8, 8, 3])
        weights = tf.get_variable("w", [1, 1, 3, 4])
        gamma, beta, mean, variance = [
            tf.get_variable(name, [4], initializer=tf.ones_initializer()) for name in "gbmv"
        ]
        made = tf.nn.conv2d(images, weights, 1, "SAME", name="a/x")
        inverse = gamma * tf.rsqrt(0.25 + variance, name="p")
        net = tf.nn.relu(tf.add(beta - inverse * mean, inverse * made, name="q"), name="r")
        output = tf.stop_gradient(net)
        report = api.create_eval_graph(graph)
        assert report.folded == 1 and report.weights == ("a/weights_quant",)
        epsilon = graph.get_operation_by_name("a/BatchNorm_Fold/add").inputs[1]
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            assert session.run(epsilon) == 0.25
            assert np.all(np.isfinite(session.run(output, {images: np.ones([1, 8, 8, 3])})))


def _like_a_batch_norm(images, other=False, transposed=False, constant=False, untracked=False):
    """x * s + (beta - mean * s), with something that makes it no batch norm of the layer."""
    channels = images.shape.as_list()[-1]
    weights = tf.get_variable("weights", [4, channels] if transposed else [channels, 4])
    net = tf.matmul(images, weights, transpose_b=transposed, name="layer/MatMul")
    names = ("gamma", "beta", "mean", "variance")
    gamma, beta, mean, variance = [
        tf.get_variable(name, [4], initializer=tf.ones_initializer()) for name in names
    ]
    if untracked:
        mean, variance = tf.nn.moments(net, [0])
    if constant:
        variance = tf.nn.relu(variance)
    inverse = tf.rsqrt(variance + 0.001) * gamma
    shifted_by = tf.rsqrt(variance + 0.002) * gamma if other else inverse
    net = net * inverse + (beta - mean * shifted_by)
    return tf.stop_gradient(tf.nn.relu6(net, name="layer/Relu6"))


@pytest.mark.parametrize("kind", ["other", "transposed", "constant", "untracked"])
@pytest.mark.parametrize("training", [True, False])
def test_what_only_looks_like_one_is_not_folded(kind, training):
    results = []
    for rewrite in (False, True):
        tf.reset_default_graph()
        with tf.Graph().as_default() as graph:
            tf.set_random_seed(3)
            images = tf.placeholder(tf.float32, [5, 6])
            output = _like_a_batch_norm(images, **{kind: True})
            if rewrite:
                options = {"quant_delay": 10**6}
                if training:
                    report = api.experimental_create_training_graph(graph, **options)
                else:
                    report = api.experimental_create_eval_graph(graph, **options)
                assert report.folded == 0
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                _set(session, _network_variables())
                feed = {images: np.random.RandomState(0).normal(size=[5, 6])}
                results.append(session.run(output, feed))
    np.testing.assert_array_equal(*results)


@ORACLE
@pytest.mark.parametrize("scale, center", PARAMETERS)
@pytest.mark.parametrize("training", [True, False])
def test_contrib_placement_is_contribs(training, scale, center):
    from tensorflow.contrib import quantize

    def names(rewrite):
        with tf.Graph().as_default() as graph:
            _build(training, scale, center)
            rewrite(graph)
            quants = sorted(
                (op.name, op.get_attr("num_bits"), op.get_attr("narrow_range"))
                for op in graph.get_operations()
                if op.type == FAKE_QUANT
            )
            return quants, sorted(v.op.name for v in tf.global_variables())

    if training:
        theirs = names(quantize.create_training_graph)
        ours = names(lambda g: api.create_training_graph(g, placement="contrib"))
        # A range behind a ReLU has no minimum to average here.
        assert set(ours[1]) <= set(theirs[1])
        more = set(theirs[1]) - set(ours[1])
        assert {name for name in more if not name.endswith(("min/biased", "min/local_step"))} == set()
    else:
        theirs = names(quantize.create_eval_graph)
        ours = names(lambda g: api.create_eval_graph(g, placement="contrib"))
        assert ours[1] == theirs[1]
    assert len(theirs[0]) > 2 * BATCH_NORMS
    assert ours[0] == theirs[0]


@ORACLE
@pytest.mark.parametrize("scale, center", PARAMETERS)
def test_contrib_placement_computes_what_contrib_computes(scale, center):
    from tensorflow.contrib import quantize

    results = []
    for rewrite in (
        quantize.create_eval_graph,
        lambda graph: api.create_eval_graph(graph, placement="contrib"),
    ):
        with tf.Graph().as_default() as graph:
            images, _, _ = _build(False, scale, center)
            rewrite(graph)
            quants = sorted(
                (op for op in graph.get_operations() if op.type == FAKE_QUANT), key=lambda op: op.name
            )
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                _set(session, _network_variables())
                outputs = session.run([op.outputs[0] for op in quants], {images: _images(5)})
            results.append({op.name: value for op, value in zip(quants, outputs)})
    theirs, ours = results
    assert list(theirs) == list(ours)
    for name, value in theirs.items():
        assert np.abs(value).max() > 0, name
        np.testing.assert_allclose(ours[name], value, rtol=1e-5, atol=1e-6, err_msg=name)


def _with_forced_updates(rewrite):
    """Names of fake quants, and loss and averages of one step of training with updates_collections=None."""
    norm = {"is_training": True, "scale": True, "fused": False, "decay": 0.9, "updates_collections": None}
    with tf.Graph().as_default() as graph:
        net = images = tf.placeholder(tf.float32, [4, 32, 32, 3])
        for scope in ("one", "two"):
            net = slim.conv2d(net, 4, 3, normalizer_fn=slim.batch_norm, normalizer_params=norm, scope=scope)
        loss = tf.reduce_mean(tf.square(net - 0.3))
        rewrite(graph)
        quants = sorted(op.name for op in graph.get_operations() if op.type == FAKE_QUANT)
        averages = sorted(
            (v for v in tf.global_variables() if "moving_" in v.op.name), key=lambda v: v.op.name
        )
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            _set(session, _network_variables())
            found = [session.run(loss, {images: _images()})]
            return quants, found + session.run(averages)


@pytest.mark.parametrize("placement", ["contrib", "full"])
def test_averages_that_the_norm_waits_for(placement):
    """slim's updates_collections=None: contrib's testBatchNormForcedUpdates."""
    _, floating = _with_forced_updates(lambda graph: None)
    quants, delayed = _with_forced_updates(
        lambda graph: api.experimental_create_training_graph(graph, quant_delay=1000, placement=placement)
    )
    assert len([name for name in quants if "/weights_quant/" in name]) == 2 and len(quants) == 4
    for found, expected in zip(delayed, floating):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
    if IS_TF1:
        from tensorflow.contrib import quantize

        assert quants == _with_forced_updates(quantize.create_training_graph)[0]
