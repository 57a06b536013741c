"""Whether the network or its suppression makes the detections of two models differ.

A suppression keeps one of several boxes of an object. If two have nearly the same score, a difference that
changes nothing else lets it keep another one. What the other model has in its candidates, with that box and
that score, only its suppression has left out.
"""

import contextlib
from typing import Any, Mapping, NamedTuple, Optional

import numpy as np

from od_qat.report.disagreement import Alone, Disagreement
from od_qat.scoring import candidates, images, matching
from od_qat.scoring.candidates import Candidates

# Images of which the candidates are read, those that differ most first.
MOST_IMAGES = 50


class Shares(NamedTuple):
    """Detections without a match.

    Attributes:
      of_suppression: how many are among the other model's candidates.
      of_network: how many are not.
      images: how many images were looked at.
    """

    of_suppression: int
    of_network: int
    images: int

    def as_text(self) -> str:
        """A sentence."""
        total = self.of_suppression + self.of_network
        return (
            "Of {} detections without a match, in the {} images that differ most, {} are among the other "
            "model's boxes before its suppression, with that score: the suppression kept another of two "
            "near-ties. The network makes the other {}."
        ).format(total, self.images, self.of_suppression, self.of_network)


def shares(
    found: Disagreement,
    paths: Mapping[str, str],
    examples: Mapping[Any, Any],
    iou: float = 0.9,
    score_tolerance: float = 0.1,
) -> Optional[Shares]:
    """Looks for each detection without a match among the other model's candidates.

    Args:
      found: where two models differ.
      paths: 'a' and 'b' -> path of the model.
      examples: image id -> datasets.records.Example, of the images that differ.
      iou, score_tolerance: those with which they were compared.

    Returns:
      None if there is nothing without a match, or if one of the models has no candidates that can be read.

    Raises:
      ExportError, DataError: if a model or an image cannot be read.
    """
    differing = [image for image in found.images if image.alone][:MOST_IMAGES]
    if not differing:
        return None
    with contextlib.ExitStack() as stack:
        readers = {}
        for name, path in paths.items():
            readers[name] = candidates.open_reader(path)
            if readers[name] is None:
                return None
            stack.callback(readers[name].close)
        of_suppression = of_network = 0
        for image in differing:
            pixels = images.decode(examples[image.image_id].encoded, str(image.image_id))
            before = {name: reader.read(pixels) for name, reader in readers.items()}
            for one in image.alone:
                other = before["b" if one.model == "a" else "a"]
                if _has(other, one, iou, score_tolerance):
                    of_suppression += 1
                else:
                    of_network += 1
    return Shares(of_suppression, of_network, len(differing))


def _has(other: Candidates, one: Alone, iou: float, score_tolerance: float) -> bool:
    column = one.class_id - other.first_class
    if not 0 <= column < other.scores.shape[1]:
        return False
    overlaps = matching.iou_matrix(np.array(one.box, np.float32), other.boxes)[0]
    alike = matching.scores_agree(other.scores[:, column], one.score, score_tolerance)
    return bool(np.any((overlaps >= iou) & alike))
