"""Per-layer control: rules, per-channel weights, their way through configs, graphs and the converter."""

import os

import numpy as np
import pytest

from od_qat import checkpoints
from od_qat.checkpoints import QUANT_STEP, QUANT_VARIABLES
from od_qat.compat import IS_TF1, tf
from od_qat.config import LayerRule, QatConfig
from od_qat.errors import CheckpointError, ConfigError, ExportError, RewriteError
from od_qat.export import freeze
from od_qat.rewrite import api, fake_quant, rules
from od_qat.rewrite.rules import RuleBook
from tests.helpers import nets, own_gradients

pytestmark = pytest.mark.tf1

PER_TENSOR = "FakeQuantWithMinMaxVars"
PER_CHANNEL = "FakeQuantWithMinMaxVarsPerChannel"
BATCH_NORMS = ("FusedBatchNorm", "FusedBatchNormV2", "FusedBatchNormV3")


# What can be asked for.


@pytest.mark.parametrize(
    "make, says",
    [
        (lambda: LayerRule("(", quantize=False), r"not a regular expression.*rule '\('"),
        (lambda: LayerRule("(" * 5000 + ")" * 5000, quantize=False), "not a regular expression"),
        (lambda: LayerRule("", quantize=False), "without a scope"),
        (lambda: LayerRule("a"), "sets nothing.*rule 'a'"),
        (lambda: LayerRule("a", weight_bits=9), "bit width.*rule 'a', weight_bits.*found 9"),
        (lambda: LayerRule("a", activation_bits=True), "activation_bits.*found True"),
        (lambda: LayerRule("a", quantize="no"), "rule 'a', quantize.*'no'"),
        (lambda: QatConfig(per_channel=1), "per_channel, found 1"),
        (lambda: QatConfig(rules=("a",)), "not a rule"),
        (lambda: QatConfig(per_channel=True, placement="contrib"), "per_channel.*contrib.*Fix"),
        (lambda: QatConfig(rules=[LayerRule("a", per_channel=True)], placement="contrib"), "rule 'a'"),
    ],
)
def test_what_cannot_be_asked_for(make, says):
    with pytest.raises(ConfigError, match=says):
        make()


def test_a_config_with_rules_stays_a_value():
    config = QatConfig(per_channel=True, rules=[LayerRule("a", quantize=False)])
    assert config.rules == (LayerRule("a", quantize=False),)
    assert hash(config) == hash(QatConfig(per_channel=True, rules=(LayerRule("a", quantize=False),)))
    QatConfig(per_channel=True, placement="contrib", symmetric=True)  # (its ranges are symmetric)


# Which rule holds for what.


def _book(*rules, **options):
    return RuleBook(QatConfig(rules=rules, **options))


@pytest.mark.parametrize(
    "scope, holds",
    [
        ("net/block", True),  # everything below a scope
        ("net", True),
        ("net/block/conv", True),
        ("net/block/conv/weights_quant", True),  # one fake quant
        (".*/weights_quant", True),
        (".*/conv", True),
        ("net/.*/.*", True),
        ("block", False),  # from its start
        ("net/blo", False),  # to its end
        ("net/block/con", False),
        ("net/block/conv/weights", False),
    ],
)
def test_a_rule_holds_for_a_whole_scope_and_what_is_below(scope, holds):
    settings = _book(LayerRule(scope, quantize=False)).weights("net/block/conv/weights_quant", "Conv2D")
    assert settings.quantise is not holds
    assert settings.reason == ("excluded by rule {!r}".format(scope) if holds else "")


def test_the_later_rule_wins_field_by_field():
    book = _book(
        LayerRule(".*", weight_bits=4, activation_bits=6),
        LayerRule("net/a", weight_bits=8, per_channel=True),
        LayerRule("net/.*", quantize=False),
        LayerRule("net/a", quantize=True),
    )
    assert book.weights("net/a/weights_quant", "Conv2D")[:3] == (True, 8, True)
    assert book.activation("net/a/act_quant")[:3] == (True, 6, False)
    assert book.weights("net/b/weights_quant", "Conv2D")[:3] == (False, 4, False)
    assert book.weights("other/weights_quant", "Conv2D")[:3] == (True, 4, False)
    book.require_all_used()


def test_matmul_stays_per_tensor():
    book = _book(LayerRule(".*", weight_bits=8, per_channel=True), per_channel=True)
    assert book.weights("net/logits/weights_quant", "MatMul").per_channel is False
    assert book.weights("net/conv/weights_quant", "Conv2D").per_channel is True
    assert book.weights("net/depthwise/weights_quant", "DepthwiseConv2dNative").per_channel is True


