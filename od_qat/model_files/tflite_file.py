"""Reads inputs, outputs, signatures and post-processing from the bytes of a .tflite.

The file is not loaded into an interpreter, which a damaged file can crash. Every offset is checked before it
is followed. The layout is that of tensorflow/compiler/mlir/lite/schema/schema.fbs, in FlatBuffers; the
options of TFLite_Detection_PostProcess are a FlexBuffers map.
"""

import functools
import struct
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

from od_qat.errors import ExportError
from od_qat.model_files.names import POST_PROCESS, ROLES

IDENTIFIER = b"TFL3"
# The names of the schema's TensorType, by number.
_TYPES = (
    "float32 float16 int32 uint8 int64 string bool int16 complex64 int8 float64 complex128 uint64 resource "
    "variant uint32 uint16 int4 bfloat16"
).split()
# Real models have few of each. Without a limit, a damaged file with overlapping lists would take for ever.
_MOST = 1000


class TensorOfModel(NamedTuple):
    """An input or output.

    Attributes:
      name: of the tensor.
      shape: -1 for a size that is not fixed.
      dtype: 'uint8' and so on.
      scale, zero_point: real = (q - zero_point) * scale; the scale is 0 if the tensor is not quantized.
      key: its name in the signature; None if there is no signature.
    """

    name: str
    shape: Tuple[int, ...]
    dtype: str
    scale: float
    zero_point: int
    key: Optional[str]


class TfliteFile(NamedTuple):
    """The contents of a .tflite that are known without running it.

    Attributes:
      inputs, outputs: in the model's order.
      roles: for each output, its role if TFLite_Detection_PostProcess makes it, else None.
      options: the options of that op, name -> value; empty if there is no such op.
    """

    inputs: Tuple[TensorOfModel, ...]
    outputs: Tuple[TensorOfModel, ...]
    roles: Tuple[Optional[str], ...]
    options: Dict[str, Any]


def suppression(options: Dict[str, Any]) -> str:
    """Describes the options of TFLite_Detection_PostProcess in a clause."""
    return "{} NMS, score threshold {:.3g}, at most {} detections".format(
        "regular" if options.get("use_regular_nms") else "fast",
        options.get("nms_score_threshold", 0.0),
        options.get("max_detections", "?"),
    )


def class_lost_to_threads(options: Dict[str, Any], threads: int) -> Optional[int]:
    """The class that LiteRT does not detect with so many threads; None if it detects all.

    Its regular suppression gives each thread a class, and goes on with the class behind the next one: that
    with the number of threads as its index is left out (tensorflow issue 56058; ai-edge-litert 2.3.0 does so;
    NonMaxSuppressionWorkerTask in kernels/detection_postprocess.cc). The fast suppression has one thread.

    Args:
      options: of TFLite_Detection_PostProcess.
      threads: of the interpreter.

    Returns:
      an index from 0, as the .tflite has them.
    """
    lost = threads > 1 and options.get("use_regular_nms") and options.get("num_classes", 0) > threads
    return threads if lost else None


class _Damaged(Exception):
    pass


def read(path: str) -> TfliteFile:
    """Reads a .tflite.

    Raises:
      ExportError: if the file cannot be read or is no .tflite.
    """
    return _parsed(path, parse)


def attached(path: str, name: str) -> Optional[bytes]:
    """The bytes that are attached to a .tflite under a name; None if there are none.

    Raises:
      ExportError: if the file cannot be read or is no .tflite.
    """
    return _parsed(path, functools.partial(_attached, name=name))


def _parsed(path: str, parser: Callable[[bytes], Any]) -> Any:
    try:
        with open(path, "rb") as stream:
            data = stream.read()
    except OSError as error:
        raise ExportError("cannot read the .tflite", where=path, found=error.strerror) from error
    try:
        return parser(data)
    except _Damaged as error:
        raise ExportError(
            "the .tflite is damaged, or is none",
            where=path,
            found=str(error),
            allowed="a TensorFlow Lite model",
            fix="copy or export it again",
        ) from error


