"""od-qat layers: which layer adds the error, in graphs and .tflite files of which one thing is wrong."""

import os

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import cli  # noqa: E402
from od_qat.analysis import advice, errors, fake_quants, of_graph, of_tflite, points  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from od_qat.errors import DataError, ExportError  # noqa: E402
from od_qat.model_files import interpreter, tflite_graph  # noqa: E402
from od_qat.report import layers  # noqa: E402
from od_qat.scoring import images  # noqa: E402
from tests.helpers import sessions, small_road  # noqa: E402
from tests.test_model_nodes import changed  # noqa: E402

LAYERS = 4
INPUT = "images:0"


def net(given, training):
    """Layers in a row, and an addition behind the second."""
    net_ = given
    for number in range(LAYERS):
        before = net_
        net_ = tf.nn.relu6(small_road.conv(net_, "conv{}".format(number)))
        if number == 1:
            net_ = tf.add(net_, before, name="sum")
    return net_


class Model(object):
    def __init__(self, folder):
        self.folder = folder
        checkpoint = small_road.trained(net, folder)
        self.graph = small_road.frozen(net, checkpoint)
        self.float_graph = small_road.frozen(net, checkpoint, rewrite=False)

    def tflite(self):
        pytest.importorskip("ai_edge_litert")
        path = os.path.join(self.folder, "net.tflite")
        if not os.path.exists(path):
            with open(path, "wb") as stream:
                stream.write(small_road.converted(self.graph))
        return path


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(str(tmp_path_factory.mktemp("layers")))


def values(count=3):
    return [small_road.pictures(100 + seed, batch=1) for seed in range(count)]


def edited(graph_def, change):
    copy = tf.GraphDef.FromString(graph_def.SerializeToString())
    nodes = {node.name: node for node in copy.node}
    change(nodes)
    return copy


def constant(nodes, name, value=None):
    while nodes[name].op == "Identity":
        name = nodes[name].input[0]
    tensor = nodes[name].attr["value"].tensor
    old = tf.make_ndarray(tensor)
    if value is not None:
        tensor.CopyFrom(tf.make_tensor_proto(value(old.copy()).astype(np.float32)))
    return old


# The measures.


def test_measures_against_numpy():
    rng = np.random.RandomState(0)
    reference = rng.normal(size=(5, 7))
    found = reference + 0.01 * rng.normal(size=(5, 7))
    sums = errors.Errors()
    for one, other in zip(found, reference):
        sums.add(one, other)
    got = sums.result(0.1)
    difference = found - reference
    assert got.sqnr_db == pytest.approx(10 * np.log10(np.mean(reference**2) / np.mean(difference**2)))
    assert got.rmse == pytest.approx(np.sqrt(np.mean(difference**2)))
    assert got.steps == pytest.approx(got.rmse / 0.1)
    expected = np.sum(found * reference) / np.linalg.norm(found) / np.linalg.norm(reference)
    assert got.cosine == pytest.approx(expected)
    assert errors.of_arrays(reference, reference).sqnr_db == 144.0
    # (A uniform error of one step is what rounding makes.)
    uniform = rng.uniform(-0.05, 0.05, 100000)
    assert errors.of_arrays(uniform, np.zeros(100000), 0.1).steps == pytest.approx(12**-0.5, rel=0.01)


def test_what_lies_beyond_a_range():
    found = errors.Distribution(-1.0, 1.0)
    found.add(np.array([-1.5, -1.0, 0.0, 0.5]))
    found.add(np.array([1.0, 1.25, 3.0, 0.0]))
    assert found.clipped == pytest.approx(3 / 8) and found.extent == (-1.5, 3.0)
    assert sum(found.counts) == 8 and len(found.edges) == len(found.counts) + 1
    assert found.counts[-1] == 1 and found.edges[-1] == pytest.approx(2.0)


# Graphs.


def test_points_are_those_of_the_rewrite(model):
    found = points.find(model.graph)
    names = [point.name for point in found]
    convs = ["conv{}/act_quant".format(number) for number in range(LAYERS)]
    assert [name for name in names if name.startswith("conv")] == convs
    (joined,) = [point for point in found if point.layer is None]
    assert "AddV2" in joined.types or "Add" in joined.types
    assert {points.scope_of(one) for one in joined.before} == set(convs[:2])
    by_name = {point.name: point for point in found}
    assert by_name[convs[2]].before == (joined.fake_quant.name,)
    assert [len(by_name[name].weights) for name in convs] == [1] * LAYERS


