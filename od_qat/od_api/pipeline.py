"""Pipeline configs: reading, overriding and checking them before anything expensive starts."""

import os
import re
from typing import Iterable, Tuple

from google.protobuf import descriptor_pool, text_format

from od_qat.errors import ConfigError
from od_qat.od_api import layers_proto

# `a.b.[package.extension].c`: a name in brackets holds dots itself.
_STEPS = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


def load(path: str, overrides: Iterable[str] = ()):
    """Reads a pipeline config.

    Args:
      path: a TrainEvalPipelineConfig in text format.
      overrides: `dotted.proto.path=value` strings, applied in order; a value is proto text
        (`train_config.batch_size=8`, `train_input_reader.label_map_path=/x`), an index picks an element of
        a repeated field (`eval_input_reader.0.label_map_path=/x`), an extension stands in brackets
        (`graph_rewriter.[od_qat.layers].per_channel=true`).

    Returns:
      pipeline_pb2.TrainEvalPipelineConfig.

    Raises:
      ConfigError: naming the file, and the line where it is malformed.
    """
    from object_detection.protos import pipeline_pb2

    if not path:
        raise ConfigError("no pipeline config given", fix="pass --pipeline_config_path=FILE")
    try:
        with open(path, "rb") as stream:
            text = stream.read().decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "cannot read the pipeline config",
            where=path,
            found=getattr(error, "strerror", None) or "not UTF-8 text",
            fix="pass the path of a .config file, such as configs/ssd_mobilenet_v2_qat.config",
        ) from error
    layers_proto.extension()
    config = pipeline_pb2.TrainEvalPipelineConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        line = error.GetLine()
        fix = "see object_detection/protos/pipeline.proto for the fields"
        if "od_qat" in str(error):
            fix = "[{}] has {}".format(layers_proto.NAME, layers_proto.field_names())
        raise ConfigError(
            "the pipeline config is malformed",
            where="{}, line {}".format(path, line) if line else path,
            found=str(error),
            fix=fix,
        ) from error
    for override in overrides:
        apply_override(config, override)
    if config.model.WhichOneof("model") is None:
        raise ConfigError(
            "the pipeline config has no model", where=path, allowed="a model { ssd { ... } } block"
        )
    return config


def apply_override(config, override: str) -> None:
    """Sets one field of a proto from `dotted.path=value`.

    Raises:
      ConfigError: for an unknown field or a value that does not fit it.
    """
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError("malformed override", found=repr(override), allowed="dotted.path=value")
    steps = _STEPS.findall(key.strip())
    if ".".join(steps) != key.strip():
        raise ConfigError("malformed override", found=repr(override), allowed="dotted.path=value")
    *parents, leaf = steps
    message = config
    for name in parents:
        message = _step(message, name, override)
    field = _field(message, leaf, override)
    text = value.strip()
    if field.type == field.TYPE_STRING and not text.startswith(("'", '"')):
        text = '"{}"'.format(text.replace("\\", "\\\\").replace('"', '\\"'))
    elif field.type == field.TYPE_MESSAGE:
        text = "{ %s }" % text
    try:
        if field.is_extension:
            message.ClearExtension(field)
        else:
            message.ClearField(leaf)
        text_format.Merge("{}: {}".format(leaf, text), message)
    except text_format.ParseError as error:
        raise ConfigError(
            "the override's value does not fit its field", where=key, found=str(error)
        ) from error


def merge(config, text: str) -> None:
    """Merges proto text into a config, as the OD API's --config_override does.

    Raises:
      ConfigError: when it is malformed.
    """
    try:
        text_format.Merge(text, config)
    except text_format.ParseError as error:
        raise ConfigError("the config override is malformed", found=str(error)) from error


def _step(message, name: str, override: str):
    if hasattr(message, "DESCRIPTOR"):
        field = _field(message, name, override)
        child = message.Extensions[field] if field.is_extension else getattr(message, name)
        if field.type != field.TYPE_MESSAGE:
            raise ConfigError("the override goes into a plain value", where=override, found=name)
        if not hasattr(child, "DESCRIPTOR") and len(child) == 0:
            child.add()
        return child
    # A repeated message field: an index, or its first element when none is given.
    if name.isdigit():
        if int(name) >= len(message):
            raise ConfigError("the override's index is out of range", where=override, found=name)
        return message[int(name)]
    return _step(message[0], name, override)


def _field(message, name: str, override: str):
    """The descriptor of a field, or of an extension in brackets."""
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if name.startswith("["):
        layers_proto.extension()
        try:
            field = descriptor_pool.Default().FindExtensionByName(name.strip("[]"))
        except KeyError:
            field = None
        if field is not None and field.containing_type.full_name != message.DESCRIPTOR.full_name:
            field = None
    if field is None:
        raise _unknown_field(message, name, override)
    return field


def _unknown_field(message, name: str, override: str) -> ConfigError:
    names = [field.name for field in message.DESCRIPTOR.fields]
    extension = layers_proto.extension()
    if extension is not None and message.DESCRIPTOR.full_name == extension.containing_type.full_name:
        names.append("[{}]".format(layers_proto.NAME))
    return ConfigError("unknown field in an override", where=override, found=name, allowed=", ".join(names))


def input_files(reader) -> Tuple[str, ...]:
    """The record files of an input reader, patterns expanded.

    Raises:
      ConfigError: when none is named.
    """
    from od_qat.compat import tf

    patterns = list(reader.tf_record_input_reader.input_path)
    if not patterns:
        raise ConfigError(
            "the input reader names no records",
            where="tf_record_input_reader.input_path",
            fix="set it to a TFRecord file made by `od-qat data`",
        )
    files = []
    for pattern in patterns:
        files.extend(tf.gfile.Glob(pattern) or [pattern])
    return tuple(files)


def save(config, folder: str) -> str:
    """Writes `pipeline.config` into a folder, as the OD API's commands do, and returns its path."""
    from od_qat.files import write_atomically

    path = os.path.join(folder, "pipeline.config")
    write_atomically(path, to_text(config))
    return path


def to_text(config) -> str:
    """A config in proto text format."""
    return text_format.MessageToString(config)
