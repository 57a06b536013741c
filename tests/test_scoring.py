"""od_qat.scoring: real models through the real interpreter and session, metrics against the OD API's own.

The test model looks at the four quadrants of an image and reports those that are red, green or blue, so the
right detections are known for any image.

TensorFlow is imported by fixtures, not here: workers import this file too.
"""

import io
import json
import os
import struct
import subprocess
import sys
import textwrap
import zlib

import numpy as np
import pytest
from PIL import Image

from od_qat import scoring
from od_qat.datasets.records import Example
from od_qat.errors import ConfigError, DataError, ExportError, OdQatError
from od_qat.model_files.description import describe_model
from od_qat.scoring import images, workers

REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SIZE = 32
NAMES = ("red", "green", "blue")
ANCHORS = np.array([[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]], np.float32)
PREPROCESSING = {
    "resize": {"method": "bilinear", "height": SIZE, "width": SIZE},
    "mean": 127.5,
    "std": 127.5,
    "channels": "RGB",
}


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def quadrant_example(image_id, classes, height=64, width=48):
    """An image with one colour a quadrant: class ids from 1, 0 for black."""
    pixels = np.zeros((height, width, 3), np.uint8)
    for (ymin, xmin, ymax, xmax), class_id in zip(ANCHORS, classes):
        if class_id:
            rows = slice(int(ymin * height), int(ymax * height))
            pixels[rows, int(xmin * width) : int(xmax * width), class_id - 1] = 200 + 10 * class_id
    classes = np.array(classes, np.int64)
    there = classes > 0
    none = np.zeros(int(there.sum()), bool)
    return Example(image_id, png(pixels), height, width, ANCHORS[there], classes[there], none, none)


EXAMPLES = [
    quadrant_example("image {}".format(number), classes)
    for number, classes in enumerate(
        [(1, 2, 3, 0), (0, 0, 0, 1), (3, 3, 3, 3), (2, 0, 1, 0), (0, 3, 0, 0), (1, 1, 2, 2), (0, 0, 2, 3)]
        + [(3, 0, 0, 2), (0, 1, 0, 3), (2, 2, 0, 0)]
    )
]


def description(model, outputs, preprocessing, offset):
    return {
        "format": "od_qat/1",
        "model": os.path.basename(model),
        "inputs": [{"name": "image_tensor:0", "shape": [None, None, None, 3], "dtype": "uint8"}],
        "outputs": outputs,
        "preprocessing": preprocessing,
        "class_id_offset": offset,
        "max_detections": 4,
        "quantized": False,
    }


def write(path, content):
    with open(path, "wb") as stream:
        stream.write(content)


def quadrant_scores(tf, image, fake_quant):
    """float32 [1, 32, 32, 3] -> scores [1, 4, 4], background first."""
    kernel = np.zeros((16, 16, 3, 4), np.float32)
    for channel in range(3):
        kernel[:, :, channel, channel + 1] = 1.0 / 256

    def quantized(value, low, high):
        return tf.quantization.fake_quant_with_min_max_args(value, low, high) if fake_quant else value

    image = quantized(image, -1.0, 1.0)
    grid = tf.nn.conv2d(image, quantized(tf.constant(kernel), -1.0 / 256, 1.0 / 256), [1, 16, 16, 1], "VALID")
    return tf.identity(quantized(tf.reshape(tf.nn.relu(grid), [1, 4, 4]), 0.0, 1.0), name="scores")


def build_tflite(tf, path, kind):
    """kind: 'float32', 'int8' or 'uint8'."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.float32, [1, SIZE, SIZE, 3], name="image")
        quadrant_scores(tf, image, kind != "float32")
        boxes = tf.zeros([1, 4, 4])
        if kind != "float32":
            boxes = tf.quantization.fake_quant_with_min_max_args(boxes, -1.0, 1.0)
        tf.identity(boxes, name="boxes")
        graph_def = graph.as_graph_def()
    anchors = np.stack(
        [
            ANCHORS[:, [0, 2]].mean(1),
            ANCHORS[:, [1, 3]].mean(1),
            ANCHORS[:, 2] - ANCHORS[:, 0],
            ANCHORS[:, 3] - ANCHORS[:, 1],
        ],
        axis=1,
    )
    # The last quadrant's box reaches beyond the image.
    anchors[3, 2:] *= 1.2
    node = graph_def.node.add(name="anchors", op="Const")
    node.attr["dtype"].type = tf.float32.as_datatype_enum
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(anchors, tf.float32))
    node = graph_def.node.add(name="detections", op="TFLite_Detection_PostProcess")
    node.input.extend(["boxes", "scores", "anchors"])
    node.attr["_output_types"].list.type.extend([tf.float32.as_datatype_enum] * 4)
    node.attr["use_regular_nms"].b = True
    if kind == "uint8":  # the op's kernel takes uint8; for int8 the converter puts DEQUANTIZE before it
        node.attr["_output_quantized"].b = node.attr["_support_output_type_float_in_quantized_op"].b = True
    for key, value in (("max_detections", 4), ("max_classes_per_detection", 1), ("num_classes", 3)):
        node.attr[key].i = value
    node.attr["detections_per_class"].i = 4
    for key, value in (("nms_score_threshold", 0.2), ("nms_iou_threshold", 0.6)):
        node.attr[key].f = value
    for key in ("y_scale", "x_scale", "h_scale", "w_scale"):
        node.attr[key].f = 1.0
    graph_path = path + ".pb"
    write(graph_path, graph_def.SerializeToString())
    outputs = ["detections", "detections:1", "detections:2", "detections:3"]
    converter = tf.lite.TFLiteConverter.from_frozen_graph(
        graph_path, ["image"], outputs, {"image": [1, SIZE, SIZE, 3]}
    )
    os.unlink(graph_path)
    converter.allow_custom_ops = True
    if kind != "float32":
        converter.inference_type = getattr(tf, kind)
        converter.quantized_input_stats = {"image": (0.0 if kind == "int8" else 128.0, 127.5)}
    write(path, converter.convert())


def build_frozen_graph(tf, path, names):
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name=names["image"])
        pixels = tf.image.resize_bilinear(tf.cast(image, tf.float32), [SIZE, SIZE])
        scores = quadrant_scores(tf, pixels / 127.5 - 1.0, False)[0, :, 1:]
        best, order = tf.nn.top_k(tf.reduce_max(scores, axis=1), 4)
        classes = tf.gather(tf.argmax(scores, axis=1), order)
        tf.identity(tf.gather(tf.constant(ANCHORS), order)[None], name=names["boxes"])
        tf.identity(tf.cast(classes, tf.float32)[None] + 1.0, name=names["classes"])
        tf.identity(best[None], name=names["scores"])
        tf.identity(tf.reduce_sum(tf.cast(best > 0.2, tf.float32))[None], name=names["count"])
        write(path, graph.as_graph_def().SerializeToString())


CANONICAL = {
    "image": "image_tensor",
    "boxes": "detection_boxes",
    "classes": "detection_classes",
    "scores": "detection_scores",
    "count": "num_detections",
}


@pytest.fixture(autouse=True)
def interpreter(request):
    """TensorFlow 1.15's environment has another one; the tests marked tf1 need none."""
    if request.node.get_closest_marker("tf1") is None:
        pytest.importorskip("ai_edge_litert")


