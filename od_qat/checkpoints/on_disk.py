"""Checkpoints on disk: finds those in a folder, and reads what one holds and whether it is complete."""

import os
import re
from typing import Dict, Iterable, Iterator, List, Optional

from od_qat.compat import tf
from od_qat.errors import CheckpointError, quoted

# TensorFlow's reader raises these for damaged files: its own errors, or Python's in their place.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, LookupError, MemoryError, OverflowError)


def shapes(prefix: str) -> Dict[str, List[int]]:
    """Returns the names and shapes of the variables in a checkpoint.

    Args:
      prefix: `.../model.ckpt-123`, without `.index`.

    Raises:
      CheckpointError: if it is missing, truncated or not a checkpoint.
    """
    if not prefix:
        raise CheckpointError("no checkpoint given", allowed="a prefix such as train_dir/model.ckpt-2000")
    if tf.gfile.IsDirectory(prefix):
        newest = tf.train.latest_checkpoint(prefix)
        raise CheckpointError(
            "a folder is given where a checkpoint is needed",
            where=prefix,
            allowed="a prefix such as train_dir/model.ckpt-2000",
            fix=newest and "give its newest checkpoint, {}".format(newest),
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
        raise damaged(prefix, quoted(getattr(error, "message", error))) from error
    return found


def require_no_pattern(folder: str) -> None:
    """Raises CheckpointError for a folder that TensorFlow takes for a pattern, and so finds nothing there."""
    signs = sorted(set(folder) & set("*?["))
    if signs:
        raise CheckpointError(
            "TensorFlow finds no checkpoint in a folder of this name, which it takes for a pattern",
            where=folder,
            found=" ".join(signs),
            fix="choose a folder without * ? and [",
        )


def normalised(path: str) -> str:
    """Returns the prefix for the name of one of its files, as `model.ckpt-5` for `model.ckpt-5.index`."""
    return re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)


def _check_data_files(prefix: str, reader, found: Dict[str, List[int]]) -> None:
    """Compares sizes with the index, so that a truncated data file is found before anything is restored."""
    data = tf.gfile.Glob(prefix + ".data-*")
    if not data and not tf.gfile.Exists(prefix):  # a V1 checkpoint is one file of that name
        raise ValueError("the .index file is there, its .data file is not")
    total = sum(tf.gfile.Stat(path).length for path in data)
    if data:
        indexed, types = 0, reader.get_variable_to_dtype_map()
        for name, shape in found.items():
            count = 1
            for size in shape:
                count *= size
            # (A text's length is not in the index. TensorFlow says 8 bytes, but an empty one takes fewer.)
            indexed += count * (1 if types[name] == tf.string else types[name].size)
        if total < indexed:
            raise ValueError("{:,} bytes of data where {:,} are indexed".format(total, indexed))


def _neighbours(prefix: str) -> str:
    folder = os.path.dirname(prefix) or "."
    if not tf.gfile.IsDirectory(folder):
        return "no folder {}".format(folder)
    return "in that folder: {}".format(", ".join(_all_in(folder)[-5:]) or "no checkpoints")


def _all_in(folder: str) -> List[str]:
    """Returns the names of a folder's checkpoints, by step."""
    if not tf.gfile.IsDirectory(folder):  # TensorFlow 1.15's Glob fails there
        return []
    paths = tf.gfile.Glob(os.path.join(folder, "*.index"))
    names = [os.path.basename(path)[: -len(".index")] for path in paths]
    return sorted(names, key=lambda name: (step_of(name) or 0, name))


def latest(folder: str) -> str:
    """Returns the prefix of the newest checkpoint of a folder.

    Raises:
      CheckpointError: if there is none; for others see `newest`.
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


def named_by(path: str) -> str:
    """The prefix of the checkpoint that a user names: a prefix, or a folder, whose newest is taken.

    Raises:
      CheckpointError: for a folder without a checkpoint.
    """
    return latest(path) if tf.gfile.IsDirectory(path) else normalised(path)


def newest(folder: str) -> Optional[str]:
    """Returns the newest checkpoint that a folder's file `checkpoint` names; None if the folder has none.

    In a folder that was moved, the file may have the old paths. The checkpoint is then found by its name.

    Raises:
      CheckpointError: if the file is missing or damaged though there are checkpoints, or if it names one that
        does not exist. Otherwise a training would start anew, and overwrite the checkpoints.
    """
    state_file = os.path.join(folder, "checkpoint")
    named = None
    try:
        state = tf.train.get_checkpoint_state(folder)  # None if it cannot be parsed
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
        "the folder's list of checkpoints cannot be used",
        where=state_file,
        found="{}; in that folder: {}".format(trouble, ", ".join(there[-5:]) or "no checkpoints"),
        fix=fix + ("" if there else ", to start anew"),
    )


def restore(saver, session, prefix: str) -> None:
    """Restores a checkpoint that was found and checked before.

    Raises:
      CheckpointError: if it was deleted meanwhile, as a training keeps only its last five.
    """
    try:
        saver.restore(session, prefix)
    except (tf.errors.NotFoundError, ValueError) as error:
        raise CheckpointError("the checkpoint is gone", where=prefix, found=_neighbours(prefix)) from error


def _exists(prefix: str) -> bool:
    try:
        return tf.train.checkpoint_exists(prefix)
    except tf.errors.NotFoundError:  # TensorFlow 1.15, if there is no folder
        return False


def remove_unfinished(folder: str) -> None:
    """Removes the temporary files that TensorFlow's writers leave behind if the disk is full."""
    try:
        for pattern in ("*.tmp" + "[0-9a-f]" * 32, "*_temp_*", "*.tempstate*"):
            for path in tf.gfile.Glob(os.path.join(folder, pattern)):
                (tf.gfile.DeleteRecursively if tf.gfile.IsDirectory(path) else tf.gfile.Remove)(path)
    except tf.errors.OpError:
        pass  # the error that was there before is the one to report


def step_of(prefix: str) -> Optional[int]:
    """Returns the step in a checkpoint's name, 123 for `model.ckpt-123`; None if there is none."""
    digits = os.path.basename(prefix).rpartition("-")[2]
    return int(digits) if digits.isdigit() else None


def read(prefix: str, names: Iterable[str]) -> None:
    """Reads tensors, so that TensorFlow compares their checksums, and a flipped bit becomes an error.

    Raises:
      CheckpointError: if a tensor is damaged; the message names the first.
    """
    for _ in tensors(prefix, names):
        pass


def tensors(prefix: str, names: Iterable[str]) -> Iterator[object]:
    """Yields the values of tensors of a checkpoint: arrays, and bytes for a scalar string.

    Raises:
      CheckpointError: if a tensor is damaged; the message names it.
    """
    name = ""
    try:
        reader = tf.train.NewCheckpointReader(prefix)
        for name in names:
            yield reader.get_tensor(name)
    except _UNREADABLE as error:
        raise damaged(prefix, "{}: {}".format(name, quoted(getattr(error, "message", error)))) from error


def damaged(prefix: str, found: str) -> CheckpointError:
    """Makes the error for a checkpoint that cannot be read."""
    return CheckpointError(
        "the checkpoint is damaged",
        where=prefix,
        found=found,
        fix="use an earlier checkpoint of the same folder",
    )
