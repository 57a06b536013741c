"""Upstream's configs of the TF 2 half (tests/zoo/samples_tf2*.yaml), as the benchmarks run them."""

import os
import sys

import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

_BOXES = 3


def names():
    """{short name: name} of the configs that od_qat trains; the short one lacks data set and hardware."""
    from tests.zoo import samples

    rows = samples.rows(tf2=True)
    return {_short(name): name for name, row in rows.items() if "refused" not in row}


def _short(name: str) -> str:
    """ssd_mobilenet_v2_fpnlite_320x320_coco17_tpu-8 -> ssd_mobilenet_v2_fpnlite_320x320."""
    return name.split("_coco17")[0]


def write_config(folder: str, name: str, batch: int, steps: int, quantized: bool, size=None) -> str:
    """Writes a config on made-up images, from fresh variables; returns its path.

    Args:
      folder: of the config, and of the record that tiny_detector.write_data has made.
      name: a key of :func:`names`.
      batch: batch_size.
      steps: num_steps.
      quantized: whether it has a graph_rewriter block.
      size: side of the images; None for the config's own.
    """
    from od_qat.od_api import pipeline
    from tests.zoo import samples

    plain = os.path.join(folder, name + ".plain")
    with open(plain, "w") as stream:
        stream.write(samples.text(samples.rows(tf2=True)[names()[name]]))
    # (The rates of fresh variables at a small batch: those of the config are for 128 images and more.)
    rate = "train_config.optimizer.momentum_optimizer.learning_rate.cosine_decay_learning_rate."
    overrides = [
        "train_config.batch_size={}".format(batch),
        "train_config.num_steps={}".format(steps),
        "train_config.fine_tune_checkpoint=",
        rate + "learning_rate_base=0.001",
        rate + "warmup_learning_rate=0.0001",
        "train_input_reader.label_map_path=" + os.path.join(folder, "label_map.pbtxt"),
        "train_input_reader.tf_record_input_reader.input_path[0]=" + os.path.join(folder, "data.record"),
    ]
    if size:
        resizer = "model.ssd.image_resizer.fixed_shape_resizer."
        overrides += [resizer + "{}={}".format(side, size) for side in ("height", "width")]
    if quantized:
        overrides.append("graph_rewriter.quantization.delay=0")
    path = os.path.join(folder, "{}_{}.config".format(name, "qat" if quantized else "float"))
    with open(path, "w") as stream:
        stream.write(pipeline.to_text(pipeline.load(plain, overrides)))
    return path


def build_training(config, batch: int) -> None:
    """Builds the training graph of a config in the default graph, up to its losses; it is fed `images:0`."""
    from od_qat.compat import tf
    from od_qat.od_api import halves, keras_models, models

    with halves.active(config):
        model = models.model_fn(config, is_training=True)()
        images, shapes = model.preprocess(_images(config, batch))
        random = np.random.RandomState(0)
        corners = random.uniform(0, 0.5, [batch, _BOXES, 2])
        boxes = np.concatenate([corners, corners + random.uniform(0.2, 0.4, [batch, _BOXES, 2])], 2)
        classes = random.randint(0, config.model.ssd.num_classes, [batch, _BOXES])
        model.provide_groundtruth(
            [tf.constant(each.astype(np.float32)) for each in boxes],
            [tf.one_hot(each, config.model.ssd.num_classes) for each in classes],
        )
        losses = model.loss(model.predict(images, shapes), shapes)
        for name in sorted(losses):
            tf.losses.add_loss(losses[name])
        keras_models.collect(model)


def build_eval(config) -> None:
    """Builds a graph that predicts, in the default graph."""
    from od_qat.od_api import halves, models

    with halves.active(config):
        model = models.model_fn(config, is_training=False)()
        model.predict(*model.preprocess(_images(config, 1)))


def rewriters():
    """The functions that rewrite the default graph with a Keras model, for training and for evaluation."""
    from od_qat.config import QatConfig
    from od_qat.od_api import keras_models
    from od_qat.rewrite import api

    def rewrite(training, graph, **options):
        config = QatConfig(**options)
        config = config if training else config.for_evaluation()
        return api.rewrite(config, training=training, input_graph=graph, outputs=keras_models.outputs())

    return (
        lambda graph, **options: rewrite(True, graph, **options),
        lambda graph, **options: rewrite(False, graph, **options),
    )


def _images(config, batch: int):
    from od_qat.compat import tf

    resizer = config.model.ssd.image_resizer.fixed_shape_resizer
    return tf.placeholder(tf.float32, [batch, resizer.height, resizer.width, 3], "images")
