"""Restores strictly: every variable that a graph needs is either in the checkpoint or named in an error.

The OD API once chose the variables to restore before the graph was rewritten, so quantization ranges stayed
at their defaults and mAP fell to zero without a warning (tensorflow/models issue 3611). Here variables are
chosen after the rewrite, and none is skipped silently.
"""

import enum
import re
import sys
from typing import Collection, Dict, Iterable, List, Mapping

from od_qat.checkpoints.names import AVERAGE, QUANT_STEP
from od_qat.checkpoints.of_graph import by_plain_name, plain_shapes, require_kind
from od_qat.checkpoints.on_disk import read
from od_qat.errors import CheckpointError
from od_qat.graph.index import names_and_scopes

_NAMES_SHOWN = 3
# The number that makes a scope's name unique.
_NUMBER = re.compile(r"_\d+(?=/|$)")
_UPPER_END = re.compile(r"_quant(_\d+)?/max$")


class _Cause(enum.Enum):
    """Why a checkpoint lacks variables of a graph; each value says what to do about it."""

    NO_AVERAGES = (
        "set eval_config.use_moving_averages: false (training keeps them when its optimizer has "
        "use_moving_average: true), or resume with the optimizer it was trained with"
    )
    NO_DELAY = "set graph_rewriter.quantization.delay to 0, as that run had it, or use a new train_dir"
    FLOAT_CHECKPOINT = (
        "it is a float checkpoint: name it as fine_tune_checkpoint in a QAT config and "
        "train into a new train_dir, or drop the graph_rewriter block"
    )
    OTHER_QUANTIZATION = (
        "its quantization is another one: use the graph_rewriter block it was trained with (for one "
        'of tf.contrib.quantize, [od_qat.layers] { placement: "contrib" }), or name it as '
        "fine_tune_checkpoint and train into a new train_dir"
    )
    OTHER_NUMBERS = OTHER_QUANTIZATION + (
        "; or, if only the training graph has noise or other extra ops there, give these a scope, as "
        "they shift the numbers of ops that have no name"
    )
    OTHER_MODEL = "it is of another model: use the config it was trained with"


def require_all(name_to_variable: Dict[str, object], prefix: str, quant_names: Iterable[str]) -> None:
    """Raises unless the checkpoint holds every variable in its shape, undamaged.

    If the checkpoint has ranges of the graph's layers that the graph does not use, a warning on stderr names
    them.

    Args:
      name_to_variable: name in the checkpoint -> variable.
      prefix: checkpoint prefix.
      quant_names: which of the names are quantization variables.

    Raises:
      CheckpointError: the message names the first variables that are missing, and what to do.
    """
    read_by = name_to_variable
    name_to_variable, available = by_plain_name(read_by), plain_shapes(prefix)
    quant_names = frozenset(quant_names)
    missing = sorted(name for name in name_to_variable if name not in available)
    if missing:
        if len(missing) == len(name_to_variable):
            require_kind(prefix)
        cause = _cause(missing, name_to_variable, available, quant_names)
        raise _incomplete(cause, missing, len(name_to_variable), prefix)
    wrong = sorted(
        name for name, variable in name_to_variable.items() if available[name] != variable.shape.as_list()
    )
    if wrong:
        allowed = name_to_variable[wrong[0]].shape.as_list()
        raise _misshapen(wrong[0], available[wrong[0]], allowed, prefix, quant_names.issuperset(wrong))
    read(prefix, read_by)
    unused = _unused_ranges(name_to_variable, available)
    if unused:
        print(
            "warning: {} has the ranges of {} tensors that are not quantized here, {}: was it trained with "
            "another graph_rewriter block, or with ops that this graph lacks? Give such ops a scope of their "
            "own: they shift the numbers in names, so ranges may be those of other tensors.".format(
                prefix, len(unused), _some(unused)
            ),
            file=sys.stderr,
        )