def parse(data: bytes) -> TfliteFile:
    """Reads a .tflite from its bytes. Raises _Damaged."""
    model = _model(data)
    codes = [code.text(1) for code in model.tables(1)]  # names of custom ops; empty for other ops
    subgraphs = model.tables(2)
    if not subgraphs:
        raise _Damaged("no graph in it")
    graph = subgraphs[0]
    keys_in, keys_out = _signature(model)
    tensors = graph.tables(0)
    inputs, outputs = graph.integers(1), graph.integers(2)
    if max(len(inputs), len(outputs)) > _MOST:
        raise _Damaged("{} inputs and {} outputs".format(len(inputs), len(outputs)))
    made, options = {}, {}  # type: Dict[int, str], Dict[str, Any]
    for operation in graph.tables(3):
        index = operation.scalar(0, "<I", 0)
        if index >= len(codes):
            raise _Damaged("op code {} of {}".format(index, len(codes)))
        if codes[index] == POST_PROCESS:
            made = dict(zip(operation.integers(2), ROLES))
            options = _flex_map(_Buffer(operation.bytes(5)))
            break
    return TfliteFile(
        tuple(_tensor(tensors, index, keys_in.get(index)) for index in inputs),
        tuple(_tensor(tensors, index, keys_out.get(index)) for index in outputs),
        tuple(made.get(index) for index in outputs),
        options,
    )


def _model(data: bytes) -> "_Table":
    if data[4:8] != IDENTIFIER:
        raise _Damaged("{} bytes that begin with {!r}".format(len(data), data[:8]))
    return _Buffer(data).root()


def _attached(data: bytes, name: str) -> Optional[bytes]:
    model = _model(data)
    for entry in model.tables(6):
        if entry.text(0) == name:
            buffers, number = model.tables(4), entry.scalar(1, "<I", 0)
            if number >= len(buffers):
                raise _Damaged("buffer {} of {}".format(number, len(buffers)))
            return buffers[number].bytes(0)
    return None


def _signature(model: "_Table") -> Tuple[Dict[int, str], Dict[int, str]]:
    """Tensor index -> name, for the inputs and for the outputs of the first graph's signature."""
    for signature in model.tables(7):
        if signature.scalar(4, "<I", 0) == 0:
            inputs, outputs = signature.tables(0), signature.tables(1)
            return tuple(  # type: ignore
                {item.scalar(1, "<I", 0): item.text(0) for item in items[:_MOST]}
                for items in (inputs, outputs)
            )
    return {}, {}


def _tensor(tensors: List["_Table"], index: int, key: Optional[str]) -> TensorOfModel:
    if not 0 <= index < len(tensors):
        raise _Damaged("tensor {} of {}".format(index, len(tensors)))
    tensor = tensors[index]
    shape = tensor.integers(7) or tensor.integers(0)
    if len(shape) > _MOST:
        raise _Damaged("a tensor with {} dimensions".format(len(shape)))
    number = tensor.scalar(1, "<b", 0)
    if not 0 <= number < len(_TYPES):
        raise _Damaged("tensor type {}".format(number))
    scale, zero_point = 0.0, 0
    quantization = tensor.table(4)
    if quantization is not None:
        scales, zero_points = quantization.numbers(2, "<f"), quantization.numbers(3, "<q")
        if len(scales) == 1:
            scale, zero_point = scales[0], zero_points[0] if zero_points else 0
    return TensorOfModel(tensor.text(3), tuple(shape), _TYPES[number], scale, zero_point, key)


