"""Finds dropouts, drop paths and added noise, which training graphs have and eval graphs do not."""

from typing import Iterator, Optional

from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy
from od_qat.rewrite.tensors import both_ways

# How many ops are searched for random numbers; a dropout has six.
_STEPS_TO_RANDOM = 10


class Noise(object):
    """Tells which ops put random numbers onto data, so that training and eval graphs are matched alike.

    contrib does not look for noise, and its two graphs differ at NASNet's drop paths.

    Args:
      index: the graph before any edit.
      as_contrib: whether to find none, as contrib.
    """

    def __init__(self, index: GraphIndex, as_contrib: bool) -> None:
        self._index = index
        self._as_contrib = as_contrib

    def data(self, tensor):
        """Returns the data that a dropout, a drop path or noise is applied to; any other tensor unchanged."""
        data = None if self._as_contrib else self._without_noise(tensor.op)
        if data is None:
            return tensor
        # A dropout first scales the data up by a scalar.
        if tensor.op.type not in policy.ADDS_NOISE and data.op.type in ("Mul", "RealDiv"):
            for kept, factor in both_ways(self._index, data.op):
                if factor.get_shape().ndims == 0:
                    return kept
        return data

    def is_part(self, operation) -> bool:
        """Whether an op puts noise onto data, or scales the data in front of a mask."""
        if self._as_contrib or operation.type not in policy.NOISY:
            return False
        if self._without_noise(operation) is not None:
            return True
        if operation.type in policy.ADDS_NOISE:
            return False
        consumers = self._index.consumer_ops(operation.outputs[0])
        return (
            len(consumers) == 1
            and consumers[0].type in ("Mul", "Select", "SelectV2")
            and self._without_noise(consumers[0]) is not None
        )

    def _without_noise(self, operation) -> Optional[object]:
        """Returns the data of a product with, or selection by, a random mask, or of a sum with noise."""
        if operation.type in policy.ADDS_NOISE or operation.type == "Mul":
            is_noise = self._is_random if operation.type == "Mul" else self._is_nothing_but_random
            for data, noise in both_ways(self._index, operation)[: 1 if operation.type == "Sub" else None]:
                if is_noise(noise):
                    return data
        elif operation.type in ("Select", "SelectV2"):
            condition, data, _ = self._index.inputs(operation)
            if self._is_random(condition):
                return data
        return None

    def _is_random(self, tensor) -> bool:
        """Whether a tensor is computed from random numbers by a few ops."""
        return any(kind in policy.RANDOM for kind in self._made_of(tensor))

    def _is_nothing_but_random(self, tensor) -> bool:
        """Whether a tensor is computed from random numbers and constants only, by a few ops."""
        kinds = set(self._made_of(tensor))
        return bool(kinds & policy.RANDOM) and kinds <= policy.RANDOM | {"Const"}

    def _made_of(self, tensor) -> Iterator[str]:
        """Yields the types of the ops that a mask or noise is computed from; '' last if they are many."""
        pending = [tensor.op]
        for _ in range(_STEPS_TO_RANDOM):
            if not pending:
                return
            operation = pending.pop()
            if operation.type in policy.OF_MASKS:
                pending.extend(source.op for source in self._index.inputs(operation))
            else:
                yield operation.type
        if pending:
            yield ""
