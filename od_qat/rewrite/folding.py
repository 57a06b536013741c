"""Batch norm folding: into weights and bias in an eval graph, into the weights' fake quant in training.

Eval (Jacob et al. 2018, section 3.2; contrib's fold_batch_norms.py)::

    s = gamma / sqrt(moving_variance + epsilon)
    y = conv(x, fq(W * s)) + (beta - moving_mean * s)

Training: a convolution is linear in its weights, so `conv(x, fq(W * s) / s)` is the unfolded result of the
quantised weights; the layer's own batch norm, left as it is, takes the batch statistics from it. One
convolution a layer, where contrib runs two, and the only extra work is on the weights. Same idea as the
approximate path of PyTorch's torch/ao/nn/intrinsic/qat/modules/conv_fused.py, which divides the output.
"""

from typing import Tuple

from od_qat.compat import tf
from od_qat.graph import edit
from od_qat.rewrite.layers import BatchNorm, Layer

# Below this a channel contributes nothing at 8 bits; dividing by less would make infinities out of the
# gamma == 0 channels of pruned or badly initialised nets (PyTorch met NaN there).
_SMALLEST_SCALE = 1e-6


def scale(norm: BatchNorm):
    """s = gamma / sqrt(moving_variance + epsilon), float32 [channels]."""
    return norm.gamma * tf.rsqrt(norm.moving_variance + norm.epsilon)


def safe_scale(norm: BatchNorm):
    """`scale` kept away from 0, sign kept, without gradient.

    Gamma gets its gradient from the batch norm behind the layer; through here it would get it twice.
    """
    value = tf.stop_gradient(scale(norm))
    smallest = tf.where(
        value < 0, -_SMALLEST_SCALE * tf.ones_like(value), _SMALLEST_SCALE * tf.ones_like(value)
    )
    return tf.where(tf.abs(value) < _SMALLEST_SCALE, smallest, value, name="safe_scale")


def per_output_channel(layer: Layer, value):
    """Shapes a [channels] vector so that it multiplies the layer's weights along their output channels.

    Conv2D weights [h, w, in, out] and MatMul weights [in, out] broadcast as they are; depthwise weights are
    [h, w, in, multiplier] with channels = in * multiplier.
    """
    if layer.op.type == "DepthwiseConv2dNative":
        shape = layer.weights.get_shape().as_list()
        return tf.reshape(value, [shape[2], shape[3]], name="scale_reshape")
    return value


def fold_for_eval(layer: Layer, quantised_weights, bias) -> Tuple[object, object]:
    """Clones the layer with folded weights and adds the folded bias.

    Args:
      layer: a layer with a batch norm.
      quantised_weights: fq(W * s).
      bias: beta - moving_mean * s.

    Returns:
      the output that takes the place of the batch norm's, and the cloned layer op.
    """
    data_input = layer.op.inputs[0]
    folded = edit.clone_with_inputs(
        layer.op, [data_input, quantised_weights], layer.op.name.rpartition("/")[2] + "_Fold"
    )
    output = folded.outputs[0]
    if layer.batch_to_space is not None:
        inputs = list(layer.batch_to_space.inputs)
        name = layer.batch_to_space.name.rpartition("/")[2] + "_Fold"
        output = edit.clone_with_inputs(layer.batch_to_space, [output] + inputs[1:], name).outputs[0]
    if layer.op.type != "MatMul" and layer.batch_norm.op.get_attr("data_format") == b"NCHW":
        bias = tf.reshape(bias, [1, -1, 1, 1])
    return tf.add(output, bias, name="add_fold"), folded
