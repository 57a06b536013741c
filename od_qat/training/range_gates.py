"""Judges the quantization ranges while training (see ranges.py), and warns once of each trouble."""

import json
import os
import sys
from typing import Any, Dict, Optional, Tuple

import numpy as np
from tqdm import tqdm

from od_qat import files
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.ranges import (
    ADVICE,
    NOT_FINITE,
    OK,
    STEPS_TO_MOVE,
    Range,
    at_start,
    between,
    group,
    judge,
    messages,
    not_finite,
)

RANGES_FILE = "quant_ranges.json"
# After this many steps a fine-tuned range has its usual width, which later ones are compared with. It is also
# the time between looks: one small read in a hundred steps costs nothing that can be measured.
_WARM_UP = 100
_LINES_PER_KIND = 5


class RangeGatesHook(tf.train.SessionRunHook):
    """Looks at the ranges at the start, every hundred steps and at the end. Warns once for each range and
    kind.

    Each look also writes `quant_ranges.json` in train_dir, and counts each kind for TensorBoard. Put this
    hook after the one that stops training, so that the last look comes before the last checkpoint. A resumed
    run reads the widths after warm-up, which it compares with, from that file.

    Args:
      train_dir: folder of the file; None to write no file.
      global_step: tensor, for TensorBoard.
      decay: of the activation ranges' moving average.
      events: folder of the TensorBoard events, by default train_dir.

    Raises:
      OdQatError: from the session's run, if a range is not finite.
    """

    def __init__(
        self,
        train_dir: Optional[str] = None,
        global_step=None,
        decay: float = QatConfig().ema_decay,
        events: Optional[str] = None,
    ) -> None:
        self._train_dir = train_dir
        self._events = events or train_dir
        self._global_step = global_step
        self._decay = decay
        self._variables: Dict[str, Any] = {}
        self._steps = 0
        self._ended = False
        self._reference: Dict[str, float] = {}
        self._then: Dict[str, Range] = {}  # the ranges at which the next window starts
        self._windows: Dict[str, Range] = {}  # the newest window
        self._reported = set()
        self._lines: Dict[str, int] = {}
        self.verdicts: Dict[str, str] = {}

    def begin(self) -> None:
        """Finds the variables of the ranges."""
        self._variables = {
            variable.op.name: variable
            for variable in tf.get_collection(QUANT_VARIABLES)
            if variable.op.name.endswith(("/min", "/max", "/biased", "/local_step"))
        }

    def after_create_session(self, session, coord) -> None:
        """Takes the references of the run before from its file; without one, the ranges as they are."""
        self._steps = 0
        self._ended = False
        if self._variables:
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
        """Looks at the ranges if it is time."""
        self._steps += 1
        if run_context.stop_requested:
            self._look(run_context.session)
            self._ended = True
        elif self._steps == STEPS_TO_MOVE or self._steps % _WARM_UP == 0:
            self._look(run_context.session)

    def end(self, session) -> None:
        """Takes the last look, unless it was taken at the last step."""
        if self._steps and not self._ended:
            self._look(session)

    def _read(self, session) -> Tuple[Dict[str, Range], int]:
        fetches = {"ranges": self._variables}
        if self._global_step is not None:
            fetches["step"] = self._global_step
        found = session.run(fetches)
        ranges = {name: value.astype(np.float32).ravel() for name, value in found["ranges"].items()}
        return group(ranges), int(found.get("step", 0))

    def _look(self, session) -> None:
        if not self._variables:
            return
        ranges, step = self._read(session)
        if self._steps >= _WARM_UP:
            for name, found in ranges.items():
                if name not in self._reference and judge(found) == OK:
                    self._reference[name] = found.width()
        trained = self._steps >= STEPS_TO_MOVE
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
        """Ends the window of each range that is long enough to be judged."""
        for name, found in ranges.items():
            recent = between(self._then[name], found, self._decay)
            if recent is not None:
                self._windows[name], self._then[name] = recent, found

    def _kept_references(self) -> Dict[str, float]:
        """The references of the run before, from its file."""
        if self._train_dir is None:
            return {}
        try:
            with open(os.path.join(self._train_dir, RANGES_FILE)) as stream:
                entries = json.load(stream)
            return {name: float(entry[3]) for name, entry in entries.items() if entry[3] is not None}
        except (OSError, ValueError, TypeError, LookupError, AttributeError):
            return {}  # there is no file, or it is not ours

    def _check_finite(self, ranges: Dict[str, Range]) -> None:
        bad = [name for name, found in ranges.items() if judge(found) == NOT_FINITE]
        if bad:
            raise not_finite(bad, ranges)

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
            for kind in ADVICE
        ]
        tf.summary.FileWriterCache.get(self._events).add_summary(tf.Summary(value=counts), step)


def _trained_before(found: Range) -> bool:
    """Whether the range was certainly trained before this run."""
    return not (at_start(found) or found.updates == 0)


def _number(value) -> Optional[float]:
    """The value for JSON, which has no NaN."""
    return float(value) if np.isfinite(value) else None