@pytest.mark.parametrize(
    "rule, says",
    [
        (LayerRule("head", quantize=False), "matches nothing in this graph.*rule 'head'.*net/conv, net/fc"),
        (LayerRule(".*/act_quant", weight_bits=4), "sets nothing for what it matches.*net/conv/act_quant"),
        (LayerRule(".*/weights_quant", activation_bits=4), "sets nothing"),
        (LayerRule("net/fc", per_channel=True), "sets nothing.*net/fc/weights_quant.*convolutions"),
    ],
)
def test_a_rule_without_effect_is_an_error(rule, says):
    book = _book(rule)
    book.weights("net/conv/weights_quant", "Conv2D")
    book.activation("net/conv/act_quant")
    book.weights("net/fc/weights_quant", "MatMul")
    with pytest.raises(RewriteError, match=says):
        book.require_all_used()


@pytest.mark.parametrize("pattern", ["(a|a)" * 40 + "b", "((a{1,1000}){1,1000}){1,1000}b"])
def test_a_pattern_that_would_be_tried_for_ever(pattern, monkeypatch):
    monkeypatch.setattr(rules, "_SECONDS", 0.5)
    book = _book(LayerRule("net/.*", weight_bits=4), LayerRule("net/" + pattern, quantize=False))
    with pytest.raises(RewriteError, match="takes too long.*rule 'net/.*more than 0.5 s; .* net/aaa.*Fix: "):
        for number in range(1000):
            book.weights("net/{}/{}/weights_quant".format("a" * 60, number), "Conv2D")


# In graphs.


def _images(seed=0, batch=4):
    # (quantised to 1/128 steps, as pixels are)
    pixels = np.random.RandomState(seed).randint(0, 256, [batch, 32, 32, 3])
    return ((pixels - 128) / 128.0).astype(np.float32)


def _small_ssd(training, batch=None):
    tf.set_random_seed(7)
    images = tf.placeholder(tf.float32, [batch, 32, 32, 3], name="images")
    boxes, scores = nets.small_ssd(images, training)
    loss = tf.reduce_mean(tf.square(boxes - 0.3)) + tf.reduce_mean(tf.square(scores + 0.2))
    return images, boxes, scores, loss


def _of_type(graph, *types):
    return [op for op in graph.get_operations() if op.type in types]


def _needed_for(tensor, *types):
    return {op.name for op in nets.ops_needed_for(tensor) if op.type in types}


def _values(session):
    return session.run({v.op.name: v for v in tf.global_variables()})


def test_per_channel_keeps_every_name():
    names = []
    for per_channel in (False, True):
        with tf.Graph().as_default() as graph:
            _small_ssd(True)
            report = api.create_training_graph(graph, per_channel=per_channel)
            names.append((report.weights, report.activations, {v.op.name for v in tf.global_variables()}))
    assert names[0] == names[1]
    assert len(_of_type(graph, PER_CHANNEL)) == nets.LAYERS
    assert len(_of_type(graph, PER_TENSOR)) == len(report.activations)
    shapes = {v.op.name: v.shape.as_list() for v in graph.get_collection(QUANT_VARIABLES)}
    assert shapes["net/Conv/weights_quant/min"] == [8]
    assert shapes["net/residual/depthwise/weights_quant/max"] == [16]
    assert shapes["net/Conv/act_quant/max"] == []


def _one_layer(kind, training):
    """Returns the images, the layer's op and what the layer with its batch norm puts out."""
    images = tf.placeholder(tf.float32, [None, 8, 8, 3], name="images")
    norm = {"is_training": training, "scale": True, "epsilon": 0.001}
    options = dict(
        normalizer_fn=nets.slim.batch_norm, normalizer_params=norm, activation_fn=tf.nn.relu6, scope="layer"
    )
    if kind == "conv":
        output = nets.slim.conv2d(images, 6, 3, **options)
        op = tf.get_default_graph().get_operation_by_name("layer/Conv2D")
    else:
        output = nets.slim.separable_conv2d(images, None, 3, depth_multiplier=2, **options)
        op = tf.get_default_graph().get_operation_by_name("layer/depthwise")
    return images, op, output


