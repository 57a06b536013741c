"""Reads what the file of a model holds: variables, constants, ops, layers, and what each takes."""

import os

from od_qat.contents.model import Contents
from od_qat.errors import ConfigError


def read(path: str) -> Contents:
    """Reads any file of a model.

    Args:
      path: a .tflite; a .pb, .pbtxt or .meta; the folder of a SavedModel, or its saved_model.pb; the prefix
        of a checkpoint, one of its files, or a folder with checkpoints, of which the newest is taken.

    Raises:
      ConfigError: if there is nothing of this name.
      ExportError, DataError, CheckpointError: if it cannot be read.
    """
    if path.endswith(".tflite"):
        from od_qat.contents import of_tflite

        return of_tflite.read(path)
    from od_qat import compat
    from od_qat.contents import of_checkpoint, of_graph

    compat.quiet_logging()

    folder = os.path.dirname(path) if os.path.basename(path) == "saved_model.pb" else path
    if os.path.exists(os.path.join(folder, "saved_model.pb")):
        return of_graph.read_saved_model(folder)
    if os.path.splitext(path)[1] in (".pb", ".pbtxt", ".meta"):
        if not os.path.isfile(path):
            raise ConfigError("no such model", where=path, found="no file", fix="check the path")
        return of_graph.read(path)
    if os.path.isfile(path) and not path.endswith(".index") and not os.path.exists(path + ".index"):
        if ".data-" not in os.path.basename(path):
            raise ConfigError(
                "unknown kind of model",
                where=path,
                found="a file that is none of these",
                allowed=".tflite, .pb, .pbtxt, .meta, the folder of a SavedModel, a checkpoint or its folder",
                fix="give the file of a model",
            )
    return of_checkpoint.read(path)
