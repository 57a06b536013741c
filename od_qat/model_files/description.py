"""Makes and reads the JSON beside a model, which says how to feed the model and how to read its outputs."""

import dataclasses
import json
import logging
import math
import os
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple, Union

from od_qat import files
from od_qat.errors import ExportError
from od_qat.model_files.names import IMAGE_TENSOR, OF_ROLE, ROLES

FORMAT = "od_qat/1"
# The role of a classifier's output; those of a detector's are names.ROLES.
PROBABILITIES = "probabilities"
DEFAULT_MEAN = DEFAULT_STD = 127.5

_FIX_EXPORT = "export the model again, so that its JSON is written beside it"
_log = logging.getLogger("od_qat")
# Paths of models for which it was said that their JSON is missing. (A report reads a model several times.)
_warned: Set[str] = set()


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """How to feed a model and how to read its outputs.

    Attributes:
      path: of the model.
      is_tflite: a .tflite; otherwise a frozen GraphDef.
      input_name: tensor name of the image in a .pb; unused for a .tflite, which has one input.
      output_names: (role, tensor name or None) in the model's order; without a name the order counts.
      resize: (height, width) to resize images to; None if the model does it (a .pb), or if it is the size of
        the input tensor (a .tflite without a JSON).
      mean: of real = (pixel - mean) / std, for all channels or for each; None if the model takes pixels as
        they are.
      std: as `mean`.
      class_id_offset: added to the class output to give a label map id.
      assumed: whether there was no JSON.
      method: how images are brought to that size; scoring/images.py has the functions.
      channels: of the image, 3 or 1.
      standardize: whether each image is given mean 0 and deviation 1 then.
      labels: names of a classifier's classes, in order; empty if they are not known.
    """

    path: str
    is_tflite: bool
    input_name: Optional[str]
    output_names: Tuple[Tuple[str, Optional[str]], ...]
    resize: Optional[Tuple[int, int]]
    mean: Union[float, Tuple[float, ...], None]
    std: Union[float, Tuple[float, ...], None]
    class_id_offset: int
    assumed: bool = False
    method: str = "bilinear"
    channels: int = 3
    standardize: bool = False
    labels: Tuple[str, ...] = ()

    @property
    def roles(self) -> Tuple[str, ...]:
        """The roles of the outputs that are read, in the order in which they are read."""
        return (PROBABILITIES,) if self.is_classifier else ROLES

    @property
    def is_classifier(self) -> bool:
        """Whether it is a classifier, with probabilities, and no detector."""
        return any(role == PROBABILITIES for role, _ in self.output_names)


def json_path(model_path: str) -> str:
    """The path of a model's JSON, which is beside the model and has the same name."""
    return os.path.splitext(model_path)[0] + ".json"


def content(
    model_file: str,
    inputs: List[Dict[str, Any]],
    outputs: List[Dict[str, Any]],
    preprocessing: Dict[str, Any],
    class_id_offset: int,
    checkpoint: str,
    global_step: Optional[int],
    quantized: bool,
    max_detections: Optional[int] = None,
    nms: Optional[Dict[str, Any]] = None,
    labels: Optional[List[str]] = None,
) -> Dict[str, Any]:
    """Makes the content of the JSON beside a model; docs/architecture.md shows it."""
    found = {
        "format": FORMAT,
        "model": os.path.basename(model_file),
        "inputs": inputs,
        "outputs": outputs,
        "preprocessing": preprocessing,
        "class_id_offset": class_id_offset,
        "max_detections": max_detections,
        "checkpoint": checkpoint,
        "global_step": global_step,
        "quantized": quantized,
    }
    if nms is not None:  # of a .tflite: the options of its post-processing
        found["nms"] = nms
    if labels is not None:  # of a classifier: the names of its classes, in order
        found["labels"] = labels
    return found


def write(
    path: str, model: bytes, beside: Dict[str, Any], others: Optional[Mapping[str, Union[bytes, str]]] = None
) -> None:
    """Writes a model, the JSON beside it and other files, all or none.

    Args:
      path: of the model.
      model: its bytes.
      beside: of :func:`content`.
      others: name of another file in the same folder -> its content.
    """
    contents = {os.path.join(os.path.dirname(path), name): data for name, data in (others or {}).items()}
    files.write_together(dict(contents, **{path: model, json_path(path): files.json_text(beside)}))


