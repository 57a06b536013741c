"""Several clones of a model in one graph: one set of range variables, under the names of a single model."""

import re

import numpy as np
import pytest

from od_qat import checkpoints, compat

compat.enable_tf1_behaviour()

from od_qat.compat import tf  # noqa: E402
from od_qat.errors import RewriteError  # noqa: E402
from od_qat.rewrite import api  # noqa: E402
from tests.helpers import nets, sessions  # noqa: E402

pytestmark = pytest.mark.tf1


def build(clones, training=True, **options):
    """A rewritten graph of a model in some clones, as slim's model_deploy builds them, and the report."""
    graph = tf.Graph()
    with graph.as_default():
        tf.train.get_or_create_global_step()
        losses = []
        for number in range(clones):
            with tf.name_scope("clone_{}".format(number) if clones > 1 else ""):
                images = tf.placeholder(tf.float32, [2, 32, 32, 3], name="images")
                with tf.variable_scope(tf.get_variable_scope(), reuse=number > 0 or None):
                    boxes, scores = nets.small_ssd(images, training)
                losses.append(tf.reduce_sum(tf.square(boxes)) + tf.reduce_sum(tf.square(scores)))
        kind = "training" if training else "eval"
        report = getattr(api, "experimental_create_{}_graph".format(kind))(graph, **options)
        graph.losses = losses
    return graph, report


def quant_variables(graph):
    return {v.op.name: v for v in graph.get_collection(checkpoints.QUANT_VARIABLES)}


@pytest.mark.parametrize("placement", ["full", "contrib"])
@pytest.mark.parametrize("training", [True, False])
def test_the_variables_are_those_of_one_model(training, placement):
    one, _ = build(1, training, placement=placement)
    two, _ = build(2, training, placement=placement)
    assert sorted(quant_variables(two)) == sorted(quant_variables(one))
    assert not any(v.op.name.startswith("clone_") for v in two.get_collection("variables"))


def test_every_clone_is_quantised_as_one_model_is():
    one, _ = build(1)
    three, _ = build(3)

    def count(graph, pattern):
        return sum(
            op.type == "FakeQuantWithMinMaxVars" and bool(re.search(pattern, op.name))
            for op in graph.get_operations()
        )

    assert count(three, "act_quant|add_quant|concat_quant|conv_quant") == 3 * count(
        one, "act_quant|add_quant|concat_quant|conv_quant"
    )
    for graph, clones in ((one, 1), (three, 3)):
        read = [op for op in graph.get_operations() if op.type in ("Conv2D", "DepthwiseConv2dNative")]
        assert len(read) == nets.LAYERS * clones
        for op in read:
            source = op.inputs[1].op
            while source.type in ("RealDiv", "Reshape"):
                source = source.inputs[0].op
            assert source.type == "FakeQuantWithMinMaxVars", op.name


def test_the_report_is_that_of_one_model():
    one, single = build(1)
    _, double = build(2)
    assert double.weights == single.weights
    assert double.activations == single.activations
    assert double.folded == single.folded and double.patterns == single.patterns
    assert [layer.op for layer in double.layers] == ["clone_0/" + layer.op for layer in single.layers]


def _train(graph, feeds, steps):
    with graph.as_default():
        loss = tf.add_n(graph.losses) / float(len(graph.losses))
        optimizer = tf.train.GradientDescentOptimizer(1e-4)
        update = optimizer.minimize(loss, global_step=tf.train.get_global_step())
        variables = tf.trainable_variables()
        ranges = quant_variables(graph)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            rng = np.random.RandomState(3)
            weights = [v for v in variables if v.op.name.endswith("weights")]
            values = {v: rng.normal(0, 0.3, v.shape.as_list()).astype(np.float32) for v in weights}
            sessions.assign(session, values)
            for step in range(steps):
                session.run(update, {name + ":0": feeds[step] for name in _image_names(graph)})
            return session.run([ranges, {v.op.name: v for v in variables}])


def _image_names(graph):
    return [op.name for op in graph.get_operations() if op.type == "Placeholder" and "images" in op.name]


@pytest.mark.parametrize("delay", [0, 1])
def test_two_clones_of_the_same_images_train_as_one_model(delay):
    feeds = np.random.RandomState(0).normal(0, 1, (3, 2, 32, 32, 3)).astype(np.float32)
    results = [_train(build(clones, quant_delay=delay)[0], feeds, 3) for clones in (1, 2)]
    for one, two in zip(*results):
        assert sorted(one) == sorted(two)
        for name in one:
            np.testing.assert_allclose(one[name], two[name], rtol=2e-4, atol=1e-5, err_msg=name)


def test_the_ranges_are_the_first_clones():
    graph, _ = build(2)
    images = np.random.RandomState(1).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
    found = []
    with graph.as_default():
        tf.set_random_seed(0)
        start = [(v, np.full(v.shape.as_list(), 0.1, np.float32)) for v in tf.trainable_variables()]
        for factor in (1, 50):
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                sessions.assign(session, dict(start))
                session.run(graph.losses, {"clone_0/images:0": images, "clone_1/images:0": factor * images})
                found.append(session.run(quant_variables(graph)))
    for name in found[0]:
        np.testing.assert_array_equal(found[0][name], found[1][name], err_msg=name)


