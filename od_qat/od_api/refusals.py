"""Stops commands that would ignore a graph_rewriter block, and says what to run instead.

Files of a patched tree call this too, so it must not import od_qat.compat.
"""

from typing import Optional

from od_qat.errors import ConfigError
from od_qat.od_api import layers_proto, pipeline

_TRAINING = "od-qat train, or od-qat run object_detection.legacy.train"
_EVALUATION = "od-qat eval, or od-qat run object_detection.legacy.eval"
_EXPORT = "od-qat export, or od-qat run object_detection.export_inference_graph"
_TFLITE = "od-qat export-tflite, or od-qat run object_detection.export_tflite_ssd_graph"

# Commands that train without quantization -> the commands that do their work with it.
UNABLE = {"object_detection.model_tpu_main": "{}; {}".format(_TRAINING, _EVALUATION)}
# The exporter for TPUs calls refuse_block (see source_changes.py). So do the commands of the TF 2 half in
# trees that od_qat 0.1 patched.
_EXPORTERS = {"object_detection.tpu_exporters.export_saved_model_tpu": "{}; {}".format(_EXPORT, _TFLITE)}


def refuse_command(command: str, config_path: Optional[str]) -> None:
    """Stops a command of UNABLE if its config has the block.

    Args:
      command: name of its module.
      config_path: its --pipeline_config_path; None if it has none.

    Raises:
      ConfigError: in that case.
    """
    if config_path and pipeline.load(config_path).HasField("graph_rewriter"):
        raise _tpu(command, config_path)


def refuse_block(command: str, config_path: str, config_override: str = "") -> None:
    """Stops the exporter for TPUs if its config has the block. It calls this in a patched tree.

    Args:
      command: its name; or one of a tree that an earlier od_qat has patched.
      config_path: its --pipeline_config_path, wherever tf.gfile can read it.
      config_override: text that it merges into the config.

    Raises:
      ConfigError: if the merged config has the block.
    """
    from object_detection.utils import config_util

    layers_proto.extension()  # (registered, so that a block with the extension can be parsed)
    if "graph_rewriter_config" not in config_util.get_configs_from_pipeline_file(
        config_path, config_override
    ):
        return
    fix = "od-qat unpatch, then od-qat patch: the command then quantizes"
    if command in _EXPORTERS:
        fix = "run " + _EXPORTERS[command]
    raise ConfigError(
        "{} ignores the graph_rewriter block".format(command),
        where=config_path,
        found="graph_rewriter { ... }",
        fix=fix,
    )


def _tpu(what: str, where: Optional[str]) -> ConfigError:
    return ConfigError(
        "{} trains on TPUs, without quantization".format(what),
        where=where or "the config",
        found="graph_rewriter { ... }",
        fix="run {}, or drop the block".format(UNABLE["object_detection.model_tpu_main"]),
    )


# A stand-in for a function of the OD API: see source_changes.py and hand_over.py.


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
            from od_qat.messages import graph_rewriter

            graph_rewriter.check(config, config.train_config.num_steps, path)
    return original(run_config, *args, **kwargs)
