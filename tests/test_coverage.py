"""placement='full' leaves no gap: every model of the zoo becomes a .tflite without a float tensor.

And what an eval graph restores, a training run of the same model has saved.
"""

import pytest

from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.rewrite import api
from tests.zoo import build

pytestmark = pytest.mark.slow

# (The crops between Faster R-CNN's stages are no TFLite op.)
TFLITE_KINDS = ("ssd", "classifier")


def _rows(mark):
    """Rows of the zoo; those with the key `mark` are expected to fail, for the reason that stands there."""
    for row in build.models():
        if "skip" not in row:
            marks = [pytest.mark.xfail(strict=True, reason=row[mark])] if mark in row else []
            yield pytest.param(row, id=row["name"], marks=marks)


@pytest.mark.parametrize("row", _rows("never"))
def test_training_saves_what_evaluation_restores(row):
    saved = {}
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
    assert not saved[False] - saved[True]


@pytest.mark.parametrize(
    "row", [one for one in _rows("stays_float") if one.values[0]["kind"] in TFLITE_KINDS]
)
def test_no_tensor_stays_float(row):
    from od_qat import tflite

    with tf.Graph().as_default() as graph:
        outputs = build.build_network(row)
        report = api.create_eval_graph(graph)
        with build.session(graph) as session:
            build.assign(session, build.variable_values(graph, symmetric_weights=True))
            names = [tensor.op.name for tensor in outputs]
            frozen = tf.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
    size = row["size"]
    model = tflite.convert(frozen, build.NETWORK_INPUT, [1, size, size, 3], names, "int8", 127.5, 127.5)
    floats = tflite.inspect(model).float_tensors
    assert not floats, "{} float tensors, {} first; {}".format(len(floats), floats[0], report.stays_float)
    assert report.stays_float == {}
    tflite.run_once(model, row["name"])
