"""Stand-ins for two contrib tools that the OD API's exporters call."""

from typing import Sequence

from od_qat.compat import tf


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
    """Upstream prints pages of per-op FLOPs here; the totals are what is read."""
    count = sum(
        1
        for operation in graph.get_operations()
        if operation.type in ("Conv2D", "DepthwiseConv2dNative", "MatMul")
    )
    tf.logging.info("inference graph: %d ops, %d with weights", len(graph.get_operations()), count)
