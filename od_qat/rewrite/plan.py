"""What a rewrite will do, as data: the planner decides it, the passes carry it out, the report tells it."""

from typing import Dict, FrozenSet, NamedTuple, Tuple

from od_qat.rewrite.parts import BatchNorm, Layer


class WeightQuant(NamedTuple):
    """A fake quant on a layer's (scaled) weights.

    Attributes:
      name: of its variable scope.
      layer: whose weights.
      bits: its width.
      per_channel: a range for each output channel.
      clone: scope of the clone it is in when that takes the first clone's range, `clone_1/`; else ''.
    """

    name: str
    layer: Layer
    bits: int
    per_channel: bool
    clone: str = ""


class ActivationQuant(NamedTuple):
    """A fake quant on a tensor.

    Attributes:
      name: of its variable scope.
      tensor: what it quantises.
      initial_min: contrib's: 0 behind an activation, else -6.
      pattern: what it was recognised as, the last part of its name.
      bits: its width.
      twins: other tensors with the same value; their readers read this fake quant too.
      clone: scope of the clone it is in when that takes the first clone's range, `clone_1/`; else ''.
      parts: of it, what splits give that have an output which nobody reads.
    """

    name: str
    tensor: object
    initial_min: float
    pattern: str
    bits: int
    twins: Tuple[object, ...] = ()
    clone: str = ""
    parts: Tuple[object, ...] = ()


class Plan(NamedTuple):
    """Everything that the passes will do, in order, and what stays float with its reason.

    Attributes:
      folds: layers with a batch norm to fold.
      norms: batch norms behind no layer, which become layers in an eval graph.
      weights, activations: the fake quants.
      stays_float: op with weights, or between layers -> reason.
      excluded: names of those of them that a rule keeps float.
      clones: scopes of the clones but the first, `clone_1/` and so on.
      read_on: names of the folded layers whose copies in an eval graph read what the layers read before
        anything was folded.
      negatives: Neg ops between layers, which become products in an eval graph.
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

    def of_first_clone(self) -> "Plan":
        """What is done to the first clone; all there is without clones."""
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
