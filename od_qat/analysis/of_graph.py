"""Measures a graph with fake quants against the float graph, point by point."""

from typing import Any, Dict, Iterable, List, Optional, Sequence

import numpy as np

from od_qat.analysis import fake_quants, running
from od_qat.analysis.errors import Errors
from od_qat.analysis.points import Point
from od_qat.analysis.results import LayerErrors
from od_qat.errors import DataError

# The graphs that are run: the float one, that with all fake quants, with those of weights or of activations
# alone, and without any, where the float one is another.
_REFERENCE, _ALL, _WEIGHTS, _ACTIVATIONS, _NONE = range(5)


def measure(
    graph_def: Any,
    input_name: str,
    values: Iterable[np.ndarray],
    where: str,
    reference: Optional[Any] = None,
) -> LayerErrors:
    """Measures a graph with fake quants against a float one.

    Args:
      graph_def: a frozen GraphDef with fake quants.
      input_name: name of the tensor that takes an image.
      values: of it, one for each image.
      where: the file, for messages.
      reference: a frozen GraphDef with the same ops; by default the graph itself without its fake quants.

    Raises:
      ExportError: if the graph has no fake quants.
      DataError: if there is no image.
    """
    found = running.require_points(graph_def, where)
    quants = fake_quants.find(graph_def)
    every = [one.name for one in quants]
    of_weights = [one.name for one in quants if one.of_weights]
    of_activations = [one.name for one in quants if not one.of_weights]
    graphs = {
        _REFERENCE: fake_quants.without(graph_def if reference is None else reference, every),
        _ALL: graph_def,
        _WEIGHTS: fake_quants.without(graph_def, of_activations),
        _ACTIVATIONS: fake_quants.without(graph_def, of_weights),
    }
    if reference is not None:
        graphs[_NONE] = fake_quants.without(graph_def, every)
    names = _names_in(graphs[_REFERENCE], found)
    sessions = {kind: running.Session(graph, input_name) for kind, graph in graphs.items()}
    sums = running.Sums(found)
    last = _last(found)
    at_end = {kind: {name: Errors() for name in last} for kind in (_WEIGHTS, _ACTIVATIONS, _ALL)}
    try:
        for value in values:
            wanted = dict(zip(names, sessions[_REFERENCE].run(list(names.values()), value)))
            piled = dict(zip(names, sessions[_ALL].run(list(names), value)))
            for point in found:
                name = point.fake_quant.name
                fed = {one: wanted[one] for one in point.before if one in wanted}
                alone = {
                    kind: sessions[kind].run([name], value, fed)[0]
                    for kind in (_ALL, _NONE)
                    if kind in sessions
                }
                sums.add(point, wanted[name], alone[_ALL], piled[name], alone.get(_NONE))
            ends = {_ALL: piled}
            for kind in (_WEIGHTS, _ACTIVATIONS):
                ends[kind] = dict(zip(last, sessions[kind].run(last, value)))
            for kind, sums_of in at_end.items():
                for name in last:
                    sums_of[name].add(ends[kind][name], wanted[name])
        weights = running.of_weights(sessions[_ALL], found)
    finally:
        for session in sessions.values():
            session.close()
    # (A sum over boxes and classes would hide the smaller of them.)
    worst = [
        min((one.result(None) for one in sums_of.values()), key=lambda error: error.sqnr_db)
        for sums_of in at_end.values()
    ]
    return sums.result(weights, where, *worst)


def _names_in(base: Any, found: Sequence[Point]) -> Dict[str, str]:
    """Name of a fake quant -> name of the op of the reference that computes what it rounds."""
    there = {node.name for node in base.node}
    names = {}
    for point in found:
        for name in (point.fake_quant.name, point.fake_quant.source):
            if name in there:
                names[point.fake_quant.name] = name
                break
    missing = [point.name for point in found if point.fake_quant.name not in names]
    if missing:
        raise DataError(
            "the reference is another network",
            found="{} of {} points are not in it, {} first".format(len(missing), len(found), missing[0]),
            fix="give the float graph of the same config, or none",
        )
    return names


def _last(found: Sequence[Point]) -> List[str]:
    """The fake quants that no other one reads."""
    read = {name for point in found for name in point.before}
    return [point.fake_quant.name for point in found if point.fake_quant.name not in read]
