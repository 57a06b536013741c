"""What a scorer has to know about a model: the JSON beside it, or what can be assumed without one."""

import dataclasses
import json
import logging
import os
from typing import Any, Dict, Optional, Tuple

from od_qat.errors import ExportError

FORMAT = "od_qat/1"
ROLES = ("boxes", "classes", "scores", "count")
# The names that the OD API's exporter gives, for a .pb that came without a JSON.
CANONICAL_INPUT = "image_tensor:0"
CANONICAL_OUTPUTS = {
    "boxes": "detection_boxes:0",
    "classes": "detection_classes:0",
    "scores": "detection_scores:0",
    "count": "num_detections:0",
}
DEFAULT_MEAN = DEFAULT_STD = 127.5

_FIX_EXPORT = "export the model again, so that its JSON is written beside it"
_log = logging.getLogger("od_qat")


@dataclasses.dataclass(frozen=True)
class ModelDescription:
    """How to feed a model and how to read its outputs.

    Attributes:
      path: of the model.
      is_tflite: a .tflite; otherwise a frozen GraphDef.
      input_name: tensor name of the image in a .pb; unused for a .tflite, which has one input.
      output_names: (role, tensor name or None) in the model's order; without a name the order counts.
      resize: (height, width) to resize images to; None when the model does it (a .pb), or the size of the
        input tensor (a .tflite without a JSON).
      mean: of real = (pixel - mean) / std; None when the model takes pixels as they are.
      std: as `mean`.
      class_id_offset: added to the class output to give a label map id.
      assumed: no JSON was there.
    """

    path: str
    is_tflite: bool
    input_name: Optional[str]
    output_names: Tuple[Tuple[str, Optional[str]], ...]
    resize: Optional[Tuple[int, int]]
    mean: Optional[float]
    std: Optional[float]
    class_id_offset: int
    assumed: bool = False


def json_path(model_path: str) -> str:
    """Where the JSON of a model is: beside it, same name."""
    return os.path.splitext(model_path)[0] + ".json"


def describe_model(
    model_path: str,
    mean: Optional[float] = None,
    std: Optional[float] = None,
    class_id_offset: Optional[int] = None,
) -> ModelDescription:
    """Reads the JSON beside a model; without one, assumes what the OD API's own exporters write.

    Assumed for a .pb: the canonical names, pixels in, label map ids out. Assumed for a .tflite: an image of
    the input tensor's size, normalised with 127.5 and 127.5, class ids from 0. Either is logged.

    Args:
      model_path: a .tflite or a frozen GraphDef (.pb).
      mean, std, class_id_offset: take precedence over the JSON when given.

    Raises:
      ExportError: when the model is missing or of another kind, or the JSON is damaged.
    """
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
    is_tflite = extension == ".tflite"
    beside = json_path(model_path)
    if os.path.isfile(beside):
        description = _from_json(model_path, is_tflite, beside)
    else:
        description = _assumed(model_path, is_tflite)
        given = [value for value in (mean, std, class_id_offset) if value is not None]
        if is_tflite and not given:
            _log.warning(
                "%s is missing: assuming mean %g, std %g and class ids from 0 for %s",
                beside,
                DEFAULT_MEAN,
                DEFAULT_STD,
                os.path.basename(model_path),
            )
    if std is not None and not std > 0:
        raise ExportError("std must be positive", where=model_path, found=str(std), allowed="> 0")
    changes = {}  # type: Dict[str, Any]
    if mean is not None or std is not None:
        changes["mean"] = mean if mean is not None else _or(description.mean, DEFAULT_MEAN)
        changes["std"] = std if std is not None else _or(description.std, DEFAULT_STD)
    if class_id_offset is not None:
        changes["class_id_offset"] = class_id_offset
    return dataclasses.replace(description, **changes)


def _or(value: Optional[float], default: float) -> float:
    return default if value is None else value


def _assumed(model_path: str, is_tflite: bool) -> ModelDescription:
    return ModelDescription(
        path=model_path,
        is_tflite=is_tflite,
        input_name=None if is_tflite else CANONICAL_INPUT,
        output_names=tuple((role, None if is_tflite else CANONICAL_OUTPUTS[role]) for role in ROLES),
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
    except ValueError as error:
        raise ExportError(
            "the model's JSON is damaged", where=path, found=str(error), fix=_FIX_EXPORT
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = repr(content.get("format")) if isinstance(content, dict) else type(content).__name__
        raise ExportError(
            "the JSON beside the model is not its description",
            where=path,
            found="format " + found,
            allowed="format {!r}".format(FORMAT),
            fix=_FIX_EXPORT,
        )
    try:
        return _parse(model_path, is_tflite, path, content)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ExportError(
            "the model's JSON is incomplete",
            where=path,
            found="{}: {}".format(type(error).__name__, error),
            allowed="the layout in docs/architecture.md",
            fix=_FIX_EXPORT,
        ) from error


def _parse(model_path: str, is_tflite: bool, path: str, content: Dict[str, Any]) -> ModelDescription:
    outputs = tuple((str(output["role"]), output.get("name")) for output in content["outputs"])
    missing = [role for role in ROLES if role not in dict(outputs)]
    if missing:
        raise ExportError(
            "the model has no detections to score",
            where=path,
            found="no output with role " + ", ".join(missing),
            allowed="boxes, classes, scores, count",
            fix="export it with its post-processing",
        )
    preprocessing = content["preprocessing"]
    resize = preprocessing.get("resize")
    if resize is not None and resize["method"] != "bilinear":
        raise ExportError(
            "images cannot be resized as this model wants",
            where=path,
            found=repr(resize["method"]),
            allowed="bilinear",
        )
    if preprocessing.get("channels", "RGB") != "RGB":
        raise ExportError(
            "images cannot be decoded as this model wants",
            where=path,
            found="channels {!r}".format(preprocessing["channels"]),
            allowed="RGB",
        )
    mean, std = preprocessing.get("mean"), preprocessing.get("std")
    if (mean is None) != (std is None) or (std is not None and not float(std) > 0):
        raise ValueError("mean {!r} and std {!r}".format(mean, std))
    return ModelDescription(
        path=model_path,
        is_tflite=is_tflite,
        input_name=content["inputs"][0].get("name"),
        output_names=outputs,
        resize=None if resize is None else (int(resize["height"]), int(resize["width"])),
        mean=None if mean is None else float(mean),
        std=None if std is None else float(std),
        class_id_offset=int(content["class_id_offset"]),
    )
