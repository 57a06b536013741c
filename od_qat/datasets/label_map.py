"""Reads and writes label maps: `label_map.pbtxt`, the class ids and names that training and scoring share.

The file is protobuf text (`item { id: 1 name: 'cat' }`). It is parsed here, without the OD API's generated
code, so that data can be converted and .tflite files scored where the OD API is not installed.
"""

import re
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from od_qat.errors import DataError
from od_qat.files import read_regular, write_atomically

# Names from id 1 on, or id -> name, where ids may be left out.
ClassNames = Union[Sequence[str], Mapping[int, str]]

_TOKEN = re.compile(
    r"""
    (?P<space>[\s,;]+ | \#[^\n]*)
  | (?P<string>"(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*')
  | (?P<word>[A-Za-z_]\w*)
  | (?P<number>[-+]?\.?[0-9][\w.]*)
  | (?P<mark>[{}<>:\[\]])
    """,
    re.VERBOSE,
)
_ESCAPE = re.compile(rb"\\(?:x([0-9a-fA-F]{1,2})|([0-7]{1,3})|(.))", re.DOTALL)
_SIMPLE_ESCAPES = {b"n": b"\n", b"t": b"\t", b"r": b"\r", b"a": b"\a", b"b": b"\b", b"f": b"\f", b"v": b"\v"}
_CLOSING = {"{": "}", "<": ">"}
# The messages of a label map nest two deep; the limit keeps a hostile file from exhausting the stack.
_MAX_DEPTH = 16
# The highest id is the number of classes that a model gets; the largest data sets have some 20,000.
MAX_ID = 100000
_MAX_BYTES = 8 * 1024 * 1024
_FIX = "write the label map as item { id: 1 name: 'cat' } item { id: 2 name: 'dog' }, ids from 1"


def shorten(text: str, limit: int = 120) -> str:
    """A text for a message, cut if it is long."""
    return text if len(text) <= limit else text[: limit - 4] + " ..."


def unusable(name: str) -> str:
    """Why a name cannot be used in label maps, records and file systems; empty if it can."""
    if "\0" in name:
        return "a NUL character"
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "half a character (a lone surrogate)"
    return ""


def names_by_id(class_names: ClassNames) -> Dict[int, str]:
    """Class names as id -> name, sorted by id. A plain sequence is numbered from 1."""
    if isinstance(class_names, Mapping):
        return {int(key): class_names[key] for key in sorted(class_names)}
    return dict(enumerate(class_names, start=1))


class LabelMapItem(NamedTuple):
    """One class: its id (from 1) and the names that a record may use for it."""

    id: int
    name: str
    display_name: str


def _unescape(token: str) -> str:
    def replace(match):
        hexadecimal, octal, single = match.groups()
        if hexadecimal:
            return bytes([int(hexadecimal, 16)])
        if octal:
            return bytes([int(octal, 8) & 0xFF])
        return _SIMPLE_ESCAPES.get(single, single)

    return _ESCAPE.sub(replace, token[1:-1].encode("utf-8")).decode("utf-8")


class _Parser(object):
    """A parser of protobuf text into nested lists of (field, value)."""

    def __init__(self, text: str, path: str) -> None:
        self._path = path
        self._tokens: List[Tuple[str, str, int]] = []
        position, line = 0, 1
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None:
                raise self._error(line, text[position : position + 20].split("\n")[0])
            if match.lastgroup != "space":
                self._tokens.append((match.lastgroup, match.group(), line))
            line += match.group().count("\n")
            position = match.end()
        self._tokens.append(("end", "the end of the file", line))
        self._next = 0

    def _error(self, line: int, found: str) -> DataError:
        return DataError(
            "the label map is not readable",
            where="{}, line {}".format(self._path, line),
            found=repr(found),
            fix=_FIX,
        )

    def _unexpected(self) -> DataError:
        _, text, line = self._tokens[self._next]
        return self._error(line, text)

    def _take(self, text: str) -> bool:
        if self._tokens[self._next][:2] == ("mark", text):
            self._next += 1
            return True
        return False

    def _value(self) -> Any:
        kind, text, line = self._tokens[self._next]
        if kind == "string":
            pieces = []
            while self._tokens[self._next][0] == "string":  # adjacent strings are one string
                try:
                    pieces.append(_unescape(self._tokens[self._next][1]))
                except UnicodeDecodeError as error:
                    raise self._unexpected() from error
                self._next += 1
            return "".join(pieces)
        if kind == "number":
            self._next += 1
            try:
                return int(text, 10)
            except ValueError:
                pass
            try:
                return float(text)
            except ValueError as error:
                raise self._error(line, text) from error
        if kind == "word":
            self._next += 1
            return text
        raise self._unexpected()

    def fields(self, closing: str = "", depth: int = 0) -> List[Tuple[str, Any, int]]:
        """The (name, value, line) of each field up to `closing`, or to the end of the file."""
        result = []
        while True:
            kind, text, line = self._tokens[self._next]
            if kind == "end" and not closing:
                return result
            if closing and self._take(closing):
                return result
            if kind != "word" or depth > _MAX_DEPTH:
                raise self._unexpected()
            self._next += 1
            has_colon = self._take(":")
            opened = next((mark for mark in _CLOSING if self._take(mark)), None)
            if opened:
                result.append((text, self.fields(_CLOSING[opened], depth + 1), line))
            elif has_colon and self._take("["):
                while not self._take("]"):
                    result.append((text, self._value(), line))
            elif has_colon:
                result.append((text, self._value(), line))
            else:
                raise self._unexpected()


