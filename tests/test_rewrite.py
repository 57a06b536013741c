"""The rewriter: structure, and numerics against the float graph and tf.contrib.quantize where it runs."""

import functools
import gc
import json

import numpy as np
import pytest

from od_qat import config
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import IS_TF1, tf
from od_qat.errors import ConfigError, RewriteError
from od_qat.graph.draft import Draft
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import api, fake_quant, passes
from tests.helpers import nets, own_gradients, sessions

pytestmark = pytest.mark.tf1

FAKE_QUANT = "FakeQuantWithMinMaxVars"
NORM_OPS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


def _images(seed=0, batch=4):
    return np.random.RandomState(seed).uniform(-1, 1, [batch, 32, 32, 3]).astype(np.float32)


def _build(training, **options):
    tf.set_random_seed(7)
    images = tf.placeholder(tf.float32, [None, 32, 32, 3], name="images")
    boxes, scores = nets.small_ssd(images, training, **options)
    loss = tf.reduce_mean(tf.square(boxes - 0.3)) + tf.reduce_mean(tf.square(scores + 0.2))
    return images, boxes, scores, loss


def _fake_quants(graph):
    return [op for op in graph.get_operations() if op.type == FAKE_QUANT]


def _ops_needed_for(tensor, types):
    """Ops of some types that a tensor depends on."""
    return [op for op in nets.ops_needed_for(tensor) if op.type in types]


def test_training_graph_runs_every_convolution_once():
    with tf.Graph().as_default() as graph:
        _, _, _, loss = _build(True)
        report = api.create_training_graph(graph)
        convolutions = _ops_needed_for(loss, ("Conv2D", "DepthwiseConv2dNative"))
    assert len(convolutions) == nets.LAYERS
    assert len(report.weights) == nets.LAYERS
    assert report.folded == nets.BATCH_NORMS
    assert report.stays_float == {}
    assert len(_fake_quants(graph)) == len(report.weights) + len(report.activations)
    assert report.patterns["concat_quant"] == 2


def test_training_graph_absorbs_relu6_and_its_range_never_passes_6():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        api.create_training_graph(graph)
        assert not _ops_needed_for(loss, ("Relu6",))
        train = tf.train.GradientDescentOptimizer(0.1).minimize(loss)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            gamma = [v for v in tf.global_variables() if v.op.name.endswith("gamma")]
            session.run([tf.assign(v, 50.0 * tf.ones_like(v)) for v in gamma])
            for seed in range(3):
                session.run(train, {images: _images(seed)})
            values = session.run({v.op.name: v for v in tf.get_collection(QUANT_VARIABLES)})
    relu6 = "net/Conv/act_quant"
    assert values[relu6 + "/min"] == 0.0
    assert 5.9 < values[relu6 + "/max"] <= 6.0
    assert values["net/block/project/act_quant/max"] > 20.0


def _loss_and_gradients(rewrite, training=True):
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(training)
        if rewrite:
            rewrite(graph)
        variables = sorted(tf.trainable_variables(), key=lambda v: v.op.name)
        gradients = tf.gradients(loss, variables)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for number, variable in enumerate(variables):
                value = np.random.RandomState(number).normal(
                    1.0 if variable.op.name.endswith("gamma") else 0.0, 0.3, variable.shape.as_list()
                )
                session.run(tf.assign(variable, value.astype(np.float32)))
            result = session.run([loss] + gradients, {images: _images()})
    return [v.op.name for v in variables], result


def _fake_quant_of(data, maximum, gradient, bits=8):
    """The node that passes.py drafts behind an absorbed ReLU, and its gradient with regard to its data."""
    tensor, low, high = tf.constant(data), tf.constant(0.0), tf.constant(np.float32(maximum))
    draft = Draft(GraphIndex(tf.get_default_graph()))
    name = fake_quant.quantise(draft, tensor, fake_quant.Range("q", low, high), bits, False, gradient)
    draft.commit()
    return tensor, tf.get_default_graph().get_tensor_by_name(name)


def _gradient_of(build, data, incoming):
    """Values of output and gradient; `build(data)` gives what the gradient is of, and the output."""
    with tf.Graph().as_default():
        tensor, output = build(data)
        gradients = tf.gradients(output, tensor, tf.constant(incoming))
        with sessions.plain() as session:
            return session.run([output] + gradients)


def _beyond_both_ends():
    random = np.random.RandomState(0)
    data = random.uniform(-2, 9, [4, 5, 6]).astype(np.float32)
    return data, random.normal(size=data.shape).astype(np.float32)


def _float_gradient(activation, data, incoming):
    def build(x):
        tensor = tf.constant(x)
        return tensor, activation(tensor)

    return _gradient_of(build, data, incoming)[1]


def _quantised_gradient(maximum, gradient, data, incoming, bits=8):
    build = functools.partial(_fake_quant_of, maximum=maximum, gradient=gradient, bits=bits)
    return _gradient_of(build, data, incoming)[1]


