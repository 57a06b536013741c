"""Freezes a graph that something else has built: an evaluation of slim's, or the one in a .meta file."""

from typing import Any, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.errors import ExportError, first_line
from od_qat.export import freeze
from od_qat.graph.index import op_name, with_sources
from od_qat.model_files import names, output_nodes

# Ops from which a graph takes its images: what stands in front of them stays outside.
_SOURCES = frozenset(
    [
        "QueueDequeueV2",
        "QueueDequeueManyV2",
        "QueueDequeueUpToV2",
        "IteratorGetNext",
        "Placeholder",
        "PlaceholderWithDefault",
    ]
)
# How the types of ops begin that draw numbers, and of those that write variables.
_DRAW = (
    "Random",
    "StatelessRandom",
    "Truncated",
    "ParameterizedTruncated",
    "StatelessTruncated",
    "Multinomial",
)
_WRITE = ("Assign", "Scatter", "Apply", "ResourceApply", "ResourceScatter")
_WRITES = "writes a variable (as ranges are updated in training)"


class Cut(NamedTuple):
    """A frozen graph.

    Attributes:
      graph_def: from names.CLASSIFIER_INPUT, a placeholder of images, to `outputs`.
      input_shape: of the images; None for a size that is not fixed. The first is None, except where the graph
        was built for one batch size and computes with it.
      outputs: op names.
    """

    graph_def: Any
    input_shape: Tuple[Optional[int], ...]
    outputs: Tuple[str, ...]


def freeze_graph(
    graph: Any,
    checkpoint: str,
    outputs: Optional[Sequence[str]] = None,
    where: str = "",
    variables: Optional[Mapping[str, Any]] = None,
) -> Cut:
    """Freezes a graph from its images to its outputs, without input queues, metrics and optimizer.

    Args:
      graph: tf.Graph with the variables of the checkpoint.
      checkpoint: prefix.
      outputs: op names; by default those that output_nodes finds.
      where: what messages call the graph.
      variables: name in the checkpoint -> variable; by default each has its own name.

    Raises:
      CheckpointError: if the checkpoint lacks a variable of the graph.
      ExportError: for a graph whose batch norms or dropouts are in training mode, and for one with no single
        input.
      OdQatError: if no outputs are found.
    """
    if outputs is None:
        outputs = output_nodes.find_output_nodes(graph.as_graph_def()).names
    try:
        outputs = [op_name(name) for name in outputs]  # (of an output's tensor, name:0, too)
        operations = [graph.get_operation_by_name(name) for name in outputs]
    except (KeyError, ValueError):
        raise ExportError("no such node in the graph", where=where, found=", ".join(outputs)) from None
    source = _source(operations, where)
    used = with_sources(operations, stop_at=[source.op])
    _require_inference(
        [operation for operation in graph.get_operations() if operation.name in used], source.op, where
    )
    frozen = freeze.freeze(checkpoint, outputs, graph=graph, variables=variables)
    shape = source.shape
    sizes = tuple(shape.as_list()) if shape.ndims is not None else (None,) * 4
    _flatten_any_batch(frozen, graph, sizes[0])
    images = (None,) + sizes[1:]
    cut = tf.graph_util.extract_sub_graph(_with_placeholder(frozen, source, images), list(outputs))
    if sizes[0] is not None and _fixes_the_batch(cut, outputs):
        images = sizes
        cut = tf.graph_util.extract_sub_graph(_with_placeholder(frozen, source, images), list(outputs))
    return Cut(cut, images, tuple(outputs))


def _source(operations: Sequence[Any], where: str):
    """The tensor of the images."""
    names = with_sources(operations)
    found = [
        operation.outputs[0]
        for operation in operations[0].graph.get_operations()
        if operation.name in names
        and operation.type in _SOURCES
        and operation.outputs
        and operation.outputs[0].dtype.is_floating
    ]
    if len(found) != 1:
        raise ExportError(
            "the graph has no single input of images",
            where=where,
            found=", ".join(tensor.name for tensor in found[:4]) or "no placeholder, queue or iterator",
            allowed="one float32 tensor of preprocessed images",
            fix="freeze the graph that your exporter writes, with a placeholder for the image",
        )
    return found[0]


