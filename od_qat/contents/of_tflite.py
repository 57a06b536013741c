"""What a .tflite holds."""

from typing import Dict

from od_qat.contents.model import OTHER, TFLITE, WEIGHTS, Array, Contents, Layer
from od_qat.model_files import tflite_graph

_INTEGERS = ("int4", "int8", "uint8", "int16")


def read(path: str) -> Contents:
    """Reads a .tflite; see tflite_graph.read for errors."""
    graph = tflite_graph.read(path)
    kinds: Dict[int, str] = {}
    layers = []
    made_by = {op.outputs[0]: op for op in graph.ops if op.outputs}
    for op in graph.ops:
        weights = graph.weights(op)
        if weights is None:
            continue
        stored = weights
        # (Those of a float16 model are turned into floats first.)
        if weights.data is None and weights.index in made_by and made_by[weights.index].type == "DEQUANTIZE":
            stored = graph.tensors[made_by[weights.index].inputs[0]]
        kinds[stored.index] = WEIGHTS
        layers.append(
            Layer(
                graph.tensors[op.outputs[0]].name,
                op.type,
                int(stored.value().size) if stored.data is not None else 0,
                graph.multiply_adds(op),
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
    """Whether weights and input are integers. (A dynamic range model has such weights, and float inputs.)"""
    # (The first input of a transposed convolution is a shape.)
    read = op.inputs[1:3] if op.type == "TRANSPOSE_CONV" else op.inputs[:2]
    return all(graph.tensors[index].dtype in _INTEGERS for index in read)
