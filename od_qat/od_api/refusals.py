"""Stops commands that would ignore a graph_rewriter block, and says what to run instead.

The commands of the OD API's TF 2 half never read the block (tensorflow/models issue 9835). Under the plugin
these commands are refused altogether, because they need eager execution, and the plugin switches TensorFlow
to graph mode. In a patched tree they run in their own mode, so this file must not import od_qat.compat.
"""

from typing import Optional

from od_qat.errors import ConfigError
from od_qat.od_api import layers_proto, pipeline

_TRAINING = "od-qat train, or od-qat run object_detection.legacy.train"
_EVALUATION = "od-qat eval, or od-qat run object_detection.legacy.eval"
_EXPORT = "od-qat export, or od-qat run object_detection.export_inference_graph"
_TFLITE = "od-qat export-tflite, or od-qat run object_detection.export_tflite_ssd_graph"

# Command -> the commands that do its work with quantization.
TF2_COMMANDS = {
    "object_detection.model_main_tf2": "{}; {}".format(_TRAINING, _EVALUATION),
    "object_detection.exporter_main_v2": _EXPORT,
    "object_detection.export_tflite_graph_tf2": _TFLITE,
}
# The commands that call refuse_block (see source_changes.py): those above and, of the TF 1 half, the exporter
# for TPUs.
_STOPPED_BY_HUNKS = dict(TF2_COMMANDS)
_STOPPED_BY_HUNKS["object_detection.tpu_exporters.export_saved_model_tpu"] = "{}; {}".format(_EXPORT, _TFLITE)
# Commands of the TF 1 half that train without quantization.
UNABLE = {"object_detection.model_tpu_main": "{}; {}".format(_TRAINING, _EVALUATION)}


def refuse_command(command: str, config_path: Optional[str]) -> None:
    """Stops a command of TF2_COMMANDS, and one of UNABLE if its config has the block.

    Args:
      command: name of its module.
      config_path: its --pipeline_config_path; None if it has none.

    Raises:
      ConfigError: for a TF 2 command always, for another if its config has the block.
    """
    quantised = bool(config_path) and pipeline.load(config_path).HasField("graph_rewriter")
    if command in TF2_COMMANDS:
        raise _tf2(command, TF2_COMMANDS[command], config_path if quantised else None)
    if quantised:
        raise _tpu(command, config_path)


def refuse_block(command: str, config_path: str, config_override: str = "") -> None:
    """Stops a command if its config has the block.

    The commands of the TF 2 half call this in a patched tree, where they run otherwise. The exporter for TPUs
    calls it under the plugin too.

    Args:
      command: one of _STOPPED_BY_HUNKS.
      config_path: its --pipeline_config_path, wherever tf.gfile can read it.
      config_override: text that it merges into the config.

    Raises:
      ConfigError: if the merged config has the block.
    """
    from object_detection.utils import config_util

    layers_proto.extension()  # (registered, so that a block with the extension can be parsed)
    if "graph_rewriter_config" in config_util.get_configs_from_pipeline_file(config_path, config_override):
        raise _tf2(command, _STOPPED_BY_HUNKS[command], config_path)


def _tf2(what: str, instead: str, quantised_config: Optional[str]) -> ConfigError:
    if quantised_config:
        return ConfigError(
            "{} ignores the graph_rewriter block".format(what),
            where=quantised_config,
            found="graph_rewriter { ... }",
            fix="run " + instead,
        )
    return ConfigError(
        "{} needs eager execution, and od_qat runs TensorFlow in graph mode".format(what),
        fix="run it without od_qat, or do its work, for TF 2 models too, by " + instead,
    )


def _tpu(what: str, where: Optional[str]) -> ConfigError:
    return ConfigError(
        "{} trains on TPUs, without quantization".format(what),
        where=where or "the config",
        found="graph_rewriter { ... }",
        fix="run {}, or drop the block".format(UNABLE["object_detection.model_tpu_main"]),
    )


def _of_message(config) -> Optional[str]:
    return "the config" if config.HasField("graph_rewriter") else None


def _of_file(path: Optional[str]) -> Optional[str]:
    return path if path and pipeline.load(path).HasField("graph_rewriter") else None


# Stand-ins for functions of the OD API: see source_changes.py and hand_over.py.


def train_loop(pipeline_config_path=None, *args, **kwargs):
    """For object_detection.model_lib_v2.train_loop."""
    raise _tf2("model_lib_v2.train_loop", _TRAINING, _of_file(pipeline_config_path))


def eval_continuously(pipeline_config_path=None, *args, **kwargs):
    """For object_detection.model_lib_v2.eval_continuously."""
    raise _tf2("model_lib_v2.eval_continuously", _EVALUATION, _of_file(pipeline_config_path))


def export_inference_graph(input_type, pipeline_config, *args, **kwargs):
    """For object_detection.exporter_lib_v2.export_inference_graph."""
    raise _tf2("exporter_lib_v2.export_inference_graph", _EXPORT, _of_message(pipeline_config))


def export_tflite_model(pipeline_config, *args, **kwargs):
    """For object_detection.export_tflite_graph_lib_tf2.export_tflite_model."""
    raise _tf2("export_tflite_graph_lib_tf2", _TFLITE, _of_message(pipeline_config))


def create_estimator_and_inputs(original, run_config, *args, **kwargs):
    """Checks the config, then calls object_detection.model_lib.create_estimator_and_inputs as it is.

    Args:
      original: that function.
      run_config: its first argument.
      *args: hparams, pipeline_config_path, config_override, train_steps and the rest of its arguments.
      **kwargs: the same by name.

    Raises:
      ConfigError: if the block is invalid or would not be honoured: on TPUs, or with a delay that training
        never reaches.
    """
    names = ("hparams", "pipeline_config_path", "config_override", "train_steps")
    given = dict(zip(names, args))
    given.update(kwargs)
    path = given.get("pipeline_config_path")
    if path:
        config = pipeline.load(path)
        if given.get("config_override"):
            pipeline.merge(config, given["config_override"])
        if config.HasField("graph_rewriter"):
            if given.get("use_tpu_estimator"):
                raise _tpu("a TPUEstimator", path)
            if given.get("train_steps"):
                config.train_config.num_steps = given["train_steps"]
            from od_qat.od_api import graph_rewriter

            graph_rewriter.check(config, training=True, where=path)
    return original(run_config, *args, **kwargs)
