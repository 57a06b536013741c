"""Objects of TensorFlow 2 for tests of their checkpoints, and eager code that writes and restores these.

    python -m tests.helpers.keras_nets FOLDER

runs without anything of od_qat, as a user's program does. It writes checkpoints into FOLDER/eager, says so,
waits for a line, and restores the checkpoints below FOLDER/graph. The values of the variables go into .npz
files beside, in the order of `variables` of the net.
"""

import contextlib
import importlib
import importlib.util
import os
import sys
import types

import numpy as np

DETECTOR = """
model { ssd { num_classes: 2
  image_resizer { fixed_shape_resizer { height: 64 width: 64 } }
  feature_extractor { type: "ssd_mobilenet_v2_fpn_keras" depth_multiplier: 0.25 use_depthwise: true
    fpn { min_level: 3 max_level: 7 additional_layer_depth: 8 }
    conv_hyperparams { activation: RELU_6 regularizer { l2_regularizer { weight: 0.00004 } }
      initializer { random_normal_initializer { stddev: 0.01 } } batch_norm { scale: true } }
    override_base_feature_extractor_hyperparams: true }
  box_coder { faster_rcnn_box_coder { } }
  matcher { argmax_matcher { force_match_for_each_row: true use_matmul_gather: true } }
  similarity_calculator { iou_similarity { } }
  box_predictor { weight_shared_convolutional_box_predictor {
    depth: 8 num_layers_before_predictor: 1 kernel_size: 3 use_depthwise: true share_prediction_tower: true
    conv_hyperparams { activation: RELU_6 regularizer { l2_regularizer { weight: 0.00004 } }
      initializer { random_normal_initializer { stddev: 0.01 } } batch_norm { scale: true } } } }
  anchor_generator { multiscale_anchor_generator {
    min_level: 3 max_level: 7 anchor_scale: 4 aspect_ratios: [1.0, 2.0] scales_per_octave: 1 } }
  post_processing {
    batch_non_max_suppression { max_detections_per_class: 10 max_total_detections: 10 }
    score_converter: SIGMOID }
  loss { localization_loss { weighted_smooth_l1 { } } classification_loss { weighted_sigmoid_focal { } } }
  encode_background_as_zeros: true } }
"""
# What model_builder imports for models that are not tested here.
_ABSENT = (
    "tensorflow_io",
    "official.legacy.image_classification.efficientnet.efficientnet_model",
    "official.modeling.optimization.ema_optimizer",
)


class Absent(types.ModuleType):
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextlib.contextmanager
def absent_packages():
    """Within it, modules that model_builder imports needlessly are empty if they are not installed."""
    added = []
    for name in _ABSENT:
        parts = name.split(".")
        try:
            importlib.import_module(name)
            continue
        except Exception:  # noqa: BLE001  (a package of another TensorFlow fails in many ways)
            pass
        for end in range(1, len(parts) + 1):
            part = ".".join(parts[:end])
            if part not in sys.modules:
                sys.modules[part] = Absent(part)
                sys.modules[part].__path__ = []
                added.append(part)
    try:
        yield
    finally:
        for part in added:
            del sys.modules[part]


def give_resnets_their_keras():
    """Lets upstream's ResNets of 18 and 34 layers take Keras 2, where a stand-alone Keras is another."""
    from object_detection.models.keras_models import resnet_v1

    if importlib.util.find_spec("tf_keras"):
        resnet_v1.resnet = importlib.import_module("tf_keras.src.applications.resnet")


def detector_config():
    """The TrainEvalPipelineConfig of DETECTOR."""
    from google.protobuf import text_format
    from object_detection.protos import pipeline_pb2

    return text_format.Parse(DETECTOR, pipeline_pb2.TrainEvalPipelineConfig())


def build_detector(tf):
    """An SSD of the OD API's TF 2 half, its variables made, where that half can be imported."""
    from object_detection.builders import model_builder

    config = detector_config()
    model = model_builder.build(config.model, is_training=True)
    images, shapes = model.preprocess(tf.zeros([1, 64, 64, 3]))
    model.predict(images, shapes)
    return model


