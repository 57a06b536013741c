"""Trains a task to its last step: builds the graph, starts or resumes, runs it, and says what is saved."""

import os
import sys
from typing import Callable, NamedTuple, Optional

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.training import loop, start
from od_qat.training.graph import add_summaries, build, check_replicas, deployment
from od_qat.training.loop import TrainResult
from od_qat.training.memory import keep_freed_memory
from od_qat.training.session import Place, Saving, make_scaffold, tell_servers
from od_qat.training.signals import StopSignals, name_of
from od_qat.training.task import TrainingTask

REPORT_FILE = "rewrite_report.json"

# How long a chief's step may take after a signal, as it may wait for a parameter server that is gone.
# Schedulers wait for 30 seconds or more before they kill.
_PATIENCE_IN_CLUSTER_SECS = 25


class Clones(NamedTuple):
    """How many clones of the model this process has, each of which takes its part of a batch."""

    number: int = 1
    on_cpu: bool = False


def train(
    task: TrainingTask,
    place: Place,
    clones: Clones,
    saving: Saving,
    graph_hook_fn: Optional[Callable] = None,
    max_to_keep: int = 5,
    seed: Optional[int] = None,
    on_start: Optional[Callable] = None,
) -> TrainResult:
    """Trains until the last step of the task's schedule, resuming from the folder of the checkpoints.

    SIGTERM and Ctrl-C end it early, after it has saved. Off the main thread, it does not handle signals.

    Args:
      task: the model, its inputs and its optimizer.
      place: the place of this process in the cluster.
      clones: the clones of this process.
      saving: where and how often it saves.
      graph_hook_fn: rewrites the default graph after the losses are built and before the gradients are.
      max_to_keep: number of checkpoints that are kept.
      seed: graph seed; the order of the examples then follows from it, and one thread augments them.
      on_start: called without arguments after all checks, before the first step.

    Raises:
      KeyboardInterrupt, SystemExit(143): if a signal ended the training, after everything is saved, unless
        the caller has a handler of its own.
      ConfigError, CheckpointError: if the config or a checkpoint is not valid; before the first step.
      OdQatError: see trainer.train.
    """
    checkpoints.require_no_pattern(saving.folder)
    schedule = task.schedule
    check_replicas(schedule, clones.number, place.worker_replicas)
    keep_freed_memory()
    deploy = deployment(place, clones.number, clones.on_cpu)
    signals = StopSignals(_PATIENCE_IN_CLUSTER_SECS if place.ps_tasks else None)
    with tf.Graph().as_default():
        built = build(task, deploy, graph_hook_fn, place, signals, seed)
        saver = checkpoints.saver(
            max_to_keep=max_to_keep, keep_checkpoint_every_n_hours=schedule.keep_checkpoint_every_n_hours
        )
        # The chief restores for all workers; their folder may be on another machine.
        newest = checkpoints.newest(saving.folder)
        init_fn = start.initializer(task, newest) if place.is_chief else None
        if newest and schedule.num_steps and (checkpoints.step_of(newest) or 0) >= schedule.num_steps:
            return _ended_already(newest, place)
        if place.is_chief:
            if on_start:
                on_start()
            _say_what_was_rewritten(built.report, saving.folder)
        add_summaries(task.tags(), built.total_loss, built.rates)
        result = loop.run(built, task, place, make_scaffold(place, saver, init_fn), saving, signals)
    if signals.received is not None:
        _say_what_is_saved(signals, result)
        signals.deliver()
    elif schedule.num_steps and place.is_chief and result.global_step < schedule.num_steps:
        raise loop.input_ended(result.global_step, task)
    return result


def _ended_already(newest: str, place: Place) -> TrainResult:
    step = checkpoints.step_of(newest)
    print("training has ended already, at step {}".format(step), file=sys.stderr)
    if place.ps_tasks:
        tell_servers(place)
    return TrainResult(step, float("nan"), newest)


def _say_what_was_rewritten(report, train_dir: str) -> None:
    """Prints one line, and writes the whole report. (A caller's own hook may return none.)"""
    if not hasattr(report, "as_dict"):
        return
    path = os.path.join(train_dir, REPORT_FILE)
    files.write_json(path, report.as_dict())
    print("{}; each layer in {}".format(report, path), file=sys.stderr)


def _say_what_is_saved(signals: StopSignals, result: TrainResult) -> None:
    print(
        "{}: step {} is saved as {}; the same command goes on from there".format(
            name_of(signals.received), result.global_step, result.checkpoint
        ),
        file=sys.stderr,
    )
