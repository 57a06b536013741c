"""Trains, evaluates and exports from a pipeline config, as the OD API's scripts do.

Each function reads and checks the config, builds the model and the inputs, and calls the drop-in or the
export. Its first argument is the path of the config, or the config itself (TrainEvalPipelineConfig).
"""

import contextlib
import copy
import functools
import os
from typing import Any, Dict, Iterable, Optional, Union

from od_qat import checkpoints, plugin  # noqa: F401  (the plugin comes before object_detection)
from od_qat.errors import ConfigError
from od_qat.messages import graph_rewriter as block
from od_qat.od_api import config_checks, graph_rewriter, halves, models, pipeline

Config = Union[str, Any]


@contextlib.contextmanager
def _checked(source: Config, overrides: Iterable[str], training: bool = False):
    """Reads a config and checks it; within the context, the OD API is of the half of the config's model."""
    config = pipeline.load(source, overrides)
    where = pipeline.place_of(source)
    with halves.active(config):
        config_checks.check(config, where, training)
        block.check(config, config.train_config.num_steps if training else None, where)
        yield config


def train(
    pipeline_config_path: Config,
    train_dir: str,
    overrides: Iterable[str] = (),
    num_clones: int = 1,
    clone_on_cpu: bool = False,
    save_interval_secs: int = 600,
    seed: Optional[int] = None,
    **saving: Any,
):
    """Trains the model of a pipeline config, with QAT if the config has a graph_rewriter block.

    If TF_CONFIG is in the environment, this is one process of several: see docs/distributed.md.

    Args:
      pipeline_config_path: the config.
      train_dir: folder for checkpoints; a run that stopped continues from them.
      overrides: `dotted.path=value` edits of the config.
      num_clones: number of clones on this machine.
      clone_on_cpu: whether the clones are put on CPUs.
      save_interval_secs: seconds between checkpoints.
      seed: of variables, shuffling and augmentation; the same images then come in the same order.
      **saving: save_interval_steps, max_to_keep or events_dir, as for trainer.train.

    Returns:
      trainer.TrainResult; None from a parameter server.
    """
    from od_qat import trainer
    from od_qat.training import cluster

    with _checked(pipeline_config_path, overrides, training=True) as config:
        # This comes before the records are read, since a parameter server has none.
        place = cluster.join()
        if place is None:
            return None
        reader = config.train_input_reader
        pipeline.require_paths(reader, "train_input_reader")
        pipeline.require_paths(config.train_config, "train_config")
        available = sum(models.check_inputs(config, reader).values())
        config.train_config.fine_tune_checkpoint = checkpoints.normalised(
            config.train_config.fine_tune_checkpoint
        )
        hook = None
        if config.HasField("graph_rewriter"):
            hook = graph_rewriter.build(config.graph_rewriter, is_training=True)
        return trainer.train(
            models.input_fn(reader, in_order=seed is not None, available=available),
            models.model_fn(config, is_training=True),
            config.train_config,
            place.master,
            place.task,
            num_clones,
            place.worker_replicas,
            clone_on_cpu,
            place.ps_tasks,
            place.worker_job_name,
            place.is_chief,
            train_dir,
            graph_hook_fn=hook,
            save_interval_secs=save_interval_secs,
            seed=seed,
            **saving,
            # It is written late, so that a refused run leaves the pipeline.config of another run as it is.
            on_start=functools.partial(pipeline.save, config, train_dir),
        )


