"""Fake-quant nodes and the variables that hold their ranges.

Arithmetic and names are contrib's (quant_ops.py, TF 1.15): weights take the range of their last value,
activations an exponential moving average with zero debias (Jacob et al. 2018, section 3.1); a range always
contains 0, as TFLite requires. What is ours: a range behind a ReLU has no minimum to track, and one behind a
ReLU6 never passes 6.
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
# A channel's range is at least this wide: that of zeros alone would be [0, 0].
_SMALLEST_RANGE = 1e-6
# An average that is this part of a ReLU6's ceiling has reached it.
_REACHED = 1.0 - 1e-4
# A channel's range is at least this part of the tensor's largest. The bias of a channel is kept in steps of
# (input step * weight step), 32 bits of them: TFLite loses the bias of a channel whose weights are all but 0.
_SMALLEST_CHANNEL = 1e-3


class Range(NamedTuple):
    """Where a fake quant stands and the tensors that hold its range, by name."""

    scope: str
    low: str
    high: str


@tf.RegisterGradient(PASS_THROUGH_GRADIENT)
def _pass_through_gradient(operation, gradient):
    """For products, quotients and fake quants that hand their gradient on to their first input.

    Straight-through (Bengio et al. 2013, section 3.1). Of weights it is the kernel's own: the gradient of
    `fq(W * s) / s` with regard to W is the incoming one where W is in range, and a symmetric range of the
    last value holds every weight. Of activations the kernel's is 0 beyond the range. That is an average of
    the batches' extremes, so the few values beyond it change with the batch; to tell them apart the whole
    tensor would have to be kept and gone over three times, a tenth of a MobileNet V3's training step.
    """
    return (gradient,) + (None,) * (len(operation.inputs) - 1)


@tf.RegisterGradient(RELU_GRADIENT)
def _relu_gradient(operation, gradient):
    """Of a fake quant that stands for a ReLU: the ReLU's own. Straight-through beyond its range, as above."""
    return tf.raw_ops.ReluGrad(gradients=gradient, features=operation.inputs[0]), None, None


@tf.RegisterGradient(RELU6_GRADIENT)
def _relu6_gradient(operation, gradient):
    """Of a fake quant that stands for a ReLU6: the ReLU6's own, told from the quantised values.

    So the tensor in front, as large, need not be kept for it: a sixth of a MobileNet's memory. What differs:
    values within half a step of 0 and of 6 count as 0 and 6 (of 8 bits 0.012; fewer bits have larger steps,
    so there the tensor in front is kept), and beyond a range that ends below 6, gradients pass as above.
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
    """The fake-quant node itself.

    Args:
      draft: where to.
      tensor: float32 data.
      range_: its range.
      bits: width.
      narrow_range: whether the lowest value is left out, as TFLite's weights do.
      gradient: name of a registered gradient in the kernel's place.
      per_channel: the range has a value for each index of the tensor's last dimension.
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
    """Fake quant of weights: range of the last value, narrow range (-128 is never used).

    Args:
      draft: where to.
      tensor: float32 weights, already scaled by the folded batch norm.
      weight_quant: name, width, and whether each output channel has a range.
      symmetric: ranges around zero.
      training: whether the range is updated.
      gradient: name of a registered gradient in the kernel's place.
      when: bool scalar; the fake quant (not the range's update) runs when it is true.
      shared: the range of the same weights in another clone, which updates it.

    Returns:
      the range and the fake-quantised tensor.
    """
    shape = weight_quant.layer.weights.get_shape().as_list()
    apart = weight_quant.per_channel and weight_quant.layer.op.type == "DepthwiseConv2dNative"
    # The per-channel op takes the last dimension for the channels. Depthwise weights [height, width, in,
    # multiplier] have in * multiplier of them and are reshaped to [height, width, in * multiplier] and back:
    # the converter (TensorFlow 2.21) folds that away. From [height * width, in * multiplier] it cannot.
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
    """Range of the weights as they are now, of all of them or (symmetric ones) of each channel."""
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
    """The range of an activation: a moving average of its batches' ranges.

    Args:
      draft: where to.
      tensor: float32, any shape; for an absorbed ReLU the tensor before it.
      activation_quant: name, width and where the range starts.
      config: options.
      training: whether the range is updated.
      ceiling: None for a tensor as it is; infinity for an absorbed ReLU, 6 for an absorbed ReLU6. The range
        then starts at 0 and ends at the ceiling at most, so the fake quant clips as the ReLU did.
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
        # Behind a ReLU the minimum is 0 and stays so.
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
        # Two's complement has one more negative value.
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
    """Sets a variable; returns its new value."""
    return draft.update(
        "Assign", name, variable + ":0", value, tf.float32, use_locking=False, validate_shape=True
    )


def _range_variables(
    draft: Draft, name: str, initial_min: float, shape: Tuple[int, ...] = ()
) -> Tuple[str, str, str]:
    """Name scope of a fake quant, and the names of its variables `min` and `max`."""
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

    The average starts at 0, so what it lacks after n steps, a factor of 1 - decay ** n, is divided out
    (Kingma and Ba 2015, section 3). Both helpers are variables of contrib's names and have to be restored.
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
        # An average of sixes is 6: rounding in the debiasing takes it to 6.00004, and rounding of the small
        # changes keeps it at 5.9998. The gradient knows what a ReLU6 cut off by its being 6.
        reached = _op(draft, "GreaterEqual", here + "/reached", debiased, draft.constant(ceiling * _REACHED))
        debiased = _op(draft, "SelectV2", here + "/SelectV2", reached, draft.constant(ceiling), debiased)
    return _assign(draft, here, variable, debiased)


def _op(draft: Draft, kind: str, name: str, *inputs) -> str:
    return draft.op(kind, name, inputs, T=tf.float32)


def _reduce(draft: Draft, kind: str, name: str, tensor, rank: Optional[int]) -> str:
    """Min or Max over the whole tensor, of any rank where that is None."""
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
