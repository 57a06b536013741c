"""What stands between layers and is part of none: which of it keeps quantised values so, and how."""

import enum
from typing import Iterable, List, NamedTuple, Optional

import numpy as np

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex, in_control_flow
from od_qat.rewrite import policy
from od_qat.rewrite.layers import Layers
from od_qat.rewrite.noise import Noise
from od_qat.rewrite.parts import BatchNorm


class Kind(enum.Enum):
    """What an op that reads quantised values does with them."""

    OWN_RANGE = "it needs a range of its own"
    HANDS_ON = "its output has its input's range, or a fixed one"
    FLOAT = "it leads to layers, and no range is trained for it"
    END = "quantised values end here: what reads it is no part of the network, or stays as it is"


class Between(NamedTuple):
    """An op that reads quantised values, or ends a layer.

    Attributes:
      op: the op.
      kind: what it does with them.
      norm: the batch norm behind no layer that it is; None for others.
    """

    op: object
    kind: Kind
    norm: Optional[BatchNorm] = None


def classify(index: GraphIndex, layers: Layers, noise: Noise, quantised: Iterable[str]) -> List[Between]:
    """Follows quantised values through the graph.

    Args:
      index: the graph before any edit.
      layers: its layers.
      noise: what is noise in it.
      quantised: names of the tensors that have a range.

    Returns:
      each op that quantised values reach, in the order of the graph.
    """
    quantised, found = set(quantised), []
    for operation in index.operations:
        ends_layer = layers.ends_layer(operation)
        if not ends_layer and not any(
            tensor.name in quantised or tensor.op.type in policy.FAKE_QUANT
            for tensor in index.inputs(operation)
        ):
            continue
        norm = layers.norm_alone(operation)
        if noise.is_part(operation):
            kind = Kind.HANDS_ON  # (in training only)
        elif ends_layer or norm is not None or _has_own_range(index, operation):
            # (A layer's end counts where it is read by more than its activation.)
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
    """Not the inside of a batch norm that stays as it is: vectors, and means over the batch."""
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
        return False  # (a batch norm's variance in training)
    return any(
        output.name in layers.leading_to_layers and output.dtype.base_dtype == tf.float32
        for output in operation.outputs
    )
