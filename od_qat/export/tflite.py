"""Frozen GraphDef -> fully quantized .tflite, checked before and after the conversion.

Adds what upstream's export_tflite_ssd_graph adds (anchors, TFLite_Detection_PostProcess), without
TransformGraph, which TF 2 does not have.
"""

import os
import re
import tempfile
from typing import Any, Callable, Collection, Dict, Iterable, Iterator, List, NamedTuple, Optional

import numpy as np

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import ConfigError, ExportError
from od_qat.model_files import interpreter
from od_qat.model_files.names import POST_PROCESS, ROLES
from od_qat.quiet import native_stderr_silenced
from od_qat.rewrite import policy
from od_qat.rewrite.folding import NORM_AS_LAYER

INFERENCE_TYPES = ("int8", "uint8")
INPUT_TYPES = ("uint8", "int8")


class PostProcess(NamedTuple):
    """Parameters of TFLite_Detection_PostProcess.

    Attributes:
      num_classes: without background.
      y_scale, x_scale, h_scale, w_scale: of the box coder.
      score_threshold, iou_threshold: of the non-maximum suppression.
      max_detections: in all.
      detections_per_class: with regular NMS.
      regular_nms: a suppression per class, as the OD API does it; the fast one costs accuracy.
    """

    num_classes: int
    y_scale: float
    x_scale: float
    h_scale: float
    w_scale: float
    score_threshold: float
    iou_threshold: float
    max_detections: int
    detections_per_class: int
    regular_nms: bool

    def as_json(self) -> Dict[str, Any]:
        """For the JSON beside the model."""
        content: Dict[str, Any] = {
            "kind": "regular" if self.regular_nms else "fast",
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
        }
        if self.regular_nms:
            content["max_detections_per_class"] = self.detections_per_class
        return content


def add_post_process(
    graph_def,
    boxes: str,
    scores: str,
    anchors: np.ndarray,
    parameters: PostProcess,
    quantised_input: bool,
):
    """Appends the post-processing op to a frozen graph of raw SSD heads.

    Args:
      graph_def: frozen GraphDef.
      boxes, scores: op names of the encodings [1, anchors, 4] and scores [1, anchors, classes + 1].
      anchors: float32 [anchors, 4], centre y, centre x, height, width.
      parameters: see PostProcess.
      quantised_input: let the op dequantise its inputs itself, which its kernel does for uint8; for int8 the
        converter has to put DEQUANTIZE ops in front.

    Returns:
      GraphDef whose output op is TFLite_Detection_PostProcess.
    """
    with_anchors = tf.GraphDef()
    with_anchors.CopyFrom(graph_def)
    constant = with_anchors.node.add()
    constant.name, constant.op = "anchors", "Const"
    constant.attr["dtype"].type = tf.float32.as_datatype_enum
    constant.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(anchors, dtype=tf.float32))
    node = with_anchors.node.add()
    node.name = node.op = POST_PROCESS
    node.input.extend([boxes, scores, "anchors"])
    node.attr["_output_types"].list.type.extend([tf.float32.as_datatype_enum] * len(ROLES))
    if quantised_input:
        for flag in ("_output_quantized", "_support_output_type_float_in_quantized_op"):
            node.attr[flag].b = True
    for key, value in (
        ("max_detections", parameters.max_detections),
        ("max_classes_per_detection", 1),
        ("detections_per_class", parameters.detections_per_class),
        ("num_classes", parameters.num_classes),
    ):
        node.attr[key].i = value
    for key, value in (
        ("nms_score_threshold", parameters.score_threshold),
        ("nms_iou_threshold", parameters.iou_threshold),
        ("y_scale", parameters.y_scale),
        ("x_scale", parameters.x_scale),
        ("h_scale", parameters.h_scale),
        ("w_scale", parameters.w_scale),
    ):
        node.attr[key].f = value
    node.attr["use_regular_nms"].b = parameters.regular_nms
    return with_anchors


