"""Puts a layer in front of a frozen network that preprocesses each channel of the image in its own way.

The input of a quantized network has one mean and one standard deviation. Some feature extractors have others
for each channel (ResNet's means, EfficientNet's means and deviations) or want the channels in another order
(CenterNet's). With this layer the network takes images of one mean and deviation, MEAN and STD, as MobileNets
do.
"""

from typing import Sequence

import numpy as np

from od_qat.compat import tf
from od_qat.errors import ExportError
from od_qat.model_files.preprocessing import Preprocessing
from od_qat.rewrite import policy
from od_qat.rewrite.folding import NORM_AS_LAYER

MEAN = STD = 127.5
_SCOPE = "preprocessing/"
# What the network with the layer has in front of it.
OF_ALL_CHANNELS = Preprocessing(np.eye(3) / STD, np.full(3, -MEAN / STD))


def require_int8(inference_type: str, where: str) -> None:
    """Raises unless the network is an int8 one, whose layers have a scale for each channel.

    Args:
      inference_type: of the network.
      where: the config, for the message.

    Raises:
      ExportError: for a uint8 network.
    """
    if inference_type != "int8":
        raise ExportError(
            "the model's preprocessing differs by channel, which only an int8 network can have",
            where=where,
            found="--inference_type={}".format(inference_type),
            allowed="--inference_type=int8",
        )


def put_in_front(graph_def, input_name: str, preprocessing: Preprocessing, quantised: bool):
    """Returns a frozen network that takes (pixel - MEAN) / STD and preprocesses it.

    The layer is a 1x1 convolution and a bias. An int8 layer has a scale for each output channel, so weights
    of which one for each channel is not 0 are exact. Its output is rounded to steps of the range that it has
    for pixels from 0 to 255.

    Args:
      graph_def: frozen GraphDef, which takes the preprocessed image.
      input_name: op name of the input, a placeholder; that of the result has the same name.
      preprocessing: of the model.
      quantised: whether the layer's output gets a fake quant.
    """
    result, output = tf.GraphDef(), _SCOPE + ("quantised" if quantised else "add")
    result.CopyFrom(graph_def)
    for node in result.node:
        for position, source in enumerate(node.input):
            if source in (input_name, input_name + ":0"):
                node.input[position] = output
    weights, black = preprocessing.weights, preprocessing.black
    _add_constant(result, "weights", (STD * weights)[None, None])
    _add_constant(result, "bias", MEAN * weights.sum(0) + black)
    layer = _add(result, "Conv2D", _SCOPE + NORM_AS_LAYER, [input_name, _SCOPE + "weights"])
    layer.attr["strides"].list.i.extend([1, 1, 1, 1])
    layer.attr["padding"].s = b"VALID"
    _add(result, "BiasAdd", _SCOPE + "add", [layer.name, _SCOPE + "bias"])
    if quantised:
        low, high = preprocessing.ends
        _add_constant(result, "low", min(low, 0.0))
        _add_constant(result, "high", max(high, 0.0))
        inputs = [_SCOPE + name for name in ("add", "low", "high")]
        fake_quant = _add(result, policy.FAKE_QUANT_PER_TENSOR, output, inputs, typed=False)
        fake_quant.attr["num_bits"].i = 8
    return result


def _add(graph_def, kind: str, name: str, inputs: Sequence[str], typed: bool = True):
    node = graph_def.node.add()
    node.name, node.op = name, kind
    node.input.extend(inputs)
    if typed:
        node.attr["T"].type = tf.float32.as_datatype_enum
    return node


def _add_constant(graph_def, name: str, value) -> None:
    node = _add(graph_def, "Const", _SCOPE + name, [], typed=False)
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(np.asarray(value, np.float32)))
