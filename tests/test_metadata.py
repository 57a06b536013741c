"""TFLite's metadata in a .tflite: what it says, that the model stays as it is, and who reads it."""

import json
import os
import shutil
import zipfile

import numpy as np
import pytest

from od_qat import cli, scoring
from od_qat.compat import tf
from od_qat.errors import ConfigError, ExportError
from od_qat.export import tflite_files
from od_qat.model_files import interpreter, metadata_schema, tflite_graph, tflite_metadata
from tests.helpers import damaged_files, mediapipe_tasks
from tests.test_scoring import EXAMPLES, SIZE, quadrant_example
from tests.test_scoring import _classes as classes_of

pytest.importorskip("ai_edge_litert")
pytest.importorskip("flatbuffers")

LABELS = ("red one", "grün", "three")
ORDER = ["location", "category", "score", "number of detections"]


@pytest.fixture(scope="module", params=["uint8", "float32"])
def pair(request, model_dir, tmp_path_factory):
    """Paths of a .tflite without metadata, and of the same with it."""
    plain = os.path.join(model_dir, request.param + ".tflite")
    path = str(tmp_path_factory.mktemp("metadata") / "detect.tflite")
    attach(plain, path)
    return plain, path


def attach(plain, path, change=lambda model: model):
    with open(os.path.splitext(plain)[0] + ".json") as stream:
        beside = dict(json.load(stream), global_step=7, checkpoint="model.ckpt-7")
    with open(plain, "rb") as stream:
        model = change(stream.read())
    with open(path, "wb") as stream:
        stream.write(tflite_metadata.attach(model, beside, LABELS))
    shutil.copy(os.path.splitext(plain)[0] + ".json", os.path.splitext(path)[0] + ".json")


def outputs_of(metadata):
    (graph,) = metadata["subgraph_metadata"]
    return graph["output_tensor_metadata"]


def test_what_it_says(pair):
    found = tflite_metadata.read(pair[1])
    assert found.labels == LABELS and found.metadata["version"] == "7"
    (image,) = found.metadata["subgraph_metadata"][0]["input_tensor_metadata"]
    kind, properties = image["content"]["content_properties"]
    assert kind == "ImageProperties" and properties["color_space"] == metadata_schema.RGB
    assert properties["default_size"] == {"width": SIZE, "height": SIZE}
    (unit,) = image["process_units"]
    assert unit["options"] == ("NormalizationOptions", {"mean": [127.5], "std": [127.5]})
    outputs = outputs_of(found.metadata)
    assert [one["name"] for one in outputs] == ORDER
    assert outputs[0]["content"]["content_properties"] == (
        "BoundingBoxProperties",
        {"index": [1, 0, 3, 2], "type": metadata_schema.BOUNDARIES},
    )
    (file,) = outputs[1]["associated_files"]
    assert (file["name"], file["type"]) == ("labels.txt", metadata_schema.TENSOR_VALUE_LABELS)


def test_the_model_stays_as_it_is(pair):
    plain, path = (tflite_graph.read(one) for one in pair)
    assert path.metadata == plain.metadata + (metadata_schema.BUFFER_NAME,)
    assert (path.ops, path.inputs, path.outputs) == (plain.ops, plain.inputs, plain.outputs)
    for one, other in zip(plain.tensors, path.tensors):
        assert (one.name, one.shape, one.dtype, one.data) == (
            other.name,
            other.shape,
            other.dtype,
            other.data,
        )
        assert list(one.scales) == list(other.scales) and list(one.zero_points) == list(other.zero_points)
    found = [scoring.detect(one, EXAMPLES, processes=1, progress=False) for one in pair]
    for example in EXAMPLES:
        for one, other in zip(found[0][example.image_id], found[1][example.image_id]):
            np.testing.assert_array_equal(one, other)