def build_models(tf, folder):
    """Models that find the quadrants: three .tflite, two .pb, and the JSON beside all but canonical.pb."""
    roles = [{"role": role} for role in ("boxes", "classes", "scores", "count")]
    for kind in ("float32", "int8", "uint8"):
        path = os.path.join(folder, kind + ".tflite")
        build_tflite(tf, path, kind)
        with open(os.path.join(folder, kind + ".json"), "w") as stream:
            json.dump(description(path, roles, PREPROCESSING, 1), stream)
    build_frozen_graph(tf, os.path.join(folder, "canonical.pb"), CANONICAL)
    names = dict(
        CANONICAL, boxes="found/where", classes="found/what", scores="found/sure", count="found/many"
    )
    named = os.path.join(folder, "named.pb")
    build_frozen_graph(tf, named, names)
    outputs = [{"role": role, "name": names[role] + ":0"} for role in ("count", "scores", "classes", "boxes")]
    untouched = {"resize": None, "mean": None, "std": None, "channels": "RGB"}
    with open(os.path.join(folder, "named.json"), "w") as stream:
        json.dump(description(named, outputs, untouched, 0), stream)


def assert_right(found, examples=EXAMPLES, tolerance=0.01):
    """Every coloured quadrant is found, with its class and a score that follows from its brightness."""
    assert list(found) == [example.image_id for example in examples]
    for example in examples:
        detections = found[example.image_id]
        assert detections.boxes.dtype == np.float32 and detections.boxes.shape == (len(example.boxes), 4)
        assert detections.classes.dtype == np.int64 and detections.scores.dtype == np.float32
        assert np.all(np.diff(detections.scores) <= 0)
        quadrant = 2 * (detections.boxes[:, 0] > 0.4) + (detections.boxes[:, 1] > 0.4)
        order = np.argsort(quadrant)
        # The box of the last quadrant is 1.2 times as large in a .tflite.
        np.testing.assert_allclose(detections.boxes[order], example.boxes, atol=0.051)
        np.testing.assert_array_equal(detections.classes[order], example.classes)
        brightness = (200 + 10 * example.classes - 127.5) / 127.5
        np.testing.assert_allclose(detections.scores[order], brightness, atol=tolerance)


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_a_tflite_finds_what_is_there(model_dir, kind):
    examples = [quadrant_example(e.image_id, _classes(e), SIZE, SIZE) for e in EXAMPLES]
    found = scoring.detect(os.path.join(model_dir, kind + ".tflite"), examples, processes=1, progress=False)
    assert_right(found, examples)


def _classes(example):
    classes = [0, 0, 0, 0]
    for box, class_id in zip(example.boxes, example.classes):
        classes[int(2 * (box[0] >= 0.5) + (box[1] >= 0.5))] = int(class_id)
    return classes


def test_boxes_are_clipped_to_the_image(model_dir):
    found = scoring.detect(
        os.path.join(model_dir, "float32.tflite"), EXAMPLES[1:2], processes=1, progress=False
    )
    np.testing.assert_allclose(found["image 1"].boxes, [[0.45, 0.45, 1.0, 1.0]], atol=1e-6)


@pytest.mark.parametrize("name", ["canonical.pb", "named.pb"])
def test_a_frozen_graph_finds_what_is_there(model_dir, name):
    examples = [quadrant_example(e.image_id, _classes(e), SIZE, SIZE) for e in EXAMPLES]
    path = os.path.join(model_dir, name)
    assert describe_model(path).assumed == (name == "canonical.pb")
    assert_right(scoring.detect(path, examples, processes=1, progress=False), examples)


def test_a_tflite_and_a_graph_that_resizes_itself_agree(model_dir):
    """Noise of odd sizes, so that every pixel of the resizing counts."""
    random = np.random.RandomState(3)
    examples = []
    for number, (height, width) in enumerate([(57, 91), (20, 33), (300, 47), (32, 32), (480, 640)]):
        example = quadrant_example("n{}".format(number), (1, 2, 3, 2), height, width)
        pixels = images.decode(example.encoded).astype(int) + random.randint(-40, 40, (height, width, 3))
        examples.append(example._replace(encoded=png(np.clip(pixels, 0, 255).astype(np.uint8))))
    tflite = scoring.detect(os.path.join(model_dir, "float32.tflite"), examples, processes=1, progress=False)
    graph = scoring.detect(os.path.join(model_dir, "named.pb"), examples, processes=1, progress=False)
    for example in examples:
        first, second = tflite[example.image_id], graph[example.image_id]
        assert len(first.scores) == 4
        np.testing.assert_allclose(first.scores, second.scores, atol=1e-5)
        np.testing.assert_array_equal(first.classes, second.classes)
    int8 = scoring.detect(os.path.join(model_dir, "int8.tflite"), examples, processes=1, progress=False)
    assert scoring.agreement(tflite, int8, score_tolerance=0.02).share == 1.0