@pytest.mark.parametrize("maximum", [0.7, 4.2, 6.0])
def test_gradient_behind_an_absorbed_relu_is_the_relus_own(maximum):
    """Beyond the range's end too, where the kernel's is 0."""
    data, incoming = _beyond_both_ends()
    ours = _quantised_gradient(maximum, fake_quant.RELU_GRADIENT, data, incoming)
    np.testing.assert_array_equal(ours, _float_gradient(tf.nn.relu, data, incoming))
    kernels = _quantised_gradient(maximum, None, data, incoming)
    within = (data > 0) & (data < maximum)
    np.testing.assert_array_equal(ours[within], kernels[within])
    assert np.count_nonzero(ours) > np.count_nonzero(kernels) > 0


@pytest.mark.parametrize("maximum", [0.7, 4.2, 5.9999, 6.0])
def test_gradient_behind_an_absorbed_relu6_is_the_relu6s_own_but_half_a_step(maximum):
    """Half a step at 0 and at 6; beyond a range that ends below 6 the gradient passes."""
    data, incoming = _beyond_both_ends()
    half = 0.5 * maximum / 255
    ends = np.array([half * 0.99, half * 1.01, 6.0 - half * 1.01, 6.0 - half * 0.99], np.float32)
    data.flat[: len(ends)] = ends
    ours = _quantised_gradient(maximum, fake_quant.RELU6_GRADIENT, data, incoming)
    passes = data > half if maximum < 6 else (data > half) & (data < 6 - half)
    np.testing.assert_array_equal(ours, np.where(passes, incoming, 0))
    if maximum == 6:
        float_ones = _float_gradient(tf.nn.relu6, data, incoming)
        assert np.array_equal(np.flatnonzero(ours != float_ones), [0, 3])


@pytest.mark.parametrize("bits", [4, 7])
def test_gradient_behind_an_absorbed_relu6_of_few_bits_is_the_relu6s_own(bits):
    """Half a step is then too much to lose."""
    data, incoming = _beyond_both_ends()
    ours = _quantised_gradient(6.0, fake_quant.RELU6_GRADIENT, data, incoming, bits)
    np.testing.assert_array_equal(ours, _float_gradient(tf.nn.relu6, data, incoming))


def test_gradients_of_other_activations_go_straight_through_in_training_alone():
    """No mask: no fake quant of an activation has the kernel's gradient. In eval nobody asks for one."""
    data, incoming = _beyond_both_ends()
    np.testing.assert_array_equal(
        _quantised_gradient(4.2, fake_quant.PASS_THROUGH_GRADIENT, data, incoming), incoming
    )
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            _build(training)
            (api.create_training_graph if training else api.create_eval_graph)(graph)
            named = ["_gradient_op_type" in op.node_def.attr for op in _fake_quants(graph)]
        assert named and set(named) == {training}


@pytest.mark.parametrize("value", [5.99, 6.0])
def test_range_of_an_activation_that_always_reaches_6_is_6(value):
    """In any step, in spite of rounding; a smaller range stays what it is."""
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, 4, 4, 3], "images")
        weights = tf.get_variable("weights", [1, 1, 3, 2], initializer=tf.ones_initializer())
        tf.nn.relu6(tf.nn.conv2d(images, weights, [1, 1, 1, 1], "SAME"), name="out")
        api.create_training_graph(graph)
        (range_,) = [v for v in graph.get_collection(QUANT_VARIABLES) if v.op.name.endswith("act_quant/max")]
        (quantised,) = [op for op in _fake_quants(graph) if op.name.startswith("act_quant")]
        updated = quantised.inputs[2]
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            feed = {images: np.full([1, 4, 4, 3], 50.0 if value == 6 else value / 3, np.float32)}
            found = []
            for _ in range(12000):
                found.append(session.run(updated, feed))
            assert session.run(range_) == found[-1]
    if value == 6:
        assert set(found) == {6.0}
    else:
        np.testing.assert_allclose(found, value, rtol=1e-4)


@pytest.mark.parametrize("gradient", [fake_quant.RELU_GRADIENT, fake_quant.RELU6_GRADIENT])
def test_gradient_behind_an_absorbed_relu_is_finite_on_a_dead_layer(gradient):
    data, incoming = np.array([-3.0, -1.0], np.float32), np.ones(2, np.float32)
    _, value = _gradient_of(lambda x: _fake_quant_of(x, 0.0, gradient), data, incoming)
    np.testing.assert_array_equal(value, [0.0, 0.0])


def test_symmetric_ranges_leave_relus_in_place():
    """Training and eval compute the same network: a symmetric range would let negative values through."""
    with tf.Graph().as_default() as graph:
        _, _, _, loss = _build(True)
        before = len(_ops_needed_for(loss, ("Relu6", "Relu")))
        api.experimental_create_training_graph(graph, symmetric=True)
        assert len(_ops_needed_for(loss, ("Relu6", "Relu"))) == before > 0
        assert all(
            op.inputs[0].op.type != "FusedBatchNormV3" for op in _fake_quants(graph) if "Relu" in op.name
        )


