"""Lists the inputs and outputs of a model, for any kind of file.

A graph may be frozen or not; output_nodes finds its outputs. Of a SavedModel, the signatures are read. A
.tflite is read from its bytes and not loaded, so that a damaged file cannot crash the process.

If a .tflite ends in TFLite_Detection_PostProcess, that op gives the roles of the outputs, in whatever order
the converter put them (TF 2's order is scores, boxes, count, classes). Without that op, the role comes from
the JSON beside the model, or from the name of the output in the signature or in the graph. An output with any
other name has no role.
"""

import os
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, TextIO, Tuple

from od_qat.errors import ConfigError, DataError, ExportError, first_line
from od_qat.graph.index import op_name
from od_qat.model_files import names, output_nodes, tflite_file

_FIX = (
    "give a frozen graph, such as frozen_inference_graph.pb, the .meta of an inference graph, a .tflite or "
    "the folder of a SavedModel"
)
_SAVED_MODEL = "saved_model.pb"
# The OD API's names, in graphs, signatures and .tflite files.
_ROLES = dict(
    {name: role for role, name in names.OF_ROLE.items()},
    detection_multiclass_scores="scores of all classes",
    raw_detection_boxes="boxes before suppression",
    raw_detection_scores="scores before suppression",
)
_ROLES[names.RAW_BOXES] = "box encodings"
_ROLES[names.RAW_SCORES] = "scores before suppression"


class Node(NamedTuple):
    """An input or output, which is a row of the table.

    Attributes:
      what: 'input' or 'output', with the name of the signature if there are several.
      name: of the tensor; for an output of a graph, the op name to freeze.
      key: its name in the signature; empty without one.
      shape: as text; empty if it is not known.
      dtype: as text.
      quantization: scale and zero point as text; empty if it is not quantized.
      role: 'boxes' and so on; empty if it is not known.
    """

    what: str
    name: str
    key: str = ""
    shape: str = ""
    dtype: str = ""
    quantization: str = ""
    role: str = ""


class Nodes(NamedTuple):
    """The inputs and outputs of a model.

    Attributes:
      nodes: inputs, then outputs, in the model's order.
      kind: of the model.
      reason: how the outputs and their roles were found.
    """

    nodes: Tuple[Node, ...]
    kind: str
    reason: str

    @property
    def names(self) -> Tuple[str, ...]:
        """The names of the outputs in order, each once, without control characters."""
        return tuple(
            dict.fromkeys(_printable(node.name) for node in self.nodes if node.what.startswith("output"))
        )


def find(path: str) -> Nodes:
    """Finds the inputs and outputs of a model.

    Args:
      path: a .pb, .pbtxt or .meta graph, a .tflite, or the folder of a SavedModel.

    Raises:
      OdQatError: if it is none of these, if it is damaged, or if its outputs cannot be found.
    """
    if os.path.isdir(path):
        path = os.path.join(path, _SAVED_MODEL)
        if not os.path.isfile(path):
            raise ConfigError(
                "no SavedModel in the folder",
                where=os.path.dirname(path),
                found="no " + _SAVED_MODEL,
                fix=_FIX,
            )
    if os.path.basename(path) == _SAVED_MODEL:
        return _of_saved_model(path)
    if path.lower().endswith(".tflite"):
        return _of_tflite(path)
    return _of_graph(read_graph(path))


def _of_tflite(path: str) -> Nodes:
    content = tflite_file.read(path)
    roles, reason = _roles(path, content)
    nodes = [
        _of_tensor("input", tensor, "image" if len(content.inputs) == 1 and tensor.shape[3:] == (3,) else "")
        for tensor in content.inputs
    ]
    nodes.extend(_of_tensor("output", tensor, role) for tensor, role in zip(content.outputs, roles))
    return Nodes(tuple(nodes), "tflite", reason)


def _of_tensor(what: str, tensor: tflite_file.TensorOfModel, role: str) -> Node:
    quantised = "{:.6g}, {}".format(tensor.scale, tensor.zero_point) if tensor.scale else ""
    return Node(what, tensor.name, tensor.key or "", _shape(tensor.shape), tensor.dtype, quantised, role)


