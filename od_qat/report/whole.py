"""Measures what `od-qat report` shows: all other reports in one, each scored model run once."""

import dataclasses
import os
import sys
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

from od_qat.contents import read as read_contents
from od_qat.contents.model import Contents
from od_qat.errors import ConfigError, OdQatError
from od_qat.export import tflite_checks
from od_qat.model_files import tflite_file, tflite_graph
from od_qat.model_files.description import describe_model
from od_qat.report import comparison, layers, pairs, quantizations, target_report
from od_qat.report.comparison import Comparison
from od_qat.report.layers import Layers
from od_qat.report.pairs import Pair
from od_qat.report.target_report import OfTarget
from od_qat.targets import rules

# Labels of the models that a report is given by their role.
FLOAT, GRAPH, MODEL = "float", "QAT graph", "this model"

# Image id -> Detections, or probabilities.
FoundIn = Mapping[Any, Any]


class Given(NamedTuple):
    """The models of a report.

    Attributes:
      model: path of the .tflite or frozen .pb that the report is about.
      float_model: path of the float detector; None if it is not there.
      graph: path of the frozen graph with fake quants that the model was made from; None as above.
      ptq: label -> path of what post-training quantization made of the float detector.
      others: label -> path of further models, which stand in the table.
    """

    model: str
    float_model: Optional[str] = None
    graph: Optional[str] = None
    ptq: Mapping[str, str] = {}
    others: Mapping[str, str] = {}

    def paths(self) -> Dict[str, str]:
        """Label -> path; the first is what the others are compared with."""
        found = {} if self.float_model is None else {FLOAT: self.float_model}
        found.update(self.others)
        found.update(self.ptq)
        if self.graph is not None:
            found[GRAPH] = self.graph
        return dict(found, **{MODEL: self.model})


class Options(NamedTuple):
    """How much is measured.

    Attributes:
      layer_images: how many images the layers are measured on.
      worst: how many images with the largest disagreement are drawn.
      processes: for scoring; None for one for each core.
      min_score: detections from this score on are compared and drawn.
    """

    layer_images: int = 8
    worst: int = 6
    processes: Optional[int] = None
    min_score: float = 0.3


@dataclasses.dataclass(frozen=True)
class Whole:
    """What was measured.

    Attributes:
      given: the models.
      models: their accuracy, size and latency.
      contents: what this model holds.
      comparison: that beside what the float model holds; None without one.
      inspection: the tensors of a .tflite; None of a .pb.
      suppression: the options of a .tflite's TFLite_Detection_PostProcess; empty without it.
      layers: of the graph against itself in float, and of the .tflite against its graph.
      pairs: float and this model; the graph and this model.
      targets: what devices do with a .tflite.
      missing: what could not be measured, and what to give for it.
    """

    given: Given
    models: quantizations.Comparison
    contents: Optional[Contents]
    comparison: Optional[Comparison]
    inspection: Optional[tflite_checks.Inspection]
    suppression: Dict[str, Any]
    layers: Tuple[Layers, ...]
    pairs: Tuple[Pair, ...]
    targets: Tuple[OfTarget, ...]
    missing: Tuple[str, ...]


def measure(
    given: Given,
    measure_of: Any,
    options: Optional[Options] = None,
    known: Optional[Mapping[str, FoundIn]] = None,
) -> Whole:
    """Measures everything.

    Args:
      given: the models.
      measure_of: a scoring.measures.DetectorMeasure of all validation images, or a ClassifierMeasure.
      options: how much.
      known: label -> what was found already, of models that have been run on these images.

    Raises:
      OdQatError: if a model cannot be read or run. What a model does not have is left out and said in
        `missing`.
    """
    options = options or Options()
    require_roles(given)
    paths = given.paths()
    missing: List[str] = []
    examples, found = measure_of.examples, dict(known or {})
    for label, path in paths.items():
        if label not in found:
            _say("running {} on {} images".format(path, len(examples)))
            found[label] = measure_of.run(path, options.processes)
    _say("accuracy and latency")
    of_model = [MODEL] if given.ptq else []
    of_float = None if given.float_model is None else FLOAT
    models = quantizations.compare(paths, measure_of, of_model, list(given.ptq), found, of_float)
    compared = tuple(_pairs(given, found, measure_of, options))
    if given.float_model is None:
        missing.append(
            "what quantization changed, and what it cost: give the float model with --float (a frozen "
            ".pb, or a float .tflite)"
        )
    _say("layers, on {} images".format(min(options.layer_images, len(examples))))
    of_layers = _layers(given, measure_of.images.pixels(options.layer_images), missing)
    contents = _contents(given.model, missing)
    float_contents = None if given.float_model is None else _contents(given.float_model, missing)
    return Whole(
        given,
        models,
        contents,
        comparison.compare(float_contents, contents) if float_contents and contents else None,
        _inspection(given, missing),
        tflite_file.read(given.model).options if _is_tflite(given) else {},
        of_layers,
        compared,
        _targets(given, missing),
        tuple(missing),
    )