def _weight_gradients(monkeypatch, straight_through):
    with monkeypatch.context() as patch, tf.Graph().as_default() as graph:
        if not straight_through:
            patch.setattr(fake_quant, "PASS_THROUGH_GRADIENT", own_gradients.OF_SCALED_WEIGHTS)
        images, _, _, loss = _build(True)
        api.create_training_graph(graph)
        trained = tf.trainable_variables()
        gradients = tf.gradients(loss, trained)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            values = session.run(gradients, {images: _images()})
    return len(graph.get_operations()), {v.op.name: value for v, value in zip(trained, values)}


def test_straight_through_gradients_of_weights_are_the_kernels_own(monkeypatch):
    operations, ours = _weight_gradients(monkeypatch, straight_through=True)
    more_operations, kernels = _weight_gradients(monkeypatch, straight_through=False)
    assert operations < more_operations
    assert set(ours) == set(kernels)
    for name, gradient in ours.items():
        size = np.abs(kernels[name]).max()
        assert size > 0, name
        # fq(W * s) / s multiplies the gradient by s and divides it again: rounding. In the kernel, rounding
        # can also put the weight that ends the range just outside of it, and its gradient is then 0.
        at_the_ends = (kernels[name] == 0) & (gradient != 0)
        assert at_the_ends.sum() <= (2 if name.endswith("weights") else 0), name
        np.testing.assert_allclose(
            np.where(at_the_ends, 0, gradient), kernels[name], atol=1e-4 * size, err_msg=name
        )


def test_before_the_delay_loss_and_gradients_are_the_float_graphs():
    names, floating = _loss_and_gradients(None)
    names_again, delayed = _loss_and_gradients(lambda g: api.create_training_graph(g, quant_delay=1000))
    assert names == names_again
    for name, a, b in zip(["loss"] + names, floating, delayed):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


def test_quantised_gradients_stay_close_to_the_float_graphs():
    names, floating = _loss_and_gradients(None)
    _, quantised = _loss_and_gradients(lambda g: api.create_training_graph(g))
    assert not np.allclose(floating[0], quantised[0], rtol=1e-7)  # something was quantised
    np.testing.assert_allclose(floating[0], quantised[0], rtol=0.05)
    dot = sum(float(np.sum(a * b)) for a, b in zip(floating[1:], quantised[1:]))
    norms = [np.sqrt(sum(float(np.sum(a * a)) for a in one[1:])) for one in (floating, quantised)]
    assert dot / (norms[0] * norms[1]) > 0.97


def test_delay_counts_steps_and_ranges_are_tracked_from_the_first():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        global_step = tf.train.get_or_create_global_step()
        api.create_training_graph(graph, quant_delay=3)
        train = tf.train.GradientDescentOptimizer(0.0).minimize(loss, global_step=global_step)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            losses = []
            for _ in range(5):
                # (statistics move, weights do not: the learning rate is 0)
                losses.append(session.run([train, loss], {images: _images()})[1])
                if len(losses) == 1:
                    low = session.run("net/block/project/act_quant/min:0")
    assert low < 0.0 and low != -6.0
    # Batch statistics make the float loss the same in every step; quantization changes it at the third.
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert abs(losses[2] - losses[1]) > 1e-6 * abs(losses[1])


def test_after_the_delay_loss_and_gradients_are_those_without_a_delay():
    names, at_once = _loss_and_gradients(lambda g: api.create_training_graph(g))
    _, delayed = _loss_and_gradients(lambda g: api.create_training_graph(g, quant_delay=1))
    for name, a, b in zip(["loss"] + names, at_once, delayed):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name)


def test_frozen_batch_norms_give_the_gradients_of_moving_statistics():
    """From the first step on, a frozen training graph is that of `is_training=False`."""
    names, frozen = _loss_and_gradients(
        lambda g: api.experimental_create_training_graph(g, freeze_bn_delay=1)
    )
    _, inference = _loss_and_gradients(lambda g: api.create_training_graph(g), training=False)
    for name, a, b in zip(["loss"] + names, frozen, inference):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5, err_msg=name)


def test_ranges_are_zero_debiased_averages_and_contain_zero():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        api.create_training_graph(graph)
        # What the fake quants of a conv without activation and of a ReLU6 see.
        linear = graph.get_tensor_by_name("net/block/project/BatchNorm/FusedBatchNormV3:0")
        behind_relu = graph.get_operation_by_name("net/Conv/act_quant/FakeQuantWithMinMaxVars").inputs[0]
        seen = {"net/block/project/act_quant": [], "net/Conv/act_quant": []}
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for seed in range(4):
                _, a, b = session.run([loss, linear, behind_relu], {images: _images(seed)})
                seen["net/block/project/act_quant"].append((min(a.min(), 0.0), max(a.max(), 0.0)))
                seen["net/Conv/act_quant"].append((0.0, np.clip(b.max(), 0.0, 6.0)))
            values = session.run({v.op.name: v for v in tf.get_collection(QUANT_VARIABLES)})
    for name, ends in seen.items():
        average, decay = np.zeros(2), config.QatConfig().ema_decay
        for end in ends:
            average = average * decay + np.array(end) * (1 - decay)
        average /= 1 - decay ** len(ends)
        found = [values[name + "/min"], values[name + "/max"]]
        np.testing.assert_allclose(found, average, rtol=1e-3, atol=1e-6, err_msg=name)