@pytest.mark.parametrize("name", ["int8.tflite", "named.pb"])
def test_workers_give_what_one_process_gives(model_dir, name):
    path = os.path.join(model_dir, name)
    alone = scoring.detect(path, EXAMPLES, processes=1, progress=False)
    # A generator: its length is not known, and it is read as it goes.
    together = scoring.detect(path, (example for example in EXAMPLES), processes=2, progress=True)
    assert list(alone) == list(together)
    for image_id in alone:
        for first, second in zip(alone[image_id], together[image_id]):
            np.testing.assert_array_equal(first, second)


def test_a_process_that_scores_a_tflite_does_not_import_tensorflow(model_dir):
    model = describe_model(os.path.join(model_dir, "int8.tflite"))
    with workers.Pool(model) as pool:
        assert len(pool.detect(EXAMPLES[:1], 1, 1, False)) == 1
        (pid,) = pool.pids()
        with open("/proc/{}/maps".format(pid)) as stream:
            mapped = stream.read()
    assert pid != os.getpid() and "ai_edge_litert" in mapped
    assert "tensorflow" not in mapped and "od_qat/compat" not in mapped


def test_detect_works_where_tensorflow_cannot_be_imported_and_without_a_main_guard(model_dir, tmp_path):
    """The caller's script is not run again by the workers, and no process reaches for TensorFlow."""
    (tmp_path / "tensorflow.py").write_text("raise ImportError('tensorflow was imported')")
    (tmp_path / "image.png").write_bytes(EXAMPLES[0].encoded)
    (tmp_path / "script.py").write_text(
        textwrap.dedent(
            """
            import collections, sys
            from od_qat import scoring
            print("started")
            Example = collections.namedtuple("Example", "image_id encoded")
            encoded = open(sys.argv[2], "rb").read()
            examples = [Example(number, encoded) for number in range(9)]
            found = scoring.detect(sys.argv[1], examples, processes=2)
            print(len(found), found[0].classes.tolist(), "tensorflow" in sys.modules)
            """
        )
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), REPOSITORY]))
    result = subprocess.run(
        [sys.executable, "script.py", os.path.join(model_dir, "int8.tflite"), "image.png"],
        cwd=str(tmp_path),
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split("\n")[:2] == ["started", "9 [3, 2, 1] False"]
    assert "image/s" not in result.stderr  # no progress bar where there is no terminal


def test_max_images(model_dir):
    path = os.path.join(model_dir, "int8.tflite")
    read = []

    def reading():
        for example in EXAMPLES:
            read.append(example)
            yield example

    assert list(scoring.detect(path, reading(), processes=1, max_images=3, progress=False)) == [
        "image 0",
        "image 1",
        "image 2",
    ]
    assert len(read) == 3
    with pytest.raises(ConfigError, match="max_images"):
        scoring.detect(path, EXAMPLES, max_images=0)


def test_errors_in_a_worker_reach_the_caller(model_dir):
    path = os.path.join(model_dir, "int8.tflite")
    broken = EXAMPLES[2]._replace(encoded=EXAMPLES[2].encoded[:60])
    for processes in (1, 2):
        with pytest.raises(DataError, match="cannot be decoded: at image image 2") as caught:
            scoring.detect(path, EXAMPLES[:2] + [broken] + EXAMPLES[3:], processes=processes, progress=False)
        assert caught.value.fix and "\n" not in str(caught.value)


def test_two_images_of_one_id_are_refused(model_dir):
    with pytest.raises(DataError, match="same image id"):
        scoring.detect(os.path.join(model_dir, "int8.tflite"), [EXAMPLES[0]] * 2, processes=1, progress=False)
    with pytest.raises(DataError, match="no images"):
        scoring.detect(os.path.join(model_dir, "int8.tflite"), [], progress=False)


def copied(model_dir, tmp_path, name, content=None):
    """A copy of a model with another JSON, or with none."""
    path = str(tmp_path / name)
    with open(os.path.join(model_dir, name), "rb") as stream:
        write(path, stream.read())
    if content is not None:
        with open(scoring.json_path(path), "w") as stream:
            stream.write(content if isinstance(content, str) else json.dumps(content))
    return path


def test_without_a_json_a_tflite_is_scored_with_defaults_and_says_so(model_dir, tmp_path, caplog):
    path = copied(model_dir, tmp_path, "float32.tflite")
    found = scoring.detect(path, EXAMPLES, processes=1, progress=False)
    assert "float32.json is missing" in caplog.text and "127.5" in caplog.text
    expected = scoring.detect(
        os.path.join(model_dir, "float32.tflite"), EXAMPLES, processes=1, progress=False
    )
    np.testing.assert_array_equal(found["image 0"].classes, expected["image 0"].classes)
    np.testing.assert_array_equal(found["image 0"].scores, expected["image 0"].scores)
    caplog.clear()
    other = scoring.detect(path, EXAMPLES, processes=1, progress=False, mean=0, std=255, class_id_offset=0)
    assert not caplog.text
    np.testing.assert_allclose(other["image 1"].scores, [210 / 255.0], atol=0.01)
    np.testing.assert_array_equal(other["image 1"].classes, [0])


def test_a_frozen_graph_with_other_names_needs_its_json(model_dir, tmp_path):
    path = copied(model_dir, tmp_path, "named.pb")
    with pytest.raises(ExportError, match="no tensor detection_boxes:0") as caught:
        scoring.detect(path, EXAMPLES, processes=1, progress=False)
    assert "named.json" in str(caught.value)


def changed(**changes):
    content = description(
        "x", [{"role": r} for r in ("boxes", "classes", "scores", "count")], PREPROCESSING, 1
    )
    content.update(changes)
    return {key: value for key, value in content.items() if value is not None}


@pytest.mark.parametrize(
    "content, message",
    [
        ("{", "damaged"),
        ("[]", "not its description"),
        ({"format": "other"}, "not its description"),
        (changed(preprocessing=None), "incomplete"),
        (changed(preprocessing=dict(PREPROCESSING, channels="BGR")), "channels 'BGR'"),
        (changed(outputs=[{"role": "boxes"}]), "no output with role classes, scores, count"),
        (
            changed(preprocessing=dict(PREPROCESSING, resize={"method": "area", "height": 32, "width": 32})),
            "'area', allowed: bilinear",
        ),
        (
            changed(
                preprocessing=dict(PREPROCESSING, resize={"method": "bilinear", "height": 9, "width": 8})
            ),
            "9x8 against 32x32",
        ),
        (
            changed(outputs=[{"role": r} for r in ("scores", "classes", "boxes", "count")]),
            "outputs are not detections",
        ),
    ],
)
def test_a_json_that_does_not_fit_is_refused(model_dir, tmp_path, content, message):
    path = copied(model_dir, tmp_path, "int8.tflite", content)
    with pytest.raises(ExportError, match=message) as caught:
        scoring.detect(path, EXAMPLES[:1], processes=1, progress=False)
    assert "\n" not in str(caught.value)


def preprocessed(**changes):
    return changed(preprocessing=dict(PREPROCESSING, **changes))


@pytest.mark.tf1
@pytest.mark.parametrize(
    "content, where, found, allowed",
    [
        (changed(class_id_offset="one"), "class_id_offset", "'one'", "a whole number, smaller than 2**31"),
        (changed(class_id_offset=1.5), "class_id_offset", "1.5", "a whole number, smaller than 2**31"),
        (
            changed(class_id_offset=10**30),
            "class_id_offset",
            "a number of 100 bits",
            "a whole number, smaller",
        ),
        (
            changed(class_id_offset=float("inf")),
            "class_id_offset",
            "inf",
            "a whole number, smaller than 2**31",
        ),
        (preprocessed(std=0), "preprocessing.std", "0", "a number above 0"),
        (preprocessed(std=float("nan")), "preprocessing.std", "nan", "a number above 0"),
        (preprocessed(std=float("inf")), "preprocessing.std", "inf", "a number above 0"),
        (preprocessed(std=True), "preprocessing.std", "True", "a number above 0"),
        (preprocessed(mean=float("nan")), "preprocessing.mean", "nan", "a number"),
        (preprocessed(mean=10**400), "preprocessing.mean", "a number of 1329 bits", "a number"),
        (preprocessed(mean="127.5"), "preprocessing.mean", "'127.5'", "a number"),
        (
            preprocessed(resize={"method": "bilinear", "height": 10**30, "width": 32}),
            "preprocessing.resize.height",
            "a number of 100 bits",
            "a whole number from 1 to 16384",
        ),
        (
            preprocessed(resize={"method": "bilinear", "height": 32, "width": float("inf")}),
            "preprocessing.resize.width",
            "inf",
            "a whole number from 1 to 16384",
        ),
        (preprocessed(resize=[32, 32]), "preprocessing.resize", "a list with 2 items", "an object"),
        (changed(outputs=[{"role": "boxes", "name": 7}]), "outputs[0].name", "7", "a name"),
        (
            changed(outputs=[{"role": "boxes", "name": "\ud800"}]),
            "outputs[0].name",
            "'\\ud800'",
            "a name, of at most 500 printable characters",
        ),
        (changed(outputs=[{"role": "x" * 5000}]), "outputs[0].role", "'" + "x" * 56 + "...", "a name, of at"),
        (changed(outputs=[{"role": ["boxes"]}]), "outputs[0].role", "a list with 1 items", "a name"),
        (changed(outputs=["boxes"]), "outputs", "a list with 1 items", "a list of objects"),
        (changed(inputs=[]), "inputs", "a list with 0 items", "a list of objects"),
    ],
)
def test_a_field_of_the_json_that_cannot_be_used_is_named(tmp_path, content, where, found, allowed):
    path = str(tmp_path / "model.tflite")
    write(path, b"")
    with open(scoring.json_path(path), "w") as stream:
        json.dump(content, stream)
    with pytest.raises(ExportError, match="field of the model's JSON cannot be used") as caught:
        describe_model(path)
    text = "model.json, {}, found {}, allowed: {}".format(where, found, allowed)
    assert text in str(caught.value) and "\n" not in str(caught.value) and caught.value.fix
    str(caught.value).encode("utf-8")


@pytest.mark.tf1
@pytest.mark.parametrize(
    "content, message",
    [
        ("[" * 100000, "JSON is damaged: at .*model.json, found lists nested too deeply"),
        ('{"format": ' + "9" * 10000 + "}", "JSON is damaged|not its description"),
        ('{"format": "od_qat/1", "\\ud800": 1}', "incomplete: at .*found no outputs"),
        (
            changed(outputs=[{"role": r} for r in ("boxes", "boxes", "classes", "scores", "count")]),
            "found 2 outputs with role boxes, allowed: boxes, classes, scores, count, each once",
        ),
    ],
)
def test_a_json_that_is_damaged_is_one_line(tmp_path, content, message):
    path = str(tmp_path / "model.tflite")
    write(path, b"")
    with open(scoring.json_path(path), "w") as stream:
        stream.write(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ExportError, match=message) as caught:
        describe_model(path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000 and caught.value.fix


@pytest.mark.parametrize(
    "given", [{"mean": float("nan")}, {"std": 0}, {"std": float("inf")}, {"class_id_offset": 10**30}]
)
def test_numbers_that_are_given_are_checked_too(model_dir, given):
    (name,) = given
    with pytest.raises(ExportError, match="the {} given cannot be used: found .*, allowed: ".format(name)):
        scoring.detect(os.path.join(model_dir, "int8.tflite"), EXAMPLES[:1], progress=False, **given)


def test_files_that_are_no_models_are_refused(tmp_path):
    for name, message in (
        ("a.tflite", "cannot be loaded"),
        ("a.pb", "cannot be loaded"),
        ("a.h5", "kind of model"),
    ):
        write(str(tmp_path / name), b"not a model, not at all")
        with pytest.raises(ExportError, match=message):
            scoring.detect(str(tmp_path / name), EXAMPLES[:1], processes=1, progress=False)
    with pytest.raises(ExportError, match="cannot find the model"):
        scoring.detect(str(tmp_path / "b.tflite"), EXAMPLES[:1])


def graph_with_op(tf, op, in_a_function):
    """A frozen graph with the canonical names and an op that does not exist, in a function of it or not."""
    from tensorflow.python.framework import function

    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name=CANONICAL["image"])

        @function.Defun(tf.float32)
        def body(value):
            return tf.nn.relu(value)

        value = tf.reduce_max(tf.cast(image, tf.float32))
        value = body(value) if in_a_function else tf.nn.relu(value)
        for role in ("boxes", "classes", "scores", "count"):
            tf.identity(value, name=CANONICAL[role])
        graph_def = graph.as_graph_def()
    nodes = list(graph_def.node) + [node for item in graph_def.library.function for node in item.node_def]
    (relu,) = [node for node in nodes if node.op == "Relu"]
    relu.op = op
    return graph_def


@pytest.mark.tf1
@pytest.mark.parametrize("in_a_function", [False, True])
def test_a_graph_with_an_op_that_is_not_here_is_refused(tf, tmp_path, in_a_function):
    """Such as TFLite_Detection_PostProcess, which only the converter registers (for its whole process)."""
    path = str(tmp_path / "tflite_graph.pb")
    write(path, graph_with_op(tf, "TFLite_Another", in_a_function).SerializeToString())
    with pytest.raises(ExportError, match="op that TensorFlow does not have here") as caught:
        scoring.detect(path, EXAMPLES[:1], processes=1, progress=False)
    assert "{}, found TFLite_Another".format(path) in str(caught.value)
    assert "score the .tflite" in caught.value.fix and "\n" not in str(caught.value)


def test_latency(model_dir):
    for name in ("int8.tflite", "named.pb"):
        milliseconds = scoring.latency(os.path.join(model_dir, name), runs=5)
        assert 0 < milliseconds < 1000
    with pytest.raises(ConfigError):
        scoring.latency(os.path.join(model_dir, "int8.tflite"), runs=0)


# Images.


@pytest.mark.parametrize("size", [(37, 53), (300, 300), (8, 5), (1, 1), (64, 21), (480, 640), (333, 7)])
@pytest.mark.parametrize("target", [(64, 64), (300, 300), (19, 101), (1, 3)])
def test_resizing_is_that_of_tensorflow(tf, size, target):
    image = np.random.RandomState(sum(size)).randint(0, 256, size + (3,)).astype(np.uint8)
    with tf.Graph().as_default(), tf.Session() as session:
        expected = session.run(tf.image.resize_bilinear(image[None].astype(np.float32), target))[0]
    resized = scoring.resize_bilinear(image, *target)
    assert resized.dtype == np.float32 and resized.shape == target + (3,)
    assert np.abs(resized - expected).max() < 1e-3


def test_decoding():
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    np.testing.assert_array_equal(scoring.decode(png(pixels)), pixels)
    grey = np.arange(20, dtype=np.uint8).reshape(4, 5)
    np.testing.assert_array_equal(scoring.decode(png(grey)), np.repeat(grey[:, :, None], 3, axis=2))


def png_of(bits, colour_type, channels, width=16, height=8):
    """A PNG file of noise; Pillow does not write every kind."""
    random = np.random.RandomState(bits + colour_type)
    row = width * channels * bits // 8
    rows = b"".join(b"\0" + random.randint(0, 256, row).astype(np.uint8).tobytes() for _ in range(height))
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


@pytest.mark.tf1
@pytest.mark.parametrize(
    "bits, colour_type, channels",
    [(16, 0, 1), (16, 2, 3), (16, 4, 2), (16, 6, 4), (8, 0, 1), (8, 4, 2), (8, 6, 4), (4, 0, 1), (1, 0, 1)],
    ids=["grey16", "rgb16", "grey-alpha16", "rgba16", "grey8", "grey-alpha8", "rgba8", "grey4", "grey1"],
)
def test_png_pixels_are_those_of_tensorflow(tf, bits, colour_type, channels):
    encoded = png_of(bits, colour_type, channels)
    with tf.Graph().as_default(), tf.Session() as session:
        expected = session.run(tf.io.decode_image(encoded, channels=3))
    decoded = scoring.decode(encoded)
    assert decoded.dtype == np.uint8 and decoded.flags.writeable
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("zero_point", [127, 128])
def test_pixels_reach_a_quantized_input_as_they_are(zero_point):
    """Mean 127.5 puts every pixel halfway between two integers; all 256 levels have to survive."""
    pixels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=2)
    scale = float(np.float32(1 / 127.5))
    expected = np.clip(pixels.astype(int) + zero_point - 127, 0, 255)
    np.testing.assert_array_equal(images.prepare(pixels, np.uint8, 127.5, 127.5, scale, zero_point), expected)
    signed = images.prepare(pixels, np.int8, 127.5, 127.5, scale, zero_point - 128)
    np.testing.assert_array_equal(signed.astype(int) + 128, expected)


