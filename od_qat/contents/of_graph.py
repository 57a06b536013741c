"""What a frozen graph or a SavedModel holds."""

import glob
import os
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.contents import of_checkpoint
from od_qat.contents.model import (
    BATCH_NORM,
    GRAPH,
    GRAPH_OF_VARIABLES,
    OTHER,
    RANGES,
    SAVED_MODEL,
    WEIGHTS,
    Array,
    Contents,
    Layer,
)
from od_qat.errors import DataError, OdQatError, first_line
from od_qat.graph import allowed_ops
from od_qat.graph.index import op_name
from od_qat.model_files import nodes
from od_qat.rewrite import policy

_VARIABLES = frozenset(["VariableV2", "Variable", "VarHandleOp"])


def read(path: str) -> Contents:
    """Reads a .pb, .pbtxt or .meta.

    Raises:
      DataError: if it cannot be read.
    """
    graph_def = nodes.read_graph(path)
    found = _Graph(graph_def.node)
    arrays = tuple(_constant(node, found.kinds.get(node.name, OTHER)) for node in found.constants())
    kind = GRAPH if not found.has_variables() else GRAPH_OF_VARIABLES
    return Contents(path, kind, os.path.getsize(path), arrays, found.ops(), found.layers(_shapes(graph_def)))


def read_saved_model(folder: str) -> Contents:
    """Reads a SavedModel: its first graph with the functions that it calls, and its variables.

    Raises:
      DataError, CheckpointError: if it cannot be read.
    """
    path = os.path.join(folder, "saved_model.pb")
    message = nodes.read_saved_model(path)
    if not message.meta_graphs:
        raise DataError("the SavedModel has no graph", where=path, fix="copy or export it again")
    graph_def = message.meta_graphs[0].graph_def
    everything = list(graph_def.node)
    for function in graph_def.library.function:
        everything.extend(function.node_def)
    found = _Graph(everything)
    arrays = [_constant(node, found.kinds.get(node.name, OTHER)) for node in found.constants()]
    variables = os.path.join(folder, "variables", "variables")
    if glob.glob(glob.escape(variables) + ".index"):
        arrays.extend(of_checkpoint.read(variables).arrays)
    size = sum(
        os.path.getsize(os.path.join(root, name)) for root, _, names in os.walk(folder) for name in names
    )
    return Contents(folder, SAVED_MODEL, size, tuple(arrays), found.ops(), found.layers(None))