@pytest.mark.parametrize("kind", ["conv", "depthwise"])
def test_each_output_channel_has_the_range_of_its_scaled_weights(kind):
    """Six channels of very different size; the third is dead."""
    random = np.random.RandomState(0)
    with tf.Graph().as_default() as graph:
        images, op, output = _one_layer(kind, True)
        api.create_training_graph(graph, per_channel=True)
        variables = {v.op.name: v for v in tf.global_variables()}
        name = "layer/weights" if kind == "conv" else "layer/depthwise_weights"
        gamma = np.array([1.0, -0.3, 0.0, 3.0, 0.1, 1.0], np.float32)
        variance = random.uniform(0.5, 2, 6).astype(np.float32)
        weights = random.normal(size=variables[name].shape.as_list()).astype(np.float32)
        gradients = tf.gradients(tf.reduce_sum(output), [variables[name]])
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            for one, value in (
                (name, weights),
                ("layer/BatchNorm/gamma", gamma),
                ("layer/BatchNorm/moving_variance", variance),
            ):
                session.run(tf.assign(variables[one], value))
            used, gradient = session.run(
                [op.inputs[1], gradients], {images: random.normal(size=[2, 8, 8, 3])}
            )
            values = _values(session)
    scale = gamma / np.sqrt(variance + 0.001)
    scale[2] = 1e-6
    flat = weights.reshape(-1, 6)
    largest = np.abs(flat * scale).max(axis=0)
    largest = np.maximum(largest, 1e-3 * largest.max())
    np.testing.assert_allclose(values["layer/weights_quant/max"], largest, rtol=1e-5)
    np.testing.assert_allclose(values["layer/weights_quant/min"], -largest, rtol=1e-5)
    step = largest / 127.0
    expected = np.round(flat * scale / step) * step / scale
    assert np.all(np.isfinite(used)) and np.all(np.isfinite(gradient))
    np.testing.assert_allclose(used.reshape(-1, 6), expected, atol=1e-4)
    error = np.abs(used.reshape(-1, 6) - flat)
    live = np.arange(6) != 2
    assert np.all((error <= 0.51 * np.abs(step / scale))[:, live])


def _gradients_of_weights(monkeypatch, straight_through):
    with monkeypatch.context() as patch, tf.Graph().as_default() as graph:
        if not straight_through:
            patch.setattr(fake_quant, "PASS_THROUGH_GRADIENT", own_gradients.OF_SCALED_WEIGHTS)
        images, _, _, loss = _small_ssd(True)
        api.create_training_graph(graph, per_channel=True)
        variables = [v for v in tf.trainable_variables() if v.op.name.endswith("weights")]
        of_variables = tf.gradients(loss, variables)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            values = session.run(of_variables, {images: _images()})
    return {v.op.name: value for v, value in zip(variables, values)}


def test_per_channel_gradients_are_the_kernels_own_but_at_the_ends(monkeypatch):
    ours = _gradients_of_weights(monkeypatch, straight_through=True)
    kernels = _gradients_of_weights(monkeypatch, straight_through=False)
    assert len(ours) == nets.LAYERS
    for name, gradient in ours.items():
        # Rounding can put the weight that ends a channel's range just outside of it: the kernel's is then 0.
        inside = kernels[name] != 0
        assert inside.sum() >= gradient.size - gradient.shape[-2] * gradient.shape[-1]
        size = np.abs(kernels[name]).max()
        np.testing.assert_allclose(gradient[inside], kernels[name][inside], atol=1e-4 * size, err_msg=name)


def test_per_channel_waits_for_the_delay_and_tracks_its_ranges_meanwhile():
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _small_ssd(True)
        step = tf.train.get_or_create_global_step()
        api.create_training_graph(graph, quant_delay=3, per_channel=True)
        train = tf.train.GradientDescentOptimizer(0.0).minimize(loss, global_step=step)
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            losses = [session.run([train, loss], {images: _images()})[1] for _ in range(2)]
            ranges = session.run("net/residual/depthwise/weights_quant/max:0")
            losses.append(session.run([train, loss], {images: _images()})[1])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    assert abs(losses[2] - losses[1]) > 1e-6 * abs(losses[1])
    assert ranges.shape == (16,) and len(set(ranges)) > 1 and np.all(ranges < 6.0)


def _trained(tmp_path, steps=20, **options):
    """A few QAT steps of small_ssd; returns the checkpoint's prefix."""
    with tf.Graph().as_default() as graph:
        images, _, _, loss = _small_ssd(True)
        api.create_training_graph(graph, **options)
        with tf.control_dependencies(tf.get_collection(tf.GraphKeys.UPDATE_OPS)):
            train = tf.train.GradientDescentOptimizer(0.05).minimize(loss)
        saver = tf.train.Saver()
        with tf.Session() as session:
            session.run(tf.global_variables_initializer())
            losses = [session.run([train, loss], {images: _images(step)})[1] for step in range(steps)]
            assert steps < 10 or losses[-1] < losses[0]
            return saver.save(session, os.path.join(str(tmp_path), "model.ckpt"), global_step=steps)