def test_detect_takes_its_labels(pair, tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(EXAMPLES[0].encoded)
    assert cli.main(["detect", pair[1], str(tmp_path / "a.png")]) == 0
    found = scoring.detect(pair[1], EXAMPLES[:1], processes=1, progress=False)[EXAMPLES[0].image_id]
    names = ["{} {:.2f}".format(LABELS[key - 1], score) for key, score in zip(found.classes, found.scores)]
    assert capsys.readouterr().out.splitlines()[0].endswith("a.png: " + ", ".join(names))


def test_the_same_model_makes_the_same_file(pair, tmp_path):
    attach(pair[0], str(tmp_path / "again.tflite"))
    assert (tmp_path / "again.tflite").read_bytes() == open(pair[1], "rb").read()


def test_outputs_in_another_order(model_dir, tmp_path):
    """The metadata follows the file, not the JSON."""
    import flatbuffers

    def turned(model):
        content = tflite_graph.schema().ModelT.InitFromPackedBuf(model, 0)
        content.subgraphs[0].outputs = list(content.subgraphs[0].outputs)[::-1]
        content.signatureDefs = []
        builder = flatbuffers.Builder(1024)
        builder.Finish(content.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    path = str(tmp_path / "turned.tflite")
    attach(os.path.join(model_dir, "uint8.tflite"), path, turned)
    outputs = outputs_of(tflite_metadata.read(path).metadata)
    assert [one["name"] for one in outputs] == ORDER[::-1]
    model = interpreter.without_delegates(open(path, "rb").read())
    model.allocate_tensors()
    sizes = [tuple(one["shape"]) for one in model.get_output_details()]
    assert len(sizes[0]) == 1 and sizes[3][2] == 4


def test_labels():
    assert tflite_metadata.labels_by_index({1: "a", 4: "d"}, 1, 5) == ["a", "???", "???", "d", "???"]
    assert tflite_metadata.labels_by_index({0: "a", 1: "b"}, 0, 2) == ["a", "b"]
    assert tflite_metadata.text_of(["a", "b c"]) == "a\nb c\n"
    for label in ("a\nb", "a\n", "a\x0cb"):
        with pytest.raises(ConfigError, match="a label has several lines"):
            tflite_metadata.text_of(["x", label])
    with pytest.raises(ConfigError, match="the classes have no names"):
        tflite_metadata.text_of([])


def test_what_other_tools_write_is_left_out(monkeypatch):
    """The schema's unions have other tables, which a reader of these need not know."""
    known = dict(metadata_schema._UNIONS)
    written = ("Other", "NormalizationOptions")
    monkeypatch.setitem(metadata_schema._UNIONS, "ProcessUnitOptions", written)
    unit = {"options": ("NormalizationOptions", {"mean": [1.0], "std": [2.0]})}
    image = {"name": "image", "process_units": [unit]}
    data = metadata_schema.pack({"name": "m", "subgraph_metadata": [{"input_tensor_metadata": [image]}]})
    monkeypatch.setitem(metadata_schema._UNIONS, "ProcessUnitOptions", known["ProcessUnitOptions"])
    found = metadata_schema.unpack(data)
    assert found == {
        "name": "m",
        "subgraph_metadata": [{"input_tensor_metadata": [{"name": "image", "process_units": [{}]}]}],
    }


def test_a_mean_for_each_channel(model_dir):
    with open(os.path.join(model_dir, "float32.json")) as stream:
        beside = dict(json.load(stream), global_step=7, checkpoint="model.ckpt-7")
    beside["preprocessing"] = dict(beside["preprocessing"], mean=[10.0, 20.0, 30.0], std=[1.0, 2.0, 4.0])
    with open(os.path.join(model_dir, "float32.tflite"), "rb") as stream:
        model = tflite_metadata.attach(stream.read(), beside, LABELS)
    data = tflite_graph.schema().Model.GetRootAs(model, 0)
    buffers = {
        data.Metadata(i).Name().decode(): data.Metadata(i).Buffer() for i in range(data.MetadataLength())
    }
    content = data.Buffers(buffers[metadata_schema.BUFFER_NAME]).DataAsNumpy().tobytes()
    (image,) = metadata_schema.unpack(content)["subgraph_metadata"][0]["input_tensor_metadata"]
    (unit,) = image["process_units"]
    assert unit["options"] == ("NormalizationOptions", {"mean": [10.0, 20.0, 30.0], "std": [1.0, 2.0, 4.0]})
    assert image["stats"] == {"min": [-10.0, -10.0, -7.5], "max": [245.0, 117.5, 56.25]}


def test_what_task_libraries_cannot_feed():
    with pytest.raises(ConfigError, match="at --metadata, found --input_type=int8, allowed: .*uint8"):
        tflite_metadata.require_possible("int8")


def test_images_that_are_standardized(model_dir):
    with open(os.path.join(model_dir, "uint8.tflite"), "rb") as stream:
        model = stream.read()
    beside = {
        "outputs": [{"role": one} for one in ("boxes", "classes", "scores", "count")],
        "preprocessing": {"mean": None, "std": None, "standardize": True},
    }
    with pytest.raises(ExportError, match="task libraries do not standardize"):
        tflite_metadata.attach(model, beside, LABELS)


def test_unknown_fields_are_no_metadata():
    with pytest.raises(KeyError, match="ModelMetadata has no title"):
        metadata_schema.pack({"title": "none"})


def test_a_file_without_metadata(model_dir):
    assert tflite_metadata.read(os.path.join(model_dir, "int8.tflite")) == (None, ())


def test_damaged_files(pair, tmp_path):
    path = shutil.copy(pair[1], str(tmp_path))
    damaged_files.try_all(path, lambda: tflite_metadata.read(path), refuses=False)


def test_labels_that_are_gone(pair, tmp_path):
    """Tools that rewrite a .tflite lose the archive behind it."""
    path = str(tmp_path / "cut.tflite")
    with zipfile.ZipFile(pair[1]) as archive:
        start = archive.infolist()[0].header_offset
    with open(pair[1], "rb") as stream, open(path, "wb") as to:
        to.write(stream.read()[:start])
    with pytest.raises(ExportError, match="the metadata of the .tflite is damaged: at .*cut.tflite"):
        tflite_metadata.read(path)


@pytest.mark.long
@pytest.mark.skipif(not mediapipe_tasks.PYTHON, reason=mediapipe_tasks.MISSING)
def test_mediapipe_detects_with_it(pair, tmp_path):
    examples = [quadrant_example(one.image_id, classes_of(one), SIZE, SIZE) for one in EXAMPLES]
    expected = scoring.detect(pair[1], examples, processes=1, progress=False)
    found = mediapipe_tasks.run_task(
        "detector", pair[1], [scoring.decode(one.encoded, "") for one in examples], tmp_path
    )
    assert sum(map(len, found)) > 4
    for example, rows in zip(examples, found):
        here = expected[example.image_id]
        top, left, bottom, right = (here.boxes * SIZE).T
        sides = np.stack([left, top, right - left, bottom - top], 1)
        assert [row[0] for row in rows] == [LABELS[key - 1] for key in here.classes]
        # (Its pixels may be one level lower, as it warps each image and cuts what follows the point.)
        assert [row[1] for row in rows] == pytest.approx(list(here.scores), abs=1.01 / 127.5)
        # (All sides are whole pixels.)
        np.testing.assert_allclose([row[2:] for row in rows], sides, atol=2.0)


def test_labels_of_an_earlier_export_are_named(tmp_path, capsys):
    path = str(tmp_path / "detect.tflite")
    tflite_files.write(path, tf.GraphDef(), b"model", {}, None)
    assert not capsys.readouterr().err
    (tmp_path / "labels.txt").write_text("a\nb\n")
    tflite_files.write(path, tf.GraphDef(), b"model", {}, None)
    assert "labels.txt is not of this export, which had no --metadata" in capsys.readouterr().err
    assert (tmp_path / "labels.txt").read_text() == "a\nb\n"
