"""Answers in words what users ask of a model, from what whole.measure found."""

from typing import List, NamedTuple, Optional

import numpy as np

from od_qat.contents.model import GRAPH as GRAPH_KIND
from od_qat.contents.model import STRUCTURE, TFLITE, WEIGHTS
from od_qat.model_files import tflite_file
from od_qat.report import table
from od_qat.report.pairs import Pair
from od_qat.report.quantizations import TOLERANCE
from od_qat.report.whole import GRAPH, MODEL, Whole
from od_qat.targets.rules import NOT_KNOWN, TAKEN

# Sections of the page.
ACCURACY, AGREEMENT, LAYERS, DEVICES, CONTENTS = "accuracy", "agreement", "layers", "devices", "contents"
# Detections of an image that COCO's mAP counts.
_COUNTED = 100
# Names of tensors that a sentence lists.
_LISTED = 3


class Answer(NamedTuple):
    """A question with its answer.

    Attributes:
      question, answer: sentences.
      section: where the figures are.
    """

    question: str
    answer: str
    section: str


def answers(whole: Whole) -> List[Answer]:
    """All questions that what was measured can answer."""
    found = [
        Answer("Is it fully quantized?", _is_quantized(whole), CONTENTS),
        Answer(
            "How accurate is it?"
            if whole.given.float_model is None
            else "Is it as accurate as the float model?",
            _is_accurate(whole),
            ACCURACY,
        ),
        Answer("What does its post-processing leave out?", _leaves_out(whole), ACCURACY),
        Answer("Was quantization-aware training worth it?", whole.models.verdict or "", ACCURACY),
        Answer("Does it compute what was trained?", _computes_the_same(whole), AGREEMENT),
        Answer("Which layer hurts most?", _hurts(whole), LAYERS),
        Answer("Will my device take it?", _is_taken(whole), DEVICES),
        Answer("Why is it this big?", _is_big(whole), CONTENTS),
    ]
    return [one for one in found if one.answer]


def _is_quantized(whole: Whole) -> str:
    if whole.inspection is None:
        share = None if whole.contents is None else whole.contents.quantized_weights()
        if share is None or whole.contents.kind != GRAPH_KIND:
            return ""
        if not share:
            return "No. It is a float graph, without a fake quant on any weight."
        return (
            "{:.0f} % of its weights go through fake quants. It computes in float32 what its .tflite will "
            "compute with integers."
        ).format(100 * share)
    floats = whole.inspection.float_tensors
    if not floats:
        return "Yes. {} is float.".format(
            "No tensor before the post-processing" if whole.suppression else "None of its tensors"
        )
    verb = "is" if len(floats) == 1 else "are"
    return "No. {} {} float: {}.".format(_count(len(floats), "tensor"), verb, _some(floats))


def _is_accurate(whole: Whole) -> str:
    this = whole.models.models[-1]
    first, measure = whole.models.models[0], whole.models.measure
    difference = this.difference
    if whole.given.float_model is None:
        return "{} {:.1f}; the float model is not given.".format(measure, 100 * this.value)
    text = "{} {:.1f}, where {} has {:.1f}: {} points".format(
        measure, 100 * this.value, first.label, 100 * first.value, table.points(this.value, first.value)
    )
    if difference is None or not np.isfinite(difference.low):
        return text + ". These are too few images for an interval."
    interval = "{} to {}".format(table.points(difference.low, 0.0), table.points(difference.high, 0.0))
    if max(first.value, this.value) < TOLERANCE:
        return "That cannot be told, since both find next to nothing. {}.".format(text)
    if difference.low <= 0 <= difference.high:
        if difference.low > -TOLERANCE:
            says = "Yes, to {:g} point, as far as these images can tell".format(100 * TOLERANCE)
        else:
            says = "These images cannot tell: it may have lost up to {:.1f} points".format(
                -100 * difference.low
            )
        return "{}. {} (95 % interval {}).".format(says, text, interval)
    return "{}. {} (95 % interval {}).".format("It is better" if difference.low > 0 else "No", text, interval)


