"""Pixels for a scorer, without TensorFlow: decoding, the OD API's resizing, quantization of the input.

Every scorer decodes with Pillow, a .pb's too: JPEG decoders differ by a few levels, and models that are
compared must see the same pixels.
"""

import io
from typing import Optional

import numpy as np

from od_qat.errors import DataError


def decode(encoded: bytes, where: str = "") -> np.ndarray:
    """JPEG or PNG bytes -> uint8 [height, width, 3], RGB.

    Orientation tags are ignored, and of 16-bit pixels the high byte counts, as in TensorFlow's decoders.

    Args:
      encoded: the file's bytes.
      where: the image's id, for the message.

    Raises:
      DataError: when the bytes are no image.
    """
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.mode.startswith("I"):
                # 16-bit greyscale, "I" or "I;16" by Pillow's version; convert("RGB") clips it at 255.
                grey = (np.array(image) >> 8).astype(np.uint8)
                return np.repeat(grey[:, :, None], 3, axis=2)
            return np.array(image.convert("RGB"), np.uint8)
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError and their own
        raise DataError(
            "an image cannot be decoded",
            where="image {}".format(where),
            found="{} bytes, {}".format(len(encoded), type(error).__name__),
            allowed="JPEG, PNG",
            fix="convert the data again with `od-qat data`",
        ) from error


def resize_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """The OD API's resizing: bilinear, corners not aligned, no half-pixel centres, no antialiasing.

    Output pixel i reads the input at i * in / out, and the last pixel is repeated beyond the edge.

    Args:
      image: [in_height, in_width, channels], any real dtype.
      height, width: of the result, pixels.

    Returns:
      float32 [height, width, channels].
    """
    image = np.asarray(image)
    top, bottom, y_weight = _positions(image.shape[0], height)
    left, right, x_weight = _positions(image.shape[1], width)
    # Only the rows that are read are worth interpolating along x; when shrinking those are few.
    rows, row_of = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    row_of = row_of.reshape(-1)
    needed = image[rows]
    along_x = _between(needed[:, left], needed[:, right], x_weight[None, :, None])
    return _between(along_x[row_of[:height]], along_x[row_of[height:]], y_weight[:, None, None])


def _positions(size_in: int, size_out: int):
    """Indices of the two neighbours, int64 [size_out], and the weight of the second, float32 [size_out]."""
    # float32 throughout, as the op: in float64 a position such as 2.9999998 would floor to another pixel.
    scale = np.float32(size_in) / np.float32(size_out)
    position = np.arange(size_out, dtype=np.float32) * scale
    lower = np.floor(position)
    weight = position - lower
    lower = np.minimum(lower.astype(np.int64), size_in - 1)
    return lower, np.minimum(lower + 1, size_in - 1), weight


def _between(first: np.ndarray, second: np.ndarray, weight: np.ndarray) -> np.ndarray:
    first = first.astype(np.float32)
    return first + (second.astype(np.float32) - first) * weight


def prepare(
    pixels: np.ndarray,
    dtype,
    mean: Optional[float],
    std: Optional[float],
    scale: float = 0.0,
    zero_point: int = 0,
) -> np.ndarray:
    """Pixels -> what the input tensor takes.

    Args:
      pixels: uint8 or float32 [height, width, 3], 0 to 255.
      dtype: of the input tensor.
      mean, std: real = (pixel - mean) / std; None: real = pixel.
      scale, zero_point: of a quantized input tensor, real = (q - zero_point) * scale; scale 0 when it is not
        quantized.

    Returns:
      an array of `dtype`, shape of `pixels`.
    """
    dtype = np.dtype(dtype)
    pixels = pixels.astype(np.float32)
    mean, std = (0.0, 1.0) if mean is None or std is None else (mean, std)
    if dtype.kind == "f":
        return ((pixels - np.float32(mean)) / np.float32(std)).astype(dtype)
    step = std * scale if scale else std
    # Converters store scale as float32, so a step of one grey level comes out as 1 +- 1e-7; taken at its
    # word, it would send pixels that lie halfway between two integers now up and now down.
    if abs(step - 1.0) < 1e-5:
        step = 1.0
    quantized = (pixels - np.float32(mean)) / np.float32(step) + np.float32(zero_point)
    limits = np.iinfo(dtype)
    # Half up, not half to even: with mean 127.5 every pixel is halfway, and all have to go the same way.
    return np.clip(np.floor(quantized + np.float32(0.5)), limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """An output tensor's values as float32; integers without a scale are taken as they are."""
    if values.dtype.kind in "iu" and scale:
        return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return values.astype(np.float32)
