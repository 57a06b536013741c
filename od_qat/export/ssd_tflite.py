"""Converts an SSD's checkpoint to detect.tflite, fully quantized and checked, with the JSON beside it.

The graph of the raw heads is frozen, gets its post-processing as one op at its end, and is converted. Nothing
is written before all checks have passed.
"""

import os
import sys
from typing import Any, Callable, Optional, Union

from od_qat.compat import tf
from od_qat.export import difference, suppression, tflite, tflite_checks, tflite_files, tflite_network
from od_qat.export.network import Network, freeze_network, with_same_channels
from od_qat.export.ssd_network import HEADS, post_process_of
from od_qat.export.tflite_network import Options
from od_qat.model_files import names
from od_qat.od_api import pipeline

_OUTPUTS = [names.POST_PROCESS] + ["{}:{}".format(names.POST_PROCESS, i) for i in (1, 2, 3)]


def export(
    config: Any,
    config_path: str,
    checkpoint: str,
    output_directory: str,
    options: Options,
    hook: Optional[Callable],
) -> str:
    """Writes detect.tflite, detect.json and tflite_graph.pb, and says which score threshold they have.

    Args:
      config: TrainEvalPipelineConfig of an SSD.
      config_path: where it was read, for messages.
      checkpoint: prefix of the checkpoint.
      output_directory: folder for the files.
      options: what the user asks for.
      hook: rewrites the default graph for evaluation; None for post-training quantization.

    Returns:
      path of the .tflite.

    Raises:
      ConfigError, CheckpointError, ExportError: nothing is written then.
    """
    network = freeze_network(config, config_path, checkpoint, hook, HEADS)
    network = with_same_channels(network, options.inference_type, config_path, hook is not None)
    if not options.ptq:
        tflite_checks.require_quantised(
            network.graph_def, checkpoint, options.inference_type, network.excluded
        )
    threshold = _threshold(config, network, options.score_threshold)
    post_process = post_process_of(
        config.model.ssd, threshold.value, options.max_detections, options.fast_nms
    )
    graph_def = tflite.add_post_process(
        network.graph_def,
        *HEADS,
        network.anchors,
        post_process,
        quantised_input=options.inference_type == "uint8" and not options.ptq,
    )
    model = tflite_network.convert(graph_def, network, config, options, _OUTPUTS)
    path = os.path.join(output_directory, "detect.tflite")
    _check(model, network, path, options)
    beside = tflite_network.describe(
        path,
        network,
        checkpoint,
        "float32" if options.takes_floats else options.input_type,
        _OUTPUTS,
        post_process.max_detections,
        nms=dict(post_process.as_json(), score_threshold_of_config=threshold.of_config),
    )
    tflite_files.write(path, graph_def, model, beside, options.labels)
    warning = suppression.warning_of_threads(post_process.regular_nms, post_process.num_classes)
    if warning:
        print(warning, file=sys.stderr)
    print(threshold, file=sys.stderr)
    return path


def _threshold(config, network: Network, asked: Union[float, str, None]) -> suppression.Threshold:
    of_config = config.model.ssd.post_processing.batch_non_max_suppression.score_threshold
    best_scores = ()
    if asked is None and of_config < suppression.LARGEST:
        images = network.images(_records_there(config), suppression.IMAGES)
        best_scores = suppression.best_scores(network.graph_def, names.TFLITE_INPUT, names.RAW_SCORES, images)
    return suppression.choose(of_config, asked, best_scores)


def _records_there(config):
    """The record files of the config's evaluation, or of its training, that can be read here."""
    for reader in list(config.eval_input_reader)[:1] + [config.train_input_reader]:
        if reader.tf_record_input_reader.input_path:
            found = [path for path in pipeline.input_files(reader) if tf.gfile.Exists(path)]
            if found:
                return found
    return []


def _check(model: bytes, network: Network, path: str, options: Options) -> None:
    if options.takes_floats:
        tflite_checks.run_once(model, path)
        return
    weights = tflite_checks.count_weights(network.graph_def)
    tflite_checks.check(
        model, weights, path, float_layers=bool(network.excluded), other_bytes=network.anchors.nbytes
    )
    if not options.ptq:
        found = difference.difference(
            model, network.graph_def, names.TFLITE_INPUT, HEADS, network.mean, network.std
        )
        difference.warn_if_large(found, path)
