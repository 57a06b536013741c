"""Nets as users bring them, trained, frozen and converted: the int8 .tflite computes what the eval graph did.

Where the converter derives a range by itself, a tensor without a trained one is not seen to be float. It
shows in the numbers as soon as what meets there differs in size, so here it does.
"""

import functools
import os

import numpy as np
import pytest

from od_qat.compat import IS_TF1, tf
from od_qat.errors import CheckpointError, ExportError, RewriteError
from od_qat.export import freeze, tflite_checks
from od_qat.rewrite import api
from tests.helpers.small_road import (
    SIZE,
    conv,
    converted,
    distance,
    frozen,
    norm,
    pictures,
    run,
    run_tflite,
    trained,
    variable,
)
from tests.zoo import build

pytestmark = pytest.mark.tf1


def _pool_beside_conv(net, training):
    net = tf.nn.relu(conv(net, "stem", spread=0.5))
    small = tf.nn.relu(conv(net, "branch", spread=0.003))
    return conv(tf.concat([small, tf.nn.max_pool2d(net, 2, 1, "SAME")], 3), "out")


def _upsampled_beside_skip(net, training):
    net = tf.nn.relu(conv(net, "stem", spread=0.5))
    down = tf.nn.relu(conv(tf.nn.avg_pool2d(net, 2, 2, "SAME"), "down", spread=0.5))
    skip = tf.nn.relu(conv(net, "skip", spread=0.003))
    return conv(tf.concat([skip, tf.image.resize_nearest_neighbor(down, [SIZE, SIZE])], 3), "out")


def _half_beside_conv(net, training):
    kept, other = tf.split(tf.nn.relu(conv(net, "stem", spread=0.5)), 2, 3)
    return conv(tf.concat([tf.nn.relu(conv(other, "branch", spread=0.003)), kept], 3), "out")


def _pre_activation_without_bias(net, training):
    shortcut = conv(net, "stem", bias=False)
    net = conv(tf.nn.relu(norm(shortcut, "unit/norm", training)), "unit/first", bias=False)
    net = conv(tf.nn.relu(norm(net, "unit/norm_2", training)), "unit/second", bias=False)
    return conv(tf.nn.relu(norm(shortcut + net, "last_norm", training)), "out")


def _sum_of_bare_layers(net, training):
    net = tf.nn.relu(conv(net, "one", bias=False) + conv(net, "two", bias=False))
    return conv(tf.nn.relu(conv(net, "three", bias=False) + net), "out")


def _swishes(net, training):
    first = tf.nn.swish(norm(conv(net, "one", bias=False), "one/norm", training))
    second = tf.nn.swish(norm(conv(first, "two", bias=False, spread=0.05), "two/norm", training))
    both = tf.nn.swish(norm(conv(tf.concat([first, second], 3), "three", bias=False), "norm", training))
    return conv(both + first, "out")


def _hard_swish_by_division(net, training):
    net = norm(conv(net, "one", bias=False), "one/norm", training)
    return conv(net * tf.nn.relu6(net + 3.0) / 6.0, "out")


def _outputs_with_names(net, training):
    """The eval graph names its output, which there and only there makes an Identity of it."""
    with tf.variable_scope("heads"):
        layers = [
            tf.nn.conv2d(net, variable("w{}".format(i), [1, 1, 8, 8], s), [1, 1, 1, 1], "SAME")
            for i, s in enumerate((0.01, 1.0, 0.1))
        ]
        first, second, third = [
            tf.nn.bias_add(layer, variable("b{}".format(i), [8], 0.1)) for i, layer in enumerate(layers)
        ]
    if not training:
        second = tf.identity(second, "scores")
    return tf.concat([tf.nn.relu(first), second, third], 3)


def _shuffled_channels(net, training):
    both = tf.concat([conv(net, "one", spread=0.003), conv(net, "two", spread=0.5)], 3)
    both = tf.transpose(tf.reshape(both, [-1, SIZE * SIZE, 2, 8]), [0, 1, 3, 2])
    return conv(tf.reshape(both, [-1, SIZE, SIZE, 16]), "out")


