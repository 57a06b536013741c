"""od-qat compare: what files of models hold, and what differs between two."""

import functools
import json
import os
import shutil

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import cli, contents  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from od_qat.contents import model as of  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, DataError, ExportError  # noqa: E402
from od_qat.export import freeze, tflite  # noqa: E402
from od_qat.model_files import interpreter  # noqa: E402
from od_qat.report import comparison  # noqa: E402
from tests.helpers import damaged_files, sessions, small_road  # noqa: E402

pytestmark = [pytest.mark.tf1, pytest.mark.long_on_tf1]

SIZE, LAYERS = small_road.SIZE, 2
WEIGHTS = LAYERS * 3 * 3 * 8 * 8
COCO = os.environ.get("OD_QAT_COCO_DETECTOR")


def net(images, training):
    for number in range(LAYERS):
        images = small_road.conv(images, "conv{}".format(number), bias=False)
        images = tf.nn.relu6(small_road.norm(images, "norm{}".format(number), training))
    return images


class Models(object):
    """A net as a QAT checkpoint, as frozen graphs with and without fake quants, and as a .tflite."""

    def __init__(self, folder):
        self.folder = folder
        self.qat_checkpoint = small_road.trained(net, folder)
        self.qat_graph = self._write(
            "qat.pb", small_road.frozen(net, self.qat_checkpoint).SerializeToString()
        )
        float_graph = small_road.frozen(net, self.qat_checkpoint, rewrite=False)
        self.float_graph = self._write("float.pb", float_graph.SerializeToString())
        with tf.Graph().as_default(), sessions.plain() as session:
            net(tf.placeholder(tf.float32, [4, SIZE, SIZE, 8]), True)
            saver = tf.train.Saver(tf.global_variables())
            saver.restore(session, self.qat_checkpoint)
            self.float_checkpoint = saver.save(session, os.path.join(folder, "float.ckpt"))

    def _write(self, name, data):
        path = os.path.join(self.folder, name)
        with open(path, "wb") as stream:
            stream.write(data)
        return path

    def tflite(self):
        pytest.importorskip("ai_edge_litert")
        path = os.path.join(self.folder, "net.tflite")
        if not os.path.exists(path):
            with open(self.qat_graph, "rb") as stream:
                graph_def = tf.GraphDef.FromString(stream.read())
            self._write("net.tflite", small_road.converted(graph_def))
        return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return Models(str(tmp_path_factory.mktemp("compare")))


def compared(a, b):
    return comparison.compare(contents.read(a), contents.read(b))


@pytest.mark.parametrize("kind", ["float_graph", "qat_graph", "float_checkpoint", "qat_checkpoint", "tflite"])
def test_sizes_add_up_to_the_files(models, kind):
    path = getattr(models, kind)
    path = path() if callable(path) else path
    found = contents.read(path)
    files = [path] if os.path.exists(path) else [path + end for end in (".index", ".meta")]
    files += [] if os.path.exists(path) else [path + ".data-00000-of-00001"]
    assert found.size_bytes == sum(map(os.path.getsize, files)) == sum(found.sizes().values())
    weights = sum(array.value().size for array in found.of_kind(of.WEIGHTS))
    assert weights == WEIGHTS
    # (A node of a graph holds some bytes beside its numbers.)
    least = WEIGHTS * (1 if kind == "tflite" else 4)
    assert least <= found.sizes()[of.WEIGHTS] < least + 200 * LAYERS
    assert (of.RANGES in found.sizes()) == kind.startswith("qat")