def test_coarse_and_float_inputs():
    pixels = np.array([[[0, 100, 255]]], np.uint8)
    np.testing.assert_allclose(
        images.prepare(pixels, np.float32, 127.5, 127.5), (pixels - 127.5) / 127.5, rtol=1e-6
    )
    np.testing.assert_array_equal(images.prepare(pixels, np.uint8, None, None), pixels)
    # real = (pixel - 128) / 64 = -2, -0.4375, 1.984; a step of 1/16 from -10.
    np.testing.assert_array_equal(
        images.prepare(pixels, np.int8, 128.0, 64.0, 1 / 16, -10), [[[-42, -17, 22]]]
    )
    np.testing.assert_array_equal(
        images.prepare(pixels, np.uint8, 128.0, 64.0, 1 / 128, 128), [[[0, 72, 255]]]
    )
    np.testing.assert_allclose(images.dequantize(np.array([3, -1], np.int8), 0.5, -1), [2.0, 0.0])
    np.testing.assert_allclose(images.dequantize(np.array([3], np.int64), 0.0, 0), [3.0])


# Metrics.


def random_data(seed, images_count=30, classes=3):
    """Random objects, and detections that are sometimes them, sometimes near them, sometimes anywhere."""
    random = np.random.RandomState(seed)

    def boxes(count):
        low = random.uniform(0, 0.7, (count, 2))
        return np.concatenate([low, low + random.uniform(0.05, 0.3, (count, 2))], axis=1).astype(np.float32)

    examples, detections = [], {}
    for number in range(images_count):
        count = random.randint(0, 6)
        example = Example(
            image_id="{}.jpg".format(random.randint(10**9)),
            encoded=b"",
            height=random.randint(100, 400),
            width=random.randint(100, 400),
            boxes=boxes(count),
            classes=random.randint(1, classes + 2, count).astype(np.int64),  # one id too many
            difficult=random.uniform(size=count) < 0.2,
            is_crowd=random.uniform(size=count) < 0.15,
        )
        near = example.boxes + random.normal(0, 0.02, example.boxes.shape).astype(np.float32)
        found = np.concatenate([near, near, boxes(random.randint(0, 8))])
        found_classes = np.concatenate(
            [example.classes, example.classes, np.ones(len(found) - 2 * count, int)]
        )
        flipped = random.uniform(size=len(found)) < 0.2
        found_classes = np.where(flipped, random.randint(1, classes + 1, len(found)), found_classes)
        # Few different scores, as a quantized model gives: many ties.
        scores = np.round(random.uniform(size=len(found)) * 40) / 40
        order = np.argsort(-scores, kind="stable")
        if number % 7 == 0:
            order = order[:0]
        examples.append(example)
        detections[example.image_id] = scoring.Detections(
            found[order].astype(np.float32),
            found_classes[order].astype(np.int64),
            scores[order].astype(np.float32),
        )
    return examples, detections


