"""Applies `--override dotted.path=value`, which sets one field of a pipeline config."""

import difflib
import re
import sys
from typing import Iterator, List, Optional, Tuple

from google.protobuf import text_format

from od_qat.errors import ConfigError, quoted
from od_qat.messages import layers

_INDEX = re.compile(r"\[(\d+)\]")
# `a.b.[package.extension].c`: a name in brackets has dots itself.
_STEPS = re.compile(r"\[[^\]]*\]|[^.\[\]]+")


def apply(config, override: str) -> None:
    """Sets or clears one field of a proto.

    Args:
      config: any message, changed in place.
      override: `dotted.path=value`. The value is proto text; a string needs no quotes, and a message no
        braces. `path=` clears the field: a fine_tune_checkpoint, for example, or a whole graph_rewriter
        block. An index, `path[0]` or `path.0`, picks an element of a repeated field; the index after the
        last one appends. Without an index, a path that ends at a repeated field replaces all of it, and a
        path that continues takes the first message. An extension is written in brackets:
        `graph_rewriter.[od_qat.layers]`.

    Raises:
      ConfigError: for an unknown field or a value that does not fit. The config is then unchanged, except
        for empty messages along the path.
    """
    if not all(one.isprintable() or one.isspace() for one in override):
        found = quoted(ascii(override))
        raise ConfigError("an override that is no text", found=found, allowed="dotted.path=value")
    key, separator, value = override.partition("=")
    key = key.strip()
    steps = _STEPS.findall(_INDEX.sub(r".\1", key))
    if not separator or not key or ".".join(steps) != _INDEX.sub(r".\1", key):
        raise ConfigError("malformed override", found=quoted(repr(override)), allowed="dotted.path=value")
    message, taken = config, []
    while True:
        name = steps[len(taken)]
        field = _field(config, message, name, key, taken)
        taken.append(name)
        index = None
        if _is_repeated(message, field) and len(taken) < len(steps) and steps[len(taken)].isdigit():
            index = int(steps[len(taken)])
            taken.append(steps[len(taken)])
        if len(taken) == len(steps):
            _assign(message, field, index, value.strip(), key)
            return
        if field.message_type is None:
            raise ConfigError(
                "the override's path continues after a plain value",
                where=key,
                found=".".join(steps[len(taken) :]),
                allowed="{}={}".format(".".join(taken), _kind(field)),
            )
        _warn_of_replaced(message, field, key)
        message = _child(message, field, index, key)


def _value(message, field):
    return message.Extensions[field] if field.is_extension else getattr(message, field.name)


def _clear(message, field) -> None:
    if field.is_extension:
        message.ClearExtension(field)
    else:
        message.ClearField(field.name)


def _is_repeated(message, field) -> bool:
    # (FieldDescriptor.label is deprecated in newer protobuf, and older protobuf has no is_repeated.)
    return hasattr(_value(message, field), "extend")


def _warn_of_replaced(message, field, key: str) -> None:
    """Warns if the path goes through one of several alternatives and so replaces the one in the config."""
    alternatives = field.containing_oneof
    former = alternatives and message.WhichOneof(alternatives.name)
    if former and former != field.name:
        print(
            "warning: --override {}: {} replaces the config's {} and everything in it".format(
                key, field.name, former
            ),
            file=sys.stderr,
        )


def _child(message, field, index: Optional[int], key: str):
    """The message in which the path continues."""
    child = _value(message, field)
    if not _is_repeated(message, field):
        return child
    index = index or 0
    _require_index(field, index, len(child), key)
    return child.add() if index == len(child) else child[index]


def _require_index(field, index: int, most: int, key: str) -> None:
    if index > most:
        raise ConfigError(
            "the override's index is out of range",
            where=key,
            found="{}[{}]".format(field.name, index),
            allowed="0 to {}, the last of which appends".format(most) if most else "0, which appends",
        )