def _flat_concat(net, training):
    both = tf.concat([conv(net, "one", spread=0.003), conv(net, "two", spread=0.5)], 3)
    both = tf.reshape(both, [-1, SIZE * SIZE * 16])
    return tf.nn.bias_add(tf.matmul(both, variable("w", [SIZE * SIZE * 16, 8], 0.1)), variable("b", [8], 0.1))


def _biases_in_front_of_norms(net, training):
    """As Keras' layers have them unless they are told not to."""
    net = tf.nn.relu(norm(conv(net, "one"), "one/norm", training))
    net = tf.nn.relu6(norm(conv(net, "two", spread=0.05), "two/norm", training))
    return norm(conv(net, "out"), "out/norm", training)


def _averages_as_products(net, training):
    """decay * average + (1 - decay) * statistic, with tf.nn.batch_normalization."""
    for number in range(2):
        with tf.variable_scope("layer_{}".format(number)):
            net = conv(net, "conv", bias=False, spread=0.05)
            averages = [
                tf.get_variable(name, [8], initializer=initial(), trainable=False)
                for name, initial in (("mean", tf.zeros_initializer), ("variance", tf.ones_initializer))
            ]
            used = averages
            if training:
                used = tf.nn.moments(net, [0, 1, 2])
                for average, batch in zip(averages, used):
                    update = tf.assign(average, average * 0.8 + batch * 0.2)
                    tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
            gamma = tf.get_variable("gamma", [8], initializer=tf.ones_initializer())
            net = tf.nn.relu(tf.nn.batch_normalization(net, used[0], used[1], None, gamma, 0.001))
    return conv(net, "out")


def _gates(net, training):
    gate = tf.nn.sigmoid(conv(net, "gate"))
    net = tf.nn.tanh(conv(net, "state")) * gate
    return conv(net + gate, "out")


def _stacked(net, training):
    both = [tf.nn.relu(conv(net, "one", spread=0.003)), tf.nn.relu(conv(net, "two", spread=0.5))]
    return conv(tf.reshape(tf.stack(both, 3), [-1, SIZE, 2 * SIZE, 8]), "out")


def _padded_with_a_value(net, training):
    net = tf.nn.relu6(conv(net, "one", spread=0.05))
    return conv(tf.pad(net, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-4.0), "out")


def _noise_in_training(net, training):
    net = conv(net, "one")
    if training:
        net = net + 0.01 * tf.random_normal(tf.shape(net))
    return conv(tf.nn.relu(net), "out")


def _bare_norms(net, training):
    """The first is read by the next layer, the second by that and by a ReLU, the third by no layer."""
    net = norm(conv(net, "one", bias=False), "one/norm", training)
    net = norm(conv(net, "two", bias=False), "two/norm", training)
    beside = conv(tf.nn.relu(net), "beside")
    net = tf.nn.relu(norm(conv(net, "three", bias=False), "three/norm", training))
    return conv(tf.concat([net, beside], 3), "out")


def _noise_behind_an_activation(net, training):
    """In training there is one sum more in the scope; the others keep their names."""
    with tf.variable_scope("block"):
        net = tf.nn.relu(conv(net, "one", spread=0.02))
        if training:
            net = net + tf.random_normal(tf.shape(net), stddev=0.001)
        net = 20.0 * tf.nn.relu(conv(net, "two")) + tf.nn.relu(conv(net, "three"))
    return conv(net, "out")


def _coordinates_beside_conv(net, training):
    line = np.linspace(-1, 1, SIZE, dtype=np.float32)
    both = np.stack(np.meshgrid(line, line), -1)[None]
    small = tf.nn.relu(conv(net, "one", spread=0.003))
    return conv(tf.concat([small, tf.constant(np.tile(both, [int(net.shape[0]), 1, 1, 1]))], 3), "out")


def _image_beside_conv(net, training):
    return conv(tf.concat([tf.nn.relu(conv(net, "one", spread=0.003)), net], 3), "out")


def _layer_read_twice(net, training):
    net = conv(net, "stem", bias=False, spread=0.5)
    return conv(tf.concat([tf.nn.relu(net), 0.02 * net, net], 3), "out")


def _layer_read_by_norm_and_relu(net, training):
    net = conv(net, "one", bias=False)
    both = [tf.nn.relu(norm(net, "one/norm", training)), tf.nn.relu(net)]
    return conv(tf.concat(both, 3), "out")


