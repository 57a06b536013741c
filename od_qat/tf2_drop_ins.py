"""Drop-ins for the functions behind upstream's three commands of the TF 2 half.

model_main_tf2 calls model_lib_v2's train_loop and eval_continuously, exporter_main_v2 calls exporter_lib_v2's
export_inference_graph, and export_tflite_graph_tf2 calls export_tflite_graph_lib_tf2's export_tflite_model
(tf-object-detection-api 0.1). They have the same arguments here, and are called where a config has a
graph_rewriter block, or in graph mode (see hand_over.py). The work is done by od_qat.commands. What upstream
ignores of a config is ignored here too, and said.
"""

import os
import sys
from typing import Any, Dict, Optional

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.od_api import halves, pipeline


@compat.graph_mode()
def train_loop(
    pipeline_config_path: str,
    model_dir: str,
    config_override: Optional[Any] = None,
    train_steps: Optional[int] = None,
    use_tpu: bool = False,
    save_final_config: bool = False,
    checkpoint_every_n: int = 1000,
    checkpoint_max_to_keep: int = 7,
    record_summaries: bool = True,
    performance_summary_exporter: Optional[Any] = None,
    num_steps_per_iteration: int = 100,
    **kwargs: Any,
) -> None:
    """Trains as `od-qat train` does, into the layout of model_lib_v2.train_loop.

    Checkpoints `ckpt-N` are in model_dir, where N is the step, and events in its folder `train`. It ends
    after train_steps, and saves then too. Of a tf.distribute.MirroredStrategy, each replica is a clone.

    Args:
      pipeline_config_path: the config.
      model_dir: folder for checkpoints; a run that stopped continues from them.
      config_override: a TrainEvalPipelineConfig, or its text, to merge into the config.
      train_steps: number of steps, in place of train_config.num_steps.
      use_tpu: refused.
      save_final_config: without effect: pipeline.config is always written.
      checkpoint_every_n: steps between checkpoints.
      checkpoint_max_to_keep: number of checkpoints that are kept.
      record_summaries, num_steps_per_iteration: without effect.
      performance_summary_exporter: refused.
      **kwargs: edits of the config, as upstream's config_util knows them.

    Raises:
      ConfigError: for TPUs, several machines by tf.distribute, or a TF 1 model; else as commands.train.
    """
    if use_tpu:
        raise _refused("od_qat does not train on TPUs", "--use_tpu", fix="od-qat train")
    if performance_summary_exporter is not None:
        raise ConfigError(
            "od_qat has no performance summary", where="performance_summary_exporter", allowed="None"
        )
    config = _config(pipeline_config_path, config_override, dict(kwargs, train_steps=train_steps))
    clones = _replicas()
    _commands().train(
        config,
        model_dir,
        num_clones=clones,
        save_interval_steps=checkpoint_every_n,
        max_to_keep=checkpoint_max_to_keep,
        events_dir=os.path.join(model_dir, "train"),
    )


def _replicas() -> int:
    """The number of replicas of the strategy in whose scope this is called.

    Raises:
      ConfigError: if it is one for several machines.
    """
    strategy = tf.distribute.get_strategy()
    if type(strategy).__name__.startswith(("MultiWorkerMirrored", "CollectiveAllReduce")):
        raise ConfigError(
            "od_qat trains on several machines with parameter servers, not by MultiWorkerMirroredStrategy",
            where="--num_workers",
            found="above 1",
            allowed="1",
            fix="set TF_CONFIG with the jobs master, worker and ps in each process (docs/distributed.md)",
        )
    return strategy.num_replicas_in_sync