@pytest.mark.parametrize("kind, share", [("float_graph", 0.0), ("qat_graph", 1.0), ("tflite", 1.0)])
def test_what_is_quantized_of_a_graph(models, kind, share):
    path = getattr(models, kind)
    found = contents.read(path() if callable(path) else path)
    assert len(found.layers) == LAYERS
    assert [layer.weights for layer in found.layers] == [WEIGHTS // LAYERS] * LAYERS
    assert [layer.multiply_adds for layer in found.layers] == [SIZE * SIZE * WEIGHTS // LAYERS] * LAYERS
    assert found.quantized_weights() == found.quantized_multiply_adds() == share


def test_a_qat_graph_is_as_large_as_the_float_one_and_why(models):
    found = compared(models.float_graph, models.qat_graph)
    ranges = found.op_types["FakeQuantWithMinMaxVars"]
    assert ranges[0] == 0 and ranges[1] == 2 * LAYERS
    # (The rewrite folds batch norms, which takes small constants of its own.)
    assert {array.kind for array in found.only_b} <= {of.RANGES, of.BATCH_NORM, of.OTHER}
    assert all(np.prod(array.shape) <= 8 for array in found.only_b)
    assert found.changed == () and found.equal >= 5 * LAYERS
    (said,) = [one for one in found.words if "weights are float32 still" in one]
    assert "B is a QAT model with {} fake quants".format(2 * LAYERS) in said
    assert "od-qat export-tflite" in said and "about 1,152 B" in said  # a byte for each of its weights


def test_a_tflite_beside_its_graph(models):
    pytest.importorskip("ai_edge_litert")
    found = compared(models.qat_graph, models.tflite())
    assert not found.by_name and found.only_a == found.only_b == found.changed == ()
    share = 100.0 * os.path.getsize(models.tflite()) / os.path.getsize(models.qat_graph)
    assert any("B has {:.0f} % of the size of A".format(share) in one for one in found.words)


def test_what_makes_a_qat_checkpoint(models):
    found = compared(models.float_checkpoint, models.qat_checkpoint)
    assert found.only_a == () and found.changed == ()
    assert {array.kind for array in found.only_b} == {of.RANGES}
    assert len(found.only_b) == len(contents.read(models.qat_checkpoint).of_kind(of.RANGES))
    assert found.words[-1].startswith("B is a QAT model: {} variables".format(len(found.only_b)))
    assert found.words[-1].endswith("Beside these it has nothing that the other has not.")
    # (A graph names its constants as the checkpoint names its variables.)
    of_graph = compared(models.qat_checkpoint, models.qat_graph)
    assert of_graph.changed == () and of_graph.equal >= 5 * LAYERS


def test_a_changed_variable_is_found_with_its_change(models, tmp_path):
    reader = tf.train.load_checkpoint(models.float_checkpoint)
    values = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    rng = np.random.RandomState(0)
    small = values["conv1/w"] + 1e-3 * rng.normal(size=values["conv1/w"].shape).astype(np.float32)
    changed = dict(values, **{"conv1/w": small, "norm0/gamma": 2 * values["norm0/gamma"]})
    changed["norm1/beta"] = changed["norm1/beta"][:4]
    with tf.Graph().as_default(), sessions.plain() as session:
        saver = tf.train.Saver([tf.Variable(value, name=name) for name, value in changed.items()])
        session.run(tf.global_variables_initializer())
        other = saver.save(session, str(tmp_path / "other.ckpt"))
    found = compared(models.float_checkpoint, other)
    assert [change.name for change in found.changed] == ["norm1/beta", "norm0/gamma", "conv1/w"]
    assert found.changed[0].shapes == ((8,), (4,))
    assert found.changed[1].relative == pytest.approx(1.0)
    assert found.changed[1].largest == pytest.approx(np.abs(values["norm0/gamma"]).max())
    difference = small.astype(np.float64) - values["conv1/w"]
    expected = np.sqrt(np.mean(difference**2) / np.mean(values["conv1/w"].astype(np.float64) ** 2))
    assert found.changed[2].relative == pytest.approx(expected)
    assert found.equal == len(values) - 3
    same = compared(models.float_checkpoint, models.float_checkpoint)
    assert same.words == ("All {} arrays of A are in B, with the same values.".format(len(values)),)


def test_a_float_layer_is_named(models, tmp_path):
    pytest.importorskip("ai_edge_litert")

    def with_a_float_layer(images, training):
        return small_road.conv(net(images, training), "last")

    folder = str(tmp_path)
    checkpoint = small_road.trained(with_a_float_layer, folder)
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8], name="images")
        from od_qat.rewrite import api

        middle = net(images, False)
        api.create_eval_graph(graph)
        tf.reshape(small_road.conv(middle, "last"), [1, -1], name="result")
        graph_def = freeze.freeze(checkpoint, ["result"], graph)
    path = str(tmp_path / "island.tflite")
    with open(path, "wb") as stream:
        stream.write(small_road.converted(graph_def))
    found = contents.read(path)
    opened = interpreter.without_delegates(open(path, "rb").read())
    opened.allocate_tensors()
    details = {detail["index"]: detail for detail in opened.get_tensor_details()}
    of_floats = [
        details[op["outputs"][0]]["name"]
        for op in opened._get_ops_details()
        if op["op_name"] == "CONV_2D" and details[op["inputs"][0]]["dtype"] == np.float32
    ]
    assert [layer.name for layer in found.layers if not layer.quantized] == of_floats
    assert of_floats[-1].startswith("last/") and len(of_floats) <= LAYERS
    assert found.quantized_weights() == pytest.approx(1 - len(of_floats) / (LAYERS + 1))
    (said,) = [
        one for one in comparison.compare(found, contents.read(models.tflite())).words if " float" in one
    ]
    assert said == "A computes {} of 3 layers in float, {} first.".format(len(of_floats), of_floats[0])


