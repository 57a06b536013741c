"""Strict restoring: every variable that a graph needs is either in the checkpoint or named in an error.

The OD API once chose the variables to restore before the graph was rewritten, so quantization ranges stayed
at their defaults and mAP fell to zero without a warning (tensorflow/models issue 3611). Nothing here is
chosen before the rewrite, and nothing is skipped silently.
"""

import os
import re
import sys
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

from od_qat.compat import tf
from od_qat.errors import CheckpointError, quoted
from od_qat.graph.index import names_and_scopes

# The collection that the rewriter puts its range variables into.
QUANT_VARIABLES = "quant_vars"
# The one of them that counts steps; a graph has it when something is delayed.
QUANT_STEP = "fake_quantization_step"
# What TensorFlow calls the moving average of a variable.
AVERAGE = "/ExponentialMovingAverage"

# What TensorFlow's reader raises for damaged files: its own errors, or what they become on their way here.
_UNREADABLE = (tf.errors.OpError, ValueError, RuntimeError, LookupError, MemoryError, OverflowError)
_NAMES_SHOWN = 3
# What makes a scope's name unique.
_NUMBER = re.compile(r"_\d+(?=/|$)")
_END_NUMBER = re.compile(r"_\d+$")
_UPPER_END = re.compile(r"_quant(_\d+)?/max$")


class FineTunePlan(NamedTuple):
    """What a fine-tune checkpoint fills and what starts fresh, of the restore map."""

    restored: Dict[str, object]
    fresh_quant: Tuple[str, ...]
    fresh_other: Tuple[str, ...]


class FreshModel(NamedTuple):
    """Model variables that a fine-tune checkpoint does not fill: the restore map's choice, or not there.

    Attributes:
      names: of all of them.
      fitting: those of them that the checkpoint has, in the same shape.
      other_shapes: those that it has in another.
    """

    names: Tuple[str, ...]
    fitting: Tuple[str, ...]
    other_shapes: Tuple[str, ...]


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
        raise CheckpointError(
            "the checkpoint is damaged",
            where=prefix,
            found=quoted(getattr(error, "message", error)),
            fix="use an earlier checkpoint of that folder",
        ) from error
    return found


def normalised(path: str) -> str:
    """The prefix that a shell's completion meant: `model.ckpt-5.index` and the like -> `model.ckpt-5`."""
    return re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path)


def _check_data_files(prefix: str, reader, found: Dict[str, List[int]]) -> None:
    """Reads the tensor that lies last, so that a truncated data file is seen now and not mid-restore."""
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


def quant_variable_names(graph=None) -> frozenset:
    """Names of the variables that the rewriter made in a graph, moving-average helpers included."""
    graph = graph or tf.get_default_graph()
    return frozenset(variable.op.name for variable in graph.get_collection(QUANT_VARIABLES))


