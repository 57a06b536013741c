"""A classifier as what is trained; see training/task.py."""

from typing import Callable, List, Optional, Tuple

from od_qat import checkpoints
from od_qat.classifiers import inputs
from od_qat.classifiers.inputs import Source
from od_qat.classifiers.networks import Network
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.training.task import FineTuning, Schedule, TrainingTask

# The weight of the loss of an Inception's second head, as in slim's train_image_classifier.py.
_AUXILIARY = 0.4
_EPSILON_OF_RMSPROP = 1.0  # slim's flag --opt_epsilon


class ClassifierTask(TrainingTask):
    """A network of slim's, its images, and the `training` block of its config.

    Args:
      network: the network.
      source: the images.
      config: the message Training.
    """

    where = "training"
    where_input = "train_input"
    images = "JPEG or PNG images"
    fix_images = "replace or remove it"

    def __init__(self, network: Network, source: Source, config) -> None:
        super(ClassifierTask, self).__init__(
            Schedule(
                config.batch_size,
                config.num_steps,
                sync_replicas=config.sync_replicas,
                replicas_to_aggregate=config.replicas_to_aggregate,
                keep_checkpoint_every_n_hours=config.keep_checkpoint_every_n_hours,
            )
        )
        self._network = network
        self._source = source
        self._config = config

    def input_queue(self, batch_size: int, in_order: bool) -> Callable:
        if self._source.count < batch_size:
            clones = max(1, self._config.batch_size // batch_size)
            raise ConfigError(
                "a batch is larger than the set of images",
                where="training.batch_size",
                found=str(self._config.batch_size),
                allowed="at most {}".format(self._source.count * clones),
            )
        return inputs.batches(self._source, self._network, batch_size, True, in_order)

    def add_losses(self, queue: Callable) -> None:
        images, labels = queue()
        logits, end_points = self._network.build(images, True, self._config.weight_decay)
        wanted = tf.one_hot(labels, self._network.num_classes)
        smoothing = self._config.label_smoothing
        if "AuxLogits" in end_points:
            tf.losses.softmax_cross_entropy(
                wanted, end_points["AuxLogits"], _AUXILIARY, smoothing, scope="aux_loss"
            )
        tf.losses.softmax_cross_entropy(wanted, logits, label_smoothing=smoothing)

    def optimizer(self) -> Tuple[object, List]:
        rate, config = self._learning_rate(), self._config
        made = {
            "momentum": lambda: tf.train.MomentumOptimizer(rate, config.momentum),
            "sgd": lambda: tf.train.GradientDescentOptimizer(rate),
            "rmsprop": lambda: tf.train.RMSPropOptimizer(
                rate, momentum=config.momentum, epsilon=_EPSILON_OF_RMSPROP
            ),
            "adam": lambda: tf.train.AdamOptimizer(rate),
        }[config.optimizer]()
        return made, [rate]

    def _learning_rate(self):
        config, step = self._config, tf.train.get_or_create_global_step()
        kind, rate, end = config.learning_rate_decay_type, config.learning_rate, config.end_learning_rate
        if kind == "fixed":
            return tf.constant(rate, name="fixed_learning_rate")
        if kind == "exponential":
            epoch = max(1, self._source.count // config.batch_size)
            decay_steps = max(1, int(epoch * config.num_epochs_per_decay))
            factor = config.learning_rate_decay_factor
            return tf.train.exponential_decay(rate, step, decay_steps, factor, staircase=True)
        if not config.num_steps:
            raise ConfigError(
                "this decay of the learning rate ends with the training",
                where="training.num_steps",
                found="0, no end",
                allowed="a number of steps for learning_rate_decay_type {}".format(kind),
            )
        if kind == "cosine":
            return tf.train.cosine_decay(rate, step, config.num_steps, end / rate)
        return tf.train.polynomial_decay(rate, step, config.num_steps, end)

    def adjust_gradients(self, grads_and_vars: List) -> List:
        scopes = tuple(self._config.trainable_scopes)
        if scopes:
            every = grads_and_vars
            grads_and_vars = [(grad, v) for grad, v in every if v.op.name.startswith(scopes)]
            idle = [scope for scope in scopes if not any(v.op.name.startswith(scope) for _, v in every)]
            if idle:
                raise ConfigError(
                    "no variable that is trained is in this scope",
                    where="training.trainable_scopes",
                    found=", ".join(idle),
                    allowed="scopes such as {}".format(every[0][1].op.name.rpartition("/")[0]),
                )
        limit = self._config.gradient_clipping_by_norm
        if limit:
            gradients, variables = zip(*grads_and_vars)
            grads_and_vars = list(zip(tf.clip_by_global_norm(gradients, limit)[0], variables))
        return grads_and_vars

    def fine_tuning(self) -> Optional[FineTuning]:
        """All that the checkpoint has of the model, but for checkpoint_exclude_scopes.

        Raises:
          CheckpointError: if the checkpoint lacks a variable outside of these scopes, or has another shape.
        """
        prefix = self._config.fine_tune_checkpoint
        if not prefix:
            return None
        prefix = checkpoints.named_by(prefix)
        excluded = tuple(self._config.checkpoint_exclude_scopes)
        quant_names = checkpoints.quant_variable_names()
        of_model = {v.op.name: v for v in tf.trainable_variables() + tf.model_variables()}
        of_model.update((v.op.name, v) for v in tf.global_variables() if v.op.name in quant_names)
        wanted = {name: v for name, v in of_model.items() if not excluded or not name.startswith(excluded)}
        idle = [scope for scope in excluded if not any(name.startswith(scope) for name in of_model)]
        if idle:
            raise ConfigError(
                "no variable is in this scope",
                where="training.checkpoint_exclude_scopes",
                found=", ".join(idle),
                allowed="the start of a variable's name, such as {}".format(
                    max(of_model).rpartition("/")[0] or max(of_model)
                ),
            )
        plan = checkpoints.plan_fine_tune(
            wanted,
            prefix,
            quant_names,
            backbone="",
            fix="for another number of classes, list the head in training.checkpoint_exclude_scopes",
        )
        fresh = sorted(name for name in of_model if name not in wanted)
        said = ", {} model variables fresh: {}".format(len(fresh), checkpoints.by_scope(fresh))
        return FineTuning(prefix, plan, said if fresh else "")

    def unreadable(self) -> Optional[str]:
        return inputs.first_unreadable(self._source)