def _roles(path: str, content: tflite_file.TfliteFile) -> Tuple[List[str], str]:
    """A role for each output, empty if it is not known, and a clause that says how they were found."""
    if any(content.roles):
        told, reason = [role or "" for role in content.roles], "roles by " + names.POST_PROCESS
        if content.options:
            reason += ", " + tflite_file.suppression(content.options)
        return told, reason
    try:
        by_json, of_json = _roles_by_json(path, content), "no JSON beside it"
    except ExportError as error:
        by_json, of_json = [], "no use of the JSON beside it ({})".format(error.what)
    if by_json:
        return by_json, "roles by the JSON beside it"
    told = [_role(tensor.key) or _role(tensor.name) for tensor in content.outputs]
    if any(told):
        return told, "roles by the outputs' names"
    return told, "no {}, {}, no output whose name tells its role".format(names.POST_PROCESS, of_json)


def _roles_by_json(path: str, content: tflite_file.TfliteFile) -> List[str]:
    """The roles by the JSON beside the model; empty if there is none that fits."""
    from od_qat.model_files import description

    if not os.path.isfile(description.json_path(path)):
        return []
    named = description.describe_model(path).output_names
    by_name = {name: role for role, name in named if name}
    told = [by_name.get(tensor.name, "") for tensor in content.outputs]
    # Tensor names do not survive every converter; the order of the outputs does.
    return told if all(told) or len(named) != len(told) else [role for role, _ in named]


def _role(name: Optional[str]) -> str:
    """The role by the name of an op, of a tensor, or by a key of a signature."""
    return _ROLES.get((name or "").split(":")[0], "")


def read_saved_model(path: str) -> Any:
    """Reads the SavedModel message in a saved_model.pb.

    Raises:
      DataError: if the file holds none.
    """
    from google.protobuf.message import DecodeError
    from tensorflow.core.protobuf import saved_model_pb2

    try:
        with open(path, "rb") as stream:
            return saved_model_pb2.SavedModel.FromString(stream.read())
    except DecodeError as error:
        raise DataError(
            "cannot read the SavedModel", where=path, found=first_line(error), allowed=_SAVED_MODEL, fix=_FIX
        ) from error


def _of_saved_model(path: str) -> Nodes:
    from od_qat.compat import tf

    content = read_saved_model(path)
    signatures = [
        (name, signature)
        for meta_graph in content.meta_graphs
        for name, signature in sorted(meta_graph.signature_def.items())
        # (TF 2 lists its initialisers as a signature, too.)
        if not name.startswith("__")
    ]
    if not any(signature.outputs for _, signature in signatures):
        raise DataError(
            "the SavedModel has no signature",
            where=path,
            found="{} graphs without one".format(len(content.meta_graphs)),
            fix="save it with signatures, or give its frozen graph",
        )

    def rows(what, tensors):
        for key, tensor in sorted(tensors.items()):
            shape = None if tensor.tensor_shape.unknown_rank else [d.size for d in tensor.tensor_shape.dim]
            dtype = tf.as_dtype(tensor.dtype).name if tensor.dtype in _known_types() else "?"
            yield Node(what, tensor.name, key, _shape(shape), dtype, "", _role(key) or _role(tensor.name))

    nodes = []
    for name, signature in signatures:
        end = "" if len(signatures) == 1 else " of " + name
        nodes.extend(rows("input" + end, signature.inputs))
        nodes.extend(rows("output" + end, signature.outputs))
    told = any(node.role for node in nodes)
    reason = "signature {}; {}".format(
        ", ".join(name for name, _ in signatures),
        "roles by the keys" if told else "no key tells a role",
    )
    return Nodes(tuple(nodes), "saved_model", reason)


def _known_types() -> Sequence[int]:
    from tensorflow.core.framework import types_pb2

    return [number for number in types_pb2.DataType.values() if number]