def describe_model(
    model_path: str,
    mean: Optional[float] = None,
    std: Optional[float] = None,
    class_id_offset: Optional[int] = None,
) -> ModelDescription:
    """Reads the JSON beside a model. Without one, it assumes what the OD API's own exporters write.

    It assumes that a .pb has the OD API's names, takes pixels and returns label map ids. It assumes that a
    .tflite takes an image of the input tensor's size, normalised with mean 127.5 and std 127.5, and returns
    class ids from 0; that is logged, once for each model, unless mean, std or class_id_offset is given.

    Args:
      model_path: a .tflite or a frozen GraphDef (.pb).
      mean, std, class_id_offset: take precedence over the JSON if they are given.

    Raises:
      ExportError: if the model is missing or of another kind, if the JSON is damaged, or if a given number
        cannot be used.
    """
    is_tflite = _is_tflite(model_path)
    beside = json_path(model_path)
    if os.path.isfile(beside):
        description = _from_json(model_path, is_tflite, beside)
    else:
        description = _assumed(model_path, is_tflite)
        given = [value for value in (mean, std, class_id_offset) if value is not None]
        if is_tflite and not given and model_path not in _warned:
            _warned.add(model_path)
            _log.warning(
                "%s is missing: assuming mean %g, std %g and class ids from 0 for %s",
                beside,
                DEFAULT_MEAN,
                DEFAULT_STD,
                os.path.basename(model_path),
            )
    for name, value, allowed, right in (
        ("mean", mean, _ANY_NUMBER, _is_finite),
        ("std", std, _ABOVE_ZERO, _is_positive),
        ("class_id_offset", class_id_offset, _SMALL_INTEGER, _is_small_integer),
    ):
        if value is not None and not right(value):
            raise ExportError(
                "the {} given cannot be used".format(name), found=_shown(value), allowed=allowed
            )
    changes = {}  # type: Dict[str, Any]
    if mean is not None or std is not None:
        changes["mean"] = mean if mean is not None else _or(description.mean, DEFAULT_MEAN)
        changes["std"] = std if std is not None else _or(description.std, DEFAULT_STD)
    if class_id_offset is not None:
        changes["class_id_offset"] = class_id_offset
    return dataclasses.replace(description, **changes)


def is_classifiers(model_path: str) -> bool:
    """Whether the JSON beside a model says that it is a classifier.

    Raises:
      ExportError: see describe_model.
    """
    return os.path.isfile(json_path(model_path)) and describe_model(model_path).is_classifier


def _is_tflite(model_path: str) -> bool:
    extension = os.path.splitext(model_path)[1].lower()
    if extension not in (".tflite", ".pb"):
        raise ExportError(
            "this kind of model cannot be scored",
            where=model_path,
            allowed=".tflite, .pb",
            fix="export it first",
        )
    if not os.path.isfile(model_path):
        raise ExportError(
            "cannot find the model",
            where=model_path,
            fix="check the path, or make the model with `od-qat export` or `od-qat export-tflite`",
        )
    return extension == ".tflite"


def _or(value: Optional[float], default: float) -> float:
    return default if value is None else value


def _assumed(model_path: str, is_tflite: bool) -> ModelDescription:
    return ModelDescription(
        path=model_path,
        is_tflite=is_tflite,
        input_name=None if is_tflite else IMAGE_TENSOR + ":0",
        output_names=tuple((role, None if is_tflite else OF_ROLE[role] + ":0") for role in ROLES),
        resize=None,
        mean=DEFAULT_MEAN if is_tflite else None,
        std=DEFAULT_STD if is_tflite else None,
        class_id_offset=1 if is_tflite else 0,
        assumed=True,
    )