def _residuals_without_norms(net, training):
    net = conv(net, "stem", bias=False)
    for block in ("one", "two"):
        side = tf.nn.relu(conv(tf.nn.relu(net), block + "/first", bias=False))
        net = net + 0.2 * conv(side, block + "/second", bias=False)
    return conv(tf.nn.relu(net), "out")


def _scaled_and_shifted(net, training):
    """A frozen norm as a scale and a bias (Detectron's AffineChannel), behind layers with a shortcut."""

    def affine(net, name):
        return net * variable(name + "_scale", [8], 0.5) + variable(name + "_shift", [8], 0.2)

    net = tf.nn.relu(affine(conv(net, "stem", bias=False), "stem"))
    for block in ("one", "two"):
        side = tf.nn.relu(affine(conv(net, block + "/first", bias=False), block + "_first"))
        net = tf.nn.relu(affine(conv(side, block + "/second", bias=False), block + "_second") + net)
    return conv(net, "out")


def _learned_positions(net, training):
    net = conv(net, "one", bias=False) + variable("position", [1, SIZE, SIZE, 8], 1.0)
    return conv(tf.nn.relu(net), "out")


def _hard_swish_of_a_bare_layer(net, training):
    net = conv(net, "one", bias=False)
    return conv(net * tf.nn.relu6(net + 3.0) * (1.0 / 6.0), "out")


def _ends_in_activations(net, training):
    """Such as FCOS' boxes: a learned scale and a ReLU behind the last layer."""
    scaled = tf.nn.relu(conv(net, "boxes") * tf.get_variable("scale", [], initializer=tf.ones_initializer()))
    leaky = tf.nn.leaky_relu(norm(conv(net, "leaky", bias=False), "leaky/norm", training))
    joined = tf.nn.relu(tf.concat([conv(net, "one"), conv(net, "two", spread=0.003)], 3))
    return tf.concat([tf.reshape(end, [-1]) for end in (scaled, leaky, joined)], 0)


def _prelu(net, training):
    """As Keras writes it."""
    net = norm(conv(net, "one", bias=False), "one/norm", training)
    slope = tf.get_variable("slope", [8], initializer=tf.constant_initializer(0.25))
    return conv(tf.nn.relu(net) - slope * tf.nn.relu(-net), "out")


def _names_that_differ_in_case(net, training):
    for name in ("Block/Conv", "block/conv"):
        weights = variable(name.replace("/", "_") + "_w", [3, 3, 8, 8], 0.3)
        net = tf.nn.relu(tf.nn.conv2d(net, weights, [1, 1, 1, 1], "SAME", name=name))
    return conv(net, "out")


def _transposed_convolutions(net, training):
    """With a bias, as Keras has it, also in front of a batch norm; and with neither."""

    def twice_as_large(net, name, channels, bias=True):
        with tf.variable_scope(name):
            weights = variable("w", [3, 3, channels, int(net.shape[3])], 0.2)
            shape = [int(net.shape[0]), 2 * SIZE, 2 * SIZE, channels]
            net = tf.nn.conv2d_transpose(net, weights, shape, [1, 2, 2, 1], "SAME")
            return tf.nn.bias_add(net, variable("b", [channels], 0.2)) if bias else net

    def half_as_large(net):
        return tf.nn.max_pool2d(net, 2, 2, "VALID")

    net = half_as_large(tf.nn.relu(norm(twice_as_large(net, "one", 6), "one/norm", training)))
    net = half_as_large(tf.nn.relu(norm(twice_as_large(net, "two", 8, False), "two/norm", training)))
    net = half_as_large(tf.nn.relu(twice_as_large(net, "three", 4)))
    return conv(half_as_large(twice_as_large(net, "four", 8)), "out")


