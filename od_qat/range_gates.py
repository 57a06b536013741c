"""Quality gates on quantization ranges: named when they never moved, collapsed, exploded or are not finite.

A range that is wrong trains on without a word: the loss falls, and the int8 model is a lottery. The checks
are on the values alone, so they serve a training session and a checkpoint that is to be exported.

The range of an activation is an average over thousands of steps, and shows late what happens to its layer. In
training the mean range since the look before is judged beside it. Nothing more is computed for that: the
helper variables of the average tell. `biased` starts at 0 and takes `biased * d + value * (1 - d)` in each
step, so that n steps after it was b the mean of their values, the later ones weighing more, is
(biased - b * d ** n) / (1 - d ** n).
"""

import json
import os
import sys
from typing import Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
from tqdm import tqdm

from od_qat import files
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.errors import OdQatError

RANGES_FILE = "quant_ranges.json"

OK = "ok"
NEVER_MOVED = "never moved"
COLLAPSED = "collapsed"
EXPLODED = "exploded"
INCONSISTENT = "inconsistent"
NOT_FINITE = "not finite"

# Where the rewriter's range variables start (and tf.contrib.quantize's): [-6, 6], or [0, 6] behind a ReLU.
_START_MAX = 6.0
_START_MINS = (-6.0, 0.0)
# A range is updated in every step, the first one included; ten leave room for a worker that starts late.
_STEPS_TO_MOVE = 10
# The reference of growth and shrinking: by then a fine-tuned range is where it belongs. Also the time between
# looks: one small read in a hundred steps costs nothing that can be measured.
_WARM_UP = 100
# 255 steps of less than 4e-9: what a layer without a living weight or activation gives. (Weights behind a
# gamma of 0 are scaled by the folding's smallest scale, 1e-6, and are below it as well.)
_NO_WIDTH = 1e-6
# Three orders of magnitude below its own reference no layer carries anything on: the batch norms and biases
# behind it were trained for the reference.
_SHRINKAGE = 1e-3
# Folding scales weights by 1 / sqrt(variance + 0.001), which alone may make their range grow 32 times; ...
_GROWTH = 100.0
# ... and a narrow range that widens is a layer that wakes up. Healthy layers are up to some tens wide.
_NOT_WIDE = 10.0
# One of 255 steps is then 39, wider than the whole range of a healthy layer.
_TOO_WIDE = 1e4

_NAMES_SHOWN = 3
_LINES_PER_KIND = 5

