"""Reads all ops and tensors of a .tflite, with the values of its constants, without running it.

The schema is LiteRT's own (schema_py_generated of ai-edge-litert, which Python 3.7 has not).
"""

import functools
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.errors import EnvironmentProblem, ExportError, first_line
from od_qat.model_files import tflite_file

# The ops whose second input is weights, and where their inputs and outputs have channels.
LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")
_INTEGERS = frozenset(["int8", "uint8", "int16", "int32", "int64"])
# The types that NumPy has, by the same names.
_DTYPES = _INTEGERS | {"float16", "float32", "float64", "bool", "uint16", "uint32", "uint64"}


class Tensor(NamedTuple):
    """A tensor.

    Attributes:
      index: in the graph.
      name: as the converter called it.
      shape: -1 for a size that is not fixed.
      dtype: 'int8' and so on.
      scales, zero_points: of its quantization, one of each, or one for each channel; empty if it has none.
      axis: of the channels.
      data: the bytes of a constant; None of what is computed.
    """

    index: int
    name: str
    shape: Tuple[int, ...]
    dtype: str
    scales: np.ndarray
    zero_points: np.ndarray
    axis: int
    data: Optional[bytes]

    @property
    def is_quantized(self) -> bool:
        """Whether its numbers stand for others."""
        return bool(len(self.scales)) and self.dtype in _INTEGERS

    @property
    def bytes(self) -> int:
        """What its value takes in the file; 0 if it is computed."""
        return len(self.data or b"")

    def value(self) -> np.ndarray:
        """The numbers of a constant, as they are stored.

        Raises:
          ExportError: for a type or a length that cannot be read.
        """
        try:
            if self.dtype == "int4":
                pairs = np.frombuffer(self.data, np.int8)
                flat = np.stack([(pairs << 4).astype(np.int8) >> 4, pairs >> 4], 1).reshape(-1)
                return flat[: int(np.prod(self.shape))].reshape(self.shape)
            if self.dtype not in _DTYPES:
                raise ValueError(self.dtype)
            return np.frombuffer(self.data, self.dtype).reshape(self.shape)
        except (TypeError, ValueError) as error:
            raise ExportError(
                "a constant of the .tflite cannot be read",
                where=self.name,
                found="{} {}, {} bytes".format(self.dtype, list(self.shape), self.bytes),
                fix="copy or export it again",
            ) from error

    def real(self) -> np.ndarray:
        """The numbers that a constant stands for, float64, real = (q - zero_point) * scale."""
        value = self.value().astype(np.float64)
        if not self.is_quantized:
            return value
        shape = [1] * value.ndim
        if len(self.scales) > 1:
            shape[self.axis] = len(self.scales)
        return (value - self.zero_points.reshape(shape)) * self.scales.reshape(shape)


class Op(NamedTuple):
    """An op.

    Attributes:
      index: in the graph, in the order of execution.
      type: 'CONV_2D' and so on; a custom op has its own name.
      inputs, outputs: indices of tensors; -1 for an optional input that is not there.
      options: those of the schema, name -> value, enumerations as numbers.
      custom: whether it is a custom op.
      version: of the op, which the converter chooses by the features that it uses.
    """

    index: int
    type: str
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    options: Dict[str, Any]
    custom: bool
    version: int = 1


class TfliteGraph(NamedTuple):
    """The first graph of a .tflite.

    Attributes:
      tensors, ops: in the file's order.
      inputs, outputs: indices of tensors.
      size: bytes of the file.
      graphs: how many there are (others are bodies of loops and conditions).
      metadata: the names of what is attached.
    """

    tensors: Tuple[Tensor, ...]
    ops: Tuple[Op, ...]
    inputs: Tuple[int, ...]
    outputs: Tuple[int, ...]
    size: int
    graphs: int
    metadata: Tuple[str, ...]

    def weights(self, op: Op) -> Optional[Tensor]:
        """The weights of an op of LAYERS; None of another op."""
        if op.type not in LAYERS or len(op.inputs) < 2 or op.inputs[1] < 0:
            return None
        return self.tensors[op.inputs[1]]

    def multiply_adds(self, op: Op) -> Optional[int]:
        """How many multiplications with a weight an op does for one image; None if a size is not fixed."""
        weights = self.weights(op)
        if weights is None:
            return 0
        # A transposed convolution uses each weight once for each place of its input.
        counted = op.inputs[2] if op.type == "TRANSPOSE_CONV" and len(op.inputs) > 2 else op.outputs[0]
        sizes = tuple(self.tensors[counted].shape[1:-1]) + tuple(weights.shape)
        return None if any(size < 0 for size in sizes) else int(np.prod(sizes, dtype=np.int64))


