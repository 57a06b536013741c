"""Reads, overrides, checks and writes pipeline configs."""

import functools
import os
import re
from typing import Any, Dict, Iterable, Tuple, Union

from google.protobuf import text_format

from od_qat.errors import ConfigError, quoted
from od_qat.messages import overrides as overriding
from od_qat.messages import text
from od_qat.messages.text import place_of, to_text
from od_qat.od_api import layers_proto

# Its name in the folders that commands write.
FILE = "pipeline.config"
# Fields of upstream's ssdlite_mobilenet_{v1,v2}_coco_quantize configs that no published train.proto has.
_IN_NO_PROTO = (
    "load_all_optimizer_checkpoint_vars",
    "load_all_moving_average_checkpoint_vars",
    "include_global_step",
)
# The placeholder for a folder in upstream's samples.
_TO_BE_CONFIGURED = "PATH_TO_BE_CONFIGURED"


def load(source: Union[str, Any], overrides: Iterable[str] = ()):
    """Reads a pipeline config.

    Args:
      source: path of a TrainEvalPipelineConfig in text format; or the message, which is copied.
      overrides: `dotted.proto.path=value` strings, applied in order (overrides.apply).

    Returns:
      pipeline_pb2.TrainEvalPipelineConfig.

    Raises:
      ConfigError: if the file cannot be read or is malformed, with its path and the line, or if an override
        cannot be applied, or if there is no model.
    """
    from object_detection.protos import pipeline_pb2

    if not source:
        raise ConfigError("no pipeline config given", fix="pass --pipeline_config_path=FILE")
    layers_proto.extension()
    config = pipeline_pb2.TrainEvalPipelineConfig()
    if isinstance(source, str):
        _parse(source, config)
    else:
        config.CopyFrom(source)
    for override in overrides:
        overriding.apply(config, override)
    if config.model.WhichOneof("model") is None:
        raise ConfigError(
            "the pipeline config has no model",
            where=place_of(source),
            allowed="a model { ssd { ... } } block",
        )
    return config


def _parse(path: str, config) -> None:
    text.read(
        path,
        config,
        "pipeline config",
        like="configs/ssd_mobilenet_v2_qat.config",
        fields="object_detection/protos/pipeline.proto",
        edit=functools.partial(_without_unmet_wishes, config=config),
    )


def _without_unmet_wishes(text: str, config) -> str:
    """A config's text without the fields of _IN_NO_PROTO that are false, as what they name is never restored.

    (A field that is true stays, and is reported as unknown, with its line.)
    """
    names = [name for name in _IN_NO_PROTO if name not in config.train_config.DESCRIPTOR.fields_by_name]
    line = r"^[ \t]*(?:{})[ \t]*:[ \t]*[Ff]alse[ \t]*$".format("|".join(names or ["(?!)"]))
    return re.sub(line, "", text, flags=re.MULTILINE)


def require_paths(message, where: str) -> None:
    """Raises if a path of upstream's samples has not been filled in.

    Args:
      message: a part of a config.
      where: its path in the config.

    Raises:
      ConfigError: with the field and the override that sets it.
    """
    for field, value in message.ListFields():
        name = "{}.{}".format(where, field.name)
        elements = list(enumerate(value)) if hasattr(value, "extend") else [(None, value)]
        for index, element in elements:
            path = name if index is None else "{}[{}]".format(name, index)
            if field.message_type is not None:
                require_paths(element, path)
            elif field.type == field.TYPE_STRING and _TO_BE_CONFIGURED in element:
                scratch = ", or --override {}= to train from scratch".format(path)
                raise ConfigError(
                    "a path of the config is still to be filled in",
                    where=path,
                    found=element,
                    fix="pass --override {}=PATH{}".format(
                        path, scratch if field.name == "fine_tune_checkpoint" else ""
                    ),
                )


def edit(config, edits: Dict[str, Any]) -> None:
    """Edits a config as upstream's config_util.merge_external_params_with_configs does.

    Args:
      config: TrainEvalPipelineConfig.
      edits: upstream's names of edits (`train_steps`, `label_map_path`, ...) -> value; None for no edit.
    """
    from object_detection.utils import config_util

    # (These are parts of the config, not copies.)
    parts = config_util.create_configs_from_pipeline_proto(config)
    given = {name: value for name, value in edits.items() if value is not None}
    config_util.merge_external_params_with_configs(parts, kwargs_dict=given)


def merge(config, override: Union[str, Any]) -> None:
    """Merges a config, or its text, into a config, as the OD API's --config_override does.

    Raises:
      ConfigError: if the text is malformed.
    """
    if not isinstance(override, str):
        config.MergeFrom(override)
        return
    try:
        text_format.Merge(override, config)
    except text_format.ParseError as error:
        raise ConfigError("the config override is malformed", found=quoted(error)) from error


def input_files(reader) -> Tuple[str, ...]:
    """The record files of an input reader, with patterns expanded.

    Raises:
      ConfigError: if it names none.
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

    path = os.path.join(folder, FILE)
    write_atomically(path, to_text(config))
    return path
