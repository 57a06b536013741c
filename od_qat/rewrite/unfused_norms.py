"""Finds batch norms that are built of single ops, as tf.nn.batch_normalization builds them::

s = Rsqrt(variance + epsilon) [* gamma];   y = x * s + (beta - mean * s), or + (-mean) * s
"""

from typing import FrozenSet, List, NamedTuple, Optional, Tuple

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy
from od_qat.rewrite.parts import BatchNorm, UnfusedParts
from od_qat.rewrite.tensors import averaged_into, both_ways, is_variable_value


class _Arithmetic(NamedTuple):
    """The ops and tensors of y = x * s + shift, named as in the formulas above."""

    last: object
    product: object
    data: object
    scale: object
    variance: object
    epsilon: float
    gamma: Optional[object]
    mean: object
    beta: Optional[object]


def find(index: GraphIndex, as_contrib: bool) -> Tuple[List[BatchNorm], List[str]]:
    """Finds all unfused batch norms of a graph.

    Args:
      index: the graph before any edit.
      as_contrib: whether to find only those that contrib finds, by their names.

    Returns:
      the batch norms in graph order, and the names (of the last op) of those that a tensor switches between
      training and evaluation.
    """
    norms, switched = [], []
    for operation in index.of_types(policy.ADD):
        if as_contrib and "BatchNorm/batchnorm" not in operation.name:
            continue
        parts = _arithmetic_ending_in(index, operation)
        if parts is None:
            continue
        if _is_switched(index, parts):
            switched.append(operation.name)
            continue
        norm = _batch_norm(index, parts)
        if norm is not None:
            norms.append(norm)
    return norms, switched


def _arithmetic_ending_in(index: GraphIndex, operation) -> Optional[_Arithmetic]:
    for product, shift in both_ways(index, operation):
        if product.op.type != "Mul":
            continue
        for data, scale in both_ways(index, product.op):
            scaling = _scaling(index, scale)
            shifting = scaling and _shifting(index, shift, scale)
            if shifting:
                return _Arithmetic(operation, product.op, data, scale, *(scaling + shifting))
    return None


def _scaling(index: GraphIndex, tensor) -> Optional[Tuple[object, float, Optional[object]]]:
    """Returns variance, epsilon and gamma (or None) of Rsqrt(variance + epsilon) [* gamma]; else None."""
    if tensor.get_shape().ndims != 1:
        return None
    if tensor.op.type == "Mul":
        for factor, gamma in both_ways(index, tensor.op):
            if factor.op.type == "Rsqrt" and gamma.get_shape().ndims == 1:
                found = _scaling(index, factor)
                return found and found[:2] + (gamma,)
    elif tensor.op.type == "Rsqrt":
        source = index.inputs(tensor.op)[0].op
        if source.type in policy.ADD:
            for variance, epsilon in both_ways(index, source):
                if epsilon.op.type == "Const" and epsilon.get_shape().ndims == 0:
                    return variance, float(tf.make_ndarray(epsilon.op.get_attr("value"))), None
    return None


def _shifting(index: GraphIndex, tensor, scale) -> Optional[Tuple[object, Optional[object]]]:
    """Returns mean and beta (or None) of beta - mean * scale or -mean * scale; else None."""
    if tensor.op.type == "Sub":
        beta, product = index.inputs(tensor.op)
        mean = _multiplied_by(index, product, scale)
        return (mean, beta) if mean is not None and beta.get_shape().ndims == 1 else None
    negative = _multiplied_by(index, tensor, scale)
    if negative is not None and negative.op.type == "Neg":
        return index.inputs(negative.op)[0], None
    return None


def _multiplied_by(index: GraphIndex, tensor, scale) -> Optional[object]:
    """Returns the other factor if a tensor is a product with `scale`; else None."""
    if tensor.op.type != "Mul":
        return None
    return next((other for other, factor in both_ways(index, tensor.op) if factor.name == scale.name), None)


def _is_training(index: GraphIndex, parts: _Arithmetic) -> bool:
    return not (is_variable_value(index, parts.mean) and is_variable_value(index, parts.variance))


def _is_switched(index: GraphIndex, parts: _Arithmetic) -> bool:
    statistics = (parts.mean, parts.variance)
    return _is_training(index, parts) and any(one.op.type in policy.BRANCH_ENDS for one in statistics)


def _batch_norm(index: GraphIndex, parts: _Arithmetic) -> Optional[BatchNorm]:
    """Returns the batch norm; None if mean and variance are neither the batch's nor moving averages."""
    moving_mean, moving_variance, moments = parts.mean, parts.variance, frozenset()
    training = _is_training(index, parts)
    if training:
        moments = _moments(index, parts.data, parts.mean) | _moments(index, parts.data, parts.variance)
        # Through these ops, mean and variance lead to the result, not to their averages.
        inside = frozenset(op.name for op in index.consumer_ops(parts.scale)) | {parts.scale.op.name}
        moving_mean = _moving_average(index, parts.mean, inside)
        moving_variance = _moving_average(index, parts.variance, inside)
        if not moments or moving_mean is None or moving_variance is None:
            return None
    return BatchNorm(
        parts.last,
        parts.data,
        parts.gamma,
        parts.beta,
        moving_mean,
        moving_variance,
        parts.epsilon,
        training,
        channels_first=False,
        unfused=UnfusedParts(parts.mean, parts.variance, parts.product.name, moments),
    )


def _moving_average(index: GraphIndex, statistic, inside: FrozenSet[str]) -> Optional[object]:
    """Returns the value of the variable that a statistic is averaged into, or the statistic if it is one."""
    if is_variable_value(index, statistic):
        return statistic
    while statistic.op.type == "Identity":  # it waits for its average (updates_collections=None)
        statistic = index.inputs(statistic.op)[0]
    return averaged_into(index, statistic, inside)


def _moments(index: GraphIndex, data, statistic) -> FrozenSet[str]:
    """Returns the names of the ops that read `data` for a statistic of the batch."""
    found, pending = set(), [statistic]
    while pending:
        operation = pending.pop().op
        if operation.type in policy.OF_MOMENTS:
            for tensor in index.inputs(operation):
                if tensor.name == data.name:
                    found.add(operation.name)
                else:
                    pending.append(tensor)
    return frozenset(found)