def test_a_clone_never_runs_with_ranges_that_have_not_been_set():
    """It reads what the first clone has just updated, so fetching its loss alone updates them all."""
    graph, _ = build(2)
    images = np.random.RandomState(1).normal(0, 1, (2, 32, 32, 3)).astype(np.float32)
    feed = {"clone_{}/images:0".format(number): images for number in (0, 1)}
    with graph.as_default(), tf.Session() as session:
        session.run(tf.global_variables_initializer())
        session.run(graph.losses[1], feed)
        moved = session.run(quant_variables(graph))
    counts = {name: value for name, value in moved.items() if name.endswith("/local_step")}
    assert counts and set(counts.values()) == {1.0}
    weights = [value for name, value in moved.items() if name.endswith("weights_quant/max")]
    assert weights and 6.0 not in weights


def test_rules_and_scopes_name_a_layer_without_its_clone():
    from od_qat.config import LayerRule

    graph, report = build(2, rules=(LayerRule("Head_.*", quantize=False),))
    assert not any(name.startswith("Head_") for name in quant_variables(graph))
    assert sorted(report.stays_float) == [
        "clone_0/Head_{}/{}/Conv2D".format(n, k) for n in (0, 1) for k in ("box", "class")
    ]
    assert report.excluded == set(report.stays_float)


def test_clones_that_differ_are_refused_and_nothing_is_touched():
    graph = tf.Graph()
    with graph.as_default():
        for number in range(2):
            with tf.name_scope("clone_{}".format(number)):
                images = tf.placeholder(tf.float32, [2, 32, 32, 3])
                with tf.variable_scope(tf.get_variable_scope(), reuse=number > 0 or None):
                    boxes, scores = nets.small_ssd(images, True)
                    if number:
                        weights = tf.get_variable("net/Conv/weights", [3, 3, 3, 8])
                        tf.nn.relu(tf.nn.conv2d(images, weights, [1, 1, 1, 1], "SAME", name="only/Conv2D"))
        before = [op.name for op in graph.get_operations()]
        with pytest.raises(RewriteError, match="clones differ.*clone_1/only"):
            api.experimental_create_training_graph(graph)
        assert [op.name for op in graph.get_operations()] == before


def test_a_models_own_scope_of_that_name_stays_in_its_names():
    graph = tf.Graph()
    with graph.as_default():
        for number in range(2):
            images = tf.placeholder(tf.float32, [2, 32, 32, 3])
            with tf.variable_scope("clone_{}".format(number)):
                nets.small_ssd(images, True)
        api.experimental_create_training_graph(graph)
    assert {"clone_0", "clone_1"} == {name.split("/")[0] for name in quant_variables(graph)}


class TestDevices(object):
    """Work on a tensor stands where the tensor is, variables where tf.device says."""

    def test_a_clones_work_is_on_its_own_device(self):
        graph = tf.Graph()
        with graph.as_default():
            for number in range(2):
                with tf.name_scope("clone_{}".format(number)), tf.device("/device:GPU:{}".format(number)):
                    images = tf.placeholder(tf.float32, [2, 32, 32, 3])
                    with tf.variable_scope(tf.get_variable_scope(), reuse=number > 0 or None):
                        nets.small_ssd(images, True)
            with tf.device("/device:CPU:0"):
                api.experimental_create_training_graph(graph)
        for op in graph.get_operations():
            if op.type.startswith("FakeQuant") and "act_quant" in op.name:
                assert op.device.endswith("GPU:1" if op.name.startswith("clone_1/") else "GPU:0"), op.name
        for variable in quant_variables(graph).values():
            assert variable.device.endswith("CPU:0")
        # Every update stands with its variable.
        for op in graph.get_operations():
            if op.type.startswith("Assign") and "quant" in op.name:
                assert op.device == op.inputs[0].op.device

    def test_parameter_servers_get_the_variables_and_nothing_else(self):
        servers = iter(range(10**6))

        def choose(op):
            if op.device or not op.type.startswith("Variable"):
                return op.device
            return "/job:ps/task:{}/device:CPU:0".format(next(servers) % 2)

        graph = tf.Graph()
        with graph.as_default():
            with tf.device("/job:worker/task:3/device:CPU:0"):
                with tf.device(choose):
                    step = tf.train.get_or_create_global_step()
                    images = tf.placeholder(tf.float32, [2, 32, 32, 3])
                    nets.small_ssd(images, True)
                    before = set(op.name for op in graph.get_operations())
                    api.experimental_create_training_graph(graph, quant_delay=5)
        assert "/job:ps" in step.device
        added = [op for op in graph.get_operations() if op.name not in before]
        assert [op.name for op in added if not op.device and "/Initializer/" not in op.name] == []
        on_servers = {op.type for op in added if "/job:ps" in op.device}
        assert on_servers <= {"VariableV2", "Identity", "Assign", "AssignAdd", "AssignSub"}
        tasks = {variable.device for variable in quant_variables(graph).values()}
        assert len(tasks) == 2
