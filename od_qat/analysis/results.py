"""What is known of each layer of a quantized model.

Two errors are measured at each point. `own` is what the layer adds: it gets its inputs from the reference.
`piled_up` is what arrives there when everything before is quantized too.
"""

import dataclasses
from typing import List, Optional, Sequence, Tuple

from od_qat.analysis.errors import Error

# Steps. Two graphs with the same numbers differ by the rounding of float32.
_OTHER_NUMBERS = 0.02


@dataclasses.dataclass(frozen=True)
class OfWeights:
    """A layer's weights.

    Attributes:
      name: of their fake quant's scope.
      low, high: the range; the widest, where each channel has its own.
      channels: how many ranges there are.
      error: of the rounded weights.
      clipped: the share of weights beyond the range.
    """

    name: str
    low: float
    high: float
    channels: int
    error: Error
    clipped: float


@dataclasses.dataclass(frozen=True)
class OfPoint:
    """A point.

    Attributes:
      name: of the fake quant's scope.
      layer: name of the layer's op; None behind another op.
      types: of the ops between the points before and this one.
      low, high: the range.
      extent: least and greatest value of the reference.
      clipped: the share of values beyond the range.
      histogram: counts of the reference's values, and the edges between them.
      own, piled_up: see the module.
      unquantized: the own error without fake quants, of a graph that is compared with another one; None of a
        graph that is compared with itself.
      weights: of the layer; None behind another op.
    """

    name: str
    layer: Optional[str]
    types: Tuple[str, ...]
    low: float
    high: float
    extent: Tuple[float, float]
    clipped: float
    histogram: Tuple[Sequence[int], Sequence[float]]
    own: Error
    piled_up: Error
    weights: Optional[OfWeights]
    unquantized: Optional[Error] = None

    @property
    def other_steps(self) -> float:
        """How far it is from another graph without any fake quant, in steps; 0 for float32's rounding."""
        steps = 0.0 if self.unquantized is None else self.unquantized.steps or 0.0
        return steps if steps > _OTHER_NUMBERS else 0.0


@dataclasses.dataclass(frozen=True)
class LayerErrors:
    """All points of a model.

    Attributes:
      points: in the order of the graph.
      weights_only, activations_only, both: the error at the worst of the last points, with the fake quants of
        weights alone, of activations alone, and with all; None for a .tflite.
      images: how many were run.
      unmatched: names of points for which the other model has no tensor.
    """

    points: Tuple[OfPoint, ...]
    weights_only: Optional[Error]
    activations_only: Optional[Error]
    both: Optional[Error]
    images: int
    unmatched: Tuple[str, ...] = ()

    def worst(self) -> List[OfPoint]:
        """The points by the error that they add, in steps of their quantization, the largest first.

        Those that compute something else than another graph come before those that quantization changes.
        """
        return sorted(
            self.points, key=lambda point: (-point.other_steps, -(point.own.steps or 0.0), point.name)
        )
