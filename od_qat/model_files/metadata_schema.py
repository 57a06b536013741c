"""Packs and reads the tables of TFLite's metadata, which tell an app how to feed a model.

The tables are those of metadata_schema.fbs (tensorflow/tflite-support 0.4.4, and mediapipe 1.2): of each, the
fields up to the last one that is used here, in the order of the schema, which numbers them.
"""

import struct
from typing import Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from od_qat.errors import EnvironmentProblem

IDENTIFIER = b"M001"
# The name of the metadata's buffer in the .tflite.
BUFFER_NAME = "TFLITE_METADATA"
ROOT = "ModelMetadata"

# Values of the schema's enumerations.
TENSOR_AXIS_LABELS, TENSOR_VALUE_LABELS = 2, 3  # of AssociatedFile.type
RGB, GRAYSCALE = 1, 2  # of ImageProperties.color_space
BOUNDARIES = 1  # of BoundingBoxProperties.type
RATIO = 0  # of BoundingBoxProperties.coordinate_type

_TABLES: Dict[str, Tuple[Tuple[str, str], ...]] = {
    ROOT: (
        ("name", "string"),
        ("description", "string"),
        ("version", "string"),
        ("subgraph_metadata", "[SubGraphMetadata]"),
        ("author", "string"),
        ("license", "string"),
        ("associated_files", "[AssociatedFile]"),
        ("min_parser_version", "string"),
    ),
    "SubGraphMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("input_tensor_metadata", "[TensorMetadata]"),
        ("output_tensor_metadata", "[TensorMetadata]"),
    ),
    "TensorMetadata": (
        ("name", "string"),
        ("description", "string"),
        ("dimension_names", "[string]"),
        ("content", "Content"),
        ("process_units", "[ProcessUnit]"),
        ("stats", "Stats"),
        ("associated_files", "[AssociatedFile]"),
    ),
    "AssociatedFile": (("name", "string"), ("description", "string"), ("type", "byte")),
    "Content": (("content_properties", "ContentProperties"), ("range", "ValueRange")),
    "FeatureProperties": (),
    "ImageProperties": (("color_space", "byte"), ("default_size", "ImageSize")),
    "ImageSize": (("width", "uint"), ("height", "uint")),
    "BoundingBoxProperties": (("index", "[uint]"), ("type", "byte"), ("coordinate_type", "byte")),
    "ValueRange": (("min", "int"), ("max", "int")),
    "ProcessUnit": (("options", "ProcessUnitOptions"),),
    "NormalizationOptions": (("mean", "[float]"), ("std", "[float]")),
    "Stats": (("max", "[float]"), ("min", "[float]")),
}
# A union takes two fields: the number of the table in it, from 1, and the table. (The schema has others after
# these, which other tools write.)
_UNIONS = {
    "ContentProperties": ("FeatureProperties", "ImageProperties", "BoundingBoxProperties"),
    "ProcessUnitOptions": ("NormalizationOptions",),
}
_SCALARS = {"byte": np.int8, "int": np.int32, "uint": np.uint32, "float": np.float32}

Values = Mapping[str, Any]


def pack(values: Values) -> bytes:
    """Returns the metadata as FlatBuffers.

    Args:
      values: field of ModelMetadata -> value; tables in it are mappings too. The value of a union is a pair,
        (name of the table, mapping).

    Raises:
      EnvironmentProblem: without the package flatbuffers, which TensorFlow 2 brings.
    """
    builder = _flatbuffers().Builder(1024)
    builder.Finish(_put_table(builder, ROOT, values), IDENTIFIER)
    return bytes(builder.Output())


def unpack(data: bytes) -> Dict[str, Any]:
    """Returns what `pack` was given, without the fields that are absent, and tables that are not named here.

    Raises:
      EnvironmentProblem: without the package flatbuffers.
      Exception: of any kind, for damaged data.
    """
    (root,) = struct.unpack_from("<I", data)
    return _get_table(ROOT, _flatbuffers().table.Table(bytearray(data), root))


