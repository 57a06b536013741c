"""`od-qat nodes`: inputs, outputs and roles of a .tflite, a SavedModel and a graph, also of damaged ones."""

import json
import os
import random

import pytest

from od_qat import cli
from od_qat.compat import tf
from od_qat.errors import ExportError, OdQatError
from od_qat.model_files import nodes as model_nodes
from od_qat.model_files import tflite_file
from tests.test_scoring import build_tflite

SHOWN = ("boxes", "classes", "scores", "count")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """An int8 .tflite with TFLite_Detection_PostProcess, without a JSON."""
    pytest.importorskip("ai_edge_litert")
    path = str(tmp_path_factory.mktemp("nodes") / "detect.tflite")
    build_tflite(tf, path, "int8")
    return path


def changed(model, path, change):
    """A copy of a .tflite whose content, an object of the schema's, `change` has edited; returns its path."""
    import flatbuffers
    from ai_edge_litert import schema_py_generated as schema

    with open(model, "rb") as stream:
        content = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(bytearray(stream.read()), 0))
    change(content, schema)
    builder = flatbuffers.Builder(1024)
    builder.Finish(content.Pack(builder), b"TFL3")
    path.write_bytes(bytes(builder.Output()))
    return str(path)


def reorder(content, schema):
    """As TF 2's exporters order them: scores, boxes, count, classes."""
    boxes, classes, scores, count = content.subgraphs[0].outputs
    content.subgraphs[0].outputs = [scores, boxes, count, classes]


def no_post_process(content, schema):
    for code in content.operatorCodes:
        if code.customCode == b"TFLite_Detection_PostProcess":
            code.customCode = b"SomeoneElses"


def roles(found):
    return tuple(node.role for node in found.nodes if node.what == "output")


def test_a_tflite(model, capsys):
    assert cli.main(["nodes", model]) == 0
    captured = capsys.readouterr()
    assert captured.out == "detections,detections:1,detections:2,detections:3\n"
    lines = captured.err.splitlines()
    assert lines[0].split() == ["name", "shape", "type", "scale,", "zero", "point", "role"]
    assert lines[2].split() == "input image [1, 32, 32, 3] int8 0.00784314, 0 image".split()
    assert [line.split()[-1] for line in lines[3:7]] == list(SHOWN)
    assert lines[7].startswith(
        "tflite: roles by TFLite_Detection_PostProcess, regular NMS, score threshold 0.2"
    )


def test_what_is_read_is_what_the_interpreter_sees(model):
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_path=model)
    read = tflite_file.read(model)
    for tensor, detail in zip(
        read.inputs + read.outputs, interpreter.get_input_details() + interpreter.get_output_details()
    ):
        assert (tensor.name, tensor.dtype) == (detail["name"], detail["dtype"].__name__)
        assert (tensor.scale, tensor.zero_point) == detail["quantization"]
        assert list(tensor.shape) == list(detail["shape_signature"])


def test_outputs_in_another_order_keep_their_roles(model, tmp_path):
    path = changed(model, tmp_path / "detect.tflite", reorder)
    assert roles(model_nodes.find(path)) == ("scores", "boxes", "count", "classes")


def test_roles_by_the_json_and_by_signature_names_without_the_op(model, tmp_path):
    def with_signature(content, schema):
        no_post_process(content, schema)
        reorder(content, schema)
        signature = schema.SignatureDefT()
        signature.signatureKey, signature.subgraphIndex, signature.inputs = b"serving_default", 0, []
        signature.outputs = []
        names = (b"detection_scores", b"detection_boxes", b"num_detections", b"someone_elses")
        for name, index in zip(names, content.subgraphs[0].outputs):
            item = schema.TensorMapT()
            item.name, item.tensorIndex = name, index
            signature.outputs.append(item)
        content.signatureDefs = [signature]

    path = changed(model, tmp_path / "detect.tflite", with_signature)
    found = model_nodes.find(path)
    assert roles(found) == ("scores", "boxes", "count", "") and "names" in found.reason
    assert found.nodes[1].key == "detection_scores"
    content = {
        "format": "od_qat/1",
        "inputs": [{}],
        "outputs": [{"role": role} for role in SHOWN],
        "preprocessing": {},
        "class_id_offset": 1,
    }
    (tmp_path / "detect.json").write_text(json.dumps(content))
    found = model_nodes.find(path)
    assert roles(found) == SHOWN and "JSON" in found.reason
    bare = changed(model, tmp_path / "bare.tflite", no_post_process)
    found = model_nodes.find(bare)
    assert roles(found) == ("",) * 4 and found.reason.startswith("no TFLite_Detection_PostProcess, no JSON")
    (tmp_path / "bare.json").write_text("[]")  # someone else's
    assert "is not its description" in model_nodes.find(bare).reason


