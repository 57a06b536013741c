"""Turns a checkpoint and an inference graph into one self-contained GraphDef."""

from typing import Any, Dict, Iterable, Mapping, Optional

from od_qat import checkpoints, ranges
from od_qat.compat import tf
from od_qat.errors import ExportError
from od_qat.graph import session_config
from od_qat.rewrite import policy


def freeze(
    checkpoint: str,
    output_names: Iterable[str],
    graph: Any = None,
    use_moving_averages: bool = False,
    variables: Optional[Mapping[str, Any]] = None,
) -> Any:
    """Restores strictly and turns variables into constants.

    Args:
      checkpoint: prefix, `.../model.ckpt-123`.
      output_names: names of the ops to keep, with everything that they need.
      graph: tf.Graph; by default the default graph. To be quantized, it must have been rewritten.
      use_moving_averages: restore trained variables from their moving averages.
      variables: name in the checkpoint -> variable, where a caller knows it better; all that are needed.

    Returns:
      GraphDef without variables.

    Raises:
      CheckpointError: with the names of the variables that the checkpoint lacks.
      ExportError: for an unknown output, or a graph with a quantization delay.
      OdQatError: if a quantization range is not finite. (Other problems with ranges are printed.)
    """
    graph = graph or tf.get_default_graph()
    names = list(output_names)
    for name in names:
        try:
            graph.get_operation_by_name(name)
        except KeyError:
            raise ExportError("no such node in the graph", found=name) from None
    with graph.as_default():
        if variables is None:
            variables = variables_to_restore(use_moving_averages, checkpoint)
        quant_names = checkpoints.quant_variable_names(graph)
        if checkpoints.QUANT_STEP in quant_names:
            raise ExportError(
                "the graph counts steps until quantization starts, which a frozen graph cannot",
                found="variable {}".format(checkpoints.QUANT_STEP),
                fix="rewrite the eval graph without quant_delay: create_eval_graph()",
            )
        checkpoints.require_all(variables, checkpoint, quant_names)
        if quant_names:
            ranges.warn_of_checkpoint(checkpoint, quant_names)
        saver = tf.train.Saver(variables)
        with tf.Session(graph=graph, config=session_config.for_few_runs()) as session:
            checkpoints.restore(saver, session, checkpoint)
            frozen = tf.graph_util.convert_variables_to_constants(
                session, graph.as_graph_def(add_shapes=False), names
            )
    for node in frozen.node:
        node.device = ""
    return frozen


def variables_to_restore(use_moving_averages: bool, checkpoint: str) -> Dict[str, object]:
    """Name in the checkpoint -> variable, for the default graph without the global step.

    Args:
      use_moving_averages: take trained variables from their averages. Variables that the training did not
        change (train_config.freeze_variables) have no averages, and their values are taken.
      checkpoint: prefix of a checkpoint of the training.

    Raises:
      CheckpointError: if it cannot be read.
    """
    if use_moving_averages:
        found = tf.train.ExponentialMovingAverage(0.0).variables_to_restore()
        available = checkpoints.shapes(checkpoint)
        averages = {name for name in found if name.endswith(checkpoints.AVERAGE)}
        if averages & set(available):
            end = -len(checkpoints.AVERAGE)
            found = {
                name[:end] if name in averages and name not in available else name: variable
                for name, variable in found.items()
            }
    else:
        found = checkpoints.named(checkpoint)
    return {
        name: variable
        for name, variable in found.items()
        if variable.op.name not in (tf.GraphKeys.GLOBAL_STEP, checkpoints.QUANT_STEP)
    }


def is_quantised(graph_def) -> bool:
    """Whether a GraphDef has fake quants."""
    return any(node.op in policy.FAKE_QUANT for node in graph_def.node)