def test_a_saved_model(models, tmp_path):
    folder = str(tmp_path / "saved")
    with tf.Graph().as_default(), sessions.plain() as session:
        images = tf.placeholder(tf.float32, [1, SIZE, SIZE, 8])
        result = net(images, False)
        tf.train.Saver().restore(session, models.float_checkpoint)
        tf.saved_model.simple_save(session, folder, {"images": images}, {"result": result})
    found = contents.read(folder)
    assert found.kind == of.SAVED_MODEL and found.sizes()[of.WEIGHTS] == 4 * WEIGHTS
    assert len(found.layers) == LAYERS and found.quantized_weights() == 0
    assert contents.read(os.path.join(folder, "saved_model.pb")).sizes() == found.sizes()
    same = compared(folder, models.float_checkpoint)
    # (Its graph has constants of initializers, too.)
    assert same.changed == same.only_b == () and {array.kind for array in same.only_a} == {of.OTHER}


def test_the_command(models, tmp_path, capsys):
    out = str(tmp_path / "found.json")
    assert cli.main(["compare", models.float_checkpoint, models.qat_checkpoint, "--json", out]) == 0
    text = capsys.readouterr().out
    ranges = len(contents.read(models.qat_checkpoint).of_kind(of.RANGES))
    assert "only in B: {} arrays".format(ranges) in text
    assert "... and {} more (--all, --json)".format(ranges - 10) in text
    with open(out) as stream:
        found = json.load(stream)
    assert len(found["only_b"]) == ranges and found["a"]["kind"] == "checkpoint"
    assert cli.main(["compare", models.float_checkpoint, models.qat_checkpoint, "--all"]) == 0
    assert "more (--all" not in capsys.readouterr().out


def test_a_folder_is_its_newest_checkpoint(models, tmp_path):
    for path in os.listdir(models.folder):
        if path.startswith("float.ckpt"):
            shutil.copy(os.path.join(models.folder, path), str(tmp_path / path))
    with open(str(tmp_path / "checkpoint"), "w") as stream:
        stream.write('model_checkpoint_path: "float.ckpt"\n')
    found = compared(str(tmp_path), models.float_checkpoint)
    assert found.changed == () and found.only_a == found.only_b == ()


def test_a_float16_tflite_has_its_weights_behind_an_op(models, tmp_path):
    pytest.importorskip("ai_edge_litert")
    with open(models.float_graph, "rb") as stream:
        graph_def = tf.GraphDef.FromString(stream.read())
    path = str(tmp_path / "half.tflite")
    shape = [1, SIZE, SIZE, 8]
    with open(path, "wb") as stream:
        stream.write(tflite.convert_float(graph_def, "images", shape, ["result"], tflite.FLOAT16))
    found = contents.read(path)
    assert found.sizes()[of.WEIGHTS] == 2 * WEIGHTS and found.quantized_weights() == 0
    assert [layer.weights for layer in found.layers] == [WEIGHTS // LAYERS] * LAYERS


@pytest.mark.skipif(not COCO, reason="OD_QAT_COCO_DETECTOR is not set")
def test_a_published_detector():
    pytest.importorskip("ai_edge_litert")
    found = compared(os.path.join(COCO, "model.ckpt-0"), os.path.join(COCO, "detect.tflite"))
    assert found.b.quantized_weights() == found.b.quantized_multiply_adds() == 1.0
    assert any(one.startswith("B has 25 % of the size of A") for one in found.words)


def test_a_graph_in_which_a_node_is_missing(models, tmp_path):
    with open(models.float_graph, "rb") as stream:
        graph_def = tf.GraphDef.FromString(stream.read())
    (name, *_) = [node.name for node in graph_def.node if node.op == "Conv2D"]
    rest = tf.GraphDef(node=[node for node in graph_def.node if node.op != "Placeholder"])
    (tmp_path / "part.pb").write_bytes(rest.SerializeToString())
    found = contents.read(str(tmp_path / "part.pb"))
    assert name in [layer.name for layer in found.layers]
    assert {layer.multiply_adds for layer in found.layers} == {None}


@pytest.mark.parametrize(
    "name, error, says",
    [
        ("none.pb", ConfigError, "no such model: at .*none.pb"),
        ("none.tflite", ExportError, "cannot read the .tflite: at .*none.tflite"),
        ("none", CheckpointError, "no such checkpoint: at .*none"),
        ("empty.pb", DataError, "the graph is empty"),
        ("text.tflite", ExportError, "damaged, or is none"),
    ],
)
def test_what_cannot_be_read(name, error, says, tmp_path):
    for file, data in (("empty.pb", b""), ("text.tflite", b"no model at all")):
        (tmp_path / file).write_bytes(data)
    with pytest.raises(error, match=says) as caught:
        contents.read(str(tmp_path / name))
    assert "\n" not in str(caught.value)


def test_damaged_files(models, tmp_path):
    pytest.importorskip("ai_edge_litert")

    def use(path):
        found = contents.read(path)
        comparison.as_text(comparison.compare(found, found))

    for source in (models.tflite(), models.qat_graph):
        path = shutil.copy(source, str(tmp_path))
        damaged_files.try_all(path, functools.partial(use, path), refuses=False)
