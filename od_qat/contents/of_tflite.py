"""What a .tflite holds."""

from od_qat.contents.model import OTHER, TFLITE, WEIGHTS, Array, Contents, Layer
from od_qat.model_files import tflite_graph

_OF_8_BITS = ("int8", "uint8")


def read(path: str) -> Contents:
    """Reads a .tflite; see tflite_graph.read for errors."""
    graph = tflite_graph.read(path)
    kinds = {}  # type: Dict[int, str]
    layers = []
    for op in graph.ops:
        weights = graph.weights(op)
        if weights is not None:
            kinds[weights.index] = WEIGHTS
            layers.append(
                Layer(
                    graph.tensors[op.outputs[0]].name,
                    op.type,
                    int(weights.value().size) if weights.data is not None else 0,
                    graph.multiply_adds(op) or None,
                    _computes_in_integers(graph, op),
                )
            )
    arrays = tuple(
        Array(one.name, kinds.get(one.index, OTHER), one.shape, one.dtype, one.bytes, one.real)
        for one in graph.tensors
        if one.data is not None
    )
    ops = {"{} {}".format(op.index, op.type): op.type for op in graph.ops}
    return Contents(path, TFLITE, graph.size, arrays, ops, tuple(layers))


def _computes_in_integers(graph: tflite_graph.TfliteGraph, op: tflite_graph.Op) -> bool:
    """Whether weights and input are of 8 bits. (A dynamic range model has such weights, and float inputs.)"""
    return all(graph.tensors[index].dtype in _OF_8_BITS for index in op.inputs[:2]) or (
        # The first input of a transposed convolution is a shape.
        op.type == "TRANSPOSE_CONV"
        and all(graph.tensors[index].dtype in _OF_8_BITS for index in op.inputs[1:3])
    )
