"""Checks of sizes, dimensions, counts and options; see rules.CHECKS, and of_numbers for what a check is."""

from typing import Any, Dict, List, Optional

import numpy as np

from od_qat.model_files.tflite_graph import Op, TfliteGraph
from od_qat.targets.tensors import all_named, every, named

# The options that say along which dimension an op works, and the inputs that do.
_AXIS_OPTION = {"CONCATENATION": "axis", "PACK": "axis", "UNPACK": "axis", "GATHER": "axis", "SOFTMAX": None}
_AXIS_INPUT = {"SPLIT": 0, "SPLIT_V": 2}
# (Behind a reduction's data.)
_OTHERS_AXIS_INPUT = 1
_PADDINGS = ("PAD", "PADV2", "MIRROR_PAD")
_ACTIVATIONS = ("NONE", "RELU", "RELU_N1_TO_1", "RELU6", "TANH", "SIGN_BIT")
_WEIGHTS_FORMATS = ("DEFAULT", "SHUFFLED4x16INT8")


def _camel(name: str) -> str:
    first, *more = name.split("_")
    return first + "".join(word.capitalize() for word in more)


def _option(op: Op, name: str) -> Any:
    """An option by its name in the schema, as 'half_pixel_centers'; None if the op has none."""
    value = op.options.get(_camel(name))
    if name == "weights_format" and value is not None and 0 <= value < len(_WEIGHTS_FORMATS):
        return _WEIGHTS_FORMATS[value]
    return value


def _fused(op: Op) -> str:
    number = op.options.get("fusedActivationFunction", 0)
    return _ACTIVATIONS[number] if 0 <= number < len(_ACTIVATIONS) else str(number)


def fused_activation(graph: TfliteGraph, op: Op, allowed: List[str]) -> Optional[str]:
    """Which activation may be fused."""
    return None if _fused(op) in allowed else "a fused {}".format(_fused(op))


