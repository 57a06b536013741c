"""Graphs of Keras models: copies that lead nowhere, kernels that several layers read, and names of ranges."""

import functools
import subprocess
import sys
from typing import Any, Dict, List, NamedTuple

import numpy as np
import pytest

import od_qat.plugin  # noqa: F401  (before object_detection)
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import IS_TF1, tf
from od_qat.config import LayerRule, QatConfig
from od_qat.errors import RewriteError
from od_qat.rewrite import api
from tests.helpers import keras_layers, sessions
from tests.zoo import build

pytestmark = pytest.mark.skipif(IS_TF1, reason="the OD API's Keras models need TensorFlow 2")

SMALL_SIZE = 16
SIZE = {keras_layers.Functional: SMALL_SIZE, keras_layers.FpnLite: 128}
WEIGHTED = ("Conv2D", "DepthwiseConv2dNative")
UPDATES = ("AssignSubVariableOp", "AssignVariableOp")
FAKE_QUANT = "FakeQuantWithMinMaxVars"


def _model(kind, training, calls_before=0):
    """A model in the default graph, and the outputs of its last call."""
    model = kind(training)
    size = SIZE.get(kind, SMALL_SIZE)
    for number in range(calls_before):
        model(tf.placeholder(tf.float32, [1, size, size, 3], name="before_{}".format(number)))
    images = tf.placeholder(tf.float32, [2 if training else 1, size, size, 3], name=build.NETWORK_INPUT)
    outputs = model(images)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    return [tf.identity(output, "raw_{}".format(at)) for at, output in enumerate(outputs)]


class _Rewritten(NamedTuple):
    """A rewritten graph: its outputs, the report, and what did not lead to the outputs before.

    Attributes:
      size: the number of ops before.
      others: op that led to no output -> its bytes before.
    """

    graph: Any
    outputs: List[Any]
    report: Any
    size: int
    others: Dict[Any, bytes]


@functools.lru_cache(maxsize=None)
def _rewritten(kind, training, calls_before=0):
    """A model's rewritten graph, for several tests, which only read it."""
    with tf.Graph().as_default() as graph:
        outputs = _model(kind, training, calls_before)
        live = _sources(tensor.op for tensor in outputs)
        operations = graph.get_operations()
        others = {op: op.node_def.SerializeToString() for op in operations if op.name not in live}
        report = api.rewrite(QatConfig(), training, graph, outputs)
    assert report.stays_float == {}
    return _Rewritten(graph, outputs, report, len(operations), others)


def _names(kind, training, calls_before=0):
    """The names of all ranges, in order."""
    report = _rewritten(kind, training, calls_before).report
    return report.weights + report.activations


def _sources(operations):
    """The names of ops and of all that leads to them, as TensorFlow follows them to run the ops."""
    found, pending = set(), list(operations)
    while pending:
        operation = pending.pop()
        if operation.name not in found:
            found.add(operation.name)
            pending += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return found