PASSES = {
    True: [one.__name__ for one, _ in passes.TRAINING_PASSES],
    False: [one.__name__ for one, _ in passes.EVAL_PASSES],
}


@pytest.mark.parametrize(
    "training, failing", [(t, name) for t in (True, False) for name in PASSES[t]], ids=lambda v: str(v)
)
def test_a_pass_that_fails_half_way_leaves_the_graph_as_it_was(monkeypatch, training, failing):
    import tf_slim as slim

    rewrite = api.experimental_create_training_graph if training else api.experimental_create_eval_graph
    options = {"freeze_bn_delay": 1} if training else {}
    # Fails at the 40th node that this very pass drafts, or at the last of few; one that drafts none, at the
    # first reroute.
    pass_ = getattr(passes, failing)
    few = {
        passes.leave_out_identities: ("reroute", 1),
        passes.negatives_as_products: ("op", 2),
        passes.weighted_sums_as_products: ("op", 5),
        passes.quantise_products: ("op", 5),
    }
    where, at = few.get(pass_, ("op", 40))

    def armed(plan, state):
        drafted = []
        original = getattr(state.draft, where)

        def method(*args, **kwargs):
            drafted.append(args)
            if len(drafted) == at:
                raise RuntimeError("injected into " + failing)
            return original(*args, **kwargs)

        setattr(state.draft, where, method)
        pass_(plan, state)
        setattr(state.draft, where, original)

    table = "TRAINING_PASSES" if training else "EVAL_PASSES"
    rows = tuple((armed if one is pass_ else one, why) for one, why in getattr(passes, table))
    with tf.Graph().as_default() as graph:
        images, boxes, _, _ = _build(training)
        tf.nn.swish(boxes)  # an IdentityN, for the pass that leaves these out
        slim.conv2d(-slim.conv2d(images, 4, 1, scope="more/one"), 4, 1, scope="more/two")  # and a Neg
        added = [slim.conv2d(images, 4, 1, scope="more/{}".format(name)) for name in ("three", "four")]
        added = tf.matmul(tf.stack(added, -1), tf.get_variable("more/shares", [2, 1]))  # a weighted sum
        slim.conv2d(tf.squeeze(added, [-1]), 4, 1, scope="more/five")
        before, variables = graph.as_graph_def(), len(tf.global_variables())
        with monkeypatch.context() as patch:
            patch.setattr(passes, table, rows)
            with pytest.raises(RuntimeError, match="injected into " + failing):
                rewrite(graph, **options)
        assert graph.as_graph_def() == before
        assert len(tf.global_variables()) == variables
        assert not graph.get_collection(QUANT_VARIABLES)
        assert gc.isenabled()  # (not while it rewrites)
        report = rewrite(graph, **options)  # nothing of the failure is left: the names are the usual ones
        assert not [name for name in report.activations + report.weights if name.endswith("_1")]
        assert "net/Conv/act_quant/FakeQuantWithMinMaxVars" in [op.name for op in _fake_quants(graph)]


@pytest.mark.parametrize("training", [True, False])
def test_a_reader_that_cannot_be_moved_leaves_all_as_they_were(monkeypatch, training):
    """The nodes are in by then, and cannot be taken out: but nothing reads them, and no variable is made."""
    rewrite = api.create_training_graph if training else api.create_eval_graph
    with tf.Graph().as_default() as graph:
        _build(training)
        before = {op.name: [tensor.name for tensor in op.inputs] for op in graph.get_operations()}
        variables = [v.op.name for v in tf.global_variables()]
        original, moved = tf.Operation._update_input, []

        def update_input(operation, position, tensor):
            moved.append(operation.name)
            if len(moved) == 10:
                raise ValueError("injected")
            return original(operation, position, tensor)

        with monkeypatch.context() as patch:
            patch.setattr(tf.Operation, "_update_input", update_input)
            with pytest.raises(ValueError, match="injected"):
                rewrite(graph)
        after = {name: [t.name for t in graph.get_operation_by_name(name).inputs] for name in before}
        assert after == before
        assert [v.op.name for v in tf.global_variables()] == variables
        assert not graph.get_collection(QUANT_VARIABLES)


@pytest.mark.parametrize("training", [True, False])
def test_a_finalized_graph_is_left_alone(training):
    with tf.Graph().as_default() as graph:
        _build(training)
        before = graph.as_graph_def()
        graph.finalize()
        with pytest.raises(RuntimeError, match="finalized"):
            (api.create_training_graph if training else api.create_eval_graph)(graph)
        assert graph.as_graph_def() == before