NETS = [
    _pool_beside_conv,
    _upsampled_beside_skip,
    _half_beside_conv,
    _pre_activation_without_bias,
    _sum_of_bare_layers,
    _swishes,
    _hard_swish_by_division,
    _outputs_with_names,
    _shuffled_channels,
    _flat_concat,
    _biases_in_front_of_norms,
    _averages_as_products,
    _gates,
    _stacked,
    _padded_with_a_value,
    _noise_in_training,
    _bare_norms,
    _noise_behind_an_activation,
    _coordinates_beside_conv,
    _image_beside_conv,
    _layer_read_twice,
    _layer_read_by_norm_and_relu,
    _residuals_without_norms,
    _scaled_and_shifted,
    _learned_positions,
    _hard_swish_of_a_bare_layer,
    _ends_in_activations,
    _prelu,
    _names_that_differ_in_case,
    _transposed_convolutions,
]

# What TensorFlow 1.15's converter says, or the interpreter of what it made.
TF1_CONVERTS_NOT = {
    _hard_swish_by_division: "type Div for which the quantized form is not yet implemented",
    _transposed_convolutions: "conv2d_transpose_Fold, which is an input to the Add .* lacking min/max data",
}


def _by_name(marks_of_last):
    """The nets, with marks for those behind the first eight."""
    for number, net in enumerate(NETS):
        yield pytest.param(net, id=net.__name__.strip("_"), marks=marks_of_last if number >= 8 else [])


@pytest.mark.parametrize("net", _by_name([pytest.mark.long_on_tf1]))
def test_what_was_trained_is_what_the_tflite_computes(net, tmp_path, request):
    if IS_TF1 and net is _padded_with_a_value:
        reason = "TensorFlow 1.15's converter gives a padding's value a range of its own"
        request.node.add_marker(pytest.mark.xfail(strict=True, reason=reason))
    checkpoint = trained(net, str(tmp_path))
    quantised = frozen(net, checkpoint)
    here = run(quantised)
    assert distance(run(frozen(net, checkpoint, rewrite=False)), here) < 0.1
    if IS_TF1 and net in TF1_CONVERTS_NOT:
        with pytest.raises(ExportError, match=TF1_CONVERTS_NOT[net]):
            tflite_checks.inspect(converted(quantised))
        return
    model = converted(quantised)
    assert (
        tflite_checks.check(model, tflite_checks.count_weights(quantised), net.__name__).float_tensors == []
    )
    assert distance(here, run_tflite(model)) < 0.05


@pytest.mark.skipif(not IS_TF1, reason="tf.contrib.quantize, the oracle, runs on TensorFlow 1.15 only")
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("net", NETS, ids=lambda net: net.__name__.strip("_"))
def test_contrib_placement_is_contribs(net, training, request):
    if net in (_pre_activation_without_bias, _layer_read_by_norm_and_relu):
        reason = "contrib folds into a copy of a layer that others read too, and quantises both"
        request.node.add_marker(pytest.mark.xfail(strict=True, reason=reason))
    from tensorflow.contrib import quantize

    found, outputs = [], []
    for create in (
        quantize.create_training_graph if training else quantize.create_eval_graph,
        functools.partial(
            api.create_training_graph if training else api.create_eval_graph, placement="contrib"
        ),
    ):
        with tf.Graph().as_default() as graph:
            images = tf.placeholder(tf.float32, [4, SIZE, SIZE, 8])
            output = tf.stop_gradient(net(images, training))
            create(graph)
            quants = [
                (op.name, op.get_attr("num_bits"), op.get_attr("narrow_range"))
                for op in graph.get_operations()
                if op.type == "FakeQuantWithMinMaxVars"
            ]
            # (A range behind a ReLU has no minimum to average here.)
            variables = [v.op.name for v in tf.global_variables()]
            averaged = [
                n for n in variables if n.rpartition("/")[2] in ("biased", "local_step") and "/min" in n
            ]
            found.append((sorted(quants), sorted(set(variables) - set(averaged))))
            if not training:
                outputs.append(build.run_with_values(output, images, pictures(7)))
    assert found[0] == found[1]
    if not training:
        np.testing.assert_allclose(outputs[1], outputs[0], atol=1e-5 * np.ptp(outputs[0]), rtol=0)


def test_the_report_names_what_contrib_passes_over():
    with tf.Graph().as_default() as graph:
        _bare_norms(tf.placeholder(tf.float32, [1, SIZE, SIZE, 8]), False)
        report = api.create_eval_graph(graph, placement="contrib")
    assert set(report.stays_float) == {"one/Conv2D", "two/Conv2D"}
    assert "as with contrib: three/Conv2D reads past its folding" in report.stays_float["two/Conv2D"]


