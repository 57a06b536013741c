"""Every model that the OD API registers for TF 2: the zoo's second half (tests/zoo/tf2_models.yaml)."""

import importlib.util
import os

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.compat import IS_TF1, tf  # noqa: E402
from tests import tiers  # noqa: E402
from tests.helpers import sessions  # noqa: E402
from tests.zoo import configs, eager_tf2  # noqa: E402

try:
    from od_qat import plugin  # noqa: F401
    from od_qat.od_api import halves, keras_models, models
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

from google.protobuf import text_format  # noqa: E402

from od_qat import checkpoints  # noqa: E402
from od_qat.checkpoints import QUANT_VARIABLES  # noqa: E402
from od_qat.config import QatConfig  # noqa: E402
from od_qat.export import tflite, tflite_checks  # noqa: E402
from od_qat.graph.index import GraphIndex  # noqa: E402
from od_qat.rewrite import api, live, planner  # noqa: E402

pytestmark = [
    pytest.mark.skipif(IS_TF1, reason="TF 2 models need TensorFlow 2"),
    pytest.mark.timeout(1500),  # (of the first, which waits for upstream's eager code on all models)
]

ROWS = [row for row in configs.rows("tf2_models.yaml") if "skip" not in row]
# Of an output's largest value; both run the same kernels.
SAME = 1e-5
# Of a loss, and of what a step changes in a variable.
STEP = 1e-3
# Of an output's spread, root mean square. The rewritten graph runs with 16 bits for 8, and has the ranges of
# the very picture, so that rounding, which grows from layer to layer of random weights, hides no wrong value.
BITS, CLOSE = 16, 0.05
FAKE_QUANT = "FakeQuantWithMinMaxVars"
INPUT, PROPOSALS = "normalised_images", "proposal_boxes_normalized"


def _config(row):
    from object_detection.protos import pipeline_pb2

    config = pipeline_pb2.TrainEvalPipelineConfig()
    text_format.Parse(configs.text(row), config.model)
    return config


def _cases():
    for row in ROWS:
        marks = tiers.of_model(row)
        if "package" in row and importlib.util.find_spec(row["package"]) is None:
            reason = "needs {}: pip install --no-deps tf-models-official".format(row["package"])
            marks.append(pytest.mark.skip(reason=reason))
        yield pytest.param(row, id=row["name"], marks=marks)


@pytest.fixture(scope="module")
def eager(request, tmp_path_factory, run_python):
    """A folder with what upstream computes, for each model of this run; one process makes all of it."""
    folder = str(tmp_path_factory.mktemp("zoo"))
    names = {
        item.callspec.params["model"]["name"]
        for item in request.session.items
        if "model" in getattr(getattr(item, "callspec", None), "params", ())
        and item.fspath == request.fspath
        and not item.get_closest_marker("skip")
    }
    arguments = ["-m", "tests.zoo.eager_tf2", folder] + sorted(names) + ["--steps"] * tiers.ALL
    # (This process has TensorFlow 2's behaviour switched off.)
    done = run_python(*arguments, timeout=1500, env={"TF2_BEHAVIOR": "1"})
    assert done.status == 0, done.errors[-3000:]
    return folder


