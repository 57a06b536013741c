"""Builds the pipeline configs that samples*.yaml describe, counterparts of upstream's samples."""

import os

import yaml
from google.protobuf import json_format, text_format

_FOLDER = os.path.dirname(os.path.abspath(__file__))
# The files of each half: quantized samples of the TF 1 half, and all of the TF 2 half.
_OF_TF1 = ("samples",)
_OF_TF2 = ("samples_tf2", "samples_tf2_faster_rcnn", "samples_tf2_center_net")


def rows(tf2=False):
    """{name: row} of the samples of a half, in the files' order; a row's `config` is complete."""
    given = []
    for name in _OF_TF2 if tf2 else _OF_TF1:
        with open(os.path.join(_FOLDER, name + ".yaml"), encoding="utf-8") as stream:
            given += yaml.safe_load(stream)
    by_name = {row["name"]: row for row in given}
    assert len(by_name) == len(given)
    return {row["name"]: _complete(row, by_name) for row in given if not row.get("base")}


def _complete(row, by_name):
    likes = row.get("like", [])
    complete = {}
    for name in [likes] if isinstance(likes, str) else likes:
        complete = _merged(complete, _complete(by_name[name], by_name))
    complete = _merged(complete, row)
    complete.pop("base", None)
    return complete


def _merged(old, new):
    result = dict(old)
    for key, value in new.items():
        if value is None:
            del result[key]  # (a KeyError when there is nothing to take out)
        elif isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = _without_null(value)
    return result


def _without_null(value):
    if not isinstance(value, dict):
        return value
    return {key: _without_null(child) for key, child in value.items() if child is not None}


def message(row):
    """The row's TrainEvalPipelineConfig."""
    from object_detection.protos import pipeline_pb2

    return json_format.ParseDict(row["config"], pipeline_pb2.TrainEvalPipelineConfig())


def text(row):
    """The row as a .config file, what the proto does not know included."""
    result = text_format.MessageToString(message(row))
    for place, fields in row.get("unknown", {}).items():
        start = "\n{} {{\n".format(place)
        assert start in result
        result = result.replace(start, start + "\n".join(_one_a_line(fields)) + "\n")
    return result


def _one_a_line(fields):
    words = fields.split()
    return ["  {} {}".format(name, value) for name, value in zip(words[::2], words[1::2])]


def without_defaults(config):
    """A copy of a message without the fields that say what would hold anyway, for comparing."""
    copy = type(config)()
    copy.CopyFrom(config)
    _drop_defaults(copy)
    return copy


def _drop_defaults(config):
    for field, value in config.ListFields():
        if hasattr(value, "keys"):
            continue  # (a map of names to numbers or texts has no fields)
        if hasattr(value, "extend"):
            if field.message_type is not None:
                for element in value:
                    _drop_defaults(element)
        elif field.message_type is not None:
            _drop_defaults(value)
        elif value == field.default_value:
            config.ClearField(field.name)