def test_a_healthy_graph_adds_rounding_alone(model):
    found = of_graph.measure(model.graph, INPUT, values(), "here")
    assert found.images == 3 and found.unmatched == ()
    for point in found.points:
        # (Rounding of the output, .29, and of weights with one range for all.)
        assert point.own.steps < 2 and point.own.sqnr_db > 30 and point.clipped < 0.02
        assert point.own.steps <= point.piled_up.steps * 1.01
        assert (point.weights is None) == (point.layer is None)
    assert found.both.sqnr_db < min(found.weights_only.sqnr_db, found.activations_only.sqnr_db) + 1
    # (All weights of a layer have one range here.)
    assert all("a range for each channel" in one.what for one in advice.of_graph(found))
    # (The float graph of the same checkpoint computes the same as the graph without its fake quants.)
    other = of_graph.measure(model.graph, INPUT, values(), "here", model.float_graph)
    assert max(point.unquantized.steps for point in other.points) < 1e-3
    for point, again in zip(found.points, other.points):
        assert again.own.steps == pytest.approx(point.own.steps, rel=1e-3)


def test_own_errors_against_a_graph_of_one_layer(model):
    """The second layer by hand: its float input, its rounded weights, its range."""
    found = {point.name: point for point in of_graph.measure(model.graph, INPUT, values(1), "here").points}
    nodes = {node.name: node for node in model.graph.node}
    low, high = (
        float(constant(nodes, source))
        for source in nodes["conv1/act_quant/FakeQuantWithMinMaxVars"].input[1:3]
    )
    with tf.Graph().as_default(), sessions.plain() as session:
        tf.import_graph_def(
            fake_quants.without(model.graph, [q.name for q in fake_quants.find(model.graph)]), name=""
        )
        before, wanted, weights = session.run(
            [
                "conv0/act_quant/FakeQuantWithMinMaxVars:0",
                "conv1/act_quant/FakeQuantWithMinMaxVars:0",
                "conv1/w:0",
            ],
            {INPUT: values(1)[0]},
        )
        bias = constant(nodes, "conv1/b")
    with tf.Graph().as_default(), sessions.plain() as session:
        limit = float(np.abs(weights).max())
        rounded = tf.quantization.fake_quant_with_min_max_args(weights, -limit, limit, narrow_range=True)
        made = tf.nn.relu6(tf.nn.conv2d(before, rounded, [1, 1, 1, 1], "SAME") + bias)
        made = session.run(tf.quantization.fake_quant_with_min_max_vars(made, low, high))
    expected = errors.of_arrays(made, wanted, (high - low) / 255)
    assert found["conv1/act_quant"].own.steps == pytest.approx(expected.steps, rel=0.02)


@pytest.mark.parametrize("layer", range(LAYERS))
def test_a_range_that_is_too_narrow_is_found(model, layer):
    name = "conv{}/act_quant".format(layer)

    def narrow(nodes):
        for source in nodes[name + "/FakeQuantWithMinMaxVars"].input[1:3]:
            constant(nodes, source, lambda old: old / 8)

    found = of_graph.measure(edited(model.graph, narrow), INPUT, values(), "here")
    first = found.worst()[0]
    assert first.name == name and first.clipped > 0.05 and first.own.sqnr_db < 20
    given = advice.of_graph(found)
    assert "values lie beyond this one" in given[0].what and name in given[0].why
    assert "ema_decay" in given[0].config


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("wrong", ["weights of a channel", "bias"])
def test_other_numbers_than_the_references_are_found(model, layer, wrong):
    def change(nodes):
        if wrong == "bias":
            constant(nodes, "conv{}/b".format(layer), lambda old: old * 1.1)
        else:
            constant(nodes, "conv{}/w".format(layer), lambda old: old * (np.arange(8) != 3))

    found = of_graph.measure(edited(model.graph, change), INPUT, values(), "here", model.float_graph)
    first = found.worst()[0]
    assert first.name == "conv{}/act_quant".format(layer) and first.unquantized.steps > 0.1
    assert [point for point in found.points if point.unquantized.steps > 0.01] == [first]
    assert "they differ from the reference's" in advice.of_graph(found)[0].what


def test_weights_of_very_different_channels(model):
    """One range for all weights leaves few steps to the small ones."""

    def spread(nodes):
        for number in range(LAYERS):
            constant(nodes, "conv{}/w".format(number), lambda old: old * np.array([30.0] + [1.0] * 7))
            quant = nodes["conv{}/weights_quant/FakeQuantWithMinMaxVars".format(number)]
            for source in quant.input[1:3]:
                constant(nodes, source, lambda old: old * 30)

    found = of_graph.measure(edited(model.graph, spread), INPUT, values(), "here")
    assert found.weights_only.sqnr_db < found.activations_only.sqnr_db
    for point in found.points:
        if point.weights is not None:
            assert point.weights.channels == 1 and point.weights.low == -point.weights.high


# .tflite files.


