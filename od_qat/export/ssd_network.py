"""An SSD without its post-processing, frozen, and the parameters of TFLite's post-processing for it."""

import sys
from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.export import freeze, tflite
from od_qat.model_files import names
from od_qat.od_api import calibration, graph_transforms, inference, models

# The outputs of the network: encoded boxes [1, N, 4] and scores [1, N, classes + 1].
HEADS = (names.RAW_BOXES, names.RAW_SCORES)


class Network(NamedTuple):
    """The detector without its post-processing.

    Attributes:
      graph_def: frozen, from the image to the raw boxes and scores.
      anchors: float32 [N, 4], ycenter, xcenter, height, width.
      height, width: size of the image that it takes.
      method: how images are resized to that size.
      mean, std: of the preprocessing, real = (pixel - mean) / std.
      excluded: names of the layers that a rule keeps float.
    """

    graph_def: Any
    anchors: np.ndarray
    height: int
    width: int
    method: str
    mean: float
    std: float
    excluded: frozenset

    def images(self, record_paths: Sequence[str], count: int) -> Iterator[np.ndarray]:
        """The first images of record files as the network takes them, float32 [1, height, width, 3]."""
        return calibration.images(
            record_paths, self.height, self.width, self.method, self.mean, self.std, count
        )


def freeze_network(config, where: str, checkpoint: str, hook: Optional[Callable]) -> Network:
    """Builds the graph from the image to the raw heads, rewrites it, and freezes it.

    Args:
      config: TrainEvalPipelineConfig of an SSD.
      where: how messages call the config.
      checkpoint: prefix of the checkpoint.
      hook: rewrites the default graph for evaluation; None for a float network.

    Raises:
      ConfigError, CheckpointError, ExportError: see inference.input_size and freeze.freeze.
    """
    height, width = inference.input_size(config.model, where)
    excluded = frozenset()
    with tf.Graph().as_default():
        model = models.model_fn(config, is_training=False)()
        anchors = inference.build_raw_heads_graph(model, config.model, height, width)
        mean, std = inference.input_statistics(model, height, width)
        if hook:
            excluded = hook().excluded
        # (The OD API builds this resize from four ops, in which TensorFlow 1.15's converter finds no range.)
        graph_transforms.rewrite_nn_resize_op()
        graph_def = freeze.freeze(
            checkpoint, HEADS, use_moving_averages=config.eval_config.use_moving_averages
        )
    method = inference.resize_method(config.model)
    return Network(graph_def, anchors, height, width, method, mean, std, excluded)


def post_process_of(
    ssd, score_threshold: float, max_detections: Optional[int] = None, fast_nms: bool = False
) -> tflite.PostProcess:
    """The parameters of TFLite_Detection_PostProcess for an SSD's config.

    It prints what of the config the op cannot do.

    Args:
      ssd: the config's model.ssd.
      score_threshold: detections that score less are left out.
      max_detections: number of detections; None for the config's max_total_detections.
      fast_nms: whether to suppress the fast way, where the config does not.

    Raises:
      ConfigError: for a box coder that the op does not decode.
    """
    nms = ssd.post_processing.batch_non_max_suppression
    coder = ssd.box_coder.faster_rcnn_box_coder
    if ssd.box_coder.WhichOneof("box_coder_oneof") not in (None, "faster_rcnn_box_coder"):
        raise ConfigError(
            "TFLite_Detection_PostProcess decodes one box coder only",
            where="model.ssd.box_coder",
            found=ssd.box_coder.WhichOneof("box_coder_oneof"),
            allowed="faster_rcnn_box_coder",
        )
    # (Trees of early 2019 have neither field.)
    class_agnostic = getattr(nms, "use_class_agnostic_nms", False)
    # TFLite's fast suppression keeps the best class of each box and suppresses across classes. The OD API
    # calls this class-agnostic, with one class for each detection.
    one_class_a_box = class_agnostic and nms.max_classes_per_detection <= 1
    differing = ["soft_nms_sigma"] if getattr(nms, "soft_nms_sigma", 0) else []
    differing += ["use_class_agnostic_nms"] if class_agnostic and not one_class_a_box else []
    for name in differing:
        print(
            "warning: TFLite_Detection_PostProcess has no {}: the .tflite suppresses boxes without it, "
            "od-qat eval and export with it. Fix: evaluate with --override "
            "model.ssd.post_processing.batch_non_max_suppression.{}= to compare".format(name, name),
            file=sys.stderr,
        )
    return tflite.PostProcess(
        num_classes=ssd.num_classes,
        y_scale=coder.y_scale,
        x_scale=coder.x_scale,
        h_scale=coder.height_scale,
        w_scale=coder.width_scale,
        score_threshold=score_threshold,
        iou_threshold=nms.iou_threshold,
        max_detections=max_detections or nms.max_total_detections,
        detections_per_class=nms.max_detections_per_class,
        regular_nms=not (fast_nms or one_class_a_box),
    )
