"""Checks before a conversion that the graph is quantized, and after it that the .tflite is."""

import re
from typing import Any, Collection, Dict, FrozenSet, List, NamedTuple, Set

import numpy as np

from od_qat.compat import tf
from od_qat.errors import ExportError
from od_qat.graph.index import op_name
from od_qat.model_files import interpreter
from od_qat.model_files.names import POST_PROCESS
from od_qat.quiet import native_stderr_silenced
from od_qat.rewrite import policy
from od_qat.rewrite.folding import NORM_AS_LAYER

# The TFLite kernels of these ops assume that all their tensors have the same scale. TensorFlow 1.15's
# converter does not make them so.
_COMPARES_INTEGERS = frozenset(["MAXIMUM", "MINIMUM"])
# The ops with weights.
_LAYERS = frozenset(["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV"])


def require_quantised(
    graph_def, where: str, inference_type: str, excluded: Collection[str] = frozenset()
) -> None:
    """Raises unless every op with weights reads fake-quantized weights that the inference type can hold.

    The converter's own message for such a graph is a page that ends in 'lacking min/max data'.

    Args:
      graph_def: frozen GraphDef.
      where: the checkpoint, for the message.
      inference_type: 'int8' or 'uint8'.
      excluded: ops that stay float because a rule of the config says so.

    Raises:
      ExportError: with the name of an op.
    """
    nodes = {node.name: node for node in graph_def.node}
    weighted = [
        node
        for node in graph_def.node
        if node.op in policy.WEIGHTED
        and node.name not in excluded
        and node.name.rpartition("/")[2] != NORM_AS_LAYER
    ]
    unquantised = [
        node.name for node in weighted if _producer(nodes, node.input[1]).op not in policy.FAKE_QUANT
    ]
    if unquantised:
        raise ExportError(
            "the graph is not quantized",
            where=where,
            found="{} of {} layers read float weights, {} first".format(
                len(unquantised), len(weighted), unquantised[0]
            ),
            fix="train and export with a graph_rewriter block in the config, or use --ptq for "
            "post-training quantization",
        )
    for node in graph_def.node:
        if node.op in policy.FAKE_QUANT and node.attr["num_bits"].i != 8:
            raise ExportError(
                "TFLite takes 8 bits only",
                where=node.name,
                found="{} bits".format(node.attr["num_bits"].i),
                allowed="weight_bits: 8, activation_bits: 8",
            )
    for node in weighted:
        fake_quant = _producer(nodes, node.input[1])
        if inference_type == "int8":
            _require_symmetric(nodes, fake_quant, where)
        elif fake_quant.op == policy.FAKE_QUANT_PER_CHANNEL:
            # The converter would write them, but TFLite's kernels refuse to run them.
            raise ExportError(
                "{} has no per-channel weights".format(inference_type),
                where="{}, {}".format(where, fake_quant.name),
                found="a range for each output channel",
                allowed="--inference_type=int8",
                fix="export int8, or train with per_channel: false",
            )


def _require_symmetric(nodes: Dict[str, Any], fake_quant, where: str) -> None:
    """Raises ExportError unless the range is symmetric, or that of each channel if there are several."""
    low, high = (
        tf.make_ndarray(_producer(nodes, name).attr["value"].tensor).reshape(-1)
        for name in fake_quant.input[1:3]
    )
    wrong = np.flatnonzero(np.abs(low + high) > 1e-3 * np.abs(high - low))
    if wrong.size:
        raise ExportError(
            "int8 takes weights with symmetric ranges only",
            where="{}, {}{}".format(
                where, fake_quant.name, ", channel {}".format(wrong[0]) if low.size > 1 else ""
            ),
            found="[{:.4g}, {:.4g}]".format(low[wrong[0]], high[wrong[0]]),
            fix="export with --inference_type=uint8, or train with placement 'full'",
        )


def _producer(nodes: Dict[str, Any], name: str):
    node = nodes[op_name(name)]
    while node.op in ("Identity", "Reshape"):
        node = nodes[op_name(node.input[0])]
    return node


class Inspection(NamedTuple):
    """The contents of a .tflite.

    Attributes:
      ops: op name -> count.
      float_tensors: names of float tensors that an op before the post-processing makes or reads.
      size: bytes.
      unequal: names of the outputs of ops that compare integers whose scales differ.
      after_layers: names of the ops behind the last layers that make or read floats, with `ends_in_layers`.
    """

    ops: Dict[str, int]
    float_tensors: List[str]
    size: int
    unequal: List[str] = []
    after_layers: FrozenSet[str] = frozenset()