class TestCopies(object):
    """What leads to no output stays as it is."""

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("kind", list(SIZE))
    def test_other_ops_are_the_same_bytes_as_before(self, kind, training):
        graph, _, report, size, others = _rewritten(kind, training)
        # The functional part as it was built, and what it makes for no reader.
        layers = [op.name for op in others if op.type in WEIGHTED]
        assert len(layers) >= {keras_layers.Functional: 4 + 1, keras_layers.FpnLite: 52}[kind]
        assert [op.name for op, before in others.items() if op.node_def.SerializeToString() != before] == []
        added = graph.get_operations()[size:]
        assert added and not {tensor.op for op in added for tensor in op.inputs} & set(others)

    @pytest.mark.parametrize("training", [True, False])
    def test_as_many_weights_as_the_model_runs(self, training):
        report = _rewritten(keras_layers.Functional, training).report
        # The tower's kernel has a batch norm for each level, the head's two halves have none.
        assert (len(report.weights), report.folded) == (3 + 2 + 2, 3 + 2)
        report = _rewritten(keras_layers.FpnLite, training).report
        assert (len(report.weights), report.folded) == (79, 66)

    def test_without_outputs_the_copies_are_quantised_too(self):
        with tf.Graph().as_default() as graph:
            _model(keras_layers.Functional, True)
            report = api.create_training_graph(graph)
        assert len(report.weights) == 3 + 3 + 2 + 2 + 2  # (and both copies of `unused`)

    @pytest.mark.parametrize("given", [(), ("other",), ("variable",), (3,)])
    def test_outputs_that_are_none_or_elsewhere_are_refused(self, given):
        with tf.Graph().as_default():
            other = tf.constant(1.0, name="other")
        with tf.Graph().as_default() as graph:
            _model(keras_layers.Functional, True)
            variable = tf.trainable_variables()[0]
            before = len(graph.get_operations())
            given = [{"other": other, "variable": variable}.get(one, one) for one in given]
            says = "nothing to quantize" if given and given[0] is variable else "at outputs, found"
            with pytest.raises(RewriteError, match=says):
                api.rewrite(QatConfig(), True, graph, given)
            assert len(graph.get_operations()) == before

    @pytest.mark.parametrize("synchronized", [False, True])
    def test_an_unfused_batch_norm_is_found_by_its_averages(self, synchronized):
        """Their updates alone tell it from other arithmetic, and they lead to no output."""
        for training in (True, False):
            with tf.Graph().as_default() as graph:
                tf.keras.backend.set_learning_phase(training)
                images = tf.placeholder(tf.float32, [2, 8, 8, 3])
                convolved = tf.keras.layers.Conv2D(4, 3, use_bias=False, name="layer")(images)
                norm = tf.keras.layers.BatchNormalization(fused=False, name="norm")
                if synchronized:  # (as in an Hourglass)
                    layers = tf.compat.v2.keras.layers
                    norm = layers.experimental.SyncBatchNormalization(name="norm")
                output = tf.identity(tf.nn.relu(norm(convolved)))
                report = api.rewrite(QatConfig(), training, graph, [output])
            assert report.folded == 1 and report.stays_float == {}
            assert report.weights + report.activations == ("layer/weights_quant", "layer/act_quant")

    def test_an_op_that_leads_nowhere_keeps_a_name_that_the_rewrite_would_use(self):
        with tf.Graph().as_default() as graph:
            tf.constant(1.0, name="head/weights_quant/FakeQuantWithMinMaxVars")
            outputs = _model(keras_layers.Functional, False)
            api.rewrite(QatConfig(), False, graph, outputs)
            live = _sources([output.op for output in outputs])
            layers = [op for op in graph.get_operations() if op.name in live and op.type in WEIGHTED]
            assert {op.inputs[1].op.type for op in layers} == {FAKE_QUANT}
        plain = _rewritten(keras_layers.Functional, False).graph
        assert [v.op.name for v in graph.get_collection(QUANT_VARIABLES)] == [
            v.op.name for v in plain.get_collection(QUANT_VARIABLES)
        ]

    def test_averages_are_updated_until_batch_norms_are_frozen(self):
        """An average's update leads to no output, and still reads what the rewrite puts in front of it."""
        with tf.Graph().as_default() as graph:
            step = tf.train.get_or_create_global_step()
            outputs = _model(keras_layers.Functional, True)
            live = _sources(tensor.op for tensor in outputs)
            updates = [
                op
                for op in graph.get_operations()
                if op.type in UPDATES and "moving" not in op.name and "AssignMovingAvg" in op.name
                if _sources([op]) & {build.NETWORK_INPUT} and "unused" not in op.name
            ]
            assert len(updates) == 2 * 5
            assert not live & {op.name for op in updates}
            loss = tf.reduce_mean(tf.square(outputs[0]))
            api.rewrite(QatConfig(freeze_bn_delay=3), True, graph, [loss])
            train = tf.train.GradientDescentOptimizer(0.1).minimize(loss, step)
            averages = [v for v in tf.global_variables() if "moving_mean" in v.op.name]
            averages = [v for v in averages if not v.op.name.startswith("unused")]
            images = np.random.RandomState(0).uniform(-1, 1, [2, 16, 16, 3])
            found = []
            with sessions.plain() as session:
                session.run(tf.global_variables_initializer())
                for _ in range(4):
                    session.run([train, updates], {build.NETWORK_INPUT + ":0": images})
                    found.append(session.run(averages))
        assert len(averages) == 5
        for values in zip(*found):
            assert np.any(values[0] != values[1])
            np.testing.assert_array_equal(values[2], values[3])