def require_roles(given: Given) -> None:
    """Raises ConfigError if a float model is quantized, or a quantized one is float.

    (An evaluation calls both graphs frozen_eval_graph.pb, so that they are easily taken for each other.)
    """
    roles = [(given.float_model, "the float model", False), (given.graph, "the graph with fake quants", True)]
    roles += [(path, "what post-training quantization made", True) for path in given.ptq.values()]
    for path, what, quantized in roles:
        share = None if path is None else _quantized_weights(path)
        if share is not None and (share > 0) != quantized:
            raise ConfigError(
                "{} is {}".format(what, "float" if quantized else "quantized"),
                where=path,
                found="{:.0f} % of its weights quantized".format(100 * share),
                allowed="a quantized model" if quantized else "a float model",
                fix="check whose file it is, or give it with --beside",
            )


def _quantized_weights(path: str) -> Optional[float]:
    try:
        return read_contents(path).quantized_weights()
    except OdQatError:  # (which the part of the report on contents names)
        return None


def _say(text: str) -> None:
    print("== " + text, file=sys.stderr, flush=True)


def _is_tflite(given: Given) -> bool:
    return describe_model(given.model).is_tflite


def _pairs(given: Given, found: Mapping[str, FoundIn], measure: Any, options: Options) -> Iterator[Pair]:
    paths = given.paths()
    for a, b in ((FLOAT, MODEL), (GRAPH, MODEL)):
        if a in paths and b in paths:
            sides = [pairs.Side(label, paths[label], found[label]) for label in (a, b)]
            if describe_model(given.model).is_classifier:
                yield pairs.of_classifiers(*sides, measure, options.worst)
            else:
                yield pairs.of_detectors(*sides, measure, options.worst, options.min_score)


def _layers(given: Given, decoded: Sequence[Any], missing: List[str]) -> Tuple[Layers, ...]:
    found = []
    graph = given.graph or (None if _is_tflite(given) else given.model)
    if graph is None:
        missing.append(
            "which layer loses most by quantization: give the graph with fake quants with --graph "
            "(frozen_eval_graph.pb of an evaluation)"
        )
    with_graph = [given.model] if _is_tflite(given) else []
    if with_graph and not os.path.isfile(layers.graph_beside(given.model)):
        missing.append(
            "whether each op of the .tflite computes what it should: put {}, from which od-qat export-tflite "
            "made it, beside it".format(layers.GRAPH_BESIDE)
        )
        with_graph = []
    for path in ([] if graph is None else [graph]) + with_graph:
        try:
            found.append(layers.measure(path, decoded))
        except OdQatError as error:
            missing.append("the layers of {}: {}".format(path, error))
    return tuple(found)


def _contents(path: str, missing: List[str]) -> Optional[Contents]:
    try:
        return read_contents(path)
    except OdQatError as error:
        missing.append("what {} holds: {}".format(path, error))
        return None


def _inspection(given: Given, missing: List[str]) -> Optional[tflite_checks.Inspection]:
    if not _is_tflite(given):
        return None
    with open(given.model, "rb") as stream:
        model = stream.read()
    # (What is behind the last layers of a CenterNet is its post-processing.)
    ends_in_layers = (
        not tflite_file.read(given.model).options and not describe_model(given.model).is_classifier
    )
    try:
        return tflite_checks.inspect(model, ends_in_layers)
    except OdQatError as error:
        missing.append("its tensors: {}".format(error))
        return None


def _targets(given: Given, missing: List[str]) -> Tuple[OfTarget, ...]:
    if not _is_tflite(given):
        missing.append("what devices do with it: they take a .tflite (od-qat export-tflite)")
        return ()
    try:
        graph = tflite_graph.read(given.model)
    except OdQatError as error:
        missing.append("what devices do with it: {}".format(error))
        return ()
    return tuple(target_report.OfTarget(graph, rules.load(name)) for name in rules.NAMES)
