"""Where two classifiers say different things, image by image."""

import dataclasses
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np


@dataclasses.dataclass(frozen=True)
class OfImage:
    """An image of which the models find different classes.

    Attributes:
      image_id: of it.
      label: index of the right class.
      a, b: index of the class that each finds.
      probability_a, probability_b: of that class.
    """

    image_id: str
    label: int
    a: int
    b: int
    probability_a: float
    probability_b: float

    @property
    def weight(self) -> float:
        """How sure both are."""
        return self.probability_a + self.probability_b


@dataclasses.dataclass(frozen=True)
class ClassDisagreement:
    """All images.

    Attributes:
      total: how many.
      images: those with different classes, the surest first.
      quantiles: median, 95 % and largest of the difference of the right class's probability, absolute.
    """

    total: int
    images: Tuple[OfImage, ...]
    quantiles: Tuple[float, float, float]

    @property
    def share(self) -> float:
        """Of the images with the same class."""
        return 1.0 - len(self.images) / self.total

    def reasons(self) -> Dict[str, int]:
        """Which of the models is right, and for how many images."""
        found = {"A is right": 0, "B is right": 0, "neither is right": 0}
        for one in self.images:
            right = "A is right" if one.label == one.a else "B is right" if one.label == one.b else ""
            found[right or "neither is right"] += 1
        return found


def compare(
    a: Mapping[Any, np.ndarray], b: Mapping[Any, np.ndarray], examples: Sequence[Any]
) -> ClassDisagreement:
    """Compares what two classifiers find.

    Args:
      a, b: image id -> probabilities, float32 [classes].
      examples: classifiers.score.Image of all images, one at least.
    """
    differing, differences = [], []
    for example in examples:
        of_a, of_b = a[example.image_id], b[example.image_id]
        differences.append(abs(float(of_a[example.label]) - float(of_b[example.label])))
        best = int(of_a.argmax()), int(of_b.argmax())
        if best[0] != best[1]:
            differing.append(
                OfImage(
                    str(example.image_id),
                    int(example.label),
                    best[0],
                    best[1],
                    float(of_a[best[0]]),
                    float(of_b[best[1]]),
                )
            )
    median, most, largest = (float(one) for one in np.quantile(differences, [0.5, 0.95, 1.0]))
    differing.sort(key=lambda one: (-one.weight, one.image_id))
    return ClassDisagreement(len(examples), tuple(differing), (median, most, largest))


def as_text(found: ClassDisagreement, names: Mapping[int, str], worst: int = 10) -> str:
    """For a terminal: the share, and the images that differ most."""
    lines = [
        "{:.1f} % of {} images have the same class".format(100 * found.share, found.total),
        "  the right class's probability differs by {:.3f} (median), {:.3f} (95 %), {:.3f} (largest)".format(
            *found.quantiles
        ),
    ]
    if found.images:
        reasons = ["{} {}".format(count, why) for why, count in found.reasons().items() if count]
        lines += ["  where they differ: " + ", ".join(reasons), "", "the images that differ most:"]
    lines += ["  " + caption(one, names) for one in found.images[:worst]]
    return "\n".join(lines)


def caption(one: OfImage, names: Mapping[int, str]) -> str:
    """What each model says of an image, in a line."""

    def named(index: int) -> str:
        return names.get(index, str(index))

    return "{}: {}; A says {} ({:.2f}), B says {} ({:.2f})".format(
        one.image_id, named(one.label), named(one.a), one.probability_a, named(one.b), one.probability_b
    )


def as_json(found: ClassDisagreement) -> Dict[str, Any]:
    """The whole, for json.dumps."""
    images: List[Dict[str, Any]] = [dataclasses.asdict(one) for one in found.images]
    return {
        "share": found.share,
        "images": found.total,
        "reasons": found.reasons(),
        "quantiles": list(found.quantiles),
        "differing": images,
    }
