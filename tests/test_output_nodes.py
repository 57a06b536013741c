"""The output-node helper on graphs with and without canonical names."""

import pytest

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import OdQatError
from od_qat.model_files import output_nodes

compat.enable_tf1_behaviour()
pytestmark = pytest.mark.tf1


def _backbone():
    image = tf.placeholder(tf.float32, [1, 8, 8, 3], name="image")
    kernel = tf.get_variable("kernel", [3, 3, 3, 4])
    return tf.nn.relu6(tf.nn.conv2d(image, kernel, 1, "SAME"), name="backbone/last")


def _find(graph):
    return output_nodes.find_output_nodes(graph.as_graph_def())


def test_detections_by_name_masks_included():
    with tf.Graph().as_default() as graph:
        features = _backbone()
        for name in ("detection_classes", "num_detections", "detection_scores", "detection_boxes"):
            tf.identity(features, name=name)
        tf.identity(features, name="detection_masks")
        found = _find(graph)
    assert found.kind == "detection"
    assert found.names == output_nodes.DETECTION_NAMES + ("detection_masks",)
    assert found.tensors[0] == "detection_boxes:0"


def test_raw_heads():
    with tf.Graph().as_default() as graph:
        features = _backbone()
        tf.identity(features, name="raw_outputs/box_encodings")
        tf.identity(features, name="raw_outputs/class_predictions")
        assert _find(graph).names == output_nodes.RAW_HEAD_NAMES


def test_classifier_predictions_and_never_the_backbone():
    with tf.Graph().as_default() as graph:
        features = _backbone()
        logits = tf.reduce_mean(features, [1, 2])
        tf.nn.softmax(logits, name="MobilenetV1/Predictions/Softmax")
        tf.train.Saver()
        tf.summary.scalar("unrelated", tf.reduce_mean(features))
        found = _find(graph)
    assert found.kind == "classifier"
    assert found.names == ("MobilenetV1/Predictions/Softmax",)


def test_what_only_says_the_best_class_does_not_count_as_a_reader():
    with tf.Graph().as_default() as graph:
        logits = tf.reduce_mean(_backbone(), [1, 2])
        tf.argmax(tf.nn.softmax(logits, name="probabilities"), 1, name="label")
        tf.train.Saver()
        assert _find(graph).names == ("probabilities",)
        tf.sigmoid(logits, name="confidence")
        with pytest.raises(
            OdQatError, match="several possible outputs.*probabilities.*confidence.*output_nod"
        ):
            _find(graph)


def test_a_classifier_without_names():
    with tf.Graph().as_default() as graph:
        tf.reshape(tf.nn.softmax(tf.reduce_mean(_backbone(), [1, 2])), [1, 4], name="out")
        assert _find(graph).names == ("out",)


def test_a_graph_with_an_op_unknown_here_has_candidates_without_shapes():
    with tf.Graph().as_default() as graph:
        tf.nn.softmax(tf.reduce_mean(_backbone(), [1, 2]), name="first")
        definition = graph.as_graph_def()
    definition.node.add(name="mine", op="NobodyKnowsIt", input=["first"])
    for name in ("one", "two"):
        definition.node.add(name=name, op="Softmax", input=["mine"])
    with pytest.raises(OdQatError, match="candidates: one.*two"):
        output_nodes.find_output_nodes(definition)


def test_a_graph_that_is_cut_off_has_candidates():
    definition = tf.GraphDef()
    definition.node.add(name="end", op="Reshape", input=["not_there", "neither"])
    with pytest.raises(OdQatError, match="candidates: end"):
        output_nodes.find_output_nodes(definition)


def test_several_answers_are_listed_with_their_shapes():
    with tf.Graph().as_default() as graph:
        logits = tf.reduce_mean(_backbone(), [1, 2])
        tf.nn.softmax(logits, name="first")
        tf.nn.sigmoid(logits, name="second")
        with pytest.raises(OdQatError, match=r"several.*first \(1, 4\), second \(1, 4\)"):
            _find(graph)


def test_a_headless_graph_is_no_answer():
    with tf.Graph().as_default() as graph:
        _backbone()
        with pytest.raises(OdQatError, match="no output nodes.*backbone/last"):
            _find(graph)


def test_a_training_graph_is_named_as_one():
    with tf.Graph().as_default() as graph:
        slope = tf.get_variable("slope", initializer=1.0)
        tf.train.GradientDescentOptimizer(0.1).minimize(tf.square(slope))
        with pytest.raises(OdQatError, match="training graph.*od-qat export"):
            output_nodes.find_output_nodes(graph.as_graph_def())
