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
        # With an Identity, as slim's MobileNets have it: of a layer that reads a bare batch norm the two
        # placements make different things (see od_qat/rewrite/planner.py, _passed_over).
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


def conv_with_norm(
    images, norm, training, data_format="NHWC", partitions=None, epsilon=0.01, averages_as_products=False
):
    """One convolution, a batch norm and a ReLU6, from raw ops.

    Args:
      images: float32 [batch, height, width, channels], or as `data_format` says.
      norm: type of the batch norm's op.
      training: its mode.
      data_format: "NHWC" or "NCHW".
      partitions: of the kernel; None for one that is whole.
      epsilon: of the batch norm.
      averages_as_products: the moving averages are written as Keras does, not as TF 1's own helper.
    """
    channels = images.shape.as_list()[data_format.index("C")]
    partitioner = partitions and tf.fixed_size_partitioner(partitions, axis=3)
    with tf.variable_scope("layer", partitioner=partitioner):
        weights = tf.get_variable("weights", [3, 3, channels, 4])
    if partitions:
        weights = tf.convert_to_tensor(weights)
    with tf.variable_scope("layer/BatchNorm"):
        vectors = [
            tf.get_variable(name, [4], initializer=tf.ones_initializer(), trainable=name in ("gamma", "beta"))
            for name in ("gamma", "beta", "moving_mean", "moving_variance")
        ]
    output = tf.nn.conv2d(images, weights, [1, 1, 1, 1], "SAME", data_format=data_format, name="layer/Conv2D")
    normed = getattr(tf.raw_ops, norm)(
        x=output,
        scale=vectors[0],
        offset=vectors[1],
        mean=[] if training else vectors[2],
        variance=[] if training else vectors[3],
        epsilon=epsilon,
        data_format=data_format,
        is_training=training,
        name="layer/BatchNorm/norm",
    )
    if training:
        for variable, batch in zip(vectors[2:], normed[1:3]):
            if averages_as_products:
                update = tf.assign(variable, 0.9 * variable + 0.1 * batch)
            else:
                update = tf.assign_sub(variable, (variable - batch) * 0.1, name="update")
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
    return tf.nn.relu6(normed[0], name="layer/Relu6")


def ops_needed_for(*tensors):
    """The ops that some tensors' values are computed from."""
    seen, pending = {}, [tensor.op for tensor in tensors]
    while pending:
        op = pending.pop()
        if op.name not in seen:
            seen[op.name] = op
            pending.extend(tensor.op for tensor in op.inputs)
    return list(seen.values())
