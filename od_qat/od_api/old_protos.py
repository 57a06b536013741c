"""Brings the compiled protos of older trees into the form that current protobuf takes.

Until 2022 protoc wrote Python that makes each descriptor by itself, which protobuf from version 4 on refuses
("Descriptors cannot be created directly"). The same files hold the whole definition as bytes. What protoc
writes today is those bytes and three calls.
"""

import ast
from typing import Optional

_PACKAGE = "object_detection.protos"
_OLD = "_descriptor.FileDescriptor("


def is_old(source: str) -> bool:
    """Whether a *_pb2.py has the form that protoc wrote before 2022."""
    return _OLD in source


def modern(name: str, source: str) -> str:
    """Returns the source of an `object_detection.protos.*_pb2` module in the form that this protobuf takes.

    A source that has this form is returned unchanged.

    Args:
      name: the module's name.
      source: the text of its file.
    """
    try:
        from google.protobuf.internal import builder  # noqa: F401
    except ImportError:
        return source  # protobuf before 3.20 takes the old form
    definition = _definition(source) if is_old(source) else None
    if definition is None:
        return source
    lines = ["from google.protobuf import descriptor_pool", "from google.protobuf.internal import builder"]
    lines += ["from {} import {}".format(_PACKAGE, other) for other in _dependencies(source)]
    lines += [
        "DESCRIPTOR = descriptor_pool.Default().AddSerializedFile({!r})".format(definition),
        "builder.BuildMessageAndEnumDescriptors(DESCRIPTOR, globals())",
        "builder.BuildTopDescriptorsAndMessages(DESCRIPTOR, {!r}, globals())".format(name),
    ]
    return "\n".join(lines) + "\n"


def _definition(source: str) -> Optional[bytes]:
    """The value of the file's `serialized_pb=`, or None. It is bytes or, until 2019, text in Latin-1."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.keyword) and node.arg == "serialized_pb":
            value = node.value
            if isinstance(value, ast.Call):
                value = value.args[0]
            literal = ast.literal_eval(value)
            return literal if isinstance(literal, bytes) else literal.encode("latin-1")
    return None


def _dependencies(source: str):
    return [
        alias.name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module == _PACKAGE
        for alias in node.names
        if alias.name.endswith("_pb2")
    ]
