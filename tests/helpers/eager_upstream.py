"""Runs upstream's TF 2 half as it is, eagerly, in a process without od_qat: the oracle for Keras models.

    python -m tests.helpers.eager_upstream CONFIG IMAGES.npz FOLDER

builds the model of a config, gives its variables values that are not their usual starts, writes an
object-based checkpoint FOLDER/ckpt-1, and FOLDER/eager.npz with what the model computes for the images: its
detections and raw predictions in inference, its losses and the norm of their gradients in training. ckpt-2
has the averages of its batch norms after that one step of training.
"""

import importlib.util
import os
import sys

from tests.helpers import keras_nets

if importlib.util.find_spec("tf_keras"):  # (TF 2.15 has Keras 2 itself)
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def spread(variables, seed, gain=1.0):
    """Values with some spread: averages that are not 0 and 1, and biases that are not 0.

    With a gain of 1 kernels have the deviation of He et al. (2015); a smaller one makes it smaller.
    """
    import numpy as np

    random = np.random.RandomState(seed)
    for variable in variables:
        shape = variable.shape.as_list()
        if variable.name.endswith(("moving_variance:0", "gamma:0")):
            value = random.uniform(0.5, 1.5, shape)
        elif len(shape) > 1:
            inputs = shape[:2] if "depthwise_kernel" in variable.name else shape[:-1]
            value = random.normal(0, gain * (2.0 / max(np.prod(inputs), 1)) ** 0.5, shape)
        else:
            value = random.uniform(-0.2, 0.2, shape)
        variable.assign(value.astype(np.float32))


def main(config_path, data_path, folder):
    """Writes the checkpoint and the results."""
    import numpy as np
    import tensorflow as tf
    from google.protobuf import text_format
    from object_detection.protos import pipeline_pb2

    with keras_nets.absent_packages():
        from object_detection.builders import model_builder
    keras_nets.give_resnets_their_keras()

    assert "od_qat" not in sys.modules and tf.executing_eagerly()
    config = pipeline_pb2.TrainEvalPipelineConfig()
    with open(config_path) as stream:
        text_format.Parse(stream.read(), config)
    given = np.load(data_path)
    results = {}

    def run(model, training):
        tf.keras.backend.set_learning_phase(training)
        images, shapes = model.preprocess(tf.constant(given["images"]))
        model.provide_groundtruth(
            [tf.constant(boxes) for boxes in given["boxes"]],
            [tf.constant(classes) for classes in given["classes"]],
        )
        return model.predict(images, shapes), shapes

    model = model_builder.build(config.model, is_training=False)
    predictions, shapes = run(model, False)
    spread(model.variables, 1)
    tf.train.Checkpoint(model=model).write(os.path.join(folder, "ckpt-1"))
    predictions, shapes = run(model, False)
    for name in ("box_encodings", "class_predictions_with_background"):
        results["inference/" + name] = predictions[name].numpy()
    for name, value in model.postprocess(predictions, shapes).items():
        if name in ("detection_boxes", "detection_scores", "detection_classes"):
            results["inference/" + name] = value.numpy()

    trained = model_builder.build(config.model, is_training=True)
    run(trained, True)
    tf.train.Checkpoint(model=trained).read(os.path.join(folder, "ckpt-1")).assert_existing_objects_matched()
    with tf.GradientTape() as tape:
        predictions, shapes = run(trained, True)
        losses = trained.loss(predictions, shapes)
        regularization = tf.add_n(trained.regularization_losses())
        total = tf.add_n(list(losses.values())) + regularization
    variables = sorted(trained.trainable_variables, key=lambda v: v.name)
    gradients = tape.gradient(total, variables)
    for name, value in losses.items():
        results["training/" + name] = value.numpy()
    results["training/regularization"] = regularization.numpy()
    results["training/norm"] = tf.linalg.global_norm(gradients).numpy()
    tf.train.Checkpoint(model=trained).write(os.path.join(folder, "ckpt-2"))
    np.savez(os.path.join(folder, "eager.npz"), **results)


if __name__ == "__main__":
    main(*sys.argv[1:])
