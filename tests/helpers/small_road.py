"""What a test needs to take a small net of its own from training to a .tflite that runs."""

import os
import zlib

import numpy as np

from od_qat.compat import FAKE_QUANT_TYPES, tf
from od_qat.export import freeze, tflite
from od_qat.model_files import interpreter as litert
from od_qat.rewrite import api
from od_qat.scoring.images import dequantize
from tests.helpers import sessions

SIZE = 16


def pictures(seed, batch=4):
    return np.random.RandomState(seed).uniform(-1, 1, [batch, SIZE, SIZE, 8]).astype(np.float32)


def variable(name, shape, spread):
    seed = zlib.crc32((tf.get_variable_scope().name + "/" + name).encode())
    return tf.get_variable(name, shape, initializer=tf.random_normal_initializer(0, spread, seed=seed))


def conv(net, name, bias=True, spread=0.3, channels=8):
    with tf.variable_scope(name):
        weights = variable("w", [3, 3, int(net.shape[3]), channels], spread)
        net = tf.nn.conv2d(net, weights, [1, 1, 1, 1], "SAME")
        return tf.nn.bias_add(net, variable("b", [channels], spread)) if bias else net


def norm(net, name, training):
    import tf_slim as slim

    return slim.batch_norm(net, is_training=training, decay=0.8, scale=True, fused=True, scope=name)


def trained(net, folder):
    """Ranges and averages of a few batches; returns the checkpoint."""
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [4, SIZE, SIZE, 8])
        output = tf.reduce_sum(net(images, True))
        report = api.create_training_graph(graph)
        assert report.stays_float == {}
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            for step in range(60):
                session.run([output] + tf.get_collection(tf.GraphKeys.UPDATE_OPS), {images: pictures(step)})
            return tf.train.Saver(tf.global_variables()).save(session, os.path.join(folder, "model.ckpt"))


def frozen(net, checkpoint, rewrite=True):
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8], name="images")
        tf.reshape(net(images, False), [1, -1], name="result")
        if rewrite:
            api.create_eval_graph(graph)
        return freeze.freeze(checkpoint, ["result"], graph)


def run(graph_def):
    with tf.Graph().as_default(), sessions.plain() as session:
        tf.import_graph_def(graph_def, name="")
        return session.run("result:0", {"images:0": pictures(99, batch=1)})


def converted(graph_def):
    """int8 on TensorFlow 2, uint8 on 1.15, whose converter makes no int8 of fake quants."""
    return tflite.convert(
        graph_def, "images", [1, SIZE, SIZE, 8], ["result"], FAKE_QUANT_TYPES[0], 127.5, 127.5
    )


def run_tflite(model):
    interpreter = litert.without_delegates(model)
    interpreter.allocate_tensors()
    (given,), (made,) = interpreter.get_input_details(), interpreter.get_output_details()
    scale, zero_point = given["quantization"]
    limits = np.iinfo(given["dtype"])
    values = np.clip(np.round(pictures(99, batch=1) / scale + zero_point), limits.min, limits.max)
    interpreter.set_tensor(given["index"], values.astype(given["dtype"]))
    interpreter.invoke()
    return dequantize(interpreter.get_tensor(made["index"]), *made["quantization"])


def distance(a, b):
    """Root mean square, as a part of the spread of `a`."""
    return float(np.sqrt(np.mean(np.square(a - b))) / np.std(a))
