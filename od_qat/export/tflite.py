"""Converts a frozen GraphDef to a fully quantized .tflite. (tflite_checks.py checks both.)

It adds what upstream's export_tflite_ssd_graph adds (anchors, TFLite_Detection_PostProcess), without
TransformGraph, which TF 2 does not have.
"""

import contextlib
import os
import tempfile
from typing import Any, Callable, Dict, Iterable, Iterator, List, MutableMapping, NamedTuple, Optional

import numpy as np

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import ConfigError, ExportError
from od_qat.export.tflite_checks import (  # noqa: F401  (od_qat.tflite has them too)
    Inspection,
    check,
    count_weights,
    inspect,
    reason_of,
    require_quantised,
    run_once,
)
from od_qat.model_files.names import FLOAT16, FLOAT32, FORMS, INT8, POST_PROCESS, ROLES
from od_qat.quiet import native_stderr_silenced

INFERENCE_TYPES = ("int8", "uint8")
INPUT_TYPES = ("uint8", "int8")


class PostProcess(NamedTuple):
    """Parameters of TFLite_Detection_PostProcess.

    Attributes:
      num_classes: number of classes without background.
      y_scale, x_scale, h_scale, w_scale: of the box coder.
      score_threshold, iou_threshold: of the non-maximum suppression.
      max_detections: number of detections in all.
      detections_per_class: number of detections in each class, with regular suppression.
      regular_nms: whether to suppress class by class, as the OD API does; the fast way costs accuracy.
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
        """The parameters for the JSON beside the model."""
        content: Dict[str, Any] = {
            "kind": "regular" if self.regular_nms else "fast",
            "score_threshold": self.score_threshold,
            "iou_threshold": self.iou_threshold,
            "max_detections": self.max_detections,
        }
        if self.regular_nms:
            content["max_detections_per_class"] = self.detections_per_class
        return content

    def put_into(self, attributes: MutableMapping[str, Any]) -> None:
        """Sets the op's attributes, name -> AttrValue, of a NodeDef or a NameAttrList."""
        for key, value in (
            ("max_detections", self.max_detections),
            ("max_classes_per_detection", 1),
            ("detections_per_class", self.detections_per_class),
            ("num_classes", self.num_classes),
        ):
            attributes[key].i = value
        for key, value in (
            ("nms_score_threshold", self.score_threshold),
            ("nms_iou_threshold", self.iou_threshold),
            ("y_scale", self.y_scale),
            ("x_scale", self.x_scale),
            ("h_scale", self.h_scale),
            ("w_scale", self.w_scale),
        ):
            attributes[key].f = value
        attributes["use_regular_nms"].b = self.regular_nms


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
      quantised_input: whether the op dequantizes its inputs itself, which its kernel does for uint8. For
        int8, the converter has to put DEQUANTIZE ops in front.

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
    parameters.put_into(node.attr)
    return with_anchors


