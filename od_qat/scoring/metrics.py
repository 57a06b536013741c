"""Computes COCO and VOC average precision as the OD API's evaluators do, without the OD API."""

import contextlib
import dataclasses
import io
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from od_qat.datasets.label_map import ClassNames, names_by_id
from od_qat.datasets.records import MAX_SIDE
from od_qat.errors import DataError, EnvironmentProblem
from od_qat.scoring.matching import iou_matrix
from od_qat.scoring.runners import Detections

_MAX_DETECTIONS = (1, 10, 100)


@dataclasses.dataclass(frozen=True)
class Score:
    """Average precision of a model, COCO style, 0 to 1.

    Attributes:
      map: mean over classes and over the overlaps .50, .55 ... .95.
      map50: mean over classes at overlap .50.
      map75: mean over classes at overlap .75.
      per_class: class name -> average precision over all overlaps; None for a class that the ground truth
        does not have, and that no mean includes.
      images: number of scored images.
      detections: number of detections on them, of known classes.
    """

    map: float
    map50: float
    map75: float
    per_class: Dict[str, Optional[float]]
    images: int
    detections: int


@dataclasses.dataclass(frozen=True)
class VocScore:
    """Average precision at one overlap, PASCAL VOC style (area under the curve), 0 to 1.

    Attributes:
      map: mean over the classes that the ground truth has.
      per_class: class name -> average precision; None for a class without objects.
      iou: the least overlap of a match.
    """

    map: float
    per_class: Dict[str, Optional[float]]
    iou: float


def coco_metrics(
    examples: Iterable[Any], detections: Mapping[Any, Detections], class_names: ClassNames
) -> Score:
    """COCO's average precision, as the OD API's CocoDetectionEvaluator computes it.

    As in that evaluator, crowd boxes are ignored and may match any number of detections, `difficult` has no
    meaning, objects and detections of unknown classes are left out, and images without detections count.

    Args:
      examples: datasets.records.Example of every scored image.
      detections: image_id -> Detections, of the same images.
      class_names: names from id 1 on, or id -> name.

    Raises:
      DataError: if the images differ, or if there is no object to find.
      EnvironmentProblem: if pycocotools is not installed.
    """
    images, names, objects, found = _prepared(examples, detections, class_names)
    precision, overlaps, ids = _coco_precision(images, names, objects, found)
    return Score(
        map=_mean(precision),
        map50=_mean(precision[np.isclose(overlaps, 0.5)]),
        map75=_mean(precision[np.isclose(overlaps, 0.75)]),
        per_class={names[key]: _mean_or_none(precision[:, :, column]) for column, key in enumerate(ids)},
        images=len(images),
        detections=len(found),
    )


def _require_pycocotools() -> None:
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            import pycocotools.coco
            import pycocotools.cocoeval  # noqa: F401
    except ImportError as error:
        raise EnvironmentProblem(
            "COCO metrics need pycocotools", found=str(error), fix="pip install pycocotools"
        ) from error


def _annotations(
    examples: Sequence[Any], detections: Mapping[Any, Detections], names: Mapping[int, str]
) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
    """The objects and the detections of known classes, as pycocotools takes them."""
    objects, found = [], []  # type: List[Dict[str, Any]], List[Dict[str, Any]]
    # Images get the numbers that the OD API's evaluators give them, since pycocotools takes images in the
    # order of their ids, and equal scores, of which a quantized model has many, in the order of the images.
    for number, example in enumerate(examples):
        crowd = _flags(example, "is_crowd")
        boxes = _absolute(example, example.boxes)
        for box, class_id, is_crowd in zip(boxes, example.classes, crowd):
            if int(class_id) in names:
                # COCO's matching takes id 0 for "not matched", so ids start at 1.
                objects.append(_annotation(len(objects) + 1, number, class_id, box, int(is_crowd)))
        of_image = detections[example.image_id]
        for box, class_id, score in zip(
            _absolute(example, of_image.boxes), of_image.classes, of_image.scores
        ):
            if int(class_id) in names:
                annotation = _annotation(len(found) + 1, number, class_id, box, 0)
                annotation["score"] = float(score)
                found.append(annotation)
    return objects, found


def _coco_precision(
    images: List[Dict[str, Any]],
    names: Mapping[int, str],
    objects: List[Dict[str, Any]],
    found: List[Dict[str, Any]],
) -> Tuple[np.ndarray, np.ndarray, Sequence[int]]:
    """The precision [overlaps, recalls, classes] at 100 detections per image, the overlaps, the class ids."""
    evaluation = _evaluated(images, names, objects, found)
    parameters = evaluation.params
    return _precision(evaluation)[:, :, :, 0], parameters.iouThrs, parameters.catIds


