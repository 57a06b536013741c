"""placement='full' leaves no gap: every model of the zoo becomes a .tflite without a float tensor.

And what an eval graph restores, a training run of the same model has saved.
"""

import numpy as np
import pytest

from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.rewrite import api
from tests import tiers
from tests.zoo import build

# (The crops between Faster R-CNN's stages are no TFLite op.)
TFLITE_KINDS = ("ssd", "classifier")


def _rows(kinds, may_stay_float=True):
    """Rows of the zoo; one with a reason to stay float is expected to fail where that counts."""
    for row in build.models():
        if "skip" in row or row["kind"] not in kinds:
            continue
        marks = tiers.of_model(row)
        if "stays_float" in row and not may_stay_float:
            marks += [pytest.mark.canary, pytest.mark.xfail(strict=True, reason=row["stays_float"])]
        yield pytest.param(row, id=row["name"], marks=marks)


@pytest.mark.parametrize("row", _rows(TFLITE_KINDS + ("faster_rcnn",)))
def test_training_saves_what_evaluation_restores(row):
    saved, names = {}, {}
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            if training:
                build.build_training(row)
                report = api.create_training_graph(graph)
            else:
                build.build_eval(row)
                report = api.create_eval_graph(graph)
            assert report.weights and report.activations
            saved[training] = {v.op.name for v in graph.get_collection(QUANT_VARIABLES)}
            names[training] = set(report.weights + report.activations)
    assert not saved[False] - saved[True]
    trained_alone = names[True] - names[False]
    assert all(name.startswith(row.get("train_only", "-")) for name in trained_alone), trained_alone


@pytest.mark.tf1
@pytest.mark.long_on_tf1
@pytest.mark.zoo
def test_faster_rcnn_trains_and_is_evaluated_with_what_it_saved(tmp_path):
    """Both stages: a training step moves their ranges and kernels, and evaluation restores them all."""
    (row,) = [row for row in build.models() if row["name"] == "faster_rcnn_inception_v2"]
    pixels = build.images_value(row)
    with tf.Graph().as_default() as graph:
        build.build_training(row, batch=1)
        api.create_training_graph(graph)
        loss = tf.losses.get_total_loss()
        train = tf.train.MomentumOptimizer(1e-4, 0.9).minimize(loss)
        ranges = {v.op.name: v for v in graph.get_collection(QUANT_VARIABLES)}
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            before = session.run(ranges)
            for _ in range(2):
                update = [train, loss] + tf.get_collection(tf.GraphKeys.UPDATE_OPS)
                assert np.isfinite(session.run(update, {"images:0": pixels})[1])
            after = session.run(ranges)
            prefix = tf.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    moved = [name for name in after if name.endswith("_quant/max") and after[name] != before[name]]
    for stage in ("FirstStage", "SecondStage"):
        assert any(name.startswith(stage) for name in moved), moved
    with tf.Graph().as_default() as graph:
        images, outputs = build.build_eval(row)
        api.create_eval_graph(graph)
        with tf.Session() as session:
            tf.train.Saver().restore(session, prefix)
            values = session.run(outputs, {images: pixels})
    assert "class_predictions_with_background" in values
    assert all(np.all(np.isfinite(value)) and np.std(value) > 0 for value in values.values())


@pytest.mark.parametrize("row", _rows(TFLITE_KINDS, may_stay_float=False))
def test_no_tensor_stays_float(row):
    with tf.Graph().as_default() as graph:
        outputs = build.build_network(row)
        _assert_int8(graph, build.NETWORK_INPUT, row["size"], outputs)


def test_what_no_model_of_the_zoo_has_stays_int8_too():
    """LeakyReLU, squeeze-excite and hard-swish by hand, resizes, a mean, an atrous layer, a MatMul head."""
    import tf_slim as slim

    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, 32, 32, 3], name=build.NETWORK_INPUT)
        norm = {"is_training": False, "scale": True}
        with slim.arg_scope([slim.conv2d], normalizer_fn=slim.batch_norm, normalizer_params=norm):
            net = slim.conv2d(images, 8, 3, activation_fn=tf.nn.leaky_relu, scope="leaky")
            squeezed = tf.reduce_mean(net, [1, 2], keepdims=True)
            squeezed = slim.conv2d(squeezed, 4, 1, normalizer_fn=None, scope="squeeze")
            gate = slim.conv2d(squeezed, 8, 1, activation_fn=tf.sigmoid, normalizer_fn=None, scope="excite")
            net = net * gate
            small = slim.conv2d(net, 8, 3, stride=2, activation_fn=None, scope="small")
            small = small * tf.nn.relu6(small + 3.0) * (1.0 / 6.0)
            net = slim.conv2d(net, 8, 3, rate=2, activation_fn=tf.nn.relu, scope="atrous")
            nearest = tf.image.resize_nearest_neighbor(small, [32, 32])
            bilinear = tf.image.resize_bilinear(small, [32, 32])
            net = tf.nn.relu(tf.add(tf.add(net, nearest), bilinear))
            net = tf.concat([slim.max_pool2d(net, 2), slim.avg_pool2d(net, 2)], 3)
            net = slim.conv2d(net, 8, 1, scope="last")
        logits = slim.fully_connected(tf.reduce_mean(net, [1, 2]), 4, activation_fn=None, scope="head")
        _assert_int8(graph, build.NETWORK_INPUT, 32, [tf.stop_gradient(logits, name="logits")])


def _assert_int8(graph, input_name, size, outputs):
    """Rewrites an eval graph, freezes and converts it, and looks into the .tflite."""
    from od_qat.export import tflite, tflite_checks

    report = api.create_eval_graph(graph)
    with build.session(graph) as session:
        build.assign(session, build.variable_values(graph, symmetric_weights=True))
        names = [tensor.op.name for tensor in outputs]
        frozen = tf.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
    model = tflite.convert(frozen, input_name, [1, size, size, 3], names, "int8", 127.5, 127.5)
    floats = tflite_checks.inspect(model).float_tensors
    assert not floats, "{} float tensors, {} first; {}".format(len(floats), floats[0], report.stays_float)
    assert report.stays_float == {}
    tflite_checks.run_once(model, names[0])