class _Graph(object):
    """The nodes of a graph, and what its constants are for.

    Attributes:
      kinds: name of a constant or variable -> kind of array.
    """

    def __init__(self, every_node: Any) -> None:
        # (Functions of a SavedModel number their nodes for themselves: equal names are told apart.)
        self._nodes: Dict[str, Any] = {}
        for node in every_node:
            name, number = node.name, 0
            while name in self._nodes:
                number += 1
                name = "{}#{}".format(node.name, number)
            self._nodes[name] = node
        self.kinds: Dict[str, str] = {}
        self._weighted = [(name, node) for name, node in self._nodes.items() if node.op in policy.WEIGHTED]
        self._sources: Dict[str, List[str]] = {}
        for node in self._nodes.values():
            if node.op in policy.FAKE_QUANT:
                for source in node.input[1:3]:
                    for name in self._leading_to(source):
                        self.kinds[name] = RANGES
        for name, node in self._weighted:
            self._sources[name] = self._leading_to(node.input[1])
            for source in self._sources[name]:
                if self._dimensions(source) > 1 and self._is_float(source):
                    self.kinds.setdefault(source, WEIGHTS)
        for name, node in self._nodes.items():
            if (node.op == "Const" or node.op in _VARIABLES) and of_checkpoint.is_of_batch_norm(node.name):
                self.kinds.setdefault(name, BATCH_NORM)

    def _leading_to(self, source: str) -> List[str]:
        """The constants and variables that a tensor is computed from."""
        found: List[str] = []
        pending: List[str] = [source]
        seen: Set[str] = set()
        while pending:
            name = op_name(pending.pop())
            node = self._nodes.get(name)
            if node is None or name in seen:
                continue
            seen.add(name)
            if node.op == "Const" or node.op in _VARIABLES:
                found.append(name)
            elif node.op not in policy.WEIGHTED:
                pending.extend(node.input)
        return found

    def _is_float(self, name: str) -> bool:
        return self._nodes[name].attr["dtype"].type == tf.float32.as_datatype_enum

    def _dimensions(self, name: str) -> int:
        node = self._nodes[name]
        if node.op == "Const":
            return len(node.attr["value"].tensor.tensor_shape.dim)
        return len(node.attr["shape"].shape.dim)

    def has_variables(self) -> bool:
        """Whether its weights are elsewhere, in a checkpoint."""
        return any(node.op in _VARIABLES for node in self._nodes.values())

    def constants(self) -> List[Any]:
        """The constants of the graph that are numbers."""
        return [
            node
            for node in self._nodes.values()
            if node.op == "Const" and node.attr["dtype"].type != tf.string.as_datatype_enum
        ]

    def ops(self) -> Dict[str, str]:
        """Name -> type."""
        return {name: node.op for name, node in self._nodes.items()}

    def layers(self, shapes: Optional[Dict[str, Tuple[Optional[int], ...]]]) -> Tuple[Layer, ...]:
        """The layers.

        Args:
          shapes: name of an op -> shape of its first output, None for a size that is not known; None for all.
        """
        return tuple(self._layer(name, node, shapes) for name, node in self._weighted)

    def _layer(self, name: str, node: Any, shapes: Optional[Dict[str, Any]]) -> Layer:
        of_weights = [one for one in self._sources[name] if self.kinds.get(one) == WEIGHTS]
        counts = [self._count(one) for one in of_weights]
        weights = max(counts or [0])
        shape = (shapes or {}).get(name)
        multiply_adds = None
        # (A transposed convolution uses each weight once for each place of its input.)
        if shape is not None and None not in shape[1:] and node.op != policy.TRANSPOSED:
            places = shape[1:-1] if node.op != "MatMul" else ()
            multiply_adds = int(np.prod(places, dtype=np.int64)) * weights
        return Layer(name, node.op, weights, multiply_adds, self._reads_fake_quant(node))

    def _count(self, name: str) -> int:
        node = self._nodes[name]
        field = node.attr["value"].tensor.tensor_shape if node.op == "Const" else node.attr["shape"].shape
        return int(np.prod([dim.size for dim in field.dim], dtype=np.int64))

    def _reads_fake_quant(self, node: Any) -> bool:
        """Whether the weights of a layer went through a fake quant."""
        name = op_name(node.input[1])
        while name in self._nodes:
            source = self._nodes[name]
            if source.op in policy.FAKE_QUANT:
                return True
            # (In training, and in graphs that contrib made, behind it stand a reshape or a scale.)
            if source.op not in ("Identity", "Reshape", "Mul", "RealDiv"):
                return False
            name = op_name(source.input[0])
        return False


def _constant(node: Any, kind: str) -> Array:
    message = node.attr["value"].tensor
    # (What is the same throughout is stored once.)
    return Array(
        node.name,
        kind,
        tuple(dim.size for dim in message.tensor_shape.dim),
        _of_constant(node, lambda: tf.as_dtype(node.attr["dtype"].type).name),
        node.ByteSize(),
        lambda: _of_constant(node, lambda: tf.make_ndarray(message)),
    )


def _of_constant(node: Any, read: Callable[[], Any]) -> Any:
    """What `read` returns; raises DataError where it finds a type or a size that does not belong there."""
    try:
        return read()
    except (ValueError, TypeError, MemoryError) as error:
        raise DataError(
            "a constant of the graph is damaged",
            where=node.name,
            found=first_line(error),
            fix="copy or export the graph again",
        ) from error


def _shapes(graph_def: Any) -> Dict[str, Tuple[Optional[int], ...]]:
    """Name of a layer -> shape of its output, as TensorFlow infers it."""
    layers = [node.name for node in graph_def.node if node.op in policy.WEIGHTED]
    graph = tf.Graph()
    try:
        # (Behind the layers there may be an op that TensorFlow does not have.)
        part = tf.graph_util.extract_sub_graph(graph_def, layers)
        # (The import computes shapes, and runs ops for that.)
        allowed_ops.require_harmless(part, "")
        with graph.as_default():
            tf.import_graph_def(part, name="")
    except (OdQatError, KeyError, ValueError, AssertionError, TypeError, tf.errors.OpError):
        return {}
    found = {}
    for name in layers:
        shape = graph.get_operation_by_name(name).outputs[0].shape
        if shape.ndims is not None:
            found[name] = tuple(shape.as_list())
    return found
