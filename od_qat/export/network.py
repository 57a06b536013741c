"""A detector, rewritten and frozen, with what is known of the images that it takes."""

from typing import Any, Callable, Iterator, NamedTuple, Optional, Sequence

import numpy as np

from od_qat.compat import tf
from od_qat.export import freeze, input_layer
from od_qat.model_files import names
from od_qat.model_files.preprocessing import Preprocessing
from od_qat.od_api import calibration, graph_transforms, inference, models


class Network(NamedTuple):
    """A detector on its way to a file.

    Attributes:
      graph_def: frozen, from the preprocessed image to the outputs that it was built with.
      anchors: float32 [N, 4], ycenter, xcenter, height, width, of an SSD; else None.
      height, width: size of the image that it takes.
      method: how images are resized to that size.
      preprocessing: from pixels to the image that it takes.
      excluded: names of the layers that a rule keeps float.
    """

    graph_def: Any
    anchors: Optional[np.ndarray]
    height: int
    width: int
    method: str
    preprocessing: Preprocessing
    excluded: frozenset

    @property
    def mean(self) -> float:
        """Of the preprocessing, real = (pixel - mean) / std, if it is the same for all channels."""
        return self.preprocessing.mean_and_std[0]

    @property
    def std(self) -> float:
        """See `mean`."""
        return self.preprocessing.mean_and_std[1]

    def images(self, record_paths: Sequence[str], count: int) -> Iterator[np.ndarray]:
        """The first images of record files as the network takes them, float32 [1, height, width, 3]."""
        return calibration.images(
            record_paths, self.height, self.width, self.method, self.mean, self.std, count
        )


def freeze_network(
    config,
    where: str,
    checkpoint: str,
    hook: Optional[Callable],
    outputs: Sequence[str],
    build: Callable = inference.build_raw_heads_graph,
) -> Network:
    """Builds the graph of a detector, rewrites it, and freezes it.

    Args:
      config: TrainEvalPipelineConfig.
      where: how messages call the config.
      checkpoint: prefix of the checkpoint.
      hook: rewrites the default graph for evaluation; None for a float network.
      outputs: op names.
      build: makes the default graph, of a model, its config, and the height and width of the image, which is
        TFLITE_INPUT; returns the anchors of an SSD, else None. The default is for the raw heads of an SSD.

    Raises:
      ConfigError, CheckpointError, ExportError: see inference.input_size and freeze.freeze.
    """
    height, width = inference.input_size(config.model, where)
    excluded = frozenset()
    with tf.Graph().as_default():
        model = models.model_fn(config, is_training=False)()
        anchors = build(model, config.model, height, width)
        preprocessing = inference.preprocessing_of(model, height, width)
        if hook:
            excluded = hook().excluded
        # (The OD API builds this resize from four ops, in which TensorFlow 1.15's converter finds no range.)
        graph_transforms.rewrite_nn_resize_op()
        graph_def = freeze.freeze(
            checkpoint, outputs, use_moving_averages=config.eval_config.use_moving_averages
        )
    method = inference.resize_method(config.model)
    return Network(graph_def, anchors, height, width, method, preprocessing, excluded)


def with_same_channels(network: Network, inference_type: str, where: str, quantised: bool) -> Network:
    """Returns a network whose preprocessing is the same for all channels: the given one if it is already.

    Args:
      network: a frozen network.
      inference_type: of the .tflite.
      where: the config, for the message.
      quantised: whether the network has fake quants.

    Raises:
      ExportError: if it is not, and is to be a uint8 network.
    """
    if network.preprocessing.same_for_all_channels:
        return network
    input_layer.require_int8(inference_type, where)
    own = network.preprocessing
    graph_def = input_layer.put_in_front(network.graph_def, names.TFLITE_INPUT, own, quantised)
    return network._replace(graph_def=graph_def, preprocessing=input_layer.OF_ALL_CHANNELS)
