"""Checks of types, scales and zero points; see rules.CHECKS.

A check takes the graph, one of its ops, and what the rule allows. It returns what was found, as text, if the
op does not fit, and otherwise None. Tensors without a quantization pass the checks of scales and zero points.
"""

from typing import Any, Dict, Iterator, List, Optional

import numpy as np

from od_qat.model_files.tflite_graph import Op, Tensor, TfliteGraph
from od_qat.targets.tensors import all_named, every, named

# A converter computes scales in float32, so equal ones differ in their last bits.
_SAME = 1e-5
_SAME_BIAS = 1e-3
_FLOATS = ("float16", "float32", "float64")


def _quantized(tensors: List[Tensor]) -> Iterator[Tensor]:
    return (tensor for tensor in tensors if tensor.is_quantized)


def types(graph: TfliteGraph, op: Op, allowed: Dict[str, List[str]]) -> Optional[str]:
    """The types that tensors may have."""
    for name, of_tensor in allowed.items():
        for tensor in named(graph, op, name):
            if tensor.dtype not in of_tensor:
                return "{} is {}".format(tensor.name, tensor.dtype)
    return None


def refused_types(graph: TfliteGraph, op: Op, refused: Dict[str, List[str]]) -> Optional[str]:
    """Types that tensors may not have."""
    for name, of_tensor in refused.items():
        for tensor in named(graph, op, name):
            if tensor.dtype in of_tensor:
                return "{} is {}".format(tensor.name, tensor.dtype)
    return None