def perfect(examples):
    return {
        e.image_id: scoring.Detections(e.boxes, e.classes, np.ones(len(e.boxes), np.float32))
        for e in examples
    }


def test_metrics_of_perfect_and_of_no_detections(capsys):
    score = scoring.coco_metrics(EXAMPLES, perfect(EXAMPLES), NAMES)
    assert (score.map, score.map50, score.map75) == pytest.approx((1.0, 1.0, 1.0))
    assert score.per_class == pytest.approx({"red": 1.0, "green": 1.0, "blue": 1.0})
    assert score.images == len(EXAMPLES) and score.detections == sum(len(e.boxes) for e in EXAMPLES)
    nothing = scoring.Detections(np.zeros((0, 4), np.float32), np.zeros(0, np.int64), np.zeros(0, np.float32))
    score = scoring.coco_metrics(
        EXAMPLES, {e.image_id: nothing for e in EXAMPLES}, {1: "red", 3: "blue", 9: "grey"}
    )
    assert (score.map, score.map50, score.detections) == (0.0, 0.0, 0)
    assert score.per_class == {"red": 0.0, "blue": 0.0, "grey": None}
    assert scoring.voc_metrics(EXAMPLES, perfect(EXAMPLES), NAMES).map == 1.0
    assert scoring.voc_metrics(EXAMPLES, {e.image_id: nothing for e in EXAMPLES}, NAMES).map == 0.0
    assert capsys.readouterr().out == ""


