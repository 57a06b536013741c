"""Exports an SSD as a SavedModel for TensorFlow's converter, which users call in scripts of their own.

The layout is that of upstream's export_tflite_graph_lib_tf2 (tf-object-detection-api 0.1). The input is a
normalised image. The results are the number of detections, their scores, classes and boxes, in this order, in
which the signature's names number them (output_0 is the number). pycoral's detect.get_objects goes by these
names, and other programs by the order that the converter makes of them: scores, boxes, number, classes.

A quantized network has a fake quant on its input too, so that the converter finds a range for every tensor
and needs no calibration images.
"""

import os
import sys
from typing import Callable, Optional

from od_qat import files
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.export import saved_model, suppression, tflite_checks
from od_qat.export.network import Network, freeze_network
from od_qat.export.ssd_network import HEADS, post_process_of
from od_qat.model_files import names

_INPUT = "input"


def export(
    config,
    where: str,
    checkpoint: str,
    output_directory: str,
    hook: Optional[Callable],
    max_detections: int,
    regular_nms: bool,
) -> str:
    """Writes saved_model/.

    Args:
      config: TrainEvalPipelineConfig of an SSD.
      where: how messages call the config.
      checkpoint: prefix of the checkpoint.
      output_directory: folder for it.
      hook: rewrites the default graph for evaluation; None for a float network.
      max_detections: number of detections.
      regular_nms: whether boxes are suppressed class by class, as the OD API does, or the fast way.

    Returns:
      path of the SavedModel.

    Raises:
      ConfigError, CheckpointError, ExportError: nothing is written then.
    """
    if config.model.WhichOneof("model") != "ssd":
        raise ConfigError(
            "only SSD models have a SavedModel for the converter",
            where=where,
            found="model {{ {} }}".format(config.model.WhichOneof("model")),
            allowed="ssd",
            fix="od-qat export-tflite makes the .tflite of a CenterNet",
        )
    network = freeze_network(config, where, checkpoint, hook, HEADS)
    if hook:
        tflite_checks.require_quantised(network.graph_def, checkpoint, "int8", network.excluded)
    # (The config's own threshold, as upstream has it.)
    threshold = config.model.ssd.post_processing.batch_non_max_suppression.score_threshold
    parameters = post_process_of(config.model.ssd, threshold, max_detections, not regular_nms)
    post_process = saved_model.post_process(parameters)
    boxes, scores = HEADS
    contents = saved_model.content(
        network.graph_def,
        names.TFLITE_INPUT,
        {"boxes": boxes, "scores": scores},
        tf.TensorSpec([1, network.height, network.width, 3], tf.float32, _INPUT),
        start=_with_range(network) if hook else None,
        finish=lambda heads, anchors: post_process(heads["boxes"], heads["scores"], anchors)[::-1],
        state=network.anchors,
    )
    files.write_together({os.path.join(output_directory, name): data for name, data in contents.items()})
    warning = suppression.warning_of_threads(parameters.regular_nms, parameters.num_classes)
    if warning:
        print(warning, file=sys.stderr)
    return os.path.join(output_directory, saved_model.FOLDER)


def _with_range(network: Network) -> Callable:
    """Gives the image the range of all pixel values."""
    low, high = network.preprocessing.ends

    def with_range(image):
        return tf.quantization.fake_quant_with_min_max_args(image, low, high, 8)

    return with_range
