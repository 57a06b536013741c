"""Folds batch norms: into weights and bias in an eval graph, around the weights' fake quant in training.

In an eval graph (Jacob et al. 2018, section 3.2; contrib's fold_batch_norms.py)::

    s = gamma / sqrt(moving_variance + epsilon)
    y = conv(x, fq(W * s)) + (beta - moving_mean * s)

In training, the layer computes `conv(x, fq(W * s) / s)`. A convolution is linear in its weights, so this is
the unfolded result of the quantized weights. The layer's own batch norm is not changed, and takes the batch
statistics from it. A layer runs one convolution, where contrib runs two, and the only extra work is on the
weights. PyTorch's torch/ao/nn/intrinsic/qat/modules/conv_fused.py does the same in its approximate path, but
divides the output.
"""

from od_qat.compat import tf
from od_qat.graph.draft import Draft
from od_qat.rewrite import policy
from od_qat.rewrite.parts import BatchNorm, Layer

# A channel with a smaller scale contributes nothing at 8 bits. Division by less would make infinities in
# channels with gamma == 0, which pruned or badly initialised nets have (PyTorch had NaNs there).
_SMALLEST_SCALE = 1e-6
# Op name of a batch norm that became a layer. Its weights are exact in int8 and have no fake quant.
NORM_AS_LAYER = "norm_as_layer"


def scope_prefix(layer: Layer) -> str:
    """Returns the scope of a layer's ops with a slash, `scope/`; '' if they have none."""
    return layer.op.name[: layer.op.name.rfind("/") + 1]


def fold_scope(layer: Layer) -> str:
    """Returns the scope of the nodes that fold a layer's batch norm."""
    return scope_prefix(layer) + "BatchNorm_Fold/"


def scale(draft: Draft, norm: BatchNorm, here: str) -> str:
    """Adds s = gamma / sqrt(moving_variance + epsilon), float32 [channels]; node names begin with `here`."""
    variance = draft.op(
        "AddV2", here + "add", (norm.moving_variance, draft.constant(norm.epsilon)), T=tf.float32
    )
    factor = draft.op("Rsqrt", here + "Rsqrt", (variance,), T=tf.float32)
    if norm.gamma is None:
        return factor
    return draft.op("Mul", here + "mul", (norm.gamma, factor), T=tf.float32)


def safe_scale(draft: Draft, layer: Layer) -> str:
    """Adds `scale`, kept away from 0.

    No gradient goes through it, as the ops that read it hand theirs on to the weights. gamma gets its
    gradient from the batch norm behind the layer.
    """
    here = fold_scope(layer)
    smallest = draft.constant(_SMALLEST_SCALE)
    value = scale(draft, layer.batch_norm, here)
    size = draft.op("Abs", here + "Abs", (value,), T=tf.float32)
    tiny = draft.op("Less", here + "Less", (size, smallest), T=tf.float32)
    return draft.op("SelectV2", here + "safe_scale", (tiny, smallest, value), T=tf.float32)


def folded_bias(draft: Draft, norm: BatchNorm, here: str, scale_: str, in_front=None) -> str:
    """Adds beta - (moving_mean - in_front) * s, float32 [channels]; `in_front` is the layer's own bias."""
    mean = norm.moving_mean
    if in_front is not None:
        mean = draft.op("Sub", here + "mean", (mean, in_front), T=tf.float32)
    shift = draft.op("Mul", here + "mul_1", (mean, scale_), T=tf.float32)
    if norm.beta is None:
        return draft.op("Neg", here + "bias", (shift,), T=tf.float32)
    return draft.op("Sub", here + "bias", (norm.beta, shift), T=tf.float32)


def per_output_channel(draft: Draft, layer: Layer, value: str) -> str:
    """Reshapes a [channels] vector so that it multiplies the layer's weights along their output channels.

    Conv2D weights [h, w, in, out] and MatMul weights [in, out] broadcast with the vector. Depthwise weights
    are [h, w, in, multiplier] with channels = in * multiplier, and need it as [in, multiplier]. Weights of a
    transposed convolution are [h, w, out, in], and need it as [out, 1].
    """
    if layer.op.type not in ("DepthwiseConv2dNative", policy.TRANSPOSED):
        return value
    of_weights = layer.weights.get_shape().as_list()[2:]
    if layer.op.type == policy.TRANSPOSED:
        of_weights[1] = 1
    shape = draft.constant(of_weights, tf.int32)
    return draft.op(
        "Reshape",
        fold_scope(layer) + "scale_reshape",
        (value, shape),
        T=tf.float32,
        Tshape=tf.int32,
    )


def fold_for_eval(draft: Draft, layer: Layer, data: str, quantised_weights: str, bias: str) -> str:
    """Copies the layer with folded weights and adds the folded bias.

    Args:
      draft: receives the nodes.
      layer: a layer with a batch norm.
      data: the tensor that the copy reads.
      quantised_weights: fq(W * s).
      bias: the result of `folded_bias`.

    Returns:
      the output that replaces that of the batch norm.
    """
    prefix = scope_prefix(layer)
    inputs = (data, quantised_weights)
    if layer.op.type == policy.TRANSPOSED:
        inputs = (draft.current_input(layer.op, 0), quantised_weights, data)
    output = draft.copy(layer.op, layer.op.name + "_Fold", inputs)
    if layer.batch_to_space is not None:
        operation = layer.batch_to_space
        others = [draft.current_input(operation, position) for position in (1, 2)]
        output = draft.copy(operation, operation.name + "_Fold", [output] + others)
    if layer.batch_norm.channels_first:
        shape = draft.constant([1, -1, 1, 1], tf.int32)
        bias = draft.op("Reshape", prefix + "bias_reshape", (bias, shape), T=tf.float32, Tshape=tf.int32)
    return draft.op("AddV2", prefix + "add_fold", (output, bias), T=tf.float32)


def norm_as_layer(draft: Draft, norm: BatchNorm) -> str:
    """Turns a batch norm behind no layer into one: a 1x1 depthwise convolution with weights s, and a bias.

    The converter would make a product and a sum of the batch norm, without a range for the product. int8
    weights have a scale for each channel, so the one weight of each channel is exact and needs no fake quant.
    """
    here = norm.op.name + "_Fold/"
    scale_ = scale(draft, norm, here)
    bias = folded_bias(draft, norm, here, scale_)
    channels = norm.gamma.get_shape().as_list()[0]
    shape = draft.constant([1, 1, channels, 1], tf.int32)
    weights = draft.op("Reshape", here + "weights", (scale_, shape), T=tf.float32, Tshape=tf.int32)
    output = draft.op(
        "DepthwiseConv2dNative",
        here + NORM_AS_LAYER,
        (draft.current_input(norm.op, 0), weights),
        T=tf.float32,
        strides=[1, 1, 1, 1],
        padding="VALID",
    )
    draft.count_as_reader(output)
    return draft.op("AddV2", here + "add_fold", (output, bias), T=tf.float32)