def _evaluated(
    images: List[Dict[str, Any]],
    names: Mapping[int, str],
    objects: List[Dict[str, Any]],
    found: List[Dict[str, Any]],
    by_size: bool = False,
) -> Any:
    """A COCOeval that has matched the detections of each image; `by_size`, for each size of objects too."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    # pycocotools prints its progress, and has no option to turn that off.
    with contextlib.redirect_stdout(io.StringIO()):
        truth, result = COCO(), COCO()
        for index, annotations in ((truth, objects), (result, found)):
            index.dataset = {
                "images": images,
                "categories": [{"id": key, "name": names[key]} for key in sorted(names)],
                "annotations": annotations,
            }
            index.createIndex()
        evaluation = COCOeval(truth, result, iouType="bbox")
        evaluation.params.maxDets = list(_MAX_DETECTIONS)
        if not by_size:
            # The size ranges take three quarters of the time.
            evaluation.params.areaRng = evaluation.params.areaRng[:1]
            evaluation.params.areaRngLbl = evaluation.params.areaRngLbl[:1]
        evaluation.evaluate()
    return evaluation


def _precision(evaluation: Any) -> np.ndarray:
    """The precision [overlaps, recalls, classes, sizes] at 100 detections per image; -1 without objects."""
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.accumulate()
    return evaluation.eval["precision"][..., -1]


def map_by_size(
    examples: Iterable[Any], detections: Mapping[Any, Detections], class_names: ClassNames
) -> Dict[str, Optional[float]]:
    """COCO's mAP of small, medium and large objects (below 32^2, below 96^2, above, in pixels of the images).

    Args, Raises: as coco_metrics.

    Returns:
      'small', 'medium', 'large' -> mAP, 0 to 1; None without such objects.
    """
    images, names, objects, found = _prepared(examples, detections, class_names)
    evaluation = _evaluated(images, names, objects, found, by_size=True)
    precision = _precision(evaluation)
    return {
        label: _mean_or_none(precision[..., number])
        for number, label in enumerate(evaluation.params.areaRngLbl)
        if label != "all"
    }


def resampled_maps(
    examples: Iterable[Any],
    detections: Mapping[Any, Detections],
    class_names: ClassNames,
    samples: Sequence[np.ndarray],
) -> np.ndarray:
    """The mAP on samples of the images, drawn with replacement (Efron, 1979: bootstrap).

    A terminal shows a progress bar.

    Args:
      examples, detections, class_names: as for coco_metrics.
      samples: positions of examples, one array for each sample. The same samples of two models pair them.

    Returns:
      float64 [samples]; NaN for a sample without objects.

    Raises:
      as coco_metrics.
    """
    from tqdm import tqdm

    images, names, objects, found = _prepared(examples, detections, class_names)
    evaluation = _evaluated(images, names, objects, found)
    # (Of the numbers of detections that COCO counts, the mAP needs one. Each takes a third of the time.)
    evaluation.params.maxDets = evaluation.params.maxDets[-1:]
    # For each class and size the matches of all images, in the order of the images.
    whole, count = list(evaluation.evalImgs), len(images)
    values = []
    # (`disable=None` means "only on a terminal".)
    for sample in tqdm(samples, desc="interval", unit="sample", disable=None, leave=False):
        evaluation.evalImgs = [
            whole[start + position] for start in range(0, len(whole), count) for position in sample
        ]
        mean = _mean_or_none(_precision(evaluation))
        values.append(np.nan if mean is None else mean)
    return np.array(values)


def _prepared(
    examples: Iterable[Any], detections: Mapping[Any, Detections], class_names: ClassNames
) -> Tuple[List[Dict[str, Any]], Dict[int, str], List[Dict[str, Any]], List[Dict[str, Any]]]:
    """Images, names, objects and detections as pycocotools takes them."""
    _require_pycocotools()
    examples = _matched(examples, detections)
    names = names_by_id(class_names)
    objects, found = _annotations(examples, detections, names)
    _require_objects(objects, examples, names)
    return [{"id": number} for number in range(len(examples))], names, objects, found


def _matched(examples: Iterable[Any], detections: Mapping[Any, Detections]) -> List[Any]:
    """The examples as a list. Raises DataError unless they are the images that were scored."""
    examples = list(examples)
    if not examples:
        raise DataError("there are no images to score", fix="check the record file")
    known = {example.image_id for example in examples}
    if len(known) != len(examples):
        raise DataError(
            "two examples have the same image id",
            found="{} ids for {} images".format(len(known), len(examples)),
            fix="give each image an id of its own",
        )
    differ = sorted(str(image_id) for image_id in known ^ set(detections))
    if differ:
        raise DataError(
            "ground truth and detections are of different images",
            found="{} images in one of them only, {} first".format(len(differ), differ[0]),
            fix="give the examples that the model was run on",
        )
    return examples


def _require_objects(objects: Sequence[Any], examples: Sequence[Any], names: Mapping[int, str]) -> None:
    if not any(not item["iscrowd"] for item in objects):
        ids = sorted({int(class_id) for example in examples for class_id in example.classes})
        raise DataError(
            "the images have no object to find",
            found="{} images, class ids {}".format(len(examples), ", ".join(map(str, ids[:10])) or "none"),
            allowed="class ids "
            + ", ".join(map(str, sorted(names)[:10]))
            + (" ..." if len(names) > 10 else ""),
            fix="score more images, or give the label map that belongs to the record",
        )


def _flags(example: Any, field: str) -> np.ndarray:
    values = getattr(example, field, None)
    return np.zeros(len(example.boxes), bool) if values is None else np.asarray(values, bool)


def _absolute(example: Any, boxes: np.ndarray) -> np.ndarray:
    """Normalised boxes in pixels, scaled in float32 as the OD API does, so that the results are equal."""
    if not (1 <= example.height <= MAX_SIDE and 1 <= example.width <= MAX_SIDE):
        raise DataError(
            "an example states a size that no image has",
            where="image {}".format(example.image_id),
            found="height {}, width {}".format(example.height, example.width),
            allowed="1 to {:,} pixels".format(MAX_SIDE),
            fix="give the size of the image",
        )
    size = np.array([example.height, example.width, example.height, example.width], np.float32)
    return np.asarray(boxes, np.float32).reshape(-1, 4) * size


def _annotation(number: int, image_id: Any, class_id: Any, box: np.ndarray, is_crowd: int) -> Dict[str, Any]:
    ymin, xmin, ymax, xmax = box
    width, height = float(xmax - xmin), float(ymax - ymin)
    return {
        "id": number,
        "image_id": image_id,
        "category_id": int(class_id),
        "bbox": [float(xmin), float(ymin), width, height],
        "area": width * height,
        "iscrowd": is_crowd,
    }


def _mean_or_none(precision: np.ndarray) -> Optional[float]:
    known = precision[precision > -1]  # -1: the class has no objects
    return float(np.mean(known)) if known.size else None


def _mean(precision: np.ndarray) -> float:
    value = _mean_or_none(precision)
    assert value is not None  # _require_objects saw an object
    return value


def voc_metrics(
    examples: Iterable[Any], detections: Mapping[Any, Detections], class_names: ClassNames, iou: float = 0.5
) -> VocScore:
    """PASCAL VOC's average precision, as the OD API's PascalDetectionEvaluator computes it.

    A detection belongs to the object of its class that it overlaps most. The first detection of an object is
    right, later ones are wrong, and those of difficult objects are neither.

    Args:
      examples, detections, class_names: as for coco_metrics.
      iou: least overlap.

    Raises:
      DataError: if the images differ, or if there is no object to find.
    """
    examples = _matched(examples, detections)
    names = names_by_id(class_names)
    per_class = {}  # type: Dict[str, Optional[float]]
    for class_id in sorted(names):
        per_class[names[class_id]] = _voc_average_precision(examples, detections, class_id, iou)
    known = [value for value in per_class.values() if value is not None]
    if not known:
        _require_objects([], examples, names)
    return VocScore(map=float(np.mean(known)), per_class=per_class, iou=iou)


def _voc_average_precision(
    examples: Sequence[Any], detections: Mapping[Any, Detections], class_id: int, iou: float
) -> Optional[float]:
    objects = 0
    scores, right = [], []  # type: List[np.ndarray], List[np.ndarray]
    for example in examples:
        of_class = example.classes == class_id
        difficult = _flags(example, "difficult")[of_class]
        objects += int(np.sum(~difficult))
        of_image = detections[example.image_id]
        chosen = of_image.classes == class_id
        image_scores, hits = _voc_hits(
            of_image.boxes[chosen], of_image.scores[chosen], example.boxes[of_class], difficult, iou
        )
        scores.append(image_scores)
        right.append(hits)
    if not objects:
        return None
    order = np.argsort(-np.concatenate(scores), kind="stable")
    hits = np.concatenate(right)[order]
    true_positives = np.cumsum(hits)
    if not len(hits):
        return 0.0
    recall = np.concatenate([[0.0], true_positives / objects])
    precision = true_positives / np.arange(1, len(hits) + 1)
    # The best precision at this recall or a higher one.
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))


def _voc_hits(
    boxes: np.ndarray, scores: np.ndarray, objects: np.ndarray, difficult: np.ndarray, iou: float
) -> Tuple[np.ndarray, np.ndarray]:
    """The scores of the detections that count in one image, best first, and whether each is right."""
    order = np.argsort(-scores, kind="stable")
    boxes, scores = boxes[order], scores[order]
    hits, counts = np.zeros(len(boxes), bool), np.ones(len(boxes), bool)
    if len(boxes) and len(objects):
        overlap = iou_matrix(boxes, objects)
        taken = np.zeros(len(objects), bool)
        for index, best in enumerate(np.argmax(overlap, axis=1)):
            if overlap[index, best] < iou:
                continue
            if difficult[best]:
                counts[index] = False
            else:
                hits[index] = not taken[best]
                taken[best] = True
    return scores[counts], hits[counts]
