"""Runs models of tf2_models.yaml as upstream's code does, eagerly, in a process without od_qat.

    python -m tests.zoo.eager_tf2 FOLDER NAME ...

For each model it writes FOLDER/NAME-1, an object-based checkpoint whose values are not the usual starts, and
FOLDER/NAME.npz with what the model makes of the zoo's picture: the preprocessed picture, the predictions
that post-processing reads, and the detections; or FOLDER/NAME.error, if upstream cannot do it.
"""

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
DETECTIONS = ("detection_boxes", "detection_scores", "detection_classes", "num_detections")


def _write(tf, builder, row, folder):
    import numpy as np
    from google.protobuf import text_format
    from object_detection.protos import model_pb2

    config = text_format.Parse(configs.text(row), model_pb2.DetectionModel())
    model = builder.build(config, is_training=False)
    images, shapes = model.preprocess(tf.constant(configs.images_value(row)))
    model.predict(images, shapes)
    eager_upstream.spread(model.variables, 1)
    path = os.path.join(folder, row["name"])
    tf.train.Checkpoint(model=model).write(path + "-1")
    predictions = model.predict(images, shapes)
    results = {"preprocessed": images}
    results.update(predicted(predictions))
    detections = model.postprocess(predictions, shapes)
    results.update((name, detections[name]) for name in DETECTIONS)
    np.savez(path + ".npz", **{name: value.numpy() for name, value in results.items()})


def main(folder, names):
    """Writes the files of these models."""
    import tensorflow as tf

    with keras_nets.absent_packages():
        from object_detection.builders import model_builder
    keras_nets.give_resnets_their_keras()

    assert "od_qat" not in sys.modules and tf.executing_eagerly()
    tf.keras.backend.set_learning_phase(False)
    for row in configs.rows("tf2_models.yaml"):
        if row["name"] in names:
            try:
                _write(tf, model_builder, row, folder)
            except Exception:  # noqa: BLE001  (the other models' tests do not depend on it)
                with open(os.path.join(folder, row["name"] + ".error"), "w") as stream:
                    stream.write(traceback.format_exc())
            tf.keras.backend.clear_session()
            gc.collect()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
