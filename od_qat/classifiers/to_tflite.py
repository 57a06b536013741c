"""Converts a classifier's checkpoint to classifier.tflite, fully quantized and checked."""

import functools
import os
from typing import Callable, Iterable, Iterator, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.classifiers import frozen, inputs, preparation
from od_qat.classifiers.frozen import Frozen
from od_qat.classifiers.inputs import Classes, Source
from od_qat.classifiers.networks import Network
from od_qat.classifiers.preparation import Preparation
from od_qat.compat import tf
from od_qat.errors import ExportError
from od_qat.export import difference, input_layer, tflite, tflite_checks, tflite_files
from od_qat.graph.index import op_name
from od_qat.model_files import names
from od_qat.model_files.preprocessing import Preprocessing

NAME = "classifier.tflite"


class Options(NamedTuple):
    """What the user asks for; see commands.export_tflite."""

    inference_type: str
    input_type: str
    ptq: bool
    calibration_images: int
    metadata: bool = False
    form: str = names.INT8

    @property
    def takes_floats(self) -> bool:
        """Whether it is a .tflite with float inputs, which is not fully quantized."""
        return self.ptq and self.form not in names.QUANTIZED_FORMS


def export(
    network: Network,
    hook: Optional[Callable],
    checkpoint: str,
    folder: str,
    options: Options,
    classes: Classes,
    open_source: Callable[[], Source],
    where: str,
) -> str:
    """Writes classifier.tflite, the JSON beside it, and tflite_graph.pb, which it was made from.

    Args:
      network: the network.
      hook: rewrites the default graph for evaluation; None for post-training quantization.
      checkpoint: prefix.
      folder: for the files.
      options: what the user asks for.
      classes: what the outputs mean.
      open_source: gives the images, which calibration needs.
      where: the config, for messages.

    Returns:
      path of the .tflite.

    Raises:
      ConfigError, CheckpointError, ExportError: nothing is written then.
    """
    found = frozen.freeze_network(network, hook, checkpoint, batch=1)
    if not options.ptq:
        tflite_checks.require_quantised(found.graph_def, checkpoint, options.inference_type, found.excluded)
        _require_no_float(found, where)
    prepared = preparation.of_network(network)
    path = os.path.join(folder, NAME)
    if options.takes_floats:
        shape = [1] + list(network.input_shape)
        model = tflite.convert_float(
            found.graph_def, names.CLASSIFIER_INPUT, shape, [found.output], options.form
        )
        tflite_checks.run_once(model, path)
        of_image = None
    else:
        model, found, of_image = _quantized(network, found, prepared, options, open_source, path, where)
    beside = frozen.describe(
        path,
        network,
        found.output,
        classes,
        checkpoint,
        not options.takes_floats,
        prepared,
        "float32" if options.takes_floats else options.input_type,
        of_image,
    )
    labels = classes.names if options.metadata else None
    tflite_files.write(path, found.graph_def, model, beside, labels)
    return path


def _quantized(
    network: Network,
    found: Frozen,
    prepared: Preparation,
    options: Options,
    open_source: Callable[[], Source],
    path: str,
    where: str,
) -> Tuple[bytes, Frozen, Preprocessing]:
    """The bytes of the .tflite, the graph that it was made from, and what makes its image of pixels."""
    of_network = prepared.of_pixels
    images = functools.partial(_images, network, open_source, options.calibration_images)
    if of_network is None:
        of_network = of_image = _of_range(images(), network.channels)
    elif of_network.same_for_all_channels:
        of_image = of_network
    else:
        input_layer.require_int8(options.inference_type, where)
        of_image = input_layer.OF_ALL_CHANNELS
        graph_def = input_layer.put_in_front(
            found.graph_def, names.CLASSIFIER_INPUT, of_network, not options.ptq
        )
        found = found._replace(graph_def=graph_def)
    mean, std = of_image.mean_and_std
    model = tflite.convert(
        found.graph_def,
        names.CLASSIFIER_INPUT,
        [1] + list(network.input_shape),
        [found.output],
        options.inference_type,
        mean,
        std,
        (lambda: (_given(image, of_network, of_image) for image in images())) if options.ptq else None,
        options.input_type,
        output_type=options.input_type,
        per_channel=options.form != names.PER_TENSOR,
    )
    weights = tflite_checks.count_weights(found.graph_def)
    tflite_checks.check(model, weights, path, float_layers=bool(found.excluded))
    if not options.ptq:
        _warn_of_difference(model, found, mean, std, path)
    return model, found, of_image


def _require_no_float(found: Frozen, where: str) -> None:
    """Raises for what TFLite computes in float only, local response normalisation for one."""
    left = {op: reason for op, reason in found.stays_float.items() if op not in found.excluded}
    if left:
        raise ExportError(
            "parts of the network stay float",
            where=where,
            found="; ".join("{}: {}".format(*one) for one in sorted(left.items())[:3]),
            allowed="a network that is quantized throughout",
            fix="choose another network.name, or use the frozen graph of od-qat export",
        )


def _images(network: Network, open_source: Callable[[], Source], count: int) -> Iterator[np.ndarray]:
    """Images of a source, preprocessed, float32 [1, size, size, channels].

    They are taken at equal distances from all of it, since many have their images class by class.
    """
    source = open_source()
    every = max(1, source.count // count)
    with tf.Graph().as_default():
        images, _ = inputs.batches(source, network, 1, is_training=False, every=every)()
        with tf.Session() as session:
            session.run(tf.tables_initializer())
            for _ in range(min(count, source.count)):
                yield session.run(images)


def _of_range(images: Iterable[np.ndarray], channels: int) -> Preprocessing:
    """For preprocessing that depends on the whole image: the numbers of such images as pixels, 0 to 255."""
    ends = [(float(image.min()), float(image.max())) for image in images]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    return Preprocessing(np.eye(channels) * (high - low) / 255.0, np.full(channels, low))


def _given(image: np.ndarray, of_network: Preprocessing, of_image: Preprocessing) -> np.ndarray:
    """What the .tflite takes for a preprocessed image."""
    if of_image is of_network:
        return image
    pixels = (image - of_network.black) @ np.linalg.inv(of_network.weights)
    return (pixels @ of_image.weights + of_image.black).astype(np.float32)


def _warn_of_difference(model: bytes, found: Frozen, mean: float, std: float, path: str) -> None:
    """Compares the logits with those of the graph."""
    nodes = {node.name: node for node in found.graph_def.node}
    node = nodes[found.output]
    while node.op != "Softmax":
        node = nodes[op_name(node.input[0])]
    logits = [op_name(node.input[0])]
    found_difference = difference.difference(
        model, found.graph_def, names.CLASSIFIER_INPUT, logits, mean, std, last="SOFTMAX"
    )
    difference.warn_if_large(found_difference, path)
