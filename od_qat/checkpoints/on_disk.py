"""Checkpoints on the disk: which a folder holds, what is in one, and whether it is whole."""

import os
import re
from typing import Dict, Iterable, List, Optional

from od_qat.compat import tf
from od_qat.errors import CheckpointError, quoted

# What TensorFlow's reader raises for damaged files: its own errors, or what they become on their way here.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, LookupError, MemoryError, OverflowError)


def shapes(prefix: str) -> Dict[str, List[int]]:
    """Names and shapes of the variables in a checkpoint.

    Args:
      prefix: `.../model.ckpt-123`, without `.index`.

    Raises:
      CheckpointError: when it is missing, truncated or not a checkpoint.
    """
    if not prefix:
        raise CheckpointError("no checkpoint given", allowed="a prefix such as train_dir/model.ckpt-2000")
    if tf.gfile.IsDirectory(prefix):
        newest = tf.train.latest_checkpoint(prefix)
        raise CheckpointError(
            "a folder where a checkpoint is wanted",
            where=prefix,
            allowed="a prefix such as train_dir/model.ckpt-2000",
            fix=newest and "its newest is {}".format(newest),
        )
    if not tf.train.checkpoint_exists(prefix):
        raise CheckpointError(
            "no such checkpoint",
            where=prefix,
            found=_neighbours(prefix),
            allowed="a prefix such as train_dir/model.ckpt-2000, without .index",
        )
    try:
        reader = tf.train.NewCheckpointReader(prefix)
        found = reader.get_variable_to_shape_map()
        _check_data_files(prefix, reader, found)
    except _UNREADABLE as error:
        raise _damaged(prefix, quoted(getattr(error, "message", error))) from error
    return found


def normalised(path: str) -> str:
    """The prefix that a shell's completion meant: `model.ckpt-5.index` and the like -> `model.ckpt-5`."""
    return re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)


def _check_data_files(prefix: str, reader, found: Dict[str, List[int]]) -> None:
    """Compares sizes with the index, so that a truncated data file is seen now and not mid-restore."""
    data = tf.gfile.Glob(prefix + ".data-*")
    if not data and not tf.gfile.Exists(prefix):  # (a V1 checkpoint is one file, of that very name)
        raise ValueError("the .index file is there, its .data file is not")
    total = sum(tf.gfile.Stat(path).length for path in data)
    if data:
        floats, types = 0, reader.get_variable_to_dtype_map()
        for name, shape in found.items():
            count = 1
            for size in shape:
                count *= size
            floats += count * types[name].size
        if total < floats:
            raise ValueError("{:,} bytes of data where {:,} are indexed".format(total, floats))


def _neighbours(prefix: str) -> str:
    folder = os.path.dirname(prefix) or "."
    if not tf.gfile.IsDirectory(folder):
        return "no folder {}".format(folder)
    return "in that folder: {}".format(", ".join(_all_in(folder)[-5:]) or "no checkpoints")


def _all_in(folder: str) -> List[str]:
    """Names of a folder's checkpoints, by step."""
    if not tf.gfile.IsDirectory(folder):  # (TensorFlow 1.15's Glob fails there)
        return []
    paths = tf.gfile.Glob(os.path.join(folder, "*.index"))
    names = [os.path.basename(path)[: -len(".index")] for path in paths]
    return sorted(names, key=lambda name: (step_of(name) or 0, name))


def latest(folder: str) -> str:
    """The newest checkpoint of a folder.

    Raises:
      CheckpointError: when there is none, and as `newest`.
    """
    prefix = newest(folder)
    if prefix is None:
        raise CheckpointError(
            "no checkpoint in the folder",
            where=folder,
            found="nothing" if tf.gfile.IsDirectory(folder) else "no such folder",
            fix="pass the train_dir of a training run that has saved at least once",
        )
    return prefix


def newest(folder: str) -> Optional[str]:
    """The newest checkpoint of a folder, as its file `checkpoint` has it; None in one that holds none.

    A folder that was moved, whose file has the paths of before, is read where it is now.

    Raises:
      CheckpointError: when there are checkpoints but that file is lost, damaged or names another. Training
        would start anew otherwise, and overwrite them.
    """
    state_file = os.path.join(folder, "checkpoint")
    named = None
    try:
        state = tf.train.get_checkpoint_state(folder)  # (None for one that cannot be parsed)
        named = state.model_checkpoint_path if state else None
    except (tf.errors.OpError, ValueError):
        pass
    if named:
        for prefix in (named, os.path.join(folder, os.path.basename(named))):
            if _exists(prefix):
                return prefix
    there = _all_in(folder)
    if not there and not named:
        return None
    trouble = "damaged" if tf.gfile.Exists(state_file) else "missing"
    if named:
        trouble = "naming {}, which is not there".format(named)
    fix = 'put the line model_checkpoint_path: "{}" into it'.format(there[-1]) if there else "remove it"
    raise CheckpointError(
        "the list of a folder's checkpoints is of no use",
        where=state_file,
        found="{}; in that folder: {}".format(trouble, ", ".join(there[-5:]) or "no checkpoints"),
        fix=fix + ("" if there else ", to start anew"),
    )


def restore(saver, session, prefix: str) -> None:
    """Restores a checkpoint that has been looked at.

    Raises:
      CheckpointError: when it has gone since: a training keeps its last five.
    """
    try:
        saver.restore(session, prefix)
    except (tf.errors.NotFoundError, ValueError) as error:
        raise CheckpointError("the checkpoint has gone", where=prefix, found=_neighbours(prefix)) from error


def _exists(prefix: str) -> bool:
    try:
        return tf.train.checkpoint_exists(prefix)
    except tf.errors.NotFoundError:  # TensorFlow 1.15, where the folder is not there
        return False


def remove_unfinished(folder: str) -> None:
    """Removes what TensorFlow's writers leave of files that they could not finish, when the disk is full."""
    try:
        for pattern in ("*.tmp" + "[0-9a-f]" * 32, "*_temp_*", "*.tempstate*"):
            for path in tf.gfile.Glob(os.path.join(folder, pattern)):
                (tf.gfile.DeleteRecursively if tf.gfile.IsDirectory(path) else tf.gfile.Remove)(path)
    except tf.errors.OpError:
        pass  # (what went wrong before it is what is told)


def step_of(prefix: str) -> Optional[int]:
    """The step in a checkpoint's name, `model.ckpt-123` -> 123; None when it has none."""
    digits = os.path.basename(prefix).rpartition("-")[2]
    return int(digits) if digits.isdigit() else None


def read(prefix: str, names: Iterable[str]) -> None:
    """Reads tensors, which compares their checksums: a flipped bit is an error, not a strange mAP.

    Raises:
      CheckpointError: naming the first that is damaged.
    """
    name = ""
    try:
        reader = tf.train.NewCheckpointReader(prefix)
        for name in names:
            reader.get_tensor(name)
    except _UNREADABLE as error:
        raise _damaged(prefix, "{}: {}".format(name, quoted(getattr(error, "message", error)))) from error


def _damaged(prefix: str, found: str) -> CheckpointError:
    return CheckpointError(
        "the checkpoint is damaged",
        where=prefix,
        found=found,
        fix="use an earlier checkpoint of that folder",
    )
