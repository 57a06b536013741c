"""Replaces the functions for which the OD API's exporters use contrib's tools."""

import os
from typing import Optional, Sequence

from od_qat.compat import tf
from od_qat.rewrite import policy


def TransformGraph(  # noqa: N802  (upstream's name)
    input_graph_def, inputs: Sequence[str], outputs: Sequence[str], transforms: Sequence[str]
):
    """Does the one transform that the OD API asks for, `strip_unused_nodes`.

    Raises:
      ValueError: for any other transform.
    """
    if list(transforms) != ["strip_unused_nodes"]:
        raise ValueError("only strip_unused_nodes is supported, found {}".format(list(transforms)))
    return tf.graph_util.extract_sub_graph(input_graph_def, list(outputs))


def profile_inference_graph(graph) -> None:
    """Logs the number of ops, in place of upstream's pages of FLOPs for each op."""
    count = sum(operation.type in policy.WEIGHTED for operation in graph.get_operations())
    tf.logging.info("inference graph: %d ops, %d with weights", len(graph.get_operations()), count)


# The types of ops whose inputs upstream searches for an upsampling.
_CONSUMERS = ("Add", "AddV2", "Max", "Mul", "StridedSlice")


def rewrite_nn_resize_op(is_quantized: bool = False) -> None:
    """Drop-in for object_detection.exporter.rewrite_nn_resize_op, which needs contrib's graph_matcher.

    The OD API builds upsamplings from Pack and Reshape ops, for TPUs. Each op of _CONSUMERS in the default
    graph that reads such an upsampling gets a ResizeNearestNeighbor of the same tensor as its input.

    Args:
      is_quantized: replace only upsamplings of the output of a fake quant op.
    """
    resized = {}
    for consumer in tf.get_default_graph().get_operations():
        if consumer.type not in _CONSUMERS:
            continue
        inputs = list(consumer.inputs)
        for index, tensor in enumerate(inputs[:1] if consumer.type == "StridedSlice" else inputs):
            source = _upsampled(tensor)
            if source is None or (is_quantized and source.op.type != policy.FAKE_QUANT_PER_TENSOR):
                continue
            if tensor.name not in resized:
                resized[tensor.name] = tf.image.resize_nearest_neighbor(
                    source,
                    tensor.shape.as_list()[1:3],
                    align_corners=False,
                    name=os.path.dirname(tensor.op.name) + "/resize_nearest_neighbor",
                )
            consumer._update_input(index, resized[tensor.name])
    tf.logging.info("replaced %d upsamplings", len(resized))


def _upsampled(tensor) -> Optional[object]:
    """The x of an upsampling, Reshape(Pack([Reshape](Pack(x, x)))); None for any other tensor."""
    if tensor.op.type != "Reshape" or None in tensor.shape.as_list()[1:3]:
        return None
    across = _twice(tensor.op.inputs[0])
    if across is not None and across.op.type == "Reshape":
        across = across.op.inputs[0]  # (trees from 2021 on)
    return None if across is None else _twice(across)


def _twice(tensor) -> Optional[object]:
    """The x of Pack(x, x); None for any other tensor."""
    if tensor.op.type != "Pack" or len(tensor.op.inputs) != 2:
        return None
    first, second = tensor.op.inputs
    return first if first.name == second.name else None
