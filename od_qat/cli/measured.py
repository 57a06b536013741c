"""What commands that measure models have in common: models of one kind, and the images to measure them on."""

import itertools
from typing import Any, Optional, Sequence

from od_qat.cli import flags
from od_qat.errors import ConfigError


def require_one_kind(paths: Sequence[Optional[str]]) -> bool:
    """Whether the models are classifiers; None among the paths is left out.

    Raises:
      ConfigError: if a file is missing, or if there are both classifiers and detectors.
    """
    from od_qat.model_files import description

    kinds = {}
    for path in filter(None, paths):
        flags.require_file(path, "model")
        kinds[path] = description.is_classifiers(path)
    first = next(iter(kinds))
    for path, classifies in kinds.items():
        if classifies != kinds[first]:
            raise ConfigError(
                "a classifier is not compared with a detector",
                where=path,
                found="a {}".format("classifier" if classifies else "detector"),
                allowed="a {}, as {} is".format("classifier" if kinds[first] else "detector", first),
            )
    return kinds[first]


def require_label_map(path: Optional[str], classifies: bool) -> None:
    """Raises ConfigError unless a detector has a label map, and a classifier none."""
    if classifies:
        if path is not None:
            raise ConfigError(
                "a classifier has no label map",
                where="--label_map",
                found=path,
                fix="leave it out; the JSON beside the model has the names of its classes",
            )
        return
    if path is None:
        raise ConfigError(
            "a detector is measured with the label map of its records",
            where="--label_map",
            found="none",
            fix="pass --label_map=FILE",
        )
    flags.require_file(path, "label map")


def open_measure(
    model: str, record: str, label_map_path: Optional[str], max_images: Optional[int] = None
) -> Any:
    """The images of records, or of a classifier's folder, and what a model is measured by.

    Args:
      model: path of one of the models; only that of a classifier is read.
      record: the records, a pattern for shards; for a classifier also a folder.
      label_map_path: of a detector's records; None for a classifier.
      max_images: of which only so many are taken.

    Raises:
      DataError: for images that are damaged, or that do not belong to the labels or the model.
    """
    if label_map_path is not None:
        return _of_detector(record, label_map_path, max_images)
    return _of_classifier(model, record, max_images)


def _of_detector(record: str, label_map_path: str, max_images: Optional[int]) -> Any:
    from od_qat.datasets import label_map, records
    from od_qat.scoring.measures import DetectorMeasure

    total = records.check_records(record, label_map_path, max_images)
    return DetectorMeasure(
        lambda: itertools.islice(records.read_examples(record), total),
        label_map.read_label_map(label_map_path),
        label_map_path,
    )


def _of_classifier(model: str, record: str, max_images: Optional[int]) -> Any:
    from od_qat.classifiers import inputs, score
    from od_qat.classifiers.measure import ClassifierMeasure
    from od_qat.model_files.description import describe_model

    description = describe_model(model)
    source = inputs.spread(score.open_source(description, record), max_images)
    names = dict(enumerate(description.labels or source.classes.names))
    return ClassifierMeasure(lambda: itertools.islice(score.images_of(source), max_images), names)
