"""Decodes, resizes and quantizes images without TensorFlow, with the same results.

Images are decoded with Pillow for a .pb too. JPEG decoders differ by a few grey levels, and models that are
compared must see the same pixels.
"""

import io
from typing import Optional, Sequence, Union

import numpy as np

from od_qat.errors import DataError

Numbers = Union[float, Sequence[float]]


def decode(encoded: bytes, where: str = "") -> np.ndarray:
    """Decodes a JPEG or PNG to uint8 [height, width, 3], RGB.

    As in TensorFlow's decoders, orientation tags are ignored, and 16-bit pixels keep their high byte.

    Args:
      encoded: the file's bytes.
      where: the image's id, for the message.

    Raises:
      DataError: if the bytes are no image.
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
            fix="replace the image, or convert the data again with `od-qat data`",
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
    # Only rows that are read are interpolated along x. When shrinking, these are few.
    rows, row_of = np.unique(np.concatenate([top, bottom]), return_inverse=True)
    row_of = row_of.reshape(-1)
    needed = image[rows]
    along_x = _between(needed[:, left], needed[:, right], x_weight[None, :, None])
    return _between(along_x[row_of[:height]], along_x[row_of[height:]], y_weight[:, None, None])


def central_crop_bilinear(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """slim's inception_preprocessing: cuts off the borders and resizes the rest; arguments as above."""
    starts = [int((size - size * CENTRAL_FRACTION) / 2) for size in image.shape[:2]]
    inner = image[starts[0] : image.shape[0] - starts[0], starts[1] : image.shape[1] - starts[1]]
    return resize_bilinear(inner, height, width)


def crop_or_pad(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """slim's lenet_preprocessing: keeps the scale, cuts borders off or adds black ones; as above."""
    image = np.asarray(image, np.float32)
    top, left = ((size - wanted) // 2 for size, wanted in zip(image.shape, (height, width)))
    image = image[max(top, 0) :, max(left, 0) :][:height, :width]
    missing = [wanted - size for size, wanted in zip(image.shape, (height, width))]
    return np.pad(image, [(one // 2, one - one // 2) for one in missing] + [(0, 0)], "constant")


def shorter_side_crop(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """slim's vgg_preprocessing: resizes the shorter side to 256 and takes the middle; arguments as above."""
    scale = np.float32(SHORTER_SIDE) / np.float32(min(image.shape[:2]))
    resized = resize_bilinear(image, *(int(np.rint(np.float32(size) * scale)) for size in image.shape[:2]))
    top, left = (int((size - wanted) / 2) for size, wanted in zip(resized.shape, (height, width)))
    if top < 0 or left < 0:
        raise ValueError("an image of {}x{} is larger than {}".format(height, width, SHORTER_SIDE))
    return resized[top : top + height, left : left + width]


# The numbers of slim's preprocessing.
CENTRAL_FRACTION = 0.875
SHORTER_SIDE = 256
# Ways to bring an image to a size: name in the JSON beside a model -> function.
METHODS = {
    "bilinear": resize_bilinear,
    "central_crop_bilinear": central_crop_bilinear,
    "crop_or_pad": crop_or_pad,
    "shorter_side_crop": shorter_side_crop,
}


def grey(image: np.ndarray) -> np.ndarray:
    """The luma (ITU-R 601) of an RGB image, uint8 [height, width, 1], as Pillow computes it."""
    from PIL import Image

    return np.array(Image.fromarray(np.asarray(image, np.uint8)).convert("L"))[:, :, None]


def standardized(image: np.ndarray) -> np.ndarray:
    """The image with mean 0 and deviation 1, as TensorFlow's per_image_standardization; float32."""
    image = np.asarray(image, np.float32)
    return (image - image.mean()) / max(float(image.std()), 1.0 / np.sqrt(image.size))


def _positions(size_in: int, size_out: int):
    """Indices of the two neighbours, int64 [size_out], and the weight of the second, float32 [size_out]."""
    # All is float32, as in the op. In float64, a position such as 2.9999998 would become another pixel.
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
    mean: Optional[Numbers],
    std: Optional[Numbers],
    scale: float = 0.0,
    zero_point: int = 0,
) -> np.ndarray:
    """Turns pixels into the values of the input tensor.

    Args:
      pixels: uint8 or float32 [height, width, channels], 0 to 255.
      dtype: of the input tensor.
      mean, std: real = (pixel - mean) / std, one number each, or one for each channel; with None, real =
        pixel.
      scale, zero_point: of a quantized input tensor, real = (q - zero_point) * scale; the scale is 0 if it is
        not quantized.

    Returns:
      an array of `dtype`, shape of `pixels`.
    """
    dtype = np.dtype(dtype)
    pixels = pixels.astype(np.float32)
    mean, std = (0.0, 1.0) if mean is None or std is None else (mean, std)
    if dtype.kind == "f":
        return ((pixels - np.float32(mean)) / np.float32(std)).astype(dtype)
    step = np.asarray(std) * scale if scale else np.asarray(std)
    # Converters store the scale as float32, so a step of one grey level becomes 1 +- 1e-7. Used as it is, it
    # would round pixels halfway between two integers sometimes up and sometimes down.
    step = np.where(np.abs(step - 1.0) < 1e-5, 1.0, step)
    quantized = (pixels - np.float32(mean)) / np.float32(step) + np.float32(zero_point)
    limits = np.iinfo(dtype)
    # Halves are rounded up, not to even. With mean 127.5 every pixel is a half, and all must go the same way.
    return np.clip(np.floor(quantized + np.float32(0.5)), limits.min, limits.max).astype(dtype)


def dequantize(values: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """The values of an output tensor as float32. Integers without a scale are taken as they are."""
    if values.dtype.kind in "iu" and scale:
        return (values.astype(np.float32) - np.float32(zero_point)) * np.float32(scale)
    return values.astype(np.float32)
