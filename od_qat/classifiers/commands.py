"""Trains, evaluates and exports classifiers from their configs, with the arguments of od_qat.commands."""

import functools
import os
from typing import Any, Dict, Iterable, Optional, Tuple, Union

from od_qat import checkpoints
from od_qat.classifiers import class_names, evaluator, frozen, inputs, to_tflite
from od_qat.classifiers import config as configs
from od_qat.classifiers.task import ClassifierTask
from od_qat.compat import tf
from od_qat.export import tflite
from od_qat.messages import graph_rewriter
from od_qat.model_files import tflite_metadata
from od_qat.training import cluster
from od_qat.training import train as training
from od_qat.training.loop import TrainResult
from od_qat.training.session import Saving

Config = Union[str, Any]


def train(
    config_path: Config,
    train_dir: str,
    overrides: Iterable[str] = (),
    num_clones: int = 1,
    clone_on_cpu: bool = False,
    save_interval_secs: int = 600,
    seed: Optional[int] = None,
) -> Optional[TrainResult]:
    """Trains the network of a config, with QAT if the config has a graph_rewriter block.

    If TF_CONFIG is in the environment, this is one process of several: see docs/distributed.md.

    Args:
      config_path: the config, or its path.
      train_dir: folder for checkpoints; a run that stopped continues from them.
      overrides: `dotted.path=value` edits of the config.
      num_clones: number of clones on this machine.
      clone_on_cpu: whether the clones are put on CPUs.
      save_interval_secs: seconds between checkpoints.
      seed: of variables, shuffling and distortion.

    Returns:
      TrainResult; None from a parameter server.

    Raises:
      ConfigError, DataError, CheckpointError: before the first step.
      OdQatError: see trainer.train.
    """
    config, network = _checked(config_path, overrides, training_too=True)
    place = cluster.join()
    if place is None:
        return None
    source = inputs.open_source(config.train_input, network.num_classes, "train_input")
    class_names.require_same(train_dir, source.classes.names)

    def save() -> None:
        configs.save(config, train_dir)
        class_names.save(train_dir, source.classes.names)

    return training.train(
        ClassifierTask(network, source, config.training),
        place,
        training.Clones(num_clones, clone_on_cpu),
        Saving(train_dir, train_dir, save_interval_secs, None, 60),
        configs.rewrite_fn(config, is_training=True),
        seed=seed,
        on_start=save,
    )


def _checked(source: Config, overrides: Iterable[str], training_too: bool = False):
    config = configs.load(source, overrides)
    configs.check_rewriting(config, training_too, configs.place_of(source))
    return config, configs.network(config)


def evaluate(
    config_path: Config,
    checkpoint_dir: str,
    eval_dir: str,
    run_once: bool = False,
    eval_training_data: bool = False,
    overrides: Iterable[str] = (),
) -> Dict[str, float]:
    """Evaluates the checkpoints of a training run and freezes each.

    Args:
      config_path: the config, or its path.
      checkpoint_dir: the run's train_dir.
      eval_dir: folder for metrics and frozen_eval_graph.pb.
      run_once: evaluate only the newest checkpoint.
      eval_training_data: evaluate on the training images.
      overrides: `dotted.path=value` edits of the config.

    Returns:
      metric name -> value.
    """
    config, network = _checked(config_path, overrides)
    block = "train_input" if eval_training_data else "eval_input"
    names = _names(config, network, checkpoint_dir)
    source = inputs.open_source(getattr(config, block), network.num_classes, block, names)
    if not names:
        inputs.require_all_classes(source, network.num_classes, block)
    return evaluator.evaluate(
        network,
        source,
        config.evaluation,
        checkpoint_dir,
        eval_dir,
        configs.rewrite_fn(config, is_training=False),
        run_once,
        functools.partial(configs.save, config, eval_dir),
    )