def require_types(inference_type: str, input_type: str, ptq: bool) -> None:
    """Raises unless a network of this type, with images of that type, can be had.

    Args:
      inference_type: 'int8' or 'uint8', of weights and activations.
      input_type: 'int8' or 'uint8', of the image.
      ptq: post-training quantization.

    Raises:
      ConfigError: naming the flag.
    """
    for flag, value, allowed in (
        ("--inference_type", inference_type, INFERENCE_TYPES),
        ("--input_type", input_type, INPUT_TYPES),
    ):
        if value not in allowed:
            raise ConfigError("unknown type", where=flag, found=repr(value), allowed=", ".join(allowed))
    if ptq and inference_type == "uint8":
        raise ConfigError(
            "post-training quantization makes int8 networks only",
            where="--inference_type",
            found="uint8",
            allowed="int8",
            fix="leave --inference_type out; the image may be uint8 all the same (--input_type=uint8)",
        )
    if inference_type == "uint8" and input_type == "int8":
        raise ConfigError(
            "a uint8 network takes uint8 images only",
            where="--input_type",
            found="int8",
            allowed="uint8",
            fix="leave --input_type out, or export with --inference_type=int8",
        )


def require_quantised(
    graph_def, where: str, inference_type: str, excluded: Collection[str] = frozenset()
) -> None:
    """Raises unless every op with weights reads fake-quantised weights that the inference type can hold.

    The converter's own message for such a graph is a page that ends in 'lacking min/max data'.

    Args:
      graph_def: frozen GraphDef.
      where: for the message.
      inference_type: 'int8' or 'uint8'.
      excluded: ops that stay float because a rule of the config wants it.

    Raises:
      ExportError: naming an op.
    """
    nodes = {node.name: node for node in graph_def.node}
    weighted = [
        node
        for node in graph_def.node
        if node.op in policy.WEIGHTED
        and node.name not in excluded
        and node.name.rpartition("/")[2] != NORM_AS_LAYER
    ]
    unquantised = [
        node.name for node in weighted if _producer(nodes, node.input[1]).op not in policy.FAKE_QUANT
    ]
    if unquantised:
        raise ExportError(
            "the graph is not quantised",
            where=where,
            found="{} of {} layers read float weights, {} first".format(
                len(unquantised), len(weighted), unquantised[0]
            ),
            fix="train and export with a graph_rewriter block in the config, or use --ptq for "
            "post-training quantization",
        )
    for node in graph_def.node:
        if node.op in policy.FAKE_QUANT and node.attr["num_bits"].i != 8:
            raise ExportError(
                "TFLite takes 8 bits only",
                where=node.name,
                found="{} bits".format(node.attr["num_bits"].i),
                allowed="weight_bits: 8, activation_bits: 8",
            )
    for node in weighted:
        fake_quant = _producer(nodes, node.input[1])
        if inference_type == "int8":
            _require_symmetric(nodes, fake_quant, where)
        elif fake_quant.op == policy.FAKE_QUANT_PER_CHANNEL:
            # The converter would write it; TFLite's kernels then refuse to run it.
            raise ExportError(
                "{} has no per-channel weights".format(inference_type),
                where="{}, {}".format(where, fake_quant.name),
                found="a range for each output channel",
                allowed="--inference_type=int8",
                fix="export int8, or train with per_channel: false",
            )


def _require_symmetric(nodes: Dict[str, Any], fake_quant, where: str) -> None:
    """Of each channel, where there are several ranges."""
    low, high = (
        tf.make_ndarray(_producer(nodes, name).attr["value"].tensor).reshape(-1)
        for name in fake_quant.input[1:3]
    )
    wrong = np.flatnonzero(np.abs(low + high) > 1e-3 * np.abs(high - low))
    if wrong.size:
        raise ExportError(
            "int8 takes weights with symmetric ranges only",
            where="{}, {}{}".format(
                where, fake_quant.name, ", channel {}".format(wrong[0]) if low.size > 1 else ""
            ),
            found="[{:.4g}, {:.4g}]".format(low[wrong[0]], high[wrong[0]]),
            fix="export with --inference_type=uint8, or train with placement 'full'",
        )


def _producer(nodes: Dict[str, Any], name: str):
    node = nodes[name.lstrip("^").split(":")[0]]
    while node.op in ("Identity", "Reshape"):
        node = nodes[node.input[0].split(":")[0]]
    return node


