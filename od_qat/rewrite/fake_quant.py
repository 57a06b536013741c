"""Makes fake quant nodes and the variables that hold their ranges.

Arithmetic and names are those of contrib (quant_ops.py, TF 1.15). Weights have the range of their current
values, activations an exponential moving average with zero debias (Jacob et al. 2018, section 3.1). A range
always contains 0, as TFLite requires. Unlike contrib's, a range behind a ReLU does not track a minimum, and
one behind a ReLU6 never exceeds 6.
"""

from typing import NamedTuple, Optional, Tuple

import numpy as np

from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.graph.draft import Draft
from od_qat.rewrite import policy
from od_qat.rewrite.plan import ActivationQuant, WeightQuant

PASS_THROUGH_GRADIENT = "OdQatPassThrough"
RELU_GRADIENT = "OdQatFakeQuantOfRelu"
RELU6_GRADIENT = "OdQatFakeQuantOfRelu6"
# The range of a channel goes to at least this value; that of a channel of zeros would be [0, 0].
_SMALLEST_RANGE = 1e-6
# An average of at least this part of a ReLU6's ceiling counts as the ceiling.
_REACHED = 1.0 - 1e-4
# The range of a channel is at least this part of the tensor's largest. TFLite stores a bias in 32 bits, as a
# number of steps of (input step * weight step), and loses the bias of a channel whose weights are nearly 0.
_SMALLEST_CHANNEL = 1e-3


class Range(NamedTuple):
    """The name scope of a fake quant, and the names of the tensors that hold its range."""

    scope: str
    low: str
    high: str


@tf.RegisterGradient(PASS_THROUGH_GRADIENT)
def _pass_through_gradient(operation, gradient):
    """Hands the gradient of a product, a quotient or a fake quant on to its first input.

    This is the straight-through estimator (Bengio et al. 2013, section 3.1). For weights it equals the
    kernel's gradient: that of `fq(W * s) / s` with respect to W is the incoming gradient wherever W is in
    range, and a symmetric range of the current weights contains each of them. For activations it differs,
    since the kernel's gradient is 0 outside of the range. The range is an average of the batches' extremes,
    so the few values outside of it change from batch to batch. Finding them would mean to keep the whole
    tensor and to read it three times, which takes a tenth of a training step of MobileNet V3.
    """
    return (gradient,) + (None,) * (len(operation.inputs) - 1)


@tf.RegisterGradient(RELU_GRADIENT)
def _relu_gradient(operation, gradient):
    """The gradient of a fake quant that replaces a ReLU: that of the ReLU, also outside of the range."""
    return tf.raw_ops.ReluGrad(gradients=gradient, features=operation.inputs[0]), None, None


@tf.RegisterGradient(RELU6_GRADIENT)
def _relu6_gradient(operation, gradient):
    """The gradient of a fake quant that replaces a ReLU6: that of the ReLU6, at the quantized values.

    The input of the fake quant, which is as large, then need not be kept. This saves a sixth of the memory of
    a MobileNet. There are two differences from the ReLU6. Values within half a step of 0 or 6 (0.012 at 8
    bits) count as 0 or 6; with fewer bits the steps are larger, so the input is kept and used. And if the
    range ends below 6, gradients pass outside of it, as in `_pass_through_gradient`.
    """
    told_from = operation.outputs[0] if operation.get_attr("num_bits") == 8 else operation.inputs[0]
    return tf.raw_ops.Relu6Grad(gradients=gradient, features=told_from), None, None


def quantise(
    draft: Draft,
    tensor,
    range_: Range,
    bits: int,
    narrow_range: bool,
    gradient: Optional[str] = None,
    per_channel: bool = False,
) -> str:
    """Adds a fake quant node; returns its output.

    Args:
      draft: receives the node.
      tensor: float32 data.
      range_: the range of the data.
      bits: the width.
      narrow_range: whether the lowest value is not used, as in TFLite's weights.
      gradient: name of a registered gradient that replaces the kernel's.
      per_channel: whether the range has a value for each index of the tensor's last dimension.
    """
    kind = policy.FAKE_QUANT_PER_CHANNEL if per_channel else policy.FAKE_QUANT_PER_TENSOR
    return draft.op(
        kind,
        "{}/{}".format(range_.scope, kind),
        (tensor, range_.low, range_.high),
        num_bits=bits,
        narrow_range=narrow_range,
        _gradient_op_type=gradient,
    )


