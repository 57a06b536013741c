"""Builds inference graphs of a DetectionModel, from an image to detections or to the raw heads of an SSD.

Their input is a placeholder, never the input queue of training.
"""

from typing import Callable, Dict, Tuple

import numpy as np
from object_detection.protos import image_resizer_pb2

from od_qat.compat import tf
from od_qat.errors import ConfigError, ExportError
from od_qat.model_files.names import IMAGE_TENSOR, OF_ROLE, TFLITE_INPUT

_LABEL_ID_OFFSET = 1
# What the input of a SavedModel is: its shape and type, and with what its images are decoded.
INPUT_TYPES = {
    "image_tensor": ([1, None, None, 3], tf.uint8),
    "float_image_tensor": ([None, None, None, 3], tf.float32),
    "encoded_image_string_tensor": ([None], tf.string),
    "tf_example": ([None], tf.string),
}
SERVING_INPUT = "input_tensor"


def build_detection_graph(model) -> Dict[str, str]:
    """Builds the default graph from uint8 images [batch, height, width, 3] to post-processed detections.

    Args:
      model: a DetectionModel built with is_training=False.

    Returns:
      role -> op name, for the outputs that this model has. Boxes are normalised ymin, xmin, ymax, xmax;
      classes are label map ids from 1.
    """
    image = tf.placeholder(tf.uint8, [None, None, None, 3], name=IMAGE_TENSOR)
    preprocessed, true_shapes = model.preprocess(tf.cast(image, tf.float32))
    detections = model.postprocess(model.predict(preprocessed, true_shapes), true_shapes)
    outputs = {}
    for role, key in OF_ROLE.items():
        if key in detections:
            value = tf.cast(detections[key], tf.float32)  # (CenterNet's classes are integers)
            if role == "classes":
                value = value + _LABEL_ID_OFFSET
            tf.identity(value, name=key)
            outputs[role] = key
    tf.train.get_or_create_global_step()
    return outputs


def build_serving_graph(model, input_type: str) -> Dict[str, str]:
    """Builds the default graph from the op SERVING_INPUT to all that the model's post-processing gives.

    Each image is decoded and preprocessed by itself, as in upstream's exporter_lib_v2.

    Args:
      model: a DetectionModel built with is_training=False.
      input_type: one of INPUT_TYPES.

    Returns:
      key of the post-processed dictionary -> op name. All are float32; classes are label map ids from 1.
    """
    shape, dtype = INPUT_TYPES[input_type]
    decode = _decoder(input_type)

    def preprocessed(one):
        image, true_shape = model.preprocess(tf.cast(decode(one), tf.float32)[None])
        return image[0], true_shape[0]

    images, true_shapes = tf.map_fn(
        preprocessed,
        tf.placeholder(dtype, shape, name=SERVING_INPUT),
        dtype=(tf.float32, tf.int32),
        parallel_iterations=32,
    )
    detections = model.postprocess(model.predict(images, true_shapes), true_shapes)
    outputs = {}
    for key, value in detections.items():
        value = tf.cast(value, tf.float32)
        if key == OF_ROLE["classes"]:
            value = value + _LABEL_ID_OFFSET
        outputs[key] = tf.identity(value, name="serving/" + key).op.name
    tf.train.get_or_create_global_step()
    return outputs


def _decoder(input_type: str) -> Callable:
    from object_detection.core import standard_fields
    from object_detection.data_decoders import tf_example_decoder

    def image_of_string(encoded):
        image = tf.image.decode_image(encoded, channels=3)
        image.set_shape([None, None, 3])
        return image

    def image_of_example(serialized):
        return tf_example_decoder.TfExampleDecoder().decode(serialized)[standard_fields.InputDataFields.image]

    of_strings = {"encoded_image_string_tensor": image_of_string, "tf_example": image_of_example}
    return of_strings.get(input_type, tf.identity)


