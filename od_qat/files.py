"""Writing files so that nothing half-written is ever left behind."""

import json
import os
import tempfile
from typing import Any, Union

from od_qat.errors import OdQatError


def write_atomically(path: str, content: Union[bytes, str]) -> None:
    """Writes beside `path`, then renames.

    Raises:
      OdQatError: naming the file, when the disk is full or the folder cannot be written.
    """
    folder = os.path.dirname(os.path.abspath(path))
    data = content.encode("utf-8") if isinstance(content, str) else content
    temporary = None
    try:
        os.makedirs(folder, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=folder, prefix="." + os.path.basename(path) + ".")
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; a model is as public as the user's umask says.
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except OSError as error:
        if temporary and os.path.exists(temporary):
            os.unlink(temporary)
        raise OdQatError(
            "cannot write the file",
            where=path,
            found=error.strerror or str(error),
            fix="free {:,} bytes there or choose another folder".format(len(data)),
        ) from error


def write_json(path: str, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_atomically(path, json.dumps(value, indent=2, sort_keys=False) + "\n")
