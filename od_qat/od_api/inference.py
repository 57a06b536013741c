"""Builds inference graphs of a DetectionModel, from an image to detections or to the raw heads of an SSD.

Their input is a placeholder, never the input queue of training.
"""

from typing import Callable, Dict, Optional, Tuple

import numpy as np
from object_detection.protos import image_resizer_pb2

from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.graph import session_config
from od_qat.model_files import preprocessing
from od_qat.model_files.names import IMAGE_TENSOR, OF_ROLE, ROLES, TFLITE_INPUT

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
    image = tf.placeholder(tf.uint8, [_batch_of(model), None, None, 3], name=IMAGE_TENSOR)
    preprocessed, true_shapes = model.preprocess(tf.cast(image, tf.float32))
    detections = model.postprocess(model.predict(preprocessed, true_shapes), true_shapes)
    outputs = {role: _as_output(detections, key, key) for role, key in OF_ROLE.items() if key in detections}
    tf.train.get_or_create_global_step()
    return outputs


def _batch_of(model) -> Optional[int]:
    """The number of images that the model takes: 1 if its crops need to know it, else None for any.

    (A Faster R-CNN with a feature pyramid crops from several levels. Upstream exports all with batches of 1.)
    """
    crop = getattr(model, "_crop_and_resize_fn", None)
    return 1 if getattr(crop, "__name__", "").startswith("multilevel") else None


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
    outputs = {key: _as_output(detections, key, "serving/" + key) for key in detections}
    tf.train.get_or_create_global_step()
    return outputs


def _as_output(detections, key: str, name: str) -> str:
    """Adds an op with the value of a detection, float32, and classes as label map ids; returns its name."""
    value = tf.cast(detections[key], tf.float32)  # (CenterNet's classes are integers)
    if key == OF_ROLE["classes"]:
        value = value + _LABEL_ID_OFFSET
    return tf.identity(value, name=name).op.name


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
      ConfigError: if the model is neither an SSD nor a CenterNet, or if its resizer has no fixed shape.
    """
    kind = model_config.WhichOneof("model")
    if kind not in ("ssd", "center_net"):
        raise ConfigError(
            "only SSD models and CenterNet have a .tflite export",
            where=where,
            found="model {{ {} }}".format(kind),
            allowed="ssd, center_net",
        )
    resizer = getattr(model_config, kind).image_resizer
    if resizer.WhichOneof("image_resizer_oneof") != "fixed_shape_resizer":
        raise ConfigError(
            "a .tflite needs a fixed input size",
            where="{}, model.{}.image_resizer".format(where, kind),
            found=str(resizer.WhichOneof("image_resizer_oneof")),
            allowed="fixed_shape_resizer { height: ... width: ... }",
        )
    return resizer.fixed_shape_resizer.height, resizer.fixed_shape_resizer.width


def resize_method(model_config) -> str:
    """How the resizer of a model with a fixed input size resizes: 'bilinear', 'nearest_neighbor', ..."""
    resizer = getattr(model_config, model_config.WhichOneof("model")).image_resizer.fixed_shape_resizer
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
    with tf.Session(config=session_config.for_few_runs()) as session:
        values = session.run(anchors)
    tf.train.get_or_create_global_step()
    return np.stack(values, axis=1).astype(np.float32)


def build_center_net_graph(model, model_config, height: int, width: int) -> None:
    """Builds the default graph from a preprocessed image, float32 [1, height, width, 3], to detections.

    The last op of each of the network's heads is below `raw_outputs/`. The outputs are the ops of OF_ROLE for
    ROLES, float32; classes are from 0.

    Args:
      model: a CenterNet built with is_training=False.
      model_config: DetectionModel.
      height, width: of the image.
    """
    image = tf.placeholder(tf.float32, [1, height, width, 3], name=TFLITE_INPUT)
    shapes = tf.constant([[height, width, 3]], tf.int32)
    predictions = model.predict(image, shapes)
    with tf.name_scope("raw_outputs"):
        heads = {
            name: [tf.identity(one, name=name.replace("/", "_")) for one in predictions[name][-1:]]
            for name in model.prediction_head_dict
        }
    detections = model.postprocess(dict(predictions, **heads), shapes)
    for role in ROLES:
        tf.identity(tf.cast(detections[OF_ROLE[role]], tf.float32), name=OF_ROLE[role])
    tf.train.get_or_create_global_step()


def preprocessing_of(model, height: int, width: int) -> preprocessing.Preprocessing:
    """The model's own preprocessing; see preprocessing.of_function."""
    extractor = model._feature_extractor
    return preprocessing.of_function(extractor.preprocess, type(extractor).__name__, height, width)