def _frozen(prefix, rewrite=True, **options):
    """The eval graph with that checkpoint: GraphDef, outputs' names, report."""
    with tf.Graph().as_default() as graph:
        _, boxes, scores, _ = _small_ssd(False, batch=1)
        heads = [tf.reshape(one, tf.shape(one), name="raw_" + n) for n, one in zip("bs", (boxes, scores))]
        report = api.create_eval_graph(graph, **options) if rewrite else None
        return freeze.freeze(prefix, [head.op.name for head in heads]), report


def _run(graph_def, images):
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        return session.run(["raw_b:0", "raw_s:0"], {"images:0": images})


def test_per_channel_eval_is_close_to_float(tmp_path):
    prefix = _trained(tmp_path, per_channel=True)
    floating = _run(_frozen(prefix, rewrite=False)[0], _images(99, 1))
    quantised = _run(_frozen(prefix, per_channel=True)[0], _images(99, 1))
    for a, b in zip(floating, quantised):
        assert 0.0 < np.max(np.abs(a - b)) < 0.08 * (a.max() - a.min())


def test_bits_and_per_channel_by_rule():
    with tf.Graph().as_default() as graph:
        _small_ssd(True)
        api.experimental_create_training_graph(
            graph,
            weight_bits=6,
            per_channel=True,
            rules=[
                LayerRule("Head_.*", weight_bits=8, per_channel=False),
                LayerRule("net/Conv", activation_bits=4),
            ],
        )
        bits = {
            op.name: (op.type, op.get_attr("num_bits")) for op in _of_type(graph, PER_CHANNEL, PER_TENSOR)
        }
    assert bits["net/Conv/weights_quant/" + PER_CHANNEL] == (PER_CHANNEL, 6)
    assert bits["net/down/weights_quant/" + PER_CHANNEL] == (PER_CHANNEL, 6)
    assert bits["Head_0/box/weights_quant/" + PER_TENSOR] == (PER_TENSOR, 8)
    assert bits["net/Conv/act_quant/" + PER_TENSOR] == (PER_TENSOR, 4)
    assert bits["net/down/act_quant/" + PER_TENSOR] == (PER_TENSOR, 8)


@pytest.mark.parametrize("training", [True, False])
def test_an_excluded_layer_stays_as_it_was(training):
    with tf.Graph().as_default() as graph:
        _, _, _, loss = _small_ssd(training)
        norms = {op.name: [t.name for t in op.inputs] for op in _of_type(graph, *BATCH_NORMS)}
        rewrite = api.create_training_graph if training else api.create_eval_graph
        report = rewrite(graph, rules=[LayerRule("net/residual/expand", quantize=False)])
        assert len(report.weights) == nets.LAYERS - 1
        assert report.folded == nets.BATCH_NORMS - 1
        name = "net/residual/expand/Conv2D"
        assert report.stays_float == {name: "excluded by rule 'net/residual/expand'"}
        assert report.excluded == {name}
        assert not [v.op.name for v in tf.get_collection(QUANT_VARIABLES) if "expand" in v.op.name]
        assert not [op.name for op in _of_type(graph, PER_TENSOR) if "expand" in op.name]
        norm = [op for op in _of_type(graph, *BATCH_NORMS) if "residual/expand" in op.name][0]
        # Its data come from the quantised layer before, through its own convolution, untouched.
        assert [t.name for t in norm.inputs] == norms[norm.name]
        assert norm.inputs[0].op.name == name
        assert norm.inputs[0].op.inputs[1].op.type in ("Identity", "ReadVariableOp")
        depthwise = graph.get_operation_by_name("net/residual/depthwise/depthwise")
        assert depthwise.inputs[0].op.type == "Relu6"
        needed = _needed_for(loss, *BATCH_NORMS)
        assert norm.name in needed
        if not training:
            assert needed == {norm.name}


def test_include_only():
    """All out, then one scope back in."""
    with tf.Graph().as_default() as graph:
        _small_ssd(True)
        report = api.create_training_graph(
            graph, rules=[LayerRule(".*", quantize=False), LayerRule("net/Conv", quantize=True)]
        )
    assert report.weights == ("net/Conv/weights_quant",)
    assert report.activations == ("net/Conv/act_quant",)
    assert len(report.stays_float) == nets.LAYERS - 1


def test_a_rule_that_matches_nothing_leaves_the_graph_untouched():
    with tf.Graph().as_default() as graph:
        _small_ssd(True)
        before = graph.as_graph_def()
        with pytest.raises(RewriteError, match="matches nothing.*'BoxPredictor_0'.*net/Conv.*Head_1"):
            api.create_training_graph(graph, rules=[LayerRule("BoxPredictor_0", quantize=False)])
        assert graph.as_graph_def() == before
        assert not tf.get_collection(QUANT_VARIABLES)