def require_types(inference_type: str, input_type: str, ptq: bool) -> None:
    """Raises unless a network of this type can be made, with images of that type.

    Args:
      inference_type: 'int8' or 'uint8', of weights and activations.
      input_type: 'int8' or 'uint8', of the image.
      ptq: post-training quantization.

    Raises:
      ConfigError: with the name of the flag.
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


def require_form(form: str, ptq: bool) -> None:
    """Raises ConfigError for another form than names.FORMS, or one without post-training quantization."""
    if form not in FORMS or (form != INT8 and not ptq):
        raise ConfigError(
            "unknown form of post-training quantization",
            found=repr(form),
            allowed=", ".join(FORMS) + "; with ptq only",
        )


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
    output_type: str = "float32",
    per_channel: bool = True,
) -> bytes:
    """Runs TensorFlow's converter.

    Args:
      graph_def: frozen GraphDef, fake-quantized, or float with `calibration`.
      input_name: op name of the input.
      input_shape: its shape.
      output_names: tensor names, without `:0`.
      inference_type: 'int8' or 'uint8', of weights and activations.
      mean, std: of the preprocessing, real = (pixel - mean) / std with pixels 0 to 255.
      calibration: makes inputs, float32 [1, height, width, 3], from which the ranges are taken (post-training
        quantization). None takes the ranges of the fake quants.
      input_type: 'int8' or 'uint8', of the input; by default the `inference_type`. An int8 network gets a
        QUANTIZE op for uint8 images, which changes no value.
      output_type: of outputs that are quantized; those of TFLite_Detection_PostProcess are float32.
      per_channel: whether calibration gives each channel of the weights its own range.

    Returns:
      the bytes of the .tflite.

    Raises:
      ExportError: with the reason that the converter gives.
    """
    _require_possible(inference_type, ptq=calibration is not None)
    input_type = input_type or inference_type
    with _converter(graph_def, input_name, input_shape, output_names) as converter:
        if calibration is not None:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            ends = (np.array([0.0, 255.0]) - mean) / std
            converter.representative_dataset = lambda: ([image] for image in _with_ends(calibration(), ends))
            converter.inference_input_type = getattr(tf, input_type)
            converter.inference_output_type = getattr(tf, output_type)
            # (TensorFlow has no public name for it.)
            converter._experimental_disable_per_channel = not per_channel
            return _converted_quietly(converter)
        converter.inference_type = getattr(tf, inference_type)
        # An int8 pixel is the uint8 pixel less 128.
        shift = 128.0 if inference_type == "int8" else 0.0
        converter.quantized_input_stats = {input_name: (mean - shift, std)}
        if input_type == inference_type:
            return _converted_quietly(converter)
        return _converted_with_other_ends(converter, input_type, output_type)


def convert_float(
    graph_def: Any, input_name: str, input_shape: List[int], output_names: List[str], form: str
) -> bytes:
    """Runs TensorFlow's converter on a float graph, for a .tflite that takes and computes floats.

    Args:
      graph_def: frozen GraphDef without fake quants.
      input_name, input_shape, output_names: as for `convert`.
      form: of names.FORMS, one that takes floats.

    Returns:
      the bytes of the .tflite.

    Raises:
      ExportError: with the reason that the converter gives.
    """
    with _converter(graph_def, input_name, input_shape, output_names) as converter:
        if form != FLOAT32:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if form == FLOAT16:
            converter.target_spec.supported_types = [tf.float16]
        return _converted_quietly(converter)


@contextlib.contextmanager
def _converter(
    graph_def: Any, input_name: str, input_shape: List[int], output_names: List[str]
) -> Iterator[Any]:
    """TensorFlow's converter of a graph. What is raised within becomes an ExportError with its reason."""
    handle, path = tempfile.mkstemp(suffix=".pb")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(graph_def.SerializeToString())
        converter = tf.lite.TFLiteConverter.from_frozen_graph(
            path, [input_name], output_names, {input_name: input_shape}
        )
        converter.allow_custom_ops = True
        yield converter
    except ExportError:  # an image of the calibration cannot be read
        raise
    except Exception as error:
        raise ExportError(
            "the converter failed", found=reason_of(str(error)), fix="run again with --debug for all of it"
        ) from error
    finally:
        os.unlink(path)


def _require_possible(inference_type: str, ptq: bool) -> None:
    if inference_type not in INFERENCE_TYPES:
        raise ExportError(
            "unknown inference type", found=repr(inference_type), allowed=", ".join(INFERENCE_TYPES)
        )
    if not ptq and inference_type not in compat.FAKE_QUANT_TYPES:
        raise ExportError(
            "this TensorFlow's converter does not write {} from trained ranges".format(inference_type),
            where="TensorFlow {}".format(tf.__version__),
            allowed="--inference_type={}".format(", ".join(compat.FAKE_QUANT_TYPES)),
            fix="export the same checkpoint with TensorFlow 2, or as uint8",
        )


def _converted_with_other_ends(converter, input_type: str, output_type: str) -> bytes:
    """Converts to a network that takes images of another type than it computes in.

    If the converter is asked for uint8 images, it makes a uint8 network. So it is asked for float images, and
    the QUANTIZE op of the input then gets the type.
    """
    from tensorflow.lite.python import util

    converter.inference_input_type = converter.inference_output_type = tf.float32
    return bytes(
        util.modify_model_io_type(
            _converted_quietly(converter), getattr(tf, input_type), getattr(tf, output_type)
        )
    )


def _with_ends(images: Iterable[np.ndarray], ends: np.ndarray) -> Iterator[np.ndarray]:
    """The same images, with a black and a white pixel in the corner of the first one.

    The input then has the range of all pixel values, so that pixels go in as they are. Without them, bright
    pictures give it a smaller range, and the images of a camera would have to be scaled.
    """
    for number, image in enumerate(images):
        if not number:
            image = np.array(image)
            image[:, 0, :2] = ends[:, None]
        yield image


def _converted_quietly(converter) -> bytes:
    """Converts without the progress that the MLIR converter writes to the C++ log at any log level."""
    with native_stderr_silenced():
        return converter.convert()
