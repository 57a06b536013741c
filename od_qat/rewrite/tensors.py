"""Tells from a tensor's producers and readers what it is: a variable's value, a statistic, data."""

from typing import FrozenSet, Optional, Tuple

from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy


def both_ways(index: GraphIndex, operation) -> Tuple[Tuple[object, object], Tuple[object, object]]:
    """Returns the two inputs of an op in both orders."""
    first, second = index.inputs(operation)
    return (first, second), (second, first)


def is_variable_value(index: GraphIndex, tensor) -> bool:
    """Whether a tensor is the value of a variable, or of a partitioned variable.

    That is Variable -> Identity, VarHandleOp -> ReadVariableOp, or a concat of these.
    """
    operation = tensor.op
    if operation.type == "ReadVariableOp":
        return True
    if operation.type == "Identity":
        source = index.inputs(operation)[0].op
        return source.type in policy.VARIABLE or is_variable_value(index, source.outputs[0])
    if operation.type in policy.CONCAT:
        return all(is_variable_value(index, part) for part in index.inputs(operation)[:-1])
    return False


def variable_of(index: GraphIndex, tensor) -> Optional[object]:
    """Returns the resource variable (its VarHandleOp) whose value a tensor is; None for any other tensor.

    Each use of such a variable may have a ReadVariableOp of its own. A reference variable has one `read`.
    """
    while tensor.op.type in ("Identity", "ReadVariableOp"):
        tensor = index.inputs(tensor.op)[0]
    return tensor.op if tensor.op.type == "VarHandleOp" else None


def averaged_into(index: GraphIndex, statistic, not_behind: FrozenSet[str] = frozenset()) -> Optional[object]:
    """Returns the value of the variable that a statistic is averaged into; None if there is none.

    Args:
      index: the graph.
      statistic: [channels], a mean or variance of the batch.
      not_behind: names of ops where the search ends.
    """
    pending, seen = [statistic], set(not_behind)
    while pending:
        tensor = pending.pop()
        for operation in index.consumer_ops(tensor):
            if operation.name in seen:
                continue
            seen.add(operation.name)
            average = _averaged_by(index, operation, tensor)
            if average is not None:
                return average
            if operation.type in ("Identity", "Mul", "Squeeze", "Reshape"):
                pending.extend(operation.outputs)
    return None


def _averaged_by(index: GraphIndex, operation, statistic) -> Optional[object]:
    """Returns the average's variable of average - statistic, or decay * average + (1 - decay) * statistic."""
    others = [tensor for tensor in index.inputs(operation) if tensor.name != statistic.name]
    if operation.type == "Sub":
        return next((one for one in others if is_variable_value(index, one)), None)
    if operation.type in policy.ADD:
        for other in others:
            for factor in index.inputs(other.op) if other.op.type == "Mul" else ():
                if factor.get_shape().ndims == 1 and is_variable_value(index, factor):
                    return factor
    return None


def leading_to_layers(index: GraphIndex) -> FrozenSet[str]:
    """Returns the names of all tensors from which data flows into an op with weights."""
    layers = index.of_types(policy.WEIGHTED)
    pending = [index.inputs(op)[policy.DATA_INPUT.get(op.type, 0)] for op in layers]
    found = set()
    while pending:
        tensor = pending.pop()
        if tensor.name not in found:
            found.add(tensor.name)
            # The range of a model's own fake quant is not data.
            pending.extend(index.inputs(tensor.op)[: 1 if tensor.op.type in policy.FAKE_QUANT else None])
    return frozenset(found)