def _of_graph(graph_def) -> Nodes:
    from od_qat.graph import allowed_ops

    answer = output_nodes.find_output_nodes(graph_def)
    read = {op_name(source) for node in graph_def.node for source in node.input}
    inputs = [node for node in graph_def.node if node.op == "Placeholder" and node.name in read]
    run = allowed_ops.run_by_importing(graph_def)
    tensors = [node.name + ":0" for node in inputs] + list(answer.tensors)
    known = {} if run else _tensors(graph_def, tensors)

    def row(what, name, tensor, role):
        shape, dtype = known.get(tensor, ("", ""))
        return Node(what, name, "", shape, dtype, "", role)

    nodes = [row("input", node.name, node.name + ":0", "") for node in inputs]
    if answer.kind == "tflite_detection":
        pairs = zip(answer.tensors, names.ROLES)
        nodes.extend(row("output", answer.names[0], tensor, role) for tensor, role in pairs)
    else:
        told = {"classifier": "predictions"}.get(answer.kind, "")
        pairs = zip(answer.names, answer.tensors)
        nodes.extend(row("output", name, tensor, _role(name) or told) for name, tensor in pairs)
    reason = answer.reason
    if run:
        reason += "; no shapes, as TensorFlow would run {} to find them".format(", ".join(run[:3]))
    return Nodes(tuple(nodes), answer.kind, reason)


def _tensors(graph_def, names: Sequence[str]) -> Dict[str, Tuple[str, str]]:
    """Tensor name -> shape and dtype; empty if the graph has an op that this TensorFlow does not know.

    Importing a graph may run its ops: ask allowed_ops first.
    """
    from od_qat.compat import tf

    try:
        with tf.Graph().as_default() as graph:
            tf.import_graph_def(graph_def, name="")
            tensors = [graph.get_tensor_by_name(name) for name in names]
    except (ValueError, KeyError, tf.errors.OpError):
        return {}
    return {
        tensor.name: (
            _shape(
                None
                if tensor.shape.ndims is None
                else [-1 if d is None else d for d in tensor.shape.as_list()]
            ),
            tensor.dtype.base_dtype.name,
        )
        for tensor in tensors
    }


def _shape(sizes: Optional[Sequence[int]]) -> str:
    """A shape as text, with '?' for a size that is not fixed; empty if the rank is unknown."""
    return "" if sizes is None else "[{}]".format(", ".join("?" if s < 0 else str(s) for s in sizes))


def read_graph(path: str) -> Any:
    """Reads the GraphDef in a .pb (binary), .pbtxt (text) or .meta (MetaGraphDef) file.

    Raises:
      ConfigError, DataError: if the file holds no graph.
    """
    from google.protobuf import text_format
    from google.protobuf.message import DecodeError

    from od_qat.compat import tf

    extension = os.path.splitext(path)[1].lower()
    if extension not in (".pb", ".pbtxt", ".meta"):
        raise ConfigError(
            "unknown kind of model",
            where=path,
            found="the extension {!r}".format(extension),
            allowed=".pb, .pbtxt, .meta, .tflite or the folder of a SavedModel",
            fix=_FIX,
        )
    with open(path, "rb") as stream:
        data = stream.read()
    try:
        if extension == ".meta":
            graph_def = tf.MetaGraphDef.FromString(data).graph_def
        elif extension == ".pbtxt":
            graph_def = text_format.Parse(data.decode("utf-8"), tf.GraphDef())
        else:
            graph_def = tf.GraphDef.FromString(data)
    except (DecodeError, text_format.ParseError, UnicodeDecodeError) as error:
        raise DataError(
            "cannot read the graph",
            where=path,
            found=first_line(error),
            allowed="a GraphDef (.pb, .pbtxt) or a MetaGraphDef (.meta)",
            fix=_FIX,
        ) from error
    if not graph_def.node:
        raise DataError("the graph is empty", where=path, found="no node", fix=_FIX)
    return graph_def


_HEADERS = ("", "name", "key", "shape", "type", "scale, zero point", "role")


def print_table(nodes: Sequence[Node], stream: TextIO) -> None:
    """Prints a row for each input and output, without columns that are empty in all rows."""
    rows = [_HEADERS] + [tuple(_short(_printable(cell)) for cell in node) for node in nodes]
    columns = [column for column in zip(*rows) if any(column[1:])]
    widths = [max(map(len, column)) for column in columns]
    lines = [[cell.ljust(width) for cell, width in zip(line, widths)] for line in zip(*columns)]
    lines.insert(1, ["-" * width for width in widths])
    for line in lines:
        stream.write("  ".join(line).rstrip() + "\n")


def _printable(text: str) -> str:
    """The text without control characters, which a name in a file from others may have."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _short(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
