"""The optimizer for `use_moving_average: true`, in place of tf.contrib.opt.MovingAverageOptimizer."""

from typing import Optional

from od_qat.compat import tf


class MovingAverageOptimizer(tf.train.Optimizer):
    """Wraps an optimizer and keeps an exponential moving average of every variable that it trains.

    The averages are variables named `<variable>/ExponentialMovingAverage`, as contrib's are, so that
    checkpoints and `eval_config.use_moving_averages` work unchanged.

    Args:
      optimizer: the optimizer that computes and applies gradients.
      average_decay: decay of the average.
      num_updates: optional step counter, which makes the decay smaller at first.
    """

    def __init__(self, optimizer, average_decay: float = 0.9999, num_updates=None) -> None:
        super(MovingAverageOptimizer, self).__init__(use_locking=False, name="MovingAverage")
        self._optimizer = optimizer
        self._averages = tf.train.ExponentialMovingAverage(average_decay, num_updates=num_updates)
        self._swap = {}

    def compute_gradients(self, *args, **kwargs):
        """Calls the wrapped optimizer."""
        return self._optimizer.compute_gradients(*args, **kwargs)

    def apply_gradients(self, grads_and_vars, global_step=None, name: Optional[str] = None):
        """Calls the wrapped optimizer, then updates the averages."""
        grads_and_vars = list(grads_and_vars)
        trained = [variable for gradient, variable in grads_and_vars if gradient is not None]
        update = self._optimizer.apply_gradients(grads_and_vars, global_step=global_step)
        with tf.control_dependencies([update]):
            average = self._averages.apply(trained)
        self._swap = {self._averages.average_name(v): v for v in trained}
        return tf.group(update, average, name=name or "train")

    def get_slot(self, *args, **kwargs):
        """Calls the wrapped optimizer."""
        return self._optimizer.get_slot(*args, **kwargs)

    def get_slot_names(self, *args, **kwargs):
        """Calls the wrapped optimizer."""
        return self._optimizer.get_slot_names(*args, **kwargs)

    def variables(self):
        """Calls the wrapped optimizer."""
        return self._optimizer.variables()
