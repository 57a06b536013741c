"""Scores a classifier's .tflite or frozen graph: accuracy, size and latency of the file itself."""

import dataclasses
import itertools
import os
from typing import Iterator, NamedTuple, Optional, Sequence

import numpy as np

from od_qat.classifiers import counts, inputs
from od_qat.classifiers.inputs import Source
from od_qat.errors import ConfigError, DataError
from od_qat.model_files.description import ModelDescription, describe_model
from od_qat.scoring import images, workers
from od_qat.scoring.model_process import TIME_LIMIT

_LATENCY_RUNS = 50


class Image(NamedTuple):
    """An image as the scoring's processes take it, with its label."""

    image_id: str
    encoded: bytes
    label: int


@dataclasses.dataclass(frozen=True)
class ClassifierScore:
    """A scored classifier.

    Attributes:
      path: of the model.
      accuracy: part of the images whose class it finds, 0 to 1.
      recall_5: part whose class is among its five best; None with five classes or fewer.
      images: number of images.
      size_bytes: of the file.
      latency_ms: median milliseconds for one image in one thread, without decoding and resizing.
    """

    path: str
    accuracy: float
    recall_5: Optional[float]
    images: int
    size_bytes: int
    latency_ms: float


def score(
    model_path: str,
    images_path: str,
    processes: Optional[int] = None,
    max_images: Optional[int] = None,
    progress: bool = True,
    time_limit: float = TIME_LIMIT,
) -> ClassifierScore:
    """Scores a classifier on images with labels.

    Args:
      model_path: a .tflite or frozen .pb, with the JSON beside it that its export writes.
      images_path: slim's TFRecords (a pattern, for shards), or a folder with one sub-folder for each class.
      processes, max_images, progress, time_limit: as for scoring.detect.

    Raises:
      ConfigError: if the model is no classifier.
      DataError: if labels and model do not belong together.
      ExportError, EnvironmentProblem: as for scoring.detect.
    """
    description = describe_model(model_path)
    if not description.is_classifier:
        raise ConfigError(
            "the model is no classifier",
            where=model_path,
            found="outputs {}".format(", ".join(role for role, _ in description.output_names)),
            allowed="probabilities, in the JSON beside it",
            fix="a detector is scored with --label_map",
        )
    with workers.Pool(description, time_limit=time_limit) as pool:
        source = inputs.spread(open_source(description, images_path), max_images)
        labels, first = {}, None

        def examples() -> Iterator[Image]:
            nonlocal first
            for image in itertools.islice(images_of(source), max_images):
                if first is None:
                    first = images.decode(image.encoded, image.image_id)
                labels[image.image_id] = image.label
                yield image

        total = min(source.count, max_images or source.count)
        found = pool.detect(examples(), total, processes, progress)
        latency_ms = pool.latency(first, _LATENCY_RUNS)
    right = counts.Counts()
    probabilities = np.stack([found[image_id] for image_id in labels])
    require_labels(list(labels.values()), probabilities.shape[1], images_path)
    if not description.labels:
        inputs.require_all_classes(source, probabilities.shape[1], images_path)
    right.add(probabilities, np.array(list(labels.values())))
    metrics = right.metrics()
    return ClassifierScore(
        model_path,
        metrics[counts.ACCURACY],
        metrics.get(counts.RECALL_5),
        len(labels),
        os.path.getsize(model_path),
        latency_ms,
    )


def open_source(description: ModelDescription, path: str) -> Source:
    """The images of a folder or of records, for a model.

    Raises:
      DataError: if their classes are not the model's.
    """
    most = len(description.labels) or 2**31
    return inputs.open_path(path, most, description.class_id_offset, description.labels)


def images_of(source: Source) -> Iterator[Image]:
    """All images of a source."""
    for number, (name, encoded, label) in enumerate(inputs.each(source)):
        yield Image("{} {}".format(number, name), encoded, label)


def require_labels(labels: Sequence[int], classes: int, path: str) -> None:
    """Raises DataError for a label that a model with so many classes does not have."""
    largest = max(labels)
    if largest >= classes:
        raise DataError(
            "a label is beyond the model's classes",
            where=path,
            found="label {}".format(largest),
            allowed="0 to {}".format(classes - 1),
            fix="score on images of the model's classes",
        )
