"""What a checkpoint holds, of either half of the OD API."""

import glob
import os
import re

import numpy as np

from od_qat import checkpoints
from od_qat.checkpoints import AVERAGE, object_based
from od_qat.compat import tf
from od_qat.contents.model import (
    AVERAGES,
    BATCH_NORM,
    CHECKPOINT,
    OPTIMIZER,
    OTHER,
    RANGES,
    WEIGHTS,
    Array,
    Contents,
)

_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"
# contrib's names, which od_qat's rewriter keeps.
_OF_RANGES = re.compile(r"(_quant|/quant)(_\d+)?/|(^|/)fake_quantization_step$")
_OF_BATCH_NORMS = re.compile(r"(^|/)(gamma|beta|moving_mean|moving_variance)$")
_OF_OPTIMIZERS = re.compile(
    r"/(Momentum|RMSProp(_\d+)?|Adam(_\d+)?|Adagrad|Ftrl(_\d+)?|Adadelta(_\d+)?)$"
    r"|^(beta[12]_power|optimizer/)|/\.OPTIMIZER_SLOT/"
)


def read(prefix: str) -> Contents:
    """Reads a checkpoint.

    Args:
      prefix: `.../model.ckpt-123`, or one of its files, or a folder, of which the newest is taken.

    Raises:
      CheckpointError: if it is missing or damaged.
    """
    path = prefix
    prefix = checkpoints.named_by(checkpoints.normalised(prefix))
    shapes = checkpoints.shapes(prefix)
    reader = tf.train.load_checkpoint(prefix)
    dtypes = reader.get_variable_to_dtype_map()
    # (Names of ranges in object-based checkpoints are those of the graph.)
    extra = {key: name for name, key in _extra_keys(prefix, shapes).items()}
    arrays = []
    for key in sorted(shapes):
        if dtypes[key] == tf.string:
            continue
        name = extra.get(key, key[: -len(_VALUE)] if key.endswith(_VALUE) else key)
        count = int(np.prod(shapes[key], dtype=np.int64))
        arrays.append(
            Array(
                name,
                _kind(name, key, len(shapes[key]), key in extra),
                tuple(shapes[key]),
                dtypes[key].name,
                count * dtypes[key].size,
                lambda key=key: reader.get_tensor(key),
            )
        )
    size = sum(map(os.path.getsize, glob.glob(glob.escape(prefix) + ".*")))
    return Contents(path, CHECKPOINT, size, tuple(arrays), {}, None)


def _extra_keys(prefix: str, shapes) -> dict:
    return object_based.extra_keys(prefix) if object_based.is_object_based(prefix) else {}


def _kind(name: str, key: str, dimensions: int, extra: bool) -> str:
    if _OF_OPTIMIZERS.search(name) or _OF_OPTIMIZERS.search(key):
        return OPTIMIZER
    if name.endswith(AVERAGE):
        return AVERAGES
    if extra or _OF_RANGES.search(name):
        return RANGES
    if is_of_batch_norm(name):
        return BATCH_NORM
    return WEIGHTS if dimensions > 1 else OTHER


def is_of_batch_norm(name: str) -> bool:
    """Whether a variable, or the constant that it became, is a batch norm's, by its name."""
    return bool(_OF_BATCH_NORMS.search(name))
