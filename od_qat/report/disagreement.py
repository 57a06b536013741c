"""Where the detections of two models differ, image by image, and in what."""

import collections
import dataclasses
from typing import Any, Dict, List, Mapping, Tuple

import numpy as np

from od_qat.scoring import matching
from od_qat.scoring.matching import Agreement, Partners, iou_matrix
from od_qat.scoring.runners import Detections

# Why a detection of one model is not the other's.
SCORE = "another score"
BOX = "another box"
CLASS = "another class"
TWICE = "found twice"
ALONE = "nothing there"
REASONS = (SCORE, BOX, CLASS, TWICE, ALONE)
# The least overlap at which two boxes are of the same object.
_SAME_OBJECT = 0.5


@dataclasses.dataclass(frozen=True)
class Alone:
    """A detection that the other model has not, or not so.

    Attributes:
      model: 'a' or 'b', whose it is.
      class_id: label map id.
      score: of it.
      box: normalised ymin, xmin, ymax, xmax.
      reason: one of REASONS: the other model has the box with another score, a box that overlaps it less, the
        place with another class, the box once where this model has it twice, or nothing there.
      overlap: with the nearest of the other's detections, 0 to 1.
      other_score: of that detection; 0 if there is nothing.
    """

    model: str
    class_id: int
    score: float
    box: Tuple[float, float, float, float]
    reason: str
    overlap: float
    other_score: float


@dataclasses.dataclass(frozen=True)
class OfImage:
    """One image.

    Attributes:
      image_id: of it.
      matched: how many detections of both models have a match.
      alone: those without one, the best score first.
      score_differences: b's score less a's, of each match of a's detections.
      overlaps: of these matches.
    """

    image_id: Any
    matched: int
    alone: Tuple[Alone, ...]
    score_differences: Tuple[float, ...]
    overlaps: Tuple[float, ...]

    @property
    def weight(self) -> float:
        """How much the models disagree: the sum of the scores of what has no match."""
        return sum(one.score for one in self.alone)


@dataclasses.dataclass(frozen=True)
class Disagreement:
    """All images.

    Attributes:
      agreement: the counts of both models; see scoring.agreement.
      images: the largest disagreement first.
      reasons: reason -> how many detections of both models have no match for it.
    """

    agreement: Agreement
    images: Tuple[OfImage, ...]
    reasons: Dict[str, int]

    def quantiles(self) -> Dict[str, List[float]]:
        """Median, 95 % and largest, of the absolute difference of matched scores, and of 1 - overlap."""
        scores = [abs(one) for image in self.images for one in image.score_differences]
        overlaps = [1.0 - one for image in self.images for one in image.overlaps]
        return {
            name: [float(one) for one in np.quantile(values, [0.5, 0.95, 1.0])] if values else []
            for name, values in (("score", scores), ("box", overlaps))
        }


def disagreement(
    a: Mapping[Any, Detections],
    b: Mapping[Any, Detections],
    iou: float = 0.9,
    score_tolerance: float = 0.1,
    min_score: float = 0.3,
) -> Disagreement:
    """Compares the detections of two models; arguments and errors are those of scoring.agreement."""
    partners = matching.partners(a, b, iou, score_tolerance, min_score)
    images = [_of_image(key, a[key], b[key], partners[key], iou, score_tolerance) for key in a]
    counts = collections.Counter(one.reason for image in images for one in image.alone)
    images.sort(key=lambda image: (-image.weight, str(image.image_id)))
    reasons = {reason: counts[reason] for reason in REASONS}
    return Disagreement(matching.agreement_of(partners), tuple(images), reasons)


def _of_image(
    image_id: Any,
    a: Detections,
    b: Detections,
    partners: Tuple[Partners, Partners],
    iou: float,
    score_tolerance: float,
) -> OfImage:
    of_a, of_b = partners
    alone = [
        _alone(model, of, among, i, iou, score_tolerance)
        for model, of, among, of_model in (("a", a, b, of_a), ("b", b, a, of_b))
        for i, partner in of_model.items()
        if partner is None
    ]
    pairs = [(i, j) for i, j in of_a.items() if j is not None]
    return OfImage(
        image_id,
        matching.matched(of_a) + matching.matched(of_b),
        tuple(sorted(alone, key=lambda one: -one.score)),
        tuple(float(b.scores[j]) - float(a.scores[i]) for i, j in pairs),
        tuple(float(iou_matrix(a.boxes[i], b.boxes[j])[0, 0]) for i, j in pairs),
    )


def _alone(
    model: str, of: Detections, among: Detections, index: int, iou: float, score_tolerance: float
) -> Alone:
    reason, overlap, other = ALONE, 0.0, 0.0
    if len(among.scores):
        overlaps = iou_matrix(of.boxes[index], among.boxes)[0]
        same = among.classes == of.classes[index]
        # (One with this score would be its match, if it were not another's.)
        alike = matching.scores_agree(among.scores, of.scores[index], score_tolerance)
        for candidates, limit, why in (
            (same & alike, iou, TWICE),
            (same, iou, SCORE),
            (same, _SAME_OBJECT, BOX),
            (~same, _SAME_OBJECT, CLASS),
        ):
            within = np.flatnonzero(candidates & (overlaps >= limit))
            if len(within):
                nearest = within[np.argmax(overlaps[within])]
                reason, overlap, other = why, float(overlaps[nearest]), float(among.scores[nearest])
                break
    ymin, xmin, ymax, xmax = (float(value) for value in of.boxes[index])
    return Alone(
        model,
        int(of.classes[index]),
        float(of.scores[index]),
        (ymin, xmin, ymax, xmax),
        reason,
        overlap,
        other,
    )


def as_text(found: Disagreement, worst: int = 10) -> str:
    """For a terminal: the shares, the reasons, and the images that differ most."""
    total = found.agreement
    lines = [
        "{:.1f} % of the detections agree, in {} images".format(100.0 * total.share, total.images),
        "  A: {} of {} are in B; B: {} of {} are in A".format(
            total.matched_a, total.detections_a, total.matched_b, total.detections_b
        ),
    ]
    quantiles = found.quantiles()
    if quantiles["score"]:
        lines.append(
            "  matches: scores differ by {:.3f} (median), {:.3f} (95 %), {:.3f} (largest); boxes overlap by "
            "{:.3f}, {:.3f}, {:.3f}".format(*quantiles["score"], *(1.0 - one for one in quantiles["box"]))
        )
    if sum(found.reasons.values()):
        reasons = ["{} {}".format(count, why) for why, count in found.reasons.items() if count]
        lines.append("  no match: " + ", ".join(reasons))
    shown = [image for image in found.images[:worst] if image.alone]
    if shown:
        lines += ["", "the images that differ most:"]
    for image in shown:
        first = image.alone[0]
        lines.append(
            "  {}: {} without a match, the first of {} with score {:.2f}: {}".format(
                image.image_id, len(image.alone), first.model.upper(), first.score, first.reason
            )
        )
    return "\n".join(lines)


def as_json(found: Disagreement) -> Dict[str, Any]:
    """The whole comparison, for json.dumps."""
    return {
        "agreement": dataclasses.asdict(found.agreement),
        "reasons": found.reasons,
        "quantiles": found.quantiles(),
        "images": [dict(dataclasses.asdict(image), image_id=str(image.image_id)) for image in found.images],
    }