def require_all(name_to_variable: Dict[str, object], prefix: str, quant_names: Iterable[str]) -> None:
    """Raises unless the checkpoint holds every variable, with its shape and undamaged.

    When the graph leaves ranges of its own layers aside, stderr says so.

    Args:
      name_to_variable: name in the checkpoint -> variable.
      prefix: checkpoint prefix.
      quant_names: which of the names are quantization variables.

    Raises:
      CheckpointError: naming the first missing ones and what to do.
    """
    available = shapes(prefix)
    quant_names = frozenset(quant_names)
    missing = sorted(name for name in name_to_variable if name not in available)
    if missing:
        averages = [name for name in missing if name.endswith(AVERAGE)]
        if averages and all(name[: -len(AVERAGE)] in available for name in averages):
            raise CheckpointError(
                "the checkpoint was trained without moving averages",
                where=prefix,
                found="no {}".format(_some(averages)),
                fix="set eval_config.use_moving_averages: false (training keeps them when its optimizer has "
                "use_moving_average: true), or resume with the optimizer it was trained with",
            )
        only_quant = all(name in quant_names for name in missing)
        if missing == [QUANT_STEP]:
            raise CheckpointError(
                "the checkpoint is of a run without a delay",
                where=prefix,
                found="no {}".format(QUANT_STEP),
                fix="set graph_rewriter.quantization.delay to 0, as that run had it, or use a new train_dir",
            )
        fix = "it is of another model: use the pipeline.config it was trained with"
        if only_quant and any(name in available for name in quant_names):
            fix = (
                "its quantization is another one: use the graph_rewriter block it was trained with (for one "
                'of tf.contrib.quantize, [od_qat.layers] { placement: "contrib" }), or name it as '
                "train_config.fine_tune_checkpoint and train into a new train_dir"
            )
            spare = {_NUMBER.sub("", name) for name in set(available) - set(name_to_variable)}
            if any(_NUMBER.sub("", name) in spare for name in missing):
                fix += (
                    "; or, if only the training has noise or more ops there, give these a scope: "
                    "they shift the numbers of ops that have no name"
                )
        elif only_quant:
            fix = (
                "it is a float checkpoint: name it as train_config.fine_tune_checkpoint of a QAT config and "
                "train into a new train_dir, or drop the graph_rewriter block"
            )
        raise CheckpointError(
            "the checkpoint lacks {} of {} variables".format(len(missing), len(name_to_variable)),
            where=prefix,
            found="no {}".format(_some(missing)),
            fix=fix,
        )
    wrong = sorted(
        name for name, variable in name_to_variable.items() if available[name] != variable.shape.as_list()
    )
    if wrong and all(name in quant_names for name in wrong):
        per_channel = "with" if available[wrong[0]] else "without"
        raise CheckpointError(
            "the checkpoint's ranges of weights have other shapes: it was trained {} per_channel".format(
                per_channel
            ),
            where=prefix,
            found="{} is {}".format(wrong[0], available[wrong[0]]),
            allowed=str(name_to_variable[wrong[0]].shape.as_list()),
            fix="use the graph_rewriter block it was trained with (per_channel, rules), or name it as "
            "train_config.fine_tune_checkpoint and train into a new train_dir",
        )
    if wrong:
        raise CheckpointError(
            "the checkpoint's shapes are another model's",
            where=prefix,
            found="{} is {}".format(wrong[0], available[wrong[0]]),
            allowed=str(name_to_variable[wrong[0]].shape.as_list()),
            fix="use the pipeline.config it was trained with (same num_classes, depth_multiplier, anchors)",
        )
    _read(prefix, name_to_variable)
    unused = _unused_ranges(name_to_variable, available)
    if unused:
        print(
            "warning: {} has the ranges of {} tensors that are not quantised here, {}: was it trained with "
            "another graph_rewriter block? Or with parts that this graph has not? Then give them a scope of "
            "their own, or ranges that a number tells apart are those of other tensors.".format(
                prefix, len(unused), _some(unused)
            ),
            file=sys.stderr,
        )


def refuse_float_resume(prefix: str) -> None:
    """Raises when a checkpoint that a float graph would train on from has ranges, which the next would lack.

    Raises:
      CheckpointError: see above, and as `shapes`.
    """
    ranges = [name for name in shapes(prefix) if _UPPER_END.search(name)]
    if ranges:
        raise CheckpointError(
            "a QAT run would go on as a float one, and its next checkpoint would have no ranges",
            where=prefix,
            found="the ranges of {} tensors ({}), and no graph_rewriter block in the config".format(
                len(ranges), min(ranges)[: -len("/max")]
            ),
            fix="use the QAT config that it was trained with, or name it as "
            "train_config.fine_tune_checkpoint and train into a new train_dir",
        )


