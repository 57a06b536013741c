"""Runs models of tf2_models.yaml as upstream's code does, eagerly, in a process without od_qat.

    python -m tests.zoo.eager_tf2 FOLDER [--steps] NAME ...

For each model it writes FOLDER/NAME-1, an object-based checkpoint whose values are not the usual starts, and
FOLDER/NAME.npz with what the model makes of the zoo's picture: the preprocessed picture, the predictions
that post-processing reads, and the detections; or FOLDER/NAME.error, if upstream cannot do it.

With --steps it also writes FOLDER/NAME-step.npz, the losses of one step of training on TRUTH, and
FOLDER/NAME-2, the checkpoint after it, in which each weight has lost its gradient.
"""

import contextlib
import gc
import os
import sys
import traceback

from tests.helpers import eager_upstream, keras_nets
from tests.zoo import configs


def predicted(predictions):
    """Name -> tensor, for what post-processing and losses read of what a detector predicts."""
    found = {}
    for name, value in predictions.items():
        if name in _READ:
            # (CenterNet has a list of each: one for each hourglass.)
            values = value if isinstance(value, (list, tuple)) else [value]
            for number, one in enumerate(values):
                found["{}_{}".format(name.replace("/", "_"), number)] = one
    return found


_READ = (
    "box_encodings",
    "class_predictions_with_background",
    "rpn_box_encodings",
    "rpn_objectness_predictions_with_background",
    "refined_box_encodings",
    "object_center",
    "box/scale",
    "box/offset",
)
# A box of each of two pictures, and its class.
TRUTH = (((0.1, 0.1, 0.5, 0.6), 0), ((0.3, 0.2, 0.9, 0.8), 1))
DETECTIONS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def _write(tf, builder, row, folder):
    import numpy as np
    from google.protobuf import text_format
    from object_detection.protos import model_pb2

    config = text_format.Parse(configs.text(row), model_pb2.DetectionModel())
    model = builder.build(config, is_training=False)
    images, shapes = model.preprocess(tf.constant(configs.images_value(row)))
    model.predict(images, shapes)
    eager_upstream.spread(model.variables, 1, row.get("gain", 1.0))
    path = os.path.join(folder, row["name"])
    tf.train.Checkpoint(model=model).write(path + "-1")
    predictions = model.predict(images, shapes)
    results = {"preprocessed": images}
    results.update(predicted(predictions))
    detections = model.postprocess(predictions, shapes)
    results.update((name, detections[name]) for name in DETECTIONS)
    np.savez(path + ".npz", **{name: value.numpy() for name, value in results.items()})


def provide_truth(tf, model):
    """Gives a model TRUTH."""
    boxes, classes = zip(*TRUTH)
    model.provide_groundtruth(
        [tf.constant([one]) for one in boxes],
        [tf.one_hot([one], configs.CLASSES) for one in classes],
        groundtruth_weights_list=[tf.ones([1])] * len(TRUTH),
    )


@contextlib.contextmanager
def nothing_by_chance(config):
    """No dropout; and a Faster R-CNN takes all boxes for its losses (its DetectionModel is changed)."""
    import tensorflow as tf

    if config.WhichOneof("model") == "faster_rcnn":
        config.faster_rcnn.first_stage_minibatch_size = 100000
        config.faster_rcnn.second_stage_batch_size = config.faster_rcnn.first_stage_max_proposals
        config.faster_rcnn.second_stage_balance_fraction = 1.0
    call = tf.keras.layers.Dropout.call
    tf.keras.layers.Dropout.call = lambda self, inputs, training=None: inputs
    try:
        yield
    finally:
        tf.keras.layers.Dropout.call = call


def _write_step(tf, builder, row, folder):
    from google.protobuf import text_format
    from object_detection.protos import model_pb2

    config = text_format.Parse(configs.text(row), model_pb2.DetectionModel())
    with nothing_by_chance(config):
        _step(tf, builder.build(config, is_training=True), row, os.path.join(folder, row["name"]))


def _step(tf, model, row, path):
    import numpy as np

    pictures = tf.constant(configs.two_images_value(row))
    images, shapes = model.preprocess(pictures)
    provide_truth(tf, model)
    model.predict(images, shapes)
    tf.train.Checkpoint(model=model).read(path + "-1").assert_existing_objects_matched()
    with tf.GradientTape() as tape:
        images, shapes = model.preprocess(pictures)
        losses = dict(model.loss(model.predict(images, shapes), shapes))
        losses["regularization"] = tf.add_n(model.regularization_losses() or [tf.constant(0.0)])
        total = tf.add_n(list(losses.values()))
    variables = model.trainable_variables
    for variable, gradient in zip(variables, tape.gradient(total, variables)):
        if gradient is not None:
            variable.assign_sub(gradient)
    tf.train.Checkpoint(model=model).write(path + "-2")
    np.savez(path + "-step.npz", **{name: value.numpy() for name, value in losses.items()})


def main(folder, names, steps):
    """Writes the files of these models."""
    import tensorflow as tf

    with keras_nets.absent_packages():
        from object_detection.builders import model_builder
    keras_nets.give_resnets_their_keras()

    assert "od_qat" not in sys.modules and tf.executing_eagerly()
    for row in configs.rows("tf2_models.yaml"):
        if row["name"] in names:
            try:
                tf.keras.backend.set_learning_phase(False)
                _write(tf, model_builder, row, folder)
                if steps:
                    tf.keras.backend.set_learning_phase(True)
                    _write_step(tf, model_builder, row, folder)
            except Exception:  # noqa: BLE001  (the other models' tests do not depend on it)
                with open(os.path.join(folder, row["name"] + ".error"), "w") as stream:
                    stream.write(traceback.format_exc())
            tf.keras.backend.clear_session()
            gc.collect()


if __name__ == "__main__":
    main(sys.argv[1], [name for name in sys.argv[2:] if name != "--steps"], "--steps" in sys.argv)
