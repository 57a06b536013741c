"""Checks that the class ids of a model are those of the label map. With other ids it scores next to nothing.

At each object, the class of the box with the best score that overlaps the object is compared.
"""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from od_qat.datasets.label_map import shorten
from od_qat.scoring.matching import iou_matrix
from od_qat.scoring.runners import Detections

_IOU = 0.5
# Another numbering has to explain this share of the objects of a class, averaged over classes, and twice the
# share that the label map explains. A detector does not confuse half of its classes, nor all of them by one
# number.
_EXPLAINED = 0.5
_LARGEST_SHIFT = 2


def misfits(
    model: str,
    label_map: Optional[str],
    names: Mapping[int, str],
    examples: Sequence[Any],
    detections: Mapping[Any, Detections],
) -> List[str]:
    """Makes a warning for each way in which ids do not fit; empty if all fit.

    Args:
      model, label_map: their names for the message. Without a label map, `names` are the classes that the
        caller chose, and it is no fault if the model detects others.
      names: the label map, id -> name.
      examples: the scored images, as in coco_metrics.
      detections: image_id -> Detections of the same images.
    """
    truth = np.unique(np.concatenate([example.classes for example in examples])) if examples else np.zeros(0)
    found = np.concatenate([of_image.classes for of_image in detections.values()] or [np.zeros(0, np.int64)])
    lines = []
    unknown = found[~np.isin(found, list(names))]
    if label_map is not None and len(unknown):
        lines.append(
            "{} finds classes that {} does not have, ids {}; these {} of its {} detections are not scored: "
            "was it trained on other data?".format(model, label_map, _ids(unknown), len(unknown), len(found))
        )
    absent = found[np.isin(found, list(names)) & ~np.isin(found, truth)]
    if len(absent):
        lines.append(
            "{} finds classes that none of the {} images has, ids {}; these {} of its {} detections change "
            "no score".format(model, len(examples), _ids(absent), len(absent), len(found))
        )
    numbering = _numbering(names, _pairs(examples, detections, names))
    if numbering:
        whose = label_map or "the class names"
        lines.append("the class ids of {} are not those of {}: {}".format(model, whose, numbering))
    return lines


def _ids(classes: np.ndarray) -> str:
    return shorten(", ".join(str(int(number)) for number in np.unique(classes)))


def _pairs(
    examples: Sequence[Any], detections: Mapping[Any, Detections], names: Mapping[int, str]
) -> Dict[int, np.ndarray]:
    """Class id -> the ids of the best boxes at its objects, int64 [objects that were found]."""
    found = {}  # type: Dict[int, List[int]]
    for example in examples:
        of_image = detections[example.image_id]
        if not len(example.boxes) or not len(of_image.scores):
            continue
        order = np.argsort(-of_image.scores, kind="stable")
        overlaps = iou_matrix(example.boxes, of_image.boxes[order]) >= _IOU
        surest = of_image.classes[order][np.argmax(overlaps, axis=1)]
        for class_id, has_one, detected in zip(example.classes, overlaps.any(axis=1), surest):
            if has_one and int(class_id) in names:
                found.setdefault(int(class_id), []).append(int(detected))
    return {class_id: np.array(ids, np.int64) for class_id, ids in found.items()}


def _numbering(names: Mapping[int, str], pairs: Mapping[int, np.ndarray]) -> str:
    """How the model's ids differ from those of the label map; empty if the objects show no rule."""
    if not pairs:
        return ""
    as_they_are = _share(pairs, {class_id: class_id for class_id in pairs})
    best, share = _best_shift(pairs)
    if best and share >= _EXPLAINED and share >= 2 * as_they_are:
        return (
            "as they are they name {:.0f} % of the objects that it finds, moved by {:+d} they name {:.0f} %. "
            "Fix: give the label map that it was trained with, or set class_id_offset, {:+d}, in the .json "
            "beside it".format(100 * as_they_are, best, 100 * share, best)
        )
    relabelled = _most_frequent(pairs)
    share = _share(pairs, relabelled)
    others = [class_id for class_id in sorted(relabelled) if relabelled[class_id] != class_id]
    if others and share >= _EXPLAINED and share >= 2 * as_they_are:
        return (
            "as they are they name {:.0f} % of the objects that it finds; most of the others it finds under "
            "another id each ({}). Fix: give the label map that it was trained with (COCO's has ids up to 90)"
        ).format(
            100 * as_they_are,
            shorten(
                ", ".join(
                    "{} {!r} as {}".format(number, names[number], relabelled[number]) for number in others
                )
            ),
        )
    return ""


def _share(pairs: Mapping[int, np.ndarray], ids: Mapping[int, Optional[int]]) -> float:
    """The share of objects that are found under ids[class], averaged over classes."""
    return float(np.mean([np.mean(detected == ids.get(number, -1)) for number, detected in pairs.items()]))


def _best_shift(pairs: Mapping[int, np.ndarray]) -> Tuple[int, float]:
    """The number to add to the detected ids so that most are right, and the share that is right then."""
    shifts = [shift for size in range(1, _LARGEST_SHIFT + 1) for shift in (size, -size)]
    shares = [_share(pairs, {number: number - shift for number in pairs}) for shift in shifts]
    best = int(np.argmax(shares))
    return shifts[best], shares[best]


def _most_frequent(pairs: Mapping[int, np.ndarray]) -> Dict[int, int]:
    """Class -> the id under which most of its objects are found. No id is given to two classes."""
    counted = []
    for number, detected in pairs.items():
        ids, counts = np.unique(detected, return_counts=True)
        counted.append((float(np.max(counts)) / len(detected), number, int(ids[np.argmax(counts)])))
    chosen = {}  # type: Dict[int, int]
    # (A class that is found under its own id comes first, so that it keeps that id.)
    for _, number, detected in sorted(counted, key=lambda item: (item[1] != item[2], -item[0], item[1])):
        if detected not in chosen.values():
            chosen[number] = detected
    return chosen
