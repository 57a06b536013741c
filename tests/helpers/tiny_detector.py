"""A detector, a data set and configs that are as small as they can be, made without optional packages."""

import io
import os
import subprocess
import sys

import numpy as np
from PIL import Image, ImageDraw

from tests.conftest import REPOSITORY

SIZE = 64
CLASSES = ("square", "bar")
# Of configs/demo_folder_*.config. The learning rate's schedule is longer than any test.
SMALL = (
    "model.ssd.num_classes=2",
    "model.ssd.image_resizer.fixed_shape_resizer.height={}".format(SIZE),
    "model.ssd.image_resizer.fixed_shape_resizer.width={}".format(SIZE),
    "model.ssd.feature_extractor.depth_multiplier=0.25",
    "model.ssd.feature_extractor.min_depth=8",
    "train_config.batch_size=4",
    "train_config.batch_queue_capacity=8",
    "train_config.num_batch_queue_threads=1",
    "train_config.prefetch_queue_capacity=2",
    "train_input_reader.num_readers=1",
    "train_input_reader.shuffle_buffer_size=16",
)


def write_data(folder, images=12, seed=0):
    """A record and a label map.

    Returns:
      their paths.
    """
    from od_qat.compat import tf

    rng = np.random.RandomState(seed)
    record, label_map = os.path.join(folder, "data.record"), os.path.join(folder, "label_map.pbtxt")
    with tf.python_io.TFRecordWriter(record) as writer:
        for number in range(images):
            writer.write(_example(rng, number).SerializeToString())
    with open(label_map, "w") as stream:
        for number, name in enumerate(CLASSES, 1):
            stream.write("item {{ id: {} name: '{}' }}\n".format(number, name))
    return record, label_map


def _example(rng, number):
    from od_qat.compat import tf

    image = Image.fromarray(rng.randint(0, 90, (SIZE, SIZE, 3)).astype(np.uint8))
    draw, boxes, labels = ImageDraw.Draw(image), [], []
    for label, (width, height) in enumerate(((20, 20), (30, 12)), 1):
        left, top = rng.randint(0, SIZE - width), rng.randint(0, SIZE - height)
        draw.rectangle([left, top, left + width, top + height], fill=(250, 100 * label, 30))
        boxes.append((top, left, top + height, left + width))
        labels.append(label)
    stream = io.BytesIO()
    image.save(stream, "PNG")
    corners = np.array(boxes, np.float32).T / SIZE

    def floats(values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))

    def ints(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=values))

    def texts(values):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))

    features = {
        "image/encoded": texts([stream.getvalue()]),
        "image/format": texts([b"png"]),
        "image/filename": texts([b"%d.png" % number]),
        "image/source_id": texts([b"%d" % number]),
        "image/height": ints([SIZE]),
        "image/width": ints([SIZE]),
        "image/object/bbox/ymin": floats(corners[0]),
        "image/object/bbox/xmin": floats(corners[1]),
        "image/object/bbox/ymax": floats(corners[2]),
        "image/object/bbox/xmax": floats(corners[3]),
        "image/object/class/text": texts([CLASSES[label - 1].encode() for label in labels]),
        "image/object/class/label": ints(labels),
    }
    return tf.train.Example(features=tf.train.Features(feature=features))


# Of configs/ssd_mobilenet_v2_fpnlite_qat.config.
SMALL_TF2 = (
    "model.ssd.num_classes=2",
    "model.ssd.image_resizer.fixed_shape_resizer.height={}".format(SIZE),
    "model.ssd.image_resizer.fixed_shape_resizer.width={}".format(SIZE),
    "model.ssd.feature_extractor.depth_multiplier=0.25",
    "model.ssd.feature_extractor.min_depth=8",
    "model.ssd.feature_extractor.fpn.max_level=5",
    "model.ssd.feature_extractor.fpn.additional_layer_depth=16",
    "model.ssd.anchor_generator.multiscale_anchor_generator.max_level=5",
    "model.ssd.box_predictor.weight_shared_convolutional_box_predictor.depth=16",
    "model.ssd.box_predictor.weight_shared_convolutional_box_predictor.num_layers_before_predictor=1",
    "graph_rewriter.quantization.delay=0",
) + tuple(override for override in SMALL if override.startswith("train_"))


def write_config(folder, quantised, name, steps=4, more=(), tf2=False, model=None):
    """A pipeline config on the data of `write_data(folder)`; returns its path.

    Args:
      folder: of data and config.
      quantised: whether it has a graph_rewriter block.
      name: of the file, without .config.
      steps: num_steps.
      more: overrides.
      tf2: whether it is SSD MobileNet V2 FPNLite of the TF 2 half.
      model: text of another DetectionModel of the TF 2 half.
    """
    from google.protobuf import text_format

    from od_qat.files import write_atomically
    from od_qat.messages import overrides as overriding
    from od_qat.od_api import pipeline

    record, label_map = os.path.join(folder, "data.record"), os.path.join(folder, "label_map.pbtxt")
    overrides = [
        "train_config.num_steps={}".format(steps),
        "eval_config.num_examples=4",
        "eval_config.num_visualizations=1",
    ]
    for reader in ("train_input_reader", "eval_input_reader.0"):
        overrides.append("{}.label_map_path={}".format(reader, label_map))
        overrides.append("{}.tf_record_input_reader.input_path={}".format(reader, record))
    source = "demo_folder_{}.config".format("qat" if quantised else "float")
    small = SMALL
    if tf2 or model:
        source, small = "ssd_mobilenet_v2_fpnlite_qat.config", SMALL_TF2
    config = pipeline.load(os.path.join(REPOSITORY, "configs", source), list(small) + overrides)
    if model:
        config.model.Clear()
        text_format.Parse(model, config.model)
    for override in more:
        overriding.apply(config, override)
    if not quantised:
        config.ClearField("graph_rewriter")
    if not any(override.startswith("train_config.fine_tune_checkpoint=") for override in more):
        config.train_config.fine_tune_checkpoint = ""
    path = os.path.join(folder, name + ".config")
    write_atomically(path, pipeline.to_text(config))
    return path


def fake_quants(path):
    """How many there are in the file of a frozen graph, or in a saved_model.pb."""
    from tensorflow.core.protobuf import saved_model_pb2

    from od_qat.compat import tf

    with open(path, "rb") as stream:
        data = stream.read()
    if os.path.basename(path) == "saved_model.pb":
        (of_one,) = saved_model_pb2.SavedModel.FromString(data).meta_graphs
        graph_def = of_one.graph_def
    else:
        graph_def = tf.GraphDef.FromString(data)
    nodes = list(graph_def.node) + [node for one in graph_def.library.function for node in one.node_def]
    return sum(node.op.startswith("FakeQuant") for node in nodes)


def start(arguments, log, env=None):
    """Starts `python arguments...` with od_qat on its path and its output in a file; returns the Popen."""
    environment = dict(os.environ)
    environment.update(env or {})
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [REPOSITORY, environment.get("PYTHONPATH", "")]))
    with open(log, "ab") as stream:
        return subprocess.Popen(
            [sys.executable] + list(arguments),
            stdout=stream,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
