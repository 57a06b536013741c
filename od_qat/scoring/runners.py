"""One image in, detections out, for either kind of model.

Importing this file, or running a .tflite with it, does not import TensorFlow.
"""

import re
from typing import Any, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.errors import EnvironmentProblem, ExportError, first_line
from od_qat.quiet import native_stderr_silenced
from od_qat.scoring import images
from od_qat.scoring.description import ROLES, ModelDescription, json_path


class Detections(NamedTuple):
    """What a model found in one image, in the model's order (best first).

    Attributes:
      boxes: float32 [N, 4], normalised ymin, xmin, ymax, xmax, clipped to the image.
      classes: int64 [N], label map ids.
      scores: float32 [N].
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def open_runner(description: ModelDescription, threads: int = 1):
    """A TfliteRunner or a FrozenGraphRunner.

    Raises:
      ExportError, EnvironmentProblem: when the model cannot be loaded.
    """
    if threads < 1:
        raise ExportError("a model needs at least one thread", found=str(threads), allowed="1 or more")
    return (TfliteRunner if description.is_tflite else FrozenGraphRunner)(description, threads)


class _Runner(object):
    """The road that both kinds share: `prepare`, `run`, `detections`."""

    def __init__(self, description: ModelDescription) -> None:
        self.description = description

    def detect(self, pixels: np.ndarray) -> Detections:
        """uint8 [height, width, 3] RGB -> Detections."""
        return self.detections(self.run(self.prepare(pixels)))

    @property
    def image_size(self) -> Optional[Tuple[int, int]]:
        """Height and width of the image that the model takes; None when it takes any."""
        return self.description.resize

    def close(self) -> None:
        """Frees what the model holds."""

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 [height, width, 3] -> the input tensor's value, with its batch dimension."""
        raise NotImplementedError

    def run(self, value: np.ndarray) -> List[np.ndarray]:
        """The input tensor's value -> the outputs in the order of ROLES, float32."""
        raise NotImplementedError

    def detections(self, outputs: List[np.ndarray]) -> Detections:
        """Outputs in the order of ROLES -> Detections.

        Raises:
          ExportError: when the shapes are not those of detections, or a value is not a number.
        """
        boxes, classes, scores, count = outputs
        if (
            boxes.ndim != 3
            or boxes.shape[2] != 4
            or classes.shape != boxes.shape[:2]
            or scores.shape != classes.shape
        ):
            raise ExportError(
                "the model's outputs are not detections",
                where=self.description.path,
                found="boxes {}, classes {}, scores {}".format(boxes.shape, classes.shape, scores.shape),
                allowed="boxes (1, N, 4), classes (1, N), scores (1, N)",
                fix="check the outputs in {}".format(json_path(self.description.path)),
            )
        number = min(max(int(round(float(count.reshape(-1)[0]))), 0), boxes.shape[1])
        boxes, classes, scores = boxes[0, :number], classes[0, :number], scores[0, :number]
        if not (np.isfinite(boxes).all() and np.isfinite(scores).all() and np.isfinite(classes).all()):
            raise ExportError(
                "the model's detections are not numbers",
                where=self.description.path,
                found="NaN or infinity among {} detections".format(number),
                fix="check that the training did not diverge (its loss must be finite)",
            )
        return Detections(
            # The OD API's own post-processing clips boxes to the image; that of a .tflite does not.
            boxes=np.clip(boxes, 0.0, 1.0).astype(np.float32),
            classes=np.rint(classes).astype(np.int64) + self.description.class_id_offset,
            scores=scores.astype(np.float32),
        )


def _interpreter_class():
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError:
        try:
            from tflite_runtime.interpreter import Interpreter
        except ImportError as error:
            raise EnvironmentProblem(
                "the LiteRT interpreter is not installed",
                found="neither ai_edge_litert nor tflite_runtime",
                fix="pip install ai-edge-litert (Python 3.7: tflite-runtime)",
            ) from error
    return Interpreter


