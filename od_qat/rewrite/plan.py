"""What a rewrite will do, as data. The planner makes it, the passes carry it out, the report shows it."""

from typing import Dict, FrozenSet, NamedTuple, Tuple

from od_qat.rewrite.parts import BatchNorm, Layer
from od_qat.rewrite.weighted_sums import WeightedSum


class WeightQuant(NamedTuple):
    """A fake quant on a layer's (scaled) weights.

    Attributes:
      name: its variable scope.
      layer: the layer of the weights.
      bits: its width.
      per_channel: whether each output channel has a range.
      clone: scope of its clone, such as `clone_1/`, if that is not the first, whose range it shares; else ''.
      twins: other tensors with the value of the same variable, that layers without a batch norm read; these
        layers read this fake quant too.
    """

    name: str
    layer: Layer
    bits: int
    per_channel: bool
    clone: str = ""
    twins: Tuple[object, ...] = ()


class ActivationQuant(NamedTuple):
    """A fake quant on a tensor.

    Attributes:
      name: its variable scope.
      tensor: the tensor that it quantizes.
      initial_min: contrib's initial value: 0 behind an activation, else -6.
      pattern: what the tensor was recognised as; the last part of the name.
      bits: its width.
      twins: other tensors with the same value; their readers read this fake quant too.
      clone: scope of its clone, such as `clone_1/`, if that is not the first, whose range it shares; else ''.
      parts: outputs of splits of the tensor, of those splits that have an output without readers.
      joined: name of the fake quant of the concat that alone reads the tensor, and whose range the tensor has
        in an eval graph; '' if there is none.
    """

    name: str
    tensor: object
    initial_min: float
    pattern: str
    bits: int
    twins: Tuple[object, ...] = ()
    clone: str = ""
    parts: Tuple[object, ...] = ()
    joined: str = ""


class Plan(NamedTuple):
    """Everything that the passes will do, in order, and what stays float, with the reason.

    Attributes:
      folds: layers with a batch norm to fold.
      norms: batch norms behind no layer, which become layers in an eval graph.
      weights, activations: the fake quants.
      stays_float: name of an op with weights, or between layers -> the reason.
      excluded: names of those of these ops that a rule keeps float.
      clones: scopes of all clones but the first, such as `clone_1/`.
      read_on: names of the folded layers whose copies in an eval graph read what the layers read before any
        folding, as with contrib.
      negatives: Neg ops between layers, which become products in an eval graph.
      sums: weighted sums between layers, each with the names of the fake quants of its inputs; they become
        sums of products in an eval graph.
    """

    folds: Tuple[Layer, ...]
    norms: Tuple[BatchNorm, ...]
    weights: Tuple[WeightQuant, ...]
    activations: Tuple[ActivationQuant, ...]
    stays_float: Dict[str, str]
    excluded: FrozenSet[str] = frozenset()
    clones: Tuple[str, ...] = ()
    read_on: FrozenSet[str] = frozenset()
    negatives: Tuple[object, ...] = ()
    sums: Tuple[Tuple[WeightedSum, Tuple[str, ...]], ...] = ()

    def of_first_clone(self) -> "Plan":
        """Returns the plan of the first clone, or the whole plan if there are no clones."""
        if not self.clones:
            return self

        def first(name: str) -> bool:
            return not name.startswith(self.clones)

        return self._replace(
            folds=tuple(layer for layer in self.folds if first(layer.op.name)),
            norms=tuple(norm for norm in self.norms if first(norm.op.name)),
            weights=tuple(quant for quant in self.weights if not quant.clone),
            activations=tuple(quant for quant in self.activations if not quant.clone),
            stays_float={name: reason for name, reason in self.stays_float.items() if first(name)},
            excluded=frozenset(filter(first, self.excluded)),
        )
