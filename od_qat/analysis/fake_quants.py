"""The fake quants of a frozen graph, and the same graph without some of them."""

from typing import Any, Collection, Dict, List, NamedTuple, Optional, Set, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.graph.index import op_name
from od_qat.rewrite import policy


class FakeQuant(NamedTuple):
    """A fake quant with a constant range.

    Attributes:
      name: of its op.
      source: name of the op that it reads.
      low, high: the range, float64 [1], or one of each for each channel of the last dimension.
      steps: into how many the range is divided, 255 for 8 bits, 254 with a narrow range.
      of_weights: whether what it reads is computed from constants alone.
    """

    name: str
    source: str
    low: np.ndarray
    high: np.ndarray
    steps: int
    of_weights: bool

    @property
    def scale(self) -> np.ndarray:
        """The size of a step, float64 [1] or [channels]."""
        return (self.high - self.low) / self.steps


def by_name(graph_def: Any) -> Dict[str, Any]:
    """Name -> node."""
    return {node.name: node for node in graph_def.node}


def find(graph_def: Any) -> List[FakeQuant]:
    """The fake quants of a frozen graph, in its order. Those without a constant range are left out."""
    nodes = by_name(graph_def)
    computed = _computed(graph_def)
    found = []
    for node in graph_def.node:
        if node.op not in policy.FAKE_QUANT:
            continue
        limits = _limits(node, nodes)
        if limits is None:
            continue
        bits = node.attr["num_bits"].i or 8
        source = op_name(node.input[0])
        found.append(
            FakeQuant(
                node.name,
                source,
                limits[0],
                limits[1],
                2**bits - 1 - bool(node.attr["narrow_range"].b),
                source not in computed,
            )
        )
    return found


def _limits(node: Any, nodes: Dict[str, Any]) -> Optional[Tuple[np.ndarray, np.ndarray]]:
    if node.op == "FakeQuantWithMinMaxArgs":
        return np.array([node.attr["min"].f], np.float64), np.array([node.attr["max"].f], np.float64)
    values = []
    for name in node.input[1:3]:
        source = nodes[op_name(name)]
        while source.op == "Identity":
            source = nodes[op_name(source.input[0])]
        if source.op != "Const":
            return None
        values.append(tf.make_ndarray(source.attr["value"].tensor).reshape(-1).astype(np.float64))
    return values[0], values[1]


def _computed(graph_def: Any) -> Set[str]:
    """The names of the ops that lead from a placeholder."""
    consumers: Dict[str, List[str]] = {}
    for node in graph_def.node:
        for source in node.input:
            consumers.setdefault(op_name(source), []).append(node.name)
    pending = [node.name for node in graph_def.node if node.op == "Placeholder"]
    found = set(pending)
    while pending:
        for name in consumers.get(pending.pop(), ()):
            if name not in found:
                found.add(name)
                pending.append(name)
    return found


def without(graph_def: Any, names: Collection[str]) -> Any:
    """A copy of a graph in which some fake quants hand on what they read."""
    changed = tf.GraphDef.FromString(graph_def.SerializeToString())
    for node in changed.node:
        if node.name in names and node.op in policy.FAKE_QUANT:
            node.op = "Identity"
            del node.input[1:]
            node.attr.clear()
            node.attr["T"].type = tf.float32.as_datatype_enum
    return changed
