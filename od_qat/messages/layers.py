"""Defines `[od_qat.layers] { ... }`, od_qat's extension of a graph_rewriter block.

The block is the OD API's message GraphRewriter in a detector's config, which reserves its field numbers from
1000 on for extensions, and a message of the same layout in a classifier's. The extension is defined at run
time, so it changes none of upstream's files and needs no protoc. As a .proto file it would be::

    package od_qat;
    extend object_detection.protos.GraphRewriter { optional Layers layers = 1973; }

    message Layers {
      optional bool per_channel = 1;       // weights of convolutions with a range for each output channel
      repeated Rule rule = 2;              // a later rule wins
      optional int32 freeze_bn_delay = 3;  // optimiser steps before batch norm uses its moving statistics
      optional string placement = 4;       // "full" or "contrib"
      optional double ema_decay = 5;       // of the activation ranges' moving average
      message Rule {
        optional string scope = 1;         // regular expression of a whole name scope
        optional bool quantize = 2;
        optional int32 weight_bits = 3;
        optional int32 activation_bits = 4;
        optional bool per_channel = 5;
      }
    }

od_qat.config says what each field may be, and what it means if it is absent.
"""

from typing import Optional

from google.protobuf import descriptor_pb2

from od_qat.config import LayerRule
from od_qat.messages import classes

NAME = "od_qat.layers"
_NUMBER = 1973
_FILE = "od_qat/layers.proto"

_FIELD = descriptor_pb2.FieldDescriptorProto
_BOOL, _INT, _DOUBLE, _STRING, _MESSAGE = (
    _FIELD.TYPE_BOOL,
    _FIELD.TYPE_INT32,
    _FIELD.TYPE_DOUBLE,
    _FIELD.TYPE_STRING,
    _FIELD.TYPE_MESSAGE,
)
_RULE_FIELDS = (
    ("scope", _STRING),
    ("quantize", _BOOL),
    ("weight_bits", _INT),
    ("activation_bits", _INT),
    ("per_channel", _BOOL),
)
# The number of a field is its place here; the field of the rules has number 2.
_FIELDS = (
    ("per_channel", _BOOL),
    ("rule", _MESSAGE),
    ("freeze_bn_delay", _INT),
    ("placement", _STRING),
    ("ema_decay", _DOUBLE),
)
# The options of QatConfig that are plain fields of Layers.
OPTIONS = tuple(name for name, kind in _FIELDS if kind != _MESSAGE)


def register(message_class, pool):
    """Defines the extension for a message, once for each pool; returns its descriptor.

    Args:
      message_class: class of the message.
      pool: descriptor_pool.DescriptorPool of the message.
    """
    extendee = message_class.DESCRIPTOR
    proto = descriptor_pb2.FileDescriptorProto(
        name=_FILE, package="od_qat", syntax="proto2", dependency=[extendee.file.name]
    )
    layers = proto.message_type.add(name="Layers")
    _add_fields(layers.nested_type.add(name="Rule"), _RULE_FIELDS)
    _add_fields(layers, _FIELDS)
    proto.extension.add(
        name="layers",
        number=_NUMBER,
        type=_MESSAGE,
        label=_FIELD.LABEL_OPTIONAL,
        type_name=".od_qat.Layers",
        extendee="." + extendee.full_name,
    )
    pool.AddSerializedFile(proto.SerializeToString())
    found = pool.FindExtensionByName(NAME)
    classes.of(found.message_type)
    if hasattr(message_class, "RegisterExtension"):
        # protobuf in pure Python, and up to version 3, keeps a message's extensions with its class.
        try:
            message_class.RegisterExtension(found)
        except NotImplementedError:
            pass  # version 4 still has the method, but keeps all extensions in the pool
    return found


def _add_fields(message, fields) -> None:
    for number, (name, kind) in enumerate(fields, 1):
        field = message.field.add(name=name, number=number, type=kind, label=_FIELD.LABEL_OPTIONAL)
        if kind == _MESSAGE:
            field.label = _FIELD.LABEL_REPEATED
            field.type_name = ".od_qat.Layers.Rule"


def extension_of(message) -> Optional[object]:
    """The descriptor of the extension of a message, for `message.Extensions[...]`; None if it has none."""
    try:
        found = message.DESCRIPTOR.file.pool.FindExtensionByName(NAME)
    except KeyError:
        return None
    return found if found.containing_type.full_name == message.DESCRIPTOR.full_name else None


def options(graph_rewriter_config) -> dict:
    """The options of QatConfig that the extension of a graph_rewriter block sets.

    Args:
      graph_rewriter_config: the message.

    Returns:
      keyword arguments of QatConfig, without those that are not set.

    Raises:
      ConfigError: for an invalid rule.
    """
    extension = extension_of(graph_rewriter_config)
    if extension is None or not graph_rewriter_config.HasExtension(extension):
        return {}
    layers = graph_rewriter_config.Extensions[extension]
    found = {name: getattr(layers, name) for name in OPTIONS if layers.HasField(name)}
    if layers.rule:
        found["rules"] = tuple(_rule(rule) for rule in layers.rule)
    return found


def _rule(rule) -> LayerRule:
    fields = {name: getattr(rule, name) for name, _ in _RULE_FIELDS if rule.HasField(name)}
    return LayerRule(fields.pop("scope", ""), **fields)


def field_names() -> str:
    """The names of all fields, as text for messages."""
    return "{}; of a rule: {}".format(
        ", ".join(name for name, _ in _FIELDS), ", ".join(name for name, _ in _RULE_FIELDS)
    )