def _from_json(model_path: str, is_tflite: bool, path: str) -> ModelDescription:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise ExportError("cannot read the model's JSON", where=path, found=error.strerror) from error
    except (ValueError, RecursionError) as error:
        found = "lists nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ExportError("the model's JSON is damaged", where=path, found=found, fix=_FIX_EXPORT) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ExportError(
            "the JSON beside the model is not its description",
            where=path,
            found="format " + _shown(content.get("format"))
            if isinstance(content, dict)
            else type(content).__name__,
            allowed="format {!r}".format(FORMAT),
            fix=_FIX_EXPORT,
        )
    return _parse(model_path, is_tflite, path, content)


# The values that a field may have, in words; the tests follow.
_ANY_NUMBER = "a number"
_ABOVE_ZERO = "a number above 0"
_SMALL_INTEGER = "a whole number, smaller than 2**31"
_SIZE = "a whole number from 1 to 16384"
_TEXT = "a name, of at most 500 printable characters"


def _is_finite(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer that no float holds
        return False


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0


def _is_small_integer(value: Any) -> bool:
    return _is_finite(value) and value == int(value) and abs(value) < 2**31


def _is_size(value: Any) -> bool:
    return _is_small_integer(value) and 1 <= value <= 16384


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.isprintable() and len(value) <= 500


def _is_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _shown(value: Any) -> str:
    """A value of the JSON as a short line, whatever is in it."""
    if isinstance(value, (dict, list)):
        return "{} with {} items".format("an object" if isinstance(value, dict) else "a list", len(value))
    if isinstance(value, int) and abs(value) >= 10**20:
        return "a number of {} bits".format(value.bit_length())
    text = ascii(value)
    return text if len(text) <= 60 else text[:57] + "..."


class _Fields(object):
    """An object of the JSON, whose fields are checked when they are read."""

    def __init__(self, path: str, content: Dict[str, Any], prefix: str = "") -> None:
        self._path, self._content, self._prefix = path, content, prefix

    def get(self, key: str, allowed: str, right: Callable[[Any], bool], optional: bool = False) -> Any:
        """The value of a field; None if it is optional and is missing or null.

        Raises:
          ExportError: if the field is missing or its value is not right, with the name of the field.
        """
        value = self._content.get(key)
        if value is None and (optional or key not in self._content):
            if optional:
                return None
            raise ExportError(
                "the model's JSON is incomplete",
                where=self._path,
                found="no {}{}".format(self._prefix, key),
                allowed="the layout in docs/architecture.md",
                fix=_FIX_EXPORT,
            )
        if not right(value):
            raise ExportError(
                "a field of the model's JSON cannot be used",
                where="{}, {}{}".format(self._path, self._prefix, key),
                found=_shown(value),
                allowed=allowed,
                fix=_FIX_EXPORT,
            )
        return value

    def inside(self, key: str) -> "_Fields":
        """The object that is the value of a field."""
        return _Fields(self._path, self.get(key, "an object", _is_object), "{}{}.".format(self._prefix, key))

    def each(self, key: str) -> Any:
        """The objects in the list that is the value of a field."""
        items = self.get(key, "a list of objects", _is_list)
        return [
            _Fields(self._path, item, "{}{}[{}].".format(self._prefix, key, number))
            for number, item in enumerate(items)
        ]


def _parse(model_path: str, is_tflite: bool, path: str, content: Dict[str, Any]) -> ModelDescription:
    fields = _Fields(path, content)
    outputs = tuple(
        (output.get("role", _TEXT, _is_text), output.get("name", _TEXT, _is_text, optional=True))
        for output in fields.each("outputs")
    )
    roles = [role for role, _ in outputs]
    if PROBABILITIES in roles:
        return _parse_classifier(model_path, is_tflite, fields, outputs)
    wrong = ["no output with role " + ", ".join(role for role in ROLES if role not in roles)]
    if all(role in roles for role in ROLES):
        wrong = ["{} outputs with role {}".format(roles.count(role), role) for role in ROLES]
        wrong = [text for text, role in zip(wrong, ROLES) if roles.count(role) > 1]
    if wrong:
        raise ExportError(
            "the model has no detections to score",
            where=path,
            found=wrong[0],
            allowed="boxes, classes, scores, count, each once",
            fix="export it with its post-processing",
        )
    preprocessing = fields.inside("preprocessing")
    resize, _ = _resize(preprocessing, path, ("bilinear",))
    channels = preprocessing.get("channels", _TEXT, _is_text, optional=True)
    if channels not in (None, "RGB"):
        raise ExportError(
            "images cannot be decoded as this model wants",
            where=path,
            found="channels {}".format(_shown(channels)),
            allowed="RGB",
            fix="export a model that takes RGB",
        )
    mean = preprocessing.get("mean", _ANY_NUMBER, _is_finite, optional=True)
    # (The JSON has mean and std both or neither.)
    std = preprocessing.get("std", _ABOVE_ZERO, _is_positive, optional=mean is None)
    if std is not None:
        mean = preprocessing.get("mean", _ANY_NUMBER, _is_finite)
    return ModelDescription(
        path=model_path,
        is_tflite=is_tflite,
        input_name=fields.each("inputs")[0].get("name", _TEXT, _is_text, optional=is_tflite),
        output_names=outputs,
        resize=resize,
        mean=None if mean is None else float(mean),
        std=None if std is None else float(std),
        class_id_offset=int(fields.get("class_id_offset", _SMALL_INTEGER, _is_small_integer)),
    )


def _resize(
    preprocessing: _Fields, path: str, methods: Tuple[str, ...]
) -> Tuple[Optional[Tuple[int, int]], str]:
    """Height and width of `resize`, None if it is null, and the method.

    Raises:
      ExportError: for a method that is not among those given.
    """
    if preprocessing.get("resize", "an object", _is_object, optional=True) is None:
        return None, methods[0]
    wanted = preprocessing.inside("resize")
    method = wanted.get("method", _TEXT, _is_text)
    if method not in methods:
        raise ExportError(
            "images cannot be resized as this model wants",
            where=path,
            found=_shown(method),
            allowed=", ".join(methods),
            fix="export it with a resizer that is bilinear",
        )
    size = (int(wanted.get("height", _SIZE, _is_size)), int(wanted.get("width", _SIZE, _is_size)))
    return size, method


# How classifiers' images are brought to their size; scoring/images.py has the functions.
CLASSIFIERS_METHODS = ("central_crop_bilinear", "crop_or_pad", "shorter_side_crop", "bilinear")
_CHANNELS = {"RGB": 3, "grey": 1}
_NUMBERS = "a number, or three"


def _are_numbers(value: Any) -> bool:
    return _is_finite(value) or (isinstance(value, list) and len(value) == 3 and all(map(_is_finite, value)))


def _are_above_0(value: Any) -> bool:
    return _are_numbers(value) and all(one > 0 for one in (value if isinstance(value, list) else [value]))


def _parse_classifier(
    model_path: str, is_tflite: bool, fields: _Fields, outputs: Tuple[Tuple[str, Optional[str]], ...]
) -> ModelDescription:
    preprocessing = fields.inside("preprocessing")
    resize, method = _resize(preprocessing, json_path(model_path), CLASSIFIERS_METHODS)
    colours = preprocessing.get("channels", "RGB or grey", lambda value: value in ("RGB", "grey"))
    mean = preprocessing.get("mean", _NUMBERS, _are_numbers, optional=True)
    std = preprocessing.get("std", _NUMBERS + " above 0", _are_above_0, optional=mean is None)
    if std is not None:
        mean = preprocessing.get("mean", _NUMBERS, _are_numbers)
    labels = fields.get("labels", "a list of names", lambda value: isinstance(value, list), optional=True)
    return ModelDescription(
        path=model_path,
        is_tflite=is_tflite,
        input_name=fields.each("inputs")[0].get("name", _TEXT, _is_text, optional=is_tflite),
        output_names=outputs,
        resize=resize,
        mean=tuple(mean) if isinstance(mean, list) else mean,
        std=tuple(std) if isinstance(std, list) else std,
        class_id_offset=int(fields.get("class_id_offset", _SMALL_INTEGER, _is_small_integer)),
        method=method,
        channels=_CHANNELS[colours],
        standardize=bool(preprocessing.get("standardize", "true or false", _is_bool, optional=True)),
        labels=tuple(str(label) for label in labels or ()),
    )


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)
