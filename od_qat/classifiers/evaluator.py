"""Evaluates the checkpoints of a classifier, and freezes each that it evaluated."""

import os
import sys
from typing import Callable, Dict, Optional

from tqdm import tqdm

from od_qat import checkpoints, files
from od_qat.classifiers import counts, frozen, inputs
from od_qat.classifiers.inputs import Source
from od_qat.classifiers.networks import Network
from od_qat.compat import tf
from od_qat.errors import DataError, first_line
from od_qat.export import freeze
from od_qat.model_files import names
from od_qat.quiet import event_writer_silenced

# As in slim's eval_image_classifier.py.
TAGS = "eval/"


def evaluate(
    network: Network,
    source: Source,
    config,
    checkpoint_dir: str,
    eval_dir: str,
    hook: Optional[Callable] = None,
    run_once: bool = False,
    on_start: Optional[Callable] = None,
) -> Dict[str, float]:
    """Evaluates the newest checkpoint, and each newer one as it appears.

    Args:
      network: the network.
      source: the images.
      config: the message Evaluation.
      checkpoint_dir: the train_dir of the training.
      eval_dir: folder for metrics, events and frozen_eval_graph.pb.
      hook: rewrites the default graph; None for a float network.
      run_once: whether to end after the newest checkpoint.
      on_start: called before the first evaluation, when the graph is known to be good.

    Returns:
      metric name -> value, of the last evaluation.

    Raises:
      CheckpointError: if a checkpoint lacks a variable, or if run_once and there is none.
    """
    watch = checkpoints.Watch(checkpoint_dir, config.eval_interval_secs)
    first = watch.first(wait=not run_once)
    with tf.Graph().as_default():
        images, labels = inputs.batches(source, network, config.batch_size, is_training=False)()
        _, end_points = network.build(images, is_training=False)
        tf.train.get_or_create_global_step()
        if hook:
            hook()
        variables = freeze.variables_to_restore(False, first)
        saver = tf.train.Saver(variables)
        if on_start:
            on_start()

        def one(checkpoint: str) -> Dict[str, float]:
            checkpoints.require_all(variables, checkpoint, checkpoints.quant_variable_names())
            metrics = _metrics(
                saver, checkpoint, end_points["Predictions"], labels, source, config.batch_size
            )
            _write(metrics, checkpoint, eval_dir)
            path = os.path.join(eval_dir, names.FROZEN_EVAL_GRAPH)
            frozen.export(network, hook, checkpoint, path, source.classes)
            print("wrote {} and the .json beside it".format(path), file=sys.stderr)
            return metrics

        return watch.each(one, 1 if run_once else 0)


def _metrics(saver, checkpoint: str, predictions, labels, source: Source, batch: int) -> Dict[str, float]:
    found = counts.Counts()
    with tf.Session() as session:
        session.run([tf.local_variables_initializer(), tf.tables_initializer()])
        checkpoints.restore(saver, session, checkpoint)
        rounds = -(-source.count // batch)
        for _ in tqdm(range(rounds), desc="eval", unit="batch", disable=not sys.stderr.isatty()):
            try:
                found.add(*session.run([predictions, labels]))
            except (tf.errors.InvalidArgumentError, tf.errors.DataLossError) as error:
                image = inputs.first_unreadable(source)
                raise DataError(
                    "cannot read an image to evaluate",
                    where=image or source.where,
                    found=first_line(error),
                    allowed="JPEG or PNG images",
                ) from error
    return found.metrics()


def _write(metrics: Dict[str, float], checkpoint: str, eval_dir: str) -> None:
    step = checkpoints.global_step(checkpoint) or 0
    said = ", ".join("{} {:.4f}".format(name, metrics[name]) for name in sorted(metrics))
    print("{}: {}".format(os.path.basename(checkpoint), said), file=sys.stderr)
    with event_writer_silenced():
        writer = tf.summary.FileWriterCache.get(eval_dir)
        for name in sorted(metrics):
            value = tf.Summary.Value(tag=TAGS + name, simple_value=metrics[name])
            writer.add_summary(tf.Summary(value=[value]), step)
        writer.flush()
    files.write_json(os.path.join(eval_dir, "metrics-{}.json".format(step)), metrics)
