"""Drop-in for `object_detection/legacy/evaluator.py`, which also freezes the model that it scored.

It differs from upstream's (tf-object-detection-api 0.1) in three ways. Every variable must be in the
checkpoint. The metrics are also written as JSON. After each checkpoint, eval_dir has `frozen_eval_graph.pb`,
from the image to the detections, with a JSON that says how to use it.
"""

import contextlib
import os
import sys
from typing import Callable, Dict, List, Optional

import numpy as np
from tqdm import tqdm

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.errors import ConfigError, DataError, OdQatError
from od_qat.export import detections, freeze
from od_qat.graph import session_config
from od_qat.model_files import names
from od_qat.quiet import event_writer_silenced

FROZEN_NAME = names.FROZEN_EVAL_GRAPH


def evaluate(
    create_input_dict_fn: Callable,
    create_model_fn: Callable,
    eval_config,
    categories: List[dict],
    checkpoint_dir: str,
    eval_dir: str,
    graph_hook_fn: Optional[Callable] = None,
    evaluator_list: Optional[List] = None,
    *,
    export_frozen_graph: bool = True,
    on_start: Optional[Callable] = None,
    timeout_secs: Optional[float] = None,
) -> Dict[str, float]:
    """Evaluates the newest checkpoint, and each newer one as it appears.

    It may start before the training: it waits for a checkpoint, unless max_evals is 1. It looks for one each
    eval_interval_secs.

    Args:
      create_input_dict_fn: makes the tensors of one example.
      create_model_fn: makes a DetectionModel.
      eval_config: eval_pb2.EvalConfig; max_evals is the number of evaluations, 0 for no end.
      categories: dicts with 'id' and 'name'.
      checkpoint_dir: the train_dir of the training.
      eval_dir: folder for metrics, events and the frozen graph.
      graph_hook_fn: rewrites the default graph; None for a float model.
      evaluator_list: metrics; by default those of eval_config.metrics_set.
      export_frozen_graph: whether to write frozen_eval_graph.pb.
      on_start: called before the first evaluation, when graph and config are known to be good.
      timeout_secs: how long it waits for a checkpoint; None for ever.

    Returns:
      metric name -> value of the last evaluation.

    Raises:
      CheckpointError: if a checkpoint lacks a variable, quantization variables included, or if there is no
        checkpoint and max_evals is 1, or none until the time is over.
    """
    from od_qat.od_api import evaluation

    _require_use_of_ground_truth(eval_config)
    # This comes before the graph is built, so that a wrong folder is reported at once.
    watch = checkpoints.Watch(checkpoint_dir, eval_config.eval_interval_secs, timeout_secs)
    first = watch.first(wait=eval_config.max_evals != 1)
    evaluators = evaluator_list or evaluation.evaluators(eval_config, categories)
    with tf.Graph().as_default():
        tensors, losses = evaluation.predictions_and_losses(create_model_fn(), create_input_dict_fn)
        tf.train.get_or_create_global_step()
        if graph_hook_fn:
            graph_hook_fn()
        variables = freeze.variables_to_restore(eval_config.use_moving_averages, first)
        saver = tf.train.Saver(variables)
        run = _Run(tensors, losses, variables, saver, evaluators, eval_config, categories, eval_dir)
        if on_start:
            on_start()

        def evaluate_one(checkpoint: str) -> Dict[str, float]:
            metrics = run.evaluate(checkpoint)
            if export_frozen_graph:
                _freeze(create_model_fn, graph_hook_fn, checkpoint, eval_dir, eval_config.use_moving_averages)
            return metrics

        return watch.each(evaluate_one, eval_config.max_evals)


def _require_use_of_ground_truth(eval_config) -> None:
    if eval_config.ignore_groundtruth:
        raise ConfigError(
            "an evaluation without ground truth has nothing to report",
            where="eval_config.ignore_groundtruth",
            found="true (upstream's evaluator ends in an error there)",
            allowed="false",
        )


def _freeze(create_model_fn, graph_hook_fn, checkpoint: str, eval_dir: str, use_averages: bool) -> None:
    path = os.path.join(eval_dir, FROZEN_NAME)
    detections.export_detection_graph(create_model_fn, graph_hook_fn, checkpoint, path, use_averages)
    print("wrote {} and the .json beside it".format(path), file=sys.stderr)


def _in_short(metrics: Dict[str, float]) -> str:
    """Returns the first metrics of the metrics_set as text, beginning with mAP."""
    names = sorted((name for name in metrics if not name.startswith("Loss")), key=_by_interest)
    return ", ".join("{} {:.4f}".format(name.rpartition("/")[2], metrics[name]) for name in names[:2])


def _by_interest(name: str):
    return ("mAP" not in name, "(" in name, len(name), name)


def _require_ground_truth(metrics: Dict[str, float], images: int) -> None:
    """Raises if there was no object to find. The OD API's metrics are then -1 (COCO) or NaN (VOC)."""
    means = {name: value for name, value in metrics.items() if "/mAP" in name and "(" not in name}
    if means and all(value < 0 or np.isnan(value) for value in means.values()):
        raise DataError(
            "the images that are evaluated have no object to find",
            where="eval_input_reader",
            found="{} images without ground truth".format(images),
            allowed="at least one object that is not a crowd",
            fix="evaluate on records with objects, or raise eval_config.num_examples",
        )


