"""Puts TFLite's standard metadata and labels into a .tflite, as task libraries read them."""

import io
import zipfile
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from od_qat.errors import ConfigError, EnvironmentProblem, ExportError, first_line
from od_qat.model_files import metadata_schema, tflite_edits, tflite_file, tflite_graph
from od_qat.model_files.description import PROBABILITIES

LABELS = "labels.txt"
# The line of a class id that no label has, as in the label files of Google's detectors.
UNUSED = "???"
# The fields written here are those of the first version of the schema.
_PARSER = "1.0.0"
# What task libraries call the outputs of a detector, and what they are.
_NAMES = {
    "boxes": ("location", "The boxes of the detections."),
    "classes": ("category", "The index of each detection's class, a line of labels.txt."),
    "scores": ("score", "The score of each detection, from 0 to 1."),
    "count": ("number of detections", "How many of the detections count."),
}
# The place of left, top, right and bottom in a box of the OD API: top, left, bottom, right.
_SIDES = (1, 0, 3, 2)


class Attached(NamedTuple):
    """What is attached to a .tflite.

    Attributes:
      metadata: field of ModelMetadata -> value; None if there is none.
      labels: of the classes, by their index; empty if there are none.
    """

    metadata: Optional[Dict[str, Any]]
    labels: Tuple[str, ...]


def require_possible(input_type: str, where: str = "--metadata") -> None:
    """Raises unless metadata can be written here, for a model whose images have that type.

    Raises:
      ConfigError: for int8 images, which task libraries do not feed.
      EnvironmentProblem: without the schemas.
    """
    if input_type == "int8":
        raise ConfigError(
            "apps with task libraries feed uint8 images, and this model takes int8",
            where=where,
            found="--input_type=int8",
            allowed="--input_type=uint8, for an int8 network too",
            fix="leave --input_type out",
        )
    tflite_graph.schema()


def text_of(labels: Sequence[str]) -> str:
    """The content of labels.txt: the label of class 0, of class 1, and so on, a line each.

    Raises:
      ConfigError: for a label of more than one line, or without a label.
    """
    if not labels:
        raise ConfigError(
            "the classes have no names, which metadata needs",
            where="--metadata",
            found="no label",
            fix="put labels.txt beside the records, or leave --metadata out",
        )
    for label in labels:
        if label.splitlines() not in ([label], []):
            raise ConfigError(
                "a label has several lines", where=LABELS, found=repr(label), allowed="one line"
            )
    return "".join(label + "\n" for label in labels)


def labels_by_index(of_ids: Mapping[int, str], offset: int, classes: int) -> List[str]:
    """The labels in the order of class indices; an id that has no label gets the line UNUSED.

    Args:
      of_ids: label map id -> label.
      offset: the id of the class with index 0.
      classes: how many the model has.
    """
    return [of_ids.get(offset + index, UNUSED) for index in range(classes)]


def attach(model: bytes, beside: Mapping[str, Any], labels: Sequence[str]) -> bytes:
    """Returns a .tflite with metadata and labels.

    What the model computes stays as it is. The metadata names its outputs in the order in which the file has
    them.

    Args:
      model: bytes of the .tflite.
      beside: the JSON beside it, see description.content.
      labels: of the classes, by their index.

    Raises:
      ExportError: if the outputs are not those of the JSON, or if images are prepared in a way that metadata
        cannot say.
    """
    if beside["preprocessing"]["mean"] is None:
        raise ExportError(
            "task libraries do not standardize each image, as this model wants",
            where="--metadata",
            found="no mean and std in the preprocessing",
            fix="leave --metadata out, and prepare the images in your app",
        )
    described = tflite_file.parse(model)
    text = text_of(labels)
    roles = _roles(described, beside)
    metadata = metadata_schema.pack(_content(described, roles, beside, len(labels)))
    return _with_file(tflite_edits.with_attached(model, metadata_schema.BUFFER_NAME, metadata), LABELS, text)


def read(path: str) -> Attached:
    """Reads the metadata and the labels in a .tflite, of od_qat or of others.

    Raises:
      ExportError: if the file is no .tflite, or its metadata is damaged.
      EnvironmentProblem: without the package flatbuffers.
    """
    data = tflite_file.attached(path, metadata_schema.BUFFER_NAME)
    if data is None:
        return Attached(None, ())
    try:
        metadata = metadata_schema.unpack(data)
        name = _name_of_labels(metadata)
        with zipfile.ZipFile(path) as archive:
            text = archive.read(name).decode("utf-8") if name else ""
    except EnvironmentProblem:
        raise
    except Exception as error:  # (a damaged file can cause any)
        raise ExportError(
            "the metadata of the .tflite is damaged",
            where=path,
            found=first_line(error),
            fix="export it again, or remove the metadata",
        ) from error
    return Attached(metadata, tuple(text.splitlines()))


