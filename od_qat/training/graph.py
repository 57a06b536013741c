"""Builds the training graph: input queue, clones and losses, rewrite, gradients, summaries."""

import sys
from typing import Callable, List, NamedTuple, Optional, Tuple

from od_qat import checkpoints
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.graph.index import with_sources
from od_qat.training.session import Place, SynchronousChiefHook
from od_qat.training.signals import StopSignals
from od_qat.training.task import Schedule, Tags, TrainingTask


class Built(NamedTuple):
    """The parts of the training graph (the default graph) that the session needs."""

    train_op: object
    global_step: object
    total_loss: object
    rates: List[object]  # learning rates, scalars
    session_hooks: List[object]
    losses: List[object]  # each loss, then their total
    gradients: List[object]  # (gradient, variable), as computed
    report: object  # RewriteReport; None for float training, or if the hook returns none


def deployment(place: Place, num_clones: int, clone_on_cpu: bool):
    """Where clones, variables and inputs are put: slim's model_deploy.DeploymentConfig."""
    from deployment import model_deploy

    return model_deploy.DeploymentConfig(
        num_clones=num_clones,
        clone_on_cpu=clone_on_cpu,
        replica_id=place.task,
        num_replicas=place.worker_replicas,
        num_ps_tasks=place.ps_tasks,
        worker_job_name=place.worker_job_name,
    )


def build(
    task: TrainingTask,
    deploy,
    graph_hook_fn: Optional[Callable],
    place: Place,
    signals: StopSignals,
    seed: Optional[int] = None,
) -> Built:
    """Builds the whole training graph in the default graph.

    Args:
      task: the model, its inputs and its optimizer.
      deploy: of :func:`deployment`.
      graph_hook_fn: as for trainer.train.
      place: the place of this process in the cluster.
      signals: the signals that may end the training early.
      seed: seed of all random ops. The examples then come in a fixed order; each worker draws its own images.

    Raises:
      ConfigError: if batch_size leaves no image for a clone, or replicas_to_aggregate is below 1.
    """
    from deployment import model_deploy

    if seed is not None:
        seed += 0 if place.is_chief else 1 + place.task
        tf.set_random_seed(seed)
    with tf.device(deploy.variables_device()):
        global_step = tf.train.get_or_create_global_step()
    with tf.device(deploy.inputs_device()):
        batch_size = _clone_batch_size(task, deploy.num_clones, place.worker_replicas)
        queue = task.input_queue(batch_size, in_order=seed is not None)
    with task.variables_of_clones(deploy):
        clones = model_deploy.create_clones(deploy, task.add_losses, [queue])
    report = None
    if graph_hook_fn:
        # Variables are placed where the model's are; other ops without a device stay on this worker.
        with tf.device(deploy.optimizer_device()), tf.device(deploy.variables_device()):
            report = graph_hook_fn()
    update_ops = tf.get_collection(tf.GraphKeys.UPDATE_OPS, clones[0].scope)
    with tf.device(deploy.optimizer_device()):
        optimizer, rates, session_hooks = _optimizer(task, place, signals)
        total_loss, gradients = model_deploy.optimize_clones(
            clones, optimizer, regularization_losses=task.regularization_losses()
        )
        train_op = _train_op(optimizer, total_loss, gradients, update_ops, task, global_step)
    if seed is not None:
        seed_the_unseeded(tf.get_default_graph(), seed)
    return Built(
        train_op,
        global_step,
        total_loss,
        rates,
        session_hooks,
        tf.losses.get_losses() + [total_loss],
        list(gradients),
        report,
    )


def _optimizer(task: TrainingTask, place: Place, signals: StopSignals) -> Tuple[object, List, List]:
    """Returns the optimizer, its learning rates, and its hooks, needed if several workers make one step."""
    optimizer, rates = task.optimizer()
    if not aggregates(task.schedule, place.worker_replicas):
        return optimizer, rates, []
    optimizer = tf.train.SyncReplicasOptimizer(
        optimizer,
        replicas_to_aggregate=task.schedule.replicas_to_aggregate,
        total_num_replicas=place.worker_replicas,
    )
    hooks = [optimizer.make_session_run_hook(place.is_chief)]
    if place.is_chief:
        hooks.append(SynchronousChiefHook(optimizer, place.worker_replicas, signals))
    return optimizer, rates, hooks