def test_a_shifted_box_counts_up_to_its_overlap():
    example = Example(
        "a", b"", 100, 100, np.array([[0.2, 0.2, 0.6, 0.6]], np.float32), np.array([1]), None, None
    )
    shifted = np.array([[0.2, 0.3, 0.6, 0.7]], np.float32)  # overlap 0.6
    found = {"a": scoring.Detections(shifted, np.array([1]), np.array([0.5], np.float32))}
    score = scoring.coco_metrics([example], found, ["thing"])
    assert 0.2 - 1e-9 < score.map < 0.3 + 1e-9  # .50, .55 and, as rounding will have it, .60
    assert score.map50 == pytest.approx(1.0) and score.map75 == 0.0
    assert scoring.iou_matrix(example.boxes, shifted)[0, 0] == pytest.approx(0.6)


def test_images_must_be_the_same():
    found = perfect(EXAMPLES)
    for metrics in (scoring.coco_metrics, scoring.voc_metrics):
        with pytest.raises(DataError, match="1 images in one of them only, image 9 first"):
            metrics(EXAMPLES[:-1], found, NAMES)
        with pytest.raises(DataError, match="no images"):
            metrics([], {}, NAMES)
        with pytest.raises(
            DataError, match="no object to find: found 10 images, class ids 1, 2, 3, allowed: class ids 7"
        ):
            metrics(EXAMPLES, found, {7: "cat"})


@pytest.mark.parametrize("height", [10**12, 0, -5])
def test_a_size_that_no_image_has_is_refused(height):
    examples = [EXAMPLES[0]._replace(height=height)]
    with pytest.raises(DataError, match="at image image 0, found height {}, width 48".format(height)):
        scoring.coco_metrics(examples, perfect(examples), NAMES)


@pytest.fixture(scope="session")
def od_api():
    try:
        import od_qat.plugin  # noqa: F401
    except OdQatError as error:
        pytest.skip(str(error))
    except (ImportError, RuntimeError) as error:
        pytest.skip("the OD API cannot be used: {}".format(error))


def od_api_metrics(evaluator, examples, detections):
    """Numbers the images, as the OD API's evaluation does: the order of equal scores depends on it."""
    for number, example in enumerate(examples):
        size = np.array([example.height, example.width, example.height, example.width], np.float32)
        evaluator.add_single_ground_truth_image_info(
            number,
            {
                "groundtruth_boxes": example.boxes * size,
                "groundtruth_classes": example.classes,
                "groundtruth_is_crowd": example.is_crowd,
                "groundtruth_difficult": example.difficult,
            },
        )
        found = detections[example.image_id]
        evaluator.add_single_detected_image_info(
            number,
            {
                "detection_boxes": found.boxes * size,
                "detection_scores": found.scores,
                "detection_classes": found.classes,
            },
        )
    return evaluator.evaluate()