class Model(object):
    """A model of the zoo: its graph for inference, and what upstream's and its own float graph compute.

    Attributes:
      row: of tf2_models.yaml.
      expected: name -> array, of upstream's eager code.
      found: name -> array, of the float graph.
      preprocessed: the picture as the float graph preprocesses it.
      distances: name of an output -> distance of the rewritten graph from the float one.
      report: of the rewrite.
      float_tensors: of the .tflite; None if there is none of such a model.
    """

    def __init__(self, row, folder):
        self.row = row
        error = os.path.join(folder, row["name"] + ".error")
        if os.path.exists(error):
            with open(error) as stream:
                raise AssertionError("upstream: " + stream.read()[-3000:])
        self._folder = folder
        self._prefix = self.path("-1")
        with np.load(os.path.join(folder, row["name"] + ".npz")) as stored:
            self.expected = dict(stored)
        config = _config(row)
        with halves.active(config), tf.Graph().as_default() as graph:
            outputs = self._build(config)
            plan = planner.build_plan(
                GraphIndex(graph, live.leading_to(graph, keras_models.outputs())), QatConfig(), True
            )
            values = self._run_float(outputs, plan)
            self.report = api.rewrite(QatConfig(), False, graph, keras_models.outputs())
            self._run_rewritten(outputs, values)

    def path(self, end):
        """A file of the model's in the folder of what upstream computes."""
        return os.path.join(self._folder, self.row["name"] + end)

    def _build(self, config):
        size = self.row["size"]
        self._pixels = tf.placeholder(tf.float32, [1, size, size, 3])
        normalised = tf.placeholder(tf.float32, [1, size, size, 3], name=INPUT)
        model = models.model_fn(config, False)()
        self._preprocess, shapes = model.preprocess(self._pixels)
        predictions = model.predict(normalised, tf.constant([[size, size, 3]]))
        outputs = {
            name: tf.identity(one, "raw_" + name) for name, one in eager_tf2.predicted(predictions).items()
        }
        detections = model.postprocess(predictions, tf.constant([[size, size, 3]]))
        self._predicted = sorted(outputs)
        self._proposals = predictions.get(PROPOSALS)
        outputs.update((name, detections[name]) for name in eager_tf2.DETECTIONS)
        return outputs

    def _run_float(self, outputs, plan):
        """Returns the values of all variables, and of the ranges that will be, by name."""
        variables = checkpoints.named(self._prefix)
        checkpoints.require_all(variables, self._prefix, ())
        with sessions.plain() as session:
            tf.train.Saver(variables).restore(session, self._prefix)
            self.preprocessed = session.run(self._preprocess, {self._pixels: configs.images_value(self.row)})
            self._feed = {INPUT + ":0": self.expected["preprocessed"]}
            quantised = {one.name: one.tensor for one in plan.activations}
            wanted = [outputs, quantised, {v.op.name: v for v in tf.global_variables()}]
            if self._proposals is not None:
                wanted.append(self._proposals)
            self.found, quantised, values, *proposals = session.run(wanted, self._feed)
        for name, value in quantised.items():
            values[name + "/min"], values[name + "/max"] = min(value.min(), 0.0), max(value.max(), 0.0)
        # (Other boxes in the second stage would not be a difference of its arithmetic.)
        self._feed.update(zip([self._proposals], proposals))
        return values

    def _run_rewritten(self, outputs, values):
        graph = tf.get_default_graph()
        for operation in graph.get_operations():
            if operation.type == FAKE_QUANT:
                operation._set_attr("num_bits", tf.AttrValue(i=BITS))
        of_weights = [graph.get_operation_by_name("{}/{}".format(n, FAKE_QUANT)) for n in self.report.weights]
        by_name = {v.op.name: v for v in tf.global_variables()}
        with sessions.plain() as session:
            sessions.assign(session, {v: values[n] for n, v in by_name.items() if n in values})
            scaled = session.run([operation.inputs[0] for operation in of_weights])
            for name, value in zip(self.report.weights, scaled):
                high = np.float32(np.abs(value).max())
                values[name + "/min"], values[name + "/max"] = -high, high
            ranges = {v: values[n] for n, v in by_name.items() if n.endswith(("/min", "/max"))}
            sessions.assign(session, ranges)
            rewritten = session.run({name: outputs[name] for name in self._predicted}, self._feed)
            self.float_tensors = None
            if self.row["kind"] != "faster_rcnn":
                self.float_tensors = self._tflite(session, [outputs[n].op.name for n in self._predicted])
        self.distances = {
            name: float(np.sqrt(np.mean(np.square(value - self.found[name]))) / np.std(self.found[name]))
            for name, value in rewritten.items()
        }

    def _tflite(self, session, names):
        frozen = tf.graph_util.convert_variables_to_constants(session, session.graph.as_graph_def(), names)
        for node in frozen.node:
            if node.op == FAKE_QUANT:
                node.attr["num_bits"].i = 8
        size = self.row["size"]
        model = tflite.convert(frozen, INPUT, [1, size, size, 3], names, "int8", 127.5, 127.5)
        tflite_checks.run_once(model, self.row["name"])
        return tflite_checks.inspect(model).float_tensors


@pytest.fixture(scope="module", params=_cases())
def model(request, eager):
    return Model(request.param, eager)


def test_the_float_graph_is_upstreams(model):
    def close(found, name):
        expected = model.expected[name]
        limit = SAME * max(float(np.abs(expected).max()), 1e-6)
        np.testing.assert_allclose(found, expected, rtol=0, atol=limit, err_msg=name)

    close(model.preprocessed, "preprocessed")
    assert set(model.found) == set(model.expected) - {"preprocessed"}
    for name, value in model.found.items():
        assert np.all(np.isfinite(value)) and (name in eager_tf2.DETECTIONS or np.std(value) > 0), name
        close(value, name)


def _require_all_quantised(report, row):
    reasons = configs.float_reasons(row["kind"])
    assert not set(report.stays_float.values()) - reasons, report.stays_float


