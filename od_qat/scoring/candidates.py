"""What a detector has before its suppression: a box for each anchor, and the scores of all classes."""

from typing import Any, Callable, List, NamedTuple, Optional

import numpy as np

from od_qat.errors import EnvironmentProblem
from od_qat.model_files import interpreter, nodes, tflite_graph
from od_qat.model_files.description import ModelDescription, describe_model
from od_qat.model_files.names import POST_PROCESS
from od_qat.model_files.tflite_file import read as read_tflite
from od_qat.scoring import images, runners

# What upstream's models call them, in any scope (meta_architectures/ssd_meta_arch.py, `postprocess`).
_BOXES, _SCORES = "raw_box_locations", "raw_box_scores"


class Candidates(NamedTuple):
    """Of one image.

    Attributes:
      boxes: float32 [anchors, 4], normalised ymin, xmin, ymax, xmax, clipped to the image.
      scores: float32 [anchors, classes], without background; column i is of the class first_class + i.
      first_class: label map id of the first column.
    """

    boxes: np.ndarray
    scores: np.ndarray
    first_class: int


class Reader(NamedTuple):
    """Of a model.

    Attributes:
      read: takes pixels, uint8 [height, width, 3], and returns Candidates.
      close: ends what the model runs in.
    """

    read: Callable[[np.ndarray], Candidates]
    close: Callable[[], None]


def open_reader(path: str) -> Optional[Reader]:
    """A reader of a model's candidates.

    Args:
      path: of a .tflite that ends in TFLite_Detection_PostProcess, or of a frozen graph of upstream's SSDs.

    Returns:
      None for another model, and for a .tflite without LiteRT's schema.

    Raises:
      ExportError: if the model cannot be loaded.
    """
    description = describe_model(path)
    return _of_tflite(description) if description.is_tflite else _of_graph(description)


def _of_graph(description: ModelDescription) -> Optional[Reader]:
    graph = nodes.read_graph(description.path)
    found: List[str] = []
    for wanted in (_BOXES, _SCORES):
        places = [node.name for node in graph.node if node.name.split("/")[-1] == wanted]
        if len(places) != 1:
            return None
        found.append(places[0])
    # (Upstream cuts off the background where it added one; a model may have none.)
    cut = any(node.op in ("Slice", "StridedSlice") and node.input[0] == found[1] for node in graph.node)
    names = [name + ":0" for name in found]
    runner = runners.open_runner(description)

    def read(pixels: np.ndarray) -> Candidates:
        boxes, scores = runner.tensors(runner.prepare(pixels), names)
        return Candidates(np.clip(boxes[0].reshape(-1, 4), 0, 1), scores[0][:, 1 if cut else 0 :], 1)

    return Reader(read, runner.close)


def _of_tflite(description: ModelDescription) -> Optional[Reader]:
    options = read_tflite(description.path).options
    try:
        graph = tflite_graph.read(description.path)
    except EnvironmentProblem:
        return None
    last = [op for op in graph.ops if op.type == POST_PROCESS]
    if len(last) != 1:
        return None
    tensors = [graph.tensors[index] for index in last[0].inputs]
    with open(description.path, "rb") as stream:
        opened = interpreter.without_delegates(stream.read(), experimental_preserve_all_tensors=True)
    opened.allocate_tensors()
    (given,) = opened.get_input_details()
    runner = runners.open_runner(description)

    def real(tensor: tflite_graph.Tensor) -> np.ndarray:
        value = opened.get_tensor(tensor.index)
        if not tensor.is_quantized:
            return value
        return images.dequantize(value, float(tensor.scales[0]), int(tensor.zero_points[0]))

    def read(pixels: np.ndarray) -> Candidates:
        opened.set_tensor(given["index"], runner.prepare(pixels))
        opened.invoke()
        # (Those of a float16 model are no constants.)
        scores, anchors = real(tensors[1])[0], real(tensors[2]).astype(np.float32)
        background = scores.shape[1] - int(options["num_classes"])
        boxes = _decoded(real(tensors[0])[0].reshape(len(anchors), -1), anchors, options)
        return Candidates(boxes, scores[:, background:], description.class_id_offset)

    return Reader(read, runner.close)


def _decoded(encodings: np.ndarray, anchors: np.ndarray, options: Any) -> np.ndarray:
    """The boxes of encodings [anchors, 4], as the op decodes them (kernels/detection_postprocess.cc)."""
    scales = [float(options[name]) for name in ("y_scale", "x_scale", "h_scale", "w_scale")]
    centers = encodings[:, :2] / scales[:2] * anchors[:, 2:] + anchors[:, :2]
    halves = np.exp(encodings[:, 2:4] / scales[2:]) * anchors[:, 2:] / 2
    return np.clip(np.concatenate([centers - halves, centers + halves], 1), 0, 1).astype(np.float32)
