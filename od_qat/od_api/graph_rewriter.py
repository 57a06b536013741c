"""Drop-in for upstream's graph_rewriter_builder: a config's block becomes a rewrite of the default graph."""

from typing import Callable

from od_qat.messages import graph_rewriter
from od_qat.od_api import keras_models


def build(graph_rewriter_config, is_training: bool) -> Callable:
    """Drop-in for object_detection.builders.graph_rewriter_builder.build.

    Args:
      graph_rewriter_config: graph_rewriter_pb2.GraphRewriter.
      is_training: whether to rewrite for training or for evaluation.

    Returns:
      a function without arguments that rewrites the default graph and returns a RewriteReport. Of a graph
      with a Keras model it rewrites what leads to the model's predictions.
    """
    return graph_rewriter.rewrite_fn(graph_rewriter_config, is_training, keras_models.outputs)
