"""Scores of frozen graphs and .tflite files: detections, COCO and VOC metrics, agreement, latency.

A model never runs in the caller's process; see model_process.

Importing this package, and detecting with a .tflite, does not import TensorFlow. (Reading records does.)
"""

from od_qat.model_files.description import ModelDescription, describe_model, json_path
from od_qat.scoring.images import decode, resize_bilinear
from od_qat.scoring.matching import Agreement, agreement, iou_matrix
from od_qat.scoring.metrics import Score, VocScore, coco_metrics, names_by_id, voc_metrics
from od_qat.scoring.model_process import TIME_LIMIT
from od_qat.scoring.model_score import ModelScore, latency, score
from od_qat.scoring.runners import Detections
from od_qat.scoring.workers import detect

__all__ = [
    "TIME_LIMIT",
    "Agreement",
    "Detections",
    "ModelDescription",
    "ModelScore",
    "Score",
    "VocScore",
    "agreement",
    "coco_metrics",
    "decode",
    "describe_model",
    "detect",
    "iou_matrix",
    "json_path",
    "latency",
    "names_by_id",
    "resize_bilinear",
    "score",
    "voc_metrics",
]