def last_value(
    draft: Draft,
    tensor,
    weight_quant: WeightQuant,
    symmetric: bool,
    training: bool,
    gradient: Optional[str] = None,
    when: Optional[str] = None,
    shared: Optional[Range] = None,
) -> Tuple[Range, str]:
    """Adds the fake quant of weights. Its range is that of their current values, narrow (-128 is not used).

    Args:
      draft: receives the nodes.
      tensor: float32 weights, already scaled by the folded batch norm.
      weight_quant: name, width, and whether each output channel has a range.
      symmetric: whether the range is symmetric around zero.
      training: whether the range is updated.
      gradient: name of a registered gradient that replaces the kernel's.
      when: bool scalar; the fake quant (not the update of the range) runs only if it is true.
      shared: the range of the same weights in another clone, which updates it.

    Returns:
      the range, and the output of the fake quant.
    """
    shape = weight_quant.layer.weights.get_shape().as_list()
    apart = weight_quant.per_channel and weight_quant.layer.op.type == "DepthwiseConv2dNative"
    # For the per-channel op, channels are the last dimension. Depthwise weights [height, width, in,
    # multiplier] have in * multiplier channels, and are reshaped to [height, width, in * multiplier] and
    # back. The converter (TensorFlow 2.21) removes these Reshapes; with [height * width, in * multiplier] it
    # cannot.
    flat = shape[:2] + [shape[2] * shape[3]] if apart else shape
    channels = (flat[-1],) if weight_quant.per_channel else ()
    scope, low, high = shared or _range_variables(draft, weight_quant.name, -6.0, channels)
    if apart:
        tensor = _reshape(draft, scope + "/channels_last", tensor, flat)
    if shared:
        range_ = shared
    elif training:
        here = _range_of_weights(draft, scope, tensor, len(flat), weight_quant, symmetric)
        range_ = Range(
            scope,
            _assign(draft, scope + "/AssignMinLast", low, here[0]),
            _assign(draft, scope + "/AssignMaxLast", high, here[1]),
        )
    else:
        range_ = Range(scope, low + "/read:0", high + "/read:0")
    if when:
        _, tensor = draft.switch(scope + "/when_on", tensor, when)
    result = quantise(
        draft, tensor, range_, weight_quant.bits, True, gradient, per_channel=weight_quant.per_channel
    )
    if apart:
        result = _reshape(draft, scope + "/channels_apart", result, shape)
    return range_, result


def _range_of_weights(
    draft: Draft, scope: str, tensor: str, rank: int, weight_quant: WeightQuant, symmetric: bool
) -> Tuple[str, str]:
    """Returns the range of the current weights: of all of them, or of each channel (always symmetric)."""
    if weight_quant.per_channel:
        absolute = _op(draft, "Abs", scope + "/Abs", tensor)
        high = _reduce_axes(draft, "Max", scope + "/BatchMax", absolute, list(range(rank - 1)))
        largest = _reduce(draft, "Max", scope + "/largest", high, 1)
        smallest = _op(draft, "Mul", scope + "/smallest", largest, draft.constant(_SMALLEST_CHANNEL))
        smallest = _op(draft, "Maximum", scope + "/smallest_1", smallest, draft.constant(_SMALLEST_RANGE))
        high = _op(draft, "Maximum", scope + "/Maximum", high, smallest)
    else:
        low = _reduce(draft, "Min", scope + "/BatchMin", tensor, rank)
        high = _reduce(draft, "Max", scope + "/BatchMax", tensor, rank)
        if not symmetric:
            return _around_zero(draft, scope, low, high, False, weight_quant.bits)
        high = _op(draft, "Maximum", scope + "/Maximum", _op(draft, "Neg", scope + "/Neg", low), high)
    return _op(draft, "Neg", scope + "/Neg", high), high


def moving_average(
    draft: Draft,
    tensor,
    activation_quant: ActivationQuant,
    config: QatConfig,
    training: bool,
    ceiling: Optional[float],
) -> Range:
    """Adds the range of an activation: a moving average of the ranges of its batches.

    Args:
      draft: receives the nodes.
      tensor: float32, of any shape; for an absorbed ReLU, its input.
      activation_quant: name, width and initial range.
      config: options.
      training: whether the range is updated.
      ceiling: None if no ReLU is absorbed; infinity for an absorbed ReLU, 6 for an absorbed ReLU6. The range
        then starts at 0 and ends at or below the ceiling, so the fake quant clips as the ReLU does.
    """
    scope, low, high = _range_variables(draft, activation_quant.name, activation_quant.initial_min)
    if not training:
        return Range(scope, low + "/read:0", high + "/read:0")
    rank = activation_quant.tensor.get_shape().ndims
    batch_max = _reduce(draft, "Max", scope + "/BatchMax", tensor, rank)
    if ceiling is None:
        batch_min = _reduce(draft, "Min", scope + "/BatchMin", tensor, rank)
        new_low, new_high = _around_zero(
            draft, scope, batch_min, batch_max, config.symmetric, activation_quant.bits
        )
        low_now = _average(draft, scope, "AssignMinEma", low, new_low, config.ema_decay, None)
    else:
        # Behind a ReLU the minimum is always 0.
        low_now = low + "/read:0"
        new_high = _op(draft, "Maximum", scope + "/Maximum", batch_max, draft.constant(0.0))
        if np.isfinite(ceiling):
            new_high = _op(draft, "Minimum", scope + "/Minimum", new_high, draft.constant(ceiling))
    high_now = _average(draft, scope, "AssignMaxEma", high, new_high, config.ema_decay, ceiling)
    return Range(scope, low_now, high_now)


