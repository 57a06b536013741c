"""Judges quantization ranges: which ones never moved, collapsed, exploded or are not finite.

A training does not notice a wrong range: the loss falls, and the int8 model is useless. These checks look at
values only, so they serve a training session (training/range_gates.py) and the checkpoint of an export.

The range of an activation is an average over thousands of steps, so it shows late what happens to its layer.
In training, the mean range since the last look is judged too. It follows from the helper variables of the
average, so nothing more has to be computed. `biased` starts at 0, and each step sets it to `biased * d +
value * (1 - d)`. If it was b, then n steps later the mean of their values, with more weight on the later
ones, is (biased - b * d ** n) / (1 - d ** n).
"""

import sys
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.errors import OdQatError

OK = "ok"
NEVER_MOVED = "never moved"
COLLAPSED = "collapsed"
EXPLODED = "exploded"
INCONSISTENT = "inconsistent"
NOT_FINITE = "not finite"

# Initial values of range variables, here and in tf.contrib.quantize: [-6, 6], or [0, 6] behind a ReLU.
_START_MAX = 6.0
_START_MINS = (-6.0, 0.0)
# A range is updated in every step, from the first on. Ten steps leave room for a worker that starts late.
STEPS_TO_MOVE = 10
# That is 255 steps of less than 4e-9, the range of a layer that is dead. (Weights behind a gamma of 0 are
# below it too: folding scales them by its smallest scale, 1e-6.)
_NO_WIDTH = 1e-6
# A layer whose range is a thousandth of its reference passes nothing on: the batch norms and biases behind it
# were trained for the reference.
_SHRINKAGE = 1e-3
# Folding scales weights by 1 / sqrt(variance + 0.001). This alone can make their range grow 32 times.
_GROWTH = 100.0
# A narrow range that widens is no trouble. Healthy layers have widths up to some tens.
_NOT_WIDE = 10.0
# One of 255 steps is then 39, which is wider than the whole range of a healthy layer.
_TOO_WIDE = 1e4

_NAMES_SHOWN = 3

# kind -> (what is usual, what to do next)
ADVICE = {
    NEVER_MOVED: (
        "a new value in each training step",
        "its update does not run: check that the layer leads to a loss, and that training ran with the "
        "graph_rewriter block",
    ),
    COLLAPSED: (
        "0.1 to 30 wide",
        "the layer's output is constant: look at its gamma and weights, lower the learning rate, or start "
        "from a trained float checkpoint",
    ),
    EXPLODED: (
        "0.1 to 30 wide",
        "at 8 bits such a range keeps nothing small: lower the learning rate, set gradient_clipping_by_norm, "
        "or start from a trained float checkpoint",
    ),
    INCONSISTENT: (
        "min <= 0 <= max",
        "the checkpoint's ranges were not made by this rewriter: train them anew (a new train_dir)",
    ),
}


class Average(NamedTuple):
    """The helper variables of one end of a range."""

    biased: float
    steps: float


class Range(NamedTuple):
    """The range of one fake quant; its values are vectors if it is per channel.

    Attributes:
      low, high: its ends.
      updates: number of updates; None if it is not kept.
      averages: of low and of high; None for an end that is not averaged (of weights, and the minimum behind a
        ReLU).
    """

    low: np.ndarray
    high: np.ndarray
    updates: Optional[float] = None
    averages: Tuple[Optional[Average], Optional[Average]] = (None, None)

    def width(self) -> float:
        """The width of the widest channel."""
        return float(np.max(self.high - self.low))

    def text(self) -> str:
        """The range for a message: `[0, 5.3]`."""
        return "[{:.4g}, {:.4g}]".format(float(np.min(self.low)), float(np.max(self.high)))


def judge(found: Range, reference: Optional[float] = None, trained: bool = True) -> str:
    """Says what is wrong with a range, or 'ok'.

    Args:
      found: the range.
      reference: its width after warm-up; None if that is not known.
      trained: whether it must have been updated by now.
    """
    if not (np.all(np.isfinite(found.low)) and np.all(np.isfinite(found.high))):
        return NOT_FINITE
    if at_start(found):
        return NEVER_MOVED if trained else OK
    if np.any(found.low > 0) or np.any(found.high < 0) or np.any(found.low > found.high):
        return INCONSISTENT
    width = found.width()
    if width < _NO_WIDTH or (reference is not None and width < reference * _SHRINKAGE):
        return COLLAPSED
    if width > _TOO_WIDE:
        return EXPLODED
    if reference is not None and width > _NOT_WIDE and width > reference * _GROWTH:
        return EXPLODED
    return OK


def at_start(found: Range) -> bool:
    """Whether a range has its initial value. A trained ReLU6 may have [0, 6] too: the updates tell."""
    untouched = np.all(found.high == _START_MAX) and any(np.all(found.low == low) for low in _START_MINS)
    if found.updates is not None:
        return found.updates == 0 and untouched
    return untouched and not np.all(found.low == 0.0)


