"""Compares what a .tflite computes with the graph that it was made from.

Looking at its tensors is not enough: where a range was not trained, the converter takes the range of another
tensor, and the tensor has 8 bits like all others. The outputs of both for one picture show the difference.

Rounding in another order changes the outputs as well, the more so the deeper the network is and the less
its outputs are spread. Half a step of noise in the pixels has the same effect on the graph itself, so what
this does to the graph's outputs is not counted.
"""

import sys
from typing import Dict, List, Sequence, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.graph import session_config
from od_qat.model_files import interpreter
from od_qat.model_files.names import POST_PROCESS

# In a trained MobileNet, rounding in another order gives .005 (scores) to .04 (boxes). A concat with the
# range of another tensor gave 1.
_LARGE = 0.3
# Two steps of an 8-bit score. (A net that has hardly been trained gives the same score to all anchors.)
_SMALLEST_SPREAD = 2.0 / 256


def with_other_rounding(pixels: np.ndarray) -> np.ndarray:
    """Returns the same picture with up to half a step of noise, float64."""
    return pixels + np.random.RandomState(1).uniform(-0.5, 0.5, pixels.shape)


def of_graph(
    graph_def, input_name: str, wanted: Sequence[str], pixels: np.ndarray, mean: float, std: float
) -> Tuple[List[np.ndarray], List[np.ndarray]]:
    """What a graph makes of a picture, and of the picture with_other_rounding: a list of outputs for each.

    Args:
      graph_def, input_name, mean, std: as for difference.
      wanted: op names.
      pixels: [1, height, width, 3].
    """
    with tf.Graph().as_default(), tf.Session(config=session_config.for_few_runs()) as session:
        tf.import_graph_def(graph_def, name="")
        plain, rounded = [
            session.run(
                [name + ":0" for name in wanted],
                {input_name + ":0": ((one - mean) / std).astype(np.float32)},
            )
            for one in (pixels, with_other_rounding(pixels))
        ]
    return plain, rounded


def outputs(model: bytes) -> Tuple[List[np.ndarray], np.ndarray]:
    """Runs a .tflite on a picture of noise; returns its outputs, and the pixels, 0 to 255."""
    opened = interpreter.without_delegates(model)
    opened.allocate_tensors()
    pixels = _run_on_noise(opened)
    return [opened.get_tensor(detail["index"]) for detail in opened.get_output_details()], pixels


def _run_on_noise(opened) -> np.ndarray:
    (given,) = opened.get_input_details()
    pixels = np.random.RandomState(0).randint(0, 256, given["shape"])
    lowest = np.iinfo(given["dtype"]).min
    opened.set_tensor(given["index"], (pixels + lowest).astype(given["dtype"]))
    opened.invoke()
    return pixels


def relative(found: np.ndarray, expected: np.ndarray, rounded: np.ndarray) -> float:
    """Returns the root mean square of a difference, relative to the spread of what was expected.

    Args:
      found: an output of the .tflite, real values.
      expected: the graph's.
      rounded: the graph's for the picture with_other_rounding; its mean square difference is taken off.
    """
    spread = max(float(np.std(expected)), _SMALLEST_SPREAD)
    squares = np.mean(np.square(found - expected)) - np.mean(np.square(rounded - expected))
    return float(np.sqrt(max(squares, 0.0))) / spread


def difference(
    model: bytes,
    graph_def,
    input_name: str,
    heads: Sequence[str],
    mean: float,
    std: float,
    last: str = POST_PROCESS,
) -> Dict[str, float]:
    """Runs both on a picture of noise.

    Args:
      model: the bytes of a .tflite.
      graph_def: the frozen graph that it was made from, with its fake quants.
      input_name: op name of its input, float32 [1, height, width, 3].
      heads: op names of what the last op reads, in a detector the box encodings and scores.
      mean, std: of the preprocessing, real = (pixel - mean) / std.
      last: the .tflite's name of that op.

    Returns:
      head -> root mean square of the difference, relative to the spread of the graph's own output, without
      what rounding in another order does (see relative).
    """
    opened = interpreter.without_delegates(model, experimental_preserve_all_tensors=True)
    opened.allocate_tensors()
    pixels = _run_on_noise(opened)
    (reader,) = [op for op in opened._get_ops_details() if op["op_name"] == last]
    details = {detail["index"]: detail for detail in opened.get_tensor_details()}
    wanted, rounded = of_graph(graph_def, input_name, heads, pixels, mean, std)
    found = {}
    for name, expected, other, index in zip(heads, wanted, rounded, reader["inputs"]):
        value, (scale, zero_point) = opened.get_tensor(index), details[index]["quantization"]
        if value.dtype != np.float32:
            value = (value.astype(np.float32) - zero_point) * scale
        found[name] = relative(value, expected, other)
    return found


def warn_if_large(found: Dict[str, float], where: str) -> None:
    """Warns on standard error. It is no error, as some users know why their model differs."""
    large = {name: part for name, part in found.items() if not part < _LARGE}
    if large:
        print(
            "warning: {} does not compute what its graph does: on a picture of noise {}; usual: below 10 %. "
            "Fix: compare its mAP (od-qat score) with that of frozen_inference_graph.pb; if it is lower, the "
            "likely cause is a tensor whose range was not trained: see rewrite_report.json".format(
                where,
                ", ".join(
                    "{} differ by {:.0f} % of their spread".format(name, 100 * part)
                    for name, part in large.items()
                ),
            ),
            file=sys.stderr,
        )
