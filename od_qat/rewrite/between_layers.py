"""Classifies the ops between layers: which need a range of their own, and which keep their input's."""

import enum
from typing import Dict, Iterable, List, NamedTuple, Optional

import numpy as np

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex, in_control_flow
from od_qat.rewrite import policy
from od_qat.rewrite.layers import Layers
from od_qat.rewrite.noise import Noise
from od_qat.rewrite.parts import BatchNorm
from od_qat.rewrite.weighted_sums import WeightedSum


class Kind(enum.Enum):
    """What an op that reads quantized values does with them."""

    OWN_RANGE = "it needs a range of its own"
    HANDS_ON = "its output has its input's range, or a fixed one"
    FLOAT = "it leads to layers, and no range is trained for it"
    END = "quantized values end here: its readers are no part of the network, or stay as they are"


class Between(NamedTuple):
    """An op that reads quantized values, or ends a layer.

    Attributes:
      op: the op.
      kind: what it does with the values.
      norm: the batch norm, if the op is one that is behind no layer; else None.
    """

    op: object
    kind: Kind
    norm: Optional[BatchNorm] = None


def classify(
    index: GraphIndex,
    layers: Layers,
    noise: Noise,
    quantised: Iterable[str],
    sums: Dict[str, WeightedSum],
) -> List[Between]:
    """Follows quantized values through the graph.

    Args:
      index: the graph before any edit.
      layers: the layers of the graph.
      noise: tells which ops add noise.
      quantised: names of the tensors that have a range.
      sums: the weighted sums, by the names of their ops.

    Returns:
      each op that quantized values reach, in graph order.
    """
    quantised, found = set(quantised), []
    quantised.update(op.outputs[0].name for op in index.of_types(policy.FAKE_QUANT))  # the model's own
    for operation in index.operations:
        ends_layer = layers.ends_layer(operation)
        if not ends_layer and not any(tensor.name in quantised for tensor in index.inputs(operation)):
            continue
        norm = layers.norm_alone(operation)
        if noise.is_part(operation):
            kind = Kind.HANDS_ON  # noise exists in training only
        elif operation.name in sums:
            ends = operation is sums[operation.name].squeeze
            kind = Kind.OWN_RANGE if ends else Kind.HANDS_ON
        elif ends_layer or norm is not None or _has_own_range(index, operation):
            # The planner gives the last op of a layer no range if only a ReLU reads it.
            kind = Kind.OWN_RANGE
        elif operation.type in policy.OWN_RANGE:
            kind = Kind.END
        elif operation.type in policy.STAYS_QUANTISED:
            kind = Kind.HANDS_ON
        else:
            kind = Kind.FLOAT if _is_float_between(index, layers, operation) else Kind.END
        if kind in (Kind.OWN_RANGE, Kind.HANDS_ON):
            quantised.update(output.name for output in operation.outputs)
        found.append(Between(operation, kind, norm))
    return found


def _has_own_range(index: GraphIndex, operation) -> bool:
    """Whether an op needs a range of its own.

    Vectors and means over the batch do not: they are inside a batch norm that is not folded.
    """
    if operation.type not in policy.OWN_RANGE or operation.outputs[0].get_shape().ndims == 1:
        return False
    if operation.type != "Mean":
        return True
    axes = tf.get_static_value(index.inputs(operation)[1])
    return axes is None or 0 not in np.ravel(axes)


def _is_float_between(index: GraphIndex, layers: Layers, operation) -> bool:
    if operation.type in policy.NEEDS_NO_RANGE or in_control_flow(operation):
        return False
    if operation.type == "SquaredDifference" and all(
        consumer.type == "Mean" and not _has_own_range(index, consumer)
        for consumer in index.consumer_ops(operation.outputs[0])
    ):
        return False  # the variance of a batch norm in training
    return any(
        output.name in layers.leading_to_layers and output.dtype.base_dtype == tf.float32
        for output in operation.outputs
    )
