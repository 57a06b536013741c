"""Several models side by side: accuracy, size and latency; and whether QAT paid."""

import dataclasses
import os
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from od_qat.model_files.description import ModelDescription, describe_model, json_path
from od_qat.report import table
from od_qat.scoring import intervals, latency_pairs, workers
from od_qat.scoring.intervals import Bootstrap, Interval

# A loss below this is none: one point of mAP, or of accuracy.
TOLERANCE = 0.01


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the models.

    Attributes:
      label: what to call it.
      path: of the file.
      value: the mAP of a detector, the accuracy of a classifier, 0 to 1.
      interval: of that, from samples of the images.
      difference: interval of that less the first model's, on the same samples; None of the first model.
      by_column, per_class, more: see scoring.measures.Quality.
      size_bytes: of the file.
      latency_ms: number of threads -> median milliseconds.
      network_ms: with the first of these, without the post-processing of a .tflite; None of another model.
      warnings: what may make these figures wrong.
    """

    label: str
    path: str
    value: float
    interval: Interval
    difference: Optional[Interval]
    by_column: Dict[str, Optional[float]]
    per_class: Dict[str, Optional[float]]
    more: Dict[str, Optional[float]]
    size_bytes: int
    latency_ms: Dict[int, float]
    network_ms: Optional[float] = None
    warnings: Tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All models, and what follows.

    Attributes:
      measure: name of what they are measured by; its note and its columns follow.
      models: the first is what the others are compared with.
      images: how many were scored.
      verdict: whether QAT paid, in a sentence; None without QAT and PTQ.
    """

    measure: str
    note: str
    columns: Tuple[str, ...]
    models: Tuple[Model, ...]
    images: int
    verdict: Optional[str]


def compare(
    paths: Mapping[str, str],
    measure: Any,
    qat: Sequence[str] = (),
    ptq: Sequence[str] = (),
    found: Optional[Mapping[str, Mapping[Any, Any]]] = None,
    of_float: Optional[str] = None,
    processes: Optional[int] = None,
    threads: Sequence[int] = (1, 2),
) -> Comparison:
    """Scores models on the same images, and measures their latency in turns.

    Args:
      paths: label -> path of a .tflite or frozen .pb, as for scoring.score; the others are compared with the
        first.
      measure: a scoring.measures.DetectorMeasure or classifiers.measure.ClassifierMeasure.
      qat, ptq: labels of the models that quantization-aware training made, and of those that were quantized
        after it to the same type.
      found: label -> what the model's run found; the others are run.
      of_float: label of the float model, without which nothing says what quantization lost.
      processes: as for scoring.detect.
      threads: numbers of threads for the latency.

    Raises:
      as scoring.score.
    """
    bootstrap = Bootstrap(measure)
    qualities, warnings = {}, {}
    for label, path in paths.items():
        of_model = (found or {}).get(label) or measure.run(path, processes)
        qualities[label] = measure.quality(of_model)
        warnings[label] = _of_file(describe_model(path), threads) + measure.warnings(path, of_model)
        bootstrap.add(label, of_model)
    first_image = measure.images.pixels(1)[0]
    print("measuring latency, in turns", file=sys.stderr)
    latencies = {number: latency_pairs.medians(paths, first_image, number) for number in threads}
    with latency_pairs.of_networks(paths) as networks:
        alone = latency_pairs.medians(networks, first_image, threads[0])
    first = next(iter(paths))
    models = tuple(
        Model(
            label,
            path,
            qualities[label].value,
            bootstrap.of(label),
            None if label == first else bootstrap.of_difference(label, first),
            qualities[label].by_column,
            qualities[label].per_class,
            qualities[label].more,
            os.path.getsize(path),
            {number: latencies[number][label] for number in threads},
            alone.get(label),
            tuple(warnings[label]),
        )
        for label, path in paths.items()
    )
    verdict = _verdict(models, bootstrap, qat, ptq, of_float)
    return Comparison(measure.name, measure.note, measure.columns, models, len(measure.examples), verdict)


def _of_file(description: ModelDescription, threads: Sequence[int]) -> List[str]:
    """What was assumed of a model, and which of the latencies are of a model that works wrongly."""
    found = []
    if description.assumed and description.is_tflite:
        found.append(
            "{} has no {} beside it, so mean {}, std {} and class ids from {} were assumed".format(
                description.path,
                os.path.basename(json_path(description.path)),
                description.mean,
                description.std,
                description.class_id_offset,
            )
        )
    for number in threads:
        lost = workers.class_lost_to_threads(description, number)
        if lost is not None:
            found.append(
                "{}: with {} threads LiteRT detects no object of the class {} (tensorflow issue 56058); run "
                "it with 1".format(description.path, number, lost)
            )
    return found