# kind -> (what is usual, what to do next)
_ADVICE = {
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
    """What the helper variables of one end of a range hold."""

    biased: float
    steps: float


class Range(NamedTuple):
    """One fake quant's range; vectors when per channel.

    Attributes:
      low, high: its ends.
      updates: counts them, None where it is not kept.
      averages: of low and of high, None where an end is not averaged (a minimum behind a ReLU, weights).
    """

    low: np.ndarray
    high: np.ndarray
    updates: Optional[float] = None
    averages: Tuple[Optional[Average], Optional[Average]] = (None, None)

    def width(self) -> float:
        """Of the widest channel."""
        return float(np.max(self.high - self.low))

    def text(self) -> str:
        """`[0, 5.3]`, for a message."""
        return "[{:.4g}, {:.4g}]".format(float(np.min(self.low)), float(np.max(self.high)))


def judge(found: Range, reference: Optional[float] = None, trained: bool = True) -> str:
    """What is wrong with a range, or 'ok'.

    Args:
      found: the range.
      reference: how wide it was after warm-up; None when that is not known.
      trained: whether its update must have run by now.
    """
    if not (np.all(np.isfinite(found.low)) and np.all(np.isfinite(found.high))):
        return NOT_FINITE
    if _at_start(found):
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


def _at_start(found: Range) -> bool:
    """Whether a range has its first value. [0, 6] is also what many a ReLU6 ends with: the count tells."""
    at_start = np.all(found.high == _START_MAX) and any(np.all(found.low == low) for low in _START_MINS)
    if found.updates is not None:
        return found.updates == 0 and at_start
    return at_start and not np.all(found.low == 0.0)


def group(values: Dict[str, np.ndarray]) -> Dict[str, Range]:
    """Variables by name -> ranges by the name of their fake quant, `<layer>/act_quant`, in the same order."""
    helpers: Dict[str, Dict[str, float]] = {}
    for name, value in values.items():
        base, _, helper = name.rpartition("/")
        if helper in ("biased", "local_step"):
            base, _, bound = base.rpartition("/")
            # The helper variables repeat the scope: `a/act_quant/a/act_quant/max/local_step`.
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
      then, now: the range at both.
      decay: of its moving average.

    Returns:
      Range; None where nothing is averaged, fewer than ten steps lie between, or rounding hides the answer.
    """
    high = _mean_between(then.averages[1], now.averages[1], decay)
    if high is None:
        return None
    low = now.low
    if now.averages[0] is not None:
        low = _mean_between(then.averages[0], now.averages[0], decay)
        if low is None:
            return None
    # (Rounding can leave an end on the wrong side of 0.)
    return Range(np.minimum(low, 0.0), np.maximum(high, 0.0), now.averages[1].steps - then.averages[1].steps)


def _mean_between(then: Optional[Average], now: Optional[Average], decay: float) -> Optional[float]:
    if then is None or now is None:
        return None
    steps = now.steps - then.steps
    if steps < _STEPS_TO_MOVE:
        return None
    left = decay**steps
    # Each update rounds `biased` to float32, and all errors of the last 1 / (1 - decay) steps are in it. They
    # must stay small beside what is called collapsed.
    rounding = min(steps, 1.0 / (1.0 - decay)) * 2.0**-24
    if rounding > (1.0 - left) * _SHRINKAGE / 4:
        return None
    return (now.biased - then.biased * left) / (1.0 - left)


def messages(verdicts: Iterable[Tuple[str, str, Range]]) -> Dict[str, str]:
    """One line for each kind of trouble, with the first few names and a count.

    Args:
      verdicts: name, verdict and range of each.

    Returns:
      kind -> line.
    """
    kinds: Dict[str, List[str]] = {}
    for name, verdict, found in verdicts:
        kinds.setdefault(verdict, []).append("{} {}".format(name, found.text()))
    lines = {}
    for kind, (usual, advice) in _ADVICE.items():
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
    """Warns of ranges in a checkpoint that quantise to nonsense; for an export, which takes what was trained.

    Args:
      prefix: checkpoint prefix.
      quant_names: the graph's range variables.

    Returns:
      the lines, printed already.
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
        raise _not_finite(bad, ranges, prefix)
    return lines


def _not_finite(names: List[str], ranges: Dict[str, Range], where: Optional[str] = None) -> OdQatError:
    return OdQatError(
        "a quantization range is not finite",
        where=where or names[0],
        found=", ".join("{} {}".format(name, ranges[name].text()) for name in names[:_NAMES_SHOWN])
        + (" and {} more".format(len(names) - _NAMES_SHOWN) if len(names) > _NAMES_SHOWN else ""),
        allowed="finite values",
        fix="take an earlier checkpoint, and train with a lower learning rate or gradient_clipping_by_norm",
    )


class RangeGatesHook(tf.train.SessionRunHook):
    """Looks at the ranges at the start, every hundred steps and at the end; warns once for a range and kind.

    Each look also rewrites `quant_ranges.json` in train_dir and counts each kind for TensorBoard. Put it
    behind the hook that stops training: the last look is then before the last checkpoint. A resumed run takes
    what it compares with, the widths after warm-up, from that file.

    Args:
      train_dir: where the file goes; None for nowhere.
      global_step: tensor, for TensorBoard.
      decay: of the activation ranges' moving average.

    Raises:
      OdQatError: out of the session's run, when a range is not finite.
    """

    def __init__(
        self, train_dir: Optional[str] = None, global_step=None, decay: float = QatConfig().ema_decay
    ) -> None:
        self._train_dir = train_dir
        self._global_step = global_step
        self._decay = decay
        self._names: List[str] = []
        self._sizes: List[int] = []
        self._fetches = None
        self._steps = 0
        self._ended = False
        self._reference: Dict[str, float] = {}
        self._then: Dict[str, Range] = {}  # the look that the next window starts at
        self._windows: Dict[str, Range] = {}  # the newest window
        self._reported = set()
        self._lines: Dict[str, int] = {}
        self.verdicts: Dict[str, str] = {}

    def begin(self) -> None:
        """Packs all ranges into one tensor."""
        variables = [
            variable
            for variable in tf.get_collection(QUANT_VARIABLES)
            if variable.op.name.endswith(("/min", "/max", "/biased", "/local_step"))
        ]
        self._names = [variable.op.name for variable in variables]
        self._sizes = [variable.shape.num_elements() for variable in variables]
        if variables:
            with tf.name_scope(None), tf.name_scope("range_gates"):
                packed = tf.concat([tf.reshape(tf.cast(v, tf.float32), [-1]) for v in variables], 0)
                step = self._global_step if self._global_step is not None else tf.constant(0, tf.int64)
                self._fetches = [packed, tf.identity(step)]

    def after_create_session(self, session, coord) -> None:
        """A resumed run is compared with what it was compared with before, else with its ranges."""
        self._steps = 0
        self._ended = False
        if self._fetches is not None:
            ranges, _ = self._read(session)
            self._check_finite(ranges)
            kept = self._kept_references()
            self._reference = {
                name: kept.get(name, found.width())
                for name, found in ranges.items()
                if _trained_before(found) and (name in kept or judge(found) == OK)
            }
            self._then, self._windows = dict(ranges), {}

    def after_run(self, run_context, run_values) -> None:
        """Looks, when it is time."""
        self._steps += 1
        if run_context.stop_requested:
            self._look(run_context.session)
            self._ended = True
        elif self._steps == _STEPS_TO_MOVE or self._steps % _WARM_UP == 0:
            self._look(run_context.session)

    def end(self, session) -> None:
        """The last look, where nothing said before that it was the last step."""
        if self._steps and not self._ended:
            self._look(session)

    def _read(self, session) -> Tuple[Dict[str, Range], int]:
        packed, step = session.run(self._fetches)
        parts = np.split(packed, np.cumsum(self._sizes)[:-1])
        return group(dict(zip(self._names, parts))), int(step)

    def _look(self, session) -> None:
        if self._fetches is None:
            return
        ranges, step = self._read(session)
        if self._steps >= _WARM_UP:
            for name, found in ranges.items():
                if name not in self._reference and judge(found) == OK:
                    self._reference[name] = found.width()
        trained = self._steps >= _STEPS_TO_MOVE
        self.verdicts = {
            name: judge(found, self._reference.get(name), trained) for name, found in ranges.items()
        }
        self._move_windows(ranges)
        shown = dict(ranges)
        for name, recent in self._windows.items():
            if self.verdicts[name] == OK:
                self.verdicts[name] = judge(recent, self._reference.get(name))
                shown[name] = recent
        self._write(ranges, step)
        self._check_finite(ranges)
        self._warn(shown)

    def _move_windows(self, ranges: Dict[str, Range]) -> None:
        """Each range's window ends here, where it is long enough to be judged."""
        for name, found in ranges.items():
            recent = between(self._then[name], found, self._decay)
            if recent is not None:
                self._windows[name], self._then[name] = recent, found

    def _kept_references(self) -> Dict[str, float]:
        """What the run before compared with, by its file."""
        if self._train_dir is None:
            return {}
        try:
            with open(os.path.join(self._train_dir, RANGES_FILE)) as stream:
                entries = json.load(stream)
            return {name: float(entry[3]) for name, entry in entries.items() if entry[3] is not None}
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return {}  # none, or none of ours

    def _check_finite(self, ranges: Dict[str, Range]) -> None:
        bad = [name for name, found in ranges.items() if judge(found) == NOT_FINITE]
        if bad:
            raise _not_finite(bad, ranges)

    def _warn(self, ranges: Dict[str, Range]) -> None:
        new = [item for item in self.verdicts.items() if item[1] != OK and item not in self._reported]
        self._reported.update(new)
        for kind, line in messages((name, verdict, ranges[name]) for name, verdict in new).items():
            self._lines[kind] = self._lines.get(kind, 0) + 1
            if self._lines[kind] <= _LINES_PER_KIND:
                last = self._lines[kind] == _LINES_PER_KIND
                more = " (more of the kind: only in {})".format(RANGES_FILE) if last else ""
                tqdm.write(line + more, file=sys.stderr)

    def _write(self, ranges: Dict[str, Range], step: int) -> None:
        if self._train_dir is None:
            return
        files.write_json(
            os.path.join(self._train_dir, RANGES_FILE),
            {
                name: [
                    _number(np.min(found.low)),
                    _number(np.max(found.high)),
                    self.verdicts[name],
                    self._reference.get(name),
                ]
                for name, found in ranges.items()
            },
        )
        found = list(self.verdicts.values())
        counts = [
            tf.Summary.Value(tag="range_gates/" + kind.replace(" ", "_"), simple_value=found.count(kind))
            for kind in _ADVICE
        ]
        tf.summary.FileWriterCache.get(self._train_dir).add_summary(tf.Summary(value=counts), step)


def _trained_before(found: Range) -> bool:
    """Whether a range is known to have been trained before."""
    return not (_at_start(found) or found.updates == 0)


def _number(value) -> Optional[float]:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None
