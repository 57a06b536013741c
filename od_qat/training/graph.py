"""Builds the training graph: input queue, clones and losses, rewrite, gradients, summaries."""

import sys
from typing import List, NamedTuple, Optional, Tuple

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.graph.index import with_sources
from od_qat.training.session import Place, SynchronousChiefHook
from od_qat.training.signals import StopSignals


class Built(NamedTuple):
    """The parts of the training graph (the default graph) that the session needs."""

    detection_model: object
    train_op: object
    global_step: object
    total_loss: object
    rates: List[object]  # learning rates, scalars
    session_hooks: List[object]
    losses: List[object]  # each loss, then their total
    gradients: List[object]  # (gradient, variable), as computed
    report: object  # RewriteReport; None for float training, or if the hook returns none


def build(
    deploy,
    create_tensor_dict_fn,
    create_model_fn,
    train_config,
    graph_hook_fn,
    place: Place,
    signals: StopSignals,
    seed: Optional[int] = None,
) -> Built:
    """Builds the whole training graph in the default graph.

    Args:
      deploy: model_deploy.DeploymentConfig.
      create_tensor_dict_fn, create_model_fn, train_config, graph_hook_fn: as for trainer.train.
      place: the place of this process in the cluster.
      signals: the signals that may end the training early.
      seed: seed of all random ops. The examples then come in a fixed order; each worker draws its own images.

    Raises:
      ConfigError: if batch_size leaves no image for a clone, or replicas_to_aggregate is below 1.
    """
    from od_qat.od_api import keras_models, training

    if seed is not None:
        seed += 0 if place.is_chief else 1 + place.task
        tf.set_random_seed(seed)
    detection_models: List[object] = []

    def create_and_keep_model():
        # (A second call of a Keras model shares the variables of the first; a second model would not.)
        if not detection_models or keras_models.of_graph() is None:
            detection_models.append(create_model_fn())
        return detection_models[-1]

    with tf.device(deploy.variables_device()):
        global_step = tf.train.get_or_create_global_step()
    with tf.device(deploy.inputs_device()):
        queue = training.input_queue(
            _clone_batch_size(train_config, deploy.num_clones, place.worker_replicas),
            create_tensor_dict_fn,
            train_config,
            in_order=seed is not None,
        )
    with keras_models.variables_of_one_model(deploy):
        clones = training.model_deploy.create_clones(
            deploy, training.losses_fn(create_and_keep_model, train_config), [queue]
        )
    report = None
    if graph_hook_fn:
        # Variables are placed where the model's are; other ops without a device stay on this worker.
        with tf.device(deploy.optimizer_device()), tf.device(deploy.variables_device()):
            report = graph_hook_fn()
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS, clones[0].scope)
    with tf.device(deploy.optimizer_device()):
        optimizer, rates, session_hooks = _optimizer(train_config, place, signals)
        total_loss, gradients = training.model_deploy.optimize_clones(
            clones,
            optimizer,
            regularization_losses=None if train_config.add_regularization_loss else [],
        )
        train_op = _train_op(optimizer, total_loss, gradients, update_ops, train_config, global_step)
    if seed is not None:
        seed_the_unseeded(tf.get_default_graph(), seed)
    return Built(
        detection_models[0],
        train_op,
        global_step,
        total_loss,
        rates,
        session_hooks,
        tf.losses.get_losses() + [total_loss],
        list(gradients),
        report,
    )


def _optimizer(train_config, place: Place, signals: StopSignals) -> Tuple[object, List, List]:
    """Returns the optimizer, its learning rates, and its hooks, needed if several workers make one step."""
    from od_qat.od_api import training

    optimizer, rates = training.optimizer(train_config)
    if not aggregates(train_config, place.worker_replicas):
        return optimizer, rates, []
    optimizer = tf.train.SyncReplicasOptimizer(
        optimizer,
        replicas_to_aggregate=train_config.replicas_to_aggregate,
        total_num_replicas=place.worker_replicas,
    )
    hooks = [optimizer.make_session_run_hook(place.is_chief)]
    if place.is_chief:
        hooks.append(SynchronousChiefHook(optimizer, place.worker_replicas, signals))
    return optimizer, rates, hooks


