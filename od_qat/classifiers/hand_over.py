"""What slim's own commands call in place of tf_slim's functions; od_api/source_changes.py puts it there."""

import os
import sys
from typing import Any

from od_qat import checkpoints
from od_qat.classifiers import frozen, preparation
from od_qat.classifiers.inputs import Classes
from od_qat.classifiers.networks import Network, default_preprocessing
from od_qat.compat import tf
from od_qat.export import any_graph, freeze
from od_qat.model_files import description, names


def evaluate_once(master: str, checkpoint_path: str, logdir: str, **options: Any) -> Any:
    """Does what tf_slim.evaluation.evaluate_once does, and freezes the graph that was evaluated.

    A folder is taken for its newest checkpoint. (slim's mobilenet_v1_eval.py gives its --checkpoint_dir,
    which tf_slim takes for the prefix of a checkpoint.)

    Args:
      master, checkpoint_path, logdir, options: as for tf_slim; logdir also gets frozen_eval_graph.pb.

    Raises:
      CheckpointError: if there is no checkpoint, or it lacks a variable of the graph.
    """
    from tf_slim import evaluation

    checkpoint_path = checkpoints.named_by(checkpoint_path)
    checkpoints.require_all(
        checkpoints.named(checkpoint_path), checkpoint_path, checkpoints.quant_variable_names()
    )
    graph = tf.get_default_graph()
    result = evaluation.evaluate_once(
        master=master, checkpoint_path=checkpoint_path, logdir=logdir, **options
    )
    path = os.path.join(logdir, names.FROZEN_EVAL_GRAPH)
    _freeze(graph, checkpoint_path, path, options.get("variables_to_restore"))
    print("wrote {} and the .json beside it".format(path), file=sys.stderr)
    return result


def _freeze(graph: Any, checkpoint: str, path: str, restored: Any) -> None:
    """Freezes what was evaluated. `restored` has names in the checkpoint if variables come from averages."""
    variables = None
    if isinstance(restored, dict):
        step = tf.GraphKeys.GLOBAL_STEP
        variables = {name: variable for name, variable in restored.items() if variable.op.name != step}
    cut = any_graph.freeze_graph(graph, checkpoint, where=checkpoint, variables=variables)
    flags = tf.app.flags.FLAGS
    name = getattr(flags, "model_name", None) or "mobilenet_v1"
    chosen = getattr(flags, "preprocessing_name", None) or default_preprocessing(name)
    _, height, _, channels = cut.input_shape
    classes = graph.get_operation_by_name(cut.outputs[0]).outputs[0].shape[-1]
    network = Network(name, int(classes), height, channels, chosen)
    prepared = preparation.of_network(network)
    offset = getattr(flags, "labels_offset", 0) or 0
    beside = frozen.describe(
        path,
        network,
        cut.outputs[0] + ":0",
        Classes((), offset),
        checkpoint,
        freeze.is_quantised(cut.graph_def),
        prepared,
    )
    description.write(path, cut.graph_def.SerializeToString(), beside)
