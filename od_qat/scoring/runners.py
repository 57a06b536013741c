"""Runs either kind of model on an image and returns its detections.

Importing this file, or running a .tflite with it, does not import TensorFlow.
"""

import contextlib
import re
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np

from od_qat.errors import ExportError, OdQatError, first_line
from od_qat.model_files import interpreter
from od_qat.model_files.description import ModelDescription, json_path
from od_qat.model_files.names import ROLES
from od_qat.quiet import native_stderr_silenced
from od_qat.scoring import images


class Detections(NamedTuple):
    """The detections of a model in one image, in the model's order (best first).

    Attributes:
      boxes: float32 [N, 4], normalised ymin, xmin, ymax, xmax, clipped to the image.
      classes: int64 [N], label map ids.
      scores: float32 [N].
    """

    boxes: np.ndarray
    classes: np.ndarray
    scores: np.ndarray


def open_runner(description: ModelDescription, threads: int = 1):
    """Opens a model: returns a TfliteRunner or a FrozenGraphRunner.

    Raises:
      ExportError, EnvironmentProblem: if the model cannot be loaded.
    """
    if threads < 1:
        raise ExportError("a model needs at least one thread", found=str(threads), allowed="1 or more")
    return (TfliteRunner if description.is_tflite else FrozenGraphRunner)(description, threads)


# Label map ids have four bytes. A class output beyond that is an uninitialised number.
_LARGEST_CLASS = 2**31


