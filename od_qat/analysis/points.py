"""The places of a graph at which two models are compared: where a fake quant rounds what layers compute."""

from typing import Any, Dict, List, NamedTuple, Optional, Set, Tuple

from od_qat.analysis import fake_quants
from od_qat.analysis.fake_quants import FakeQuant, by_name
from od_qat.graph.index import op_name
from od_qat.rewrite import policy

# What these make depends on the size of a tensor, and not on its numbers.
_OF_SIZES = frozenset(["Rank", "Shape", "ShapeN", "Size"])


class Point(NamedTuple):
    """A fake quant of an activation.

    Attributes:
      fake_quant: it.
      layer: name of the layer whose output it rounds; None if it is behind another op, as an addition.
      weights: the fake quants of that layer's weights.
      before: names of the fake quants of activations that it is computed from, without others between.
      types: of the ops between those and it.
    """

    fake_quant: FakeQuant
    layer: Optional[str]
    weights: Tuple[FakeQuant, ...]
    before: Tuple[str, ...]
    types: Tuple[str, ...]

    @property
    def name(self) -> str:
        """The name of the fake quant's scope, as the rewrite's report has it."""
        return scope_of(self.fake_quant.name)


def scope_of(fake_quant: str) -> str:
    """`.../act_quant` of `.../act_quant/FakeQuantWithMinMaxVars`."""
    return fake_quant.rpartition("/")[0] or fake_quant


def find(graph_def: Any) -> List[Point]:
    """The points of a frozen graph, each behind those that it is computed from."""
    nodes = by_name(graph_def)
    quants = {one.name: one for one in fake_quants.find(graph_def)}
    found: Dict[str, Point] = {
        name: _point(one, nodes, quants) for name, one in quants.items() if not one.of_weights
    }
    ordered: List[Point] = []
    done: Set[str] = set()
    for name in found:
        pending = [name]
        while pending:
            missing = [one for one in found[pending[-1]].before if one not in done]
            if missing:
                pending.extend(missing)
                continue
            last = pending.pop()
            if last not in done:
                done.add(last)
                ordered.append(found[last])
    return ordered


def _point(quant: FakeQuant, nodes: Dict[str, Any], quants: Dict[str, FakeQuant]) -> Point:
    before: List[str] = []
    weights: List[FakeQuant] = []
    types: List[str] = []
    layers: List[str] = []
    pending: List[str] = [quant.source]
    seen: Set[str] = set()
    while pending:
        name = pending.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        if name in quants:
            (weights if quants[name].of_weights else before).append(
                quants[name] if quants[name].of_weights else name
            )
            continue
        node = nodes[name]
        types.append(node.op)
        if node.op in policy.WEIGHTED:
            layers.append(name)
        if node.op in _OF_SIZES:
            continue
        pending.extend(op_name(source) for source in node.input)
    return Point(
        quant, layers[0] if layers else None, tuple(weights), tuple(sorted(before)), tuple(sorted(set(types)))
    )