def input_size(model_config, where: str) -> Tuple[int, int]:
    """The height and width of the image that a .tflite of this model takes.

    Raises:
      ConfigError: if the model is no SSD, or if its resizer has no fixed shape.
    """
    kind = model_config.WhichOneof("model")
    if kind != "ssd":
        raise ConfigError(
            "only SSD models have a .tflite export",
            where=where,
            found="model {{ {} }}".format(kind),
            allowed="ssd",
        )
    resizer = model_config.ssd.image_resizer
    if resizer.WhichOneof("image_resizer_oneof") != "fixed_shape_resizer":
        raise ConfigError(
            "a .tflite needs a fixed input size",
            where="{}, model.ssd.image_resizer".format(where),
            found=str(resizer.WhichOneof("image_resizer_oneof")),
            allowed="fixed_shape_resizer { height: ... width: ... }",
        )
    return resizer.fixed_shape_resizer.height, resizer.fixed_shape_resizer.width


def resize_method(model_config) -> str:
    """How the resizer of an SSD with a fixed input size resizes: 'bilinear', 'nearest_neighbor', ..."""
    resizer = model_config.ssd.image_resizer.fixed_shape_resizer
    return image_resizer_pb2.ResizeType.Name(resizer.resize_method).lower()


def build_raw_heads_graph(model, model_config, height: int, width: int) -> np.ndarray:
    """Builds the default graph from a normalised image, float32 [1, height, width, 3], to the raw heads.

    The heads are the ops `raw_outputs/box_encodings` [1, anchors, 4] and `raw_outputs/class_predictions`
    [1, anchors, classes + 1]. The scores are converted as the config's post_processing says.

    Returns:
      the anchors, float32 [anchors, 4], as centre y, centre x, height, width.
    """
    from object_detection.builders import post_processing_builder
    from object_detection.core import box_list

    image = tf.placeholder(tf.float32, [1, height, width, 3], name=TFLITE_INPUT)
    predictions = model.predict(image, true_image_shapes=None)
    _, convert_scores = post_processing_builder.build(model_config.ssd.post_processing)
    scores = convert_scores(predictions["class_predictions_with_background"])
    with tf.name_scope("raw_outputs"):
        boxes = predictions["box_encodings"]
        if boxes.shape.ndims == 4:  # one box encoding for all classes
            boxes = tf.squeeze(boxes, 2)
        tf.identity(boxes, name="box_encodings")
        tf.identity(scores, name="class_predictions")
    anchors = box_list.BoxList(predictions["anchors"]).get_center_coordinates_and_sizes()
    with tf.Session() as session:
        values = session.run(anchors)
    tf.train.get_or_create_global_step()
    return np.stack(values, axis=1).astype(np.float32)


def input_statistics(model, height: int, width: int) -> Tuple[float, float]:
    """The mean and standard deviation of the model's own preprocessing: real = (pixel - mean) / std.

    They follow from its results for a black and a white image. It is affine and the same for all channels,
    except in feature extractors that subtract another mean from each channel.

    Raises:
      ExportError: if the channels differ, which quantized_input_stats cannot express.
    """
    with tf.Graph().as_default():
        black = tf.zeros([1, height, width, 3])
        normalise = model._feature_extractor.preprocess
        with tf.Session() as session:
            low, high = session.run([normalise(black), normalise(black + 255.0)])
    low, high = np.asarray(low), np.asarray(high)
    if np.ptp(low) > 1e-6 or np.ptp(high) > 1e-6:
        raise ExportError(
            "the model's preprocessing differs by channel, which a quantized input cannot express",
            where=type(model._feature_extractor).__name__,
            found="black becomes {}".format(low.reshape(-1, 3)[0].tolist()),
            allowed="one mean and one standard deviation",
        )
    std = 255.0 / float(high.flat[0] - low.flat[0])
    return round(-float(low.flat[0]) * std, 4), round(std, 4)
