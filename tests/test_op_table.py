"""Each op of docs/supported_ops.md between layers: nothing stays float, and the .tflite computes the same."""

import os

import pytest

from od_qat.compat import IS_TF1, tf
from od_qat.export import freeze, tflite_checks
from od_qat.rewrite import api, policy
from tests.helpers.small_road import SIZE, conv, converted, distance, frozen, run, run_tflite, trained
from tests.zoo import build

pytestmark = pytest.mark.tf1


def _there_and_back(net):
    return tf.batch_to_space_nd(
        tf.space_to_batch_nd(net, [2, 2], [[0, 0], [0, 0]]) * 0.9, [2, 2], [[0, 0]] * 2
    )


_AROUND = [[0, 0], [1, 1], [1, 1], [0, 0]]
# What stands between two layers; its name is the op's type.
BETWEEN = {
    "Add": lambda net: tf.raw_ops.Add(x=net, y=tf.constant(0.5)),
    "AddV2": lambda net: tf.raw_ops.AddV2(x=net, y=tf.constant(0.5)),
    "AvgPool": lambda net: tf.nn.avg_pool2d(net, 2, 2, "SAME"),
    "BatchToSpaceND": _there_and_back,
    "ConcatV2": lambda net: tf.concat([net, 0.1 * net], 3),
    "DepthToSpace": lambda net: tf.depth_to_space(net, 2),
    "ExpandDims": lambda net: tf.squeeze(tf.expand_dims(net, 1), [1]),
    "Identity": tf.identity,
    "IdentityN": lambda net: tf.identity_n([net])[0],
    "LeakyRelu": lambda net: tf.nn.leaky_relu(net - 1.0),
    "Max": lambda net: tf.reduce_max(net, [1], keepdims=True),
    "MaxPool": lambda net: tf.nn.max_pool2d(net, 2, 2, "SAME"),
    "Maximum": lambda net: tf.maximum(net, 0.1),
    "Mean": lambda net: tf.reduce_mean(net, [1, 2], keepdims=True),
    "Minimum": lambda net: tf.minimum(net, 0.5),
    "MirrorPad": lambda net: tf.pad(net, _AROUND, "REFLECT"),
    "Mul": lambda net: 1.7 * net,
    "Neg": lambda net: -net,
    "Pack": lambda net: tf.reshape(tf.stack([net, 0.1 * net], 3), [-1, SIZE, 2 * SIZE, 8]),
    "Pad": lambda net: tf.pad(net, _AROUND),
    "PadV2": lambda net: tf.pad(net, _AROUND, constant_values=0.5),
    "RealDiv": lambda net: net / 1.7,
    "Relu": lambda net: tf.nn.relu(net - 0.3),
    "Relu6": lambda net: tf.nn.relu6(net - 0.3),
    "Reshape": lambda net: tf.reshape(net, [-1, SIZE // 2, 2 * SIZE, 8]),
    "ResizeBilinear": lambda net: tf.image.resize_bilinear(net, [2 * SIZE, 2 * SIZE]),
    "ResizeNearestNeighbor": lambda net: tf.image.resize_nearest_neighbor(net, [2 * SIZE, 2 * SIZE]),
    "Sigmoid": tf.nn.sigmoid,
    "Slice": lambda net: tf.slice(net, [0, 0, 0, 2], [-1, -1, -1, 5]),
    "Softmax": tf.nn.softmax,
    "SpaceToBatchND": _there_and_back,
    "SpaceToDepth": lambda net: tf.space_to_depth(net, 2),
    "Split": lambda net: tf.split(net, 2, 3)[1],
    "SplitV": lambda net: tf.split(net, [3, 5], 3)[1],
    "Squeeze": lambda net: tf.squeeze(tf.expand_dims(net, 1), [1]),
    "StopGradient": tf.stop_gradient,
    "StridedSlice": lambda net: net[:, ::2],
    "Sub": lambda net: 0.5 - net,
    "Tanh": tf.nn.tanh,
    "Tile": lambda net: tf.tile(net, [1, 1, 2, 1]),
    "Transpose": lambda net: tf.transpose(net, [0, 2, 1, 3]),
}


def test_every_op_of_the_table_is_tried():
    between = policy.OWN_RANGE | policy.JOINS | policy.HANDS_ON_RANGE | policy.FIXED_RANGE
    assert set(BETWEEN) == between


# Of ranges like these today's converter leaves about half float, behind a split of which one part is read.
UPPER_ENDS = (
    1.4259594678878784,
    0.5493142008781433,
    1.4318251609802246,
    1.076993465423584,
    2.1328558921813965,
)


def _float_tensors_of_splits(kind, helped, tmp_path):
    """With a fake quant behind the part that is not read, which helps the converter, or without."""
    found = []
    for upper in UPPER_ENDS:
        with tf.Graph().as_default() as graph:
            images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8], name="images")
            features = BETWEEN[kind](tf.nn.relu6(conv(images, "one")))
            tf.reshape(conv(features, "out"), [1, -1], name="result")
            api.create_eval_graph(graph)
            values = dict(build.variable_values(graph, symmetric_weights=True))
            values["one/act_quant/min"], values["one/act_quant/max"] = 0.0, upper
            with tf.Session() as session:
                build.assign(session, values)
                checkpoint = tf.train.Saver().save(session, os.path.join(str(tmp_path), "model.ckpt"))
            if not helped:
                (part,) = [op for op in graph.get_operations() if op.type == kind]
                (output,) = [output for output in part.outputs if output.consumers()]
                again = output.consumers()[0].outputs[0]
                for reader in again.consumers():
                    reader._update_input(0, output)
            frozen_graph = freeze.freeze(checkpoint, ["result"], graph)
        found.extend(tflite_checks.inspect(converted(frozen_graph)).float_tensors)
    return found


@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15's converter keeps a split in 8 bits")
@pytest.mark.parametrize("kind", ["Split", "SplitV"])
def test_a_split_of_which_one_part_is_read_stays_quantised(kind, tmp_path):
    assert _float_tensors_of_splits(kind, True, tmp_path) == []


@pytest.mark.canary
@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15's converter keeps a split in 8 bits")
@pytest.mark.parametrize("kind", ["Split", "SplitV"])
def test_the_converter_needs_help_with_a_split(kind, tmp_path):
    assert _float_tensors_of_splits(kind, False, tmp_path)


@pytest.mark.parametrize("kind", sorted(BETWEEN))
def test_an_op_between_layers_stays_quantised(kind, tmp_path):
    def net(images, training):
        features = tf.nn.relu6(conv(images, "one", spread=0.05))
        features = BETWEEN[kind](features)
        features.set_shape([images.shape[0]] + features.shape.as_list()[1:])
        return conv(features, "out")

    checkpoint = trained(net, str(tmp_path))  # (Its report says that nothing stays float.)
    as_it_is = frozen(net, checkpoint, rewrite=False)
    assert kind in {node.op for node in as_it_is.node}
    quantised = frozen(net, checkpoint)
    here = run(quantised)
    assert distance(run(as_it_is), here) < 0.1
    if IS_TF1:
        return  # (Its converter knows about half of these ops in 8 bits.)
    model = converted(quantised)
    assert tflite_checks.check(model, tflite_checks.count_weights(quantised), kind).float_tensors == []
    assert distance(here, run_tflite(model)) < 0.05