def test_a_node_that_tensorflow_refuses_leaves_the_graph_as_it_was(monkeypatch):
    def broken(draft, *args, **kwargs):
        return draft.op("NoSuchOp", "broken", ())

    with tf.Graph().as_default() as graph:
        _build(True)
        before = graph.as_graph_def()
        with monkeypatch.context() as patch:
            patch.setattr(fake_quant, "quantise", broken)
            with pytest.raises((ValueError, tf.errors.OpError)):
                api.create_training_graph(graph)
        assert graph.as_graph_def() == before
        assert not graph.get_collection(QUANT_VARIABLES)
        api.create_training_graph(graph)


def test_weights_in_training_are_those_of_inference_divided_by_the_scale():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        api.create_training_graph(graph)
        layer = graph.get_operation_by_name("net/block/depthwise/depthwise")
        used = layer.inputs[1]
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            scope = "net/block/depthwise/BatchNorm/"
            rng = np.random.RandomState(3)
            values = {}
            for name in ("gamma", "moving_variance"):
                variable = [v for v in tf.global_variables() if v.op.name == scope + name][0]
                values[name] = rng.uniform(0.5, 2.0, variable.shape.as_list()).astype(np.float32)
                session.run(tf.assign(variable, values[name]))
            weights, got = session.run(["net/block/depthwise/depthwise_weights:0", used])
    scale = (values["gamma"] / np.sqrt(values["moving_variance"] + 0.001)).reshape(1, 1, -1, 1)
    scaled = weights * scale
    step = np.abs(scaled).max() / 127.0
    # NumPy rounds half to even, the kernel half up: none of these values is that close to a half.
    np.testing.assert_allclose(got, np.round(scaled / step) * step / scale, atol=1e-5)


def test_gamma_of_zero_gives_finite_gradients():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        api.create_training_graph(graph)
        gradients = tf.gradients(loss, tf.trainable_variables())
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for variable in tf.global_variables():
                if variable.op.name.endswith("gamma"):
                    value = np.linspace(-1e-9, 1.0, int(variable.shape[0])).astype(np.float32)
                    value[1] = 0.0
                    session.run(tf.assign(variable, value))
            results = session.run([loss] + gradients, {images: _images()})
    assert all(np.all(np.isfinite(value)) for value in results)


def test_no_gamma_and_other_epsilon():
    with tf.Graph().as_default() as graph:
        _build(True, batch_norm_scale=False, epsilon=0.01)
        report = api.create_training_graph(graph)
        assert len(report.weights) == nets.LAYERS
    with tf.Graph().as_default() as graph:
        _build(False, batch_norm_scale=False, epsilon=0.01)
        api.create_eval_graph(graph)
        epsilon = graph.get_operation_by_name("net/Conv/BatchNorm_Fold/add").inputs[1]
        with sessions.plain() as session:
            assert session.run(epsilon) == pytest.approx(0.01)


def _trained_values(steps=30):
    """Variables by name after a few QAT steps."""
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        api.create_training_graph(graph)
        update = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with tf.control_dependencies(update):
            train = tf.train.GradientDescentOptimizer(0.05).minimize(loss)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for step in range(steps):
                session.run(train, {images: _images(step)})
            return session.run({v.op.name: v for v in tf.global_variables()})


def _eval_outputs(values, rewrite):
    with tf.Graph().as_default() as graph:
        images, boxes, scores, _ = _build(False)
        if rewrite:
            rewrite(graph)
        # The rewrite reroutes readers: what the caller wants is what an output op reads now.
        outputs = [tf.identity(boxes), tf.identity(scores)]
        if rewrite:
            outputs = [_quantised_twin(graph, boxes), _quantised_twin(graph, scores)]
        with sessions.plain() as session:
            missing = [v.op.name for v in tf.global_variables() if v.op.name not in values]
            assert not missing, missing
            session.run([tf.assign(v, values[v.op.name]) for v in tf.global_variables()])
            return session.run(outputs, {images: _images(99)})


def _quantised_twin(graph, tensor):
    for op in tensor.consumers():
        if op.type == FAKE_QUANT:
            return op.outputs[0]
    raise AssertionError("{} is not quantised".format(tensor.name))


def test_eval_graph_restores_every_range_and_agrees_with_the_float_graph():
    values = _trained_values()
    floating = _eval_outputs(values, None)
    quantised = _eval_outputs(values, lambda g: api.create_eval_graph(g))
    for a, b in zip(floating, quantised):
        spread = a.max() - a.min()
        assert np.max(np.abs(a - b)) < 0.08 * spread
        assert np.max(np.abs(a - b)) > 0.0


def test_eval_graph_has_no_batch_norm_left_in_use():
    with tf.Graph().as_default() as graph:
        _, boxes, scores, _ = _build(False)
        api.create_eval_graph(graph)
        used = _ops_needed_for(
            _quantised_twin(graph, boxes), ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")
        )
    assert used == []