def inspect(model: bytes, ends_in_layers: bool = False) -> Inspection:
    """Reads a .tflite's ops and tensors through the interpreter.

    Args:
      model: the bytes of the .tflite.
      ends_in_layers: whether the network ends with its last layers, and all ops that lead to none of its
        layers are post-processing. Otherwise TFLite_Detection_PostProcess is.

    Raises:
      ExportError: if the interpreter refuses it.
    """
    opened = interpreter.without_delegates(model)
    try:
        opened.allocate_tensors()
    except RuntimeError as error:
        raise ExportError(
            "the interpreter refuses the .tflite that the converter made",
            found=str(error).strip(),
            fix="leave the op that it names out of the model, or convert with another TensorFlow",
        ) from error
    details = {d["index"]: d for d in opened.get_tensor_details()}
    ops: Dict[str, int] = {}
    floats: List[str] = []
    unequal: List[str] = []
    operations = opened._get_ops_details()
    to_layers = _leading_to_layers(operations) if ends_in_layers else None
    after_layers = set()
    for operation in operations:
        name = operation["op_name"]
        ops[name] = ops.get(name, 0) + 1
        if name in (POST_PROCESS, "DEQUANTIZE"):
            continue
        if to_layers is not None and name not in _LAYERS and to_layers.isdisjoint(operation["outputs"]):
            read = [i for i in list(operation["inputs"]) + list(operation["outputs"]) if i in details]
            if any(details[index]["dtype"] == np.float32 for index in read):
                after_layers.add(name)
            continue
        for index in list(operation["inputs"]) + list(operation["outputs"]):
            if index in details and details[index]["dtype"] == np.float32 and name != "QUANTIZE":
                floats.append(details[index]["name"])
        tensors = [details[i] for i in list(operation["inputs"]) + list(operation["outputs"]) if i in details]
        if name in _COMPARES_INTEGERS and len({tensor["quantization"] for tensor in tensors}) > 1:
            unequal.append(tensors[-1]["name"])
    return Inspection(ops, sorted(set(floats)), len(model), unequal, frozenset(after_layers))


def _leading_to_layers(operations: List[Dict[str, Any]]) -> Set[int]:
    """Returns the indices of the tensors that lead to an op with weights."""
    found: Set[int] = set()
    for operation in reversed(operations):
        if operation["op_name"] in _LAYERS or not found.isdisjoint(operation["outputs"]):
            found.update(operation["inputs"])
    return found


def check(
    model: bytes,
    weight_count: int,
    where: str,
    float_layers: bool = False,
    other_bytes: int = 0,
    ends_in_layers: bool = False,
) -> Inspection:
    """Raises unless a .tflite is fully quantized up to its post-processing, is small, and runs.

    Args:
      model: the bytes of the .tflite.
      weight_count: number of weights of the network; one byte each is expected.
      where: its path, for the message.
      float_layers: whether the config's rules leave layers float, which allows float tensors and four bytes
        for each weight.
      other_bytes: size of the anchors, which the file holds beside the network.
      ends_in_layers: where the post-processing begins; see `inspect`.

    Returns:
      the Inspection of the .tflite.

    Raises:
      ExportError: if one of these does not hold.
    """
    inspection = inspect(model, ends_in_layers)
    fake = {name: count for name, count in inspection.ops.items() if "FAKE_QUANT" in name}
    if fake:
        raise ExportError("fake quants are left in the .tflite", where=where, found=str(fake))
    if inspection.float_tensors and not float_layers:
        raise ExportError(
            "the .tflite is not fully quantized",
            where=where,
            found="{} float tensors, {} first".format(
                len(inspection.float_tensors), inspection.float_tensors[0]
            ),
            fix="their ranges were not trained: the rewrite's report lists what stays float between layers, "
            "and an op after the last layer may have no range, so let the network end in a layer",
        )
    if inspection.unequal and not inspection.float_tensors:
        raise ExportError(
            "the converter compares quantized numbers of different scales, so that the .tflite is wrong",
            where=where,
            found="{} such ops, {} first".format(len(inspection.unequal), inspection.unequal[0]),
            fix="convert with TensorFlow 2, or have no {} in the network".format(
                " or ".join(sorted(_COMPARES_INTEGERS))
            ),
        )
    # One byte a weight, four a bias; the format itself is the rest.
    if inspection.size > (4 if float_layers else 2) * weight_count + other_bytes + 200000:
        raise ExportError(
            "the .tflite is too large for 8 bits",
            where=where,
            found="{:,} bytes for {:,} weights".format(inspection.size, weight_count),
        )
    run_once(model, where)
    return inspection


def run_once(model: bytes, where: str) -> None:
    """Runs one inference on zeros, with the delegates that a user would get.

    Raises:
      ExportError: if it fails.
    """
    module = interpreter.module()
    try:
        with native_stderr_silenced():
            opened = module.Interpreter(model_content=model)
            opened.allocate_tensors()
        for detail in opened.get_input_details():
            opened.set_tensor(detail["index"], np.zeros(detail["shape"], detail["dtype"]))
        opened.invoke()
    except (RuntimeError, ValueError) as error:
        raise ExportError(
            "the .tflite does not run",
            where=where,
            found=reason_of(str(error)),
            fix="look at the training's loss, and at the ranges in its quant_ranges.json: if the training "
            "has diverged, they are too large for the kernels. If not, try another version of TensorFlow",
        ) from error


def count_weights(graph_def) -> int:
    """The number of float32 values in the constants of a GraphDef."""
    total = 0
    for node in graph_def.node:
        if node.op == "Const" and node.attr["dtype"].type == tf.float32.as_datatype_enum:
            size = 1
            for dimension in node.attr["value"].tensor.tensor_shape.dim:
                size *= dimension.size
            total += size
    return total


def reason_of(text: str) -> str:
    """The reason in a converter's message: its last line, or the one with which TensorFlow 1.15's aborted."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    fatal = [line.partition("] ")[2] for line in lines if re.search(r": F (\./)?tensorflow/", line)]
    return (fatal or lines or ["no message"])[-1][:300]
