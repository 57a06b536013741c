"""Measures a .tflite against the graph with fake quants that it was made from, point by point."""

from typing import Any, Callable, Collection, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from od_qat.analysis import points, running
from od_qat.analysis.points import Point
from od_qat.analysis.results import LayerErrors
from od_qat.compat import tf
from od_qat.errors import DataError, ExportError


class Matched(NamedTuple):
    """The tensors of a .tflite that hold what the points of its graph hold.

    Attributes:
      tensors: name of a fake quant -> index of a tensor.
      unmatched: points without one.
    """

    tensors: Dict[str, int]
    unmatched: Tuple[Point, ...]


# Scales of the converter and of the graph differ by rounding only.
_SAME_SCALE = 1e-3
# Tensors whose scale was changed are recognised by their values alone.
_ALIKE = 0.5


def match(
    found: Sequence[Point], expected: Dict[str, np.ndarray], tensors: Sequence[Tuple[int, float, np.ndarray]]
) -> Matched:
    """Finds the tensors of a .tflite for the points of its graph, by scale and by values.

    Args:
      found: the points.
      expected: name of a fake quant -> its value in the graph for an image.
      tensors: (index, scale, real value for the same image) of each quantized tensor that is computed.
    """
    taken: Dict[str, int] = {}
    for by_scale in (True, False):
        for point in found:
            name, scale = point.fake_quant.name, float(point.fake_quant.scale[0])
            if name in taken:
                continue
            value = expected[name]
            best, index = _ALIKE, None
            for candidate, other_scale, other in tensors:
                same = abs(other_scale - scale) <= _SAME_SCALE * scale
                if other.size != value.size or same != by_scale or candidate in taken.values():
                    continue
                alike = _correlation(other, value)
                if alike > best:
                    best, index = alike, candidate
            if index is not None:
                taken[name] = index
    return Matched(taken, tuple(point for point in found if point.fake_quant.name not in taken))


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    a, b = (np.asarray(one, np.float64).reshape(-1) for one in (a, b))
    norm = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / norm if norm else float(not a.any() and not b.any())


def measure(
    run: Callable[[np.ndarray], Sequence[Tuple[int, float, np.ndarray]]],
    graph_def: Any,
    input_name: str,
    values: Iterable[Tuple[np.ndarray, np.ndarray]],
    where: str,
) -> LayerErrors:
    """Measures a .tflite against the graph with fake quants that it was made from.

    Here the own error of a point is that of the .tflite's op: the graph gets the .tflite's tensors in front
    of it, and computes what the .tflite should have made of them.

    Args:
      run: takes an image as the .tflite does, and returns (index, scale, real value) of each quantized
        tensor that is computed.
      graph_def: the frozen GraphDef, without ops that TensorFlow does not have.
      input_name: name of its tensor that takes an image.
      values: for each image what the .tflite takes, and what the graph takes.
      where: the file, for messages.

    Raises:
      ExportError: if the graph has no fake quants, or no tensor of the .tflite is one of its points'.
      DataError: if there is no image.
    """
    found = running.require_points(graph_def, where)
    names = [point.fake_quant.name for point in found]
    session = running.Session(graph_def, input_name)
    sums: Optional[running.Sums] = None
    matched: Optional[Matched] = None
    known: List[Point] = []
    before: Dict[str, List[str]] = {}
    try:
        for given, value in values:
            wanted = dict(zip(names, session.run(names, value)))
            tensors = run(given)
            if sums is None or matched is None:
                matched = match(found, wanted, tensors)
                known = [point for point in found if point.fake_quant.name in matched.tensors]
                before = {point.name: _before(point, found, matched.tensors) for point in known}
                sums = running.Sums(known)
                if not known:
                    raise ExportError(
                        "the .tflite was not made from this graph",
                        where=where,
                        found="no tensor with the scale and the values of one of {} ranges".format(
                            len(found)
                        ),
                        fix="give the tflite_graph.pb that export-tflite wrote beside it",
                    )
            by_index = {index: real for index, _, real in tensors}
            here = {
                name: by_index[index].reshape(wanted[name].shape) for name, index in matched.tensors.items()
            }
            for point in known:
                name = point.fake_quant.name
                fed = {one: here[one] for one in before[point.name]}
                (should_be,) = session.run([name], value, fed)
                sums.add(point, wanted[name], here[name] - should_be + wanted[name], here[name])
        weights = running.of_weights(session, found)
    finally:
        session.close()
    if sums is None or matched is None:
        raise DataError("there is no image to run", where=where, fix="give records or pictures")
    return sums.result(
        weights,
        where,
        unmatched=tuple(point.name for point in matched.unmatched),
    )


def _before(point: Point, found: Sequence[Point], here: Collection[str]) -> List[str]:
    """The nearest points before one that the .tflite has."""
    by_name = {one.fake_quant.name: one for one in found}
    pending, nearest, seen = list(point.before), [], set()
    while pending:
        name = pending.pop()
        if name in seen:
            continue
        seen.add(name)
        if name in here:
            nearest.append(name)
        elif name in by_name:
            pending.extend(by_name[name].before)
    return nearest


def without_post_processing(graph_def: Any) -> Any:
    """The part of a graph that TensorFlow can run: what leads to its fake quants."""
    ends = [point.fake_quant.name for point in points.find(graph_def)]
    return tf.graph_util.extract_sub_graph(graph_def, ends) if ends else graph_def
