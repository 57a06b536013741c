"""Converts a CenterNet's checkpoint to detect.tflite: int8 up to its heads, and float behind them.

What follows the heads (the peaks of the heat map, the best of them, their boxes) is upstream's, in ops of
TensorFlow. It needs the precision of floats, as a box is a place on the heat map plus an offset. The JSON
beside the model names the ops.
"""

import copy
import os
import sys
from typing import Any, Callable, Dict, Optional

from od_qat.errors import ConfigError
from od_qat.export import difference, tflite_checks, tflite_files, tflite_network
from od_qat.export.network import Network, freeze_network, with_same_channels
from od_qat.export.tflite_network import Options
from od_qat.model_files import names
from od_qat.od_api import inference

_OUTPUTS = [names.OF_ROLE[role] for role in names.ROLES]


def export(
    config: Any,
    config_path: str,
    checkpoint: str,
    output_directory: str,
    options: Options,
    hook: Optional[Callable],
) -> str:
    """Writes detect.tflite, detect.json and tflite_graph.pb, and says which ops are float.

    Args:
      config: TrainEvalPipelineConfig of a CenterNet.
      config_path: where it was read, for messages.
      checkpoint: prefix of the checkpoint.
      output_directory: folder for the files.
      options: what the user asks for.
      hook: rewrites the default graph for evaluation.

    Returns:
      path of the .tflite.

    Raises:
      ConfigError, CheckpointError, ExportError: nothing is written then.
    """
    _refuse(options)
    config = copy.deepcopy(config)
    center = config.model.center_net.object_center_params
    if options.max_detections is not None:
        center.max_box_predictions = options.max_detections
    build = inference.build_center_net_graph
    network = freeze_network(config, config_path, checkpoint, hook, _OUTPUTS, build)
    network = with_same_channels(network, options.inference_type, config_path, hook is not None)
    tflite_checks.require_quantised(network.graph_def, checkpoint, options.inference_type, network.excluded)
    model = tflite_network.convert(network.graph_def, network, config, options, _OUTPUTS)
    path = os.path.join(output_directory, "detect.tflite")
    weights = tflite_checks.count_weights(network.graph_def)
    inspection = tflite_checks.check(
        model, weights, path, float_layers=bool(network.excluded), ends_in_layers=True
    )
    difference.warn_if_large(_difference(model, network), path)
    floats = sorted(inspection.after_layers)
    beside = tflite_network.describe(
        path, network, checkpoint, options.input_type, _OUTPUTS, center.max_box_predictions
    )
    beside["float_post_processing"] = floats
    tflite_files.write(path, network.graph_def, model, beside, options.labels)
    text = "int8 up to the heads; what finds the best {} peaks behind them is float: {}"
    print(text.format(center.max_box_predictions, ", ".join(floats)), file=sys.stderr)
    return path


def _refuse(options: Options) -> None:
    """Raises ConfigError for what a CenterNet does not have."""
    for flag, asked, why in (
        ("--ptq", options.ptq, "would quantize the places of its boxes too, to 1 of 256 of the image's side"),
        ("--inference_type", options.inference_type != "int8", "has a .tflite with int8 heads only"),
        ("--fast_nms", options.fast_nms, "has no suppression; it takes peaks"),
        (
            "--score_threshold",
            options.score_threshold is not None,
            "has no threshold; it takes the best peaks",
        ),
    ):
        if asked:
            raise ConfigError(
                "CenterNet {}".format(why), where=flag, found="given", fix="leave {} out".format(flag)
            )


def _difference(model: bytes, network: Network) -> Dict[str, float]:
    """Runs the .tflite and its graph on a picture of noise; see difference.difference.

    Peaks of the same height may come in another order, so only their scores are compared.
    """
    scores = names.OF_ROLE["scores"]
    found, pixels = difference.outputs(model)
    (expected,), (rounded,) = difference.of_graph(
        network.graph_def, names.TFLITE_INPUT, [scores], pixels, network.mean, network.std
    )
    return {scores: difference.relative(found[_OUTPUTS.index(scores)], expected, rounded)}