def test_the_rewritten_graph_is_close_to_it(model):
    _require_all_quantised(model.report, model.row)
    assert max(model.distances.values()) < CLOSE, model.distances
    assert min(model.distances.values()) > 0


def test_the_tflite_has_no_float_tensor(model):
    """Up to the heads."""
    if model.float_tensors is None:
        pytest.skip("a Faster R-CNN has no .tflite")
    assert model.float_tensors == []


def test_training_has_the_same_ranges(model):
    config, row = _config(model.row), model.row
    with halves.active(config), tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [2, row["size"], row["size"], 3])
        detector = models.model_fn(config, True)()
        boxes = tf.constant([[0.1, 0.1, 0.5, 0.6], [0.3, 0.2, 0.9, 0.8]])
        detector.provide_groundtruth(
            [boxes, boxes],
            [tf.one_hot([0, 1], configs.CLASSES)] * 2,
            groundtruth_weights_list=[tf.ones([2])] * 2,
        )
        preprocessed, shapes = detector.preprocess(images)
        losses = detector.loss(detector.predict(preprocessed, shapes), shapes)
        assert losses
        report = api.rewrite(QatConfig(), True, graph, keras_models.outputs())
        saved = {v.op.name for v in graph.get_collection(QUANT_VARIABLES)}
    _require_all_quantised(report, row)
    assert report.weights == model.report.weights
    assert report.activations == model.report.activations
    assert {name + end for name in report.weights + report.activations for end in ("/min", "/max")} <= saved


@pytest.mark.long
def test_a_step_of_training_is_upstreams(model):
    """Its losses, and all variables after it: weights less their gradients, and averages of batch norms."""
    config, row = _config(model.row), model.row
    expected = np.load(model.path("-step.npz"))
    before, after = model.path("-1"), model.path("-2")
    with halves.active(config), eager_tf2.nothing_by_chance(config.model), tf.Graph().as_default():
        detector = models.model_fn(config, True)()
        preprocessed, shapes = detector.preprocess(tf.constant(configs.two_images_value(row)))
        eager_tf2.provide_truth(tf, detector)
        losses = dict(detector.loss(detector.predict(preprocessed, shapes), shapes))
        keras_models.collect(detector)
        regularization = tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES)
        losses["regularization"] = tf.add_n(regularization or [tf.constant(0.0)])
        weights = tf.trainable_variables()
        gradients = tf.gradients(tf.add_n(list(losses.values())), weights)
        gradients = {v.op.name: g for v, g in zip(weights, gradients) if g is not None}
        keys = {variable.op.name: key for key, variable in checkpoints.named(before).items()}
        checkpoints.require_all(checkpoints.named(before), before, ())
        with sessions.plain() as session:
            session.run([tf.global_variables_initializer(), tf.tables_initializer()])
            tf.train.Saver(checkpoints.named(before)).restore(session, before)
            values, gradients, _ = session.run(
                [losses, gradients, tf.get_collection(tf.GraphKeys.UPDATE_OPS)]
            )
            moved = session.run({v.op.name: v for v in tf.global_variables() if v.op.name in keys})
    assert set(values) == set(expected)
    for name, value in values.items():
        np.testing.assert_allclose(value, expected[name], rtol=STEP, err_msg=name)
    was, reader = tf.train.load_checkpoint(before), tf.train.load_checkpoint(after)
    expected = {name: reader.get_tensor(key) for name, key in keys.items()}
    changes = {name: np.abs(expected[name] - was.get_tensor(key)).max() for name, key in keys.items()}
    # (The gradient of a bias in front of a batch norm is rounding and nothing else.)
    rounding = 1e-6 * max(changes.values())
    for name, change in changes.items():
        limit = STEP * change + rounding + 1e-6 * np.abs(expected[name]).max()
        found = moved[name] - gradients.get(name, 0.0)
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=limit, err_msg=name)
    assert sum(change > 0 for change in changes.values()) > 20


def test_every_registered_extractor_is_in_the_zoo():
    from object_detection.builders import model_builder

    with halves.active(_config(ROWS[0])):
        registered = {
            "ssd": model_builder.SSD_KERAS_FEATURE_EXTRACTOR_CLASS_MAP,
            "faster_rcnn": model_builder.FASTER_RCNN_KERAS_FEATURE_EXTRACTOR_CLASS_MAP,
            "center_net": model_builder.CENTER_NET_EXTRACTOR_FUNCTION_MAP,
        }
        for kind, known in registered.items():
            zoo = {row["net"] for row in configs.rows("tf2_models.yaml") if row["kind"] == kind}
            assert zoo == set(known)