def _flatbuffers() -> Any:
    try:
        import flatbuffers
        import flatbuffers.table
    except ImportError as error:
        raise EnvironmentProblem(
            "what reads and writes the metadata of a .tflite is not installed",
            found="no flatbuffers",
            fix="pip install flatbuffers (TensorFlow 2 brings it)",
        ) from error
    return flatbuffers


def _put_table(builder: Any, kind: str, values: Values) -> int:
    unknown = set(values) - {name for name, _ in _TABLES[kind]}
    if unknown:
        raise KeyError("{} has no {}".format(kind, ", ".join(sorted(unknown))))
    slots: List[Tuple[str, Any]] = []  # ('byte' or another scalar, or 'offset'; value)
    for name, field in _TABLES[kind]:
        value = values.get(name)
        if field in _UNIONS:
            inner, content = value if value is not None else (None, None)
            slots.append(("byte", 1 + _UNIONS[field].index(inner) if inner else None))
            slots.append(("offset", _put_table(builder, inner, content) if inner else None))
        elif field in _SCALARS:
            slots.append((field, value))
        else:
            slots.append(("offset", None if value is None else _put(builder, field, value)))
    builder.StartObject(len(slots))
    for number, (field, value) in enumerate(slots):
        if value is None:
            continue
        if field == "offset":
            builder.PrependUOffsetTRelativeSlot(number, value, 0)
        else:
            prepend = {"byte": "PrependInt8Slot", "int": "PrependInt32Slot", "uint": "PrependUint32Slot"}
            getattr(builder, prepend[field])(number, value, 0)
    return builder.EndObject()


def _put(builder: Any, field: str, value: Any) -> int:
    """Writes a text, a table or a list; returns its offset."""
    if field == "string":
        return builder.CreateString(value)
    if not field.startswith("["):
        return _put_table(builder, field, value)
    inner = field[1:-1]
    if inner in _SCALARS:
        return builder.CreateNumpyVector(np.asarray(value, _SCALARS[inner]))
    offsets = [_put(builder, inner, one) for one in value]
    builder.StartVector(4, len(offsets), 4)
    for offset in reversed(offsets):
        builder.PrependUOffsetTRelative(offset)
    return builder.EndVector()


def _get_table(kind: str, table: Any) -> Dict[str, Any]:
    found, number = {}, 0
    for name, field in _TABLES[kind]:
        position = table.Offset(4 + 2 * number)
        if field in _UNIONS:
            number += 1
            inner, position = position, table.Offset(4 + 2 * number)
            if inner and position:
                kind_of_it = table.Get(_flag("ubyte"), inner + table.Pos)
                if 0 < kind_of_it <= len(_UNIONS[field]):
                    of_union = _UNIONS[field][kind_of_it - 1]
                    found[name] = (of_union, _get_table(of_union, _at(table, position)))
        elif position:
            found[name] = _get(field, table, position)
        number += 1
    return found


def _get(field: str, table: Any, position: int) -> Any:
    if field in _SCALARS:
        return table.Get(_flag(field), position + table.Pos)
    if field == "string":
        return table.String(position + table.Pos).decode("utf-8")
    if not field.startswith("["):
        return _get_table(field, _at(table, position))
    inner, start, count = field[1:-1], table.Vector(position), table.VectorLen(position)
    if inner in _SCALARS:
        return [table.Get(_flag(inner), start + 4 * index) for index in range(count)]
    if inner == "string":
        return [table.String(start + 4 * index).decode("utf-8") for index in range(count)]
    places: Sequence[int] = [table.Indirect(start + 4 * index) for index in range(count)]
    return [_get_table(inner, type(table)(table.Bytes, place)) for place in places]


def _at(table: Any, position: int) -> Any:
    return type(table)(table.Bytes, table.Indirect(position + table.Pos))


def _flag(field: str) -> Any:
    from flatbuffers import number_types

    names = {
        "byte": "Int8Flags",
        "ubyte": "Uint8Flags",
        "int": "Int32Flags",
        "uint": "Uint32Flags",
        "float": "Float32Flags",
    }
    return getattr(number_types, names[field])
