"""The frozen quantized eval graph: image in, detections out, with the JSON that says how to use it."""

import os
from typing import Callable, Optional, Tuple

from od_qat import files, freeze
from od_qat.compat import tf


def export_detection_graph(
    create_model_fn: Callable,
    graph_hook_fn: Optional[Callable],
    checkpoint: str,
    output_path: str,
    use_moving_averages: bool = False,
) -> Tuple[str, str]:
    """Builds a clean inference graph, rewrites it, restores strictly, freezes and writes.

    Args:
      create_model_fn: gives a DetectionModel (is_training=False).
      graph_hook_fn: rewrites the default graph; None for a float model.
      checkpoint: prefix.
      output_path: the .pb; the JSON goes beside it.
      use_moving_averages: restore moving averages.

    Returns:
      paths of the .pb and of the JSON.

    Raises:
      CheckpointError, ExportError: and nothing is written.
    """
    from od_qat.od_api import inference

    with tf.Graph().as_default():
        outputs = inference.build_detection_graph(create_model_fn())
        if graph_hook_fn:
            graph_hook_fn()
        frozen = freeze.freeze(checkpoint, outputs.values(), use_moving_averages=use_moving_averages)
    description = freeze.describe(
        output_path,
        inputs=[{"name": inference.IMAGE_TENSOR + ":0", "shape": [None, None, None, 3], "dtype": "uint8"}],
        outputs=[{"name": name + ":0", "role": role} for role, name in outputs.items()],
        preprocessing={"resize": None, "mean": None, "std": None, "channels": "RGB"},
        class_id_offset=0,
        checkpoint=checkpoint,
        quantized=freeze.is_quantised(frozen),
    )
    json_path = os.path.splitext(output_path)[0] + ".json"
    files.write_together({output_path: frozen.SerializeToString(), json_path: files.json_text(description)})
    return output_path, json_path
