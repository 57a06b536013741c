"""With its fake quants taken out, a rewritten graph computes what the float one does.

What is left is folding: in training the weights are scaled and unscaled again, in evaluation the batch norms
are gone. Losses, gradients and averages are compared, and the scaled weights of both graphs with each other:
their ranges are trained in the one and used in the other.
"""

import functools

import numpy as np
import pytest
import tf_slim as slim

from od_qat.compat import tf
from od_qat.rewrite import api, fake_quant
from tests.helpers import nets, sessions

pytestmark = [pytest.mark.tf1, pytest.mark.long_on_tf1]

SIZE = 8


def _without_fake_quants(draft, tensor, range_, bits, narrow_range, gradient=None, per_channel=False):
    """In quantise's place: the ReLU that a fake quant stands for, or nothing."""
    kinds = {fake_quant.RELU_GRADIENT: "Relu", fake_quant.RELU6_GRADIENT: "Relu6"}
    return draft.op(kinds.get(gradient, "Identity"), range_.scope + "/none", (tensor,), T=tf.float32)


def _small_ssd(**options):
    def net(images, training):
        boxes, scores = nets.small_ssd(
            tf.image.resize_bilinear(images[..., :3], [32, 32]), training, **options
        )
        return tf.concat([boxes, scores], 2)

    return net


def _slim_norm(net, training, name, **options):
    options = dict(dict(scale=True, decay=0.8), **options)
    return slim.batch_norm(net, is_training=training, scope=name, **options)


def _frozen(images, training):
    """`is_training=False` in the training graph too."""
    return _small_ssd()(images, False)


def _raw(norm, **options):
    """A batch norm's raw op, its averages as Keras writes them."""
    return functools.partial(
        nets.conv_with_norm, norm=norm, epsilon=0.1, averages_as_products=True, **options
    )


def _bias_in_front(images, training):
    net = slim.conv2d(images, 4, 3, activation_fn=None, scope="one")
    net = tf.nn.relu(_slim_norm(net, training, "one/norm"))
    net = slim.separable_conv2d(net, None, 3, depth_multiplier=2, activation_fn=None, scope="two")
    net = tf.nn.relu6(_slim_norm(net, training, "two/norm", fused=False, scale=False))
    net = slim.fully_connected(slim.flatten(net), 5, activation_fn=None, scope="three")
    return tf.nn.relu(_slim_norm(net, training, "three/norm", fused=False, epsilon=0.1))


def _atrous_and_multiplied(images, training):
    options = {
        "normalizer_fn": slim.batch_norm,
        "normalizer_params": {"is_training": training, "scale": True},
    }
    net = slim.conv2d(images, 4, 3, rate=2, activation_fn=tf.nn.relu6, scope="one", **options)
    net = slim.separable_conv2d(net, None, 3, depth_multiplier=3, rate=2, scope="two", **options)
    return slim.conv2d(net, 4, 1, activation_fn=None, normalizer_fn=None, scope="head")


def _shared_kernel(images, training):
    """One kernel, a batch norm for each of its uses, as weight-shared predictors have it; and none."""
    with tf.variable_scope("shared"):
        weights = tf.get_variable("weights", [3, 3, 8, 8])
        bias = tf.get_variable("bias", [8])
    levels = []
    for number, level in enumerate((images, images[:, ::2, ::2] * 2.0)):
        net = tf.nn.conv2d(level, weights, [1, 1, 1, 1], "SAME", name="shared/level_{}".format(number))
        levels.append(tf.nn.relu6(_slim_norm(net, training, "norm_{}".format(number))))
    plain = tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(images, weights, [1, 1, 1, 1], "SAME"), bias))
    return tf.concat([tf.reshape(level, [-1]) for level in levels + [plain]], 0)