def _train_op(optimizer, total_loss, gradients: List, update_ops: List, train_config, global_step):
    """Returns the op of a step. It fails before it updates anything if a loss or gradient is not finite.

    Each loss is checked, so that the message names the one that is not finite. No such value is ever saved.
    """
    from od_qat.od_api import training

    checks = [tf.check_numerics(loss, "loss {}".format(loss.op.name)) for loss in tf.losses.get_losses()] + [
        tf.check_numerics(total_loss, "the total loss"),
        tf.check_numerics(
            tf.global_norm([gradient for gradient, _ in gradients]), "the norm of all gradients"
        ),
    ]
    adjusted = training.adjust_gradients(gradients, train_config)
    _update_only_after(checks, update_ops)
    with tf.control_dependencies(checks):
        apply_gradients = optimizer.apply_gradients(adjusted, global_step=global_step)
    return tf.group(*(update_ops + [apply_gradients]), name="train_op")


def _update_only_after(checks: List, update_ops: List) -> None:
    """Lets the averages of batch norms wait for the checks, so that they take no value that is not finite.

    (A worker's failed step would otherwise change the averages that all workers share.) An average that a
    loss depends on, in a model with in-place updates, cannot wait.
    """
    before = with_sources(check.op for check in checks)
    for update in update_ops:
        operation = getattr(update, "op", update)
        if operation.name not in before:
            operation._add_control_inputs([check.op for check in checks])


def seed_the_unseeded(graph, seed: int) -> None:
    """Seeds the random ops that the graph's seed does not reach.

    Some Python functions of TensorFlow do not use the graph's seed, those for random crops among them. They
    leave both seeds of their ops at 0, which means another seed in each run.
    """
    number = 0
    for operation in graph.get_operations():
        attributes = operation.node_def.attr
        if "seed" in attributes and "seed2" in attributes:
            number += 1
            if attributes["seed"].i == attributes["seed2"].i == 0:
                operation._set_attr("seed", tf.AttrValue(i=seed))
                operation._set_attr("seed2", tf.AttrValue(i=number))


def aggregates(train_config, worker_replicas: int) -> bool:
    """Whether the gradients of several workers make one step.

    A single worker does not wait: each of its steps takes the whole batch. (Most published configs are for
    the 8 or 32 replicas of a TPU. Upstream's trainer adds up that many small batches one after another, and
    ends in an error, since its queue of tokens is not closed.)
    """
    return train_config.sync_replicas and worker_replicas > 1


def check_replicas(train_config, num_clones: int, worker_replicas: int) -> None:
    """Checks sync_replicas, and says on stderr if there are no other workers to wait for.

    Raises:
      ConfigError: if a worker has several clones.
    """
    if not train_config.sync_replicas:
        return
    if num_clones != 1:
        raise ConfigError(
            "sync_replicas needs one clone per worker",
            found="num_clones={}".format(num_clones),
            allowed="1",
        )
    if not aggregates(train_config, worker_replicas):
        print(
            "sync_replicas with one worker: each step takes the whole batch of {} images".format(
                train_config.batch_size
            ),
            file=sys.stderr,
        )


def _clone_batch_size(train_config, num_clones: int, worker_replicas: int) -> int:
    replicas = train_config.replicas_to_aggregate if aggregates(train_config, worker_replicas) else 1
    if replicas < 1:
        raise ConfigError(
            "a synchronous step needs the gradients of at least one worker",
            where="train_config.replicas_to_aggregate",
            found=str(replicas),
            allowed="1 to the number of workers, {}".format(worker_replicas),
        )
    batch_size = train_config.batch_size // (num_clones * replicas)
    if batch_size < 1:
        raise ConfigError(
            "batch_size leaves no image for a clone",
            where="train_config.batch_size",
            found=str(train_config.batch_size),
            allowed="at least {}".format(num_clones * replicas),
        )
    return batch_size


def add_summaries(total_loss, rates: List) -> None:
    """Adds summaries of losses, learning rates and quantization ranges, with the tags of the model's half."""
    from od_qat.od_api import event_tags

    tags = event_tags.of_graph()
    _add_scalar(tags.total_loss, total_loss)
    for loss in tf.losses.get_losses():
        _add_scalar(tags.of_losses + loss.op.name, loss)
    for rate in rates:
        _add_scalar(tags.of_rates + rate.op.name, rate)
    for variable in tf.get_collection(checkpoints.QUANT_VARIABLES):
        if variable.op.name.endswith(("/min", "/max")):
            # Per-channel ranges are vectors; their extreme shows if one exploded.
            bound = tf.reduce_max if variable.op.name.endswith("/max") else tf.reduce_min
            tf.summary.scalar("quant_ranges/" + variable.op.name, bound(variable))


def _add_scalar(tag: str, value) -> None:
    """Adds a summary. (tf.summary.scalar would number a tag that is the name of an op.)"""
    with tf.name_scope("summaries/" + tag):
        summary = tf.raw_ops.ScalarSummary(tags=tag, values=value)
    tf.add_to_collection(tf.GraphKeys.SUMMARIES, summary)
