"""Preprocessing that differs by channel becomes a layer of the .tflite."""

import os
import types

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.errors import ExportError  # noqa: E402
from od_qat.export import input_layer, tflite, tflite_checks  # noqa: E402
from od_qat.model_files import interpreter  # noqa: E402
from od_qat.model_files.preprocessing import Preprocessing  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402

try:
    from od_qat import plugin  # noqa: F401
    from od_qat.od_api import halves, inference, pipeline
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

SIZE = 8
# (pixel - mean) / std of EfficientNet, in channels that change places.
MEANS, STDS = np.array([0.485, 0.456, 0.406]) * 255, np.array([0.229, 0.224, 0.225]) * 255
SWAPPED = Preprocessing(np.diag(1 / STDS)[:, ::-1], (-MEANS / STDS)[::-1])
PIXELS = np.random.RandomState(0).randint(0, 256, [1, SIZE, SIZE, 3])


def _network():
    """A layer with fake quants, of a preprocessed image."""
    random = np.random.RandomState(1)
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, SIZE, SIZE, 3], name="image")
        weights = tf.constant(random.uniform(-1, 1, [3, 3, 3, 4]).astype(np.float32))
        weights = tf.quantization.fake_quant_with_min_max_vars(weights, -1.0, 1.0, narrow_range=True)
        features = tf.nn.bias_add(tf.nn.conv2d(image, weights, [1, 1, 1, 1], "SAME"), tf.zeros([4]))
        tf.quantization.fake_quant_with_min_max_vars(features, -16.0, 16.0, name="result")
        return graph.as_graph_def()


def _run(graph_def, name, image):
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(name + ":0", {"image:0": image.astype(np.float32)})


def _wanted():
    return PIXELS @ SWAPPED.weights + SWAPPED.black


@pytest.mark.tf1
@pytest.mark.parametrize("quantised", [False, True])
def test_it_preprocesses_pixels(quantised):
    graph_def = input_layer.put_in_front(_network(), "image", SWAPPED, quantised)
    found = _run(
        graph_def, "preprocessing/quantised" if quantised else "preprocessing/add", PIXELS / 127.5 - 1
    )
    # (The range is that of pixels from 0 to 255 in all channels.)
    step = (((255 - MEANS) / STDS).max() - (-MEANS / STDS).min()) / 255
    assert np.ptp(_wanted()) > 200 * step
    np.testing.assert_allclose(found, _wanted(), rtol=0, atol=0.51 * step if quantised else 1e-4)


@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15's converter writes no int8")
def test_the_int8_network_computes_what_its_graph_does():
    graph_def = input_layer.put_in_front(_network(), "image", SWAPPED, True)
    model = tflite.convert(
        graph_def, "image", [1, SIZE, SIZE, 3], ["result"], "int8", 127.5, 127.5, None, "uint8"
    )
    assert tflite_checks.inspect(model).float_tensors == []
    opened = interpreter.without_delegates(model)
    opened.allocate_tensors()
    (given,), (made,) = opened.get_input_details(), opened.get_output_details()
    opened.set_tensor(given["index"], PIXELS.astype(np.uint8))
    opened.invoke()
    found = opened.get_tensor(made["index"])
    if found.dtype != np.float32:
        scale, zero_point = made["quantization"]
        found = (found.astype(np.float32) - zero_point) * scale
    expected = _run(graph_def, "result", PIXELS / 127.5 - 1)
    plain = _run(_network(), "result", _wanted())
    step = 32.0 / 255
    assert np.std(plain) > 10 * step
    for other in (expected, plain):
        assert np.abs(found - other).max() <= 1.6 * step and np.abs(found - other).mean() < 0.3 * step


@pytest.mark.tf1
def test_uint8_is_refused():
    with pytest.raises(
        ExportError, match="only an int8 network can have: at here.*allowed: --inference_type=int8"
    ):
        input_layer.require_int8("uint8", "here")
    input_layer.require_int8("int8", "here")


# What upstream's feature extractors do.


def _center_net(**options):
    from object_detection.meta_architectures import center_net_meta_arch

    return center_net_meta_arch.CenterNetFeatureExtractor(**options)


def _of(extractor):
    with tf.Graph().as_default():
        return inference.preprocessing_of(types.SimpleNamespace(_feature_extractor=extractor()), SIZE, SIZE)


@pytest.mark.skipif(IS_TF1, reason="CenterNet needs TensorFlow 2")
def test_upstreams_preprocessing_is_found():
    means, stds = (104.0, 114.0, 120.0), (73.0, 69.0, 70.0)
    config = pipeline.load(os.path.join(REPOSITORY, "configs", "ssd_mobilenet_v2_fpnlite_qat.config"))
    with halves.active(config):
        plain = _of(lambda: _center_net(channel_means=[127.5] * 3, channel_stds=[127.5] * 3))
        by_channel = _of(lambda: _center_net(channel_means=means, channel_stds=stds))
        swapped = _of(lambda: _center_net(channel_means=means, channel_stds=stds, bgr_ordering=True))
    assert plain.same_for_all_channels and plain.mean_and_std == (127.5, 127.5)
    for found, order in ((by_channel, [0, 1, 2]), (swapped, [2, 1, 0])):
        assert not found.same_for_all_channels
        expected = (PIXELS[..., order] - means) / stds
        np.testing.assert_allclose(PIXELS @ found.weights + found.black, expected, rtol=0, atol=1e-4)


@pytest.mark.tf1
def test_what_is_not_affine_is_refused():
    squared = types.SimpleNamespace(preprocess=lambda images: tf.square(images))
    with pytest.raises(ExportError, match="is not affine, or differs between pixels: at SimpleNamespace"):
        _of(lambda: squared)
