"""Measures of the difference between two tensors, summed up over many images."""

import dataclasses
from typing import Optional, Sequence, Tuple

import numpy as np

# Of the histogram, over the range and a half of it on either side.
BINS = 64
_BESIDE = 0.5
# A signal-to-noise ratio beyond this says that there is no noise. (float32 has 24 bits.)
_MOST_DB = 144.0


@dataclasses.dataclass(frozen=True)
class Error:
    """How far one tensor is from another.

    Attributes:
      sqnr_db: signal to quantization noise, 10 log10(mean reference^2 / mean difference^2), at most 144.
      cosine: of the angle between both, 1 for the same direction.
      rmse: root mean square of the difference.
      steps: rmse in steps of the quantization; 0.289, the root of 1/12, is rounding alone.
    """

    sqnr_db: float
    cosine: float
    rmse: float
    steps: Optional[float]


class Errors(object):
    """Sums up a tensor and its reference, image by image."""

    def __init__(self) -> None:
        self._count = 0
        self._reference = self._found = self._product = self._difference = 0.0

    def add(self, found: np.ndarray, reference: np.ndarray) -> None:
        """Adds one image's."""
        found, reference = (np.asarray(one, np.float64).reshape(-1) for one in (found, reference))
        self._count += found.size
        self._reference += float(reference @ reference)
        self._found += float(found @ found)
        self._product += float(found @ reference)
        difference = found - reference
        self._difference += float(difference @ difference)

    def result(self, scale: Optional[float]) -> Error:
        """The measures of all; `scale` is the size of a step, None for a tensor without one."""
        if not self._count:
            return Error(0.0, 1.0, 0.0, None)
        rmse = float(np.sqrt(self._difference / self._count))
        norm = float(np.sqrt(self._reference * self._found))
        cosine = self._product / norm if norm else float(self._reference == self._found)
        return Error(
            _decibel(self._reference, self._difference), cosine, rmse, rmse / scale if scale else None
        )


def _decibel(signal: float, noise: float) -> float:
    if not noise:
        return _MOST_DB
    return float(min(10.0 * np.log10(signal / noise), _MOST_DB)) if signal else -_MOST_DB


class Distribution(object):
    """Sums up where the values of a tensor lie in the range of its quantization.

    Args:
      low, high: the range.
    """

    def __init__(self, low: float, high: float) -> None:
        self._low, self._high = low, high
        width = high - low
        self.edges = np.linspace(low - _BESIDE * width, high + _BESIDE * width, BINS + 1)
        self._counts = np.zeros(BINS, np.int64)
        self._below = self._above = self._total = 0
        self._least, self._most = np.inf, -np.inf

    def add(self, value: np.ndarray) -> None:
        """Adds one image's, before it is rounded."""
        value = np.asarray(value, np.float64).reshape(-1)
        inside = np.clip(value, self.edges[0], self.edges[-1])
        self._counts += np.histogram(inside, self.edges)[0]
        self._below += int(np.sum(value < self._low))
        self._above += int(np.sum(value > self._high))
        self._total += value.size
        if value.size:
            self._least, self._most = min(self._least, value.min()), max(self._most, value.max())

    @property
    def clipped(self) -> float:
        """The share of values beyond the range, 0 to 1."""
        return (self._below + self._above) / self._total if self._total else 0.0

    @property
    def extent(self) -> Tuple[float, float]:
        """The least and the greatest value."""
        return float(self._least), float(self._most)

    @property
    def counts(self) -> Sequence[int]:
        """How many values there are between the edges; those beyond the outer ones are in the outer bins."""
        return [int(count) for count in self._counts]


def of_arrays(found: np.ndarray, reference: np.ndarray, scale: Optional[float] = None) -> Error:
    """The measures of one pair of arrays."""
    errors = Errors()
    errors.add(found, reference)
    return errors.result(scale)
