"""Drop-in for `object_detection/legacy/trainer.py`, with its signature and quantization-aware training.

It differs from upstream's (tf-object-detection-api 0.1) in five ways. It restores strictly, rewrites before
the gradients are built, and resumes by itself. It stops at the first loss that is not finite without saving
it. And it uses a MonitoredSession instead of the Supervisor. training/graph.py builds the graph,
training/start.py restores it, and training/loop.py runs it.
"""

import os
import sys
from typing import Callable, Optional

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.training import loop, start
from od_qat.training.graph import add_summaries, build, check_replicas
from od_qat.training.loop import TrainResult
from od_qat.training.memory import keep_freed_memory
from od_qat.training.session import Place, Saving, make_scaffold, tell_servers
from od_qat.training.signals import StopSignals, name_of

REPORT_FILE = "rewrite_report.json"

# How long a chief's step may take after a signal, as it may wait for a parameter server that is gone.
# Schedulers wait for 30 seconds or more before they kill.
_PATIENCE_IN_CLUSTER_SECS = 25


def train(
    create_tensor_dict_fn: Callable,
    create_model_fn: Callable,
    train_config,
    master: str,
    task: int,
    num_clones: int,
    worker_replicas: int,
    clone_on_cpu: bool,
    ps_tasks: int,
    worker_job_name: str,
    is_chief: bool,
    train_dir: str,
    graph_hook_fn: Optional[Callable] = None,
    *,
    save_interval_secs: int = 600,
    save_interval_steps: Optional[int] = None,
    max_to_keep: int = 5,
    summary_interval_secs: int = 60,
    events_dir: Optional[str] = None,
    seed: Optional[int] = None,
    on_start: Optional[Callable] = None,
) -> TrainResult:
    """Trains a detection model until `train_config.num_steps`, resuming from `train_dir`.

    SIGTERM and Ctrl-C end it early, after it has saved. Off the main thread, it does not handle signals.

    Args:
      create_tensor_dict_fn: makes the tensors of one example.
      create_model_fn: makes a DetectionModel.
      train_config: train_pb2.TrainConfig.
      master: target of the TensorFlow server; '' if there is no cluster.
      task: index of this worker.
      num_clones: number of clones on this machine; batch_size is split among them.
      worker_replicas: number of workers, the chief included.
      clone_on_cpu: whether the clones are put on CPUs.
      ps_tasks: number of parameter servers.
      worker_job_name: job name of this worker.
      is_chief: whether this process initialises and saves.
      train_dir: folder for checkpoints.
      graph_hook_fn: rewrites the default graph after the losses are built and before the gradients are.
      save_interval_secs: seconds between checkpoints; a killed run loses at most this time.
      save_interval_steps: steps between checkpoints, in place of save_interval_secs.
      max_to_keep: number of checkpoints that are kept.
      summary_interval_secs: seconds between TensorBoard summaries.
      events_dir: folder for TensorBoard events, by default train_dir.
      seed: graph seed; the order of the examples then follows from it, and one thread augments them.
      on_start: called without arguments after all checks, before the first step.

    Returns:
      TrainResult.

    Raises:
      KeyboardInterrupt, SystemExit(143): if a signal ended the training, after everything is saved, unless
        the caller has a handler of its own.
      ConfigError, CheckpointError: if the config or a checkpoint is not valid; before the first step.
      OdQatError: if a loss is not finite (the message names its tensor and the layer that it comes from), if
        a quantization range is not finite, if the records end before num_steps or an image cannot be read,
        or if train_dir cannot be written.
    """
    from od_qat.od_api import config_checks, graph_rewriter, training

    config_checks.check_training(train_config)
    check_replicas(train_config, num_clones, worker_replicas)
    # od_qat.commands has checked this and names the config's file; other callers have not.
    graph_rewriter.require_delay_below(
        train_config.num_steps,
        getattr(graph_hook_fn, "quant_delay", 0),
        where="graph_rewriter.quantization.delay",
    )
    if train_config.fine_tune_checkpoint:
        training.fine_tune_type(train_config)
    keep_freed_memory()
    deploy = training.model_deploy.DeploymentConfig(
        num_clones=num_clones,
        clone_on_cpu=clone_on_cpu,
        replica_id=task,
        num_replicas=worker_replicas,
        num_ps_tasks=ps_tasks,
        worker_job_name=worker_job_name,
    )
    place = Place(master, task, worker_replicas, ps_tasks, worker_job_name, is_chief)
    signals = StopSignals(_PATIENCE_IN_CLUSTER_SECS if ps_tasks else None)
    with tf.Graph().as_default():
        built = build(
            deploy, create_tensor_dict_fn, create_model_fn, train_config, graph_hook_fn, place, signals, seed
        )
        saver = checkpoints.saver(
            max_to_keep=max_to_keep,
            keep_checkpoint_every_n_hours=train_config.keep_checkpoint_every_n_hours,
        )
        # The chief restores for all workers; their train_dir may be on another machine.
        newest = checkpoints.newest(train_dir)
        init_fn = start.initializer(train_config, built.detection_model, newest) if is_chief else None
        if newest and train_config.num_steps and (checkpoints.step_of(newest) or 0) >= train_config.num_steps:
            return _ended_already(newest, place)
        if is_chief:
            if on_start:
                on_start()
            _say_what_was_rewritten(built.report, train_dir)
        add_summaries(built.total_loss, built.rates)
        result = loop.run(
            built,
            train_config,
            place,
            make_scaffold(saver, init_fn),
            Saving(
                train_dir,
                events_dir or train_dir,
                None if save_interval_steps else save_interval_secs,
                save_interval_steps,
                summary_interval_secs,
            ),
            signals,
        )
    if signals.received is not None:
        _say_what_is_saved(signals, result)
        signals.deliver()
    elif train_config.num_steps and is_chief and result.global_step < train_config.num_steps:
        raise loop.input_ended(result.global_step, train_config.num_steps)
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
