"""Builds the OD API's part of an evaluation: detections and groundtruth of one image, and the metrics."""

from typing import Callable, List

from object_detection.legacy import evaluator as upstream

from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.od_api import keras_models


def predictions_and_losses(model, create_input_dict_fn: Callable):
    """Builds the tensors of one image's detections and groundtruth, and its losses, in the default graph."""
    if keras_models.of_graph() is model:
        _weigh_groundtruth(model)
    return upstream._extract_predictions_and_losses(
        model=model, create_input_dict_fn=create_input_dict_fn, ignore_groundtruth=False
    )


def _weigh_groundtruth(model) -> None:
    """Lets each box of the groundtruth count 1. Other models take that for granted; CenterNet does not."""
    provide = model.provide_groundtruth

    def provide_with_weights(boxes, classes, *masks_and_keypoints, **others):
        weights = [tf.ones(tf.shape(each)[:1]) for each in boxes]
        provide(boxes, classes, *masks_and_keypoints, groundtruth_weights_list=weights, **others)

    model.provide_groundtruth = provide_with_weights


def evaluators(eval_config, categories: List[dict]):
    """The evaluators of the metrics that eval_config.metrics_set names (COCO, VOC, Open Images).

    Raises:
      ConfigError: for an unknown name.
    """
    known = upstream.EVAL_METRICS_CLASS_DICT
    for name in eval_config.metrics_set:
        if name not in known:
            raise ConfigError(
                "unknown metrics",
                where="eval_config.metrics_set",
                found=name,
                allowed=", ".join(sorted(known)),
            )
    return upstream.get_evaluators(eval_config, categories)


def write_images(result, tag: str, step: int, categories: List[dict], eval_dir: str, eval_config) -> None:
    """Writes an image with its detections as a TensorBoard summary and, if configured, as a PNG."""
    from object_detection import eval_util

    eval_util.visualize_detection_results(
        result,
        tag,
        step,
        categories=categories,
        summary_dir=eval_dir,
        export_dir=eval_config.visualization_export_dir,
        show_groundtruth=eval_config.visualize_groundtruth_boxes,
        groundtruth_box_visualization_color=eval_config.groundtruth_box_visualization_color,
        min_score_thresh=eval_config.min_score_threshold,
        max_num_predictions=eval_config.max_num_boxes_to_visualize,
        skip_scores=eval_config.skip_scores,
        skip_labels=eval_config.skip_labels,
        keep_image_id_for_visualization_export=eval_config.keep_image_id_for_visualization_export,
    )