def same_type(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Tensors of one type."""
    found = all_named(graph, op, names)
    others = [tensor for tensor in found if tensor.dtype != found[0].dtype]
    # (A dynamic range model has float inputs and 8-bit weights.)
    if not others or (found[0].dtype == "float32" and {one.dtype for one in others} <= {"int8", "int4"}):
        return None
    return "{} is {}, {} {}".format(found[0].name, found[0].dtype, others[0].name, others[0].dtype)


def same_type_if_quantized(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """The second tensor has the type of the first, if that is of 8 bits."""
    first, second = all_named(graph, op, names)
    if first.dtype in ("int8", "uint8") and second.dtype != first.dtype:
        return "{} is {}, {} {}".format(first.name, first.dtype, second.name, second.dtype)
    return None


def type_pairs(graph: TfliteGraph, op: Op, rule: Dict[str, Any]) -> Optional[str]:
    """The types of two tensors are one of some pairs."""
    found = [tensor.dtype for tensor in all_named(graph, op, rule["tensors"])]
    return None if len(found) < 2 or found in rule["pairs"] else " and ".join(found)


def all_quantized(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """No floats."""
    for tensor in every(graph, op):
        if tensor.dtype in _FLOATS:
            return "{} is {}".format(tensor.name, tensor.dtype)
    return None


def unquantized_if(graph: TfliteGraph, op: Op, rule: Dict[str, str]) -> Optional[str]:
    """Tensors of a type have no scale."""
    for tensor in every(graph, op):
        if tensor.dtype == rule["type"] and len(tensor.scales):
            return "{} has scale {:.6g}".format(tensor.name, tensor.scales[0])
    return None


def per_tensor(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """One scale for all channels."""
    for tensor in all_named(graph, op, names):
        if len(tensor.scales) > 1:
            return "{} has {} scales".format(tensor.name, len(tensor.scales))
    return None


def per_axis(graph: TfliteGraph, op: Op, allowed: Dict[str, int]) -> Optional[str]:
    """Several scales along one dimension only."""
    for name, axis in allowed.items():
        for tensor in named(graph, op, name):
            if len(tensor.scales) > 1 and tensor.axis != axis:
                return "{} has scales along dimension {}".format(tensor.name, tensor.axis)
    return None


def zero_point_zero(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Zero points of signed tensors are 0."""
    for tensor in _quantized(all_named(graph, op, names)):
        if tensor.dtype != "uint8" and np.any(tensor.zero_points):
            return "{} has the zero point {}".format(tensor.name, int(tensor.zero_points[0]))
    return None


def zero_point_zero_if(graph: TfliteGraph, op: Op, rule: Dict[str, Any]) -> Optional[str]:
    """Zero points of tensors of a type are 0."""
    for tensor in _quantized(all_named(graph, op, rule["tensors"])):
        if tensor.dtype == rule["type"] and np.any(tensor.zero_points):
            return "{} has the zero point {}".format(tensor.name, int(tensor.zero_points[0]))
    return None


def zero_point_range(graph: TfliteGraph, op: Op, ranges: Dict[str, List[int]]) -> Optional[str]:
    """Zero points within the limits of the type."""
    for tensor in _quantized(every(graph, op)):
        low, high = ranges.get(tensor.dtype, (-np.inf, np.inf))
        if np.any((tensor.zero_points < low) | (tensor.zero_points > high)):
            return "{} has the zero point {}".format(tensor.name, int(tensor.zero_points[0]))
    return None


def value_range(graph: TfliteGraph, op: Op, ranges: Dict[str, List[int]]) -> Optional[str]:
    """Stored integers of constants within limits."""
    for name, (low, high) in ranges.items():
        for tensor in _quantized(named(graph, op, name)):
            if tensor.data is None or tensor.dtype == "uint8":
                continue
            value = tensor.value()
            if value.size and not low <= value.min() <= value.max() <= high:
                return "{} has values from {} to {}".format(tensor.name, value.min(), value.max())
    return None


def scale_positive_normal(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Scales that a kernel can divide by."""
    smallest = np.finfo(np.float32).tiny
    for tensor in _quantized(every(graph, op)):
        if not np.all(np.isfinite(tensor.scales) & (tensor.scales >= smallest)):
            return "{} has scale {:.6g}".format(tensor.name, float(tensor.scales.min()))
    return None


def fixed_quantization(graph: TfliteGraph, op: Op, fixed: Dict[str, Dict[str, List[float]]]) -> Optional[str]:
    """A scale and a zero point that are given."""
    for name, by_type in fixed.items():
        for tensor in _quantized(named(graph, op, name)):
            if tensor.dtype not in by_type:
                continue
            scale, zero_point = by_type[tensor.dtype]
            same = abs(tensor.scales[0] - scale) <= _SAME * scale
            if not same or int(tensor.zero_points[0]) != zero_point:
                return "{} has {}".format(tensor.name, _shown(tensor))
    return None


def same_quantization(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Tensors of one scale and one zero point."""
    found = list(_quantized(all_named(graph, op, names)))
    for tensor in found[1:]:
        same = abs(tensor.scales[0] - found[0].scales[0]) <= _SAME * found[0].scales[0]
        if not same or tensor.zero_points[0] != found[0].zero_points[0]:
            return "{} has {}, {} {}".format(found[0].name, _shown(found[0]), tensor.name, _shown(tensor))
    return None


def _shown(tensor: Tensor) -> str:
    return "scale {:.6g}, zero point {}".format(tensor.scales[0], int(tensor.zero_points[0]))


def bias_scale(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """The scale of a bias is the input's times the weights'."""
    found = [tensor for number in range(3) for tensor in named(graph, op, "input{}".format(number))]
    if len(found) < 3 or not all(tensor.is_quantized for tensor in found):
        return None
    given, weights, bias = found
    expected = given.scales[0] * weights.scales
    if np.any(np.abs(bias.scales - expected) > _SAME_BIAS * expected):
        return "{} has scale {:.6g}, not {:.6g}".format(bias.name, bias.scales[0], expected[0])
    return None


def scale_ratio(graph: TfliteGraph, op: Op, rule: Dict[str, Any]) -> Optional[str]:
    """A product of scales, divided by a scale, within limits."""
    ratio = _ratio(graph, op, rule)
    if ratio is None:
        return None
    high = ratio < rule["max"] if rule.get("max_exclusive") else ratio <= rule["max"]
    wrong = ratio[~(high & (ratio >= rule["min"]))]
    return "a ratio of scales of {:.4g}".format(wrong[0]) if len(wrong) else None


def slope_ratio(graph: TfliteGraph, op: Op, rule: Dict[str, Any]) -> Optional[str]:
    """The same, times an option of the op, within one of several ranges."""
    ratio = _ratio(graph, op, rule)
    if ratio is None:
        return None
    slopes = ratio * float(op.options.get(rule["option"], 1.0))
    fits = np.zeros(len(slopes), bool)
    for low, high in rule["ranges"]:
        fits |= (slopes >= low) & (slopes <= high)
    return None if fits.all() else "a ratio of {:.4g}".format(slopes[~fits][0])


def _ratio(graph: TfliteGraph, op: Op, rule: Dict[str, Any]) -> Optional[np.ndarray]:
    of, by = all_named(graph, op, rule["of"]), named(graph, op, rule["by"])
    if len(of) < len(rule["of"]) or not by or not all(one.is_quantized for one in of + by):
        return None
    product = np.ones(1)
    for tensor in of:
        product = product * tensor.scales
    return product / by[0].scales[0]


def constant(graph: TfliteGraph, op: Op, names: List[str]) -> Optional[str]:
    """Tensors that stand in the file."""
    for tensor in all_named(graph, op, names):
        if tensor.data is None and 0 not in tensor.shape:
            return "{} is computed".format(tensor.name)
    return None


def constant_parameters(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """Weights and biases that stand in the file."""
    if graph.weights(op) is None or op.type == "TRANSPOSE_CONV":
        return None
    return constant(graph, op, ["input1", "input2"])


def constant_values(graph: TfliteGraph, op: Op, allowed: Dict[str, List[int]]) -> Optional[str]:
    """Constants of given values."""
    for name, values in allowed.items():
        for tensor in named(graph, op, name):
            if tensor.data is not None and not np.isin(tensor.value(), values).all():
                return "{} is {}".format(tensor.name, tensor.value().tolist())
    return None


def min_values(graph: TfliteGraph, op: Op, least: Dict[str, int]) -> Optional[str]:
    """Constants that are not below a number."""
    for name, limit in least.items():
        for tensor in named(graph, op, name):
            if tensor.data is not None and np.any(tensor.value() < limit):
                return "{} is {}".format(tensor.name, tensor.value().tolist())
    return None


def constant_only_as_zero_padding(graph: TfliteGraph, op: Op, wanted: bool) -> Optional[str]:
    """A constant input only beside one other, and all zeros."""
    constants = [tensor for tensor in named(graph, op, "inputs") if tensor.data is not None]
    if constants and (len(op.inputs) != 2 or np.any(constants[0].real())):
        return "{} is a constant".format(constants[0].name)
    return None
