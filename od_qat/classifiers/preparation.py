"""What slim's preprocessing does to an image before a network is evaluated, found by running it."""

import functools
from typing import Any, Dict, NamedTuple, Optional

import numpy as np

from od_qat.classifiers.networks import Network
from od_qat.compat import tf
from od_qat.errors import ExportError
from od_qat.model_files import description, preprocessing
from od_qat.model_files.preprocessing import Preprocessing
from od_qat.scoring import images

# Sizes of images that are larger and smaller than what a network takes, in both directions.
_FACTORS = ((1.7, 2.1), (0.8, 1.3), (0.6, 0.7))
_CLOSE = 1e-3


class Preparation(NamedTuple):
    """What is done to an image.

    Attributes:
      method: how it is brought to its size; a key of scoring.images.METHODS.
      standardize: whether it is given mean 0 and deviation 1 then.
      of_pixels: from pixels to the numbers that the network takes; None if it is standardized.
    """

    method: str
    standardize: bool
    of_pixels: Optional[Preprocessing]

    def as_json(self, network: Network, of_image: Optional[Preprocessing]) -> Dict[str, Any]:
        """The object `preprocessing` of the JSON beside a model.

        Args:
          network: the network.
          of_image: from pixels to the numbers that the model takes, if these are others.
        """
        mean = std = None
        if not self.standardize:
            mean, std = _mean_and_std(of_image or self.of_pixels)
        return {
            "resize": {"method": self.method, "height": network.size, "width": network.size},
            "standardize": self.standardize,
            "mean": mean,
            "std": std,
            "channels": "RGB" if network.channels == 3 else "grey",
        }


def _mean_and_std(of_pixels: Preprocessing):
    if of_pixels.same_for_all_channels:
        return of_pixels.mean_and_std
    std = 1.0 / np.diag(of_pixels.weights)
    return [round(-float(one), 4) for one in of_pixels.black * std], [round(float(one), 4) for one in std]


@functools.lru_cache(maxsize=None)
def of_network(network: Network) -> Preparation:
    """Finds what slim's preprocessing does.

    Raises:
      ExportError: if it is nothing that scoring knows.
    """

    def preprocess(batch):
        return tf.stack([network.preprocess(tf.cast(one, tf.uint8), False) for one in tf.unstack(batch)])

    try:
        of_pixels = preprocessing.of_function(preprocess, network.preprocessing, *network.input_shape)
    except ExportError:
        of_pixels = None  # (it depends on the whole image)
    if of_pixels is not None and 255 * np.abs(of_pixels.weights).max() < _CLOSE:
        of_pixels = None  # (standardized, an image of one colour is black)
    pictures = [_picture(network, *factors) for factors in _FACTORS]
    expected = [_run(network, picture) for picture in pictures]
    for method in description.CLASSIFIERS_METHODS:
        found = Preparation(method, of_pixels is None, of_pixels)
        if all(_is(found, network, *pair) for pair in zip(pictures, expected)):
            return found
    raise ExportError(
        "slim's preprocessing is not known",
        where=network.preprocessing,
        allowed=", ".join(description.CLASSIFIERS_METHODS),
        fix="set network.preprocessing to that of another network",
    )


def _picture(network: Network, tall: float, wide: float) -> np.ndarray:
    size = [int(network.size * factor) + 1 for factor in (tall, wide)]
    return np.random.RandomState(0).randint(0, 256, size + [network.channels]).astype(np.uint8)


def _run(network: Network, picture: np.ndarray) -> np.ndarray:
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(network.preprocess(tf.constant(picture), False))


def _is(found: Preparation, network: Network, picture: np.ndarray, expected: np.ndarray) -> bool:
    try:
        here = images.METHODS[found.method](picture, network.size, network.size)
    except ValueError:
        return False
    if found.standardize:
        here = images.standardized(here)
    else:
        here = here @ found.of_pixels.weights + found.of_pixels.black
    return bool(np.allclose(here, expected, 0, _CLOSE * max(1.0, float(np.abs(expected).max()))))