def test_freeze_bn_delay_stops_the_statistics():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _build(True)
        global_step = tf.train.get_or_create_global_step()
        api.experimental_create_training_graph(graph, freeze_bn_delay=2)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train = tf.train.GradientDescentOptimizer(0.01).minimize(loss, global_step=global_step)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            mean = "net/Conv/BatchNorm/moving_mean:0"
            seen = []
            for seed in range(4):
                session.run(train, {images: _images(seed)})
                seen.append(session.run(mean))
    assert np.max(np.abs(seen[0])) > 0
    np.testing.assert_array_equal(seen[1], seen[2])
    np.testing.assert_array_equal(seen[2], seen[3])


@pytest.mark.parametrize("training", [True, False])
def test_second_rewrite_is_refused(training):
    rewrite = api.create_training_graph if training else api.create_eval_graph
    with tf.Graph().as_default() as graph:
        _build(training)
        rewrite(graph)
        before = graph.as_graph_def()
        with pytest.raises(RewriteError, match="already"):
            rewrite(graph)
        assert graph.as_graph_def() == before


def test_refusals_leave_the_graph_as_it_was():
    with tf.Graph().as_default() as graph:
        tf.add(tf.placeholder(tf.float32, [2]), 1.0)
        before = graph.as_graph_def()
        with pytest.raises(RewriteError, match="nothing to quantize"):
            api.create_training_graph(graph)
        assert graph.as_graph_def() == before
    with tf.Graph().as_default() as graph:
        _, _, _, loss = _build(True)
        tf.train.MomentumOptimizer(0.1, 0.9).minimize(loss)
        before = graph.as_graph_def()
        with pytest.raises(RewriteError, match="holds gradients.*optimizer"):
            api.create_training_graph(graph)
        assert graph.as_graph_def() == before


def test_scope_limits_the_rewrite():
    with tf.Graph().as_default() as graph:
        _build(True)
        report = api.experimental_create_training_graph(graph, scope="net/residual")
    assert report.weights and all(name.startswith("net/residual/") for name in report.weights)


@pytest.mark.parametrize("name", NORM_OPS)
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("partitions", [None, 2])
def test_every_version_of_batch_norm_is_folded(name, batch, partitions):
    """(Their numbers: test_fold_numerics.py.)"""
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            images = tf.placeholder(tf.float32, [batch, 8, 8, 3])
            output = nets.conv_with_norm(images, name, training, partitions=partitions)
            output = tf.stop_gradient(output)
            report = (api.create_training_graph if training else api.create_eval_graph)(graph)
            assert report.folded == 1 and len(report.weights) == 1 and report.stays_float == {}
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                feed = {images: _images(batch=batch)[:, :8, :8]}
                assert np.all(np.isfinite(session.run(output, feed)))
            used = _ops_needed_for(output, NORM_OPS)
            assert len(used) == (1 if training else 0)


def test_a_batch_norm_behind_no_layer_becomes_one_in_eval():
    outputs = []
    for rewrite in (False, True):
        with tf.Graph().as_default() as graph:
            images, output = nets.pre_activation(False)
            if rewrite:
                report = api.experimental_create_eval_graph(graph, quant_delay=10**6)  # folded, not quantised
                assert not _ops_needed_for(output, NORM_OPS)
                assert len(_ops_needed_for(output, ("DepthwiseConv2dNative",))) == 1
                assert report.stays_float == {}
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                variables = [v for v in tf.global_variables() if "quant" not in v.op.name]
                values = {
                    variable: np.random.RandomState(number).uniform(0.5, 1.5, variable.shape.as_list())
                    for number, variable in enumerate(variables)
                }
                sessions.assign(session, values)
                outputs.append(session.run(output, {images: _images(batch=2)[:, :8, :8]}))
    assert np.abs(outputs[0]).max() > 1
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-4, atol=1e-4)


def test_a_batch_norm_behind_no_layer_is_frozen_too():
    with tf.Graph().as_default() as graph:
        images, output = nets.pre_activation(True)
        api.experimental_create_training_graph(graph, freeze_bn_delay=1)
        update = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for seed in range(2):
                session.run([output, update], {images: _images(seed, batch=2)[:, :8, :8]})
            mean = session.run("preact/moving_mean:0")
    np.testing.assert_array_equal(mean, np.zeros(4))


def test_channels_first_graphs_are_folded():
    """(They are built only: the CPU has no such convolution.)"""
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            images = tf.placeholder(tf.float32, [2, 3, 8, 8])
            output = nets.conv_with_norm(images, "FusedBatchNormV3", training, data_format="NCHW")
            output = tf.stop_gradient(output)
            report = (api.create_training_graph if training else api.create_eval_graph)(graph)
            assert report.folded == 1
            if not training:
                bias = graph.get_operation_by_name("layer/add_fold").inputs[1]
                assert bias.shape.as_list() == [1, 4, 1, 1]
            assert output.shape.as_list() == [2, 4, 8, 8]