def _train_op(optimizer, total_loss, gradients: List, update_ops: List, task: TrainingTask, global_step):
    """Returns the op of a step. It fails before it updates anything if a loss or gradient is not finite.

    Each loss is checked, so that the message names the one that is not finite. No such value is ever saved.
    """
    checks = [tf.check_numerics(loss, "loss {}".format(loss.op.name)) for loss in tf.losses.get_losses()] + [
        tf.check_numerics(total_loss, "the total loss"),
        tf.check_numerics(
            tf.global_norm([gradient for gradient, _ in gradients]), "the norm of all gradients"
        ),
    ]
    adjusted = task.adjust_gradients(gradients)
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


def aggregates(schedule: Schedule, worker_replicas: int) -> bool:
    """Whether the gradients of several workers make one step.

    A single worker does not wait: each of its steps takes the whole batch. (Most published configs are for
    the 8 or 32 replicas of a TPU. Upstream's trainer adds up that many small batches one after another, and
    ends in an error, since its queue of tokens is not closed.)
    """
    return schedule.sync_replicas and worker_replicas > 1


def check_replicas(schedule: Schedule, num_clones: int, worker_replicas: int) -> None:
    """Checks sync_replicas, and says on stderr if there are no other workers to wait for.

    Raises:
      ConfigError: if a worker has several clones.
    """
    if not schedule.sync_replicas:
        return
    if num_clones != 1:
        raise ConfigError(
            "sync_replicas needs one clone per worker",
            found="num_clones={}".format(num_clones),
            allowed="1",
        )
    if not aggregates(schedule, worker_replicas):
        print(
            "sync_replicas with one worker: each step takes the whole batch of {} images".format(
                schedule.batch_size
            ),
            file=sys.stderr,
        )


def _clone_batch_size(task: TrainingTask, num_clones: int, worker_replicas: int) -> int:
    schedule = task.schedule
    replicas = schedule.replicas_to_aggregate if aggregates(schedule, worker_replicas) else 1
    if replicas < 1:
        raise ConfigError(
            "a synchronous step needs the gradients of at least one worker",
            where=task.where + ".replicas_to_aggregate",
            found=str(replicas),
            allowed="1 to the number of workers, {}".format(worker_replicas),
        )
    parts = num_clones * replicas
    batch_size = schedule.batch_size // parts
    if batch_size < 1:
        raise ConfigError(
            "batch_size leaves no image for a clone",
            where=task.where + ".batch_size",
            found=str(schedule.batch_size),
            allowed="at least {}".format(parts),
        )
    if batch_size * parts != schedule.batch_size:
        print(
            "warning: a step has {} images instead of {}.batch_size ({}), {} for each of {} {}".format(
                batch_size * parts,
                task.where,
                schedule.batch_size,
                batch_size,
                parts,
                "clones" if replicas == 1 else "workers",
            ),
            file=sys.stderr,
        )
    return batch_size


def add_summaries(tags: Tags, total_loss, rates: List) -> None:
    """Adds summaries of losses, learning rates and quantization ranges."""
    _add_scalar(tags.total_loss, total_loss)
    for loss in tf.losses.get_losses():
        _add_scalar(tags.of_losses + loss.op.name, loss)
    for rate in rates:
        _add_scalar(tags.of_rates + rate.op.name, rate)
    ranges = [
        v for v in tf.get_collection(checkpoints.QUANT_VARIABLES) if v.op.name.endswith(("/min", "/max"))
    ]
    if ranges:
        # (One op for all of them, as a graph has hundreds.)
        with tf.name_scope("summaries/quant_ranges"):
            _add_scalars(["quant_ranges/" + v.op.name for v in ranges], tf.stack([_bound(v) for v in ranges]))


def _bound(variable):
    """A bound of a range; of one for each channel the extreme, which shows if one exploded."""
    if not variable.shape.rank:
        return variable
    return (tf.reduce_max if variable.op.name.endswith("/max") else tf.reduce_min)(variable)


def _add_scalar(tag: str, value) -> None:
    with tf.name_scope("summaries/" + tag):
        _add_scalars([tag], tf.expand_dims(value, 0))


def _add_scalars(tags: List[str], values) -> None:
    """Adds a summary. (tf.summary.scalar would number a tag that is the name of an op.)"""
    summary = tf.raw_ops.ScalarSummary(tags=tags, values=values)
    tf.add_to_collection(tf.GraphKeys.SUMMARIES, summary)
