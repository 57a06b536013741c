"""The edits that a rewrite is made of."""

from typing import Iterable, Tuple


def replace_input(operation, position: int, tensor) -> None:
    """Lets an operation read another tensor."""
    operation._update_input(position, tensor)


def reroute(consumers: Iterable[Tuple[object, int]], tensor) -> int:
    """Lets every (operation, position) pair read `tensor`; returns how many there were."""
    count = 0
    for operation, position in consumers:
        replace_input(operation, position, tensor)
        count += 1
    return count


def clone_with_inputs(operation, inputs, name: str):
    """A copy of an operation, attributes included, with other inputs.

    Args:
      operation: what to copy.
      inputs: tensors, as many as the original has.
      name: name inside the current name scope.
    """
    attributes = {key: value for key, value in operation.node_def.attr.items() if not key.startswith("_")}
    return operation.graph.create_op(
        operation.type,
        list(inputs),
        [output.dtype for output in operation.outputs],
        attrs=attributes,
        name=name,
    )


def live_consumers(tensor) -> list:
    """(operation, position) pairs that read a tensor now, edits included."""
    found, seen = [], set()
    for operation in tensor.consumers():
        if operation.name in seen:
            continue
        seen.add(operation.name)
        for position, candidate in enumerate(operation.inputs):
            if candidate is tensor or candidate.name == tensor.name:
                found.append((operation, position))
    return found
