"""Several models of one detector side by side: accuracy, size and latency; and whether QAT paid."""

import dataclasses
import os
import sys
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from od_qat.report import table
from od_qat.scoring import images, intervals, latency_pairs, metrics, workers
from od_qat.scoring.intervals import Bootstrap, Interval

# A difference that no user would see.
_NOTHING = 0.001
HEADERS = (
    "model",
    "mAP",
    "95 % interval",
    "points",
    "small",
    "medium",
    "large",
    "size",
    "1 thread",
    "2 threads",
    "network",
)


@dataclasses.dataclass(frozen=True)
class Model:
    """One of the models.

    Attributes:
      label: what to call it.
      path: of the file.
      map, map50: COCO's, 0 to 1.
      interval: of the mAP, from samples of the images.
      difference: interval of the mAP less the first model's, on the same samples; None of the first model.
      by_size: 'small', 'medium', 'large' -> mAP; None without such objects.
      per_class: name -> mAP; None without objects.
      size_bytes: of the file.
      latency_ms: number of threads -> median milliseconds.
      network_ms: with the first of these, without the post-processing of a .tflite; None of another model.
    """

    label: str
    path: str
    map: float
    map50: float
    interval: Interval
    difference: Optional[Interval]
    by_size: Dict[str, Optional[float]]
    per_class: Dict[str, Optional[float]]
    size_bytes: int
    latency_ms: Dict[int, float]
    network_ms: Optional[float] = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All models, and what follows.

    Attributes:
      models: the first is what the others are compared with.
      images: how many were scored.
      verdict: whether QAT paid, in a sentence; None without QAT and PTQ.
    """

    models: Tuple[Model, ...]
    images: int
    verdict: Optional[str]


def compare(
    paths: Mapping[str, str],
    examples: Sequence[Any],
    names: Mapping[int, str],
    qat: Sequence[str] = (),
    ptq: Sequence[str] = (),
    detections: Optional[Mapping[str, Mapping[Any, Any]]] = None,
    processes: Optional[int] = None,
    threads: Sequence[int] = (1, 2),
) -> Comparison:
    """Scores models on the same images, and measures their latency in turns.

    Args:
      paths: label -> path of a .tflite or frozen .pb, as for scoring.score; the first is the float model.
      examples: datasets.records.Example of every image.
      names: id -> name.
      qat, ptq: labels of the models that quantization-aware training made, and of those that were quantized
        after it to the same type.
      detections: label -> what the model was found to detect; the others are run.
      processes: as for scoring.detect.
      threads: numbers of threads for the latency.

    Raises:
      as scoring.score.
    """
    examples = list(examples)
    bootstrap = Bootstrap(examples, names)
    scores, sizes = {}, {}
    for label, path in paths.items():
        found = (detections or {}).get(label) or workers.detect(path, examples, processes)
        scores[label] = metrics.coco_metrics(examples, found, names)
        sizes[label] = metrics.map_by_size(examples, found, names)
        bootstrap.add(label, found)
    first_image = images.decode(examples[0].encoded, str(examples[0].image_id))
    print("measuring latency, in turns", file=sys.stderr)
    latencies = {number: latency_pairs.medians(paths, first_image, number) for number in threads}
    with latency_pairs.of_networks(paths) as networks:
        alone = latency_pairs.medians(networks, first_image, threads[0])
    first = next(iter(paths))
    models = tuple(
        Model(
            label,
            path,
            scores[label].map,
            scores[label].map50,
            bootstrap.of(label),
            None if label == first else bootstrap.of_difference(label, first),
            sizes[label],
            scores[label].per_class,
            os.path.getsize(path),
            {number: latencies[number][label] for number in threads},
            alone.get(label),
        )
        for label, path in paths.items()
    )
    return Comparison(models, len(examples), _verdict(models, bootstrap, qat, ptq))


def _verdict(
    models: Sequence[Model], bootstrap: Bootstrap, qat: Sequence[str], ptq: Sequence[str]
) -> Optional[str]:
    """Whether the best QAT model is better than the best PTQ model, as far as these images can tell."""
    by_label = {model.label: model for model in models}
    if not qat:
        return None
    if not ptq:
        return "No int8 form was made, so nothing says whether QAT paid."
    trained, after = (max(labels, key=lambda label: by_label[label].map) for labels in (qat, ptq))
    difference = by_label[trained].map - by_label[after].map
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
    loss = bootstrap.of_difference(after, models[0].label)
    if abs(by_label[after].map - models[0].map) <= _NOTHING or loss.high >= 0:
        return (
            "QAT was not needed, as far as these images can tell: post-training quantization loses nothing "
            "that they show. {}.".format(figures)
        )
    return "These images cannot tell whether QAT paid. {}. Score on more images.".format(figures)


def cells_of(found: Comparison) -> List[Tuple[str, ...]]:
    """The cells as text, in the order of HEADERS."""
    first = found.models[0]
    return [
        (
            model.label,
            "{:.1f}".format(100 * model.map),
            "{:.1f} to {:.1f}".format(100 * model.interval.low, 100 * model.interval.high)
            if np.isfinite(model.interval.low)
            else "-",
            "" if model is first else table.points(model.map, first.map),
            *(_percent(model.by_size.get(size)) for size in ("small", "medium", "large")),
            table.size(model.size_bytes),
            *(_milliseconds(value) for _, value in sorted(model.latency_ms.items())),
            _milliseconds(model.network_ms),
        )
        for model in found.models
    ]


def _milliseconds(value: Optional[float]) -> str:
    return "-" if value is None else "{:.1f} ms".format(value)


def _percent(value: Optional[float]) -> str:
    return "-" if value is None else "{:.1f}".format(100 * value)


def note_of(found: Comparison) -> str:
    """The sentence below the table."""
    return (
        "mAP at overlaps .50 to .95 in percent, on {} images; points against {}; the interval is that of "
        "images drawn again with replacement; network: without the post-processing, with 1 thread".format(
            found.images, found.models[0].label
        )
    )


def as_text(found: Comparison) -> str:
    """The table and the verdict."""
    lines = table.aligned([HEADERS] + cells_of(found)) + [note_of(found)]
    return "\n".join(lines + ([found.verdict] if found.verdict else []))


def as_json(found: Comparison) -> Dict[str, Any]:
    """The whole, for json.dumps."""
    return dataclasses.asdict(found)
