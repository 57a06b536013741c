"""What users do with exported SavedModels, in a process without od_qat, in TensorFlow 2's own mode.

    python -m tests.helpers.saved_models detect FOLDER IMAGES.npz OUT.npz
    python -m tests.helpers.saved_models convert FOLDER OUT.tflite [float32|int8|uint8]

The first calls the SavedModel with each image of an .npz and writes the results, NUMBER/NAME. The second
converts as TensorFlow's guide for quantization-aware training says, without data for calibration.
"""

import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def detect(folder, images, out):
    """Writes what the loaded object, and its signature, give for each image."""
    import numpy as np
    import tensorflow as tf

    model, results = tf.saved_model.load(folder), {}
    for name, image in np.load(images).items():
        called = model(tf.constant(image[None]))
        by_signature = model.signatures["serving_default"](input_tensor=tf.constant(image[None]))
        assert sorted(called) == sorted(by_signature)
        for key, value in called.items():
            assert value.dtype == tf.float32, key
            np.testing.assert_array_equal(value, by_signature[key], key)
            results["{}/{}".format(name, key)] = value.numpy()
    np.savez(out, **results)


def convert(folder, out, input_type="float32"):
    """Writes a .tflite."""
    import tensorflow as tf

    converter = tf.lite.TFLiteConverter.from_saved_model(folder)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.inference_input_type = getattr(tf, input_type)
    with open(out, "wb") as stream:
        stream.write(converter.convert())


if __name__ == "__main__":
    assert "od_qat" not in sys.modules
    {"detect": detect, "convert": convert}[sys.argv[1]](*sys.argv[2:])
    assert "od_qat" not in sys.modules
