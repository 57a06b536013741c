"""Builds the models of models.yaml in the default graph, and gives their variables values.

Everything is deterministic and the same on TensorFlow 1.15 and 2: a value depends on a variable's name and
shape only.
"""

import os
import zlib

import numpy as np
from tensorflow.python.framework import meta_graph

import od_qat.plugin  # noqa: F401  (before object_detection and slim's nets)
from od_qat.compat import tf
from tests.helpers import sessions
from tests.zoo import configs
from tests.zoo.configs import CLASSES, images_value

FAKE_QUANT = "FakeQuantWithMinMaxVars"
NETWORK_INPUT = "normalised_images"
_SAMPLES = 64
# What postprocessing reads. (Feature maps are predicted too, but nothing outside the model reads them.)
_OUTPUTS = (
    "logits",
    "box_encodings",
    "class_predictions_with_background",
    "rpn_box_encodings",
    "rpn_objectness_predictions_with_background",
    "refined_box_encodings",
)
_OUTPUT_SCOPE = "zoo_output/"


def models():
    """The rows of models.yaml, in order."""
    return configs.rows("models.yaml")


def of_tier():
    """The rows of the environment's OD_QAT_TESTS (see tests/tiers.py); all of them where it is not set."""
    tier = os.environ.get("OD_QAT_TESTS") or "all"
    if tier == "quick":
        return [row for row in models() if row.get("quick")]
    return [row for row in models() if tier == "all" or "like" not in row]


# --- graphs ---


# (row's name, kind) -> MetaGraphDef, serialised: a graph that several tests rewrite is built once.
# Importing it takes a tenth of the time.
_built = {}


def _build_once(key, build):
    """Builds into the default graph, or imports what was built before."""
    tf.set_random_seed(1)
    if key in _built:  # (tf.train.import_meta_graph would add a saver)
        meta_graph.import_scoped_meta_graph(tf.MetaGraphDef.FromString(_built[key]))
        return
    build()
    _built[key] = tf.train.export_meta_graph(graph=tf.get_default_graph()).SerializeToString()


def build_training(row, batch=2):
    """A training graph as a trainer has it when it calls the rewriter: losses, no gradients."""
    _build_once((row["name"], "training", batch), lambda: _build_training(row, batch))


def build_eval(row):
    """An eval graph.

    Returns:
      the placeholder of the images, and {name: tensor} of what the model predicts. Each tensor reads the
      prediction, as both rewriters quantise what reads a tensor, not the tensor. (The op that reads is one
      that no pattern of theirs knows; an Identity would be taken for an activation.)
    """
    _build_once((row["name"], "eval"), lambda: _build_eval(row))
    graph = tf.get_default_graph()
    outputs = [op for op in graph.get_operations() if op.name.startswith(_OUTPUT_SCOPE)]
    return graph.get_tensor_by_name("images:0"), {
        op.name[len(_OUTPUT_SCOPE) :]: op.outputs[0] for op in outputs
    }


@tf.autograph.experimental.do_not_convert  # layers' code as it is, which takes half the time
def _build_training(row, batch):
    images = tf.placeholder(tf.float32, [batch, row["size"], row["size"], 3], name="images")
    if row["kind"] == "classifier":
        logits, ends = _network(row, images, True)
        labels = tf.one_hot([number % CLASSES for number in range(batch)], CLASSES)
        for one in (logits, ends.get("AuxLogits"), ends.get("aux_logits")):
            if one is not None:
                one = tf.reshape(one, [batch, CLASSES])
                tf.losses.softmax_cross_entropy(labels, one)
        return
    model = _detector(row, True)
    rng = np.random.RandomState(0)
    corners = rng.uniform(0, 0.5, [batch, 3, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(0.2, 0.4, [batch, 3, 2])], 2).astype(np.float32)
    classes = np.eye(CLASSES)[rng.randint(0, CLASSES, [batch, 3])].astype(np.float32)
    model.provide_groundtruth([tf.constant(b) for b in boxes], [tf.constant(c) for c in classes])
    preprocessed, shapes = model.preprocess(images)
    losses = model.loss(model.predict(preprocessed, shapes), shapes)
    for name in sorted(losses):
        tf.losses.add_loss(losses[name])


@tf.autograph.experimental.do_not_convert
def _build_eval(row):
    images = tf.placeholder(tf.float32, [1, row["size"], row["size"], 3], name="images")
    if row["kind"] == "classifier":
        logits, _ = _network(row, images, False)
        outputs = {"logits": logits}
    else:
        model = _detector(row, False)
        preprocessed, shapes = model.preprocess(images)
        outputs = model.predict(preprocessed, shapes)
    for name in _OUTPUTS:
        if name in outputs:
            tf.stop_gradient(outputs[name], name=_OUTPUT_SCOPE + name)


def build_network(row):
    """What becomes a .tflite: normalised pixels, NETWORK_INPUT, to the list of what the model predicts."""
    tf.set_random_seed(1)
    images = tf.placeholder(tf.float32, [1, row["size"], row["size"], 3], name=NETWORK_INPUT)
    if row["kind"] == "classifier":
        outputs = {"logits": _network(row, images, False, normalised=True)[0]}
    else:
        shapes = tf.constant([[row["size"], row["size"], 3]], tf.int32)
        outputs = _detector(row, False).predict(images, shapes)
    return [
        tf.stop_gradient(outputs[name], name=_OUTPUT_SCOPE + name) for name in _OUTPUTS if name in outputs
    ]