class TestNames(object):
    """Names are those of variables, whatever else a graph holds or a process has built."""

    @pytest.mark.parametrize("kind", list(SIZE))
    def test_training_and_evaluation_and_calls_before(self, kind):
        first = _names(kind, True)
        assert len(set(first)) == len(first)
        assert _names(kind, False) == first
        assert _names(kind, False, calls_before=1) == first

    @pytest.mark.zoo
    def test_an_evaluation_first_and_other_models_between(self):
        """Each in a process of its own, as Keras counts layers."""
        orders = [
            ["Functional 0", "Unnamed 0", "Functional 1", "Unnamed 1"],
            ["Unnamed 1", "Functional 1", "Unnamed 0", "Unnamed 1", "Functional 0"],
        ]
        found = {"Functional": set(), "Unnamed": set()}
        for order in orders:
            lines = _in_a_process(_NAMES_IN_A_PROCESS, order)
            assert [line.rsplit(" ", 1)[0] for line in lines] == order
            for line in lines:
                found[line.split(" ")[0]].add(line.rsplit(" ", 1)[1])
        assert [len(names) for names in found.values()] == [1, 1]

    def test_two_models_in_one_graph_do_not_share_names(self):
        with tf.Graph().as_default() as graph:
            outputs = _model(keras_layers.Functional, True) + _model(keras_layers.Functional, True)
            report = api.rewrite(QatConfig(), True, graph, outputs)
        assert len(set(report.weights)) == len(report.weights) == 2 * 7

    def test_each_name_is_in_the_scope_of_a_kernel(self):
        graph, _, report = _rewritten(keras_layers.FpnLite, False)[:3]
        with graph.as_default():
            scopes = {v.op.name.rpartition("/")[0] for v in tf.trainable_variables()}
        for name in report.weights + report.activations:
            assert name.rpartition("/")[0] in scopes, name

    def test_the_names_of_a_small_model(self):
        assert _names(keras_layers.Functional, False) == (
            "first/weights_quant",
            "deep/weights_quant",
            "project/weights_quant",
            "tower/weights_quant",
            "head/weights_quant",
            "head/weights_quant_1",
            "tower/weights_quant_1",
            "first/act_quant",
            "first/post_activation_bypass_quant",  # (the sum)
            "deep/act_quant",
            "project/act_quant",
            "tower/act_quant",
            "head/act_quant",
            "head/act_quant_1",
            "tower/act_quant_1",
            "head/act_quant_2",
            "head/act_quant_3",
            "head/concat_quant",
        )

    def test_what_training_saves_is_what_evaluation_restores(self):
        saved = {}
        for training in (True, False):
            graph = _rewritten(keras_layers.FpnLite, training).graph
            saved[training] = {v.op.name for v in graph.get_collection(QUANT_VARIABLES)}
        assert saved[False] and saved[False] <= saved[True]
        assert all("/biased" in name or "/local_step" in name for name in saved[True] - saved[False])

    def test_a_rule_matches_the_scope_of_a_kernel(self):
        rules = (LayerRule("head", quantize=False),)
        with tf.Graph().as_default() as graph:
            report = api.rewrite(QatConfig(rules=rules), True, graph, _model(keras_layers.Functional, True))
        assert not any(name.startswith("head/") for name in report.weights + report.activations)
        assert len(report.excluded) == 4  # two halves, two levels


_NAMES_IN_A_PROCESS = """
import sys
from tests import test_keras_graphs as tests
for argument in sys.argv[1:]:
    kind, training = argument.split()
    names = tests._names(getattr(tests.keras_layers, kind), training == "1")
    print(kind, training, ",".join(names))
"""


def _in_a_process(code, arguments):
    done = subprocess.run([sys.executable, "-c", code] + arguments, stdout=subprocess.PIPE, check=True)
    return done.stdout.decode().splitlines()