def group(values: Dict[str, np.ndarray]) -> Dict[str, Range]:
    """Turns variables by name into ranges by the name of their fake quant, `<layer>/act_quant`."""
    helpers: Dict[str, Dict[str, float]] = {}
    for name, value in values.items():
        base, _, helper = name.rpartition("/")
        if helper in ("biased", "local_step"):
            base, _, bound = base.rpartition("/")
            # The names of helper variables repeat the scope: `a/act_quant/a/act_quant/max/local_step`.
            half = base[: len(base) // 2]
            base = half if base == half + "/" + half else base
            helpers.setdefault(base, {})["{}/{}".format(bound, helper)] = float(np.max(value))
    found = {}
    for name, value in values.items():
        if name.endswith("/max") and name[:-4] + "/min" in values:
            base = name[:-4]
            of_base = helpers.get(base, {})
            steps = [of_base[key] for key in ("min/local_step", "max/local_step") if key in of_base]
            found[base] = Range(
                np.asarray(values[base + "/min"]),
                np.asarray(value),
                max(steps) if steps else None,
                (_average(of_base, "min"), _average(of_base, "max")),
            )
    return found


def _average(helpers: Dict[str, float], bound: str) -> Optional[Average]:
    biased, steps = helpers.get(bound + "/biased"), helpers.get(bound + "/local_step")
    return None if biased is None or steps is None else Average(biased, steps)


def between(then: Range, now: Range, decay: float) -> Optional[Range]:
    """The mean range of the batches between two looks.

    Args:
      then, now: the range at each look.
      decay: of its moving average.

    Returns: Range; None if nothing is averaged, if fewer than ten steps lie between, or if rounding hides the
      answer.
    """
    high = _mean_between(then.averages[1], now.averages[1], decay)
    if high is None:
        return None
    low = now.low
    if now.averages[0] is not None:
        low = _mean_between(then.averages[0], now.averages[0], decay)
        if low is None:
            return None
    # (Rounding can put an end on the wrong side of 0.)
    return Range(np.minimum(low, 0.0), np.maximum(high, 0.0), now.averages[1].steps - then.averages[1].steps)


def _mean_between(then: Optional[Average], now: Optional[Average], decay: float) -> Optional[float]:
    if then is None or now is None:
        return None
    steps = now.steps - then.steps
    if steps < STEPS_TO_MOVE:
        return None
    left = decay**steps
    # Each update rounds `biased` to float32, and the errors of the last 1 / (1 - decay) steps add up. Their
    # sum must stay small compared with a range that is called collapsed.
    rounding = min(steps, 1.0 / (1.0 - decay)) * 2.0**-24
    if rounding > (1.0 - left) * _SHRINKAGE / 4:
        return None
    return (now.biased - then.biased * left) / (1.0 - left)


def messages(verdicts: Iterable[Tuple[str, str, Range]]) -> Dict[str, str]:
    """Makes one line for each kind of trouble, with the first few names and a count.

    Args:
      verdicts: name, verdict and range of each fake quant.

    Returns:
      kind -> line.
    """
    kinds: Dict[str, List[str]] = {}
    for name, verdict, found in verdicts:
        kinds.setdefault(verdict, []).append("{} {}".format(name, found.text()))
    lines = {}
    for kind, (usual, advice) in ADVICE.items():
        names = kinds.get(kind)
        if names:
            rest = len(names) - _NAMES_SHOWN
            lines[kind] = "warning: quantization ranges, {} ({}): {}{}; usual: {}. Fix: {}".format(
                kind,
                len(names),
                ", ".join(names[:_NAMES_SHOWN]),
                " and {} more".format(rest) if rest > 0 else "",
                usual,
                advice,
            )
    return lines


def warn_of_checkpoint(prefix: str, quant_names: Iterable[str]) -> List[str]:
    """Warns of ranges in a checkpoint with which an export would make a useless model.

    Args:
      prefix: checkpoint prefix.
      quant_names: names of the graph's range variables.

    Returns:
      the lines that were printed.
    """
    wanted = frozenset(quant_names)
    reader = tf.train.NewCheckpointReader(prefix)
    names = [
        name
        for name in sorted(reader.get_variable_to_shape_map())
        if name in wanted or name.endswith(("/min/local_step", "/max/local_step"))
    ]
    ranges = group({name: reader.get_tensor(name) for name in names})
    lines = list(messages((name, judge(found), found) for name, found in ranges.items()).values())
    for line in lines:
        print(line, file=sys.stderr)
    bad = [name for name, found in ranges.items() if judge(found) == NOT_FINITE]
    if bad:
        raise not_finite(bad, ranges, prefix)
    return lines


def not_finite(names: List[str], ranges: Dict[str, Range], where: Optional[str] = None) -> OdQatError:
    """Makes the error for ranges that are not finite; `where` is their file, if they are in one."""
    return OdQatError(
        "a quantization range is not finite",
        where=where or names[0],
        found=", ".join("{} {}".format(name, ranges[name].text()) for name in names[:_NAMES_SHOWN])
        + (" and {} more".format(len(names) - _NAMES_SHOWN) if len(names) > _NAMES_SHOWN else ""),
        allowed="finite values",
        fix="take an earlier checkpoint, and train with a lower learning rate or gradient_clipping_by_norm",
    )