def no_fused_activation(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """None may be."""
    return fused_activation(graph, op, ["NONE"])


def same_dilation(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """One dilation in both directions."""
    height, width = op.options.get("dilationHFactor", 1), op.options.get("dilationWFactor", 1)
    return None if height == width else "dilation {}x{}".format(height, width)


def max_inputs(graph: TfliteGraph, op: Op, most: int) -> Optional[str]:
    """At most so many inputs."""
    return "{} inputs".format(len(op.inputs)) if len(op.inputs) > most else None


def min_inputs(graph: TfliteGraph, op: Op, least: int) -> Optional[str]:
    """At least so many inputs."""
    return "{} inputs".format(len(op.inputs)) if len(op.inputs) < least else None


def input_count(graph: TfliteGraph, op: Op, count: int) -> Optional[str]:
    """So many inputs."""
    return "{} inputs".format(len(op.inputs)) if len(op.inputs) != count else None


def max_outputs(graph: TfliteGraph, op: Op, most: int) -> Optional[str]:
    """At most so many outputs."""
    return "{} outputs".format(len(op.outputs)) if len(op.outputs) > most else None


def min_outputs(graph: TfliteGraph, op: Op, least: int) -> Optional[str]:
    """At least so many outputs."""
    return "{} outputs".format(len(op.outputs)) if len(op.outputs) < least else None


def has_input(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Optional inputs that have to be there."""
    missing = [name for name in names if not named(graph, op, name)]
    return "no {}".format(", ".join(missing)) if missing else None


def _axes(graph: TfliteGraph, op: Op) -> Optional[List[int]]:
    """The dimensions that an op works along, from 0; None if the file does not say."""
    data = named(graph, op, "input1" if op.type == "SPLIT" else "input0")
    dimensions = len(data[0].shape) if data else 0
    if op.type in _PADDINGS:
        padding = named(graph, op, "input1")
        if not padding or padding[0].data is None:
            return None
        return [int(row) for row in np.flatnonzero(padding[0].value().any(axis=1))]
    if op.type in _AXIS_OPTION:
        found = [op.options.get(_AXIS_OPTION[op.type] or "", -1)]
        dimensions += op.type == "PACK"
    else:
        given = named(graph, op, "input{}".format(_AXIS_INPUT.get(op.type, _OTHERS_AXIS_INPUT)))
        if not given or given[0].data is None or given[0].dtype not in ("int32", "int64"):
            return None
        found = [int(value) for value in given[0].value().reshape(-1)]
    return sorted(axis + dimensions if axis < 0 else axis for axis in found)


def axis_is_not_batch(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Not along the batch."""
    found = _axes(graph, op)
    return "dimensions {}".format(found) if found is not None and 0 in found else None


def axis_exists(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Along a dimension that is there."""
    found = _axes(graph, op)
    most = max([len(tensor.shape) for tensor in named(graph, op, "inputs")] or [0])
    return "dimensions {}".format(found) if found is not None and max(found or [0]) >= most else None


def max_axes(graph: TfliteGraph, op: Op, most: int) -> Optional[str]:
    """Along so many dimensions."""
    found = _axes(graph, op)
    return "dimensions {}".format(found) if found is not None and len(found) > most else None


def last_axis_multiple_of(graph: TfliteGraph, op: Op, factor: int) -> Optional[str]:
    """Over the last dimension only if its size is a multiple."""
    found, data = _axes(graph, op), named(graph, op, "input0")
    if not found or not data or found[-1] != len(data[0].shape) - 1 or data[0].shape[-1] % factor == 0:
        return None
    return "{} is {}".format(data[0].name, list(data[0].shape))


def zero_padding_on_axes(graph: TfliteGraph, op: Op, without: List[int]) -> Optional[str]:
    """No padding along some dimensions."""
    found = _axes(graph, op)
    return "dimensions {}".format(found) if found is not None and set(found) & set(without) else None


def _data(graph: TfliteGraph, op: Op) -> List[Any]:
    """The tensors that are computed."""
    return [tensor for tensor in every(graph, op) if tensor.data is None]


def static_shapes(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Sizes that are fixed."""
    for tensor in every(graph, op):
        if any(size < 0 for size in tensor.shape):
            return "{} is {}".format(tensor.name, list(tensor.shape))
    return None


def max_dimensions(graph: TfliteGraph, op: Op, most: int) -> Optional[str]:
    """At most so many dimensions."""
    for tensor in every(graph, op):
        if len(tensor.shape) > most:
            return "{} has {} dimensions".format(tensor.name, len(tensor.shape))
    return None


def min_dimensions(graph: TfliteGraph, op: Op, least: int) -> Optional[str]:
    """At least so many dimensions."""
    for tensor in _data(graph, op):
        if len(tensor.shape) < least:
            return "{} has {} dimensions".format(tensor.name, len(tensor.shape))
    return None


def three_innermost(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Only the last three dimensions above 1."""
    for tensor in _data(graph, op):
        if any(size > 1 for size in tensor.shape[:-3]):
            return "{} is {}".format(tensor.name, list(tensor.shape))
    return None


def one_dimensional(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Only the last dimension above 1."""
    for tensor in all_named(graph, op, names):
        if any(size > 1 for size in tensor.shape[:-1]):
            return "{} is {}".format(tensor.name, list(tensor.shape))
    return None


def leading_ones(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """All dimensions of 1 in front of the others."""
    for tensor in all_named(graph, op, names):
        large = [size > 1 for size in tensor.shape]
        if large != sorted(large):
            return "{} is {}".format(tensor.name, list(tensor.shape))
    return None


def max_last_dimension(graph: TfliteGraph, op: Op, most: int) -> Optional[str]:
    """A last dimension that is not too large."""
    for tensor in named(graph, op, "input0"):
        if tensor.shape and tensor.shape[-1] > most:
            return "{} is {}".format(tensor.name, list(tensor.shape))
    return None


def batch_is_one(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """One image."""
    for tensor in named(graph, op, "input0"):
        if tensor.shape and tensor.shape[0] != 1:
            return "{} is {}".format(tensor.name, list(tensor.shape))
    return None


def depth_multiplier_divides_outputs(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """As many outputs for each channel."""
    multiplier, channels = op.options.get("depthMultiplier", 1), named(graph, op, "output0")[0].shape[-1]
    return (
        None
        if multiplier and channels % multiplier == 0
        else "{} for {} channels".format(multiplier, channels)
    )


def divisible_by_block(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Sizes that are multiples of the block."""
    block, shape = op.options.get("blockSize", 1) or 1, named(graph, op, "input0")[0].shape
    return None if not any(size % block for size in shape[1:3]) else "{}, block {}".format(list(shape), block)


def stride_at_most_filter(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """A window that leaves nothing out."""
    for side in ("Height", "Width"):
        stride, size = op.options.get("stride" + side[0], 1), op.options.get("filter" + side, 1)
        if stride > size:
            return "stride {}, window {}".format(stride, size)
    return None


def no_strided_1x1_pool(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """No window of one place with a stride."""
    sizes = [op.options.get("filter" + side, 1) for side in ("Height", "Width")]
    strides = [op.options.get("stride" + side, 1) for side in ("H", "W")]
    return "stride {}x{}".format(*strides) if sizes == [1, 1] and max(strides) > 1 else None


def options(graph: TfliteGraph, op: Op, allowed: Dict[str, List[Any]]) -> Optional[str]:
    """Options of given values."""
    for name, values in allowed.items():
        found = _option(op, name)
        if found is not None and found not in values:
            return "{} {}".format(name, found)
    return None


def min_option(graph: TfliteGraph, op: Op, least: Dict[str, int]) -> Optional[str]:
    """Options that are not below a number."""
    for name, limit in least.items():
        found = _option(op, name)
        if found is not None and found < limit:
            return "{} {}".format(name, found)
    return None


def nonzero_option(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Options that are not 0."""
    zero = [name for name in names if _option(op, name) == 0]
    return "{} 0".format(zero[0]) if zero else None


def options_not_both(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Of two options, one at most."""
    return " and ".join(names) if all(_option(op, name) for name in names) else None


def refused_version(graph: TfliteGraph, op: Op, refused: List[int]) -> Optional[str]:
    """Versions of the op that are not known."""
    return "version {}".format(op.version) if op.version in refused else None


def custom_name(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """The name of a composite."""
    found = op.options.get("name")
    found = found.decode("utf-8", "replace") if isinstance(found, bytes) else found
    return None if found in names else "{}".format(found)
