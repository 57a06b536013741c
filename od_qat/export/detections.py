"""Writes the frozen eval graph, from the image to the detections, and the JSON that says how to use it."""

import os
from typing import Callable, Optional, Tuple

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.export import freeze
from od_qat.model_files import description, names


def export_detection_graph(
    create_model_fn: Callable,
    graph_hook_fn: Optional[Callable],
    checkpoint: str,
    output_path: str,
    use_moving_averages: bool = False,
) -> Tuple[str, str]:
    """Builds a clean inference graph, rewrites it, restores it strictly, freezes it and writes it.

    Args:
      create_model_fn: makes a DetectionModel with is_training=False.
      graph_hook_fn: rewrites the default graph; None for a float model.
      checkpoint: prefix.
      output_path: path of the .pb; the JSON is written beside it.
      use_moving_averages: whether to restore moving averages instead of the weights.

    Returns:
      paths of the .pb and of the JSON.

    Raises:
      CheckpointError, ExportError: nothing is written then.
    """
    from od_qat.od_api import inference

    with tf.Graph().as_default() as graph:
        outputs = inference.build_detection_graph(create_model_fn())
        image = graph.get_tensor_by_name(names.IMAGE_TENSOR + ":0")
        if graph_hook_fn:
            graph_hook_fn()
        frozen = freeze.freeze(checkpoint, outputs.values(), use_moving_averages=use_moving_averages)
    beside = description.content(
        output_path,
        inputs=[{"name": names.IMAGE_TENSOR + ":0", "shape": image.shape.as_list(), "dtype": "uint8"}],
        outputs=[{"name": name + ":0", "role": role} for role, name in outputs.items()],
        preprocessing={"resize": None, "mean": None, "std": None, "channels": "RGB"},
        class_id_offset=0,
        checkpoint=os.path.basename(checkpoint),
        global_step=checkpoints.global_step(checkpoint),
        quantized=freeze.is_quantised(frozen),
    )
    description.write(output_path, frozen.SerializeToString(), beside)
    return output_path, description.json_path(output_path)