def test_a_damaged_tflite_is_one_line(model, tmp_path, capsys):
    with open(model, "rb") as stream:
        data = stream.read()
    rng, refused = random.Random(0), 0
    path = tmp_path / "damaged.tflite"
    for _ in range(300):
        damaged = bytearray(data[: rng.choice([len(data), rng.randrange(len(data))])])
        for _ in range(rng.choice([0, 1, 20]) if len(damaged) < len(data) else rng.choice([1, 20])):
            if damaged:
                damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(bytes(damaged))
        try:
            model_nodes.find(str(path))
        except ExportError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
    assert refused > 100
    path.write_bytes(data[:1000])
    assert cli.main(["nodes", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "the .tflite is damaged, or is none" in line and str(path) in line


def test_a_name_of_a_foreign_file_cannot_write_on_the_terminal(model, tmp_path, capsys):
    def rename(content, schema):
        content.subgraphs[0].tensors[content.subgraphs[0].outputs[0]].name = b"\x1b[2J" + b"x" * 200

    path = changed(model, tmp_path / "detect.tflite", rename)
    assert cli.main(["nodes", path]) == 0
    captured = capsys.readouterr()
    assert "\x1b" not in captured.out + captured.err


@pytest.mark.tf1
def test_a_saved_model(tmp_path, capsys):
    folder = str(tmp_path / "saved")
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        total = tf.reduce_sum(tf.cast(image, tf.float32))
        outputs = {
            "detection_boxes": tf.identity(tf.zeros([1, 5, 4]) + total, name="where"),
            "num_detections": tf.identity(tf.reshape(total, [1]), name="many"),
            "other": tf.identity(total, name="other"),
        }
        tf.saved_model.simple_save(session, folder, {"inputs": image}, outputs)
    capsys.readouterr()
    for given in (folder, os.path.join(folder, "saved_model.pb")):
        assert cli.main(["nodes", given]) == 0
        captured = capsys.readouterr()
        assert captured.out == "where:0,many:0,other:0\n"
        lines = captured.err.splitlines()
        assert lines[2].split() == "input image_tensor:0 inputs [1, ?, ?, 3] uint8".split()
        assert lines[3].split() == "output where:0 detection_boxes [1, 5, 4] float32 boxes".split()
        assert lines[4].split()[-1] == "count" and lines[5].split()[-1] == "float32"
        assert lines[6] == "saved_model: signature serving_default; roles by the keys"


@pytest.mark.tf1
def test_what_is_no_saved_model(tmp_path, capsys):
    assert cli.main(["nodes", str(tmp_path)]) == 1
    assert "no SavedModel in the folder" in capsys.readouterr().err
    (tmp_path / "saved_model.pb").write_bytes(b"\xff\xff\xff")
    with pytest.raises(OdQatError, match="cannot read the SavedModel"):
        model_nodes.find(str(tmp_path))
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(OdQatError, match="no signature"):
        model_nodes.find(str(tmp_path))


@pytest.mark.tf1
def test_a_graph_has_the_same_table(tmp_path, capsys):
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, 8], name="images")
        tf.placeholder(tf.float32, [], name="unread")
        for name in ("detection_boxes", "detection_scores", "detection_classes", "num_detections"):
            tf.identity(image, name=name)
    path = tmp_path / "graph.pb"
    path.write_bytes(graph.as_graph_def().SerializeToString())
    assert cli.main(["nodes", str(path)]) == 0
    captured = capsys.readouterr()
    assert captured.out == "detection_boxes,detection_scores,detection_classes,num_detections\n"
    lines = captured.err.splitlines()
    assert lines[2].split() == "input images [1, 8] float32".split()
    assert [line.split()[-1] for line in lines[3:7]] == ["boxes", "scores", "classes", "count"]
