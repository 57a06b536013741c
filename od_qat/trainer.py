"""Drop-in for `object_detection/legacy/trainer.py`, with its signature and quantization-aware training.

It differs from upstream's (tf-object-detection-api 0.1) in five ways. It restores strictly, rewrites before
the gradients are built, and resumes by itself. It stops at the first loss that is not finite without saving
it. And it uses a MonitoredSession instead of the Supervisor. training/train.py does the work.
"""

from typing import Callable, Optional

from od_qat.messages import graph_rewriter
from od_qat.training import train as training
from od_qat.training.loop import TrainResult
from od_qat.training.session import Place, Saving
from od_qat.training.train import REPORT_FILE  # noqa: F401


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
    from od_qat.od_api.detector_task import DetectorTask

    detector = DetectorTask(create_tensor_dict_fn, create_model_fn, train_config)
    # od_qat.commands has checked this and names the config's file; other callers have not.
    graph_rewriter.require_delay_below(
        train_config.num_steps,
        getattr(graph_hook_fn, "quant_delay", 0),
        where="graph_rewriter.quantization.delay",
    )
    return training.train(
        detector,
        Place(master, task, worker_replicas, ps_tasks, worker_job_name, is_chief),
        training.Clones(num_clones, clone_on_cpu),
        Saving(
            train_dir,
            events_dir or train_dir,
            None if save_interval_steps else save_interval_secs,
            save_interval_steps,
            summary_interval_secs,
        ),
        graph_hook_fn,
        max_to_keep,
        seed,
        on_start,
    )
