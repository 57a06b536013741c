"""What to try where quantization costs most, as text to paste into the config."""

import re
from typing import List, NamedTuple, Optional

from od_qat.analysis.results import LayerErrors, OfPoint

# Decibels. A factor of two in the error is 6; below the last, one part in ten of a tensor is noise.
_TWICE, _NOISY = 6.0, 20.0
# A share of values beyond the range that an average over batches leaves at most in a healthy layer.
_CLIPPED = 0.01
# A range so much wider than what lies in it has lost two of its 8 bits.
_UNUSED = 4.0
# Steps. A .tflite rounds some numbers another way than its graph; more than this is another computation.
_OTHER_COMPUTATION = 0.4


class Advice(NamedTuple):
    """A thing to try.

    Attributes:
      what: it, in a sentence.
      why: the figures.
      config: text for the config; empty if it is not about the config.
    """

    what: str
    why: str
    config: str


def of_graph(found: LayerErrors) -> List[Advice]:
    """What to try for a graph with fake quants, measured against the float one."""
    other = [
        Advice(
            "Look at the weights and the bias before {}: they differ from the reference's.".format(
                point.name
            ),
            "with the same inputs, and without fake quants, its output differs by {:.2f} steps".format(
                point.other_steps
            ),
            "",
        )
        for point in found.worst()[:3]
        if point.other_steps
    ]
    of_weights = _of_all_weights(found)
    noisy = [point for point in found.worst() if point.own.sqnr_db < _NOISY]
    return other + ([of_weights] if of_weights else []) + [_of_point(point) for point in noisy[:3]]


def of_tflite(found: LayerErrors) -> List[Advice]:
    """What to look at in a .tflite, measured against its graph."""
    return [
        Advice(
            "Look at the op that makes {}: it computes something else than the graph.".format(point.name),
            "with the same inputs its output differs by {:.1f} steps; rounding makes less than {:g}".format(
                point.own.steps or 0.0, _OTHER_COMPUTATION
            ),
            "",
        )
        for point in found.worst()[:3]
        if (point.own.steps or 0.0) > _OTHER_COMPUTATION
    ]


def _of_all_weights(found: LayerErrors) -> Optional[Advice]:
    weights, activations = found.weights_only, found.activations_only
    if weights is None or activations is None or weights.sqnr_db > activations.sqnr_db - _TWICE:
        return None
    per_tensor = [
        point for point in found.points if point.weights is not None and point.weights.channels == 1
    ]
    if not per_tensor:
        return None
    return Advice(
        "Give the weights a range for each channel (int8 only).",
        "the weights alone leave {:.1f} dB at the end, the activations alone {:.1f} dB; {} layers have one "
        "range for all their weights".format(weights.sqnr_db, activations.sqnr_db, len(per_tensor)),
        "graph_rewriter { [od_qat.layers] { per_channel: true } }",
    )


def _of_point(point: OfPoint) -> Advice:
    scope = re.escape(point.name).replace("\\/", "/").replace("\\", "\\\\")
    layer = re.sub(r"/(act_quant|[a-z_]+_quant)$", "", scope)
    figures = "{} has {:.1f} dB of its own, {:.2f} steps".format(
        point.name, point.own.sqnr_db, point.own.steps or 0.0
    )
    least, most = point.extent
    if point.clipped > _CLIPPED:
        return Advice(
            "Train longer, or let the ranges follow faster: values lie beyond this one.",
            "{}; {:.1f} % of its values are beyond [{:.3g}, {:.3g}], up to [{:.3g}, {:.3g}]".format(
                figures, 100 * point.clipped, point.low, point.high, least, most
            ),
            "graph_rewriter { [od_qat.layers] { ema_decay: 0.99 } }",
        )
    if most > least and (point.high - point.low) > _UNUSED * (most - least):
        return Advice(
            "Train longer: this range is wider than what lies in it.",
            "{}; its values are in [{:.3g}, {:.3g}], its range is [{:.3g}, {:.3g}]".format(
                figures, least, most, point.low, point.high
            ),
            "graph_rewriter { [od_qat.layers] { ema_decay: 0.99 } }",
        )
    if point.weights is not None and point.weights.error.sqnr_db < _NOISY and point.weights.channels == 1:
        return Advice(
            "Give this layer's weights a range for each channel (int8 only).",
            "{}; its weights have {:.1f} dB".format(figures, point.weights.error.sqnr_db),
            'graph_rewriter {{ [od_qat.layers] {{ rule {{ scope: "{}" per_channel: true }} }} }}'.format(
                layer
            ),
        )
    return Advice(
        "Leave this layer float, if the device takes it, or freeze the batch norms late in the training.",
        figures,
        'graph_rewriter {{ [od_qat.layers] {{ rule {{ scope: "{}" quantize: false }} }} }}'.format(layer),
    )
