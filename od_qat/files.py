"""Writing files so that nothing half-written is ever left behind."""

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
    """A file's bytes; with a scheme (`gs://`, `hdfs://`, ...) as TensorFlow reads it.

    Raises:
      OSError: when it cannot be read.
    """
    if "://" not in path:
        with open(path, "rb") as stream:
            return stream.read()
    # (Not od_qat.compat's, which turns eager execution off: upstream's TF 2 commands read configs here too.)
    import tensorflow as tf

    try:
        with tf.io.gfile.GFile(path, "rb") as stream:
            return stream.read()
    except tf.errors.OpError as error:
        raise OSError(0, error.message) from error


def read_regular(path: str, limit: Optional[int] = None) -> bytes:
    """The bytes of a file on disk: not of a FIFO or a device, which may never end.

    Args:
      path: of the file.
      limit: the most bytes that it may have.

    Raises:
      OSError: when it cannot be read; its strerror says why, also for a path that no file can have.
    """
    try:
        kind = os.stat(path).st_mode
        if not stat.S_ISREG(kind):
            raise OSError(errno.EINVAL, _KINDS.get(stat.S_IFMT(kind), "no regular file"), path)
        with open(path, "rb") as stream:
            data = stream.read() if limit is None else stream.read(limit + 1)
    except ValueError as error:  # a NUL, or a character that the file system cannot encode
        raise OSError(errno.EINVAL, "a path that no file can have", path) from error
    if limit is not None and len(data) > limit:
        raise OSError(errno.EFBIG, "more than {:,} bytes".format(limit), path)
    return data


def write_atomically(path: str, content: Union[bytes, str]) -> None:
    """Writes beside `path`, then renames; with a scheme as TensorFlow does.

    Raises:
      OdQatError: naming the file, when the disk is full or the folder cannot be written.
    """
    write_together({path: content})


def write_together(contents: Mapping[str, Union[bytes, str]]) -> None:
    """Writes files that belong together: none is renamed before all are written.

    Args:
      contents: by path.

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
    """Gives files on disk new contents: all of them, or none. What was renamed before a failure is put back.

    Files that are there keep their mode.

    Args:
      contents: by path.
      prefix: how the names begin of what is written beside the files, so that the rest of a process that was
        killed can be found.

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
    """An empty file beside the one that a path names, private until `put_in_place` renames it.

    Args:
      path: of the file to be.
      prefix: how its name begins; default is a dot and the file's name.
      size: bytes that it will have, where that is known; for the message.

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
    """Renames what make_aside made, and makes it as public as the user's umask says.

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
    """What is said of a file or folder that cannot be written, by what the system says.

    Args:
      path: of the file, or of the folder that TensorFlow's writers write into.
      error: an OSError, or an error of TensorFlow whose text has the system's.
      size: bytes that are to be written, where that is known.
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


def is_of_writing(error: Exception, folder: str) -> bool:
    """Whether an error of TensorFlow is that a file below a folder cannot be written.

    The kinds of its errors do not say so: a full disk is, as memory is, a resource that is exhausted.
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
    """errno of a system's error, read from the text where TensorFlow has wrapped it; None for others."""
    if isinstance(error, OSError) and error.errno:
        return error.errno
    text = _text_of(error)
    if text.rstrip().endswith("is not a directory"):  # TensorFlow's own words
        return errno.ENOTDIR
    return next((code for code in _FIXES if os.strerror(code) in text), None)


def _file_in_the_way(path: str) -> Optional[str]:
    """The file that is where a folder above a path, or the folder itself, is to be."""
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
    """Indented JSON; numbers that are not finite, which it has not, as null."""
    return json.dumps(_finite(value), indent=2, sort_keys=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