class TestSharedKernels(object):
    """Layers of one variable without a batch norm share a fake quant, though each reads it by itself."""

    @staticmethod
    def _read_by(graph, variable, outputs):
        """The fake quants between a kernel and the layers that lead to outputs, of each layer one."""
        live, found = _sources(tensor.op for tensor in outputs), []
        for op in graph.get_operations():
            if op.name in live and op.type in WEIGHTED:
                source = op.inputs[1].op
                while source.type == "RealDiv":  # the scale of a batch norm, in training
                    source = source.inputs[0].op
                if variable in _sources([source]):
                    assert source.type == FAKE_QUANT
                    found.append(source.name)
        return found

    @pytest.mark.parametrize("training", [True, False])
    def test_one_range_for_all_layers_without_a_batch_norm(self, training):
        graph, outputs, report = _rewritten(keras_layers.Functional, training)[:3]
        for half in ("depthwise", "pointwise"):
            read = self._read_by(graph, "head/{}_kernel".format(half), outputs)
            assert len(read) == 2 and len(set(read)) == 1
        heads = [layer for layer in report.layers if layer.op.startswith("head")]
        assert len(heads) == 4 and {layer.weights for layer in heads} == {
            "head/weights_quant",
            "head/weights_quant_1",
        }

    def test_a_range_each_for_layers_with_a_batch_norm(self):
        graph, outputs = _rewritten(keras_layers.Functional, False)[:2]
        read = self._read_by(graph, "tower/kernel", outputs)
        assert len(read) == len(set(read)) == 2

    @pytest.mark.parametrize("training", [True, False])
    @pytest.mark.parametrize("normalised_first", [True, False])
    def test_a_kernel_shared_with_a_layer_of_a_batch_norm(self, training, normalised_first):
        with tf.Graph().as_default() as graph:
            tf.keras.backend.set_learning_phase(training)
            images = tf.placeholder(tf.float32, [2, 8, 8, 3])
            layer = tf.keras.layers.Conv2D(3, 3, padding="same", use_bias=False, name="shared")
            norm = tf.keras.layers.BatchNormalization(name="norm")
            outputs = []
            for with_norm in (normalised_first, not normalised_first, False):
                output = layer(images)
                outputs.append(tf.identity(tf.nn.relu(norm(output) if with_norm else output)))
            api.rewrite(QatConfig(), training, graph, outputs)
        read = self._read_by(graph, "shared/kernel", outputs)
        assert len(read) == 3 and len(set(read)) == 2

    def test_a_delay_lets_all_of_them_read_float_weights_first(self):
        with tf.Graph().as_default() as graph:
            outputs = _model(keras_layers.Functional, True)
            api.rewrite(QatConfig(quant_delay=5), True, graph, outputs)
        read = [op.inputs[1].op.name for op in graph.get_operations() if op.type in WEIGHTED]
        for name in ("head/weights_quant/delayed_quant", "head/weights_quant_1/delayed_quant"):
            assert read.count(name) == 2

    def test_rules_that_disagree_are_refused(self):
        with tf.Graph().as_default() as graph:
            images = tf.placeholder(tf.float32, [2, 8, 8, 3])
            layer = tf.keras.layers.Conv2D(3, 3, padding="same", name="shared")
            first = layer(images)
            with tf.name_scope("second"):
                layer(first)
            rules = (LayerRule("second/.*", weight_bits=4),)
            with pytest.raises(RewriteError, match="rules disagree"):
                # (Without outputs, names are those of ops; with them, all these layers have one name.)
                api.create_training_graph(graph, rules=rules)

    def test_the_gradient_of_a_shared_kernel_comes_from_all_layers(self):
        """Before the delay is over it is that of the float model."""
        found, values = [], None
        for quantised in (False, True):
            with tf.Graph().as_default() as graph:
                outputs = _model(keras_layers.Functional, True)
                values = values or build.variable_values(graph)
                loss = tf.reduce_sum(tf.square(outputs[0] - 0.5))
                if quantised:
                    api.rewrite(QatConfig(quant_delay=100), True, graph, [loss])
                kernels = [v for v in tf.trainable_variables() if "head" in v.op.name]
                gradients = tf.gradients(loss, kernels)
                with sessions.plain() as session:
                    session.run(tf.global_variables_initializer())
                    sessions.assign(session, {v: values[v.op.name] for v in tf.trainable_variables()})
                    images = np.random.RandomState(0).uniform(-1, 1, [2, 16, 16, 3])
                    found.append(session.run(gradients, {build.NETWORK_INPUT + ":0": images}))
        for plain, rewritten in zip(*found):
            assert np.any(plain != 0)
            np.testing.assert_allclose(rewritten, plain, rtol=1e-4, atol=1e-5)


