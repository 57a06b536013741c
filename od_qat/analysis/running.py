"""Runs a graph point by point, and sums up what is found at each."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from od_qat.analysis import errors, points
from od_qat.analysis.errors import Distribution, Error, Errors
from od_qat.analysis.fake_quants import FakeQuant
from od_qat.analysis.points import Point
from od_qat.analysis.results import LayerErrors, OfPoint, OfWeights
from od_qat.compat import tf
from od_qat.errors import DataError, ExportError


class Session(object):
    """A frozen graph that is run point by point.

    Args:
      graph_def: it.
      input_name: name of the tensor that takes an image.
    """

    def __init__(self, graph_def: Any, input_name: str) -> None:
        self._graph = tf.Graph()
        with self._graph.as_default():
            tf.import_graph_def(graph_def, name="")
        self._session = tf.Session(graph=self._graph)
        self._input = input_name

    def run(
        self, names: Sequence[str], value: np.ndarray, fed: Optional[Dict[str, np.ndarray]] = None
    ) -> List[np.ndarray]:
        """The first outputs of some ops for an image; `fed` has values of other ops, by their names."""
        feed = {self._input: value}
        feed.update({name + ":0": array for name, array in (fed or {}).items()})
        return self._session.run([name + ":0" for name in names], feed)

    def constants(self, names: Sequence[str]) -> List[np.ndarray]:
        """The first outputs of some ops that no image is needed for."""
        return self._session.run([name + ":0" for name in names])

    def close(self) -> None:
        """Frees it."""
        self._session.close()


def require_points(graph_def: Any, where: str) -> List[Point]:
    """The points of a graph. Raises ExportError if there are none."""
    found = points.find(graph_def)
    if not found:
        raise ExportError(
            "the graph has no fake quants",
            where=where,
            found="{} ops".format(len(graph_def.node)),
            fix="give a QAT model: its frozen_eval_graph.pb, or its .tflite with tflite_graph.pb beside it",
        )
    return [point for point in found if point.fake_quant.low.size == 1]


class Sums(object):
    """What is measured at each point, summed up over the images."""

    def __init__(self, found: Sequence[Point]) -> None:
        self._points = list(found)
        self._own = {point.name: Errors() for point in found}
        self._piled = {point.name: Errors() for point in found}
        self._unquantized: Dict[str, Errors] = {}
        self._where = {
            point.name: Distribution(float(point.fake_quant.low[0]), float(point.fake_quant.high[0]))
            for point in found
        }
        self._first, self.images = found[0].name if found else "", 0

    def add(
        self,
        point: Point,
        wanted: np.ndarray,
        alone: np.ndarray,
        piled: np.ndarray,
        unquantized: Optional[np.ndarray] = None,
    ) -> None:
        """Adds an image: what the reference has at a point, and what stands for each of its errors."""
        self.images += point.name == self._first
        self._where[point.name].add(wanted)
        self._own[point.name].add(alone, wanted)
        self._piled[point.name].add(piled, wanted)
        if unquantized is not None:
            self._unquantized.setdefault(point.name, Errors()).add(unquantized, wanted)

    def result(
        self,
        weights: Dict[str, OfWeights],
        where: str,
        weights_only: Optional[Error] = None,
        activations_only: Optional[Error] = None,
        both: Optional[Error] = None,
        unmatched: Tuple[str, ...] = (),
    ) -> LayerErrors:
        """All of it. Raises DataError if no image was added."""
        if not self.images:
            raise DataError("there is no image to run", where=where, fix="give records or pictures")
        rows = []
        for point in self._points:
            quant, values = point.fake_quant, self._where[point.name]
            scale = float(quant.scale[0])
            rows.append(
                OfPoint(
                    point.name,
                    point.layer,
                    point.types,
                    float(quant.low[0]),
                    float(quant.high[0]),
                    values.extent,
                    values.clipped,
                    (values.counts, [float(edge) for edge in values.edges]),
                    self._own[point.name].result(scale),
                    self._piled[point.name].result(scale),
                    weights.get(point.name),
                    self._unquantized[point.name].result(scale) if self._unquantized else None,
                )
            )
        return LayerErrors(tuple(rows), weights_only, activations_only, both, self.images, unmatched)


def of_weights(session: Session, found: Sequence[Point]) -> Dict[str, OfWeights]:
    """Name of a point -> its layer's weights, of the graph with all fake quants."""
    wanted = {point.name: point.weights[0] for point in found if point.weights}
    return {
        name: _one_of_weights(one, *session.constants([one.source, one.name])) for name, one in wanted.items()
    }


def _one_of_weights(quant: FakeQuant, value: np.ndarray, rounded: np.ndarray) -> OfWeights:
    scale = float(quant.scale.mean())
    beyond = (value < quant.low - quant.scale / 2) | (value > quant.high + quant.scale / 2)
    return OfWeights(
        points.scope_of(quant.name),
        float(quant.low.min()),
        float(quant.high.max()),
        int(quant.low.size),
        errors.of_arrays(rounded, value, scale),
        float(np.mean(beyond)),
    )
