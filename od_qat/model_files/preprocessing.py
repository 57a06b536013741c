"""What a model's preprocessing does to each pixel, found by running it."""

from typing import Any, Callable, NamedTuple, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.errors import ExportError


class Preprocessing(NamedTuple):
    """Preprocessing of each pixel: `pixel @ weights + black`.

    Attributes:
      weights: float64 [channels, channels], from channels of the image to those that the network takes.
      black: float64 [channels], what a black pixel becomes.
    """

    weights: Any
    black: Any

    @property
    def same_for_all_channels(self) -> bool:
        """Whether the channels keep their order, and have one mean and one standard deviation."""
        factor = self.weights[0, 0]
        difference = np.abs(self.weights - factor * np.eye(len(self.black))).max()
        return bool(np.ptp(self.black) < 1e-6 and difference < 1e-6 * factor)

    @property
    def mean_and_std(self) -> Tuple[float, float]:
        """Those of the first channel: real = (pixel - mean) / std."""
        std = 1.0 / float(self.weights[0, 0])
        return round(-float(self.black[0]) * std, 4), round(std, 4)

    @property
    def ends(self) -> Tuple[float, float]:
        """The lowest and the highest number of all channels, for pixels from 0 to 255."""
        low = (255.0 * np.minimum(self.weights, 0.0)).sum(0) + self.black
        high = (255.0 * np.maximum(self.weights, 0.0)).sum(0) + self.black
        return float(low.min()), float(high.max())


def of_function(preprocess: Callable, name: str, height: int, width: int, channels: int = 3) -> Preprocessing:
    """Finds the preprocessing of a function from its results for images of one colour.

    Args:
      preprocess: takes and returns float32 [N, height, width, channels].
      name: what messages call it.
      height, width, channels: of the image.

    Raises:
      ExportError: if it is not the same for all pixels, or not affine.
    """
    # Black, one of each channel alone (red, green, blue), the first of these darker, a grey and white.
    lights = np.eye(channels)
    parts = [0 * lights[:1], lights, 0.2 * lights[:1], np.full([1, channels], 0.4), np.ones([1, channels])]
    colours = 255.0 * np.concatenate(parts)
    with tf.Graph().as_default():
        images = tf.constant(np.tile(colours[:, None, None], [1, height, width, 1]), tf.float32)
        with tf.Session() as session:
            became = np.asarray(session.run(preprocess(images)), np.float64)
    first = became.reshape(len(colours), -1, channels)[:, 0]
    found = Preprocessing((first[1 : 1 + channels] - first[0]) / 255.0, first[0])
    if not np.allclose(became, (colours @ found.weights + found.black)[:, None, None], 0, 1e-3):
        raise ExportError(
            "the model's preprocessing is not affine, or differs between pixels",
            where=name,
            found="black becomes {}, white {}".format(first[0].tolist(), first[-1].tolist()),
        )
    return found