class _Buffer(object):
    """Bytes that are read only within their bounds."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def number(self, position: int, code: str) -> Any:
        if position < 0 or position + struct.calcsize(code) > len(self.data):
            raise _Damaged("an offset that points outside the file")
        return struct.unpack_from(code, self.data, position)[0]

    def numbers(self, position: int, count: int, code: str) -> List[Any]:
        size = struct.calcsize(code)
        if position < 0 or position + count * size > len(self.data):
            raise _Damaged("a list of {} that goes beyond the end of the file".format(count))
        return list(struct.unpack_from("<{}{}".format(count, code[1:]), self.data, position))

    def root(self) -> "_Table":
        return _Table(self, self.number(0, "<I"))


class _Table(object):
    """A FlatBuffers table. Its fields are known by their number in the schema, and each may be absent."""

    def __init__(self, buffer: _Buffer, position: int) -> None:
        self._buffer, self._position = buffer, position
        self._fields = position - buffer.number(position, "<i")
        self._size = buffer.number(self._fields, "<H")

    def _field(self, number: int) -> Optional[int]:
        entry = 4 + 2 * number
        if entry + 2 > self._size:
            return None
        offset = self._buffer.number(self._fields + entry, "<H")
        return self._position + offset if offset else None

    def scalar(self, number: int, code: str, default: Any) -> Any:
        position = self._field(number)
        return default if position is None else self._buffer.number(position, code)

    def _target(self, number: int) -> Optional[int]:
        position = self._field(number)
        return None if position is None else position + self._buffer.number(position, "<I")

    def table(self, number: int) -> Optional["_Table"]:
        target = self._target(number)
        return None if target is None else _Table(self._buffer, target)

    def numbers(self, number: int, code: str) -> List[Any]:
        target = self._target(number)
        if target is None:
            return []
        return self._buffer.numbers(target + 4, self._buffer.number(target, "<I"), code)

    def integers(self, number: int) -> List[int]:
        return self.numbers(number, "<i")

    def bytes(self, number: int) -> bytes:
        return bytes(bytearray(self.numbers(number, "<B")))

    def text(self, number: int) -> str:
        return self.bytes(number).decode("utf-8", "replace")

    def tables(self, number: int) -> List["_Table"]:
        target = self._target(number)
        if target is None:
            return []
        offsets = self._buffer.numbers(target + 4, self._buffer.number(target, "<I"), "<I")
        return [_Table(self._buffer, target + 4 + 4 * i + offset) for i, offset in enumerate(offsets)]


_UNSIGNED = {1: "<B", 2: "<H", 4: "<I", 8: "<Q"}
_SIGNED = {1: "<b", 2: "<h", 4: "<i", 8: "<q"}
_FLOATS = {4: "<f", 8: "<d"}
# The types of FlexBuffers values.
_INT, _UINT, _FLOAT, _MAP, _BOOL = 1, 2, 3, 9, 26


def _flex_map(buffer: _Buffer) -> Dict[str, Any]:
    """The numbers of a FlexBuffers map, by name."""
    data = buffer.data
    if len(data) < 3:
        return {}
    width, packed = data[-1], data[-2]
    if packed >> 2 != _MAP or width not in _UNSIGNED:
        raise _Damaged("options of {} that are no map".format(POST_PROCESS))
    end = len(data) - 2 - width
    values = end - buffer.number(end, _UNSIGNED[width])
    width = 1 << (packed & 3)
    unsigned = _UNSIGNED[width]
    count = buffer.number(values - width, unsigned)
    keys = values - 3 * width - buffer.number(values - 3 * width, unsigned)
    key_width = buffer.number(values - 2 * width, unsigned)
    if key_width not in _UNSIGNED or count > _MOST:
        raise _Damaged("options of {} that are cut off".format(POST_PROCESS))
    found = {}
    for number in range(count):
        at = keys + number * key_width
        start = at - buffer.number(at, _UNSIGNED[key_width])
        end = data.find(b"\0", max(start, 0))
        name = data[max(start, 0) : end if end >= 0 else len(data)].decode("utf-8", "replace")
        kind = buffer.number(values + count * width + number, "<B") >> 2
        at = values + number * width
        codes = {_INT: _SIGNED, _UINT: _UNSIGNED, _BOOL: _UNSIGNED, _FLOAT: _FLOATS}.get(kind, {})
        if width in codes:
            value = buffer.number(at, codes[width])
            found[name] = bool(value) if kind == _BOOL else value
    return found
