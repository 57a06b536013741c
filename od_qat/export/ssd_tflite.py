"""Converts an SSD's checkpoint to detect.tflite, fully quantized and checked, with the JSON beside it.

The graph of the raw heads is frozen, gets its post-processing as one op at its end, and is converted. Nothing
is written before all checks have passed.
"""

import functools
import os
import sys
from typing import Any, Callable, Dict, Iterator, NamedTuple, Optional, Sequence, Union

import numpy as np

from od_qat import checkpoints, files
from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.export import difference, freeze, suppression, tflite, tflite_checks
from od_qat.model_files import description, names
from od_qat.od_api import calibration, graph_transforms, inference, models, pipeline

_HEADS = (names.RAW_BOXES, names.RAW_SCORES)
_OUTPUTS = [names.POST_PROCESS] + ["{}:{}".format(names.POST_PROCESS, i) for i in (1, 2, 3)]


class Options(NamedTuple):
    """What the user asks for; see commands.export_tflite."""

    inference_type: str
    input_type: str
    fast_nms: bool
    max_detections: Optional[int]
    score_threshold: Union[float, str, None]
    ptq: bool
    calibration_images: int


class _Network(NamedTuple):
    """The detector without its post-processing.

    Attributes:
      graph_def: frozen, from the image to the raw boxes and scores.
      anchors: float32 [N, 4], ycenter, xcenter, height, width.
      height, width: size of the image that it takes.
      method: how images are resized to that size.
      mean, std: of the preprocessing, real = (pixel - mean) / std.
      excluded: names of the layers that a rule keeps float.
    """

    graph_def: Any
    anchors: np.ndarray
    height: int
    width: int
    method: str
    mean: float
    std: float
    excluded: frozenset

    def images(self, record_paths: Sequence[str], count: int) -> Iterator[np.ndarray]:
        """The first images of record files as the network takes them, float32 [1, height, width, 3]."""
        return calibration.images(
            record_paths, self.height, self.width, self.method, self.mean, self.std, count
        )


def require_options(options: Options) -> None:
    """Raises ConfigError for types or numbers that cannot be had, before anything is read or built."""
    tflite.require_types(options.inference_type, options.input_type, options.ptq)
    suppression.require_threshold(options.score_threshold)
    if options.max_detections is not None and options.max_detections < 1:
        raise ConfigError(
            "a detector reports one detection at least",
            where="--max_detections",
            found=str(options.max_detections),
            allowed="a whole number from 1",
        )


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
    network = _freeze_network(config, config_path, checkpoint, hook)
    if not options.ptq:
        tflite_checks.require_quantised(
            network.graph_def, checkpoint, options.inference_type, network.excluded
        )
    threshold = _threshold(config, network, options.score_threshold)
    post_process = _post_process(config.model.ssd, options, threshold.value)
    graph_def = tflite.add_post_process(
        network.graph_def,
        *_HEADS,
        network.anchors,
        post_process,
        quantised_input=options.inference_type == "uint8" and not options.ptq,
    )
    model = _convert(graph_def, network, config, options)
    path = os.path.join(output_directory, "detect.tflite")
    _check(model, network, path, options.ptq)
    beside = _describe(path, network, checkpoint, options.input_type, post_process, threshold)
    files.write_together(
        {
            os.path.join(output_directory, "tflite_graph.pb"): graph_def.SerializeToString(),
            path: model,
            description.json_path(path): files.json_text(beside),
        }
    )
    print(threshold, file=sys.stderr)
    return path


def _convert(graph_def, network: _Network, config, options: Options) -> bytes:
    calibration_images = None
    if options.ptq:
        of_training = pipeline.input_files(config.train_input_reader)
        calibration_images = functools.partial(network.images, of_training, options.calibration_images)
    return tflite.convert(
        graph_def,
        names.TFLITE_INPUT,
        [1, network.height, network.width, 3],
        _OUTPUTS,
        options.inference_type,
        network.mean,
        network.std,
        calibration_images,
        options.input_type,
    )


