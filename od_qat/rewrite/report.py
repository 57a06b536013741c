"""What a rewrite did: for a line, for a screen and as JSON (docs/architecture.md has the layout)."""

from collections import Counter
from typing import Any, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

from od_qat.config import QatConfig
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy
from od_qat.rewrite.parts import BatchNorm, Layer
from od_qat.rewrite.plan import Plan

FORMAT = "od_qat/rewrite/1"

# A table fits a screen, whatever the graph's size: at most this many rows of a kind, lines this wide.
_ROWS = 12
_LINE = 110
# What may stand between a layer's op and a tensor that is quantised with it.
_OF_A_LAYER = (
    policy.ACTIVATION | policy.BIAS_ADD | policy.BATCH_NORM | frozenset(["BatchToSpaceND"]) | policy.WEIGHTED
)
# What an unfused batch norm is called in a pattern.
UNFUSED = "batch norm (unfused)"
_LAYER_PATTERNS = frozenset(["act_quant", "conv_quant", "add_quant", "post_activation_bypass_quant"])


class LayerEntry(NamedTuple):
    """One layer with what is quantised of it.

    Attributes:
      op: name of its op with weights.
      type: of that op.
      weights: name of the fake quant on its weights, None where they stay float.
      activations: names of the fake quants on its output, in the order they were planned.
      pattern: the op types that it was matched as, first to last.
    """

    op: str
    type: str
    weights: Optional[str]
    activations: Tuple[str, ...]
    pattern: str


class RewriteReport(NamedTuple):
    """What a rewrite did.

    Attributes:
      weights, activations: names of the fake quants on weights and on activations.
      patterns: how many activations each pattern gave (act_quant, add_quant, concat_quant, ...).
      folded: layers whose batch norm was folded.
      stays_float: ops with weights or between layers that stay float, with the reason.
      ops_before, ops_after: size of the graph.
      ops_added: how many of each op type the rewrite put in; it takes none out.
      layers: each quantised layer, in the order they were matched.
      ema_decay: of the activation ranges' moving average, for who reads its helper variables.
      excluded: names of those of `stays_float` that a rule keeps float.
    """

    weights: Tuple[str, ...]
    activations: Tuple[str, ...]
    patterns: Dict[str, int]
    folded: int
    stays_float: Dict[str, str]
    ops_before: int
    ops_after: int
    layers: Tuple[LayerEntry, ...] = ()
    ema_decay: float = QatConfig().ema_decay
    ops_added: Dict[str, int] = {}
    excluded: FrozenSet[str] = frozenset()

    @classmethod
    def from_plan(
        cls, plan: Plan, index: GraphIndex, added: Iterable[object], config: QatConfig
    ) -> "RewriteReport":
        """What a plan has done.

        Of several clones the first counts: the others have its fake quants once more.

        Args:
          plan: what was planned.
          index: the graph as it was before.
          added: the ops that are new in it.
          config: what was asked for.
        """
        plan = plan.of_first_clone()
        ops_added = Counter(operation.type for operation in added)
        ops_before = len(index.operations)
        return cls(
            weights=tuple(weight.name for weight in plan.weights),
            activations=tuple(activation.name for activation in plan.activations),
            patterns=dict(Counter(activation.pattern for activation in plan.activations)),
            folded=len(plan.folds),
            stays_float=dict(plan.stays_float),
            ops_before=ops_before,
            ops_after=ops_before + sum(ops_added.values()),
            layers=_layers(plan, index),
            ema_decay=config.ema_decay,
            ops_added=dict(ops_added),
            excluded=plan.excluded,
        )

    def as_dict(self) -> Dict[str, Any]:
        """For JSON, in a stable order."""
        return {
            "format": FORMAT,
            "summary": str(self),
            "ops_before": self.ops_before,
            "ops_after": self.ops_after,
            "ops_added": {name: self.ops_added[name] for name in sorted(self.ops_added)},
            "folded": self.folded,
            "patterns": {name: self.patterns[name] for name in sorted(self.patterns)},
            "layers": [dict(layer._asdict(), activations=list(layer.activations)) for layer in self.layers],
            "weights": list(self.weights),
            "activations": list(self.activations),
            "stays_float": dict(self.stays_float),
        }

    def table(self) -> str:
        """A screenful: layers by pattern, activations by kind, and what stays float with its reason."""
        groups: Dict[str, List[LayerEntry]] = {}
        for layer in self.layers:
            groups.setdefault(layer.pattern, []).append(layer)
        lines = [str(self), "", "layers  weights  outputs  matched as, and the first of them"]
        ordered = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
        for pattern, layers in ordered[:_ROWS]:
            lines.append(
                "{:6}  {:7}  {:7}  {}: {}".format(
                    len(layers),
                    sum(layer.weights is not None for layer in layers),
                    sum(len(layer.activations) for layer in layers),
                    pattern,
                    layers[0].op,
                )
            )
        if len(ordered) > _ROWS:
            lines.append("  and {} more patterns".format(len(ordered) - _ROWS))
        kinds = sorted(self.patterns.items(), key=lambda item: (-item[1], item[0]))
        lines.append("")
        lines.append(
            "outputs by kind: "
            + (", ".join("{} {}".format(name, count) for name, count in kinds[:_ROWS]) or "none")
            + (" and {} more kinds".format(len(kinds) - _ROWS) if len(kinds) > _ROWS else "")
        )
        lines.append("ops: {} before, {} after".format(self.ops_before, self.ops_after))
        if self.stays_float:
            lines.append("stay float:")
            for name, reason in list(self.stays_float.items())[:_ROWS]:
                lines.append("  {}: {}".format(name, reason))
            if len(self.stays_float) > _ROWS:
                lines.append("  and {} more".format(len(self.stays_float) - _ROWS))
        return "\n".join(line if len(line) <= _LINE else line[: _LINE - 3] + "..." for line in lines)

    def __str__(self) -> str:
        text = "quantised {} weights and {} activations, folded {} batch norms".format(
            len(self.weights), len(self.activations), self.folded
        )
        if self.stays_float:
            text += "; {} ops stay float".format(len(self.stays_float))
        return text


