"""Builds the OD API's part of an evaluation: detections and groundtruth of one image, and the metrics."""

from typing import Callable, List

from object_detection.legacy import evaluator as upstream

from od_qat.errors import ConfigError


def predictions_and_losses(model, create_input_dict_fn: Callable):
    """Builds the tensors of one image's detections and groundtruth, and its losses, in the default graph."""
    return upstream._extract_predictions_and_losses(
        model=model, create_input_dict_fn=create_input_dict_fn, ignore_groundtruth=False
    )


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