def _freeze_network(config, config_path: str, checkpoint: str, hook: Optional[Callable]) -> _Network:
    height, width = inference.input_size(config.model, config_path)
    excluded = frozenset()
    with tf.Graph().as_default():
        model = models.model_fn(config, is_training=False)()
        anchors = inference.build_raw_heads_graph(model, config.model, height, width)
        mean, std = inference.input_statistics(model, height, width)
        if hook:
            excluded = hook().excluded
        # (The OD API builds this resize from four ops, in which TensorFlow 1.15's converter finds no range.)
        graph_transforms.rewrite_nn_resize_op()
        graph_def = freeze.freeze(
            checkpoint, _HEADS, use_moving_averages=config.eval_config.use_moving_averages
        )
    method = inference.resize_method(config.model)
    return _Network(graph_def, anchors, height, width, method, mean, std, excluded)


def _threshold(config, network: _Network, asked: Union[float, str, None]) -> suppression.Threshold:
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


def _post_process(ssd, options: Options, score_threshold: float) -> tflite.PostProcess:
    nms = ssd.post_processing.batch_non_max_suppression
    coder = ssd.box_coder.faster_rcnn_box_coder
    if ssd.box_coder.WhichOneof("box_coder_oneof") not in (None, "faster_rcnn_box_coder"):
        raise ConfigError(
            "TFLite_Detection_PostProcess decodes one box coder only",
            where="model.ssd.box_coder",
            found=ssd.box_coder.WhichOneof("box_coder_oneof"),
            allowed="faster_rcnn_box_coder",
        )
    # (Trees of early 2019 have neither field.)
    class_agnostic = getattr(nms, "use_class_agnostic_nms", False)
    # TFLite's fast suppression keeps the best class of each box and suppresses across classes. The OD API
    # calls this class-agnostic, with one class for each detection.
    one_class_a_box = class_agnostic and nms.max_classes_per_detection <= 1
    differing = ["soft_nms_sigma"] if getattr(nms, "soft_nms_sigma", 0) else []
    differing += ["use_class_agnostic_nms"] if class_agnostic and not one_class_a_box else []
    for name in differing:
        print(
            "warning: TFLite_Detection_PostProcess has no {}: the .tflite suppresses boxes without it, "
            "od-qat eval and export with it. Fix: evaluate with --override "
            "model.ssd.post_processing.batch_non_max_suppression.{}= to compare".format(name, name),
            file=sys.stderr,
        )
    return tflite.PostProcess(
        num_classes=ssd.num_classes,
        y_scale=coder.y_scale,
        x_scale=coder.x_scale,
        h_scale=coder.height_scale,
        w_scale=coder.width_scale,
        score_threshold=score_threshold,
        iou_threshold=nms.iou_threshold,
        max_detections=options.max_detections or nms.max_total_detections,
        detections_per_class=nms.max_detections_per_class,
        regular_nms=not (options.fast_nms or one_class_a_box),
    )


def _check(model: bytes, network: _Network, path: str, ptq: bool) -> None:
    weights = tflite_checks.count_weights(network.graph_def)
    tflite_checks.check(
        model, weights, path, float_layers=bool(network.excluded), other_bytes=network.anchors.nbytes
    )
    if not ptq:
        found = difference.difference(
            model, network.graph_def, names.TFLITE_INPUT, _HEADS, network.mean, network.std
        )
        difference.warn_if_large(found, path)


def _describe(
    path: str,
    network: _Network,
    checkpoint: str,
    input_type: str,
    post_process: tflite.PostProcess,
    threshold: suppression.Threshold,
) -> Dict[str, Any]:
    shape = [1, network.height, network.width, 3]
    return description.content(
        path,
        inputs=[{"name": names.TFLITE_INPUT, "shape": shape, "dtype": input_type}],
        outputs=[{"name": name, "role": role} for name, role in zip(_OUTPUTS, names.ROLES)],
        preprocessing={
            "resize": {"method": network.method, "height": network.height, "width": network.width},
            "mean": network.mean,
            "std": network.std,
            "channels": "RGB",
        },
        class_id_offset=1,
        checkpoint=os.path.basename(checkpoint),
        global_step=checkpoints.global_step(checkpoint),
        quantized=True,
        max_detections=post_process.max_detections,
        nms=dict(post_process.as_json(), score_threshold_of_config=threshold.of_config),
    )