class _Runner(object):
    """What both kinds share: `prepare`, `run`, `detections`."""

    def __init__(self, description: ModelDescription) -> None:
        self.description = description

    def detect(self, pixels: np.ndarray) -> Union[Detections, np.ndarray]:
        """Returns the Detections in pixels, uint8 [height, width, 3] RGB, or a classifier's probabilities."""
        with self._said("the image cannot be brought into the form that the model takes"):
            value = self.prepare(pixels)
        outputs = self.run(value)
        return self.probabilities(*outputs) if self.description.is_classifier else self.detections(outputs)

    @property
    def image_size(self) -> Optional[Tuple[int, int]]:
        """Height and width of the image that the model takes; None if it takes any size."""
        return self.description.resize

    def close(self) -> None:
        """Frees what the model holds."""

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        """Turns uint8 [height, width, 3] into the value of the input tensor, with its batch dimension."""
        raise NotImplementedError

    def run(self, value: np.ndarray) -> List[np.ndarray]:
        """Runs the model on a value of the input tensor; returns float32 outputs in the order of roles."""
        raise NotImplementedError

    @contextlib.contextmanager
    def _said(self, what: str) -> Iterator[None]:
        """Turns any exception of a library, which a wrong file can cause, into an error of one line."""
        try:
            yield
        except OdQatError:
            raise
        except Exception as error:  # (a file can cause any)
            raise ExportError(
                what, where=self.description.path, found=first_line(error), fix="copy or export it again"
            ) from error

    def fitted(self, pixels: np.ndarray, size: Optional[Tuple[int, int]]) -> np.ndarray:
        """The image in the size and the colours that the model takes, float32 or uint8."""
        description = self.description
        if description.channels == 1:
            pixels = images.grey(pixels)
        if size is not None and (pixels.shape[:2] != size or description.method != "bilinear"):
            pixels = images.METHODS[description.method](pixels, *size)
        return images.standardized(pixels) if description.standardize else pixels

    def probabilities(self, output: np.ndarray) -> np.ndarray:
        """A classifier's output as float32 [classes].

        Raises:
          ExportError: if it has another shape, or a value is not a number.
        """
        if output.ndim < 2 or output.shape[0] != 1 or output.size < 2 or not np.isfinite(output).all():
            raise ExportError(
                "the model's output is no classifier's",
                where=self.description.path,
                found="shape {}{}".format(
                    output.shape, "" if np.isfinite(output).all() else ", NaN or infinity among its values"
                ),
                allowed="finite numbers (1, classes)",
                fix="check the output in {}".format(json_path(self.description.path)),
            )
        return output.reshape(-1)

    def detections(self, outputs: List[np.ndarray]) -> Detections:
        """Turns outputs in the order of ROLES into Detections.

        Raises:
          ExportError: if the shapes are not those of detections, or a value is not a number.
        """
        boxes, classes, scores, count = outputs
        if (
            boxes.ndim != 3
            or boxes.shape[0] != 1
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
        if count.size != 1 or not np.isfinite(count).all():
            raise ExportError(
                "the model does not say how many detections it gives",
                where=self.description.path,
                found="{} in the output for count".format(
                    "{} numbers".format(count.size) if count.size != 1 else str(count.reshape(-1)[0])
                ),
                allowed="one number, 0 to {}".format(boxes.shape[1]),
                fix="check the outputs in {}".format(json_path(self.description.path)),
            )
        number = int(round(min(max(float(count.reshape(-1)[0]), 0.0), float(boxes.shape[1]))))
        boxes, classes, scores = boxes[0, :number], classes[0, :number], scores[0, :number]
        if not all(np.isfinite(values).all() for values in (boxes, classes, scores)):
            raise ExportError(
                "the model's detections are not numbers",
                where=self.description.path,
                found="NaN or infinity among {} detections".format(number),
                fix="check that the training did not diverge (its loss must be finite)",
            )
        if (np.abs(classes) >= _LARGEST_CLASS).any():
            raise ExportError(
                "the model's classes are not ids",
                where=self.description.path,
                found="{:g} among {} detections".format(float(np.abs(classes).max()), number),
                allowed="whole numbers below {}".format(_LARGEST_CLASS),
                fix="check the outputs in {}".format(json_path(self.description.path)),
            )
        return Detections(
            # The OD API's post-processing clips boxes to the image; that of a .tflite does not.
            boxes=np.clip(boxes, 0.0, 1.0).astype(np.float32),
            classes=np.rint(classes).astype(np.int64) + self.description.class_id_offset,
            scores=scores.astype(np.float32),
        )


class TfliteRunner(_Runner):
    """A .tflite in the LiteRT interpreter, on the CPU."""

    def __init__(self, description: ModelDescription, threads: int) -> None:
        super(TfliteRunner, self).__init__(description)
        module = interpreter.module()
        with self._said("the .tflite cannot be loaded"), native_stderr_silenced():
            self._interpreter = module.Interpreter(model_path=description.path, num_threads=threads)
            self._interpreter.allocate_tensors()
            inputs = self._interpreter.get_input_details()
            outputs = self._interpreter.get_output_details()
        shape = tuple(int(size) for size in inputs[0]["shape"]) if len(inputs) == 1 else ()
        channels = description.channels
        if (
            len(shape) != 4
            or shape[0] != 1
            or shape[3] != channels
            or min(shape) < 1
            or not _is_number(inputs[0])
        ):
            raise ExportError(
                "the .tflite does not take one {} image".format("RGB" if channels == 3 else "grey"),
                where=description.path,
                found=", ".join(_shown_tensor(detail) for detail in inputs) or "no input",
                allowed="one input [1, height, width, {}] of numbers".format(channels),
                fix="export a detector's inference graph, with one image at a time",
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
        self._outputs = self._outputs_by_role(outputs)
        for detail in [self._input] + self._outputs:
            if not _is_number(detail) or not 0 <= detail["quantization"][0] < np.inf:
                raise ExportError(
                    "a tensor of the .tflite holds no numbers",
                    where=description.path,
                    found="{}, scale {}".format(_shown_tensor(detail), detail["quantization"][0]),
                    allowed="real numbers, a scale of 0 or more",
                    fix="copy or export it again",
                )

    def close(self) -> None:
        self._interpreter = None

    def _outputs_by_role(self, details: List[Any]) -> List[Any]:
        description = self.description
        by_name = {detail["name"]: detail for detail in details}
        result = []
        for role in description.roles:
            position = [name for name, _ in description.output_names].index(role)
            name = description.output_names[position][1]
            # Not every converter keeps the names of tensors; all keep the order of the outputs.
            detail = by_name.get(name) or by_name.get(
                (name or "")[:-2] if (name or "").endswith(":0") else ""
            )
            if detail is None and position < len(details) and len(details) == len(description.output_names):
                detail = details[position]
            if detail is None:
                of_detector = description.roles == ROLES
                missing = "" if not description.assumed else ", and no {}".format(json_path(description.path))
                raise ExportError(
                    "the .tflite has no output for {}".format(role),
                    where=description.path,
                    found="{} outputs{}".format(len(details), missing),
                    allowed="boxes, classes, scores, count of TFLite_Detection_PostProcess"
                    if of_detector
                    else "one output",
                    fix="export it with its post-processing" if of_detector else "export it again",
                )
            result.append(detail)
        return result

    @property
    def image_size(self) -> Optional[Tuple[int, int]]:
        return self._size

    def prepare(self, pixels: np.ndarray) -> np.ndarray:
        pixels = self.fitted(pixels, self._size)
        scale, zero_point = self._input["quantization"]
        description = self.description
        value = images.prepare(
            pixels, self._input["dtype"], description.mean, description.std, float(scale), int(zero_point)
        )
        return value[None]

    def run(self, value: np.ndarray) -> List[np.ndarray]:
        opened = self._interpreter
        with self._said("the .tflite does not run"):
            opened.set_tensor(self._input["index"], value)
            opened.invoke()
            return [
                images.dequantize(opened.get_tensor(detail["index"]), *detail["quantization"])
                for detail in self._outputs
            ]


class FrozenGraphRunner(_Runner):
    """A frozen GraphDef in a TensorFlow session, on the CPU."""

    def __init__(self, description: ModelDescription, threads: int) -> None:
        super(FrozenGraphRunner, self).__init__(description)
        from od_qat import compat
        from od_qat.graph import allowed_ops, session_config

        compat.quiet_logging()
        tf = compat.tf
        graph_def = tf.GraphDef()
        with self._said("the frozen graph cannot be loaded"):
            with open(description.path, "rb") as stream:
                graph_def.ParseFromString(stream.read())
        # This comes before the import, which computes shapes and runs ops for that.
        allowed_ops.require_harmless(graph_def, description.path)
        graph = tf.Graph()
        with self._said("the frozen graph cannot be loaded"), graph.as_default():
            tf.import_graph_def(graph_def, name="")
        names = dict(description.output_names)
        self._input = self._tensor(graph, description.input_name)
        self._size = self._require_image()
        self._fetches = [self._tensor(graph, names[role]) for role in description.roles]
        for fetch in self._fetches:
            self._require_numbers(fetch, "an output")
        self._session = tf.Session(
            graph=graph,
            config=session_config.for_many_runs(
                intra_op_parallelism_threads=threads,
                inter_op_parallelism_threads=threads,
                use_per_session_threads=True,
                device_count={"GPU": 0},
            ),
        )

    def _require_image(self) -> Optional[Tuple[int, int]]:
        """Height and width if the input fixes them, or None. Raises unless the input can be one RGB image."""
        shape = self._input.shape
        sizes = (None,) * 4 if shape.ndims is None else tuple(shape.as_list())
        channels = self.description.channels
        if len(sizes) != 4 or sizes[0] not in (None, 1) or sizes[3] not in (None, channels):
            raise ExportError(
                "the frozen graph does not take one {} image".format("RGB" if channels == 3 else "grey"),
                where=self.description.path,
                found="{} {}".format(self._input.name, list(sizes)),
                allowed="an input [1, height, width, {}]".format(channels),
                fix="export it with `od-qat export`, or name another input in {}".format(
                    json_path(self.description.path)
                ),
            )
        self._require_numbers(self._input, "the input")
        size, resize = sizes[1:3], self.description.resize
        if resize is not None and any(fixed not in (None, given) for fixed, given in zip(size, resize)):
            raise ExportError(
                "the JSON and the frozen graph disagree on the image size",
                where=json_path(self.description.path),
                found="{}x{} against {}x{}".format(*(resize + size)),
                fix="export the model again, so that both are written together",
            )
        return None if None in size else size

    def _require_numbers(self, tensor, which: str) -> None:
        if np.dtype(tensor.dtype.as_numpy_dtype).kind not in "fiub" or tensor.dtype.is_quantized:
            raise ExportError(
                "{} of the frozen graph holds no numbers".format(which),
                where=self.description.path,
                found="{} of type {}".format(tensor.name, tensor.dtype.name),
                allowed="real numbers",
                fix="export it with `od-qat export`, which takes pixels, not an encoded image, and gives "
                "detections",
            )

    @property
    def image_size(self) -> Optional[Tuple[int, int]]:
        return self.description.resize or self._size

    def tensors(self, value: np.ndarray, names: Sequence[str]) -> List[np.ndarray]:
        """The values of tensors of the graph, for a value of the input tensor."""
        with self._said("the frozen graph does not run"):
            return self._session.run(list(names), {self._input: value})

    def close(self) -> None:
        self._session.close()

    def _tensor(self, graph, name: Any):
        try:
            return graph.get_tensor_by_name(str(name))
        except (KeyError, ValueError, TypeError) as error:
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
        """Raises if this TensorFlow knows an op and cannot run it.

        Raises:
          ExportError: with the name of the op.
        """
        unknown = re.search(r"No OpKernel was registered to support Op '([^']+)'", str(error))
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
        pixels = self.fitted(pixels, description.resize)
        if self._size is not None and pixels.shape[:2] != self._size:
            raise ExportError(
                "the frozen graph takes images of one size only, and its JSON does not say to resize",
                where=description.path,
                found="an image of {}x{}".format(*pixels.shape[:2]),
                allowed="{}x{}".format(*self._size),
                fix="export it with `od-qat export`, which writes the JSON",
            )
        return images.prepare(pixels, self._input.dtype.as_numpy_dtype, description.mean, description.std)[
            None
        ]

    def run(self, value: np.ndarray) -> List[np.ndarray]:
        with self._said("the frozen graph does not run"):
            try:
                outputs = self._session.run(self._fetches, {self._input: value})
            except Exception as error:  # noqa: BLE001
                self._refuse_unknown_op(error)
                raise
        return [np.asarray(output, np.float32) for output in outputs]


def _is_number(detail: Any) -> bool:
    """Whether the tensor of an interpreter's detail holds real numbers."""
    return np.dtype(detail["dtype"]).kind in "fiu"


def _shown_tensor(detail: Any) -> str:
    return "{} {} of {}".format(
        ascii(detail["name"])[:60], list(detail["shape"])[:8], np.dtype(detail["dtype"]).name
    )
