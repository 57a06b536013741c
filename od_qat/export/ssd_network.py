"""The heads of an SSD, and the parameters of TFLite's post-processing for them."""

import sys
from typing import Optional

from od_qat.errors import ConfigError
from od_qat.export import tflite
from od_qat.model_files import names

# The outputs of the network: encoded boxes [1, N, 4] and scores [1, N, classes + 1].
HEADS = (names.RAW_BOXES, names.RAW_SCORES)


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
