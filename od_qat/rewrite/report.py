"""Reports what a rewrite did, as one line, as a table and as JSON (docs/architecture.md has its layout)."""

from collections import Counter
from typing import Any, Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

from od_qat.config import QatConfig
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy
from od_qat.rewrite.parts import BatchNorm, Layer
from od_qat.rewrite.plan import Plan
from od_qat.rewrite.tensors import variable_of

FORMAT = "od_qat/rewrite/1"

# The table fits on a screen for every graph: at most this many rows of a kind, and lines of this width.
_ROWS = 12
_LINE = 110
# The ops that may be between a layer's op and a tensor that is quantized with it.
_OF_A_LAYER = (
    policy.ACTIVATION | policy.BIAS_ADD | policy.BATCH_NORM | frozenset(["BatchToSpaceND"]) | policy.WEIGHTED
)
# The name of an unfused batch norm in a pattern.
UNFUSED = "batch norm (unfused)"
_LAYER_PATTERNS = frozenset(["act_quant", "conv_quant", "add_quant", "post_activation_bypass_quant"])


class LayerEntry(NamedTuple):
    """One layer and its fake quants.

    Attributes:
      op: name of its op with weights.
      type: type of that op.
      weights: name of the fake quant on its weights; None if they stay float.
      activations: names of the fake quants on its output, in the order in which they were planned.
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
      patterns: number of fake quants on activations by kind (act_quant, add_quant, concat_quant, ...).
      folded: number of layers whose batch norm was folded.
      stays_float: name of an op with weights or between layers that stays float -> the reason.
      ops_before, ops_after: number of ops in the graph.
      ops_added: number of ops that the rewrite added, by type; it removes none.
      layers: the quantized layers, in the order in which they were matched.
      ema_decay: decay of the moving average of activation ranges, for readers of its helper variables.
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
        """Makes the report of a plan that was carried out.

        Of several clones only the first counts, as the others have the same fake quants.

        Args:
          plan: the plan.
          index: the graph before the rewrite.
          added: the ops that the rewrite added.
          config: the options of the rewrite.
        """
        plan = plan.of_first_clone()
        ops_added = Counter(operation.type for operation in added)
        ops_before = index.size
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
        """Returns the report for JSON, in a stable order."""
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
        """Returns a table: layers by pattern, activations by kind, and what stays float with the reason."""
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
        text = "quantized {} weights and {} activations, folded {} batch norms".format(
            len(self.weights), len(self.activations), self.folded
        )
        if self.stays_float:
            text += "; {} ops stay float".format(len(self.stays_float))
        return text


def _layers(plan: Plan, index: GraphIndex) -> Tuple[LayerEntry, ...]:
    several = _norms_of_several_ops(plan)
    ops = {weight.layer.op.name: weight.layer.op for weight in plan.weights}
    weights = {weight.layer.op.name: weight.name for weight in plan.weights}
    shared = {weight.layer.kernel: weight.name for weight in plan.weights}
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
        # Weights that several layers share are quantized once.
        weights.setdefault(layer.name, _shared_by(index, layer, shared))
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


def _shared_by(index: GraphIndex, layer, shared: Dict[str, str]) -> Optional[str]:
    """Returns the name of the fake quant on an op's weights; `shared` has it by the kernel of a layer."""
    weights = index.inputs(layer)[1]
    variable = variable_of(index, weights)
    return shared.get(weights.name if variable is None else variable.name, shared.get(weights.name))


def _norms_of_several_ops(plan: Plan) -> Dict[str, BatchNorm]:
    """Returns batch norms of several ops by the name of their last op. Each is one step of a chain."""
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
    """Returns the ops from a layer to a tensor, the layer's op first; None if there is no layer.

    A residual add has two layers in front. It belongs to the nearer one, or if both are equally near, to the
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
