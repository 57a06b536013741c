"""What devices do with the ops of a .tflite, as text and as JSON."""

import collections
from typing import Any, Dict, List, Optional, Sequence, Tuple

from od_qat.model_files.tflite_graph import TfliteGraph
from od_qat.targets import rules
from od_qat.targets.rules import BEHIND, NOT_KNOWN, REFUSED, TAKEN, Broken, Target, Verdict


class OfTarget(object):
    """What a target does with a model.

    Attributes:
      target: it.
      verdicts: one for each op, in order.
      too_heavy: the rule of the weights' memory, if the model breaks it.
      multiply_adds: the share of them in ops that are taken or may be, 0 to 1; None if it is not known.
    """

    def __init__(self, graph: TfliteGraph, target: Target) -> None:
        self.target = target
        self.verdicts = tuple(rules.judge(graph, target))
        self.too_heavy = rules.too_heavy(graph, target)
        counts = {one.op.index: graph.multiply_adds(one.op) for one in self.verdicts}
        known = [count for count in counts.values() if count is not None]
        taken = sum(counts[one.op.index] or 0 for one in self.verdicts if one.status in (TAKEN, NOT_KNOWN))
        self.multiply_adds = taken / sum(known) if len(known) == len(counts) and sum(known) else None

    def counts(self) -> Dict[str, int]:
        """How many ops have each status, those with any."""
        found = collections.Counter(one.status for one in self.verdicts)
        return {status: found[status] for status in (TAKEN, NOT_KNOWN, REFUSED, BEHIND) if found[status]}


def as_text(found: OfTarget, limit: int = 10) -> str:
    """For a terminal: the counts, and each reason with the ops that it is of, at most `limit` of them."""
    target = found.target
    lines = [target.title]
    counts = ", ".join("{} {}".format(count, status) for status, count in found.counts().items())
    share = found.multiply_adds
    heavy = (
        "" if share is None else "; {:.0f} % of the multiply-adds are in what it takes".format(100 * share)
    )
    lines.append("  {} ops: {}{}".format(len(found.verdicts), counts, heavy))
    for status in (REFUSED, NOT_KNOWN):
        reasons = _reasons(target, [one for one in found.verdicts if one.status == status])
        for (says, around), ops in list(reasons.items())[:limit]:
            lines.append("  {}: {}".format(status, _named(ops)))
            lines.append("    {}{}".format(says, " " + around if around else ""))
        if len(reasons) > limit:
            lines.append("  ... and {} more reasons (--all, --json)".format(len(reasons) - limit))
    if found.too_heavy is not None and found.too_heavy.rule is not None:
        lines.append("  {}: {}".format(found.too_heavy.found, found.too_heavy.rule.says))
    unknown = rules.unknown_of_models(target)
    if unknown:
        lines.append("  what this file cannot tell:")
        lines += ["    " + says for says in unknown]
    return "\n".join(lines)


_Reason = Tuple[str, str]


def _reasons(target: Target, verdicts: Sequence[Verdict]) -> "Dict[_Reason, List[Tuple[Verdict, Broken]]]":
    """Reason and the way round -> the ops that it is of; an op may have several."""
    found: Dict[_Reason, List[Tuple[Verdict, Broken]]] = collections.OrderedDict()
    unlisted = "The document does not describe it." if target.describes else "It is not in the list of ops."
    for one in verdicts:
        for broken in one.broken:
            rule = broken.rule
            key = (unlisted, "") if rule is None else (rule.says, rule.around)
            found.setdefault(key, []).append((one, broken))
    return found


def _named(ops: "List[Tuple[Verdict, Broken]]") -> str:
    """The first op by place, type and tensor, what was found, and how many more there are of each type."""
    first, broken = ops[0]
    what = broken.found if broken.rule is not None else ""
    text = "{} {} {}{}".format(
        first.op.index, first.op.type, first.tensor, " ({})".format(what) if what else ""
    )
    more = collections.Counter(one.op.type for one, _ in ops[1:])
    return text + ("; and " + ", ".join("{} {}".format(n, name) for name, n in more.items()) if more else "")


def as_json(found: OfTarget) -> Dict[str, Any]:
    """The whole, for json.dumps."""
    target = found.target
    return {
        "target": target.name,
        "title": target.title,
        "counts": found.counts(),
        "multiply_adds": found.multiply_adds,
        "ops": [
            {
                "index": one.op.index,
                "type": one.op.type,
                "tensor": one.tensor,
                "status": one.status,
                "reasons": [_reason(target, broken) for broken in one.broken],
            }
            for one in found.verdicts
        ],
        "too_heavy": None if found.too_heavy is None else _reason(target, found.too_heavy),
        "not_known": rules.unknown_of_models(target),
    }


def _reason(target: Target, broken: Broken) -> Dict[str, Optional[str]]:
    rule = broken.rule
    if rule is None:
        return {"found": broken.found, "says": None, "around": None, "source": None}
    source = target.sources[rule.source]
    return {"found": broken.found, "says": rule.says, "around": rule.around, "source": source["url"]}
