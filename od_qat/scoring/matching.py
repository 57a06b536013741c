"""The overlap of boxes, and how far two models agree."""

import dataclasses
from typing import Any, Dict, Mapping, Optional, Tuple

import numpy as np

from od_qat.errors import DataError
from od_qat.scoring.runners import Detections


def iou_matrix(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair of boxes.

    Args:
      first: [N, 4], ymin, xmin, ymax, xmax.
      second: [M, 4].

    Returns:
      float64 [N, M]; 0 if both boxes are empty.
    """
    first = np.asarray(first, np.float64).reshape(-1, 1, 4)
    second = np.asarray(second, np.float64).reshape(1, -1, 4)
    sides = np.minimum(first[..., 2:], second[..., 2:]) - np.maximum(first[..., :2], second[..., :2])
    intersection = np.prod(np.maximum(sides, 0.0), axis=2)
    union = _area(first) + _area(second) - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _area(boxes: np.ndarray) -> np.ndarray:
    return np.prod(np.maximum(boxes[..., 2:] - boxes[..., :2], 0.0), axis=-1)


@dataclasses.dataclass(frozen=True)
class Agreement:
    """How far two models agree; counts are of detections above the minimum score.

    Attributes:
      share: matched detections of both models, divided by all detections of both; 1.0 if there are none.
      detections_a: detections of the first model.
      matched_a: those of them that the second model has too.
      detections_b, matched_b: the same for the second model.
      images: images compared.
    """

    share: float
    detections_a: int
    matched_a: int
    detections_b: int
    matched_b: int
    images: int


def agreement(
    a: Mapping[Any, Detections],
    b: Mapping[Any, Detections],
    iou: float = 0.9,
    score_tolerance: float = 0.1,
    min_score: float = 0.3,
) -> Agreement:
    """Compares the detections of two models, in both directions.

    Two detections match if they have the same class, an overlap of at least `iou`, and scores that differ by
    at most `score_tolerance`. The second may score less than `min_score`. Each detection matches at most
    once.

    Args:
      a, b: image_id -> Detections, of the same images.
      iou: least overlap.
      score_tolerance: greatest difference of the scores.
      min_score: detections below are not counted.

    Raises:
      DataError: if the images differ.
    """
    return agreement_of(partners(a, b, iou, score_tolerance, min_score))


# Index of a detection that counts -> index of its match in the other model, or None.
Partners = Dict[int, Optional[int]]


def partners(
    a: Mapping[Any, Detections],
    b: Mapping[Any, Detections],
    iou: float,
    score_tolerance: float,
    min_score: float,
) -> Dict[Any, Tuple[Partners, Partners]]:
    """Matches the detections of two models: image_id -> partners of a's detections, and of b's.

    Args, Raises: as for :func:`agreement`.
    """
    differ = sorted(str(image_id) for image_id in set(a) ^ set(b))
    if differ:
        raise DataError(
            "the two models were not run on the same images",
            found="{} images with one of them only, {} first".format(len(differ), differ[0]),
            fix="run both on the same record, with the same max_images",
        )
    return {
        image_id: (
            _partners_of(a[image_id], b[image_id], iou, score_tolerance, min_score),
            _partners_of(b[image_id], a[image_id], iou, score_tolerance, min_score),
        )
        for image_id in a
    }


def agreement_of(found: Mapping[Any, Tuple[Partners, Partners]]) -> Agreement:
    """Counts what :func:`partners` found."""
    total_a, total_b = (sum(len(pair[model]) for pair in found.values()) for model in (0, 1))
    matched_a, matched_b = (sum(matched(pair[model]) for pair in found.values()) for model in (0, 1))
    total = total_a + total_b
    return Agreement(
        share=(matched_a + matched_b) / total if total else 1.0,
        detections_a=total_a,
        matched_a=matched_a,
        detections_b=total_b,
        matched_b=matched_b,
        images=len(found),
    )


def matched(of_image: Partners) -> int:
    """How many have a match."""
    return sum(partner is not None for partner in of_image.values())


def scores_agree(scores: np.ndarray, others: np.ndarray, tolerance: float) -> np.ndarray:
    """Whether scores differ by no more than a tolerance; of any shapes that fit each other."""
    # A tolerance of 0.1 has to accept 0.9 and 0.8, so it gets one float32 step more.
    return np.abs(np.asarray(scores, np.float64) - others) <= tolerance + 1e-6


def _partners_of(
    of: Detections, among: Detections, iou: float, score_tolerance: float, min_score: float
) -> Partners:
    """Matches the detections of one image one to one, those with the best scores first.

    Args:
      of: those that are matched.
      among: the other model's.
      iou, score_tolerance, min_score: as for :func:`agreement`.

    Returns:
      index in `of`, of each that scores at least min_score -> index in `among`, or None without a match.
    """
    chosen = np.flatnonzero(of.scores >= min_score)
    found: Partners = {int(index): None for index in chosen}
    if not len(chosen) or not len(among.scores):
        return found
    overlap = iou_matrix(of.boxes[chosen], among.boxes)
    allowed = of.classes[chosen][:, None] == among.classes[None, :]
    allowed &= scores_agree(of.scores[chosen][:, None], among.scores[None, :], score_tolerance)
    overlap = np.where(allowed & (overlap >= iou), overlap, -1.0)
    for row in np.argsort(-of.scores[chosen], kind="stable"):
        best = int(np.argmax(overlap[row]))
        if overlap[row, best] >= 0:
            found[int(chosen[row])] = best
            overlap[:, best] = -1.0
    return found
