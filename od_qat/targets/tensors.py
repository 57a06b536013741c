"""The tensors of an op that a rule names."""

from typing import List

from od_qat.model_files.tflite_graph import Op, Tensor, TfliteGraph


def named(graph: TfliteGraph, op: Op, what: str) -> List[Tensor]:
    """The tensors that 'input0', 'output1', 'inputs' or 'outputs' names, without optional ones not there."""
    start = "input" if what.startswith("input") else "output"
    indices, number = op.inputs if start == "input" else op.outputs, what[len(start) :]
    chosen = indices if number == "s" else indices[int(number) : int(number) + 1]
    return [graph.tensors[index] for index in chosen if index >= 0]


def all_named(graph: TfliteGraph, op: Op, names: List[str]) -> List[Tensor]:
    """The tensors of several names, in order."""
    return [tensor for name in names for tensor in named(graph, op, name)]


def every(graph: TfliteGraph, op: Op) -> List[Tensor]:
    """All inputs and outputs."""
    return all_named(graph, op, ["inputs", "outputs"])