def test_layers_that_share_a_kernel_share_its_fake_quant():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [2, 8, 8, 3])
        weights = tf.get_variable("shared/weights", [1, 1, 3, 3])
        net = images
        for number in range(2):
            name = "layer{}/".format(number)
            net = tf.nn.conv2d(net, weights, [1, 1, 1, 1], "SAME", name=name + "Conv2D")
            net = tf.nn.relu6(
                tf.nn.bias_add(net, [0.0, 0.1, 0.2], name=name + "BiasAdd"), name=name + "Relu6"
            )
        report = api.create_training_graph(graph)
        convolutions = _ops_needed_for(net, ("Conv2D",))
        assert len(report.weights) == 1 and len(convolutions) == 2
        assert len({op.inputs[1].name for op in convolutions}) == 1
        assert convolutions[0].inputs[1].op.type == FAKE_QUANT


def test_a_layer_in_a_branch_stays_float_and_is_named():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [2, 8, 8, 3])
        weights = tf.get_variable("weights", [1, 1, 3, 3])
        net = tf.nn.relu6(tf.nn.conv2d(images, weights, [1, 1, 1, 1], "SAME", name="plain"))

        def branch():
            return tf.nn.relu6(tf.nn.conv2d(net, weights, [1, 1, 1, 1], "SAME", name="branched"))

        output = tf.cond(tf.placeholder_with_default(True, []), branch, lambda: net)
        report = api.create_training_graph(graph)
        assert len(report.weights) == 1
        ((name, reason),) = report.stays_float.items()
        assert name.endswith("branched") and "branch" in reason
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            assert np.all(np.isfinite(session.run(output, {images: np.ones([2, 8, 8, 3])})))


@pytest.mark.parametrize(
    "options, field",
    [
        ({"weight_bits": 9}, "weight_bits"),
        ({"activation_bits": 1}, "activation_bits"),
        ({"placement": "all"}, "placement"),
        ({"quant_delay": -1}, "quant_delay"),
        ({"quant_delay": 10, "freeze_bn_delay": 5}, "freeze_bn_delay"),
    ],
)
def test_options_are_validated(options, field):
    with pytest.raises(ConfigError, match=field):
        config.QatConfig(**options)


@pytest.mark.skipif(not IS_TF1, reason="tf.contrib.quantize, the oracle, runs on TensorFlow 1.15 only")
@pytest.mark.parametrize("training", [True, False])
def test_contrib_placement_is_contribs(training):
    from tensorflow.contrib import quantize

    def names(rewrite):
        with tf.Graph().as_default() as graph:
            _build(training)
            rewrite(graph)
            quants = sorted(
                (op.name, op.get_attr("num_bits"), op.get_attr("narrow_range")) for op in _fake_quants(graph)
            )
            return quants, sorted(v.op.name for v in tf.global_variables())

    if training:
        theirs = names(quantize.create_training_graph)
        ours = names(lambda g: api.create_training_graph(g, placement="contrib"))
        # A range behind a ReLU has no minimum to average here.
        assert set(ours[1]) <= set(theirs[1])
        assert {n for n in theirs[1] if n not in ours[1]} <= {
            n for n in theirs[1] if n.endswith(("min/biased", "min/local_step"))
        }
    else:
        theirs = names(quantize.create_eval_graph)
        ours = names(lambda g: api.create_eval_graph(g, placement="contrib"))
        assert ours[1] == theirs[1]
    assert ours[0] == theirs[0]