def _verdict(
    models: Sequence[Model],
    bootstrap: Bootstrap,
    qat: Sequence[str],
    ptq: Sequence[str],
    of_float: Optional[str],
) -> Optional[str]:
    """Whether the best QAT model is better than the best PTQ model, as far as these images can tell."""
    by_label = {model.label: model for model in models}
    if not qat:
        return None
    if not ptq:
        return "No int8 form was made, so nothing says whether QAT paid."
    trained, after = (max(labels, key=lambda label: by_label[label].value) for labels in (qat, ptq))
    difference = by_label[trained].value - by_label[after].value
    interval = bootstrap.of_difference(trained, after)
    figures = "The difference, {} less {}, is {} points, 95 % interval {} to {}".format(
        trained,
        after,
        table.points(difference, 0.0),
        table.points(interval.low, 0.0),
        table.points(interval.high, 0.0),
    )
    if not np.isfinite(interval.low):
        return "Too few images to say whether QAT paid: at least {} are needed.".format(
            intervals.LEAST_IMAGES
        )
    if interval.low > 0:
        return "QAT paid. " + figures + "."
    if interval.high < 0:
        return "QAT did not pay: post-training quantization is better. {}.".format(figures)
    if of_float is not None:
        loss = bootstrap.of_difference(after, of_float)
        if loss.low > -TOLERANCE:
            return (
                "QAT was not needed, as far as these images can tell: post-training quantization loses less "
                "than {:g} point. {}.".format(100 * TOLERANCE, figures)
            )
        figures += ". Post-training quantization may have lost up to {:.1f} points".format(-100 * loss.low)
    return "These images cannot tell whether QAT paid. {}. Score on more images.".format(figures)


def headers_of(found: Comparison) -> Tuple[str, ...]:
    """The titles of the columns."""
    threads = sorted(found.models[0].latency_ms)
    of_threads = ["{} thread{}".format(number, "" if number == 1 else "s") for number in threads]
    alone = ["network"] if any(model.network_ms is not None for model in found.models) else []
    return tuple(
        ["model", found.measure, "95 % interval", "points", *found.columns, "size"] + of_threads + alone
    )


def cells_of(found: Comparison) -> List[Tuple[str, ...]]:
    """The cells as text, in the order of headers_of."""
    first = found.models[0]
    return [
        (
            model.label,
            "{:.1f}".format(100 * model.value),
            "{:.1f} to {:.1f}".format(100 * model.interval.low, 100 * model.interval.high)
            if np.isfinite(model.interval.low)
            else "-",
            "" if model is first else table.points(model.value, first.value),
            *(_percent(model.by_column.get(column)) for column in found.columns),
            table.size(model.size_bytes),
            *(_milliseconds(value) for _, value in sorted(model.latency_ms.items())),
            _milliseconds(model.network_ms),
        )[: len(headers_of(found))]
        for model in found.models
    ]


def _milliseconds(value: Optional[float]) -> str:
    return "-" if value is None else "{:.1f} ms".format(value)


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else "{:.1f}".format(100 * value)


def note_of(found: Comparison) -> str:
    """The sentence below the table."""
    said = (
        "{}, on {} images; points against {}; the interval shows how far a figure could move with other "
        "images of this kind (bootstrap, {} samples)"
    )
    alone = "; network: without the post-processing, with 1 thread" if "network" in headers_of(found) else ""
    return said.format(found.note, found.images, found.models[0].label, intervals.SAMPLES) + alone


def warnings_of(found: Comparison) -> List[str]:
    """Of all models, each once."""
    return list(dict.fromkeys(line for model in found.models for line in model.warnings))


def as_text(found: Comparison) -> str:
    """The table and the verdict."""
    lines = table.aligned([headers_of(found)] + cells_of(found)) + [note_of(found)]
    lines += ["warning: " + line for line in warnings_of(found)]
    return "\n".join(lines + ([found.verdict] if found.verdict else []))


def as_json(found: Comparison) -> Dict[str, Any]:
    """The whole, for json.dumps."""
    return dataclasses.asdict(found)