class TfliteRunner(_Runner):
    """A .tflite in the LiteRT interpreter, on the CPU."""

    def __init__(self, description: ModelDescription, threads: int) -> None:
        super(TfliteRunner, self).__init__(description)
        interpreter_class = _interpreter_class()
        try:
            with native_stderr_silenced():
                self._interpreter = interpreter_class(model_path=description.path, num_threads=threads)
                self._interpreter.allocate_tensors()
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                "the .tflite cannot be loaded",
                where=description.path,
                found=first_line(error),
                fix="export it again",
            ) from error
        inputs = self._interpreter.get_input_details()
        shape = tuple(int(size) for size in inputs[0]["shape"])
        if len(inputs) != 1 or len(shape) != 4 or shape[0] != 1 or shape[3] != 3:
            raise ExportError(
                "the .tflite does not take one RGB image",
                where=description.path,
                found=", ".join("{} {}".format(detail["name"], list(detail["shape"])) for detail in inputs),
                allowed="one input [1, height, width, 3]",
            )
        if description.resize is not None and description.resize != shape[1:3]:
            raise ExportError(
                "the JSON and the .tflite disagree on the image size",
                where=json_path(description.path),
                found="{}x{} against {}x{}".format(*(description.resize + shape[1:3])),
                fix="export the model again, so that both are written together",
            )
        self._input = inputs[0]
        self._size = shape[1:3]
        self._outputs = self._outputs_by_role()

    def _outputs_by_role(self) -> List[Any]:
        description, details = self.description, self._interpreter.get_output_details()
        by_name = {detail["name"]: detail for detail in details}
        result = []
        for role in ROLES:
            position = [name for name, _ in description.output_names].index(role)
            name = description.output_names[position][1]
            # Tensor names do not survive every converter; the order of the outputs does.
            detail = by_name.get(name) or by_name.get(
                (name or "")[:-2] if (name or "").endswith(":0") else ""
            )
            if detail is None and position < len(details) and len(details) == len(description.output_names):
                detail = details[position]
            if detail is None:
                missing = "" if not description.assumed else ", and no {}".format(json_path(description.path))
                raise ExportError(
                    "the .tflite has no output for {}".format(role),
                    where=description.path,
                    found="{} outputs{}".format(len(details), missing),
                    allowed="boxes, classes, scores, count of TFLite_Detection_PostProcess",
                    fix="export it with its post-processing",
                )
            result.append(detail)
        return result

    @property
    def image_size(self) -> Optional[Tuple[int, int]]:
        return self._size

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        if pixels.shape[:2] != self._size:
            pixels = images.resize_bilinear(pixels, *self._size)
        scale, zero_point = self._input["quantization"]
        description = self.description
        value = images.prepare(
            pixels, self._input["dtype"], description.mean, description.std, float(scale), int(zero_point)
        )
        return value[None]

    def run(self, value: np.ndarray) -> List[np.ndarray]:
        interpreter = self._interpreter
        interpreter.set_tensor(self._input["index"], value)
        try:
            interpreter.invoke()
        except (RuntimeError, ValueError) as error:
            raise ExportError(
                "the .tflite does not run",
                where=self.description.path,
                found=first_line(error),
                fix="export it again",
            ) from error
        return [
            images.dequantize(interpreter.get_tensor(detail["index"]), *detail["quantization"])
            for detail in self._outputs
        ]


class FrozenGraphRunner(_Runner):
    """A frozen GraphDef in a TensorFlow session, on the CPU."""

    def __init__(self, description: ModelDescription, threads: int) -> None:
        super(FrozenGraphRunner, self).__init__(description)
        from google.protobuf.message import DecodeError

        from od_qat import compat

        compat.quiet_logging()
        tf = compat.tf
        graph_def = tf.GraphDef()
        try:
            with open(description.path, "rb") as stream:
                graph_def.ParseFromString(stream.read())
            graph = tf.Graph()
            with graph.as_default():
                tf.import_graph_def(graph_def, name="")
        except (DecodeError, ValueError, OSError) as error:
            raise ExportError(
                "the frozen graph cannot be loaded",
                where=description.path,
                found=first_line(error),
                fix="export it again",
            ) from error
        except tf.errors.NotFoundError as error:
            self._refuse_unknown_op(error)
            raise
        self._unknown_op_errors = (tf.errors.NotFoundError, tf.errors.InvalidArgumentError)
        names = dict(description.output_names)
        self._input = self._tensor(graph, description.input_name)
        self._fetches = [self._tensor(graph, names[role]) for role in ROLES]
        self._session = tf.Session(
            graph=graph,
            config=tf.ConfigProto(
                intra_op_parallelism_threads=threads,
                inter_op_parallelism_threads=threads,
                use_per_session_threads=True,
                device_count={"GPU": 0},
            ),
        )

    def close(self) -> None:
        self._session.close()

    def _tensor(self, graph, name: Any):
        try:
            return graph.get_tensor_by_name(str(name))
        except (KeyError, ValueError) as error:
            beside = json_path(self.description.path)
            assumed = self.description.assumed
            raise ExportError(
                "the frozen graph has no tensor {}".format(name),
                where=self.description.path,
                found="no {} to name its tensors".format(beside) if assumed else "another name in its JSON",
                allowed="the names of the OD API's exporter (image_tensor, detection_boxes, ...)"
                if assumed
                else None,
                fix="export it with `od-qat export`, which writes the JSON beside it",
            ) from error

    def _refuse_unknown_op(self, error: Exception) -> None:
        """Raises when an op is what was not found.

        The import says so; of an op in a function, and of one that only TensorFlow's converter knows (from a
        conversion in this process on), the first run.

        Raises:
          ExportError: naming the op.
        """
        unknown = re.search(
            r"(?:Op type not registered|No OpKernel was registered to support Op) '([^']+)'", str(error)
        )
        if unknown is not None:
            raise ExportError(
                "the frozen graph has an op that TensorFlow does not have here",
                where=self.description.path,
                found=unknown.group(1),
                fix="if it was made for TFLite, score the .tflite made from it; else export it again with "
                "`od-qat export`",
            ) from error

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        description = self.description
        if description.resize is not None and pixels.shape[:2] != description.resize:
            pixels = images.resize_bilinear(pixels, *description.resize)
        return images.prepare(pixels, self._input.dtype.as_numpy_dtype, description.mean, description.std)[
            None
        ]

    def run(self, value: np.ndarray) -> List[np.ndarray]:
        try:
            outputs = self._session.run(self._fetches, {self._input: value})
        except self._unknown_op_errors as error:
            self._refuse_unknown_op(error)
            raise
        return [np.asarray(output, np.float32) for output in outputs]