@pytest.mark.skipif(not IS_TF1, reason="tf.contrib.quantize, the oracle, runs on TensorFlow 1.15 only")
def test_contrib_placement_computes_what_contrib_computes():
    from tensorflow.contrib import quantize

    values = _trained_values()

    def outputs(rewrite):
        with tf.Graph().as_default() as graph:
            images, _, _, _ = _build(False)
            rewrite(graph)
            heads = [
                graph.get_tensor_by_name("Head_{}/{}/act_quant/{}:0".format(n, k, FAKE_QUANT))
                for n in (0, 1)
                for k in ("box", "class")
            ]
            with sessions.plain() as session:
                session.run([tf.assign(v, values[v.op.name]) for v in tf.global_variables()])
                return session.run(heads, {images: _images(5)})

    for a, b in zip(
        outputs(quantize.create_eval_graph), outputs(lambda g: api.create_eval_graph(g, placement="contrib"))
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_report_names_each_layer_with_its_fake_quants(training):
    with tf.Graph().as_default() as graph:
        _build(training)
        before = [op.type for op in graph.get_operations()]
        report = (api.create_training_graph if training else api.create_eval_graph)(graph)
        after = [op.type for op in graph.get_operations()]
    assert (report.ops_before, report.ops_after) == (len(before), len(after))
    assert report.ops_added == {
        kind: after.count(kind) - before.count(kind)
        for kind in set(after)
        if after.count(kind) != before.count(kind)
    }
    assert report.ops_added[FAKE_QUANT] == len(report.weights) + len(report.activations)
    assert list(report.as_dict()["ops_added"]) == sorted(report.ops_added)
    layers = {layer.op: layer for layer in report.layers}
    assert len(layers) == nets.LAYERS
    assert [layer.weights for layer in report.layers] == list(report.weights)
    named = [name for layer in report.layers for name in layer.activations]
    assert sorted(named + [n for n in report.activations if n.endswith("concat_quant")]) == sorted(
        report.activations
    )
    # The residual add is the projection's, which it ends, and not the shortcut's.
    project = layers["net/residual/project/Conv2D"]
    assert project.activations == (
        "net/residual/project/act_quant",
        "net/residual/post_activation_bypass_quant",
    )
    assert project.pattern.startswith("Conv2D -> FusedBatchNormV3 -> Identity -> Add")
    assert layers["net/block/project/Conv2D"].activations == ("net/block/project/act_quant",)
    depthwise = layers["net/block/depthwise/depthwise"]
    assert depthwise.pattern == "DepthwiseConv2dNative -> FusedBatchNormV3 -> Relu6"
    assert layers["Head_0/box/Conv2D"].pattern == "Conv2D -> BiasAdd"


def test_report_as_json_is_stable_and_its_table_fits_a_screen():
    def report():
        with tf.Graph().as_default() as graph:
            _build(True)
            return api.create_training_graph(graph)

    first = json.dumps(report().as_dict())
    assert first == json.dumps(report().as_dict())
    read = json.loads(first)
    assert read["format"] == "od_qat/rewrite/1"
    assert read["layers"][0]["weights"] in read["weights"]
    assert list(read["patterns"]) == sorted(read["patterns"])

    small = report()
    text = small.table()
    assert "4        4        4  Conv2D -> BiasAdd: Head_0/box/Conv2D" in text
    assert "stay float" not in text
    many = small._replace(
        layers=tuple(
            small.layers[0]._replace(op="a" * 200 + str(n), pattern="Conv2D -> Op{}".format(n % 40))
            for n in range(4000)
        ),
        stays_float={"layer_{}".format(n): "a reason" for n in range(300)},
    )
    lines = many.table().splitlines()
    assert len(lines) <= 40 and max(len(line) for line in lines) <= 110
    assert any(line.strip() == "and 28 more patterns" for line in lines)
    assert lines[-1].strip() == "and 288 more"


def test_report_names_both_layers_of_a_shared_kernel_and_what_stays_float():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, 8, 8, 3])
        kernel = tf.get_variable("kernel", [1, 1, 3, 3])
        bias = tf.get_variable("bias", [3])
        for name in ("a", "b"):
            with tf.name_scope(name):
                tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(images, kernel, 1, "SAME", name="conv"), bias))
        with tf.name_scope("c"):
            tf.nn.conv2d(images, tf.ones([1, 1, 3, 3]), 1, "SAME", name="conv")
        report = api.create_training_graph(graph)
    layers = {layer.op: layer for layer in report.layers}
    assert sorted(layers) == ["a/conv", "b/conv"]
    assert layers["a/conv"].weights == layers["b/conv"].weights == report.weights[0]
    assert layers["b/conv"].activations == ("b/act_quant",)
    assert report.stays_float == {"c/conv": "its weights are not a variable"}
    assert report.excluded == set()
    assert "  c/conv: its weights are not a variable" in report.table()


@pytest.mark.parametrize("activation", ["hard_swish", "relu6", "linear"])
def test_batch_norm_that_updates_its_averages_in_place_is_named_as_in_eval(activation):
    """Its Identity, which waits for the updates, is in training graphs only (MobileDet, in-place updates)."""
    import tf_slim as slim

    activate = {
        "hard_swish": lambda x: x * tf.nn.relu6(x + 3.0) / 6.0,
        "relu6": tf.nn.relu6,
        "linear": tf.identity,
    }[activation]
    saved, moved = {}, None
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            images = tf.placeholder(tf.float32, [4, 16, 16, 3])
            norm = {"is_training": training, "updates_collections": None, "decay": 0.5}
            net = images
            for number in range(3):
                net = slim.conv2d(
                    net,
                    8,
                    3,
                    activation_fn=activate,
                    normalizer_fn=slim.batch_norm,
                    normalizer_params=norm,
                    scope="Conv_{}".format(number),
                )
            output = tf.reduce_mean(net)
            in_place = [op for op in graph.get_operations() if op.type == "Identity" and op.control_inputs]
            assert bool(in_place) == training
            api.create_training_graph(graph) if training else api.create_eval_graph(graph)
            names = {v.op.name for v in graph.get_collection(QUANT_VARIABLES)}
            saved[training] = {name for name in names if not name.endswith(("/biased", "/local_step"))}
            if training:
                average = graph.get_tensor_by_name("Conv_0/BatchNorm/moving_mean:0")
                with sessions.plain() as session:
                    session.run(tf.global_variables_initializer())
                    session.run(output, {images: np.random.RandomState(0).uniform(0, 1, (4, 16, 16, 3))})
                    moved = session.run(average)
    assert saved[True] == saved[False]
    assert np.any(moved)