@pytest.mark.parametrize("seed", range(4))
def test_coco_metrics_equal_the_od_apis(od_api, seed):
    from object_detection.metrics import coco_evaluation

    examples, detections = random_data(seed)
    categories = [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    expected = od_api_metrics(coco_evaluation.CocoDetectionEvaluator(categories), examples, detections)
    score = scoring.coco_metrics(examples, detections, NAMES)
    assert 0.05 < score.map < 0.95
    assert score.map == pytest.approx(expected["DetectionBoxes_Precision/mAP"], abs=1e-6)
    assert score.map50 == pytest.approx(expected["DetectionBoxes_Precision/mAP@.50IOU"], abs=1e-6)
    assert score.map75 == pytest.approx(expected["DetectionBoxes_Precision/mAP@.75IOU"], abs=1e-6)
    for category in categories:
        one = od_api_metrics(coco_evaluation.CocoDetectionEvaluator([category]), examples, detections)
        assert score.per_class[category["name"]] == pytest.approx(
            one["DetectionBoxes_Precision/mAP"], abs=1e-6
        )


@pytest.mark.parametrize("seed", range(4))
def test_voc_metrics_equal_the_od_apis(od_api, seed):
    from object_detection.utils import object_detection_evaluation

    examples, detections = random_data(seed)
    # The OD API's evaluator has no room for a class that it was not told of, nor for equal scores: its
    # order among them is that of an unstable sort.
    random = np.random.RandomState(seed)
    for example in examples:
        found = detections[example.image_id]
        scores = np.sort(random.uniform(size=len(found.scores)))[::-1].astype(np.float32)
        detections[example.image_id] = found._replace(scores=scores)
    names = NAMES + ("other",)
    categories = [{"id": number, "name": name} for number, name in enumerate(names, start=1)]
    evaluator = object_detection_evaluation.PascalDetectionEvaluator(categories)
    expected = od_api_metrics(evaluator, examples, detections)
    score = scoring.voc_metrics(examples, detections, names)
    assert 0.05 < score.map < 0.95
    assert score.map == pytest.approx(expected["PascalBoxes_Precision/mAP@0.5IOU"], abs=1e-6)
    for name in names:
        key = "PascalBoxes_PerformanceByCategory/AP@0.5IOU/{}".format(name)
        assert score.per_class[name] == pytest.approx(expected[key], abs=1e-6)


# Agreement.


def detections_of(*items):
    """(ymin, xmin, ymax, xmax, class, score)"""
    values = np.array(items, np.float32).reshape(-1, 6)
    return scoring.Detections(values[:, :4], values[:, 4].astype(np.int64), values[:, 5])


def test_agreement():
    box, moved, far = (0.1, 0.1, 0.5, 0.5), (0.1, 0.1, 0.5, 0.52), (0.6, 0.6, 0.9, 0.9)
    a = {"x": detections_of(box + (1, 0.9), far + (2, 0.35), far + (1, 0.1)), "y": detections_of()}
    same = scoring.agreement(a, a)
    assert (same.share, same.detections_a, same.matched_a, same.images) == (1.0, 2, 2, 2)
    # Moved by 5 %, and the second one's score falls below the minimum: still matched, but not counted in b.
    b = {"x": detections_of(moved + (1, 0.82), far + (2, 0.28)), "y": detections_of(far + (3, 0.8))}
    result = scoring.agreement(a, b)
    assert (result.detections_a, result.matched_a, result.detections_b, result.matched_b) == (2, 2, 2, 1)
    assert result.share == 0.75
    mirrored = scoring.agreement(b, a)
    assert (mirrored.share, mirrored.detections_a, mirrored.matched_a) == (0.75, 2, 1)
    assert scoring.agreement(a, b, iou=0.96).matched_a == 1
    assert scoring.agreement(a, b, score_tolerance=0.05).matched_a == 0
    assert (
        scoring.agreement({"x": detections_of(box + (1, 0.9))}, {"x": detections_of(box + (1, 0.8))}).share
        == 1
    )
    assert (
        scoring.agreement({"x": detections_of(box + (1, 0.9))}, {"x": detections_of(box + (2, 0.9))}).share
        == 0
    )
    # One detection cannot stand for two.
    twice = {"x": detections_of(box + (1, 0.9), box + (1, 0.9))}
    assert scoring.agreement(twice, {"x": detections_of(box + (1, 0.9))}).matched_a == 1
    assert scoring.agreement({"y": a["y"]}, {"y": a["y"]}).share == 1.0
    with pytest.raises(DataError, match="same images"):
        scoring.agreement(a, {"x": b["x"]})


# All together.


def write_record(tf, path, examples, names=None):
    """A record; with `names`, of the classes from 1 on, it has the classes' texts too."""
    with tf.python_io.TFRecordWriter(path) as writer:
        for example in examples:
            feature = {
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[example.encoded])),
                "image/format": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"png"])),
                "image/source_id": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[example.image_id.encode()])
                ),
                "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[example.height])),
                "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[example.width])),
                "image/object/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=example.classes)
                ),
            }
            for column, side in enumerate(("ymin", "xmin", "ymax", "xmax")):
                feature["image/object/bbox/" + side] = tf.train.Feature(
                    float_list=tf.train.FloatList(value=example.boxes[:, column])
                )
            if names is not None:
                texts = [names[class_id - 1].encode() for class_id in example.classes]
                feature["image/object/class/text"] = tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=texts)
                )
            writer.write(tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString())


def test_records_in_several_files(tf, model_dir, tmp_path, capsys):
    """As the OD API's scripts write them: val.record-00000-of-00002 and so on."""
    from od_qat import cli
    from od_qat.datasets import label_map

    examples = [quadrant_example(e.image_id, _classes(e), SIZE, SIZE) for e in EXAMPLES]
    for number, part in enumerate((examples[:2], examples[2:])):
        write_record(tf, str(tmp_path / "val.record-0000{}-of-00002".format(number)), part)
    labels = str(tmp_path / "label_map.pbtxt")
    label_map.write_label_map(labels, NAMES)
    model, pattern = os.path.join(model_dir, "named.pb"), str(tmp_path / "val.record-?????-of-00002")
    result = scoring.score(model, pattern, labels, processes=1, progress=False)
    assert list(result.detections) == [example.image_id for example in examples]
    assert result.score.map == pytest.approx(1.0)
    arguments = ["score", "--model", model, "--label_map", labels, "--processes", "1"]
    assert cli.main(arguments + ["--record", pattern]) == 0
    capsys.readouterr()
    assert cli.main(arguments + ["--record", str(tmp_path / "none-*")]) != 0
    assert "cannot find the record file" in capsys.readouterr().err