def export(
    config_path: Config,
    trained_checkpoint_prefix: str,
    output_directory: str,
    overrides: Iterable[str] = (),
) -> str:
    """Writes frozen_inference_graph.pb, quantized if the config has a graph_rewriter block.

    Args:
      config_path: the config, or its path.
      trained_checkpoint_prefix: `train_dir/model.ckpt-N`, or a train_dir, whose newest checkpoint is taken.
      output_directory: folder for the .pb.
      overrides: `dotted.path=value` edits of the config.

    Returns:
      path of the .pb.
    """
    config, network = _checked(config_path, overrides)
    checkpoint = checkpoints.named_by(trained_checkpoint_prefix)
    path = frozen.export(
        network,
        configs.rewrite_fn(config, is_training=False),
        checkpoint,
        os.path.join(output_directory, "frozen_inference_graph.pb"),
        _classes(config, network, checkpoint),
    )
    configs.save(config, output_directory)
    return path


def _names(config, network, train_dir: str) -> Tuple[str, ...]:
    """The classes that a network was trained on, as its train_dir or else its folder of images has them."""
    names = class_names.of_run(train_dir)
    block = config.train_input
    if not names and block.folder and tf.gfile.IsDirectory(block.folder):
        names = inputs.open_source(block, network.num_classes, "train_input").classes.names
    return names


def _classes(config, network, checkpoint: str) -> inputs.Classes:
    """The classes of a checkpoint, from what can be read here."""
    names = _names(config, network, os.path.dirname(checkpoint) or ".")
    blocks = [block for block in (config.train_input, config.eval_input) if block.records]
    if names:
        return inputs.Classes(names, blocks[0].labels_offset if blocks else 0)
    for block in blocks:
        found = inputs.classes_beside(block.records[0], block.labels_offset)
        if found.names:
            return found
    return inputs.Classes((), blocks[0].labels_offset if blocks else 0)


def export_tflite(
    config_path: Config,
    trained_checkpoint_prefix: str,
    output_directory: str,
    inference_type: str = "int8",
    overrides: Iterable[str] = (),
    ptq: bool = False,
    calibration_images: int = 100,
    input_type: str = "uint8",
    metadata: bool = False,
    form: str = "int8",
) -> str:
    """Writes classifier.tflite, fully quantized and checked, with the JSON beside it.

    Args:
      config_path: the config that the checkpoint was trained with, or its path.
      trained_checkpoint_prefix: `train_dir/model.ckpt-N`, or a train_dir, whose newest checkpoint is taken.
      output_directory: folder for the .tflite.
      inference_type: 'int8' for CPUs, or 'uint8' for devices that ask for it.
      overrides: `dotted.path=value` edits of the config.
      ptq: quantize a float checkpoint without training, calibrated on training images.
      calibration_images: number of those images.
      input_type: type of the image, and of the probabilities: 'uint8', or 'int8' for an int8 network.
      metadata: put TFLite's metadata and the names of the classes into the .tflite, for task libraries, and
        write labels.txt beside it.
      form: of post-training quantization; those of detectors (od_qat.commands.export_tflite).

    Returns:
      path of the .tflite.

    Raises:
      ConfigError, CheckpointError, ExportError: nothing is written then.
    """
    tflite.require_types(inference_type, input_type, ptq)
    config, network = _checked(config_path, overrides)
    where = configs.place_of(config_path)
    options = to_tflite.Options(inference_type, input_type, ptq, calibration_images, metadata, form)
    tflite.require_form(form, ptq)
    if metadata:
        tflite_metadata.require_possible("float32" if options.takes_floats else input_type)
    graph_rewriter.prepare_for_tflite(config, ptq, where)
    checkpoint = checkpoints.named_by(trained_checkpoint_prefix)
    return to_tflite.export(
        network,
        configs.rewrite_fn(config, is_training=False),
        checkpoint,
        output_directory,
        options,
        _classes(config, network, checkpoint),
        functools.partial(inputs.open_source, config.train_input, network.num_classes, "train_input"),
        where,
    )
