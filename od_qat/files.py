"""Reads files, and writes them so that a half-written file never remains."""

import errno
import json
import math
import os
import shutil
import stat
import tempfile
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

from od_qat.errors import OdQatError

_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO (named pipe)",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def read(path: str) -> bytes:
    """Returns a file's bytes. TensorFlow reads paths with a scheme (`gs://`, `hdfs://`, ...).

    Raises:
      OSError: if it cannot be read.
    """
    if "://" not in path:
        with open(path, "rb") as stream:
            return stream.read()
    # It is not od_qat.compat's tf, which is for TF 1 code, as upstream's TF 2 commands read configs here too.
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as stream:
            return stream.read()
    except tf.errors.OpError as error:
        raise OSError(0, error.message) from error


def read_regular(path: str, limit: Optional[int] = None) -> bytes:
    """Returns the bytes of a regular file. It does not read FIFOs or devices, which may never end.

    Args:
      path: path of the file.
      limit: the largest number of bytes that it may have.

    Raises:
      OSError: if it cannot be read; its strerror says why, also for a path that no file can have.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, _KINDS.get(stat.S_IFMT(kind), "not a regular file"), path)
        with open(path, "rb") as stream:
            data = stream.read() if limit is None else stream.read(limit + 1)
    except ValueError as error:  # a NUL, or a character that the file system cannot encode
        raise OSError(errno.EINVAL, "a path that no file can have", path) from error
    if limit is not None and len(data) > limit:
        raise OSError(errno.EFBIG, "more than {:,} bytes".format(limit), path)
    return data


def read_folder(folder: str, alias: str) -> Dict[str, bytes]:
    """Returns the bytes of all files below a folder on disk, by their paths as if it were called `alias`."""
    found = {}
    for root, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(root, name)
            with open(path, "rb") as stream:
                found[os.path.join(alias, os.path.relpath(path, folder))] = stream.read()
    return found


def write_atomically(path: str, content: Union[bytes, str]) -> None:
    """Writes a file under a temporary name and renames it. TensorFlow writes paths with a scheme.

    Raises:
      OdQatError: if the disk is full or the folder cannot be written; the message names the file.
    """
    write_together({path: content})


def write_together(contents: Mapping[str, Union[bytes, str]]) -> None:
    """Writes files that belong together: none is renamed before all are written.

    Args:
      contents: path -> content.

    Raises:
      OdQatError: see write_atomically.
    """
    asides: Dict[str, str] = {}
    try:
        for path, content in contents.items():
            data = content.encode("utf-8") if isinstance(content, str) else content
            asides[path] = _write_elsewhere(path, data) if "://" in path else _write_aside(path, data)
        for path in contents:
            _rename(asides[path], path)
            del asides[path]
    finally:
        for aside in asides.values():
            _remove(aside)


def replace_together(contents: Mapping[str, bytes], prefix: str) -> None:
    """Replaces the contents of all files on disk, or of none: if one fails, the others are restored.

    Files that exist keep their mode.

    Args:
      contents: path -> content.
      prefix: start of the temporary files' names, with which those of a killed process can be found.

    Raises:
      OdQatError: see write_atomically.
    """
    asides: Dict[str, str] = {}
    done: List[Tuple[str, Optional[bytes]]] = []
    try:
        for path, data in contents.items():
            asides[path] = _write_aside(path, data, prefix, keep_mode=True)
        for path in contents:
            before = read_regular(path) if os.path.isfile(path) else None
            _rename(asides[path], path)
            done.append((path, before))
            del asides[path]
    except BaseException:
        for path, before in reversed(done):
            if before is None:
                os.unlink(path)
            else:
                os.replace(_write_aside(path, before, prefix, keep_mode=True), path)
        raise
    finally:
        for aside in asides.values():
            _remove(aside)


def make_aside(path: str, prefix: Optional[str] = None, size: Optional[int] = None) -> str:
    """Makes an empty temporary file beside a path, private until `put_in_place` renames it; returns its path.

    Args:
      path: path of the final file.
      prefix: start of the temporary name; by default a dot and the file's name.
      size: number of bytes that it will have, if known; for the message.

    Raises:
      OdQatError: see write_atomically.
    """
    folder, name = os.path.split(os.path.abspath(path))
    try:
        os.makedirs(folder, exist_ok=True)
        handle, aside = tempfile.mkstemp(dir=folder, prefix=prefix or ".{}.".format(name))
        os.close(handle)
    except OSError as error:
        raise cannot_write(path, error, size) from error
    return aside


def put_in_place(aside: str, path: str) -> None:
    """Renames a file of make_aside, and gives it the mode of the user's umask.

    Raises:
      OdQatError: see write_atomically.
    """
    _make_public(aside)
    _rename(aside, path)


def _make_public(aside: str) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(aside, 0o666 & ~umask)


def _write_aside(path: str, data: bytes, prefix: Optional[str] = None, keep_mode: bool = False) -> str:
    aside = make_aside(path, prefix, len(data))
    try:
        with open(aside, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        if keep_mode and os.path.exists(path):
            shutil.copymode(path, aside)
        else:
            _make_public(aside)
    except BaseException as error:
        _remove(aside)
        if isinstance(error, OSError):
            raise cannot_write(path, error, len(data)) from error
        raise
    return aside


def _write_elsewhere(path: str, data: bytes) -> str:
    import tensorflow as tf

    temporary = "{}.{}.tmp".format(path, os.getpid())
    try:
        tf.io.gfile.makedirs(path.rpartition("/")[0])
        with tf.io.gfile.GFile(temporary, "wb") as stream:
            stream.write(data)
    except tf.errors.OpError as error:
        _remove(temporary)
        raise cannot_write(path, error) from error
    return temporary


def _rename(temporary: str, path: str) -> None:
    if "://" not in path:
        try:
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error, os.path.getsize(temporary)) from error
        return
    import tensorflow as tf

    try:
        tf.io.gfile.rename(temporary, path, overwrite=True)
    except tf.errors.OpError as error:
        raise cannot_write(path, error) from error


def _remove(temporary: str) -> None:
    if "://" not in temporary:
        if os.path.exists(temporary):
            os.unlink(temporary)
        return
    import tensorflow as tf

    if tf.io.gfile.exists(temporary):
        tf.io.gfile.remove(temporary)


def cannot_write(path: str, error: Exception, size: Optional[int] = None) -> OdQatError:
    """Makes the error for a file or folder that cannot be written, from the system's error.

    Args:
      path: path of the file, or of the folder that TensorFlow's writers write into.
      error: an OSError, or an error of TensorFlow whose text has that of the system.
      size: number of bytes to write, if known.
    """
    code = _code_of(error)
    found = getattr(error, "strerror", None) or (os.strerror(code) if code else " ".join(str(error).split()))
    if code in (errno.EEXIST, errno.ENOTDIR):
        blocking = _file_in_the_way(path)
        if blocking:
            found = "a file, {}, where a folder is wanted".format(blocking)
    room = "{:,} bytes".format(size) if size is not None else "space"
    fix = _FIXES.get(code, "choose another folder").format(room=room)
    return OdQatError("cannot write the file", where=path, found=found, fix=fix)


def require_folder_possible(path: str) -> None:
    """Raises OdQatError if no folder can be there, or none that may be written, before long work ends in it.

    Nothing is made. A path with a scheme is left to TensorFlow.
    """
    if "://" in path:
        return
    blocking = _file_in_the_way(path)
    if blocking:
        raise cannot_write(path, NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)))
    above = os.path.abspath(path)
    while not os.path.isdir(above):
        above = os.path.dirname(above)
    if not os.access(above, os.W_OK | os.X_OK):
        raise cannot_write(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def is_of_writing(error: Exception, folder: str) -> bool:
    """Whether an error of TensorFlow means that a file below a folder cannot be written.

    The text must tell, as the type does not: a full disk and full memory are both ResourceExhaustedErrors.
    """
    return _code_of(error) in _FIXES and folder.rstrip("/") in _text_of(error)


_ROOM = "free {room} there or choose another folder"
_IN_THE_WAY = "choose another folder, or move what stands there away"
_FIXES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: "raise the limit of file sizes (ulimit -f) to {room} or more, or choose another folder",
    errno.EACCES: "allow writing there (its owner, its mode), or choose another folder",
    errno.EPERM: "allow writing there (its owner, its mode), or choose another folder",
    errno.EROFS: "allow writing there (it is mounted read-only), or choose another folder",
    errno.ENOTDIR: _IN_THE_WAY,
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENAMETOOLONG: "choose a shorter name",
}


def _text_of(error: Exception) -> str:
    return getattr(error, "message", None) or str(error)


def _code_of(error: Exception) -> Optional[int]:
    """Returns the errno of a system error, also if TensorFlow wrapped its text; None for other errors."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    text = _text_of(error)
    if text.rstrip().endswith("is not a directory"):  # TensorFlow's own words
        return errno.ENOTDIR
    return next((code for code in _FIXES if os.strerror(code) in text), None)


def _file_in_the_way(path: str) -> Optional[str]:
    """Returns the file that is in the place of a folder, either the path itself or one above it; or None."""
    path = os.path.abspath(path)
    while path != os.path.dirname(path):
        if os.path.lexists(path):
            return None if os.path.isdir(path) else path
        path = os.path.dirname(path)
    return None


def write_json(path: str, value: Any) -> None:
    """Writes a value as indented JSON, atomically."""
    write_atomically(path, json_text(value))


def json_text(value: Any) -> str:
    """Returns indented JSON. Numbers that are not finite, which JSON does not have, become null."""
    return json.dumps(_finite(value), indent=2, sort_keys=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