def _layers(plan: Plan, index: GraphIndex) -> Tuple[LayerEntry, ...]:
    several = _norms_of_several_ops(plan)
    ops = {weight.layer.op.name: weight.layer.op for weight in plan.weights}
    weights = {weight.layer.op.name: weight.name for weight in plan.weights}
    shared = {weight.layer.weights.name: weight.name for weight in plan.weights}
    chains = {weight.layer.op.name: _up_to_the_norm(weight.layer) for weight in plan.weights}
    activations: Dict[str, List[str]] = {}
    for activation in plan.activations:
        if activation.pattern not in _LAYER_PATTERNS:
            continue
        chain = _chain_to(index, activation.tensor, several)
        if chain is None:
            continue
        layer = chain[0]
        ops.setdefault(layer.name, layer)
        # A kernel that several layers read is quantised once.
        weights.setdefault(layer.name, shared.get(index.inputs(layer)[1].name))
        activations.setdefault(layer.name, []).append(activation.name)
        if len(chain) > len(chains.get(layer.name, ())):
            chains[layer.name] = chain
    return tuple(
        LayerEntry(
            name,
            operation.type,
            weights[name],
            tuple(activations.get(name, ())),
            " -> ".join(_called(part, several) for part in chains[name]),
        )
        for name, operation in ops.items()
    )


def _norms_of_several_ops(plan: Plan) -> Dict[str, BatchNorm]:
    """By the name of their last op. Each is one step of a chain, from its data to its last op."""
    norms = [layer.batch_norm for layer in plan.folds]
    return {norm.last.name: norm for norm in norms if norm.unfused or norm.reshape is not None}


def _called(operation, several: Dict[str, BatchNorm]) -> str:
    norm = several.get(operation.name)
    if norm is None:
        return operation.type
    return UNFUSED if norm.unfused else norm.op.type


def _up_to_the_norm(layer: Layer) -> Tuple[object, ...]:
    parts = (layer.op, layer.batch_to_space, layer.batch_norm and layer.batch_norm.last)
    return tuple(part for part in parts if part is not None)


def _chain_to(index: GraphIndex, tensor, several: Dict[str, BatchNorm]) -> Optional[Tuple[object, ...]]:
    """The ops from a layer to a tensor of it, the layer first; None where no layer leads there.

    A residual add is where two layers meet: it belongs to the nearer one, and of two equally near to the
    later.
    """
    level, seen = [(tensor.op,)], {tensor.op.name}
    while level:
        found = [chain for chain in level if chain[0].type in policy.WEIGHTED]
        if found:
            return max(found, key=lambda chain: index.position(chain[0]))
        following = []
        for chain in level:
            norm = several.get(chain[0].name)
            for candidate in index.inputs(chain[0]) if norm is None else (norm.data,):
                known = candidate.op.type in _OF_A_LAYER or candidate.op.name in several
                if known and candidate.op.name not in seen:
                    seen.add(candidate.op.name)
                    following.append((candidate.op,) + chain)
        level = following
    return None