def _two_layers_with_one_kernel():
    images = tf.placeholder(tf.float32, [None, 8, 8, 3])
    with tf.variable_scope("shared"):
        kernel = tf.get_variable("kernel", [1, 1, 3, 4])
    for scope in ("first", "second"):
        with tf.name_scope(scope):
            tf.nn.relu(tf.nn.bias_add(tf.nn.conv2d(images, kernel, [1, 1, 1, 1], "SAME"), tf.zeros([4])))


@pytest.mark.parametrize("rule", [LayerRule("second", quantize=False), LayerRule("second", weight_bits=4)])
def test_layers_that_share_weights_share_their_settings(rule):
    with tf.Graph().as_default() as graph:
        _two_layers_with_one_kernel()
        with pytest.raises(RewriteError, match="disagree.*first/Conv2D and second/Conv2D.*8 bits and"):
            api.create_training_graph(graph, rules=[rule])
        report = api.create_training_graph(graph, rules=[LayerRule("first|second", weight_bits=4)])
        assert len(report.weights) == 1


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    per_tensor = _trained(tmp_path, steps=2)
    with pytest.raises(CheckpointError, match=r"without per_channel.*is \[\].*Fix: .*per_channel, rules"):
        _frozen(per_tensor, per_channel=True)
    out = [LayerRule("Head_0/box", quantize=False)]
    (tmp_path / "rules").mkdir()
    with_rules = _trained(tmp_path / "rules", steps=2, rules=out)
    with pytest.raises(CheckpointError, match="no Head_0/box/act_quant/max.*graph_rewriter block"):
        _frozen(with_rules)
    _frozen(with_rules, rules=out)
    with tf.Graph().as_default() as graph:
        _small_ssd(True)
        api.create_training_graph(graph, per_channel=True)
        plan = checkpoints.plan_fine_tune(
            {v.op.name: v for v in tf.global_variables()},
            per_tensor,
            checkpoints.quant_variable_names(graph),
            "net/",
        )
    # As a start it will do: ranges of weights are taken anew in every step.
    assert len(plan.fresh_quant) == 2 * nets.LAYERS
    assert all(name.endswith(("weights_quant/min", "weights_quant/max")) for name in plan.fresh_quant)
    assert plan.fresh_other == ()


# In the converter.


def _interpreter(model):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    interpreter.allocate_tensors()
    return interpreter


def _convert(graph_def, inference_type="int8"):
    from od_qat.export import tflite

    outputs = ["raw_b", "raw_s"]
    return tflite.convert(graph_def, "images", [1, 32, 32, 3], outputs, inference_type, 128.0, 128.0)


def _run_tflite(model, images):
    """Outputs, boxes first, and the step of each."""
    interpreter = _interpreter(model)
    detail = interpreter.get_input_details()[0]
    interpreter.set_tensor(detail["index"], np.round(images * 128.0).astype(np.int8))
    interpreter.invoke()
    results = []
    for detail in sorted(interpreter.get_output_details(), key=lambda d: -d["shape"][-1]):
        scale, zero_point = detail["quantization"]
        value = interpreter.get_tensor(detail["index"])
        results.append(((value.astype(np.float32) - zero_point) * scale if scale else value, scale))
    return results


needs_converter = pytest.mark.skipif(IS_TF1, reason="the converter and the interpreter are today's")


