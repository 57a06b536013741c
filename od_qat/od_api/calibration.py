"""Images for post-training quantization, preprocessed as the network wants them."""

from typing import Iterator, Sequence

import numpy as np

from od_qat.compat import tf


def images(
    record_paths: Sequence[str], height: int, width: int, method: str, mean: float, std: float, count: int
) -> Iterator[np.ndarray]:
    """Yields the first `count` images of the records, resized by `method` and normalised.

    Yields:
      float32 [1, height, width, 3].
    """
    from od_qat.datasets import records

    with tf.Graph().as_default(), tf.Session() as session:
        encoded = tf.placeholder(tf.string, [])
        pixels = tf.cast(tf.io.decode_image(encoded, channels=3, expand_animations=False), tf.float32)
        # This resizes as the OD API does: corners not aligned, no half-pixel centres.
        resize = getattr(tf.image, "resize_" + method)
        resized = resize(tf.expand_dims(pixels, 0), [height, width])
        normalised = (resized - mean) / std
        given = 0
        for path in record_paths:
            for example in records.read_examples(path):
                if given == count:
                    return
                yield session.run(normalised, {encoded: example.encoded})
                given += 1
