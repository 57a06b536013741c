"""Small networks that hold every shape the rewriter has to match, for the tests."""

from od_qat import compat

compat.enable_tf1_behaviour()

import tf_slim as slim  # noqa: E402

from od_qat.compat import tf  # noqa: E402


def small_ssd(images, training, batch_norm_scale=True, epsilon=0.001, fused=None, center=True):
    """Conv, separable layers, a residual add, two heads and their concats.

    Args:
      images: float32 [batch, 32, 32, 3].
      training: batch norm mode.
      batch_norm_scale: whether batch norms have a gamma.
      epsilon: of the batch norms.
      fused: whether they are one op; None for tf-slim's default, which is True here.
      center: whether they have a beta.

    Returns:
      boxes [batch, 320, 4] and scores [batch, 320, 3], before any sigmoid.
    """
    norm = {
        "is_training": training,
        "scale": batch_norm_scale,
        "center": center,
        "epsilon": epsilon,
        "decay": 0.9,
        "fused": fused,
    }
    with slim.arg_scope(
        [slim.conv2d, slim.separable_conv2d],
        normalizer_fn=slim.batch_norm,
        normalizer_params=norm,
        activation_fn=tf.nn.relu6,
    ):
        net = slim.conv2d(images, 8, 3, stride=2, scope="net/Conv")
        net = slim.separable_conv2d(net, None, 3, depth_multiplier=1, scope="net/block/depthwise")
        # With an Identity, as slim's MobileNets have it: contrib's rewriter lets a layer that reads a bare
        # batch norm go on reading it, unfolded and unquantised, which is no parity to keep.
        net = slim.conv2d(net, 8, 1, activation_fn=tf.identity, scope="net/block/project")
        shortcut = net
        net = slim.conv2d(net, 16, 1, scope="net/residual/expand")
        net = slim.separable_conv2d(net, None, 3, depth_multiplier=1, scope="net/residual/depthwise")
        net = slim.conv2d(net, 8, 1, activation_fn=tf.identity, scope="net/residual/project")
        net = tf.add(shortcut, net, name="net/residual/add")
        first = net
        second = slim.conv2d(net, 16, 3, stride=2, scope="net/down")
    outputs = {"box": [], "class": []}
    for number, features in enumerate((first, second)):
        for name, depth in (("box", 4), ("class", 3)):
            head = slim.conv2d(
                features, depth, 1, activation_fn=None, scope="Head_{}/{}".format(number, name)
            )
            outputs[name].append(tf.reshape(head, [tf.shape(head)[0], -1, depth]))
    return tf.concat(outputs["box"], 1), tf.concat(outputs["class"], 1)


LAYERS = 11  # weighted ops of small_ssd
BATCH_NORMS = 7


def pre_activation(training):
    """conv + conv -> batch norm, ReLU -> conv: as in ResNet V2, the batch norm is behind a sum.

    Returns:
      images, float32 [2, 8, 8, 3], and the output behind an op that no pattern knows.
    """
    images = tf.placeholder(tf.float32, [2, 8, 8, 3], name="images")
    norm = {"is_training": training, "scale": True, "decay": 0.5}
    first = slim.conv2d(images, 4, 1, activation_fn=None, scope="first")
    second = slim.conv2d(images, 4, 3, activation_fn=None, scope="second")
    net = slim.batch_norm(tf.add(first, second), activation_fn=tf.nn.relu, scope="preact", **norm)
    net = slim.conv2d(net, 4, 1, activation_fn=None, scope="third")
    return images, tf.stop_gradient(net, name="output")


def ops_needed_for(*tensors):
    """The ops that some tensors' values are computed from."""
    seen, pending = {}, [tensor.op for tensor in tensors]
    while pending:
        op = pending.pop()
        if op.name not in seen:
            seen[op.name] = op
            pending.extend(tensor.op for tensor in op.inputs)
    return list(seen.values())