NETS = {
    "as it comes": (_small_ssd(), {}),
    "per channel": (_small_ssd(), {"per_channel": True}),
    "no gamma": (_small_ssd(batch_norm_scale=False), {}),
    "no beta": (_small_ssd(center=False), {}),
    "epsilon": (_small_ssd(epsilon=0.1), {}),
    "unfused": (_small_ssd(fused=False), {}),
    "frozen": (_frozen, {}),
    "atrous, depth multiplier": (_atrous_and_multiplied, {}),
    "bias in front": (_bias_in_front, {}),
    "bias in front, per channel": (_bias_in_front, {"per_channel": True}),
    "shared kernel": (_shared_kernel, {}),
    "FusedBatchNorm": (_raw("FusedBatchNorm"), {}),
    "FusedBatchNormV2": (_raw("FusedBatchNormV2"), {}),
    "FusedBatchNormV3": (_raw("FusedBatchNormV3"), {}),
    "partitioned": (_raw("FusedBatchNormV3", partitions=2), {}),
}


def _values():
    """Of all variables: some gammas are 0 or nearly so."""
    found = []
    for variable in tf.global_variables():
        name, shape = variable.op.name, variable.shape.as_list()
        random = np.random.RandomState(sum(map(ord, name)))
        value = random.normal(0, 0.3, shape)
        if name.endswith(("gamma", "moving_variance")):
            value = random.uniform(0.5, 2.0, shape)
        if name.endswith("gamma"):
            value[:2] = (0.0, 1e-9)
        found.append((variable, value.astype(np.float32)))
    return found


def _run(net, training, rewrite, batch, options):
    """What a graph computes, by name."""
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [batch, SIZE, SIZE, 8])
        output = net(images, training=training)
        loss = tf.reduce_mean(tf.square(output - 0.3))
        if rewrite:
            report = rewrite(graph, **options)
            assert report.folded and report.stays_float == {}
        found = {"output": output, "loss": loss}
        for operation in graph.get_operations():
            if operation.name.endswith("mul_fold"):
                found[operation.name] = operation.outputs[0]
        if training:
            trained = tf.trainable_variables()
            gradients = tf.gradients(loss, trained)
            found.update({"gradient of " + v.op.name: g for v, g in zip(trained, gradients) if g is not None})
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            sessions.assign(session, {v: value for v, value in _values() if "quant" not in v.op.name})
            feed = {images: np.random.RandomState(1).normal(size=[batch, SIZE, SIZE, 8])}
            result, _ = session.run([found, tf.get_collection(tf.GraphKeys.UPDATE_OPS)], feed)
            averages = [v for v in tf.global_variables() if "/moving_" in v.op.name]
            result.update(session.run({"after: " + v.op.name: v for v in averages}))
    return result


def _compare(expected, found):
    sizes = {name: float(np.abs(value).max()) for name, value in expected.items()}
    # (The gradient of a bias in front of a batch norm is 0: what is left of large numbers by rounding.)
    least = 0.05 * max([size for name, size in sizes.items() if "gradient" in name] + [0.1])
    for name, value in expected.items():
        scale = max(sizes[name], least)
        np.testing.assert_allclose(found[name] / scale, value / scale, atol=2e-4, err_msg=name)


def _cases():
    for name in sorted(NETS):
        for batch in (1, 4):
            # (The graph is the same; what rounding does to a batch of one shows in one net of each kind.)
            long = batch == 1 and name not in ("as it comes", "unfused")
            yield pytest.param(name, batch, marks=(pytest.mark.long,) if long else ())


@pytest.mark.parametrize("name, batch", _cases())
def test_without_its_fake_quants_a_graph_is_the_float_one(monkeypatch, name, batch):
    net, options = NETS[name]
    monkeypatch.setattr(fake_quant, "quantise", _without_fake_quants)
    folded = []
    for training, rewrite in (
        (True, api.experimental_create_training_graph),
        (False, api.experimental_create_eval_graph),
    ):
        expected = _run(net, training, None, batch, options)
        found = _run(net, training, rewrite, batch, options)
        assert np.std(expected["output"]) > 0.01
        _compare(expected, found)
        folded.append({name: value for name, value in found.items() if name.endswith("mul_fold")})
    in_training, in_eval = folded
    assert in_training and set(in_training) == set(in_eval)
    for name, value in in_eval.items():
        # (In training a scale of 0 is kept a little above it.)
        np.testing.assert_allclose(in_training[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
