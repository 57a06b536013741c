"""Reads configs in proto text format."""

import re
from typing import Any, Callable, Optional, Union

from google.protobuf import text_format

from od_qat import files
from od_qat.errors import ConfigError, quoted
from od_qat.messages import layers


def read(path: str, message, what: str, like: str, fields: str, edit: Optional[Callable] = None) -> None:
    """Reads a config into a message.

    Args:
      path: of the file.
      message: is filled in place.
      what: the kind of config, in words.
      like: path of one that is shipped, for the message of an error.
      fields: what to look at for the names of fields.
      edit: changes the text before it is read.

    Raises:
      ConfigError: if the file cannot be read or is malformed, with its path and the line.
    """
    try:
        text = files.read(path).decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            "cannot read the {}".format(what),
            where=path,
            found=getattr(error, "strerror", None) or "not UTF-8 text",
            fix="pass the path of a .config file, such as {}".format(like),
        ) from error
    try:
        text_format.Parse(edit(text) if edit else text, message, descriptor_pool=message.DESCRIPTOR.file.pool)
    except text_format.ParseError as error:
        line = error.GetLine()
        fix = "see {} for the fields".format(fields)
        if re.search(r'\bod_qat\.layer|Extension "od_qat\.', str(error), re.IGNORECASE):
            fix = "[{}] has {}".format(layers.NAME, layers.field_names())
        raise ConfigError(
            "the {} is malformed".format(what),
            where="{}, line {}".format(path, line) if line else path,
            found=quoted(error),
            fix=fix,
        ) from error


def place_of(source: Union[str, Any]) -> str:
    """How messages call a config that was given as a path or as a message."""
    return source if isinstance(source, str) else "the config"


def to_text(config) -> str:
    """A config in proto text format."""
    return text_format.MessageToString(config)