def convert(
    graph_def,
    input_name: str,
    input_shape: List[int],
    output_names: List[str],
    inference_type: str,
    mean: float,
    std: float,
    calibration: Optional[Callable[[], Iterable[np.ndarray]]] = None,
    input_type: Optional[str] = None,
) -> bytes:
    """Runs TensorFlow's converter.

    Args:
      graph_def: frozen GraphDef, fake-quantised, or float with `calibration`.
      input_name: op name of the input.
      input_shape: its shape.
      output_names: tensor names, without `:0`.
      inference_type: 'int8' or 'uint8', of weights and activations.
      mean, std: of the preprocessing, real = (pixel - mean) / std with pixels 0 to 255.
      calibration: gives float32 [1, height, width, 3] inputs; then the ranges are taken from them
        (post-training quantization).
      input_type: 'int8' or 'uint8', of the input; default is `inference_type`. An int8 network gets a
        QUANTIZE op for uint8 images, which changes no value.

    Returns:
      the .tflite.

    Raises:
      ExportError: with the converter's own reason.
    """
    if inference_type not in INFERENCE_TYPES:
        raise ExportError(
            "unknown inference type", found=repr(inference_type), allowed=", ".join(INFERENCE_TYPES)
        )
    if calibration is None and inference_type not in compat.FAKE_QUANT_TYPES:
        raise ExportError(
            "this TensorFlow's converter does not write {} from trained ranges".format(inference_type),
            where="TensorFlow {}".format(tf.__version__),
            allowed="--inference_type={}".format(", ".join(compat.FAKE_QUANT_TYPES)),
            fix="export the same checkpoint with TensorFlow 2, or as uint8",
        )
    handle, path = tempfile.mkstemp(suffix=".pb")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(graph_def.SerializeToString())
        converter = tf.lite.TFLiteConverter.from_frozen_graph(
            path, [input_name], output_names, {input_name: input_shape}
        )
        converter.allow_custom_ops = True
        input_type = input_type or inference_type
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            ends = (np.array([0.0, 255.0]) - mean) / std
            converter.representative_dataset = lambda: ([image] for image in _with_ends(calibration(), ends))
            converter.inference_input_type = getattr(tf, input_type)
            return _converted_quietly(converter)
        converter.inference_type = getattr(tf, inference_type)
        # int8 pixels are the uint8 ones less 128.
        shift = 128.0 if inference_type == "int8" else 0.0
        converter.quantized_input_stats = {input_name: (mean - shift, std)}
        if input_type == inference_type:
            return _converted_quietly(converter)
        # (Asked for uint8 images, the converter makes a uint8 network. So float ones, whose QUANTIZE op is
        # then given uint8.)
        from tensorflow.lite.python import util

        converter.inference_input_type = converter.inference_output_type = tf.float32
        return bytes(
            util.modify_model_io_type(_converted_quietly(converter), getattr(tf, input_type), tf.float32)
        )
    except ExportError:
        raise
    except Exception as error:
        raise ExportError(
            "the converter failed", found=_reason(str(error)), fix="run again with --debug for all of it"
        ) from error
    finally:
        os.unlink(path)


def _with_ends(images: Iterable[np.ndarray], ends: np.ndarray) -> Iterator[np.ndarray]:
    """The same images, with a black and a white pixel in the corner of the first.

    The range of the input is then that of all pixels, so that a pixel is what goes in. Without them pictures
    that are bright throughout give it another, and cameras' images would have to be scaled.
    """
    for number, image in enumerate(images):
        if not number:
            image = np.array(image)
            image[:, 0, :2] = ends[:, None]
        yield image


def _converted_quietly(converter) -> bytes:
    """The MLIR converter writes its progress to the C++ log, whatever the log level."""
    with native_stderr_silenced():
        return converter.convert()