@needs_converter
def test_the_converter_keeps_weights_per_channel(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from od_qat.export import tflite_checks

    prefix = _trained(tmp_path, per_channel=True)
    graph_def, _ = _frozen(prefix, per_channel=True)
    tflite_checks.require_quantised(graph_def, "here", "int8")
    model = _convert(graph_def)
    weights = tflite_checks.count_weights(graph_def)
    inspection = tflite_checks.check(model, weights, "here")
    with pytest.raises(ExportError, match="too large for 8 bits.*{:,} bytes".format(inspection.size)):
        tflite_checks.check(model, (inspection.size - 200001) // 2, "here")
    tflite_checks.check(model, (inspection.size - 200001) // 2, "here", other_bytes=2)
    assert inspection.float_tensors == []
    assert inspection.ops["CONV_2D"] + inspection.ops["DEPTHWISE_CONV_2D"] == nets.LAYERS
    assert inspection.ops["DEPTHWISE_CONV_2D"] == 2
    interpreter = _interpreter(model)
    details = {detail["index"]: detail for detail in interpreter.get_tensor_details()}
    channels = []
    for op in interpreter._get_ops_details():
        if op["op_name"] in ("CONV_2D", "DEPTHWISE_CONV_2D"):
            weights = details[op["inputs"][1]]
            parameters = weights["quantization_parameters"]
            axis = 3 if op["op_name"] == "DEPTHWISE_CONV_2D" else 0
            assert weights["dtype"] == np.int8
            assert parameters["quantized_dimension"] == axis
            assert len(parameters["scales"]) == weights["shape"][axis]
            assert len(set(parameters["scales"])) > 1
            assert not np.any(parameters["zero_points"])
            channels.append(len(parameters["scales"]))
    assert sorted(channels) == [3, 3, 4, 4, 8, 8, 8, 8, 16, 16, 16]
    for seed in (99, 100):
        for expected, (found, step) in zip(
            _run(graph_def, _images(seed, 1)), _run_tflite(model, _images(seed, 1))
        ):
            # Eleven layers deep a rounding that differs has grown to two or three steps, here and there.
            difference = np.abs(found - expected) / step
            assert difference.max() < 3.5 and np.mean(difference > 1.01) < 0.02


@needs_converter
def test_uint8_with_per_channel_weights_is_refused(tmp_path):
    from od_qat.export import tflite_checks

    prefix = _trained(tmp_path, steps=1, per_channel=True)
    graph_def, _ = _frozen(prefix, per_channel=True)
    with pytest.raises(ExportError, match="uint8 has no per-channel.*here, .*weights_quant.*int8"):
        tflite_checks.require_quantised(graph_def, "here", "uint8")


@needs_converter
def test_an_asymmetric_channel_is_refused_for_int8(tmp_path):
    from od_qat.export import tflite_checks

    graph_def, _ = _frozen(_trained(tmp_path, steps=1, per_channel=True), per_channel=True)
    node = [n for n in graph_def.node if n.name == "net/Conv/weights_quant/max"][0]
    values = tf.make_ndarray(node.attr["value"].tensor).copy()
    values[5] *= 1.5
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(values))
    with pytest.raises(ExportError, match="symmetric.*net/Conv/weights_quant.*channel 5"):
        tflite_checks.require_quantised(graph_def, "here", "int8")


@needs_converter
def test_a_model_with_an_excluded_layer_converts_and_runs(tmp_path):
    pytest.importorskip("ai_edge_litert")
    from od_qat.export import tflite_checks

    rules = [LayerRule("net/residual/expand", quantize=False)]
    prefix = _trained(tmp_path, rules=rules)
    graph_def, report = _frozen(prefix, rules=rules)
    with pytest.raises(ExportError, match="not quantized.*1 of 11 layers"):
        tflite_checks.require_quantised(graph_def, "here", "int8")
    tflite_checks.require_quantised(graph_def, "here", "int8", report.excluded)
    model = _convert(graph_def)
    inspection = tflite_checks.check(model, tflite_checks.count_weights(graph_def), "here", float_layers=True)
    assert any("expand" in name for name in inspection.float_tensors)
    for expected, (found, step) in zip(_run(graph_def, _images(9, 1)), _run_tflite(model, _images(9, 1))):
        assert np.max(np.abs(found - expected)) < 3.5 * step


# In configs.

CONFIG = """
model { ssd { num_classes: 1 } }
graph_rewriter {
  quantization { delay: 3 weight_bits: 8 activation_bits: 7 }
  [od_qat.layers] {
    per_channel: true
    rule { scope: "BoxPredictor_\\\\d/ClassPredictor" quantize: false }
    rule { scope: ".*/expanded_conv_16" weight_bits: 4 activation_bits: 8 per_channel: false }
    freeze_bn_delay: 5
    placement: "full"
    ema_decay: 0.99
  }
}
"""
EXPECTED = QatConfig(
    quant_delay=3,
    activation_bits=7,
    per_channel=True,
    rules=(
        LayerRule("BoxPredictor_\\d/ClassPredictor", quantize=False),
        LayerRule(".*/expanded_conv_16", weight_bits=4, activation_bits=8, per_channel=False),
    ),
    freeze_bn_delay=5,
    ema_decay=0.99,
)


@pytest.fixture()
def config_file(tmp_path):
    pytest.importorskip("object_detection.protos.pipeline_pb2")
    path = tmp_path / "my.config"
    path.write_text(CONFIG)
    return path


def _load(path, *overrides):
    from od_qat.od_api import pipeline

    return pipeline.load(str(path), overrides)


def _qat_config(config):
    from od_qat.messages import graph_rewriter

    return graph_rewriter.qat_config(config.graph_rewriter)


def test_a_config_says_all_of_it_and_survives_being_saved(config_file, tmp_path):
    from od_qat.od_api import pipeline

    config = _load(config_file)
    assert _qat_config(config) == EXPECTED
    saved = pipeline.save(config, str(tmp_path))
    assert _load(saved) == config
    assert _qat_config(type(config).FromString(config.SerializeToString())) == EXPECTED


def test_without_the_extension_nothing_changes(config_file):
    config_file.write_text("model { ssd { } } graph_rewriter { quantization { delay: 2 } }")
    assert _qat_config(_load(config_file)) == QatConfig(quant_delay=2)


@pytest.mark.parametrize(
    "override, field, value",
    [
        ("per_channel=false", "per_channel", False),
        ("ema_decay=0.9", "ema_decay", 0.9),
        ("placement=full", "placement", "full"),
        ('rule=scope: "x" weight_bits: 5', "rules", (LayerRule("x", weight_bits=5),)),
    ],
)
def test_overrides_reach_into_the_extension(config_file, override, field, value):
    config = _qat_config(_load(config_file, "graph_rewriter.[od_qat.layers]." + override))
    assert getattr(config, field) == value


def test_overrides_of_a_rule_and_of_all(config_file):
    at = "graph_rewriter.[od_qat.layers]"
    config = _qat_config(_load(config_file, at + r".rule.1.scope=Head_\d", at + ".rule.1.per_channel=true"))
    assert config.rules[1] == LayerRule(r"Head_\d", weight_bits=4, activation_bits=8, per_channel=True)
    assert _qat_config(_load(config_file, at + "=placement: 'contrib'")).rules == ()


@pytest.mark.parametrize(
    "override",
    [
        "graph_rewriter.[od_qat.layer].per_channel=true",
        "graph_rewriter.layers.per_channel=true",
        "graph_rewriter.[od_qat.layers].per_chanel=true",
        "model.[od_qat.layers].per_channel=true",
        "graph_rewriter.[od_qat.layers.per_channel=true",
    ],
)
def test_misspelt_overrides_are_errors(config_file, override):
    with pytest.raises(ConfigError, match="override"):
        _load(config_file, override)


@pytest.mark.parametrize(
    "right, wrong, says",
    [
        (
            "quantize",
            "quantise",
            r"my.config, line 6.*quantise.*Fix: \[od_qat.layers\] has per_channel, rule",
        ),
        ("od_qat.layers", "od_qat.layer", r"my.config, line 4.*od_qat.layer\b.*\[od_qat.layers\] has"),
        ("ema_decay: 0.99", 'ema_decay: "a"', "my.config, line 10"),
    ],
)
def test_what_does_not_parse_names_file_and_line(config_file, right, wrong, says):
    config_file.write_text(CONFIG.strip().replace(right, wrong))
    with pytest.raises(ConfigError, match=says):
        _load(config_file)


@pytest.mark.parametrize(
    "right, wrong, says",
    [
        (
            "activation_bits: 7",
            "activation_bits: 9",
            r"my.config, graph_rewriter.quantization.activation_bits",
        ),
        ("weight_bits: 4", "weight_bits: 1", r"\[od_qat.layers\].rule '.*/expanded_conv_16', weight_bits"),
        ('"full"', '"fool"', r"\[od_qat.layers\].placement, found 'fool'"),
        ("quantize: false", "", "sets nothing"),
        ('scope: ".*/expanded_conv_16"', "", "rule without a scope"),
        ('scope: ".*/expanded_conv_16"', 'scope: "*"', "not a regular expression"),
        ('"full"', '"contrib"', r"\[od_qat.layers\].per_channel.*contrib"),
        ("freeze_bn_delay: 5", "freeze_bn_delay: 1", r"\[od_qat.layers\].freeze_bn_delay"),
        ("freeze_bn_delay: 5", "freeze_bn_delay: -5", r"\[od_qat.layers\].freeze_bn_delay, found -5"),
        ("delay: 3", "delay: -3", r"my.config, graph_rewriter.quantization.delay, found -3"),
    ],
)
def test_what_cannot_be_honoured_names_file_and_field(config_file, right, wrong, says):
    from od_qat.messages import graph_rewriter

    assert right in CONFIG
    config_file.write_text(CONFIG.replace(right, wrong))
    with pytest.raises(ConfigError, match=says):
        graph_rewriter.check(_load(config_file), None, str(config_file))


def test_tflite_takes_no_rule_with_other_bits(config_file):
    from od_qat.messages import graph_rewriter

    config_file.write_text(CONFIG.replace("activation_bits: 7", "activation_bits: 8"))
    with pytest.raises(ConfigError, match=r"8 bits only.*rule '.*expanded_conv_16', weight_bits, found 4"):
        graph_rewriter.check_for_tflite(_load(config_file), "my.config")


def test_the_config_reaches_the_rewriter(config_file):
    from od_qat.od_api import graph_rewriter

    config_file.write_text(
        """
        model { ssd { } }
        graph_rewriter {
          quantization { delay: 2 }
          [od_qat.layers] {
            per_channel: true
            ema_decay: 0.5
            freeze_bn_delay: 3
            rule { scope: "Head_.*/class" quantize: false }
            rule { scope: "net/down" per_channel: false }
          }
        }"""
    )
    message = _load(config_file).graph_rewriter
    for training in (True, False):
        with tf.Graph().as_default() as graph:
            _small_ssd(training)
            report = graph_rewriter.build(message, is_training=training)()
            assert sorted(report.stays_float) == ["Head_0/class/Conv2D", "Head_1/class/Conv2D"]
            shapes = {v.op.name: v.shape.ndims for v in tf.get_collection(QUANT_VARIABLES)}
            assert (shapes["net/down/weights_quant/min"], shapes["net/Conv/weights_quant/min"]) == (0, 1)
            # Of the delays an eval graph has none: neither is there a step to count.
            names = [op.name for op in graph.get_operations()]
            for delay in (QUANT_STEP + "/quantising", QUANT_STEP + "/batch_norm_frozen", QUANT_STEP):
                assert names.count(delay) == (1 if training else 0)


REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def _examples():
    """The block in docs/config.md, and the one that stands commented out in the config."""
    with open(os.path.join(REPOSITORY, "docs", "config.md"), encoding="utf-8") as stream:
        page = stream.read()
    block = next(part for part in page.split("```") if "[od_qat.layers] {" in part)
    with open(os.path.join(REPOSITORY, "configs", "ssd_mobilenet_v2_qat.config"), encoding="utf-8") as stream:
        config = stream.read()
    commented = config[config.index("  # [od_qat.layers] {") :]
    lines = [line.strip()[2:] for line in commented.splitlines() if line.strip().startswith("#")]
    return block, "graph_rewriter {{ quantization {{ delay: 0 }}\n{}\n}}".format("\n".join(lines))


def test_the_examples_in_docs_and_config_are_true(config_file):
    """They parse, and on the detector that the config describes they do what is said."""
    try:
        from od_qat import plugin  # noqa: F401
        from od_qat.od_api import graph_rewriter, inference, models
    except Exception as error:  # noqa: BLE001
        pytest.skip("the OD API cannot be imported: {}".format(error))
    source = _load(os.path.join(REPOSITORY, "configs", "ssd_mobilenet_v2_qat.config"))
    source.ClearField("graph_rewriter")
    found = []
    for example in _examples():
        config_file.write_text("model { ssd { } } " + example)
        source.graph_rewriter.CopyFrom(_load(config_file).graph_rewriter)
        found.append(_qat_config(source))
    assert found[0].rules == found[1].rules and found[0].per_channel and found[1].per_channel
    assert found[1].freeze_bn_delay < source.train_config.num_steps
    with tf.Graph().as_default() as graph:
        model = models.model_fn(source, is_training=False)()
        inference.build_raw_heads_graph(model, source.model, 300, 300)
        report = graph_rewriter.build(source.graph_rewriter, is_training=False)()
        shapes = {v.op.name: v.shape.ndims for v in graph.get_collection(QUANT_VARIABLES)}
    assert sorted(report.stays_float) == ["BoxPredictor_{}/ClassPredictor/Conv2D".format(n) for n in range(6)]
    backbone = "FeatureExtractor/MobilenetV2/{}/weights_quant/min"
    assert shapes[backbone.format("expanded_conv_16/depthwise")] == 0
    assert shapes[backbone.format("expanded_conv_15/depthwise")] == 1


def test_the_config_reference_names_every_field():
    from od_qat.messages import layers

    with open(os.path.join(REPOSITORY, "docs", "config.md"), encoding="utf-8") as stream:
        section = stream.read().split("## Settings for single layers")[1].split("\n## ")[0]
    for name in set(layers.OPTIONS) | {name for name, _ in layers._RULE_FIELDS}:
        assert "`{}`".format(name) in section


UPSTREAM = """
import sys
if sys.argv[2] == "with":
    import od_qat.plugin
    from object_detection.utils import config_util
    configs = config_util.get_configs_from_pipeline_file(sys.argv[1])
    assert "od_qat.layers" in str(config_util.create_pipeline_proto_from_configs(configs))
else:
    from google.protobuf import text_format
    from object_detection.protos import pipeline_pb2
    text_format.Merge(open(sys.argv[1]).read(), pipeline_pb2.TrainEvalPipelineConfig())
"""


def test_upstreams_own_reading_knows_it_with_the_plugin_and_refuses_it_without(config_file, run_python):
    config_file.write_text(
        CONFIG + " train_config { } train_input_reader { } eval_config { } eval_input_reader { }"
    )
    done = run_python("-c", UPSTREAM, str(config_file), "with")
    assert done.status == 0, done.errors
    done = run_python("-c", UPSTREAM, str(config_file), "without")
    assert done.status != 0
    assert "od_qat.layers" in done.errors