def module(tf, **children):
    """A tf.Module with attributes, in this order."""
    made = tf.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def small_net(tf, variable, shortcut=True, classes=3):
    """A net with a list, a dict with slashes in its keys, and a layer that can be reached in two ways.

    Args:
      tf: TensorFlow's module with Module.
      variable: function of a name and a shape.
      shortcut: whether the first layer is an attribute too. If it is, that is its key in a checkpoint.
      classes: length of one of the variables.
    """

    def layer(name, size):
        return module(tf, kernel=variable(name + "_kernel", [2, size]), bias=variable(name + "_bias", [size]))

    layers = [layer("first", 2), layer("second", 3)]
    net = module(
        tf, layers=layers, heads={"boxes/0": layer("boxes", 4), "classes": layer("classes", classes)}
    )
    if shortcut:
        net.stem = layers[0]
    return net


# The checkpoints that `write` makes. Each is saved as often as its number says.
SMALL, DETECTION, CLASSIFICATION = "small-3", "detection-1", "classification-1"


def write(tf, folder):
    """Writes what upstream's programs write: a net with an optimizer and a step, and parts of a detector."""
    random = np.random.RandomState(0)

    def save(name, net, objects):
        for each in net.variables:
            each.assign(random.uniform(-1, 1, each.shape).astype(np.float32))
        checkpoint = tf.train.Checkpoint(**objects)
        path, number = os.path.join(folder, "eager", name).rsplit("-", 1)
        for _ in range(int(number)):
            checkpoint.save(path)
        np.savez(path + ".npz", *[each.numpy() for each in net.variables])

    net = small_net(tf, _eager_variable(tf))
    optimizer = tf.keras.optimizers.legacy.SGD(0.5, momentum=0.9)
    optimizer.apply_gradients([(tf.random.uniform(each.shape, 1, 2), each) for each in net.variables])
    slots = [optimizer.get_slot(each, "momentum").numpy() for each in net.variables]
    os.mkdir(os.path.join(folder, "eager"))
    np.savez(os.path.join(folder, "eager", "slots.npz"), *slots)
    save(SMALL, net, {"net": net, "optimizer": optimizer, "step": tf.Variable(41, dtype=tf.int64)})
    with absent_packages():
        model = build_detector(tf)
    save(DETECTION, model, {"model": model, "step": tf.Variable(5, dtype=tf.int64)})
    backbone = model._feature_extractor.classification_backbone
    save(CLASSIFICATION, backbone, {"feature_extractor": backbone})


def restore(tf, folder):
    """Restores the newest of FOLDER/graph/{small,detection}, saves the next, and prints its name."""
    with absent_packages():
        model = build_detector(tf)
    for name, key, net in (
        ("small", "net", small_net(tf, _eager_variable(tf))),
        ("detection", "model", model),
    ):
        of_graph = os.path.join(folder, "graph", name)
        step = tf.Variable(-1, dtype=tf.int64)
        checkpoint = tf.train.Checkpoint(step=step, **{key: net})
        manager = tf.train.CheckpointManager(checkpoint, of_graph, 5)
        checkpoint.restore(manager.latest_checkpoint).assert_existing_objects_matched()
        np.savez(of_graph + ".npz", *[each.numpy() for each in net.variables])
        print(name, step.numpy(), os.path.basename(manager.save()))


def _eager_variable(tf):
    return lambda name, shape: tf.Variable(tf.zeros(shape), name=name)


def _eager_tensorflow():
    if importlib.util.find_spec("tf_keras"):
        os.environ["TF_USE_LEGACY_KERAS"] = "1"
    import tensorflow

    assert "od_qat" not in sys.modules
    return tensorflow


if __name__ == "__main__":
    tensorflow = _eager_tensorflow()
    write(tensorflow, sys.argv[1])
    print("written", flush=True)
    if sys.stdin.readline():
        restore(tensorflow, sys.argv[1])
