"""Drafts new nodes and moved readers, and puts all of them into the graph at once.

A rewrite that makes its ops by single Python calls takes seconds, and an error in the middle leaves a graph
that is neither float nor quantized. Here a pass writes NodeDefs. TensorFlow then imports all of them, after
it has checked each, and only then are the readers moved.

A tensor is given by its name (`scope/op:0`), whether it is in the graph or in the draft.
"""

import contextlib
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex, first_free, names_and_scopes

_CONSTANTS = "quantization_constants"


class Reader(NamedTuple):
    """A reader of a tensor: an operation of the graph or a node of the draft, and the input it reads at."""

    name: str
    type: str
    position: int
    operation: Optional[object]
    node: Optional[object]


class _Variable(NamedTuple):
    definition: object  # VariableDef
    collections: Tuple[str, ...]


class Draft(object):
    """The nodes that a rewrite will add to a graph, and the inputs that it will change.

    Args:
      index: the current index of the graph, which must not change until `commit`.
    """

    def __init__(self, index: GraphIndex) -> None:
        self.index = index
        self._definition = tf.GraphDef()
        self._definition.versions.CopyFrom(index.graph.graph_def_versions)
        self._readers: Dict[str, List[Reader]] = {}
        self._inputs: Dict[Tuple[str, int], Tuple[object, str]] = {}
        self._external: Dict[str, object] = {}
        self._own: Dict[str, object] = {}
        # TensorFlow compares names in lower case.
        self._taken = {name.lower() for name in names_and_scopes(index.graph.get_operations())}
        self._variable_scopes: List[str] = []
        self._device = ""
        self._variables: List[_Variable] = []
        self._constants: Dict[Tuple, str] = {}
        self._values: Dict[Tuple, object] = {}

    # Nodes.

    def op(self, kind: str, name: str, inputs: Iterable[object], **attributes) -> str:
        """Adds a node; returns its first output, `name:0`.

        Args:
          kind: op type.
          name: full name, with scopes; it is made unique.
          inputs: tensors, or their names.
          **attributes: bool, int, float, bytes, str, list of int, DType or AttrValue; None leaves one out.
        """
        node = self._definition.node.add()
        node.op, node.name, node.device = kind, self.unique_name(name), self._device
        self._own[node.name] = node
        for tensor in inputs:
            node.input.append(self._reference(tensor))
        for key, value in attributes.items():
            if value is not None:
                _set_attribute(node.attr[key], value)
        return node.name + ":0"

    @contextlib.contextmanager
    def on(self, device: str) -> Iterator[None]:
        """Places the nodes that are made within on a device of the graph; '' is the caller's tf.device.

        The work on a tensor is done where the tensor is: in a clone on its GPU, in a worker on that worker.
        """
        former, self._device = self._device, device
        try:
            yield
        finally:
            self._device = former

    def count_as_reader(self, output: str) -> None:
        """Lets `reroute` change the inputs of the node that makes `output`, as those of the graph's ops."""
        node = self._own[output.rpartition(":")[0]]
        for position, tensor in enumerate(node.input):
            self.readers(tensor).append(Reader(node.name, node.op, position, None, node))

    def copy(self, operation, name: str, inputs: Iterable[object], **attributes) -> str:
        """Adds a copy of an operation with other inputs, of which it counts as a reader; returns its output.

        Args:
          operation: the operation to copy, with its attributes.
          name: full name; it is made unique.
          inputs: tensors, or their names, as many as the original has.
          **attributes: attributes that differ.
        """
        with self.on(operation.device):
            output = self.op(operation.type, name, inputs, **attributes)
        node = self._own[output[:-2]]
        for key, value in operation.node_def.attr.items():
            if not key.startswith("_") and key not in attributes:
                node.attr[key].CopyFrom(value)
        self.count_as_reader(output)
        return output

    def switch(self, name: str, tensor, condition: str) -> Tuple[str, str]:
        """Adds a Switch of a float32 tensor; returns its outputs for a false and for a true condition.

        Only one of them is computed. A tf.cond would take milliseconds to build, and its gradient needs
        Python's record of the branches; the gradients of Switch and Merge do not.
        """
        way = self.op("Switch", name, (tensor, condition), T=tf.float32)
        return way, way[:-1] + "1"

    def merge(self, name: str, if_false, if_true) -> str:
        """Adds a Merge; returns the one of two switched float32 tensors that is computed."""
        return self.op("Merge", name, (if_false, if_true), T=tf.float32, N=2)

    def constant(self, value, dtype=tf.float32) -> str:
        """Adds a constant, or returns an equal one that was added before."""
        array = np.asarray(value, dtype.as_numpy_dtype)
        key = _key(array, dtype)
        if key not in self._constants:
            name = "{}/{}".format(_CONSTANTS, len(self._constants))
            with self.on(""):
                self._constants[key] = self._add_constant(name, array, dtype)
        return self._constants[key]

    def _add_constant(self, name: str, array: np.ndarray, dtype) -> str:
        key = _key(array, dtype)
        if key not in self._values:  # ranges start at one of a few values
            self._values[key] = tf.AttrValue(tensor=tf.make_tensor_proto(array, dtype=dtype))
        return self.op("Const", name, (), dtype=dtype, value=self._values[key])

    def variable(self, name: str, initial, dtype, collections: Tuple[str, ...], aggregation) -> str:
        """Adds a reference variable that is not trained; returns its reference, `name:0`.

        Args:
          name: full name, in a scope from `variable_scope`; it is made unique, as scopes may differ in case
            only.
          initial: its initial value, which also gives the shape.
          dtype: its type.
          collections: the graph collections that it is added to.
          aggregation: tf.VariableAggregation.
        """
        with self.on(""):
            return self._add_variable(name, initial, dtype, collections, aggregation)

    def _add_variable(self, name: str, initial, dtype, collections: Tuple[str, ...], aggregation) -> str:
        array = np.asarray(initial, dtype.as_numpy_dtype)
        shape = tf.TensorShape(array.shape).as_proto()
        reference = self.op("VariableV2", name, (), dtype=dtype, shape=tf.AttrValue(shape=shape))
        name = reference[:-2]
        place = _beside(name)
        # The constant is not shared, since a value is loaded into a variable by feeding its initial value.
        initial_value = self._add_constant(name + "/Initializer/Const", array, dtype)
        initializer = self.op(
            "Assign",
            name + "/Assign",
            (reference, initial_value),
            T=dtype,
            use_locking=True,
            validate_shape=True,
            _class=place,
        )
        snapshot = self.op("Identity", name + "/read", (reference,), T=dtype, _class=place)
        definition = _variable_proto()
        definition.variable_name = reference
        definition.initial_value_name = initial_value
        definition.initializer_name = initializer[:-2]
        definition.snapshot_name = snapshot
        definition.trainable = False
        definition.aggregation = aggregation.value
        self._variables.append(_Variable(definition, collections))
        return reference

    def update(self, kind: str, name: str, reference: str, value, dtype, **attributes) -> str:
        """Adds an Assign, AssignAdd or AssignSub on the variable's device; returns the new value.

        Args:
          kind: op type.
          name: full name; it is made unique.
          reference: the reference of the variable, from `variable`.
          value: a tensor, or its name.
          dtype: the type of the variable.
          **attributes: other attributes of the node.
        """
        with self.on(""):
            place = _beside(reference.rpartition(":")[0])
            return self.op(kind, name, (reference, value), T=dtype, _class=place, **attributes)

    # Names.

    def unique_name(self, name: str) -> str:
        """Reserves and returns a name that neither the graph nor the draft uses: `name`, `name_1`, ..."""
        unique = first_free(name, lambda one: one.lower() in self._taken)
        self._taken.add(unique.lower())
        return unique

    def variable_scope(self, name: str) -> Tuple[str, str]:
        """Returns a variable scope and a name scope, each made unique as by `tf.variable_scope(None, name)`.

        They differ if ops of the graph use the name already.
        """
        count = _scope_store().variable_scope_count
        unique = first_free(name, lambda one: one in self._variable_scopes or count(one) > 0)
        self._variable_scopes.append(unique)
        return unique, self.unique_name(name)

    # Readers.

    def readers(self, tensor) -> List[Reader]:
        """Returns the readers that a tensor will have, without nodes from `op` (see count_as_reader)."""
        name = self._name(tensor)
        if name not in self._readers:
            self._readers[name] = [
                Reader(operation.name, operation.type, position, operation, None)
                for operation, position in self.index.consumers_by_name(name)
            ]
        return self._readers[name]

    def current_input(self, operation, position: int) -> str:
        """Returns the name of the tensor that an operation of the graph will read at an input."""
        moved = self._inputs.get((operation.name, position))
        return moved[1] if moved else self.index.inputs(operation)[position].name

    def reroute(self, old, new: str, which: Optional[Callable[[Reader], bool]] = None) -> None:
        """Lets the readers of `old` (only those that `which` picks, if given) read `new`."""
        chosen = [reader for reader in self.readers(old) if which is None or which(reader)]
        if which is None:
            self._readers[self._name(old)] = []
        else:
            self._readers[self._name(old)] = [r for r in self.readers(old) if not which(r)]
        for reader in chosen:
            if reader.node is not None:
                reader.node.input[reader.position] = self._reference(new)
            else:
                self._inputs[reader.name, reader.position] = (reader.operation, new)
        self._readers[new] = self.readers(new) + chosen

    def _name(self, tensor) -> str:
        return tensor if isinstance(tensor, str) else tensor.name

    def _reference(self, tensor) -> str:
        name = self._name(tensor)
        if name.rpartition(":")[0] not in self._own and name not in self._external:
            self._external[name] = (
                self.index.graph.get_tensor_by_name(name) if isinstance(tensor, str) else tensor
            )
        return name

    # The graph.

    def commit(self) -> None:
        """Imports the nodes, makes the variables and moves the readers.

        Raises:
          RuntimeError: if the graph is finalized.
          ValueError, tf.errors.OpError: from TensorFlow, if a node is invalid; nothing has been added then.
            If a reader cannot be moved, all readers are as before, and nothing reads the new nodes.
        """
        graph = self.index.graph
        graph._check_not_finalized()  # the import finds this only after it added nodes
        read = set(name for node in self._definition.node for name in node.input)
        with graph.as_default(), tf.name_scope(None), tf.control_dependencies(None):
            tf.import_graph_def(
                self._definition,
                input_map={name: tensor for name, tensor in self._external.items() if name in read},
                name="",
            )
            self._move_readers()
            for scope in self._variable_scopes:
                _scope_store().open_variable_scope(scope)
            for one in self._variables:
                variable = tf.Variable.from_proto(one.definition)
                for collection in one.collections:
                    graph.add_to_collection(collection, variable)

    def _move_readers(self) -> None:
        moved = []
        try:
            for (_, position), (operation, tensor) in self._inputs.items():
                operation._update_input(position, self.index.graph.get_tensor_by_name(tensor))
                moved.append((operation, position))
        except Exception:
            for operation, position in moved:
                operation._update_input(position, self.index.inputs(operation)[position])
            raise


def _key(array: np.ndarray, dtype) -> Tuple:
    """Returns a key that is equal for equal constants."""
    return dtype.name, array.shape, array.tobytes()


def _beside(variable: str):
    """Returns the value of the attribute `_class` that places a node on the device of a variable."""
    return tf.AttrValue(list=tf.AttrValue.ListValue(s=["loc:@{}".format(variable).encode()]))


def _scope_store():
    from tensorflow.python.ops import variable_scope

    return variable_scope.get_variable_scope_store()


def _variable_proto():
    from tensorflow.core.framework import variable_pb2

    return variable_pb2.VariableDef()


def _set_attribute(attribute, value) -> None:
    if isinstance(value, tf.AttrValue):
        attribute.CopyFrom(value)
    elif isinstance(value, tf.DType):
        attribute.type = value.as_datatype_enum
    elif isinstance(value, bool):
        attribute.b = value
    elif isinstance(value, int):
        attribute.i = value
    elif isinstance(value, float):
        attribute.f = value
    elif isinstance(value, (bytes, str)):
        attribute.s = value if isinstance(value, bytes) else value.encode()
    else:
        attribute.list.i.extend(value)
