"""Finds sums of features with trained scalar weights, as EfficientDet's BiFPN builds them::

    [a, b, ...] -> Pack (last axis) -> BatchMatMul with weights [n, 1] -> Squeeze

The weights depend on variables only (on a softmax of them, or on their share of their sum), so they are
constants at inference.
"""

from typing import Dict, List, NamedTuple, Tuple

from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy
from od_qat.rewrite.tensors import is_variable_value

# The ops that may make weights of variables.
_OF_WEIGHTS = frozenset(["AddV2", "Add", "Const", "Identity", "Mul", "RealDiv", "Relu", "Softmax", "Sum"])


class WeightedSum(NamedTuple):
    """A weighted sum.

    Attributes:
      pack, matmul, squeeze: its ops.
      weights: float32 [n, 1].
    """

    pack: object
    matmul: object
    squeeze: object
    weights: object


def find(index: GraphIndex) -> Dict[str, WeightedSum]:
    """Finds all weighted sums of a graph, by the name of each of their three ops."""
    found = {}
    for matmul in index.of_types(policy.BATCH_MATMUL):
        for one in _ending_in(index, matmul):
            found.update({op.name: one for op in (one.pack, one.matmul, one.squeeze)})
    return found


def _ending_in(index: GraphIndex, matmul) -> List[WeightedSum]:
    data, weights = index.inputs(matmul)[:2]
    pack, behind = data.op, index.consumer_ops(matmul.outputs[0])
    inputs = index.inputs(pack)
    rank = data.get_shape().ndims
    if pack.type != "Pack" or rank is None or len(behind) != 1 or behind[0].type != "Squeeze":
        return []
    if len(index.consumers(data)) != 1 or len(inputs) < 2 or matmul.get_attr("adj_x"):
        return []
    if pack.get_attr("axis") not in (-1, rank - 1) or behind[0].get_attr("squeeze_dims") not in (
        [-1],
        [rank - 1],
    ):
        return []
    if weights.get_shape().as_list() != [len(inputs), 1] or matmul.get_attr("adj_y"):
        return []
    return [WeightedSum(pack, matmul, behind[0], weights)] if _is_of_variables(index, weights) else []


def _is_of_variables(index: GraphIndex, weights) -> bool:
    pending: List[object] = [weights]
    seen: Tuple[str, ...] = ()
    while pending:
        tensor = pending.pop()
        if tensor.name in seen or is_variable_value(index, tensor):
            continue
        seen += (tensor.name,)
        if tensor.op.type not in _OF_WEIGHTS:
            return False
        pending.extend(index.inputs(tensor.op))
    return True
