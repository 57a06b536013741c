"""Scores one model: its accuracy, size, latency, and the detections themselves."""

import dataclasses
import itertools
import os
import sys
from typing import Any, Dict, Iterator, Optional, Tuple

import numpy as np

from od_qat.datasets.label_map import ClassNames, names_by_id
from od_qat.errors import ConfigError
from od_qat.model_files.description import describe_model
from od_qat.scoring import class_ids, images, workers
from od_qat.scoring.metrics import Score, coco_metrics
from od_qat.scoring.model_process import TIME_LIMIT
from od_qat.scoring.runners import Detections

_LATENCY_RUNS = 50


@dataclasses.dataclass(frozen=True)
class ModelScore:
    """A scored model.

    Attributes:
      path: of the model.
      score: its COCO metrics.
      size_bytes: of the file.
      latency_ms: median milliseconds for one image in one thread, without decoding it and without the
        resizing for a .tflite.
      detections: image_id -> Detections.
      class_names: id -> name.
      warnings: how the ids that it detects do not fit the label map or the images; see class_ids.misfits.
    """

    path: str
    score: Score
    size_bytes: int
    latency_ms: float
    detections: Dict[Any, Detections]
    class_names: Dict[int, str]
    warnings: Tuple[str, ...] = ()


def latency(
    model_path: str,
    runs: int = _LATENCY_RUNS,
    threads: int = 1,
    image: Optional[np.ndarray] = None,
    time_limit: float = TIME_LIMIT,
) -> float:
    """Measures the median time of one image, in a process of its own, after a few runs to warm up.

    This is the time of the model, without the decoding of the image and the resizing for a .tflite. The time
    of the non-maximum suppression depends on the image, so compare models on the same image.

    Args:
      model_path: as for detect.
      runs: number of measured runs; fewer (at least 5) if they would take more than 20 seconds.
      threads: number of threads of the interpreter, or of the session's operators.
      image: uint8 [height, width, 3]; by default noise, the same each time.
      time_limit: seconds for loading the model and for each run.

    Returns:
      milliseconds.

    Raises:
      ExportError, EnvironmentProblem: as detect.
    """
    with workers.Pool(describe_model(model_path), threads, time_limit) as pool:
        return pool.latency(image, runs)


def score(
    model_path: str,
    record_path: str,
    label_map_path: Optional[str] = None,
    class_names: Optional[ClassNames] = None,
    processes: Optional[int] = None,
    max_images: Optional[int] = None,
    progress: bool = True,
    mean: Optional[float] = None,
    std: Optional[float] = None,
    class_id_offset: Optional[int] = None,
    time_limit: float = TIME_LIMIT,
) -> ModelScore:
    """Scores a model on a record: accuracy, size and latency (on the record's first image).

    Args:
      model_path: a .tflite or a frozen .pb, see detect.
      record_path: a TFRecord file of the OD API's tf.Examples.
      label_map_path: the record's label map, with which the record is compared.
      class_names: in place of a label map, names from id 1 on, or id -> name. Objects and detections of other
        classes are left out.
      processes, max_images, progress, mean, std, class_id_offset, time_limit: as for detect.

    Raises:
      ConfigError: if there is neither a label map nor class names, or if there are both.
      DataError: if record and label map do not belong together; see records.check_records.
      ExportError, DataError, EnvironmentProblem: as detect and coco_metrics.
    """
    from od_qat.datasets import label_map, records

    _require_arguments(label_map_path, class_names, max_images)
    names = label_map.read_label_map(label_map_path) if label_map_path else names_by_id(class_names)
    description = describe_model(model_path, mean, std, class_id_offset)
    # (The model's process starts while the records are checked.)
    with workers.Pool(description, time_limit=time_limit) as pool:
        # The record is read twice, once to check it and count its images and once to score them, as the
        # images might not fit into memory.
        if label_map_path:
            total = records.check_records(record_path, label_map_path, max_images)
        else:
            total = sum(1 for _ in itertools.islice(records.read_examples(record_path), max_images))
        truth = []
        first_image = None

        def examples() -> Iterator[records.Example]:
            nonlocal first_image
            for example in itertools.islice(records.read_examples(record_path), max_images):
                if first_image is None:
                    first_image = images.decode(example.encoded, str(example.image_id))
                truth.append(example._replace(encoded=b""))
                yield example

        detections = pool.detect(examples(), total, processes, progress)
        latency_ms = pool.latency(first_image, _LATENCY_RUNS)
    warnings = class_ids.misfits(model_path, label_map_path, names, truth, detections)
    for line in warnings:
        print("warning: " + line, file=sys.stderr)
    return ModelScore(
        path=model_path,
        score=coco_metrics(truth, detections, names),
        size_bytes=os.path.getsize(model_path),
        latency_ms=latency_ms,
        detections=detections,
        class_names=names,
        warnings=tuple(warnings),
    )


def _require_arguments(
    label_map_path: Optional[str], class_names: Optional[ClassNames], max_images: Optional[int]
) -> None:
    if (label_map_path is None) == (class_names is None):
        raise ConfigError(
            "scoring needs either a label map or class names",
            found="neither" if class_names is None else "both",
            allowed="label_map_path or class_names",
        )
    if max_images is not None and max_images < 1:
        raise ConfigError("max_images leaves nothing to score", found=str(max_images), allowed="1 or more")