@functools.lru_cache(maxsize=None)
def _tflite(kind):
    """The int8 .tflite of a model whose variables have values."""
    from od_qat.export import tflite

    graph, outputs = _rewritten(kind, False)[:2]
    names = [output.op.name for output in outputs]
    with build.session(graph) as session:
        build.assign(session, build.variable_values(graph, symmetric_weights=True))
        frozen = tf.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), names)
    size = SIZE[kind]
    return tflite.convert(frozen, build.NETWORK_INPUT, [1, size, size, 3], names, "int8", 127.5, 127.5)


class TestInt8(object):
    @pytest.mark.parametrize("kind", list(SIZE))
    def test_no_tensor_stays_float(self, kind):
        from od_qat.export import tflite_checks

        assert tflite_checks.inspect(_tflite(kind)).float_tensors == []
        tflite_checks.run_once(_tflite(kind), kind.__name__)

    def test_a_shared_kernel_is_there_once(self):
        """Without a batch norm; each level with one has a copy of the kernel that is scaled by its own."""
        from od_qat.model_files import interpreter

        opened = interpreter.without_delegates(_tflite(keras_layers.Functional))
        opened.allocate_tensors()
        read = {}
        for operation in opened._get_ops_details():
            if operation["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
                read.setdefault(operation["inputs"][1], []).append(operation["op_name"])
        assert sorted(len(layers) for layers in read.values()) == [1, 1, 1, 1, 1, 2, 2]


class TestWeightedSums(object):
    """EfficientDet's BiFPN: sums of features with trained weights."""

    METHODS = ["sum", "weighted_sum", "attention", "fast_attention"]
    # Weights with one that a ReLU makes zero, and one that is negative.
    WEIGHTS = {2: [[0.7], [-0.4]], 3: [[1.2], [0.0], [0.5]]}

    def _rewritten(self, training, method, activation="RELU_6", **options):
        with tf.Graph().as_default() as graph:
            model = keras_layers.BiFpn(training, method, activation)
            images = tf.placeholder(tf.float32, [2 if training else 1, 16, 16, 3], name=build.NETWORK_INPUT)
            output = tf.identity(model(images), "raw")
            return graph, output, api.rewrite(QatConfig(**options), training, graph, [output])

    def _values(self, graph):
        values = build.variable_values(graph, symmetric_weights=True)
        for name in values:
            if name.endswith("bifpn_combine_weights"):
                values[name] = np.float32(self.WEIGHTS[len(values[name])])
        return values

    @pytest.mark.parametrize("activation", ["RELU_6", "SWISH"])
    @pytest.mark.parametrize("method", METHODS)
    def test_names_are_the_same_and_no_tensor_stays_float(self, method, activation):
        from od_qat.export import tflite, tflite_checks

        trained = self._rewritten(True, method, activation)[2]
        graph, _, report = self._rewritten(False, method, activation)
        assert trained.stays_float == report.stays_float == {}
        assert trained.weights + trained.activations == report.weights + report.activations
        with build.session(graph) as session:
            build.assign(session, self._values(graph))
            frozen = tf.graph_util.convert_variables_to_constants(session, graph.as_graph_def(), ["raw"])
            pixels = np.random.RandomState(0).randint(0, 256, [1, 16, 16, 3])
            expected = session.run("raw:0", {build.NETWORK_INPUT + ":0": (pixels - 127.5) / 127.5})
        model = tflite.convert(frozen, build.NETWORK_INPUT, [1, 16, 16, 3], ["raw"], "int8", 127.5, 127.5)
        assert tflite_checks.inspect(model).float_tensors == []
        found, step = _run(model, pixels)
        # Roundings of several layers add up; a sum with a wrong weight or range is far off.
        assert np.std(expected) > 4 * step
        assert np.mean(np.abs(found - expected)) < step and np.max(np.abs(found - expected)) < 8 * step

    @pytest.mark.parametrize("method", ["weighted_sum", "attention", "fast_attention"])
    def test_products_are_exact_and_a_sum_of_three_is_rounded_once_more(self, method):
        graph, _, _ = self._rewritten(False, method)
        ends = [op for op in graph.get_operations() if op.type == "Squeeze" and "combine" in op.name]
        before = [op.outputs[0] for op in ends]
        packs = [op.inputs[0].op.inputs[0].op for op in ends]
        after, limits = [], []
        for op, pack in zip(ends, packs):
            products = op.inputs[0].op.name + "_products/"
            count = len(pack.inputs)
            after.append(graph.get_tensor_by_name(products + ("add:0" if count == 2 else "add_1:0")))
            quants = [one for one in graph.get_operations() if one.type == FAKE_QUANT]
            rounded = [one for one in quants if one.name.startswith(products + "add_quant/")]
            assert len(rounded) == count - 2
            limits.append([one.inputs[1:] for one in rounded])
        with build.session(graph) as session:
            build.assign(session, self._values(graph))
            images = np.random.RandomState(0).uniform(-1, 1, [1, 16, 16, 3])
            results = session.run([before, after, limits], {build.NETWORK_INPUT + ":0": images})
        assert sorted(len(pack.inputs) for pack in packs) == [2, 2, 2, 3]
        for expected, found, ranges in zip(*results):
            step = sum((high - low) / 255.0 for low, high in ranges)
            assert np.std(expected) > 0
            # (An average rounding is a quarter of a step; zero may be moved onto a step.)
            np.testing.assert_allclose(found, expected, rtol=1e-4, atol=0.51 * step + 1e-4)

    def test_the_training_graph_keeps_upstreams_op(self):
        graph, output, _ = self._rewritten(True, "fast_attention")
        live = _sources([output.op])
        kinds = [op.type for op in graph.get_operations() if op.name in live]
        assert kinds.count("BatchMatMulV2") == 4

    def test_a_sum_of_what_a_rule_keeps_float_is_named(self):
        rules = (LayerRule("bifpn/node_01/.*/1x1_pre_sample/.*", quantize=False),)
        _, _, report = self._rewritten(False, "fast_attention", rules=rules)
        named = [name for name in report.stays_float if "combine" in name]
        assert len(named) == 1 and "node_01" in named[0]

    def test_another_batch_matmul_stays_float_and_is_named(self):
        """Weights that depend on data are no constants."""
        with tf.Graph().as_default() as graph:
            tf.keras.backend.set_learning_phase(False)
            images = tf.placeholder(tf.float32, [1, 8, 8, 3])
            layers = [tf.keras.layers.Conv2D(4, 3, activation="relu", name=name) for name in "ab"]
            features = [layer(images) for layer in layers]
            weights = tf.reshape(tf.reduce_mean(features[0], [1, 2])[0, :2], [2, 1])
            data = tf.squeeze(tf.matmul(tf.stack(features, -1), weights), [-1])
            output = tf.keras.layers.Conv2D(4, 1, name="last")(data)
            report = api.rewrite(QatConfig(), False, graph, [tf.identity(output)])
        assert [op for op in report.stays_float if "MatMul" in op] == ["MatMul"]


def _run(model, pixels):
    """The output of an int8 .tflite for pixels 0 to 255, as real values, and its step."""
    from od_qat.model_files import interpreter

    opened = interpreter.without_delegates(model)
    opened.allocate_tensors()
    given, made = opened.get_input_details()[0], opened.get_output_details()[0]
    opened.set_tensor(given["index"], (pixels - 128).astype(np.int8))
    opened.invoke()
    step, zero = made["quantization"]
    return (opened.get_tensor(made["index"]).astype(np.float64) - zero) * step, step
