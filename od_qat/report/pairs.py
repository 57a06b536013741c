"""Two models' results on the same images, in the form that a report shows."""

import dataclasses
import io
from typing import Any, Dict, Mapping, NamedTuple, Optional, Tuple

from od_qat.errors import ExportError
from od_qat.report import before_suppression, class_disagreement, disagreement, pictures
from od_qat.report.before_suppression import Shares
from od_qat.scoring import images

# Of the drawn pictures: the greatest width and height in pixels, and JPEG's quality.
_PIXELS, _QUALITY = 1600, 80


class Side(NamedTuple):
    """One of the models.

    Attributes:
      label: what it is called.
      path: of its file.
      found: image id -> Detections, or probabilities.
    """

    label: str
    path: str
    found: Mapping[Any, Any]


@dataclasses.dataclass(frozen=True)
class Pair:
    """Both.

    Attributes:
      a, b: labels.
      share: of detections, or of images, in which they agree, 0 to 1.
      noun: of what.
      said: sentences.
      reasons: why others differ -> how many.
      shares: how many of them the suppression makes; None if that cannot be told, or of classifiers.
      pictures: (caption, JPEG) of the images that differ most.
      text, content: the whole for a terminal and for json.dumps.
    """

    a: str
    b: str
    share: float
    noun: str
    said: str
    reasons: Dict[str, int]
    shares: Optional[Shares]
    pictures: Tuple[Tuple[str, bytes], ...]
    text: str
    content: Dict[str, Any]


def of_detectors(a: Side, b: Side, measure: Any, worst: int, min_score: float) -> Pair:
    """Compares detections from `min_score` on, and draws the `worst` images.

    Raises:
      ExportError, DataError: if a model or an image cannot be read.
    """
    result = disagreement.disagreement(a.found, b.found, min_score=min_score)
    differing = [image.image_id for image in result.images if image.alone]
    by_id = measure.images.by_id(differing[: max(worst, before_suppression.MOST_IMAGES)])
    shares, not_told = None, ""
    try:
        shares = before_suppression.shares(result, {"a": a.path, "b": b.path}, by_id)
    except ExportError as error:
        not_told = " What the suppression makes of it cannot be told: {}.".format(error)
    both = {a.label: a.found, b.label: b.found}
    drawn = tuple(
        (
            str(image.image_id),
            _jpeg(pictures.sheet_of(by_id[image.image_id], both, measure.names, min_score)),
        )
        for image in result.images[:worst]
        if image.alone
    )
    total, quantiles = result.agreement, result.quantiles()
    said = _agreeing(a.label, b.label, total, min_score)
    if quantiles["score"]:
        said += " Scores of matches differ by {:.3f} (median) and {:.3f} (95 %).".format(
            *quantiles["score"][:2]
        )
    said += not_told
    content = disagreement.as_json(result)
    content["before_suppression"] = None if shares is None else shares._asdict()
    text = "A is {}, B is {}. {}".format(a.label, b.label, disagreement.as_text(result))
    text += "" if shares is None else "\n\n" + shares.as_text()
    return Pair(
        a.label, b.label, total.share, "detections", said, result.reasons, shares, drawn, text, content
    )


def _agreeing(a: str, b: str, total: Any, min_score: float) -> str:
    if not total.detections_a + total.detections_b:
        return "Neither {} nor {} finds anything from a score of {:g} on.".format(a, b, min_score)
    return (
        "{:.1f} % of the detections agree, in {} images: {} has {} of the {} detections of {}, and {} has "
        "{} of the {} of {}."
    ).format(
        100.0 * total.share,
        total.images,
        b,
        total.matched_a,
        total.detections_a,
        a,
        a,
        total.matched_b,
        total.detections_b,
        b,
    )


def of_classifiers(a: Side, b: Side, measure: Any, worst: int) -> Pair:
    """Compares the classes that both find, and shows the `worst` images.

    Raises:
      DataError: if an image cannot be read.
    """
    from PIL import Image

    result = class_disagreement.compare(a.found, b.found, measure.examples)
    by_id = measure.images.by_id([one.image_id for one in result.images[:worst]])
    shown = tuple(
        (
            class_disagreement.caption(one, measure.names),
            _jpeg(Image.fromarray(images.decode(by_id[one.image_id].encoded, one.image_id))),
        )
        for one in result.images[:worst]
    )
    said = (
        "{:.1f} % of {} images have the same class. The right class's probability differs by {:.3f} (median) "
        "and {:.3f} (95 %). A is {}, B is {}."
    ).format(100.0 * result.share, result.total, *result.quantiles[:2], a.label, b.label)
    return Pair(
        a.label,
        b.label,
        result.share,
        "images",
        said,
        result.reasons(),
        None,
        shown,
        class_disagreement.as_text(result, measure.names),
        class_disagreement.as_json(result),
    )


def _jpeg(picture: Any) -> bytes:
    picture.thumbnail((_PIXELS, _PIXELS))
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=_QUALITY)
    return stream.getvalue()
