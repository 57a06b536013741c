"""Compiled protos as .proto files, as upstream's repository has them (its packages do not)."""

import importlib
import itertools
import os

from google.protobuf import descriptor_pb2

_FIELD = descriptor_pb2.FieldDescriptorProto
_MAX = 1 << 29


def write(tree):
    """Puts a .proto in the place of each *_pb2.py of a models/research folder; returns their names."""
    folder = os.path.join(tree, "object_detection", "protos")
    names = sorted(name[: -len("_pb2.py")] for name in os.listdir(folder) if name.endswith("_pb2.py"))
    for name in names:
        definition = descriptor_pb2.FileDescriptorProto()
        importlib.import_module("object_detection.protos.{}_pb2".format(name)).DESCRIPTOR.CopyToProto(
            definition
        )
        with open(os.path.join(folder, name + ".proto"), "w") as stream:
            stream.write(_file(definition))
        os.unlink(os.path.join(folder, name + "_pb2.py"))
    return names


def _file(definition):
    lines = ['syntax = "proto2";', "package {};".format(definition.package)]
    lines += ['import "{}";'.format(name) for name in definition.dependency]
    for message in definition.message_type:
        lines += _message(message)
    for enum in definition.enum_type:
        lines += _enum(enum)
    return "\n".join(lines) + "\n"


def _message(message):
    maps = {one.name: one for one in message.nested_type if one.options.map_entry}
    lines = ["message {} {{".format(message.name)]
    for nested in message.nested_type:
        lines += [] if nested.name in maps else _message(nested)
    for enum in message.enum_type:
        lines += _enum(enum)
    # In their order, which a oneof in the middle belongs to.
    for oneof, fields in itertools.groupby(message.field, _oneof_of):
        lines += [] if oneof is None else ["oneof {} {{".format(message.oneof_decl[oneof].name)]
        lines += [_field(field, maps) for field in fields]
        lines += [] if oneof is None else ["}"]
    for one in message.extension_range:
        end = "max" if one.end >= _MAX else one.end - 1
        lines.append("extensions {} to {};".format(one.start, end))
    lines += ["reserved {} to {};".format(one.start, one.end - 1) for one in message.reserved_range]
    return lines + ["}"]


def _enum(enum):
    values = ["{} = {};".format(value.name, value.number) for value in enum.value]
    return ["enum {} {{".format(enum.name)] + values + ["}"]


def _oneof_of(field):
    return field.oneof_index if field.HasField("oneof_index") else None


def _field(field, maps):
    entry = maps.get(field.type_name.rpartition(".")[2])
    if entry is not None:
        kind = "map<{}, {}>".format(*map(_type, entry.field))
    elif _oneof_of(field) is not None:
        kind = _type(field)
    else:
        label = {_FIELD.LABEL_OPTIONAL: "optional", _FIELD.LABEL_REQUIRED: "required"}
        kind = "{} {}".format(label.get(field.label, "repeated"), _type(field))
    options = []
    if field.HasField("default_value"):
        text = field.default_value
        options.append("default = " + ('"{}"'.format(text) if field.type == _FIELD.TYPE_STRING else text))
    for name in ("deprecated", "packed"):
        if field.options.HasField(name):
            options.append("{} = {}".format(name, str(getattr(field.options, name)).lower()))
    return "{} {} = {}{};".format(
        kind, field.name, field.number, " [{}]".format(", ".join(options)) if options else ""
    )


def _type(field):
    if field.type_name:
        return field.type_name
    return _FIELD.Type.Name(field.type)[len("TYPE_") :].lower()