def test_a_comparison_of_different_scales_is_right_or_refused(tmp_path):
    def net(images, training):
        return conv(tf.maximum(conv(images, "one", spread=0.1), tf.nn.relu(conv(images, "two"))), "out")

    quantised = frozen(net, trained(net, str(tmp_path)))
    model, weights = converted(quantised), tflite_checks.count_weights(quantised)
    if IS_TF1:
        with pytest.raises(ExportError, match="different scales.*found 1 such op.*no MAXIMUM or MINIMUM"):
            tflite_checks.check(model, weights, "net")
        assert distance(run(quantised), run_tflite(model)) > 0.2  # (so it is not refused for nothing)
    else:
        tflite_checks.check(model, weights, "net")
        assert distance(run(quantised), run_tflite(model)) < 0.05


def test_ranges_whose_numbers_may_have_shifted_are_named(tmp_path, capsys):
    def net(images, training):
        net = tf.nn.relu(conv(images, "one"))
        if training:  # (noise that is made of data, too, is taken for data)
            net = net + 0.01 * tf.random_normal(tf.shape(net)) * tf.stop_gradient(net)
        return conv(net + tf.nn.relu(conv(net, "two")), "out")

    checkpoint = trained(net, str(tmp_path))
    capsys.readouterr()
    frozen(net, checkpoint)
    said = capsys.readouterr().err
    assert "post_activation_bypass_quant_1: was it trained" in said and "a scope of their own" in said


def test_ops_whose_numbers_shifted_are_explained(tmp_path):
    def net(images, training):
        net = tf.nn.relu(conv(images, "one"))
        if training:
            net = net - tf.random_uniform(tf.shape(net), -0.01, 0.01)
        return conv(net - tf.nn.relu(conv(net, "two")), "out")

    with pytest.raises(
        CheckpointError, match="no sub/output_quant/max.*shift the numbers of ops that have no name"
    ):
        frozen(net, trained(net, str(tmp_path)))


@pytest.mark.parametrize("kind, reported", [(tf.int32, set()), (tf.float64, {"product"})])
def test_a_product_of_integers_is_not_reported_as_float(kind, reported):
    """As in the targets of a loss (CenterNet's)."""
    with tf.Graph().as_default():
        conv(tf.placeholder(tf.float32, [4, SIZE, SIZE, 8]), "out")
        tf.matmul(tf.placeholder(kind, [2, 3]), tf.placeholder(kind, [3, 2]), name="product")
        assert set(api.create_training_graph().stays_float) == reported


def test_a_variance_is_reported_only_where_it_is_data():
    def stays_float(build):
        with tf.Graph().as_default() as graph:
            build(tf.placeholder(tf.float32, [4, SIZE, SIZE, 8]))
            return set(api.create_training_graph(graph).stays_float)

    def batch_norm(net):
        net = conv(net, "one") + conv(net, "two")
        conv(tf.nn.relu(slim.batch_norm(net, is_training=True, fused=False, scope="norm")), "out")

    def instance_norm(net):
        net = conv(net, "one")
        mean, variance = tf.nn.moments(net, [1, 2], keep_dims=True)
        conv((net - mean) * tf.rsqrt(variance + 0.001), "out")

    import tf_slim as slim

    assert stays_float(batch_norm) == set()
    assert stays_float(instance_norm) == {"moments/SquaredDifference"}


def test_a_named_output_is_quantised(tmp_path):
    def net(images, training):
        output = conv(tf.nn.relu6(conv(images, "one")), "two")
        return output if training else tf.identity(output, "scores")

    checkpoint = trained(net, str(tmp_path))
    with tf.Graph().as_default() as graph:
        net(tf.placeholder(tf.float32, [1, SIZE, SIZE, 8], name="images"), False)
        api.create_eval_graph(graph)
        frozen = freeze.freeze(checkpoint, ["scores"], graph)
    (source,) = [node.input[0] for node in frozen.node if node.name == "scores"]
    assert source == "two/act_quant/FakeQuantWithMinMaxVars"