def _network(row, images, is_training, normalised=False):
    from nets import nets_factory

    if not normalised:
        images = images / 127.5 - 1.0
    arguments = dict(row.get("arguments", {}))
    if "cells" in row:
        arguments["config"] = _nas_config(row)
    network = nets_factory.get_network_fn(row["net"], CLASSES, weight_decay=4e-5, is_training=is_training)
    return network(images, **arguments)


def _nas_config(row):
    from nets.nasnet import nasnet, pnasnet

    module = pnasnet if row["net"].startswith("pnasnet") else nasnet
    kind = {"cifar": "cifar_config", "mobile": "mobile_imagenet_config", "large": "large_imagenet_config"}
    config = getattr(module, kind[row["net"].rpartition("_")[2]])()
    config.num_cells = row["cells"]
    config.num_conv_filters = 12
    return config


def _detector(row, is_training):
    from google.protobuf import text_format
    from object_detection.builders import model_builder
    from object_detection.protos import model_pb2

    message = text_format.Parse(configs.text(row), model_pb2.DetectionModel())
    return model_builder.build(message, is_training=is_training)


# --- values ---


def variable_values(graph, symmetric_weights=False):
    """{variable name: value} that keeps signals alive through deep nets.

    Weights have He's scale, batch norms are near the identity, and ranges fit: weights' ranges to their
    layer's scale, activations' to a few units either way.
    """
    values = {}
    depthwise = set()
    for op in graph.get_operations():
        if op.type == "DepthwiseConv2dNative":
            depthwise.add(_source(op.inputs[1]))
    with graph.as_default():
        variables = tf.global_variables()
        # (What a model keeps in the moving averages' collection only.)
        variables += [v for v in tf.moving_average_variables() if all(v is not other for other in variables)]
    for variable in variables:
        name, shape = variable.op.name, variable.shape.as_list()
        values[name] = _value(name, shape, name in depthwise).astype(variable.dtype.as_numpy_dtype)
    for op in graph.get_operations():
        if op.type == FAKE_QUANT and op.get_attr("narrow_range"):
            of_depthwise = any(c.type == "DepthwiseConv2dNative" for c in op.outputs[0].consumers())
            limit = _he_limit(op.inputs[0].shape.as_list(), of_depthwise)
            names = [_source(tensor) for tensor in op.inputs[1:]]
            for name, sign in zip(names, (-1.0, 1.0)):
                values[name] = np.float32(sign * limit * _uniform(name, (), 0.7, 1.1))
            if symmetric_weights:
                values[names[0]] = -values[names[1]]
    return values


def assign(session, values):
    """Gives every variable of the session's graph its value."""
    operations, feed = [], {}
    with session.graph.as_default():
        variables = tf.global_variables() + tf.moving_average_variables()
    for variable in variables:
        operations.append(variable.initializer)
        feed[variable.initializer.inputs[1]] = values[variable.op.name]
    session.run(operations, feed)


def session(graph):
    """A session whose results do not depend on the number of cores or on graph optimisation."""
    config = tf.ConfigProto(intra_op_parallelism_threads=1)
    return tf.Session(graph=graph, config=sessions.plain_config(config))


def run_eval(row, images, outputs):
    """{output name: array} for the deterministic values and picture."""
    return run_with_values(outputs, images, images_value(row))


def run_with_values(outputs, images, value):
    """Outputs of a graph with the deterministic values of its variables, for the `value` of its input."""
    with session(images.graph) as running:
        assign(running, variable_values(images.graph))
        return running.run(outputs, {images: value})


def digest(array):
    """What is kept of an output: shape, mean, standard deviation and up to 64 evenly spaced values."""
    flat = np.asarray(array, np.float64).ravel()
    step = max(1, -(-flat.size // _SAMPLES))
    return {
        "shape": list(np.shape(array)),
        "mean": _rounded(flat.mean()) if flat.size else 0.0,
        "std": _rounded(flat.std()) if flat.size else 0.0,
        "values": [_rounded(value) for value in flat[::step]],
    }


def _rounded(value):
    return float("{:.6g}".format(float(value)))


def _source(tensor):
    """Name of the variable that a tensor is a value of."""
    op = tensor.op
    while op.type in ("Identity", "ReadVariableOp", "Assign") and len(op.inputs):
        op = op.inputs[0].op
    return op.name


def _value(name, shape, depthwise):
    last = name.rpartition("/")[2]
    if last in ("moving_variance", "gamma"):
        return _uniform(name, shape, 0.7, 1.4)
    if last in ("beta", "biases", "bias", "moving_mean"):
        return _uniform(name, shape, -0.3, 0.3)
    if last == "min":
        return _uniform(name, shape, -5.0, -3.0)
    if last == "max":
        return _uniform(name, shape, 3.0, 6.0)
    if len(shape) < 2:
        return np.zeros(shape)
    limit = _he_limit(shape, depthwise)
    return _uniform(name, shape, -limit, limit)


def _he_limit(shape, depthwise):
    inputs = np.prod(shape[:-2] if depthwise else shape[:-1])
    return np.sqrt(6.0 / max(1.0, float(inputs)))


def _uniform(name, shape, low, high):
    """Uniform values seeded by the name; large arrays repeat 65,537 of them (a prime)."""
    size = int(np.prod(shape, dtype=np.int64))
    rng = np.random.RandomState(zlib.crc32(name.encode("utf-8")) & 0xFFFFFFFF)
    values = rng.uniform(low, high, min(size, 65537)).astype(np.float32)
    return np.resize(values, shape) if size else np.zeros(shape, np.float32)