@compat.graph_mode()
def eval_continuously(
    pipeline_config_path: str,
    config_override: Optional[Any] = None,
    train_steps: Optional[int] = None,
    sample_1_of_n_eval_examples: Optional[int] = 1,
    sample_1_of_n_eval_on_train_examples: int = 1,
    use_tpu: bool = False,
    override_eval_num_epochs: bool = True,
    postprocess_on_cpu: bool = False,
    model_dir: Optional[str] = None,
    checkpoint_dir: Optional[str] = None,
    wait_interval: float = 180,
    timeout: Optional[float] = 3600,
    eval_index: int = 0,
    save_final_config: bool = False,
    **kwargs: Any,
) -> Dict[str, float]:
    """Evaluates each checkpoint as `od-qat eval` does, until none comes for `timeout` seconds.

    Metrics, events and frozen_eval_graph.pb are in model_dir's folder `eval`.

    Args:
      pipeline_config_path: the config.
      config_override: a TrainEvalPipelineConfig, or its text, to merge into the config.
      train_steps: without effect.
      sample_1_of_n_eval_examples: takes each N-th image of the evaluation.
      sample_1_of_n_eval_on_train_examples, use_tpu, override_eval_num_epochs, postprocess_on_cpu: without
        effect.
      model_dir: folder for the folder `eval`.
      checkpoint_dir: the model_dir of the training.
      wait_interval: seconds between looks for a newer checkpoint.
      timeout: seconds without a newer checkpoint after which it ends; None for never.
      eval_index: which eval_input_reader to take.
      save_final_config: without effect: pipeline.config is always written.
      **kwargs: edits of the config, as upstream's config_util knows them.

    Returns:
      metric name -> value of the last evaluation.

    Raises:
      ConfigError: for a TF 1 model; else as commands.evaluate.
    """
    edits = dict(kwargs, sample_1_of_n_eval_examples=sample_1_of_n_eval_examples)
    config = _config(pipeline_config_path, config_override, edits)
    readers = list(config.eval_input_reader)
    if not 0 <= eval_index < max(len(readers), 1):
        raise ConfigError(
            "there is no such eval_input_reader",
            where=pipeline_config_path,
            found="eval_index {}".format(eval_index),
            allowed="0 to {}".format(len(readers) - 1),
        )
    del config.eval_input_reader[:]
    config.eval_input_reader.extend(readers[eval_index : eval_index + 1])
    config.eval_config.eval_interval_secs = int(wait_interval)
    for name in ("num_examples", "max_evals"):
        if config.eval_config.HasField(name):
            text = "eval_config.{} is ignored, as model_main_tf2 ignores it (od-qat eval takes it)"
            print(text.format(name), file=sys.stderr)
            config.eval_config.ClearField(name)
    name = readers[eval_index].name if readers else ""
    return _commands().evaluate(
        config, checkpoint_dir, os.path.join(model_dir, "eval", name), timeout_secs=timeout
    )


@compat.graph_mode()
def export_inference_graph(
    input_type: str,
    pipeline_config: Any,
    trained_checkpoint_dir: str,
    output_directory: str,
    use_side_inputs: bool = False,
    side_input_shapes: str = "",
    side_input_types: str = "",
    side_input_names: str = "",
) -> None:
    """Writes saved_model/, checkpoint/ and pipeline.config, as commands.export_saved_model.

    Args:
      input_type: see commands.export_saved_model.
      pipeline_config: TrainEvalPipelineConfig.
      trained_checkpoint_dir: folder of the checkpoints.
      output_directory: folder for them.
      use_side_inputs: refused: side inputs are those of Context R-CNN.
      side_input_shapes, side_input_types, side_input_names: of side inputs.

    Raises:
      ConfigError: for side inputs or a TF 1 model; else as commands.export_saved_model.
    """
    if use_side_inputs:
        raise _refused("od_qat exports models with the image as their only input", "--use_side_inputs")
    _require_tf2(pipeline_config)
    _commands().export_saved_model(pipeline_config, trained_checkpoint_dir, output_directory, input_type)


@compat.graph_mode()
def export_tflite_model(
    pipeline_config: Any,
    trained_checkpoint_dir: str,
    output_directory: str,
    max_detections: int,
    use_regular_nms: bool,
    include_keypoints: bool = False,
    label_map_path: str = "",
) -> None:
    """Writes saved_model/ for TensorFlow's converter, as commands.export_tflite_saved_model.

    Args:
      pipeline_config: TrainEvalPipelineConfig.
      trained_checkpoint_dir: folder of the checkpoints.
      output_directory: folder for it.
      max_detections: number of detections.
      use_regular_nms: whether boxes are suppressed class by class.
      include_keypoints: refused: keypoints are CenterNet's.
      label_map_path: of keypoints.

    Raises:
      ConfigError: for keypoints or a TF 1 model; else as commands.export_tflite_saved_model.
    """
    if include_keypoints:
        raise _refused("od_qat exports no keypoints", "--centernet_include_keypoints")
    _require_tf2(pipeline_config)
    _commands().export_tflite_saved_model(
        pipeline_config, trained_checkpoint_dir, output_directory, max_detections, use_regular_nms
    )


def _refused(what: str, flag: str, fix: str = "") -> ConfigError:
    return ConfigError(what, where=flag, found="true", allowed="false", fix=fix)


def _commands():
    """od_qat.commands, which puts TensorFlow into graph mode when it is imported."""
    from od_qat import commands

    return commands


def _config(path: str, override: Optional[Any], edits: Dict[str, Any]) -> Any:
    """The config with a message or text merged into it, and with upstream's edits by keyword."""
    config = pipeline.load(path)
    if override is not None:
        pipeline.merge(config, override)
    _require_tf2(config, path)
    pipeline.edit(config, edits)
    return config


def _require_tf2(config: Any, path: Optional[str] = None) -> None:
    if not halves.is_tf2(config):
        raise ConfigError(
            "the model is of the OD API's TF 1 half, and the command is of its TF 2 half",
            where=path or pipeline.place_of(config),
            found=config.model.WhichOneof("model"),
            allowed="a feature extractor whose type ends in _keras",
            fix="run the commands of the TF 1 half (object_detection.legacy.train, .eval, "
            "export_inference_graph, export_tflite_ssd_graph), or od-qat's, which take both",
        )
