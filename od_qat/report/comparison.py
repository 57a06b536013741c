"""Compares what two models hold, and says in words what users ask about them."""

import dataclasses
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from od_qat.contents.model import (
    CHECKPOINT,
    GRAPH,
    KINDS_OF_ARRAYS,
    OPTIMIZER,
    RANGES,
    SAVED_MODEL,
    STRUCTURE,
    TFLITE,
    WEIGHTS,
    Array,
    Contents,
)
from od_qat.report import table
from od_qat.report.table import size
from od_qat.rewrite import policy


@dataclasses.dataclass(frozen=True)
class Change:
    """An array that both models have, with other values.

    Attributes:
      name, kind: see contents.model.Array.
      largest: greatest absolute difference of two numbers.
      relative: root mean square of the difference, divided by that of the first model's numbers; None if
        these are all 0.
      shapes: of both, if they differ; the other figures are then None.
    """

    name: str
    kind: str
    largest: Optional[float]
    relative: Optional[float]
    shapes: Optional[Tuple[Tuple[int, ...], Tuple[int, ...]]] = None


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two models.

    Attributes:
      a, b: their contents.
      by_name: whether the arrays of both can have the same names: those of a .tflite and of another kind
        cannot, and none of the following is then filled.
      only_a, only_b: arrays that one of them has alone.
      changed: arrays with other values, the largest relative change first; the optimizer's last.
      equal: how many have the same values.
      op_types: type -> how many there are in each, where the numbers differ.
      words: sentences about both.
    """

    a: Contents
    b: Contents
    by_name: bool
    only_a: Tuple[Array, ...]
    only_b: Tuple[Array, ...]
    changed: Tuple[Change, ...]
    equal: int
    op_types: Dict[str, Tuple[int, int]]
    words: Tuple[str, ...]


def compare(a: Contents, b: Contents) -> Comparison:
    """Compares two models. Arrays are compared by name."""
    by_name = (a.kind == TFLITE) == (b.kind == TFLITE)
    of_a = {array.name: array for array in a.arrays} if by_name else {}
    of_b = {array.name: array for array in b.arrays} if by_name else {}
    both = [(array, of_b[name]) for name, array in of_a.items() if name in of_b]
    changes = [_change(one, other) for one, other in both]
    changed = [change for change in changes if change is not None]
    changed.sort(key=lambda change: (change.kind == OPTIMIZER, -_weight(change), change.name))
    types_a, types_b = a.op_types(), b.op_types()
    result = Comparison(
        a,
        b,
        by_name,
        tuple(array for name, array in of_a.items() if name not in of_b),
        tuple(array for name, array in of_b.items() if name not in of_a),
        tuple(changed),
        len(both) - len(changed),
        {
            name: (types_a.get(name, 0), types_b.get(name, 0))
            for name in sorted(set(types_a) | set(types_b))
            if types_a.get(name) != types_b.get(name)
        },
        (),
    )
    return dataclasses.replace(result, words=tuple(_words(result)))


def _weight(change: Change) -> float:
    if change.shapes is not None:
        return np.inf
    # (From zeros, every change is endless.)
    return -1.0 if change.relative is None else change.relative


def _change(a: Array, b: Array) -> Optional[Change]:
    if tuple(a.shape) != tuple(b.shape):
        return Change(a.name, a.kind, None, None, (tuple(a.shape), tuple(b.shape)))
    one, other = (np.asarray(array.value(), np.float64) for array in (a, b))
    if np.array_equal(one, other):
        return None
    difference = other - one
    own = float(np.sqrt(np.mean(np.square(one))))
    relative = float(np.sqrt(np.mean(np.square(difference)))) / own if own else None
    return Change(a.name, a.kind, float(np.abs(difference).max()), relative)


# In words.


def _words(found: Comparison) -> List[str]:
    sentences = []
    for one, name in ((found.a, "A"), (found.b, "B")):
        sentences += _of_one(one, name)
    sentences += _of_sizes(found)
    sentences += _of_ranges(found)
    if found.by_name and found.a.kind == found.b.kind and not (found.changed or found.only_a or found.only_b):
        sentences.append("All {} arrays of A are in B, with the same values.".format(found.equal))
    if not found.by_name:
        sentences.append(
            "The converter folds, renames and transposes what a .tflite holds, so that no array of one has "
            "its counterpart in the other by name. What both compute can be compared: od-qat agree."
        )
    return sentences


def _fake_quants(contents: Contents) -> int:
    return sum(count for name, count in contents.op_types().items() if name in policy.FAKE_QUANT)


def _of_one(contents: Contents, name: str) -> List[str]:
    weights = sum(int(np.prod(array.shape)) for array in contents.of_kind(WEIGHTS))
    fake_quants = _fake_quants(contents)
    if fake_quants and weights and contents.kind in (GRAPH, SAVED_MODEL):
        return [
            "{} is a QAT model with {} fake quants. Its weights are float32 still, 4 bytes for each, and so "
            "it is no smaller than the float model. A .tflite stores one byte for each, about {}: od-qat "
            "export-tflite makes it.".format(name, fake_quants, size(weights))
        ]
    share = contents.quantized_weights()
    if contents.kind == TFLITE and share is not None and share < 1:
        floats = [layer.name for layer in contents.layers or () if not layer.quantized]
        return [
            "{} computes {} of {} layers in float, {} first.".format(
                name, len(floats), len(contents.layers or ()), floats[0]
            )
        ]
    return []


def _of_sizes(found: Comparison) -> List[str]:
    sentences = []
    small, large = sorted((found.a, found.b), key=lambda one: one.size_bytes)
    names = {id(found.a): "A", id(found.b): "B"}
    if small.kind == TFLITE and small.quantized_weights() == 1 and large.kind != TFLITE:
        sentences.append(
            "{} has {:.0f} % of the size of {}: its weights are of 8 bits, those of {} are of 32.".format(
                names[id(small)],
                100.0 * small.size_bytes / large.size_bytes,
                names[id(large)],
                names[id(large)],
            )
        )
    for one in (found.a, found.b):
        optimizer = sum(array.size_bytes for array in one.of_kind(OPTIMIZER))
        if optimizer:
            sentences.append(
                "{} of {} are the optimizer's, which no exported model has.".format(
                    size(optimizer), names[id(one)]
                )
            )
    return sentences


def _of_ranges(found: Comparison) -> List[str]:
    ranges = [len(one.of_kind(RANGES)) for one in (found.a, found.b)]
    if CHECKPOINT not in (found.a.kind, found.b.kind) or bool(ranges[0]) == bool(ranges[1]):
        return []
    if TFLITE in (found.a.kind, found.b.kind):
        return []
    name, count = ("A", ranges[0]) if ranges[0] else ("B", ranges[1])
    alone = found.only_a if ranges[0] else found.only_b
    others = [array for array in alone if array.kind not in (RANGES, OPTIMIZER)]
    return [
        "{} is a QAT model: {} variables are minima and maxima of ranges, and their helpers. {}".format(
            name,
            count,
            "Beside these it has nothing that the other has not."
            if not others
            else "{} further variables are in it alone, {} first.".format(len(others), others[0].name),
        )
    ]


# As text and as JSON.


def as_text(found: Comparison, limit: int = 10) -> str:
    """The comparison for a terminal: a table, lists of at most `limit` lines each, and the sentences."""
    lines = _table(found)
    for title, arrays in (("only in A", found.only_a), ("only in B", found.only_b)):
        if arrays:
            total = sum(array.size_bytes for array in arrays)
            lines += ["", "{}: {} arrays, {}".format(title, len(arrays), size(total))]
            ordered = sorted(arrays, key=lambda array: (-array.size_bytes, array.name))
            lines += _listed(["{}  {} {}".format(a.name, a.dtype, list(a.shape)) for a in ordered], limit)
    if found.changed:
        lines += ["", "changed: {} arrays; {} are equal".format(len(found.changed), found.equal)]
        lines += _listed([_changed(change) for change in found.changed], limit)
    if found.op_types and found.a.ops and found.b.ops:
        lines += ["", "ops: A, B"]
        ordered_types = sorted(found.op_types.items(), key=lambda item: -abs(item[1][0] - item[1][1]))
        lines += _listed(["{}  {}, {}".format(name, *counts) for name, counts in ordered_types], limit)
    if found.words:
        lines += [""] + list(found.words)
    return "\n".join(lines)


def _listed(items: List[str], limit: int) -> List[str]:
    more = ["  ... and {} more (--all, --json)".format(len(items) - limit)] if len(items) > limit else []
    return ["  " + item for item in items[:limit]] + more


def _changed(change: Change) -> str:
    if change.shapes is not None:
        return "{}  shape {} in A, {} in B".format(change.name, *map(list, change.shapes))
    if change.relative is None:
        relative = ""
    elif change.relative < 1:
        relative = "{:.2g} % of its root mean square, ".format(100 * change.relative)
    else:
        relative = "{:.3g} times its root mean square, ".format(change.relative)
    return "{}  {}at most {:.3g}".format(change.name, relative, change.largest)


def _table(found: Comparison) -> List[str]:
    rows = [("", "A", "B")] + rows_of((found.a, found.b))
    return ["A  {}".format(found.a.path), "B  {}".format(found.b.path), ""] + table.aligned(rows)


def rows_of(both: Sequence[Contents]) -> List[Tuple[str, ...]]:
    """Kind, sizes and quantized shares of models, as the rows of a table with a column for each."""
    rows = [("kind",) + tuple(one.kind for one in both)]
    rows.append(("size",) + tuple(size(one.size_bytes) for one in both))
    sizes = [one.sizes() for one in both]
    for kind in KINDS_OF_ARRAYS + (STRUCTURE,):
        if not any(kind in of for of in sizes):
            continue
        rows.append(("  " + kind,) + tuple(size(of.get(kind, 0)) for of in sizes))
    if any(one.layers for one in both):
        rows.append(("layers",) + tuple("-" if one.layers is None else str(len(one.layers)) for one in both))
        rows.append(("  weights quantized",) + tuple(_percent(one.quantized_weights()) for one in both))
        rows.append(
            ("  multiply-adds quantized",) + tuple(_percent(one.quantized_multiply_adds()) for one in both)
        )
    return rows


def _percent(share: Optional[float]) -> str:
    return "not known" if share is None else "{:.1f} %".format(100.0 * share)


def as_json(found: Comparison) -> Dict[str, Any]:
    """The whole comparison, for json.dumps."""
    return {
        "a": summary(found.a),
        "b": summary(found.b),
        "compared_by_name": found.by_name,
        "only_a": [_array(array) for array in found.only_a],
        "only_b": [_array(array) for array in found.only_b],
        "changed": [dataclasses.asdict(change) for change in found.changed],
        "equal": found.equal,
        "op_types": {name: list(counts) for name, counts in found.op_types.items()},
        "words": list(found.words),
    }


def summary(contents: Contents) -> Dict[str, Any]:
    """What a model holds, for json.dumps, without its arrays."""
    return {
        "path": contents.path,
        "kind": contents.kind,
        "size_bytes": contents.size_bytes,
        "sizes": contents.sizes(),
        "op_types": contents.op_types(),
        "layers": None if contents.layers is None else len(contents.layers),
        "quantized_weights": contents.quantized_weights(),
        "quantized_multiply_adds": contents.quantized_multiply_adds(),
    }


def _array(array: Array) -> Dict[str, Any]:
    return {
        "name": array.name,
        "kind": array.kind,
        "shape": list(array.shape),
        "dtype": array.dtype,
        "size_bytes": array.size_bytes,
    }