def run_of(path):
    graph = tflite_graph.read(path)
    opened = interpreter.without_delegates(open(path, "rb").read(), experimental_preserve_all_tensors=True)
    opened.allocate_tensors()
    (given,) = opened.get_input_details()
    tensors = [t for t in graph.tensors if t.data is None and len(t.scales) == 1 and t.dtype == "int8"]

    def run(value):
        opened.set_tensor(given["index"], value)
        opened.invoke()
        return [
            (
                t.index,
                float(t.scales[0]),
                images.dequantize(opened.get_tensor(t.index), t.scales[0], t.zero_points[0]),
            )
            for t in tensors
        ]

    scale, zero_point = given["quantization"]
    limits = np.iinfo(given["dtype"])
    pairs = []
    for value in values():
        stored = np.clip(np.round(value / scale + zero_point), limits.min, limits.max).astype(given["dtype"])
        pairs.append((stored, images.dequantize(stored, scale, zero_point)))
    return run, pairs


def measured(path, graph_def):
    run, pairs = run_of(path)
    return of_tflite.measure(run, graph_def, INPUT, pairs, path)


def test_a_tflite_computes_what_its_graph_does(model):
    found = measured(model.tflite(), model.graph)
    assert found.unmatched == () and len(found.points) == LAYERS + 1
    for point in found.points:
        assert point.own.steps < 0.3
    assert advice.of_tflite(found) == []


@pytest.mark.parametrize("layer", range(LAYERS))
@pytest.mark.parametrize("wrong", ["weights of a channel", "bias", "range"])
def test_a_wrong_tflite_is_found(model, layer, wrong, tmp_path):
    path = model.tflite()

    def change(content, schema):
        graph = content.subgraphs[0]
        convs = [
            op
            for op in graph.operators
            if op.builtinOptions is not None and hasattr(op.builtinOptions, "strideW")
        ]
        index = convs[layer].inputs[2 if wrong == "bias" else 1]
        if wrong == "range":
            quantization = graph.tensors[convs[layer].outputs[0]].quantization
            quantization.scale = np.asarray(quantization.scale, np.float32) / 8
            return
        buffer = content.buffers[graph.tensors[index].buffer]
        if wrong == "bias":
            value = np.frombuffer(np.asarray(buffer.data, np.uint8).tobytes(), np.int32)
            value = np.round(value * 1.1).astype(np.int32)
        else:
            value = (
                np.frombuffer(np.asarray(buffer.data, np.uint8).tobytes(), np.int8).reshape(8, 3, 3, 8).copy()
            )
            value[3] = 0
        buffer.data = list(np.frombuffer(value.tobytes(), np.uint8))

    found = measured(changed(path, tmp_path / "wrong.tflite", change), model.graph)
    assert found.worst()[0].name == "conv{}/act_quant".format(layer)
    first = advice.of_tflite(found)[0] if advice.of_tflite(found) else None
    assert first is not None and "conv{}/act_quant".format(layer) in first.what


# What cannot be measured.


def test_a_float_graph_and_no_image(model):
    with pytest.raises(ExportError, match="the graph has no fake quants: at here"):
        of_graph.measure(model.float_graph, INPUT, values(), "here")
    with pytest.raises(DataError, match="there is no image to run: at here"):
        of_graph.measure(model.graph, INPUT, [], "here")


def test_another_network_as_reference(model, tmp_path):
    def other(given, training):
        return small_road.conv(given, "other")

    folder = str(tmp_path)
    reference = small_road.frozen(other, small_road.trained(other, folder), rewrite=False)
    with pytest.raises(
        DataError, match="the reference is another network: found . of . points are not in it"
    ):
        of_graph.measure(model.graph, INPUT, values(), "here", reference)


def test_the_command_refuses(model_dir, tmp_path, capsys):
    picture = tmp_path / "a.png"
    picture.write_bytes(b"no picture")
    tflite = os.path.join(model_dir, "int8.tflite")
    float_graph = os.path.join(model_dir, "canonical.pb")
    for arguments, says in (
        ([tflite, "--record", str(picture)], "compared with the graph that it was made from"),
        ([str(tmp_path / "none.pb"), "--record", str(picture)], "cannot read the model"),
        ([float_graph, "--record", str(picture)], "no fake quants"),
        ([float_graph, "--record", str(picture), "--reference=none"], "cannot read the reference"),
    ):
        assert cli.main(["layers"] + arguments) == 1
        (line,) = [one for one in capsys.readouterr().err.splitlines() if one.startswith("od-qat: error")]
        assert says in line, line


def test_text_and_json(model):
    found = layers.Layers("here", "there", of_graph.measure(model.graph, INPUT, values(), "here"), ())
    text = layers.as_text(found, limit=2)
    assert "... and {} more".format(len(found.errors.points) - 2) in text
    assert "conv0/act_quant" in layers.as_text(found)
    content = layers.as_json(found)
    assert [one["name"] for one in content["points"]] == [one.name for one in found.errors.points]
    assert content["both"]["sqnr_db"] == found.errors.both.sqnr_db
