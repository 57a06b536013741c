"""A read-only index of a graph, built in one pass."""

from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

Consumer = Tuple[object, int]


def in_control_flow(operation) -> bool:
    """Whether an op is in a tf.cond or tf.while_loop.

    Nodes from outside cannot be put in its place, and its value cannot be fetched.
    """
    return operation._get_control_flow_context() is not None


def names_and_scopes(operations: Iterable[object]) -> Set[str]:
    """Names of operations and of all the scopes that they are in."""
    found = set()
    for operation in operations:
        name = operation.name
        while name and name not in found:
            found.add(name)
            name = name.rpartition("/")[0]
    return found


def first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    """`name`, or the first of `name_1`, `name_2`, ... that is not taken."""
    unique, number = name, 0
    while is_taken(unique):
        number += 1
        unique = "{}_{}".format(name, number)
    return unique


class GraphIndex(object):
    """Operations in creation order and, for each tensor, who consumes it at which input.

    It is a snapshot: edits made later are not seen. Tensors are keyed by name, since a Tensor is not
    hashable under TF 2's tensor equality.

    Args:
      graph: tf.Graph.
    """

    def __init__(self, graph) -> None:
        self.graph = graph
        self.operations: List[object] = graph.get_operations()
        self._consumers: Dict[str, List[Consumer]] = {}
        self._inputs: Dict[str, Tuple[object, ...]] = {}
        self._positions: Dict[str, int] = {}
        self._function_nodes: Optional[Dict[str, List[object]]] = None
        for at, operation in enumerate(self.operations):
            self._positions[operation.name] = at
            inputs = tuple(operation.inputs)
            self._inputs[operation.name] = inputs
            for position, tensor in enumerate(inputs):
                self._consumers.setdefault(tensor.name, []).append((operation, position))

    def inputs(self, operation) -> Tuple[object, ...]:
        """Input tensors of an operation."""
        return self._inputs[operation.name]

    def position(self, operation) -> int:
        """Of an operation among all, in creation order."""
        return self._positions[operation.name]

    def _nodes_of_functions(self) -> Dict[str, List[object]]:
        """NodeDefs of the functions that the graph can call, by the function's name."""
        if self._function_nodes is None:  # (It takes the whole GraphDef, and few graphs are asked.)
            functions = self.graph.as_graph_def().library.function
            self._function_nodes = {function.signature.name: function.node_def for function in functions}
        return self._function_nodes

    def types_in_functions(self, operation) -> List[str]:
        """Types of all ops in the functions that an op calls, and that these call; of each function once."""
        bodies = self._nodes_of_functions()
        pending, seen, types = _functions(operation.node_def), set(), []
        while pending:
            name = pending.pop()
            if name not in seen:
                seen.add(name)
                for node in bodies.get(name, ()):
                    types.append(node.op)
                    pending.extend(_functions(node))
        return types

    def consumers(self, tensor) -> List[Consumer]:
        """(operation, input position) pairs that read a tensor."""
        return self.consumers_by_name(tensor.name)

    def consumers_by_name(self, name: str) -> List[Consumer]:
        """The same for a tensor's name, `scope/op:0`."""
        return self._consumers.get(name, [])

    def consumer_ops(self, tensor) -> List[object]:
        """The operations that read a tensor, each once, in graph order."""
        seen, found = set(), []
        for operation, _ in self.consumers(tensor):
            if operation.name not in seen:
                seen.add(operation.name)
                found.append(operation)
        return found


def _functions(node) -> List[str]:
    """Names of the functions that a node calls."""
    found = []
    for value in node.attr.values():
        found += [one.name for one in [value.func] + list(value.list.func) if one.name]
    return found
