"""Decides which variables a fine-tune checkpoint fills, and which start fresh."""

import re
from typing import Dict, Iterable, List, NamedTuple, Tuple

from od_qat.checkpoints.of_graph import named
from od_qat.checkpoints.on_disk import read, shapes
from od_qat.compat import tf
from od_qat.errors import CheckpointError

_SCOPES_SHOWN = 3
_END_NUMBER = re.compile(r"_\d+$")


class FineTunePlan(NamedTuple):
    """The variables of the restore map that a fine-tune checkpoint fills, and those that start fresh.

    Attributes:
      restored: name in the checkpoint -> variable.
      fresh_quant: names of quantization variables that start fresh.
      fresh_other: names of other variables that start fresh.
    """

    restored: Dict[str, object]
    fresh_quant: Tuple[str, ...]
    fresh_other: Tuple[str, ...]


class FreshModel(NamedTuple):
    """Model variables that a fine-tune checkpoint does not fill.

    Either the restore map leaves them out, or the checkpoint does not have them in that shape.

    Attributes:
      names: all their names.
      fitting: those that the checkpoint has in the same shape.
      other_shapes: those that the checkpoint has in another shape.
    """

    names: Tuple[str, ...]
    fitting: Tuple[str, ...]
    other_shapes: Tuple[str, ...]


def plan_fine_tune(
    name_to_variable: Dict[str, object],
    prefix: str,
    quant_names: Iterable[str],
    backbone: str,
    whole_backbone: bool = True,
    fix: str = "use a checkpoint of this feature extractor, or set fine_tune_checkpoint_type",
) -> FineTunePlan:
    """Decides what a float (or QAT) checkpoint fills when training starts from it.

    Args:
      name_to_variable: the model's restore map (name in the checkpoint -> variable).
      prefix: checkpoint prefix.
      quant_names: names of the rewriter's variables, which may start fresh.
      backbone: scope whose variables the checkpoint must have (heads may differ, for another num_classes).
      whole_backbone: False for a classifier's checkpoint, which lacks the feature maps that a detector adds.
        At least as many variables must then be restored as backbone variables are missing.
      fix: what the error's message says to do.

    Raises:
      CheckpointError: if backbone variables are missing or have other shapes, or if the checkpoint is missing
        or damaged.
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
            fix=fix,
        )
    read(prefix, restored)
    return FineTunePlan(restored, tuple(fresh_quant), tuple(fresh_other))


def fresh_model_variables(plan: FineTunePlan, prefix: str, model_variables: Iterable[object]) -> FreshModel:
    """Finds the variables of the model that start fresh, whether or not they are in the restore map.

    Args:
      plan: the result of plan_fine_tune.
      prefix: checkpoint prefix.
      model_variables: the trained variables and the averages of batch norms, without ranges and optimizer
        variables.

    Raises:
      CheckpointError: see `shapes`.
    """
    available = shapes(prefix)
    restored = {variable.op.name for variable in plan.restored.values()}
    fresh = {variable.op.name: variable for variable in model_variables if variable.op.name not in restored}
    shape_of = {v.op.name: available[key] for key, v in named(prefix).items() if key in available}
    there = [name for name in sorted(fresh) if name in shape_of]
    fitting = [name for name in there if shape_of[name] == fresh[name].shape.as_list()]
    return FreshModel(tuple(sorted(fresh)), tuple(fitting), tuple(n for n in there if n not in fitting))


def by_scope(names: Iterable[str]) -> str:
    """Groups names by outer scope: `36 in BoxPredictor_* (BoxPredictor_0/a/biases to BoxPredictor_5/...)`.

    Scopes that differ only in a number are one group. Only the largest groups are shown, so that the text
    does not grow with the graph.
    """
    groups: Dict[str, List[str]] = {}
    for name in sorted(names):
        groups.setdefault(_END_NUMBER.sub("_*", name.partition("/")[0]), []).append(name)
    largest = sorted(groups, key=lambda scope: -len(groups[scope]))
    shown = ["{} in {} ({})".format(len(groups[s]), s, _ends(groups[s])) for s in largest[:_SCOPES_SHOWN]]
    rest = [name for scope in largest[_SCOPES_SHOWN:] for name in groups[scope]]
    if rest:
        shown.append("{} in {} other scopes".format(len(rest), len(largest) - _SCOPES_SHOWN))
    return ", ".join(shown)


def _ends(names: List[str]) -> str:
    return names[0] if len(names) == 1 else "{} to {}".format(names[0], names[-1])


def _is_optimizer_state(name: str, available: Dict[str, List[int]]) -> bool:
    """Whether a name is that of a slot or an average: it has a variable's name as its scope.

    An example is `.../weights/Momentum`.
    """
    return name.rpartition("/")[0] in available
