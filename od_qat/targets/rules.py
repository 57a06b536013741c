"""Judges each op of a .tflite by the rules of a device, which are data: *.json beside this file.

A file has the documents that its rules were read from, rules for every op (`general`), and rules for each op
that the device takes. A rule names one check and its argument, says in a sentence what must hold, what a user
can do otherwise, and which document says so. A check named `unknown` cannot be made on the file alone.
"""

import dataclasses
import functools
import inspect
import json
import os
from typing import Any, Callable, Dict, List, Optional, Set, Tuple

from od_qat.errors import ConfigError
from od_qat.model_files.tflite_graph import Op, TfliteGraph
from od_qat.targets import of_numbers, of_shapes, tensors

_FOLDER = os.path.dirname(os.path.abspath(__file__))
# In the order in which they are shown.
NAMES = ("xnnpack", "edge_tpu", "micro", "specification")

TAKEN = "taken"
REFUSED = "not taken"
BEHIND = "behind the first that is not taken"
NOT_KNOWN = "not known"

# Checks whose answer no file has: the vendor's compiler, the runtime or the build decides.
_UNKNOWN = ("unknown", "min_runtime")
# What is about the whole model, and no check of an op.
_OF_MODELS = ("falls_back", "one_part", "max_weight_bytes")


def _functions(module: Any) -> Dict[str, Callable[..., Optional[str]]]:
    return {
        name: function
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__ and not name.startswith("_")
    }


# Name of a check -> function of the graph, the op and the rule's argument.
CHECKS = dict(_functions(of_numbers), **_functions(of_shapes))


@dataclasses.dataclass(frozen=True)
class Rule:
    """A rule.

    Attributes:
      check, argument: of CHECKS, or one that cannot be made.
      exceptions: types of ops that a general rule is not for.
      says: what must hold.
      around: what a user can do; may be empty.
      source: number of the document in the target's sources.
    """

    check: str
    argument: Any
    exceptions: Tuple[str, ...]
    says: str
    around: str
    source: int


@dataclasses.dataclass(frozen=True)
class Target:
    """A device or a specification.

    Attributes:
      name: of NAMES.
      title: in words.
      sources: title, url, version and the day it was read, of each document.
      general: rules of every op.
      ops: type of an op -> its rules; what is not listed is not taken.
      one_part: the rule that nothing is taken behind an op that is not; None without it.
      of_model: rules about the model as a whole, which are said and not checked.
      weight_bytes: rule of how many the model may have to be fast; None without one.
      describes: whether it is a specification of quantized ops: it says nothing of ops that it does not list,
        nor of ops without a quantized tensor.
    """

    name: str
    title: str
    sources: Tuple[Dict[str, str], ...]
    general: Tuple[Rule, ...]
    ops: Dict[str, Tuple[Rule, ...]]
    one_part: Optional[Rule]
    of_model: Tuple[Rule, ...]
    weight_bytes: Optional[Rule]
    describes: bool


@dataclasses.dataclass(frozen=True)
class Broken:
    """A rule that an op breaks, or that cannot be checked.

    Attributes:
      rule: it; None if the target has no such op.
      found: what was found; empty if it cannot be checked.
    """

    rule: Optional[Rule]
    found: str


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What a target does with an op.

    Attributes:
      op: it.
      tensor: name of its first output.
      status: TAKEN, REFUSED, BEHIND or NOT_KNOWN.
      broken: the rules that made it REFUSED; those that cannot be checked otherwise.
    """

    op: Op
    tensor: str
    status: str
    broken: Tuple[Broken, ...]


def load(name: str) -> Target:
    """Reads a target's rules.

    Raises:
      ConfigError: for a name that is not one of NAMES.
    """
    if name not in NAMES:
        raise ConfigError("unknown target", found=repr(name), allowed=", ".join(NAMES))
    return _load(name)


@functools.lru_cache(maxsize=None)
def _load(name: str) -> Target:
    with open(os.path.join(_FOLDER, name + ".json"), encoding="utf-8") as stream:
        content = json.load(stream)
    general = [_rule(rule) for rule in content["general"]]
    of_model = {rule.check: rule for rule in general}
    return Target(
        name,
        content["title"],
        tuple(content["sources"]),
        tuple(rule for rule in general if rule.check not in _OF_MODELS),
        {op: tuple(_rule(rule) for rule in rules) for op, rules in content["ops"].items()},
        of_model.get("one_part"),
        tuple(of_model[name] for name in ("one_part", "falls_back") if name in of_model),
        of_model.get("max_weight_bytes"),
        bool(content.get("describes")),
    )


def _rule(content: Dict[str, Any]) -> Rule:
    check = dict(content["check"])
    exceptions = tuple(check.pop("except", ()))
    ((name, argument),) = check.items()
    return Rule(name, argument, exceptions, content["says"], content["around"], content["source"])


def judge(graph: TfliteGraph, target: Target) -> List[Verdict]:
    """What a target does with each op of a graph, in its order."""
    verdicts = [_judge_op(graph, op, target) for op in graph.ops]
    if target.one_part is None:
        return verdicts
    # What depends on a refused op is behind it. What only comes later in the file may be in the first part.
    behind: Set[int] = set()
    judged: List[Verdict] = []
    refused = False
    for one in verdicts:
        if one.status == REFUSED:
            refused = True
            behind.update(one.op.outputs)
        elif behind & set(one.op.inputs):
            one = dataclasses.replace(one, status=BEHIND)
            behind.update(one.op.outputs)
        elif refused and one.status == TAKEN:
            one = dataclasses.replace(one, status=NOT_KNOWN, broken=(Broken(target.one_part, "comes later"),))
        judged.append(one)
    return judged


def _judge_op(graph: TfliteGraph, op: Op, target: Target) -> Verdict:
    tensor = graph.tensors[op.outputs[0]].name if op.outputs else ""
    if target.describes and not any(one.is_quantized for one in tensors.every(graph, op)):
        return Verdict(op, tensor, TAKEN, ())
    if op.type not in target.ops:
        status = NOT_KNOWN if target.describes else REFUSED
        return Verdict(op, tensor, status, (Broken(None, "{} is not listed".format(op.type)),))
    broken, unknown = [], []
    for rule in [one for one in target.general if op.type not in one.exceptions] + list(target.ops[op.type]):
        if rule.check in _UNKNOWN:
            # (What is unknown of every op is said once, of the model.)
            unknown += [] if rule in target.general else [Broken(rule, "")]
            continue
        found = CHECKS[rule.check](graph, op, rule.argument)
        if found is not None:
            broken.append(Broken(rule, found))
    if broken:
        return Verdict(op, tensor, REFUSED, tuple(broken))
    return Verdict(op, tensor, NOT_KNOWN if unknown else TAKEN, tuple(unknown))


def unknown_of_models(target: Target) -> List[str]:
    """What cannot be known of any model without the vendor's compiler or the device."""
    return [rule.says for rule in target.general if rule.check in _UNKNOWN]


def too_heavy(graph: TfliteGraph, target: Target) -> Optional[Broken]:
    """Whether the weights of all layers take more memory than the device has for them; None if not."""
    weights = {tensor.index: tensor.bytes for tensor in map(graph.weights, graph.ops) if tensor is not None}
    total = sum(weights.values())
    if target.weight_bytes is None or total <= target.weight_bytes.argument:
        return None
    return Broken(target.weight_bytes, "{:,} bytes of weights".format(total))
