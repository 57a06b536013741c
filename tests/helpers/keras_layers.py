"""Keras models in graph mode: a small functional one, and FPNLite of the OD API's own parts.

For TensorFlow 2 only. Import od_qat.plugin before.
"""

import contextlib

from google.protobuf import text_format

from od_qat.compat import tf

_HYPERPARAMS = """
  activation: RELU_6 regularizer { l2_regularizer { weight: 0.00004 } }
  initializer { random_normal_initializer { stddev: 0.01 } }
  batch_norm { scale: true decay: 0.997 epsilon: 0.001 }"""
_PREDICTOR = """weight_shared_convolutional_box_predictor {
  depth: 16 num_layers_before_predictor: 2 kernel_size: 3 use_depthwise: true share_prediction_tower: true
  conv_hyperparams { HYPERPARAMS } }""".replace("HYPERPARAMS", _HYPERPARAMS)


class Functional(tf.Module):
    """A functional model, which is built on an input of its own, and heads that two levels share.

    Args:
      training: the mode of the batch norms.

    Attributes:
      net: the functional model: images [n, 16, 16, 3] -> features [n, 8, 8, 8], and what `unused` makes.
    """

    def __init__(self, training):
        super(Functional, self).__init__()
        tf.keras.backend.set_learning_phase(training)
        layers = tf.keras.layers
        images = tf.keras.Input([16, 16, 3])
        first = self._normalised(layers.Conv2D(8, 3, 2, "same", use_bias=False, name="first"), images)
        inside = self._normalised(layers.DepthwiseConv2D(3, 1, "same", use_bias=False, name="deep"), first)
        inside = self._normalised(layers.Conv2D(8, 1, use_bias=False, name="project"), inside, None)
        summed = layers.Add(name="sum")([first, inside])
        unused = self._normalised(layers.Conv2D(4, 1, use_bias=False, name="unused"), summed)
        self.net = tf.keras.Model(images, [summed, unused], name="net")
        self._tower = layers.Conv2D(8, 3, 1, "same", use_bias=False, name="tower")
        self._norms = [layers.BatchNormalization(name="tower_norm_{}".format(level)) for level in (0, 1)]
        self._head = layers.SeparableConv2D(6, 3, padding="same", name="head")

    def __call__(self, images):
        """Returns the heads' outputs [n, boxes, 6]."""
        features = self.net(images)[0]
        found = []
        for level in (0, 1):
            tower = tf.nn.relu6(self._norms[level](self._tower(features)))
            found.append(tf.reshape(self._head(tower), [int(images.shape[0]), -1, 6]))
            features = tf.nn.max_pool2d(features, 2, 2, "SAME")
        return tf.concat(found, 1)

    def _normalised(self, layer, data, ceiling=6.0):
        result = tf.keras.layers.BatchNormalization(name=layer.name + "_norm")(layer(data))
        return result if ceiling is None else tf.keras.layers.ReLU(ceiling)(result)


class Unnamed(object):
    """Layers that Keras names by their numbers (conv2d, conv2d_1, ...), with a sum between them.

    Args:
      training: the mode of the batch norms.
    """

    def __init__(self, training):
        tf.keras.backend.set_learning_phase(training)
        layers = tf.keras.layers
        images = tf.keras.Input([16, 16, 3])
        data = layers.ReLU()(layers.BatchNormalization()(layers.Conv2D(4, 3, use_bias=False)(images)))
        summed = layers.Add()([layers.Conv2D(4, 1)(data), layers.Conv2D(4, 1)(data), data])
        self.net = tf.keras.Model(images, layers.Conv2D(4, 1)(summed))

    def __call__(self, images):
        """Returns features [n, 14, 14, 4]."""
        return self.net(images)


class BiFpn(object):
    """The OD API's BiFPN, one iteration on three levels, behind two layers; and a layer behind each level.

    Args:
      training: the mode of the batch norms.
      method: how it combines features.
      activation: what is in front of its convolutions, as hyperparams_pb2 names it.
    """

    def __init__(self, training, method, activation="RELU_6"):
        from object_detection.builders import hyperparams_builder
        from object_detection.models import bidirectional_feature_pyramid_generators as generators
        from object_detection.protos import hyperparams_pb2

        tf.keras.backend.set_learning_phase(training)
        layers = tf.keras.layers
        self._first = layers.Conv2D(8, 3, 2, "same", activation="relu", name="first")
        self._second = layers.Conv2D(8, 3, 2, "same", activation="relu", name="second")
        text = _HYPERPARAMS.replace("RELU_6", activation)
        hyperparams = text_format.Parse(text, hyperparams_pb2.Hyperparams())
        self._pyramid = generators.KerasBiFpnFeatureMaps(
            bifpn_num_iterations=1,
            bifpn_num_filters=8,
            fpn_min_level=1,
            fpn_max_level=3,
            input_max_level=2,
            is_training=training,
            conv_hyperparams=hyperparams_builder.KerasLayerHyperparams(hyperparams),
            freeze_batchnorm=False,
            bifpn_node_params={"combine_method": method},
            name="bifpn",
        )
        self._head = layers.Conv2D(3, 1, name="head")

    def __call__(self, images):
        """Returns [n, boxes, 3]."""
        first = self._first(images)
        levels = self._pyramid([("1", first), ("2", self._second(first))])
        heads = [self._head(level) for level in levels.values()]
        return tf.concat([tf.reshape(head, [int(images.shape[0]), -1, 3]) for head in heads], 1)


class FpnLite(object):
    """SSD MobileNet V2 FPNLite of the OD API's own Keras parts, of half width, for images of 128 pixels.

    Args:
      training: the mode of the batch norms.
    """

    def __init__(self, training):
        from object_detection.builders import box_predictor_builder, hyperparams_builder
        from object_detection.models import ssd_mobilenet_v2_fpn_keras_feature_extractor as extractors
        from object_detection.protos import box_predictor_pb2

        tf.keras.backend.set_learning_phase(training)
        predictor = text_format.Parse(_PREDICTOR, box_predictor_pb2.BoxPredictor())
        hyperparams = predictor.weight_shared_convolutional_box_predictor.conv_hyperparams
        self._features = extractors.SSDMobileNetV2FpnKerasFeatureExtractor(
            is_training=training,
            depth_multiplier=0.5,
            min_depth=8,
            pad_to_multiple=1,
            conv_hyperparams=hyperparams_builder.KerasLayerHyperparams(hyperparams),
            freeze_batchnorm=False,
            inplace_batchnorm_update=True,
            additional_layer_depth=16,
            use_depthwise=True,
            override_base_feature_extractor_hyperparams=True,
            name="features",
        )
        self._predictor = box_predictor_builder.build_keras(
            hyperparams_builder.KerasLayerHyperparams, False, True, [2] * 5, predictor, training, 3
        )

    def __call__(self, images):
        """Returns boxes [n, anchors, 4] and scores [n, anchors, 4]."""
        with _sizes_are_integers():
            levels = self._predictor(self._features(images))
        return (
            tf.concat(levels["box_encodings"], 1),
            tf.concat(levels["class_predictions_with_background"], 1),
        )


@contextlib.contextmanager
def _sizes_are_integers():
    """Within it, dimensions of shapes are integers, which Keras' applications hash."""
    tf.enable_v2_tensorshape()
    try:
        yield
    finally:
        tf.disable_v2_tensorshape()
