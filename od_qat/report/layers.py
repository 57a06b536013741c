"""Runs `od-qat layers` on a model's file, and shows what it found as text and as JSON."""

import dataclasses
import os
import textwrap
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from od_qat import compat
from od_qat.analysis import advice, of_graph, of_tflite
from od_qat.analysis.advice import Advice
from od_qat.analysis.results import LayerErrors, OfPoint
from od_qat.errors import ConfigError, ExportError
from od_qat.model_files import interpreter, nodes, tflite_graph
from od_qat.model_files.description import ModelDescription, describe_model
from od_qat.report import table
from od_qat.scoring import images, runners

GRAPH_BESIDE = "tflite_graph.pb"


@dataclasses.dataclass(frozen=True)
class Layers:
    """What was measured of a model.

    Attributes:
      path: of it.
      reference: what it was compared with, in words.
      errors: the figures.
      advice: what to try.
    """

    path: str
    reference: str
    errors: LayerErrors
    advice: Tuple[Advice, ...]


def measure(path: str, pictures: Iterable[np.ndarray], reference: Optional[str] = None) -> Layers:
    """Measures each layer of a model.

    Args:
      path: a frozen graph with fake quants, which is compared with itself without them; or a .tflite, which
        is compared with the graph with fake quants that it was made from.
      pictures: uint8 [height, width, 3] RGB, as photographs are.
      reference: a float graph to compare a graph with; or the graph of a .tflite, by default tflite_graph.pb
        beside it.

    Raises:
      ConfigError: if there is no such file.
      ExportError, DataError: if it has no fake quants, or the other is another network.
    """
    compat.quiet_logging()
    if path.endswith(".tflite"):
        beside = reference or graph_beside(path)
        if not os.path.isfile(beside):
            raise ConfigError(
                "a .tflite is compared with the graph that it was made from",
                where=path,
                found="no {}".format(beside),
                fix="name the graph with --reference, or export the model again with od-qat export-tflite",
            )
        found = _of_tflite(path, beside, pictures)
        return Layers(path, "its graph with fake quants, " + beside, found, tuple(advice.of_tflite(found)))
    found = _of_graph(path, reference, pictures)
    said = "the float graph " + reference if reference else "itself without fake quants"
    return Layers(path, said, found, tuple(advice.of_graph(found)))


def graph_beside(path: str) -> str:
    """The path of the graph that a .tflite was made from, where the export wrote both."""
    return os.path.join(os.path.dirname(path), GRAPH_BESIDE)


def _of_graph(path: str, reference: Optional[str], pictures: Iterable[np.ndarray]) -> LayerErrors:
    description = describe_model(path)
    runner = runners.open_runner(description)
    try:
        values = (runner.prepare(picture) for picture in pictures)
        other = None if reference is None else nodes.read_graph(reference)
        return of_graph.measure(nodes.read_graph(path), str(description.input_name), values, path, other)
    finally:
        runner.close()


def _of_tflite(path: str, beside: str, pictures: Iterable[np.ndarray]) -> LayerErrors:
    network = _Tflite(path)
    graph_def = of_tflite.without_post_processing(nodes.read_graph(beside))
    inputs = [node.name for node in graph_def.node if node.op == "Placeholder"]
    if len(inputs) != 1:
        raise ExportError(
            "the graph does not take one image", where=beside, found="{} inputs".format(len(inputs))
        )
    taken = [dim.size for dim in _node(graph_def, inputs[0]).attr["shape"].shape.dim]
    if taken and not _fits(taken, network.shape):
        raise ExportError(
            "the .tflite was not made from this graph",
            where=beside,
            found="an image {}, where the .tflite takes {}".format(taken, network.shape),
            fix="give the tflite_graph.pb that export-tflite wrote beside the .tflite",
        )
    values = network.values(pictures, describe_model(path))
    return of_tflite.measure(network.run, graph_def, inputs[0] + ":0", values, beside)


def _node(graph_def: Any, name: str) -> Any:
    return next(node for node in graph_def.node if node.name == name)


def _fits(sizes: Sequence[int], shape: Sequence[int]) -> bool:
    return len(sizes) == len(shape) and all(one in (-1, 0, other) for one, other in zip(sizes, shape))