def _require_inference(operations: Sequence[Any], source: Any, where: str) -> None:
    of_images, found = {source.name}, []
    for operation in operations:  # (in the order of their making, which follows the data)
        if any(tensor.op.name in of_images for tensor in operation.inputs):
            of_images.add(operation.name)
        said = _of_training(operation, operation.name in of_images)
        found += [(said == _WRITES, operation.name, said)] if said else []
    if found:
        _, name, said = min(found, key=lambda one: one[0])  # (what changes the results comes first)
        raise ExportError(
            "a training graph, which computes other things than the model",
            where=where,
            found="{} {}".format(name, said),
            allowed="an inference graph: is_training=False when it is built",
            fix="export the checkpoint with the code that built it (od-qat export; slim's "
            "eval_image_classifier or export_inference_graph), or freeze the .meta of an evaluation",
        )


def _of_training(operation: Any, of_images: bool) -> str:
    """What an op does that no inference graph does; empty if it does none of it."""
    if operation.type.startswith(_DRAW):
        return "draws random numbers (dropout)"
    if operation.type.startswith(_WRITE):
        return _WRITES
    norm = operation.type.startswith("FusedBatchNorm") and operation.get_attr("is_training")
    if norm or (of_images and operation.type == "Mean" and _is_over_batch(operation)):
        return "takes its statistics from the batch"
    return ""


def _is_over_batch(mean: Any) -> bool:
    """Whether a reduction of images takes several of them together."""
    axes, rank = tf.get_static_value(mean.inputs[1]), mean.inputs[0].shape.ndims
    if axes is None or rank is None:
        return False
    return rank > 1 and any(int(axis) % rank == 0 for axis in np.atleast_1d(axes))


def _flatten_any_batch(frozen, graph, batch: Optional[int]) -> None:
    """Lets the Reshapes that keep the batch, in a graph built for `batch` images, take any number of them.

    Where the size of a batch is known, slim's flatten on TensorFlow 1.15 writes it into the shape.
    """
    if batch is None:
        return
    shapes = {node.name: node for node in frozen.node if node.op == "Const"}
    for node in [node for node in frozen.node if node.op == "Reshape" and node.input[1] in shapes]:
        operation = graph.get_operation_by_name(node.name)
        before, after = operation.inputs[0].shape, operation.outputs[0].shape
        if before.ndims is None or not after.is_fully_defined() or not before[:1] == after[:1] == [batch]:
            continue
        shape = frozen.node.add()
        shape.CopyFrom(shapes[node.input[1]])
        shape.name = node.name + "/any_batch"
        dtype = tf.as_dtype(shape.attr["dtype"].type).as_numpy_dtype
        sizes = np.array([-1] + after.as_list()[1:], dtype)
        shape.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(sizes))
        node.input[1] = shape.name


def _fixes_the_batch(graph_def, outputs: Sequence[str]) -> bool:
    """Whether the outputs have one batch size, however many images go in; also if they cannot be told."""
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
    shapes = [graph.get_tensor_by_name(name + ":0").shape for name in outputs]
    return any(shape.ndims is None or (shape.ndims and shape.as_list()[0] is not None) for shape in shapes)


def _with_placeholder(frozen, source, sizes: Sequence[Optional[int]]):
    """The frozen graph with a placeholder for the images, and nothing of what stands in front of it."""
    former, result = source.op.name, tf.GraphDef()
    result.versions.CopyFrom(frozen.versions)
    placeholder = result.node.add(name=names.CLASSIFIER_INPUT, op="Placeholder")
    placeholder.attr["dtype"].type = source.dtype.as_datatype_enum
    if source.shape.ndims is None:
        placeholder.attr["shape"].shape.unknown_rank = True
    else:
        for size in sizes:
            placeholder.attr["shape"].shape.dim.add(size=-1 if size is None else size)
    for node in frozen.node:
        if node.name == former:
            continue
        copied = result.node.add()
        copied.CopyFrom(node)
        for position, name in enumerate(copied.input):
            if name in (former, former + ":0"):
                copied.input[position] = names.CLASSIFIER_INPUT
    return result


def imported(meta_path: str):
    """The graph of a .meta file, a tf.Graph.

    Raises:
      ExportError: if it is no MetaGraph, or has an op that is not known here.
    """
    with tf.Graph().as_default() as graph:
        try:
            tf.train.import_meta_graph(meta_path, clear_devices=True)
        except Exception as error:  # noqa: BLE001  (a file can cause any)
            raise ExportError(
                "cannot import the graph",
                where=meta_path,
                found=first_line(error),
                allowed="the .meta file of a checkpoint",
            ) from error
    return graph