def evaluate(
    pipeline_config_path: Config,
    checkpoint_dir: str,
    eval_dir: str,
    run_once: bool = False,
    eval_training_data: bool = False,
    overrides: Iterable[str] = (),
    timeout_secs: Optional[float] = None,
) -> Dict[str, float]:
    """Evaluates the checkpoints of a training run and freezes each.

    Args:
      pipeline_config_path: the config.
      checkpoint_dir: the run's train_dir.
      eval_dir: folder for metrics and frozen_eval_graph.pb.
      run_once: evaluate only the newest checkpoint.
      eval_training_data: evaluate on the training records.
      overrides: `dotted.path=value` edits of the config.
      timeout_secs: how long it waits for a newer checkpoint; None for ever.

    Returns:
      metric name -> value.
    """
    from od_qat import evaluator

    with _checked(pipeline_config_path, overrides) as config:
        reader = _eval_reader(config, pipeline_config_path, eval_training_data)
        available = sum(models.check_inputs(config, reader).values())
        if reader.sample_1_of_n_examples > 1:
            available = -(-available // reader.sample_1_of_n_examples)
        original = copy.deepcopy(config)
        eval_config = config.eval_config
        eval_config.num_examples = _images_to_evaluate(eval_config, available)
        if run_once:
            eval_config.max_evals = 1
        reader.shuffle = False
        # Several readers count images twice, since they start a short file again before a long one ends.
        reader.num_readers = 1
        return evaluator.evaluate(
            models.input_fn(reader),
            models.model_fn(config, is_training=False),
            eval_config,
            models.categories(reader.label_map_path),
            checkpoint_dir,
            eval_dir,
            graph_hook_fn=_eval_hook(config),
            # The config is saved as it was given, without the edits above.
            on_start=functools.partial(pipeline.save, original, eval_dir),
            timeout_secs=timeout_secs,
        )


def _eval_reader(config, pipeline_config_path: Config, of_training: bool):
    if of_training:
        reader, where = config.train_input_reader, "train_input_reader"
    elif len(config.eval_input_reader):
        reader, where = config.eval_input_reader[0], "eval_input_reader[0]"
    else:
        raise ConfigError(
            "the config has no eval_input_reader", where=pipeline.place_of(pipeline_config_path)
        )
    pipeline.require_paths(reader, where)
    return reader


def _images_to_evaluate(eval_config, available: int) -> int:
    """The number of images that the config asks for. More than there are would count some twice."""
    if not eval_config.HasField("num_examples"):
        return available
    if not eval_config.num_examples:
        raise ConfigError(
            "no image would be evaluated",
            where="eval_config.num_examples",
            found="0",
            allowed="1 to {}".format(available),
            fix="--override eval_config.num_examples= takes all",
        )
    return min(eval_config.num_examples, available)


def _eval_hook(config):
    if config.HasField("graph_rewriter"):
        return graph_rewriter.build(config.graph_rewriter, is_training=False)
    return None


def export(
    pipeline_config_path: Config,
    trained_checkpoint_prefix: str,
    output_directory: str,
    overrides: Iterable[str] = (),
) -> str:
    """Writes frozen_inference_graph.pb, quantized if the config has a graph_rewriter block.

    Args:
      pipeline_config_path: the config.
      trained_checkpoint_prefix: `train_dir/model.ckpt-N`, or a train_dir, whose newest checkpoint is taken.
      output_directory: folder for the .pb.
      overrides: `dotted.path=value` edits of the config.

    Returns:
      path of the .pb.
    """
    from od_qat.export import detections

    with _checked(pipeline_config_path, overrides) as config:
        path, _ = detections.export_detection_graph(
            models.model_fn(config, is_training=False),
            _eval_hook(config),
            checkpoints.named_by(trained_checkpoint_prefix),
            os.path.join(output_directory, "frozen_inference_graph.pb"),
            config.eval_config.use_moving_averages,
        )
        pipeline.save(config, output_directory)
        return path


def export_saved_model(
    pipeline_config_path: Config,
    trained_checkpoint_prefix: str,
    output_directory: str,
    input_type: str = "image_tensor",
    overrides: Iterable[str] = (),
) -> str:
    """Writes saved_model/, checkpoint/ and pipeline.config, as upstream's exporter_main_v2 does.

    Args:
      pipeline_config_path: the config.
      trained_checkpoint_prefix: `train_dir/ckpt-N`, or a train_dir, whose newest checkpoint is taken.
      output_directory: folder for them.
      input_type: 'image_tensor', uint8 [1, height, width, 3]; 'float_image_tensor', float32 [batch, height,
        width, 3]; 'encoded_image_string_tensor' or 'tf_example', strings [batch].
      overrides: `dotted.path=value` edits of the config.

    Returns:
      path of the SavedModel, which gives what the evaluation scores.
    """
    from od_qat.export import serving

    with _checked(pipeline_config_path, overrides) as config:
        return serving.export(
            models.model_fn(config, is_training=False),
            _eval_hook(config),
            checkpoints.named_by(trained_checkpoint_prefix),
            output_directory,
            input_type,
            {pipeline.FILE: pipeline.to_text(config)},
        )


def export_tflite(
    pipeline_config_path: Config,
    trained_checkpoint_prefix: str,
    output_directory: str,
    inference_type: str = "int8",
    fast_nms: bool = False,
    max_detections: Optional[int] = None,
    overrides: Iterable[str] = (),
    ptq: bool = False,
    calibration_images: int = 100,
    input_type: str = "uint8",
    score_threshold: Union[float, str, None] = None,
    form: str = "int8",
    metadata: bool = False,
) -> str:
    """Writes detect.tflite, fully quantized and checked, with the JSON beside it.

    A line on stderr says which score threshold it has, and what that leaves out.

    Args:
      pipeline_config_path: the config that the checkpoint was trained with.
      trained_checkpoint_prefix: `train_dir/model.ckpt-N`, or a train_dir, whose newest checkpoint is taken.
      output_directory: folder for the .tflite.
      inference_type: 'int8' for CPUs, or 'uint8' for devices that ask for it.
      fast_nms: use TFLite's fast suppression instead of the config's own, which scores better. Both are the
        same if the config has use_class_agnostic_nms with one class for each detection.
      max_detections: number of detections; by default the config's max_total_detections.
      overrides: `dotted.path=value` edits of the config.
      ptq: quantize a float checkpoint without training, calibrated on training images.
      calibration_images: number of those images.
      input_type: type of the image: 'uint8', pixels as cameras give them, or 'int8', pixels less 128, for an
        int8 network.
      score_threshold: detections that score less are left out; 'config' takes the config's own. The default
        is 0.05, or lower if the detector's scores are low (see export/suppression.py).
      form: of post-training quantization: 'int8'; 'int8_per_tensor', with one range for all weights of a
        layer; 'dynamic_range' or 'float16', 8-bit or 16-bit weights with floats between them; 'float32'.
      metadata: put TFLite's metadata and the config's label map into the .tflite, for task libraries, and
        write labels.txt beside it.

    Returns:
      path of the .tflite.

    Raises:
      ConfigError: before anything is built, for types or numbers that are not supported. A CenterNet's
        .tflite has no suppression, no threshold, and no post-training quantization.
      CheckpointError, ExportError: if the checkpoint does not fit or a check fails; nothing is written then.
    """
    from od_qat.export import center_net_tflite, ssd_tflite, tflite_network
    from od_qat.model_files import tflite_metadata

    options = tflite_network.Options(
        inference_type, input_type, fast_nms, max_detections, score_threshold, ptq, calibration_images, form
    )
    tflite_network.require_options(options)
    if metadata:
        tflite_metadata.require_possible("float32" if options.takes_floats else input_type)
    config = pipeline.load(pipeline_config_path, overrides)
    where = pipeline.place_of(pipeline_config_path)
    if metadata:
        options = options._replace(labels=tflite_network.labels_of(config))
    with halves.active(config):
        config_checks.check(config, where)
        if ptq:
            pipeline.require_paths(config.train_input_reader, "train_input_reader")
        block.prepare_for_tflite(config, ptq, where)
        checkpoint = checkpoints.named_by(trained_checkpoint_prefix)
        of_kind = center_net_tflite if config.model.WhichOneof("model") == "center_net" else ssd_tflite
        return of_kind.export(config, where, checkpoint, output_directory, options, _eval_hook(config))


def export_tflite_saved_model(
    pipeline_config_path: Config,
    trained_checkpoint_prefix: str,
    output_directory: str,
    max_detections: int = 10,
    regular_nms: bool = False,
    overrides: Iterable[str] = (),
) -> str:
    """Writes saved_model/ for TensorFlow's converter, as upstream's export_tflite_graph_tf2 does.

    With a graph_rewriter block, `TFLiteConverter.from_saved_model` with Optimize.DEFAULT makes an int8
    network of it without further data. (:func:`export_tflite` converts and checks it too.)

    Args:
      pipeline_config_path: the config that the checkpoint was trained with.
      trained_checkpoint_prefix: `train_dir/ckpt-N`, or a train_dir, whose newest checkpoint is taken.
      output_directory: folder for it.
      max_detections: number of detections.
      regular_nms: whether boxes are suppressed class by class, as the OD API does, or TFLite's fast way.
      overrides: `dotted.path=value` edits of the config.

    Returns:
      path of the SavedModel.
    """
    from od_qat.export import ssd_saved_model

    with _checked(pipeline_config_path, overrides) as config:
        where = pipeline.place_of(pipeline_config_path)
        block.check_for_tflite(config, where=where)
        return ssd_saved_model.export(
            config,
            where,
            checkpoints.named_by(trained_checkpoint_prefix),
            output_directory,
            _eval_hook(config),
            max_detections,
            regular_nms,
        )