@pytest.mark.parametrize("training", [True, False])
def test_an_absorbed_activation_reads_what_was_quantised_in_front_of_it(training):
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        normed = norm(conv(images, "one", bias=False), "one/norm", training)
        net = tf.nn.relu(conv(tf.nn.relu6(normed), "two") + normed)
        conv(net, "three")
        (api.create_training_graph if training else api.create_eval_graph)(graph)
        behind = graph.get_operation_by_name("one/act_quant/FakeQuantWithMinMaxVars").inputs[0].op
    in_front = behind if training else behind.inputs[0].op
    assert in_front.name == "one/norm/output_quant/FakeQuantWithMinMaxVars"


@pytest.mark.parametrize("training", [True, False])
def test_a_kernel_shared_with_a_layer_of_a_batch_norm_has_a_range_for_each(training):
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        weights = variable("w", [1, 1, 8, 8], 0.3)
        net = tf.nn.conv2d(images, weights, [1, 1, 1, 1], "SAME", name="plain")
        net = tf.nn.relu(tf.nn.bias_add(net, variable("b", [8], 0.3)))
        net = tf.nn.conv2d(net, weights, [1, 1, 1, 1], "SAME", name="normed")
        tf.nn.relu(norm(net, "norm", training))
        report = (api.create_training_graph if training else api.create_eval_graph)(graph)
        names = ("plain", "normed" if training else "normed_Fold")
        read = [graph.get_operation_by_name(name).inputs[1].op.name for name in names]
    assert report.weights == ("weights_quant", "weights_quant_1")
    assert [name.split("/")[0] for name in read] == ["weights_quant", "weights_quant_1"]


@pytest.mark.parametrize("noise", ["dropout", "gauss"])
def test_a_sum_and_a_product_in_front_of_noise_have_their_ranges(noise):
    """Only what puts the noise onto data is looked past, and a dropout's scaling."""

    def build(training):
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        total = tf.add(conv(images, "one"), conv(images, "two"), name="total")
        net = tf.multiply(total, tf.nn.sigmoid(conv(images, "gate")), name="gated") * 2.0
        if training and noise == "gauss":
            net = net + 0.1 * tf.random_normal(tf.shape(net))
        elif training:
            net = tf.nn.dropout(net + total, rate=0.5)
        elif noise == "dropout":
            net = net + total
        conv(net, "out")

    found = []
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            build(training)
            report = (api.create_training_graph if training else api.create_eval_graph)(graph)
            assert report.stays_float == {}
            found.append(set(report.activations))
    assert found[0] == found[1]
    assert len(found[1]) == (8 if noise == "dropout" else 7)


def test_what_has_no_range_between_layers_is_named():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        layers = [tf.nn.relu(conv(images, name)) for name in ("one", "two", "three")]
        conv(tf.add_n(layers, name="sum"), "out")
        report = api.create_eval_graph(graph)
    assert report.stays_float == {"sum": "no range is trained for AddN between layers"}


def test_a_graph_with_gradients_is_refused():
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        loss = tf.reduce_sum(conv(tf.nn.relu6(conv(images, "one")), "two"))
        tf.train.GradientDescentOptimizer(0.1).compute_gradients(loss)
        with pytest.raises(RewriteError, match="holds gradients already.*gradients/"):
            api.create_training_graph(graph)
        # What callers of contrib catch and look for.
        with pytest.raises(ValueError, match="^Training op found in graph"):
            api.create_training_graph(graph)


@pytest.mark.parametrize("activation", [tf.nn.tanh, tf.nn.elu, tf.nn.leaky_relu, tf.nn.softplus])
def test_a_graph_with_gradients_of_anything_is_refused(activation):
    with tf.Graph().as_default() as graph:
        weights = variable("w", [4, 4], 0.3)
        loss = tf.reduce_sum(activation(tf.matmul(tf.placeholder(tf.float32, [1, 4]), weights)))
        tf.gradients(loss, weights)
        with pytest.raises(RewriteError, match="holds gradients already"):
            api.create_training_graph(graph)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_a_batch_norm_that_a_tensor_switches_is_refused(fused, training):
    """It folds in neither graph, or in one: the range would be trained on other weights than are used."""
    import tf_slim as slim

    def build():
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        switch = tf.placeholder_with_default(training, [])
        net = slim.batch_norm(conv(images, "one"), is_training=switch, fused=fused, scope="one/norm")
        conv(tf.nn.relu(net), "two")

    with tf.Graph().as_default() as graph:
        build()
        before = graph.as_graph_def()
        with pytest.raises(RewriteError, match="at one/norm.*is_training is a tensor.*is_training=True"):
            (api.create_training_graph if training else api.create_eval_graph)(graph)
        assert graph.as_graph_def() == before


