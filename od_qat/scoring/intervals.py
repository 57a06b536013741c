"""How far a mAP, and the difference of two, could be another on other images of the same kind."""

import dataclasses
from typing import Any, Dict, List, Mapping, Sequence

import numpy as np

from od_qat.datasets.label_map import ClassNames
from od_qat.scoring import metrics
from od_qat.scoring.runners import Detections

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
      examples: datasets.records.Example of every scored image.
      class_names: as for coco_metrics.
      samples: how many are drawn.
      seed: of the draw.
    """

    def __init__(
        self, examples: Sequence[Any], class_names: ClassNames, samples: int = SAMPLES, seed: int = 0
    ) -> None:
        self._examples, self._names = list(examples), class_names
        random = np.random.RandomState(seed)
        count = len(self._examples)
        self._samples: List[np.ndarray] = [random.randint(0, count, count) for _ in range(samples)]
        self._maps: Dict[str, np.ndarray] = {}

    def add(self, label: str, detections: Mapping[Any, Detections]) -> None:
        """Adds a model."""
        self._maps[label] = metrics.resampled_maps(self._examples, detections, self._names, self._samples)

    def of(self, label: str) -> Interval:
        """Of a model's mAP."""
        return self._interval(self._maps[label])

    def of_difference(self, label: str, other: str) -> Interval:
        """Of what a model has more than another one, on the same images."""
        return self._interval(self._maps[label] - self._maps[other])

    def _interval(self, values: np.ndarray) -> Interval:
        known = values[np.isfinite(values)]
        if not len(known) or len(self._examples) < LEAST_IMAGES:
            return Interval(float("nan"), float("nan"))
        low, high = np.quantile(known, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
        return Interval(float(low), float(high))