class _Tflite(object):
    """A .tflite whose every tensor can be read after it has run."""

    def __init__(self, path: str) -> None:
        graph = tflite_graph.read(path)
        # (Weights are constants; float tensors have no steps.)
        self._tensors = [
            tensor
            for tensor in graph.tensors
            if tensor.data is None and len(tensor.scales) == 1 and tensor.dtype in ("int8", "uint8")
        ]
        with open(path, "rb") as stream:
            self._opened = interpreter.without_delegates(
                stream.read(), experimental_preserve_all_tensors=True
            )
        self._opened.allocate_tensors()
        (self._input,) = self._opened.get_input_details()

    @property
    def shape(self) -> List[int]:
        """Of its input."""
        return [int(size) for size in self._input["shape"]]

    def run(self, value: np.ndarray) -> List[Tuple[int, float, np.ndarray]]:
        """(index, scale, real value) of each quantized tensor that is computed."""
        self._opened.set_tensor(self._input["index"], value)
        self._opened.invoke()
        return [
            (
                tensor.index,
                float(tensor.scales[0]),
                images.dequantize(
                    self._opened.get_tensor(tensor.index), float(tensor.scales[0]), int(tensor.zero_points[0])
                ),
            )
            for tensor in self._tensors
        ]

    def values(
        self, pictures: Iterable[np.ndarray], description: ModelDescription
    ) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
        """For each picture what the .tflite takes, and the real numbers that this stands for."""
        runner = runners.open_runner(description)
        scale, zero_point = self._input["quantization"]
        for picture in pictures:
            value = runner.prepare(picture)
            yield value, images.dequantize(value, float(scale), int(zero_point))
        runner.close()


# As text and as JSON.

LEGEND = (
    "own: what the layer adds, with inputs of the reference; piled up: what arrives there. In steps of which "
    "a range has 255 (0.29 is rounding alone), and as a signal-to-noise ratio."
)
_HEADERS = ("layer", "range", "clipped", "own", "piled up", "weights")


def as_text(found: Layers, limit: int = 15) -> str:
    """For a terminal: the layers that add most, and what to try."""
    errors = found.errors
    lines = ["{}, against {}; {} images".format(found.path, found.reference, errors.images), ""]
    rows = [_HEADERS] + [_row(point) for point in errors.worst()[:limit]]
    lines += table.aligned(rows)
    if len(errors.points) > limit:
        lines.append("... and {} more (--all, --json)".format(len(errors.points) - limit))
    lines += [""] + textwrap.wrap(LEGEND, 96)
    if errors.weights_only is not None and errors.activations_only is not None and errors.both is not None:
        lines.append(
            "at the worst output: {:.1f} dB; {:.1f} dB with weights alone quantized, {:.1f} dB with "
            "activations alone".format(
                errors.both.sqnr_db, errors.weights_only.sqnr_db, errors.activations_only.sqnr_db
            )
        )
    other = [point for point in errors.points if point.other_steps]
    if other:
        lines.append(
            "{} of {} layers have other numbers than the reference without any fake quant: their figures are "
            "not quantization's".format(len(other), len(errors.points))
        )
    if errors.unmatched:
        lines.append("not found in the .tflite: " + ", ".join(errors.unmatched))
    for one in found.advice:
        lines += ["", one.what, "  " + one.why] + (["  " + one.config] if one.config else [])
    return "\n".join(lines)


def _row(point: OfPoint) -> Sequence[str]:
    return (
        point.name,
        "[{:.3g}, {:.3g}]".format(point.low, point.high),
        "{:.2f} %".format(100 * point.clipped),
        "{:.2f} ({:.0f} dB)".format(point.own.steps or 0.0, point.own.sqnr_db),
        "{:.2f} ({:.0f} dB)".format(point.piled_up.steps or 0.0, point.piled_up.sqnr_db),
        "" if point.weights is None else "{:.0f} dB".format(point.weights.error.sqnr_db),
    )


def as_json(found: Layers) -> Dict[str, Any]:
    """The whole, for json.dumps; the points in the order of the graph."""
    content = dataclasses.asdict(found.errors)
    content["advice"] = [one._asdict() for one in found.advice]
    return dict(model=found.path, reference=found.reference, **content)