def _name_of_labels(metadata: Mapping[str, Any]) -> Optional[str]:
    for graph in metadata.get("subgraph_metadata", ())[:1]:
        for tensor in graph.get("output_tensor_metadata", ()):
            for file in tensor.get("associated_files", ()):
                if file.get("type") in (
                    metadata_schema.TENSOR_AXIS_LABELS,
                    metadata_schema.TENSOR_VALUE_LABELS,
                ):
                    return file["name"]
    return None


def _roles(described: tflite_file.TfliteFile, beside: Mapping[str, Any]) -> List[str]:
    """The role of each output, in the file's order."""
    of_json = [output["role"] for output in beside["outputs"]]
    if len(of_json) != len(described.outputs):
        raise ExportError(
            "the .tflite has other outputs than its JSON",
            found="{} outputs".format(len(described.outputs)),
            allowed="{}: {}".format(len(of_json), ", ".join(of_json)),
            fix="report this; od_qat writes both",
        )
    if any(role is not None for role in described.roles):
        return [role or "?" for role in described.roles]
    return of_json


def _content(
    described: tflite_file.TfliteFile, roles: Sequence[str], beside: Mapping[str, Any], classes: int
) -> Dict[str, Any]:
    classifies = PROBABILITIES in roles
    outputs = [_probabilities(classes) if role == PROBABILITIES else _of_detector(role) for role in roles]
    return {
        "name": "Image classifier" if classifies else "Object detector",
        "description": "Trained and quantized by od_qat, step {} of {}.".format(
            beside["global_step"], beside["checkpoint"]
        ),
        "version": str(beside["global_step"]),
        "subgraph_metadata": [
            {
                "input_tensor_metadata": [_image(described.inputs[0], beside["preprocessing"])],
                "output_tensor_metadata": outputs,
            }
        ],
        "min_parser_version": _PARSER,
    }


def _image(tensor: tflite_file.TensorOfModel, preprocessing: Mapping[str, Any]) -> Dict[str, Any]:
    _, height, width, channels = tensor.shape
    # (One number for all channels, or one for each.)
    mean, std = (np.atleast_1d(preprocessing[name]).astype(float).tolist() for name in ("mean", "std"))
    space = metadata_schema.GRAYSCALE if channels == 1 else metadata_schema.RGB
    is_float = tensor.dtype == "float32"
    low, high = (
        [(pixel - of_mean) / of_std if is_float else pixel for of_mean, of_std in zip(mean, std)]
        for pixel in (0, 255)
    )
    return {
        "name": "image",
        "description": "The image, resized to {} x {} (width x height).".format(width, height),
        "content": {
            "content_properties": (
                "ImageProperties",
                {"color_space": space, "default_size": {"width": width, "height": height}},
            )
        },
        "process_units": [{"options": ("NormalizationOptions", {"mean": mean, "std": std})}],
        "stats": {"min": low, "max": high},
    }


def _of_detector(role: str) -> Dict[str, Any]:
    name, says = _NAMES[role]
    properties: Tuple[str, Dict[str, Any]] = ("FeatureProperties", {})
    if role == "boxes":
        properties = (
            "BoundingBoxProperties",
            {
                "index": list(_SIDES),
                "type": metadata_schema.BOUNDARIES,
                "coordinate_type": metadata_schema.RATIO,
            },
        )
    found: Dict[str, Any] = {
        "name": name,
        "description": says,
        "content": {"content_properties": properties},
    }
    if role != "count":  # (2 for all three, as the metadata of Google's detectors has it)
        found["content"]["range"] = {"min": 2, "max": 2}
    if role == "classes":
        found["associated_files"] = [
            {
                "name": LABELS,
                "description": "The label of each class index.",
                "type": metadata_schema.TENSOR_VALUE_LABELS,
            }
        ]
    return found


def _probabilities(classes: int) -> Dict[str, Any]:
    return {
        "name": "probability",
        "description": "The probability of each of {} classes.".format(classes),
        "content": {"content_properties": ("FeatureProperties", {})},
        "stats": {"min": [0.0], "max": [1.0]},
        "associated_files": [
            {
                "name": LABELS,
                "description": "The label of each class.",
                "type": metadata_schema.TENSOR_AXIS_LABELS,
            }
        ],
    }


def _with_file(model: bytes, name: str, text: str) -> bytes:
    """The same model with a file in a ZIP archive behind it, which is how the schema attaches files."""
    stream = io.BytesIO(model)
    with zipfile.ZipFile(stream, "a") as archive:
        # (A ZipInfo has a fixed date: the same model makes the same file.)
        archive.writestr(zipfile.ZipInfo(name), text.encode("utf-8"))
    return stream.getvalue()
