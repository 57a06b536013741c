"""Finds the ops of a graph that lead to given outputs; a rewrite that is given outputs sees no others.

A Keras functional model is in a graph twice: it was built on an input of its own, and again where it is
called. Nothing reads the first copy, so a fake quant in it would have a range that never moves.
"""

from typing import Iterable, List, Set

from od_qat.compat import tf
from od_qat.errors import RewriteError
from od_qat.graph.index import with_sources
from od_qat.rewrite import policy

# An update that needs one of these, of those that do not lead to outputs, is of another copy or layer.
_OF_OTHERS = (
    frozenset(["Placeholder", "PlaceholderV2", "PlaceholderWithDefault"])
    | policy.WEIGHTED
    | policy.WEIGHTED_UNSUPPORTED
    | policy.BATCH_NORM
)
# What hangs on these ops alone depends on no data.
_OF_PARAMETERS = policy.VARIABLE | frozenset(["Const", "ReadVariableOp"])


def leading_to(graph, outputs: Iterable[object]) -> List[object]:
    """Returns the ops that lead to outputs, directly or as control inputs, in creation order.

    The ops that update a variable from what they compute are among them, such as the moving averages of a
    batch norm, whether or not the outputs wait for them. An update that needs another layer, or another
    input of the graph, is not.

    Args:
      graph: tf.Graph.
      outputs: tensors or operations of the graph.

    Raises:
      RewriteError: if there are no outputs, or one is not of this graph.
    """
    found = with_sources(_as_operations(graph, outputs))
    found |= with_sources(_updates(graph, found))
    return [operation for operation in graph.get_operations() if operation.name in found]


def _as_operations(graph, outputs: Iterable[object]) -> List[object]:
    operations = []
    for output in outputs:
        operation = output if isinstance(output, tf.Operation) else getattr(output, "op", None)
        if getattr(operation, "graph", None) is not graph:
            raise RewriteError(
                "an output is not in the graph",
                where="outputs",
                found=str(getattr(output, "name", type(output).__name__)),
                allowed="tensors and operations of the graph that is rewritten",
            )
        operations.append(operation)
    if not operations:
        raise RewriteError(
            "no outputs", where="outputs", found="an empty list", fix="give None for the whole graph"
        )
    return operations


def _updates(graph, found: Set[str]) -> List[object]:
    """Returns the ops that update variables from data of the found ops, without other layers or inputs."""
    others: Set[str] = set()  # other layers and inputs, and what needs them
    hanging: Set[str] = set()  # what needs the data of found ops
    updates = []
    for operation in graph.get_operations():
        if operation.name in found:
            continue
        sources = [tensor.op for tensor in operation.inputs]
        needed = sources + list(operation.control_inputs)
        if operation.type in _OF_OTHERS or any(one.name in others for one in needed):
            others.add(operation.name)
        elif any(
            one.name in hanging or (one.name in found and one.type not in _OF_PARAMETERS) for one in sources
        ):
            hanging.add(operation.name)
            if operation.type.startswith("Assign"):
                updates.append(operation)
    return updates
