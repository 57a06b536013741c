"""Fake-quant ops and the variables that hold their ranges.

Arithmetic and names are contrib's (quant_ops.py, TF 1.15): weights take the range of their last value,
activations an exponential moving average with zero debias (Jacob et al. 2018, section 3.1); a range always
contains 0, as TFLite requires. What is ours: a range behind a ReLU has no minimum to track, and one behind a
ReLU6 never passes 6.
"""

import contextlib
from typing import Callable, Optional, Tuple

import numpy as np

from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import QatConfig

_PASS_THROUGH_GRADIENT = "OdQatPassThrough"
_FROM_ZERO_GRADIENT = "OdQatFakeQuantFromZero"
# A layer whose outputs are all negative has the range [0, 0].
_SMALLEST_RANGE = 1e-6


@contextlib.contextmanager
def _quant_scope(name: str, tensor):
    """The variable and name scope of one fake quant, made unique as contrib does."""
    with tf.variable_scope(None, default_name=name, values=[tensor]) as scope:
        scope.set_partitioner(None)
        yield scope


def _range_variables(initial_min: float, initial_max: float = 6.0):
    """`min` and `max` in the current variable scope."""
    return tuple(
        tf.get_variable(
            which,
            shape=[],
            initializer=tf.constant_initializer(value),
            collections=[tf.GraphKeys.GLOBAL_VARIABLES, QUANT_VARIABLES],
            trainable=False,
            aggregation=tf.VariableAggregation.MEAN,
        )
        for which, value in (("min", initial_min), ("max", initial_max))
    )


def quantise(tensor, minimum, maximum, bits: int, narrow_range: bool):
    """The fake-quant op itself, called FakeQuantWithMinMaxVars in the current name scope."""
    return tf.quantization.fake_quant_with_min_max_vars(
        tensor, minimum, maximum, num_bits=bits, narrow_range=narrow_range
    )


@tf.RegisterGradient(_PASS_THROUGH_GRADIENT)
def _pass_through_gradient(operation, gradient):
    return (gradient,) + (None,) * (len(operation.inputs) - 1)


def straight_through():
    """Context in which products, quotients and fake quants hand their gradient on to their first input.

    For weights: the gradient of `fq(W * s) / s` with regard to W is the incoming one where W is in range, and
    a symmetric range of the last value holds every weight. So there is nothing to compute.
    """
    return tf.get_default_graph().gradient_override_map(
        {kind: _PASS_THROUGH_GRADIENT for kind in ("Mul", "RealDiv", "FakeQuantWithMinMaxVars")}
    )


@tf.RegisterGradient(_FROM_ZERO_GRADIENT)
def _from_zero_gradient(operation, gradient):
    """Straight-through gradient of a fake quant whose range is [0, max]: that of a ReLU which ends at max.

    The kernel's own gradient goes over the tensor three times, for the ends' gradients too, which nobody
    reads: they are averages, not trained. ReLU6's kernel, on data scaled to its range, takes half the time.
    """
    data, _, maximum = operation.inputs
    to_six = 6.0 / tf.maximum(maximum, _SMALLEST_RANGE)
    return tf.raw_ops.Relu6Grad(gradients=gradient, features=data * to_six), None, None


def quantise_from_zero(tensor, minimum, maximum, bits: int):
    """`quantise` behind an absorbed ReLU: the same values, a cheaper gradient."""
    with tf.get_default_graph().gradient_override_map({"FakeQuantWithMinMaxVars": _FROM_ZERO_GRADIENT}):
        return quantise(tensor, minimum, maximum, bits, narrow_range=False)


def around_zero(
    batch_min, batch_max, symmetric: bool, bits: int, narrow_range: bool
) -> Tuple[object, object]:
    """Widens a range to contain 0, or to be symmetric around it."""
    if not symmetric:
        return tf.minimum(batch_min, 0.0), tf.maximum(batch_max, 0.0)
    # Two's complement has one more negative value, unless the narrow range drops it.
    ratio = -1.0 if narrow_range else -((1 << bits) - 2) / float(1 << bits)
    return tf.minimum(batch_min, batch_max / ratio), tf.maximum(batch_max, batch_min * ratio)