def _unused_ranges(name_to_variable: Dict[str, object], available: Iterable[str]) -> List[str]:
    """Scopes of ranges in a checkpoint that no variable is restored from, though the graph has their layer.

    Or a range of that name with another number.

    (placement 'contrib' has ranges in training that no eval graph has a place for: of dropout's products.)
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


def _read(prefix: str, names: Iterable[str]) -> None:
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
        raise CheckpointError(
            "the checkpoint is damaged",
            where=prefix,
            found="{}: {}".format(name, quoted(getattr(error, "message", error))),
            fix="use an earlier checkpoint of that folder",
        ) from error


def plan_fine_tune(
    name_to_variable: Dict[str, object],
    prefix: str,
    quant_names: Iterable[str],
    backbone: str,
    whole_backbone: bool = True,
) -> FineTunePlan:
    """Decides what a float (or QAT) checkpoint fills when training starts from it.

    Args:
      name_to_variable: the model's restore map (name in the checkpoint -> variable).
      prefix: checkpoint prefix.
      quant_names: variables of the rewriter; they may start fresh.
      backbone: scope whose variables must all be there (heads may differ: another num_classes).
      whole_backbone: False for a classifier's checkpoint, which lacks the feature maps that a detector adds:
        half of the variables must then be there.

    Raises:
      CheckpointError: when backbone variables are missing or have other shapes.
    """
    available = shapes(prefix)
    quant_names = frozenset(quant_names)
    restored, fresh_quant, fresh_other = {}, [], []
    for name, variable in sorted(name_to_variable.items()):
        if name == tf.GraphKeys.GLOBAL_STEP or variable.op.name == tf.GraphKeys.GLOBAL_STEP:
            continue
        if available.get(name) == variable.shape.as_list():
            restored[name] = variable
        elif variable.op.name in quant_names:
            fresh_quant.append(name)
        else:
            fresh_other.append(name)
    in_backbone = [
        name
        for name in fresh_other
        if name_to_variable[name].op.name.startswith(backbone) and not _is_optimizer_state(name, available)
    ]
    if not whole_backbone and len(restored) >= len(in_backbone):
        in_backbone = []
    if in_backbone or not restored:
        example = (in_backbone or fresh_other or ["any variable"])[0]
        raise CheckpointError(
            "the fine-tune checkpoint is of another model: it fills {} of {} variables".format(
                len(restored), len(restored) + len(fresh_other)
            ),
            where=prefix,
            found="{} {}".format(example, available.get(example, "missing")),
            allowed=str(name_to_variable[example].shape.as_list()) if example in name_to_variable else None,
            fix="use a checkpoint of this feature extractor, or set fine_tune_checkpoint_type",
        )
    _read(prefix, restored)
    return FineTunePlan(restored, tuple(fresh_quant), tuple(fresh_other))


def fresh_model_variables(plan: FineTunePlan, prefix: str, model_variables: Iterable[object]) -> FreshModel:
    """What of the model itself starts fresh, whether or not the restore map asked for it.

    Args:
      plan: of plan_fine_tune.
      prefix: the checkpoint's.
      model_variables: those that are trained and batch norms' averages; no ranges, no optimizer's.

    Raises:
      CheckpointError: see `shapes`.
    """
    available = shapes(prefix)
    restored = {variable.op.name for variable in plan.restored.values()}
    fresh = {variable.op.name: variable for variable in model_variables if variable.op.name not in restored}
    there = [name for name in sorted(fresh) if name in available]
    fitting = [name for name in there if available[name] == fresh[name].shape.as_list()]
    return FreshModel(tuple(sorted(fresh)), tuple(fitting), tuple(n for n in there if n not in fitting))


def by_scope(names: Iterable[str]) -> str:
    """Names by their outermost scope, `36 in BoxPredictor_* (BoxPredictor_0/a/biases to BoxPredictor_5/...)`.

    Scopes that a number tells apart are one group, and a few groups stand for all, so that the text does not
    grow with the graph.
    """
    groups: Dict[str, List[str]] = {}
    for name in sorted(names):
        groups.setdefault(_END_NUMBER.sub("_*", name.partition("/")[0]), []).append(name)
    largest = sorted(groups, key=lambda scope: -len(groups[scope]))
    shown = ["{} in {} ({})".format(len(groups[s]), s, _ends(groups[s])) for s in largest[:_NAMES_SHOWN]]
    rest = [name for scope in largest[_NAMES_SHOWN:] for name in groups[scope]]
    if rest:
        shown.append("{} in {} other scopes".format(len(rest), len(largest) - _NAMES_SHOWN))
    return ", ".join(shown)


def _ends(names: List[str]) -> str:
    return names[0] if len(names) == 1 else "{} to {}".format(names[0], names[-1])


def _is_optimizer_state(name: str, available: Dict[str, List[int]]) -> bool:
    """Slots and averages hang below a variable's own name: `.../weights/Momentum`."""
    return name.rpartition("/")[0] in available


def _some(names: List[str]) -> str:
    shown = ", ".join(names[:_NAMES_SHOWN])
    rest = len(names) - _NAMES_SHOWN
    return shown + (" and {} more".format(rest) if rest > 0 else "")
