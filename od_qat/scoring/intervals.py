"""How far a measure, and the difference of two, could be another on other images of the same kind."""

import dataclasses
from typing import Any, Dict, List, Mapping

import numpy as np

SAMPLES = 200
# With fewer images, samples of them say little of other images.
LEAST_IMAGES = 20
_LEVEL = 0.95


@dataclasses.dataclass(frozen=True)
class Interval:
    """Where 95 % of the samples lie, 0 to 1, or a difference of such; NaN with too few images."""

    low: float
    high: float


class Bootstrap(object):
    """Draws images with replacement, the same for each model, and scores every sample.

    Args:
      measure: a measures.DetectorMeasure, or the like.
      samples: how many are drawn.
      seed: of the draw.
    """

    def __init__(self, measure: Any, samples: int = SAMPLES, seed: int = 0) -> None:
        self._measure = measure
        random = np.random.RandomState(seed)
        count = len(measure.examples)
        self._samples: List[np.ndarray] = [random.randint(0, count, count) for _ in range(samples)]
        self._values: Dict[str, np.ndarray] = {}

    def add(self, label: str, found: Mapping[Any, Any]) -> None:
        """Adds a model, by what it found in the images."""
        self._values[label] = self._measure.samples(found, self._samples)

    def of(self, label: str) -> Interval:
        """Of a model's measure."""
        return self._interval(self._values[label])

    def of_difference(self, label: str, other: str) -> Interval:
        """Of what a model has more than another one, on the same images."""
        return self._interval(self._values[label] - self._values[other])

    def _interval(self, values: np.ndarray) -> Interval:
        known = values[np.isfinite(values)]
        if not len(known) or len(self._measure.examples) < LEAST_IMAGES:
            return Interval(float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Interval(float(low), float(high))
