"""Exports a detector for TensorFlow: a SavedModel from images to detections, and a checkpoint of its model.

The layout is that of upstream's exporter_lib_v2 (tf-object-detection-api 0.1): the folders saved_model and
checkpoint, which has ckpt-0.
"""

import os
import tempfile
from typing import Callable, Dict, Optional

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.export import freeze, saved_model

CHECKPOINT_FOLDER = "checkpoint"


def export(
    create_model_fn: Callable,
    graph_hook_fn: Optional[Callable],
    checkpoint: str,
    output_directory: str,
    input_type: str,
    others: Dict[str, str],
) -> str:
    """Builds the graph, rewrites it, restores it strictly, and writes everything or nothing.

    Args:
      create_model_fn: makes a DetectionModel with is_training=False.
      graph_hook_fn: rewrites the default graph; None for a float model.
      checkpoint: prefix.
      output_directory: folder for saved_model/ and checkpoint/.
      input_type: one of inference.INPUT_TYPES.
      others: name of a further file in the folder -> its text.

    Returns:
      path of the SavedModel.

    Raises:
      ConfigError: for an unknown input_type.
      CheckpointError, ExportError: nothing is written then.
    """
    from od_qat.od_api import inference

    if input_type not in inference.INPUT_TYPES:
        raise ConfigError(
            "unknown type of the exported model's input",
            where="--input_type",
            found=repr(input_type),
            allowed=", ".join(sorted(inference.INPUT_TYPES)),
        )
    shape, dtype = inference.INPUT_TYPES[input_type]
    with tf.Graph().as_default():
        outputs = inference.build_serving_graph(create_model_fn(), input_type)
        if graph_hook_fn:
            graph_hook_fn()
        frozen = freeze.freeze(checkpoint, outputs.values())
        written = _checkpoint(checkpoint)
    spec = tf.TensorSpec(shape, dtype, inference.SERVING_INPUT)
    written.update(saved_model.content(frozen, inference.SERVING_INPUT, outputs, spec))
    written.update(others)
    files.write_together({os.path.join(output_directory, name): data for name, data in written.items()})
    return os.path.join(output_directory, saved_model.FOLDER)


def _checkpoint(trained: str) -> Dict[str, bytes]:
    """The files of a checkpoint of the default graph's model alone: without the optimizer's variables."""
    variables = checkpoints.named(trained)
    with tempfile.TemporaryDirectory() as folder, tf.Session() as session:
        checkpoints.restore(tf.train.Saver(variables), session, trained)
        checkpoints.saver().save(
            session, os.path.join(folder, checkpoints.basename()), global_step=0, write_meta_graph=False
        )
        return files.read_folder(folder, CHECKPOINT_FOLDER)
