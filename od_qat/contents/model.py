"""What the file of a model holds, in the same form for checkpoints, graphs, SavedModels and .tflite files."""

import collections
import dataclasses
from typing import Callable, Dict, List, Optional, Tuple

import numpy as np

CHECKPOINT, GRAPH, SAVED_MODEL, TFLITE = "checkpoint", "frozen graph", "SavedModel", ".tflite"
# Its weights are in a checkpoint.
GRAPH_OF_VARIABLES = "graph"

# What an array is.
WEIGHTS = "weights"
BATCH_NORM = "batch norms"
RANGES = "ranges"
OPTIMIZER = "optimizer"
AVERAGES = "moving averages"
OTHER = "other numbers"
# What a file holds beside arrays.
STRUCTURE = "graph"
KINDS_OF_ARRAYS = (WEIGHTS, BATCH_NORM, RANGES, OPTIMIZER, AVERAGES, OTHER)


@dataclasses.dataclass(frozen=True)
class Array:
    """A variable, or a constant.

    Attributes:
      name: of the variable, the node or the tensor.
      kind: one of KINDS_OF_ARRAYS.
      shape, dtype: of its value.
      size_bytes: what it takes in the file.
      value: reads it; real numbers, where it is quantized.
    """

    name: str
    kind: str
    shape: Tuple[int, ...]
    dtype: str
    size_bytes: int
    value: Callable[[], np.ndarray] = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True)
class Layer:
    """An op with weights.

    Attributes:
      name: of the op.
      type: 'Conv2D', 'CONV_2D' and so on.
      weights: how many numbers.
      multiply_adds: of one image; None if the size of its output is not known.
      quantized: whether it computes with 8-bit weights, or with weights that went through a fake quant.
    """

    name: str
    type: str
    weights: int
    multiply_adds: Optional[int]
    quantized: bool


@dataclasses.dataclass(frozen=True)
class Contents:
    """What a model holds.

    Attributes:
      path: as it was given.
      kind: CHECKPOINT, GRAPH, GRAPH_OF_VARIABLES, SAVED_MODEL or TFLITE.
      size_bytes: of all of its files.
      arrays: in the file's order, or by name.
      ops: name -> type; empty for a checkpoint.
      layers: those of the graph; None for a checkpoint, which has no graph.
    """

    path: str
    kind: str
    size_bytes: int
    arrays: Tuple[Array, ...]
    ops: Dict[str, str]
    layers: Optional[Tuple[Layer, ...]]

    def sizes(self) -> Dict[str, int]:
        """Bytes of each kind of arrays that there is, and of the rest of the file, which is the graph."""
        found: Dict[str, int] = collections.Counter()
        for array in self.arrays:
            found[array.kind] += array.size_bytes
        found[STRUCTURE] = max(self.size_bytes - sum(found.values()), 0)
        return {kind: found[kind] for kind in KINDS_OF_ARRAYS + (STRUCTURE,) if found[kind]}

    def op_types(self) -> Dict[str, int]:
        """How many ops there are of each type, by name."""
        return dict(sorted(collections.Counter(self.ops.values()).items()))

    def of_kind(self, kind: str) -> List[Array]:
        """The arrays of a kind."""
        return [array for array in self.arrays if array.kind == kind]

    def quantized_weights(self) -> Optional[float]:
        """The share of the layers' weights that is quantized, 0 to 1; None without layers."""
        return _share([(layer.weights, layer.quantized) for layer in self.layers or ()])

    def quantized_multiply_adds(self) -> Optional[float]:
        """The share of multiply-adds with quantized weights, 0 to 1; None where one is not known."""
        counts = [(layer.multiply_adds, layer.quantized) for layer in self.layers or ()]
        return None if any(count is None for count, _ in counts) else _share(counts)  # type: ignore


def _share(counts: List[Tuple[int, bool]]) -> Optional[float]:
    total = sum(count for count, _ in counts)
    return sum(count for count, quantized in counts if quantized) / total if total else None