def _reason(text: str) -> str:
    """What a converter gave for its reason: the last line, or the one that TensorFlow 1.15's aborted with."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line.partition("] ")[2] for line in lines if re.search(r": F (\./)?tensorflow/", line)]
    return (fatal or lines or ["no message"])[-1][:300]


# Ops whose TFLite kernels take the scales of all their tensors for equal. TensorFlow 1.15's converter does
# not make them so.
_COMPARES_INTEGERS = frozenset(["MAXIMUM", "MINIMUM"])


class Inspection(NamedTuple):
    """What is inside a .tflite.

    Attributes:
      ops: op name -> count.
      float_tensors: names of float tensors that an op before the post-processing makes or reads.
      size: bytes.
      unequal: names of the outputs of ops that compare integers whose scales differ.
    """

    ops: Dict[str, int]
    float_tensors: List[str]
    size: int
    unequal: List[str] = []


def inspect(model: bytes) -> Inspection:
    """Reads a .tflite's ops and tensors through the interpreter.

    Raises:
      ExportError: when no interpreter will run it.
    """
    opened = interpreter.without_delegates(model)
    try:
        opened.allocate_tensors()
    except RuntimeError as error:
        raise ExportError(
            "the interpreter refuses what the converter made",
            found=str(error).strip(),
            fix="leave the op that it names out of the model, or convert with another TensorFlow",
        ) from error
    details = {d["index"]: d for d in opened.get_tensor_details()}
    ops: Dict[str, int] = {}
    floats: List[str] = []
    unequal: List[str] = []
    for operation in opened._get_ops_details():
        name = operation["op_name"]
        ops[name] = ops.get(name, 0) + 1
        if name in (POST_PROCESS, "DEQUANTIZE"):
            continue
        for index in list(operation["inputs"]) + list(operation["outputs"]):
            if index in details and details[index]["dtype"] == np.float32 and name != "QUANTIZE":
                floats.append(details[index]["name"])
        tensors = [details[i] for i in list(operation["inputs"]) + list(operation["outputs"]) if i in details]
        if name in _COMPARES_INTEGERS and len({tensor["quantization"] for tensor in tensors}) > 1:
            unequal.append(tensors[-1]["name"])
    return Inspection(ops, sorted(set(floats)), len(model), unequal)


def check(
    model: bytes, weight_count: int, where: str, float_layers: bool = False, other_bytes: int = 0
) -> Inspection:
    """Raises unless a .tflite is fully quantised up to its post-processing, small, and runs.

    Args:
      model: the .tflite.
      weight_count: parameters of the network; one byte each is expected.
      where: for the message.
      float_layers: the config's rules leave layers float, so float tensors and four bytes a weight are right.
      other_bytes: what the file holds beside the network, its anchors.

    Raises:
      ExportError: naming what is wrong.
    """
    inspection = inspect(model)
    fake = {name: count for name, count in inspection.ops.items() if "FAKE_QUANT" in name}
    if fake:
        raise ExportError("fake quants are left in the .tflite", where=where, found=str(fake))
    if inspection.float_tensors and not float_layers:
        raise ExportError(
            "the .tflite is not fully quantised",
            where=where,
            found="{} float tensors, {} first".format(
                len(inspection.float_tensors), inspection.float_tensors[0]
            ),
            fix="their ranges were not trained: the rewrite's report says what stays float between layers; "
            "what stands behind the last one may have no range: let the network end in a layer",
        )
    if inspection.unequal and not inspection.float_tensors:
        raise ExportError(
            "the converter compares quantised numbers of different scales, so that the .tflite is wrong",
            where=where,
            found="{} such ops, {} first".format(len(inspection.unequal), inspection.unequal[0]),
            fix="convert with TensorFlow 2, or have no {} in the network".format(
                " or ".join(sorted(_COMPARES_INTEGERS))
            ),
        )
    # One byte a weight, four a bias; the format itself is the rest.
    if inspection.size > (4 if float_layers else 2) * weight_count + other_bytes + 200000:
        raise ExportError(
            "the .tflite is too large for 8 bits",
            where=where,
            found="{:,} bytes for {:,} weights".format(inspection.size, weight_count),
        )
    run_once(model, where)
    return inspection


def run_once(model: bytes, where: str) -> None:
    """Runs one inference on zeros, with the delegates that a user would get.

    Raises:
      ExportError: when it fails.
    """
    module = interpreter.module()
    try:
        with native_stderr_silenced():
            opened = module.Interpreter(model_content=model)
            opened.allocate_tensors()
        for detail in opened.get_input_details():
            opened.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        opened.invoke()
    except (RuntimeError, ValueError) as error:
        raise ExportError("the .tflite does not run", where=where, found=_reason(str(error))) from error


def count_weights(graph_def) -> int:
    """Number of float32 values in the constants of a GraphDef."""
    total = 0
    for node in graph_def.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum:
            size = 1
            for dimension in node.attr["value"].tensor.tensor_shape.dim:
                size *= dimension.size
            total += size
    return total