def _assign(message, field, index: Optional[int], value: str, key: str) -> None:
    if index is None:
        parsed = _parsed(message, field, value, key) if value else None
        _clear(message, field)
        if parsed is not None:
            message.MergeFrom(parsed)
        return
    elements = _value(message, field)
    if not value:
        _require_index(field, index, len(elements) - 1, key)
        del elements[index]
        return
    _require_index(field, index, len(elements), key)
    element = _value(_parsed(message, field, value, key), field)[0]
    if field.message_type is not None:
        (elements.add() if index == len(elements) else elements[index]).CopyFrom(element)
    elif index == len(elements):
        elements.append(element)
    else:
        elements[index] = element


def _parsed(message, field, value: str, key: str):
    """A message of the same type in which only this field is set."""
    text = value
    is_list = value.startswith("[") and _is_repeated(message, field)
    if field.type == field.TYPE_STRING and not is_list and not value.startswith(("'", '"')):
        text = '"{}"'.format(value.replace("\\", "\\\\").replace('"', '\\"'))
    elif field.message_type is not None and not is_list and not value.startswith("{"):
        text = "{ %s }" % value
    name = "[{}]".format(field.full_name) if field.is_extension else field.name
    parsed = type(message)()
    try:
        text_format.Merge("{}: {}".format(name, text), parsed)
        found = [other.name for other, _ in parsed.ListFields()]
        if not found:  # `[]`
            fix = "{}= clears the field".format(key)
            raise ConfigError("the override holds no value", where=key, found=repr(value), fix=fix)
        if found != [field.name]:
            raise text_format.ParseError("{!r} is more than one value".format(value))
    except text_format.ParseError as error:
        raise ConfigError(
            "the override's value does not fit its field",
            where=key,
            found=quoted(repr(value) if field.message_type is None else error),
            allowed=_kind(field),
        ) from error
    return parsed


def _kind(field) -> str:
    """The values that a field takes, in words."""
    if field.message_type is not None:
        return "{{ {} }}".format(", ".join(other.name for other in field.message_type.fields))
    if field.enum_type is not None:
        return ", ".join(value.name for value in field.enum_type.values)
    if field.type == field.TYPE_BOOL:
        return "true or false"
    if field.type in (field.TYPE_FLOAT, field.TYPE_DOUBLE):
        return "a number"
    if field.type in (field.TYPE_UINT32, field.TYPE_UINT64):
        return "a whole number from 0"
    return "text" if field.type in (field.TYPE_STRING, field.TYPE_BYTES) else "a whole number"


def _field(config, message, name: str, key: str, taken: List[str]):
    """The descriptor of a field, or of an extension in brackets."""
    field = message.DESCRIPTOR.fields_by_name.get(name)
    if name.startswith("["):
        field = layers.extension_of(message) if name == "[{}]".format(layers.NAME) else None
    if field is None:
        raise _unknown_field(config, message, name, key, taken)
    return field


def _unknown_field(config, message, name: str, key: str, taken: List[str]) -> ConfigError:
    names = [field.name for field in message.DESCRIPTOR.fields]
    if layers.extension_of(message) is not None:
        names.append("[{}]".format(layers.NAME))
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
    elsewhere = ".".join(next(_paths_to(config, name), ()))
    fix = None
    if close:
        fix = "write {}".format(".".join(taken + close))
    elif elsewhere:
        fix = "the config has {}".format(elsewhere)
    return ConfigError(
        "unknown field in an override",
        where=key,
        found=".".join(taken + [name]),
        allowed=", ".join(names),
        fix=fix,
    )


def _paths_to(message, name: str, above: Tuple[str, ...] = ()) -> Iterator[Tuple[str, ...]]:
    """The paths of the fields of this name, in the messages that are set."""
    if name in message.DESCRIPTOR.fields_by_name:
        yield above + (name,)
    for field, value in message.ListFields():
        if field.message_type is None or field.is_extension:
            continue
        for child in list(value)[:1] if _is_repeated(message, field) else [value]:
            yield from _paths_to(child, name, above + (field.name,))