def test_score(tf, model_dir, tmp_path):
    record, label_map = str(tmp_path / "val.record"), str(tmp_path / "label_map.pbtxt")
    # Of the input's own size, so that nothing is lost where two colours meet.
    examples = [quadrant_example(e.image_id, _classes(e), SIZE, SIZE) for e in EXAMPLES]
    write_record(tf, record, examples)
    with open(label_map, "w") as stream:
        stream.write(
            "".join("item {{ id: {} name: '{}' }}\n".format(i, n) for i, n in enumerate(NAMES, start=1))
        )
    path = os.path.join(model_dir, "named.pb")
    result = scoring.score(path, record, label_map, processes=1, progress=False)
    assert result.score.map == pytest.approx(1.0) and result.score.images == len(examples)
    assert result.class_names == {1: "red", 2: "green", 3: "blue"}
    assert result.size_bytes == os.path.getsize(path) and result.latency_ms > 0
    assert list(result.detections) == [example.image_id for example in examples]
    int8 = scoring.score(
        os.path.join(model_dir, "int8.tflite"),
        record,
        class_names=NAMES,
        max_images=6,
        processes=2,
        progress=False,
    )
    assert int8.score.images == 6 and int8.score.map50 == pytest.approx(1.0)
    for arguments in ({}, {"label_map_path": label_map, "class_names": NAMES}):
        with pytest.raises(ConfigError, match="label_map_path or class_names"):
            scoring.score(path, record, **arguments)


def written_label_map(path, names):
    from od_qat.datasets import label_map

    label_map.write_label_map(str(path), names)
    return str(path)


@pytest.mark.parametrize("max_images", [None, 2])
@pytest.mark.parametrize(
    "texts, names, message",
    [
        (None, ("red", "green"), "class id of the record is not in the label map.*found 3, allowed: 1, 2 of"),
        (NAMES, ("red", "blue", "green"), "another name in the label map.*'green' for id 2.*allowed: 'blue'"),
    ],
)
def test_a_label_map_of_another_record_is_refused(
    tf, model_dir, tmp_path, monkeypatch, texts, names, message, max_images
):
    """Before the model is run; left out silently, the objects would make the score wrong."""
    monkeypatch.setattr(workers.Pool, "detect", None)
    record = str(tmp_path / "val.record")
    write_record(tf, record, EXAMPLES, texts)
    label_map = written_label_map(tmp_path / "label_map.pbtxt", names)
    with pytest.raises(DataError, match=message) as caught:
        scoring.score(os.path.join(model_dir, "int8.tflite"), record, label_map, max_images=max_images)
    assert "val.record, example 1" in str(caught.value) and label_map in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_model_of_other_data_is_warned_of(tf, model_dir, tmp_path, capsys):
    record, label_map = str(tmp_path / "val.record"), str(tmp_path / "label_map.pbtxt")
    examples = [quadrant_example(e.image_id, _classes(e), SIZE, SIZE) for e in EXAMPLES]
    # The model finds 3 classes, of data that has only 2 of them.
    known = [example._replace(boxes=example.boxes[example.classes < 3]) for example in examples]
    known = [example._replace(classes=example.classes[example.classes < 3]) for example in known]
    write_record(tf, record, known, NAMES[:2])
    written_label_map(label_map, NAMES[:2])
    path = os.path.join(model_dir, "named.pb")
    unknown = sum(int(np.sum(example.classes == 3)) for example in examples)
    everything = sum(len(example.classes) for example in examples)
    assert 0 < unknown < everything
    result = scoring.score(path, record, label_map, processes=1, progress=False)
    assert result.score.map == pytest.approx(1.0) and result.score.detections == everything - unknown
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.count("\n") == 1
    assert printed.err.startswith("warning: {} finds classes that {} does not".format(path, label_map))
    assert "ids 3; these {} of its {} detections".format(unknown, everything) in printed.err
    # An offset that is wrong by one shows as the background's id.
    scoring.score(path, record, label_map, processes=1, progress=False, class_id_offset=-1, max_images=3)
    assert "ids 0; these" in capsys.readouterr().err
    # Names that are given instead of a label map may be a choice of the classes.
    scoring.score(path, record, class_names=NAMES[:2], processes=1, progress=False)
    write_record(tf, record, examples, NAMES)
    written_label_map(label_map, NAMES)
    scoring.score(path, record, label_map, processes=1, progress=False, max_images=4)
    assert capsys.readouterr().err == ""


def test_score_on_real_photographs(tf, model_dir):
    """Not a good model for blood cells; but JPEG files of a real data set go through, and give one result."""
    folder = os.environ.get("OD_QAT_BCCD")
    if not folder:
        pytest.skip("OD_QAT_BCCD does not name a VOC folder")
    names = sorted(os.listdir(os.path.join(folder, "JPEGImages")))[:6]
    examples = []
    for name in names:
        with open(os.path.join(folder, "JPEGImages", name), "rb") as stream:
            encoded = stream.read()
        height, width = images.decode(encoded).shape[:2]
        examples.append(Example(name, encoded, height, width, ANCHORS[:1], np.array([1]), None, None))
    tflite = scoring.detect(os.path.join(model_dir, "float32.tflite"), examples, processes=2, progress=False)
    graph = scoring.detect(os.path.join(model_dir, "named.pb"), examples, processes=1, progress=False)
    assert list(tflite) == names
    assert sum(len(found.scores) for found in tflite.values()) > 0
    for name in names:
        # The .pb gives one class a box; the .tflite every class above the threshold. The best is the same.
        np.testing.assert_allclose(tflite[name].scores[:1], graph[name].scores[:1], atol=1e-5)