def _around_zero(
    draft: Draft, scope: str, batch_min: str, batch_max: str, symmetric: bool, bits: int
) -> Tuple[str, str]:
    """Widens a range to contain 0, or to be symmetric around it."""
    if symmetric:
        # Two's complement has one more negative than positive value.
        ratio = -((1 << bits) - 2) / float(1 << bits)
        at_most = _op(draft, "RealDiv", scope + "/truediv", batch_max, draft.constant(ratio))
        at_least = _op(draft, "Mul", scope + "/mul", batch_min, draft.constant(ratio))
    else:
        at_most = at_least = draft.constant(0.0)
    return (
        _op(draft, "Minimum", scope + "/Minimum", batch_min, at_most),
        _op(draft, "Maximum", scope + "/Maximum", batch_max, at_least),
    )


def _assign(draft: Draft, name: str, variable: str, value: str) -> str:
    """Assigns to a variable; returns its new value."""
    return draft.update(
        "Assign", name, variable + ":0", value, tf.float32, use_locking=False, validate_shape=True
    )


def _range_variables(
    draft: Draft, name: str, initial_min: float, shape: Tuple[int, ...] = ()
) -> Tuple[str, str, str]:
    """Adds the variables `min` and `max`; returns the name scope of the fake quant, and their names."""
    variables, scope = draft.variable_scope(name)
    low, high = (
        draft.variable(
            "{}/{}".format(variables, which),
            np.full(shape, initial),
            tf.float32,
            (tf.GraphKeys.GLOBAL_VARIABLES, QUANT_VARIABLES),
            tf.VariableAggregation.MEAN,
        ).rpartition(":")[0]
        for which, initial in (("min", initial_min), ("max", 6.0))
    )
    return scope, low, high


def _average(
    draft: Draft, scope: str, name: str, variable: str, value: str, decay: float, ceiling: Optional[float]
) -> str:
    """Updates a variable with a zero-debiased moving average; returns its new value.

    The average starts at 0, so after n steps it is too small by the factor 1 - decay ** n, and is divided by
    it (Kingma and Ba 2015, section 3). The two helper variables have contrib's names, and checkpoints hold
    them.
    """
    here = "{}/{}".format(scope, name)
    helpers = []
    for helper in ("biased", "local_step"):
        helpers.append(
            draft.variable(
                "{}/{}/{}".format(variable.rpartition("/")[0], variable, helper),
                0.0,
                tf.float32,
                (tf.GraphKeys.GLOBAL_VARIABLES, QUANT_VARIABLES),
                tf.VariableAggregation.NONE,
            )
        )
    biased, local_step = helpers
    one = draft.constant(1.0)
    steps = draft.update("AssignAdd", here + "/AssignAdd", local_step, one, tf.float32, use_locking=False)
    difference = _op(draft, "Sub", here + "/sub", biased[:-2] + "/read:0", value)
    change = _op(draft, "Mul", here + "/mul", difference, draft.constant(1.0 - decay))
    average = draft.update("AssignSub", here + "/AssignSub", biased, change, tf.float32, use_locking=False)
    lacking = _op(draft, "Pow", here + "/Pow", draft.constant(decay), steps)
    there = _op(draft, "Sub", here + "/sub_1", one, lacking)
    debiased = _op(draft, "RealDiv", here + "/truediv", average, there)
    if ceiling is not None and np.isfinite(ceiling):
        # An average of sixes must be exactly 6, as _relu6_gradient takes values of 6 as cut off. Rounding
        # would make it 6.00004 (in the debiasing) or 5.9998 (in the small changes).
        reached = _op(draft, "GreaterEqual", here + "/reached", debiased, draft.constant(ceiling * _REACHED))
        debiased = _op(draft, "SelectV2", here + "/SelectV2", reached, draft.constant(ceiling), debiased)
    return _assign(draft, here, variable, debiased)


def _op(draft: Draft, kind: str, name: str, *inputs) -> str:
    return draft.op(kind, name, inputs, T=tf.float32)


def _reduce(draft: Draft, kind: str, name: str, tensor, rank: Optional[int]) -> str:
    """Adds a Min or Max over the whole tensor; `rank` is None if it is not known."""
    if rank is None:
        return _reduce_axes(draft, kind, name, _reshape(draft, name + "/flat", tensor, [-1]), [0])
    return _reduce_axes(draft, kind, name, tensor, list(range(rank)))


def _reduce_axes(draft: Draft, kind: str, name: str, tensor, axes) -> str:
    return draft.op(
        kind,
        name,
        (tensor, draft.constant(axes, tf.int32)),
        T=tf.float32,
        Tidx=tf.int32,
        keep_dims=False,
    )


def _reshape(draft: Draft, name: str, tensor, shape) -> str:
    return draft.op("Reshape", name, (tensor, draft.constant(shape, tf.int32)), T=tf.float32, Tshape=tf.int32)