def last_value(tensor, name: str, config: QatConfig, training: bool):
    """Fake quant of weights: range of the last value, narrow range (-128 is never used).

    Args:
      tensor: float32 weights, already scaled by the folded batch norm.
      name: `<layer>/weights_quant`.
      config: options.
      training: whether the range is updated.

    Returns:
      the fake-quantised tensor.
    """
    with _quant_scope(name, tensor):
        low, high = _range_variables(-6.0)
        if training:
            new_low, new_high = around_zero(
                tf.reduce_min(tensor, name="BatchMin"),
                tf.reduce_max(tensor, name="BatchMax"),
                config.symmetric_weights,
                config.weight_bits,
                narrow_range=True,
            )
            low = tf.assign(low, new_low, name="AssignMinLast")
            high = tf.assign(high, new_high, name="AssignMaxLast")
        return quantise(tensor, low, high, config.weight_bits, narrow_range=True)


def moving_average(
    tensor, name: str, config: QatConfig, training: bool, initial_min: float, ceiling: Optional[float]
) -> Callable:
    """Fake quant of an activation: moving average of its ranges.

    Args:
      tensor: float32, any shape; for an absorbed ReLU the tensor before it.
      name: `<layer>/act_quant` and the like.
      config: options.
      training: whether the range is updated.
      initial_min: of the variable.
      ceiling: None for a tensor as it is; infinity for an absorbed ReLU, 6 for an absorbed ReLU6. The range
        then starts at 0 and ends at the ceiling at most, so the fake quant clips as the ReLU did.

    Returns:
      a function without arguments that makes the fake-quant op (called inside a branch of `quant_delay`, so
      that nothing of it runs before), with the range updates made already, outside the branch.
    """
    with _quant_scope(name, tensor) as scope:
        low, high = _range_variables(initial_min)
        if training:
            low, high = _track(tensor, low, high, config, ceiling)

    def make():
        with tf.name_scope(scope.original_name_scope):
            if ceiling is not None:
                return quantise_from_zero(tensor, low, high, config.activation_bits)
            return quantise(tensor, low, high, config.activation_bits, narrow_range=False)

    return make


def _track(tensor, low, high, config: QatConfig, ceiling: Optional[float]) -> Tuple[object, object]:
    """Updates the range variables from a batch; returns the updated values."""
    from tensorflow.python.training import moving_averages

    batch_max = tf.reduce_max(tensor, name="BatchMax")
    if ceiling is not None:
        # Behind a ReLU the minimum is 0 and stays so.
        new_low = None
        new_high = tf.maximum(tf.minimum(batch_max, ceiling), 0.0)
    else:
        new_low, new_high = around_zero(
            tf.reduce_min(tensor, name="BatchMin"),
            batch_max,
            config.symmetric,
            config.activation_bits,
            narrow_range=False,
        )
    # The debiased average keeps two helper variables a range; they have to be restored as well.
    known = len(tf.get_collection_ref(tf.GraphKeys.GLOBAL_VARIABLES))
    if new_low is not None:
        low = moving_averages.assign_moving_average(low, new_low, config.ema_decay, name="AssignMinEma")
    average = moving_averages.assign_moving_average(high, new_high, config.ema_decay, name="AssignMaxEma")
    if ceiling is not None and np.isfinite(ceiling):
        # Rounding in the debiasing takes an average of sixes to 6.00004.
        average = tf.assign(high, tf.minimum(average, ceiling), name="AssignMaxCeiling")
    high = average
    for variable in tf.get_collection_ref(tf.GraphKeys.GLOBAL_VARIABLES)[known:]:
        tf.add_to_collection(QUANT_VARIABLES, variable)
    return low, high
