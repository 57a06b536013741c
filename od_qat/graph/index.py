"""A read-only index of a graph, built in one pass."""

from typing import Callable, Dict, Iterable, List, Optional, Set, Tuple

Consumer = Tuple[object, int]


def op_name(source: str) -> str:
    """The name of the op that an input of a node names: of `scope/op:1` or `^scope/op`, `scope/op`."""
    return source.lstrip("^").partition(":")[0]


def in_control_flow(operation) -> bool:
    """Whether an op is in a tf.cond or tf.while_loop.

    A node outside of these cannot replace such an op, and its value cannot be fetched.
    """
    return operation._get_control_flow_context() is not None


def names_and_scopes(operations: Iterable[object]) -> Set[str]:
    """Returns the names of operations and of all scopes that they are in."""
    found = set()
    for operation in operations:
        name = operation.name
        while name and name not in found:
            found.add(name)
            name = name.rpartition("/")[0]
    return found


def with_sources(operations: Iterable[object], stop_at: Iterable[object] = ()) -> Set[str]:
    """Returns the names of operations, and of all that lead to them, as inputs or as control inputs.

    What leads to the operations of `stop_at` is left out.
    """
    found: Set[str] = set()
    ends = {operation.name for operation in stop_at}
    pending = list(operations)
    while pending:
        operation = pending.pop()
        if operation.name not in found:
            found.add(operation.name)
            if operation.name in ends:
                continue
            pending.extend(tensor.op for tensor in operation.inputs)
            pending.extend(operation.control_inputs)
    return found


def first_free(name: str, is_taken: Callable[[str], bool]) -> str:
    """Returns the first of `name`, `name_1`, `name_2`, ... that is not taken."""
    unique, number = name, 0
    while is_taken(unique):
        number += 1
        unique = "{}_{}".format(name, number)
    return unique


class GraphIndex(object):
    """The operations of a graph in creation order, and the consumers of each tensor.

    It is a snapshot without later edits. Tensors are keyed by name, since a Tensor is not hashable under
    TF 2's tensor equality.

    Args:
      graph: tf.Graph.
      operations: those of its operations that the index has, in creation order, with all that lead to them;
        None for all. The others are neither operations nor consumers.

    Attributes:
      size: the number of all operations of the graph.
    """

    def __init__(self, graph, operations: Optional[List[object]] = None) -> None:
        self.graph = graph
        everything = graph.get_operations()
        self.size: int = len(everything)
        self.operations: List[object] = everything if operations is None else operations
        self._consumers: Dict[str, List[Consumer]] = {}
        self._inputs: Dict[str, Tuple[object, ...]] = {}
        self._positions: Dict[str, int] = {}
        self._by_type: Dict[str, List[Tuple[int, object]]] = {}
        self._function_nodes: Optional[Dict[str, List[object]]] = None
        for at, operation in enumerate(self.operations):
            name = operation.name
            self._positions[name] = at
            self._by_type.setdefault(operation.type, []).append((at, operation))
            inputs = tuple(operation.inputs)
            self._inputs[name] = inputs
            for position, tensor in enumerate(inputs):
                self._consumers.setdefault(tensor.name, []).append((operation, position))

    def of_types(self, types: Iterable[str]) -> List[object]:
        """Returns the operations of some types, in creation order."""
        found = [one for kind in types for one in self._by_type.get(kind, ())]
        return [operation for _, operation in sorted(found, key=lambda one: one[0])]

    def inputs(self, operation) -> Tuple[object, ...]:
        """Returns the input tensors of an operation."""
        return self._inputs[operation.name]

    def position(self, operation) -> int:
        """Returns the position of an operation in creation order."""
        return self._positions[operation.name]

    def _nodes_of_functions(self) -> Dict[str, List[object]]:
        """Returns the NodeDefs of the functions that the graph can call, by the function's name."""
        if self._function_nodes is None:  # it takes the whole GraphDef, and few graphs need it
            functions = self.graph.as_graph_def().library.function
            self._function_nodes = {function.signature.name: function.node_def for function in functions}
        return self._function_nodes

    def types_in_functions(self, operation) -> List[str]:
        """Returns the types of all ops in the functions that an op calls, directly or through others.

        Each function counts once.
        """
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
        """Returns the readers of a tensor, as (operation, input position) pairs."""
        return self.consumers_by_name(tensor.name)

    def consumers_by_name(self, name: str) -> List[Consumer]:
        """Returns the same for a tensor's name, `scope/op:0`."""
        return self._consumers.get(name, [])

    def consumer_ops(self, tensor) -> List[object]:
        """Returns the operations that read a tensor, each once, in graph order."""
        seen, found = set(), []
        for operation, _ in self.consumers(tensor):
            if operation.name not in seen:
                seen.add(operation.name)
                found.append(operation)
        return found


def _functions(node) -> List[str]:
    """Returns the names of the functions that a node calls."""
    found = []
    for value in node.attr.values():
        found += [one.name for one in [value.func] + list(value.list.func) if one.name]
    return found