def _cause(
    missing: List[str],
    name_to_variable: Collection[str],
    available: Mapping[str, List[int]],
    quant_names: Collection[str],
) -> _Cause:
    averages = _averages(missing)
    if averages and all(name[: -len(AVERAGE)] in available for name in averages):
        return _Cause.NO_AVERAGES
    if missing == [QUANT_STEP]:
        return _Cause.NO_DELAY
    if not all(name in quant_names for name in missing):
        return _Cause.OTHER_MODEL
    if not any(name in available for name in quant_names):
        return _Cause.FLOAT_CHECKPOINT
    spare = {_NUMBER.sub("", name) for name in set(available) - set(name_to_variable)}
    if any(_NUMBER.sub("", name) in spare for name in missing):
        return _Cause.OTHER_NUMBERS
    return _Cause.OTHER_QUANTIZATION


def _averages(names: Iterable[str]) -> List[str]:
    return [name for name in names if name.endswith(AVERAGE)]


def _incomplete(cause: _Cause, missing: List[str], wanted: int, prefix: str) -> CheckpointError:
    what, shown = "the checkpoint lacks {} of {} variables".format(len(missing), wanted), missing
    if cause is _Cause.NO_AVERAGES:
        what, shown = "the checkpoint was trained without moving averages", _averages(missing)
    elif cause is _Cause.NO_DELAY:
        what = "the checkpoint is of a run without a delay"
    return CheckpointError(what, where=prefix, found="no {}".format(_some(shown)), fix=cause.value)


def _misshapen(
    name: str, found: List[int], allowed: List[int], prefix: str, only_quant: bool
) -> CheckpointError:
    """Makes the error for another shape. If only ranges have one, the cause is another per_channel."""
    what = "the checkpoint's shapes are another model's"
    fix = "use the config it was trained with (same num_classes, depth_multiplier, anchors)"
    if only_quant:
        what = "the checkpoint's ranges of weights have other shapes: it was trained {} per_channel".format(
            "with" if found else "without"
        )
        fix = (
            "use the graph_rewriter block it was trained with (per_channel, rules), or name it as "
            "fine_tune_checkpoint and train into a new train_dir"
        )
    return CheckpointError(
        what, where=prefix, found="{} is {}".format(name, found), allowed=str(allowed), fix=fix
    )


def refuse_float_resume(prefix: str) -> None:
    """Raises if a float training would resume from a QAT checkpoint, as its next one would have no ranges.

    Raises:
      CheckpointError: if the checkpoint has ranges, or is missing or damaged.
    """
    ranges = [name for name in plain_shapes(prefix) if _UPPER_END.search(name)]
    if ranges:
        raise CheckpointError(
            "a QAT run would go on as a float one, and its next checkpoint would have no ranges",
            where=prefix,
            found="the ranges of {} tensors ({}), and no graph_rewriter block in the config".format(
                len(ranges), min(ranges)[: -len("/max")]
            ),
            fix="use the QAT config that it was trained with, or name it as "
            "fine_tune_checkpoint and train into a new train_dir",
        )


def _unused_ranges(name_to_variable: Dict[str, object], available: Iterable[str]) -> List[str]:
    """Returns the scopes of ranges that the graph does not restore, though it could be expected to.

    That is, the graph has the layer of the range, or a range of the same name with another number. Others are
    no trouble: with placement 'contrib', training has ranges of dropout's products, and no eval graph has.
    """
    spare = set(available) - set(name_to_variable)
    ranges = [name[: -len("/max")] for name in spare if _UPPER_END.search(name)]
    if not ranges or not name_to_variable:
        return []
    here = names_and_scopes(next(iter(name_to_variable.values())).graph.get_operations())
    unnumbered = {_NUMBER.sub("", name) for name in name_to_variable if _UPPER_END.search(name)}
    return sorted(
        scope
        for scope in ranges
        if scope + "/min" in spare
        and (scope.rpartition("/")[0] in here or _NUMBER.sub("", scope) + "/max" in unnumbered)
    )


def _some(names: List[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return shown + (" and {} more".format(rest) if rest > 0 else "")