def _leaves_out(whole: Whole) -> str:
    if not whole.suppression:
        return ""
    text = "It has {}.".format(tflite_file.suppression(whole.suppression))
    if whole.suppression.get("max_detections", _COUNTED) < _COUNTED:
        text += " COCO's mAP counts {} detections of an image, so fewer can lower it.".format(_COUNTED)
    if not whole.suppression.get("use_regular_nms") and whole.suppression.get("num_classes", 1) > 1:
        text += (
            " Fast NMS suppresses boxes of all classes at once; where the float model does it class by "
            "class, that lowers the mAP."
        )
    return text


def _computes_the_same(whole: Whole) -> str:
    sentences = []
    pair = _pair(whole, GRAPH)
    if pair is not None:
        sentences.append(pair.said)
        if pair.shares is not None:
            sentences.append(
                "Of {} others, in the {} images that differ most, {} are near-ties, of which the suppression "
                "kept another.".format(
                    pair.shares.of_suppression + pair.shares.of_network,
                    pair.shares.images,
                    pair.shares.of_suppression,
                )
            )
    for one in whole.layers:
        if not one.path.endswith(".tflite"):
            continue
        worst = one.errors.worst()[:1]
        if one.advice:
            sentences.append(one.advice[0].what)
        elif worst:
            sentences.append(
                "With the same inputs, {} of the .tflite is further than {:.2f} steps from its graph.".format(
                    "none of the {} ops that were found".format(len(one.errors.points))
                    if one.errors.unmatched
                    else "no op",
                    worst[0].own.steps or 0.0,
                )
            )
        if one.errors.unmatched:
            sentences.append(
                "Nothing is said of what was not found in the .tflite, {} of its graph: {}.".format(
                    _count(len(one.errors.unmatched), "layer"), _some(list(one.errors.unmatched))
                )
            )
    return " ".join(sentences)


def _hurts(whole: Whole) -> str:
    for one in whole.layers:
        if one.path.endswith(".tflite") or not one.errors.points:
            continue
        worst = one.errors.worst()[0]
        text = "{} adds most: {:.2f} steps, where rounding alone makes 0.29 ({:.0f} dB).".format(
            worst.name, worst.own.steps or 0.0, worst.own.sqnr_db
        )
        return text + (" " + one.advice[0].what if one.advice else " No layer needs another treatment.")
    return ""


def _is_taken(whole: Whole) -> str:
    sentences = []
    for one in whole.targets:
        if one.target.describes:  # (a specification is no device)
            continue
        counts = one.counts()
        sentences.append(
            "{} takes {} of {} ops{}.{}".format(
                one.target.title,
                counts.get(TAKEN, 0),
                len(one.verdicts),
                ", and {} more that only the device or its compiler can tell".format(counts[NOT_KNOWN])
                if counts.get(NOT_KNOWN)
                else "",
                "" if one.too_heavy is None else " {}.".format(one.too_heavy.found.rstrip(".")),
            )
        )
    return "\n".join(sentences)


def _is_big(whole: Whole) -> str:
    contents = whole.contents
    if contents is None:
        return ""
    parts = ["{} {}".format(table.size(count), _kind(kind)) for kind, count in contents.sizes().items()]
    sentences = ["{}: {}.".format(table.size(contents.size_bytes), ", ".join(parts))]
    if whole.comparison is not None:
        other = whole.comparison.a.size_bytes
        sentences.append(
            "That is {:.0f} % of the float model's {}.".format(
                100.0 * contents.size_bytes / other, table.size(other)
            )
        )
    if contents.kind == TFLITE and contents.quantized_weights() == 1:
        sentences.append("Each weight takes one byte; in float it takes four.")
    elif contents.kind == GRAPH_KIND and contents.quantized_weights():
        sentences.append("Its weights are float32 still, four bytes each; a .tflite has one byte for each.")
    return " ".join(sentences)


def _kind(kind: str) -> str:
    return {WEIGHTS: "of weights", STRUCTURE: "of graph"}.get(kind, "of " + kind)


def _pair(whole: Whole, a: str) -> Optional[Pair]:
    return next((pair for pair in whole.pairs if (pair.a, pair.b) == (a, MODEL)), None)


def _count(number: int, noun: str) -> str:
    return "{} {}{}".format(number, noun, "" if number == 1 else "s")


def _some(names: List[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (" and {} more".format(more) if more > 0 else "")