class _Run(object):
    """An evaluation graph, and its runs on any number of checkpoints."""

    def __init__(
        self, tensors, losses, variables, saver, evaluators, eval_config, categories, eval_dir
    ) -> None:
        self._tensors = tensors
        self._losses = losses
        self._variables = variables
        self._saver = saver
        self._evaluators = evaluators
        self._config = eval_config
        self._categories = categories
        self._eval_dir = eval_dir

    def evaluate(self, checkpoint: str) -> Dict[str, float]:
        """Restores a checkpoint, runs num_examples images; writes, prints and returns the metrics.

        Raises:
          OdQatError: if the checkpoint does not fit, if an image cannot be read or no image has an object, or
            if pictures or metrics cannot be written.
        """
        try:
            with event_writer_silenced():
                metrics = self._evaluate(checkpoint)
            print("{}: {}".format(os.path.basename(checkpoint), _in_short(metrics)), file=sys.stderr)
            return metrics
        except OdQatError:
            raise
        except Exception as error:
            if files.is_of_writing(error, self._eval_dir):
                raise files.cannot_write(self._eval_dir, error) from error
            raise

    def _evaluate(self, checkpoint: str) -> Dict[str, float]:
        checkpoints.require_all(self._variables, checkpoint, checkpoints.quant_variable_names())
        step = checkpoints.global_step(checkpoint) or 0
        losses: Dict[str, List[float]] = {}
        coordinator = tf.train.Coordinator()
        with tf.Session(self._config.eval_master, config=session_config.for_many_runs()) as session:
            session.run(
                [tf.global_variables_initializer(), tf.local_variables_initializer(), tf.tables_initializer()]
            )
            checkpoints.restore(self._saver, session, checkpoint)
            threads = tf.train.start_queue_runners(session, coordinator)
            try:
                for number in tqdm(
                    range(self._config.num_examples),
                    desc="eval",
                    unit="image",
                    disable=not sys.stderr.isatty(),
                ):
                    result, image_losses = self._one(session, number, coordinator, threads)
                    for name, value in image_losses.items():
                        losses.setdefault(name, []).append(value)
                    for evaluator in self._evaluators:
                        evaluator.add_single_ground_truth_image_info(number, result)
                        evaluator.add_single_detected_image_info(number, result)
                    if number < self._config.num_visualizations:
                        self._draw(result, number, step)
            finally:
                _stop(coordinator, threads)
        metrics = self._metrics(losses)
        _require_ground_truth(metrics, self._config.num_examples)
        self._write(metrics, step)
        return metrics

    def _one(self, session, number: int, coordinator, threads):
        try:
            return session.run([self._tensors, self._losses])
        except (tf.errors.OutOfRangeError, tf.errors.DataLossError, tf.errors.InvalidArgumentError) as error:
            # The error that ended a thread of the input says more than the missing image.
            cause = _stop(coordinator, threads) or error
            raise DataError(
                "cannot read image {} of the eval input".format(number),
                where="eval_input_reader",
                found=cause.message.splitlines()[0],
                allowed="eval_config.num_examples ({}) readable images".format(self._config.num_examples),
                fix="check the records with `od-qat data`",
            ) from error

    def _draw(self, result, number: int, step: int) -> None:
        from od_qat.od_api import evaluation

        if self._config.visualization_export_dir:
            tf.gfile.MakeDirs(self._config.visualization_export_dir)
        tag = "image-{}".format(number)
        evaluation.write_images(result, tag, step, self._categories, self._eval_dir, self._config)

    def _metrics(self, losses: Dict[str, List[float]]) -> Dict[str, float]:
        from od_qat.od_api import event_tags

        metrics: Dict[str, float] = {}
        for evaluator in self._evaluators:
            # pycocotools prints a page of text.
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
                metrics.update(evaluator.evaluate())
            if self._config.export_path and hasattr(evaluator, "dump_detections_to_json_file"):
                evaluator.dump_detections_to_json_file(json_output_path=self._config.export_path)
            evaluator.clear()
        tags = event_tags.of_graph()
        for name, values in losses.items():
            metrics[tags.of_losses + name] = float(np.mean(values))
        return {name: float(value) for name, value in metrics.items()}

    def _write(self, metrics: Dict[str, float], step: int) -> None:
        writer = tf.summary.FileWriterCache.get(self._eval_dir)
        for name in sorted(metrics):
            writer.add_summary(
                tf.Summary(value=[tf.Summary.Value(tag=name, simple_value=metrics[name])]), step
            )
        writer.flush()
        files.write_json(os.path.join(self._eval_dir, "metrics-{}.json".format(step)), metrics)


def _stop(coordinator, threads) -> Optional[tf.errors.OpError]:
    """Stops the threads of the input; returns the error that ended one of them before, or None."""
    coordinator.request_stop()
    try:
        coordinator.join(threads, stop_grace_period_secs=10, ignore_live_threads=True)
    except tf.errors.OpError as error:
        return error
    return None