def read_items(path: str) -> List[LabelMapItem]:
    """Reads the classes of a label map, sorted by id, without an item for the background (id 0).

    Raises:
      DataError: if the file is missing, malformed or empty, if it has an id below 1, or if it has an id or a
        name twice; with file and line.
    """
    items: Dict[int, LabelMapItem] = {}
    names: Dict[str, int] = {}
    for field, value, line in _Parser(_text_of(path), path).fields():
        where = "{}, line {}".format(path, line)
        if field != "item" or not isinstance(value, list):
            raise DataError(
                "the label map is not readable", where=where, found=repr(field), allowed="item", fix=_FIX
            )
        item = _item({name: content for name, content, _ in value}, where)
        if item is None:
            continue
        if item.id in items:
            raise DataError(
                "the label map has an id twice", where=where, found="id {}".format(item.id), fix=_FIX
            )
        for name in sorted({item.name, item.display_name}):
            _require_usable(name, where)
            if name in names:
                raise DataError(
                    "the label map has a name twice",
                    where=where,
                    found="{!r} for ids {} and {}".format(name, names[name], item.id),
                    fix="give each class a name of its own",
                )
            names[name] = item.id
        items[item.id] = item
    if not items:
        raise DataError("the label map is empty", where=path, fix=_FIX)
    return [items[identifier] for identifier in sorted(items)]


def _text_of(path: str) -> str:
    try:
        return read_regular(path, _MAX_BYTES).decode("utf-8")
    except OSError as error:
        raise DataError(
            "cannot read the label map",
            where=path,
            found=error.strerror,
            allowed="a text file of up to {:,} bytes".format(_MAX_BYTES),
            fix="give the label_map.pbtxt of the data",
        ) from error
    except UnicodeDecodeError as error:
        raise DataError(
            "the label map is not text", where=path, found="bytes that are not UTF-8", fix=_FIX
        ) from error


def _item(entry: Mapping[str, Any], where: str) -> Optional[LabelMapItem]:
    """The class of an item; None for the background."""
    name, display_name = entry.get("name", ""), entry.get("display_name", "")
    identifier = entry.get("id")
    if not isinstance(identifier, int) or not isinstance(name, str) or not isinstance(display_name, str):
        raise DataError(
            "an item of the label map needs a whole number as id and text as name",
            where=where,
            found="id {!r}, name {!r}".format(identifier, name),
            fix=_FIX,
        )
    if identifier == 0 and "background" in (name, display_name):
        return None
    if not 1 <= identifier <= MAX_ID or not (name or display_name):
        raise DataError(
            "an item of the label map has no valid id and name",
            where=where,
            found=shorten("id {}, name {!r}".format(identifier, name)),
            allowed="ids from 1 (0 is the background) to {:,}, a name that is not empty".format(MAX_ID),
            fix=_FIX,
        )
    return LabelMapItem(identifier, name or display_name, display_name or name)


def _require_usable(name: str, where: str) -> None:
    if unusable(name):
        raise DataError(
            "a name of the label map cannot be used",
            where=where,
            found="{} in {}".format(unusable(name), shorten(ascii(name))),
            allowed="text without it",
            fix="correct the name",
        )


def read_label_map(path: str) -> Dict[int, str]:
    """Reads the display names of the classes of a label map, by id.

    Raises:
      DataError: as :func:`read_items`.
    """
    return {item.id: item.display_name for item in read_items(path)}


def render_label_map(class_names: ClassNames) -> str:
    """The text of a label map.

    Args:
      class_names: names from id 1 on, or id -> name; ids may be left out.

    Raises:
      DataError: if a name is empty, occurs twice or cannot be encoded, or if an id is out of range.
    """
    by_id = names_by_id(class_names)
    names = list(by_id.values())
    if not names or len(set(names)) != len(names) or not all(names) or any(map(unusable, names)):
        raise DataError(
            "a label map needs at least one class, and names that differ",
            found=shorten(ascii(names)),
            allowed="names that are not empty, without NUL and half characters",
            fix="give each class a name of its own",
        )
    if min(by_id) < 1 or max(by_id) > MAX_ID:
        raise DataError(
            "a label map cannot have such an id",
            found=shorten(str(min(by_id) if min(by_id) < 1 else max(by_id))),
            allowed="1 to {:,}".format(MAX_ID),
            fix="number the classes from 1",
        )

    def quote(name):
        escaped = name.replace("\\", "\\\\").replace("'", "\\'")
        return re.sub(r"[\x00-\x1f\x7f]", lambda match: "\\{:03o}".format(ord(match.group())), escaped)

    return "".join(
        "item {{\n  id: {}\n  name: '{}'\n}}\n".format(number, quote(name)) for number, name in by_id.items()
    )


def write_label_map(path: str, class_names: ClassNames) -> None:
    """Writes a label map.

    Raises:
      DataError: as :func:`render_label_map`.
      OdQatError: if the file cannot be written.
    """
    write_atomically(path, render_label_map(class_names))


def class_ids(class_names: ClassNames) -> Dict[str, int]:
    """Label map ids by name."""
    return {name: number for number, name in names_by_id(class_names).items()}


def record_names(label_map_path: str) -> Dict[int, str]:
    """Reads the names that records use for the classes of a label map, by id.

    Raises:
      DataError: as :func:`read_items`.
    """
    return {item.id: item.name for item in read_items(label_map_path)}