def read(path: str) -> TfliteGraph:
    """Reads a .tflite.

    Raises:
      ExportError: if the file cannot be read or is no .tflite.
      EnvironmentProblem: without ai-edge-litert.
    """
    tflite_file.read(path)  # (says in one line what is wrong with another file)
    with open(path, "rb") as stream:
        data = stream.read()
    try:
        return _graph(data)
    except EnvironmentProblem:
        raise
    except Exception as error:  # (a damaged file can cause any)
        raise ExportError(
            "the .tflite is damaged, or is none",
            where=path,
            found=first_line(error),
            fix="copy or export it again",
        ) from error


@functools.lru_cache(maxsize=None)
def schema() -> Any:
    """LiteRT's module with the classes of the schema.

    Raises:
      EnvironmentProblem: if there is none.
    """
    try:
        from ai_edge_litert import schema_py_generated
    except ImportError as error:
        raise EnvironmentProblem(
            "the schema of .tflite files is not installed",
            found="no ai_edge_litert",
            fix="pip install ai-edge-litert (it needs Python 3.9 or later)",
        ) from error
    return schema_py_generated


def _graph(data: bytes) -> TfliteGraph:
    model = schema().ModelT.InitFromPackedBuf(data, 0)
    graph = model.subgraphs[0]
    codes = [_op_type(code) for code in model.operatorCodes]
    tensors = tuple(_tensor(data, model, index, one) for index, one in enumerate(graph.tensors))
    ops: List[Op] = []
    for index, operation in enumerate(graph.operators):
        name, custom, version = codes[operation.opcodeIndex]
        options = dict(vars(operation.builtinOptions)) if operation.builtinOptions is not None else {}
        inputs, outputs = _integers(operation.inputs), _integers(operation.outputs)
        if not all(-1 <= one < len(tensors) for one in inputs + outputs):
            raise ValueError("op {} reads a tensor that is not there".format(index))
        ops.append(Op(index, name, inputs, outputs, options, custom, version))
    attached = tuple(_text(one.name) for one in model.metadata or ())
    return TfliteGraph(
        tensors,
        tuple(ops),
        _integers(graph.inputs),
        _integers(graph.outputs),
        len(data),
        len(model.subgraphs),
        attached,
    )


@functools.lru_cache(maxsize=None)
def _names(kind: str) -> Dict[int, str]:
    """Number -> name, of an enumeration of the schema."""
    enumeration = vars(getattr(schema(), kind))
    return {number: name for name, number in enumeration.items() if isinstance(number, int)}


def _op_type(code: Any) -> Tuple[str, bool, int]:
    # (Files of before 2020 have the code in the first field only, later ones in both up to 127.)
    number = max(code.deprecatedBuiltinCode, code.builtinCode)
    name = _names("BuiltinOperator").get(number, "op {}".format(number))
    custom = name == "CUSTOM"
    return _text(code.customCode) if custom else name, custom, code.version


def _tensor(data: bytes, model: Any, index: int, tensor: Any) -> Tensor:
    quantization = tensor.quantization
    scales = getattr(quantization, "scale", None)
    zero_points = getattr(quantization, "zeroPoint", None)
    scales = np.zeros(0) if scales is None else np.asarray(scales, np.float64)
    zero_points = np.zeros(len(scales)) if zero_points is None else np.asarray(zero_points, np.int64)
    shape = _integers(tensor.shape if tensor.shapeSignature is None else tensor.shapeSignature)
    return Tensor(
        index,
        _text(tensor.name),
        shape,
        _names("TensorType").get(tensor.type, "type {}".format(tensor.type)).lower(),
        scales,
        np.resize(zero_points, len(scales)),
        int(getattr(quantization, "quantizedDimension", 0) or 0),
        _constant(data, model.buffers[tensor.buffer]),
    )


def _constant(data: bytes, buffer: Any) -> Optional[bytes]:
    if buffer.data is not None and len(buffer.data):
        return np.asarray(buffer.data, np.uint8).tobytes()
    # (A file of more than two gigabytes has its constants behind the tables.)
    if (buffer.offset or 0) > 1:
        return data[buffer.offset : buffer.offset + buffer.size]
    return None


def _integers(values: Any) -> Tuple[int, ...]:
    return tuple(int(value) for value in (() if values is None else values))


def _text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value or "")