# For a process of its own: in this one control flow is TensorFlow 1's.
_IN_CONTROL_FLOW_V2 = (
    "import tensorflow.compat.v1 as tf; from od_qat.rewrite import api\n"
    "tf.enable_control_flow_v2()\n"
    "with tf.Graph().as_default() as graph:\n"
    "  x = tf.placeholder(tf.float32, [1, 4, 4, 2]); w = tf.get_variable('w', [1, 1, 2, 2])\n"
)


@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15's control flow has no functions unless asked for")
@pytest.mark.parametrize("called_by_it", ["norm(True)", "tf.function(norm)(True)"])
def test_a_batch_norm_in_a_function_is_refused(run_python, called_by_it):
    code = (
        "  net = tf.nn.conv2d(x, w, [1, 1, 1, 1], 'SAME')\n"
        "  ones, switch = tf.ones([2]), tf.placeholder(tf.bool, [])\n"
        "  norm = lambda training: tf.nn.fused_batch_norm(\n"
        "      net, ones, ones, ones, ones, is_training=training)[0]\n"
        "  tf.nn.relu6(tf.cond(switch, lambda: {}, lambda: tf.identity(net), name='norm'))\n"
        "  api.create_training_graph(graph)\n"
    ).format(called_by_it)
    status, _, errors = run_python("-c", _IN_CONTROL_FLOW_V2 + code)
    assert status == 1 and "at norm, found a tf.cond, as is_training is a tensor" in errors


@pytest.mark.parametrize("dtype", [tf.float16, tf.float64])
def test_layers_of_other_types_are_named(dtype):
    def build(layers):
        net = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        for name, kind in layers:
            weights = tf.get_variable(name, [1, 1, 8, 8], kind)
            net = tf.nn.relu(
                tf.nn.conv2d(tf.cast(net, kind), weights, [1, 1, 1, 1], "SAME", name=name + "/conv")
            )

    reason = "it computes in {}, fake quants in float32 only".format(dtype.name)
    with tf.Graph().as_default() as graph:
        build([("one", tf.float32), ("two", dtype), ("three", tf.float32)])
        report = api.create_training_graph(graph)
        assert report.weights == ("one/weights_quant", "three/weights_quant")
        assert report.stays_float == {"two/conv": reason}
    with tf.Graph().as_default() as graph:
        build([("one", dtype)])
        with pytest.raises(RewriteError, match="nothing to quantize.*one/conv: " + reason):
            api.create_training_graph(graph)


def test_a_graph_that_waits_for_quantization_is_not_frozen(tmp_path):
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        tf.identity(conv(tf.nn.relu6(conv(images, "one")), "two"), "result")
        api.experimental_create_eval_graph(graph, quant_delay=5)
        with pytest.raises(ExportError, match="quant_delay"):
            freeze.freeze(os.path.join(str(tmp_path), "model.ckpt-1"), ["result"], graph)


@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15's control flow has no functions unless asked for")
def test_layers_in_functions_are_named(run_python):
    code = (
        "  net = tf.nn.relu6(tf.nn.conv2d(x, w, [1, 1, 1, 1], 'SAME'))\n"
        "  inside = lambda: tf.nn.relu6(tf.nn.conv2d(net, w, [1, 1, 1, 1], 'SAME'))\n"
        "  tf.cond(tf.placeholder(tf.bool, []), inside, lambda: net, name='choice')\n"
        "  print(api.create_eval_graph(graph).stays_float)\n"
    )
    status, output, errors = run_python("-c", _IN_CONTROL_FLOW_V2 + code)
    assert status == 0, errors
    assert "'choice': '1 of its ops with weights" in output
