"""Session hooks that show progress, end the training at a signal, and name variables that are not finite."""

import sys
import time
from typing import Dict, List, Optional

import numpy as np
from tqdm import tqdm

from od_qat.compat import tf
from od_qat.training.signals import StopSignals


class ProgressHook(tf.train.SessionRunHook):
    """Shows a progress bar with loss, learning rate and steps per second. Without a terminal it logs ten
    lines.

    Args:
      total_steps: the last step; None if the training has no end.
      global_step, loss: tensors that are read at each step.
      learning_rate: tensor or None.
    """

    def __init__(self, total_steps: Optional[int], global_step, loss, learning_rate=None) -> None:
        self._total = total_steps
        self._fetches = {"step": global_step, "loss": loss}
        if learning_rate is not None:
            self._fetches["rate"] = learning_rate
        self._bar = None
        self._interactive = sys.stderr.isatty()
        self._recent: List[float] = []
        self._next_line = 0
        self._started_at = 0.0
        self._started_step = 0
        self.last_loss = float("nan")

    def after_create_session(self, session, coord) -> None:
        """Starts the bar at the restored step."""
        self._started_step = int(session.run(self._fetches["step"]))
        self._started_at = time.time()
        self._next_line = self._started_step + self._line_interval()
        if self._interactive:
            self._bar = tqdm(total=self._total, initial=self._started_step, unit="step", desc="train")

    def _line_interval(self) -> int:
        return max(1, ((self._total or 10000) - self._started_step) // 10)

    def before_run(self, run_context):
        """Asks for step, loss and learning rate."""
        return tf.train.SessionRunArgs(self._fetches)

    def after_run(self, run_context, run_values) -> None:
        """Shows step, loss and learning rate."""
        values: Dict[str, float] = run_values.results
        # The step may be read before or after its update, so the steps are counted here.
        self._recent = (self._recent + [float(values["loss"])])[-50:]
        self.last_loss = float(np.mean(self._recent))
        step = int(values["step"])
        if self._bar is not None:
            self._bar.set_postfix(
                loss="%.3f" % self.last_loss, lr="%.4f" % values.get("rate", 0), refresh=False
            )
            self._bar.update(max(0, step - self._bar.n))
        elif step >= self._next_line:
            self._next_line = step + self._line_interval()
            speed = (step - self._started_step) / max(time.time() - self._started_at, 1e-6)
            print(
                "step {}{}  loss {:.3f}  {:.2f} steps/s".format(
                    step, "/{}".format(self._total) if self._total else "", self.last_loss, speed
                ),
                file=sys.stderr,
                flush=True,
            )

    def end(self, session) -> None:
        """Closes the bar."""
        if self._bar is not None:
            self._bar.close()


class StopOnSignalHook(tf.train.SessionRunHook):
    """Ends the session after the step during which a signal came. The hooks that save then do so.

    Args:
      signals: StopSignals.
    """

    def __init__(self, signals: StopSignals) -> None:
        self._signals = signals

    def after_run(self, run_context, run_values) -> None:
        """Asks the session to stop if a signal came."""
        if self._signals.received is not None:
            run_context.request_stop()
