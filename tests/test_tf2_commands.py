"""Upstream's commands of the TF 2 half under `od-qat run`: model_main_tf2 and the two exporters."""

import glob
import json
import os

import numpy as np
import pytest

from tests.helpers import tiny_detector

pytest.importorskip("object_detection.protos.pipeline_pb2", reason="the OD API is not installed")

import od_qat.plugin  # noqa: E402,F401
from od_qat import commands, compat, tf2_drop_ins  # noqa: E402
from od_qat.compat import tf  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, MissingPackage  # noqa: E402
from od_qat.export import tflite_checks  # noqa: E402
from od_qat.model_files import interpreter  # noqa: E402
from od_qat.od_api import pipeline  # noqa: E402
from tests.test_run import od_qat_run  # noqa: E402

pytestmark = pytest.mark.skipif(not compat.HAS_TF2_MODELS, reason="the TF 2 half needs TensorFlow 2")

STEPS = 3
OWN_MODE = {"TF2_BEHAVIOR": "1"}  # (this process has switched it off)


class Run(object):
    """A folder in which the commands were run."""

    def __init__(self, folder, kind):
        self.folder, self.config = folder, kind + ".config"
        self.model_dir = os.path.join(folder, kind)
        self.out = os.path.join(folder, kind + "_out")

    def __call__(self, command, *flags):
        config = "--pipeline_config_path=" + self.config
        done = od_qat_run(self.folder, "object_detection." + command, "--", config, *flags)
        assert done[0] == 0, done[2][-3000:]
        return done[2]

    def path(self, *parts):
        return os.path.join(self.folder, *parts)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model_dir of model_main_tf2, which trained three steps of QAT and then evaluated."""
    folder = str(tmp_path_factory.mktemp("tf2_commands"))
    tiny_detector.write_data(folder)
    tiny_detector.write_config(folder, True, "qat", steps=9, tf2=True)
    run = Run(folder, "qat")
    model_dir = "--model_dir=qat"
    run("model_main_tf2", model_dir, "--num_train_steps={}".format(STEPS), "--checkpoint_every_n=2")
    run.said = run("model_main_tf2", model_dir, "--checkpoint_dir=qat", "--eval_timeout=1")
    return run


@pytest.fixture(scope="module")
def images(trained):
    """An .npz of three images of other sizes, and their arrays."""
    random = np.random.RandomState(0)
    arrays = {str(n): random.randint(0, 256, [60 + 9 * n, 80, 3]).astype(np.uint8) for n in range(3)}
    path = trained.path("images.npz")
    np.savez(path, **arrays)
    return path, arrays


def test_the_layout_is_upstreams(trained):
    saved = {os.path.basename(p)[: -len(".index")] for p in glob.glob(trained.model_dir + "/*.index")}
    assert saved == {"ckpt-2", "ckpt-3"}
    for folder in ("train", "eval"):
        assert glob.glob(os.path.join(trained.model_dir, folder, "events.out.tfevents.*")), folder
    assert not glob.glob(os.path.join(trained.model_dir, "events.*"))
    assert pipeline.load(os.path.join(trained.model_dir, "pipeline.config")).train_config.num_steps == STEPS
    with open(os.path.join(trained.model_dir, "eval", "metrics-3.json")) as stream:
        assert "DetectionBoxes_Precision/mAP" in json.load(stream)
    assert os.path.exists(os.path.join(trained.model_dir, "rewrite_report.json"))


def test_events_have_upstreams_tags(trained):
    for folder, expected in (
        ("train", {"Loss/classification_loss", "Loss/localization_loss", "Loss/total_loss", "learning_rate"}),
        ("eval", {"Loss/classification_loss", "Loss/localization_loss", "DetectionBoxes_Precision/mAP"}),
    ):
        tags = set()
        for path in glob.glob(os.path.join(trained.model_dir, folder, "events.out.tfevents.*")):
            for event in tf.train.summary_iterator(path):
                tags |= {value.tag for value in event.summary.value}
        assert expected <= tags, tags


def test_an_evaluation_takes_all_images_and_ends_by_itself(trained):
    assert "eval_config.num_examples is ignored, as model_main_tf2 ignores it" in trained.said
    assert "no newer checkpoint in 1 s" in trained.said


@pytest.fixture(scope="module")
def exported(trained):
    trained(
        "exporter_main_v2", "--trained_checkpoint_dir=" + trained.model_dir, "--output_directory=exported"
    )
    return trained.path("exported")


def test_a_saved_model_gives_what_the_evaluation_scores(trained, exported, images, run_python):
    """The program that loads it knows nothing of od_qat."""
    path, arrays = images
    out = trained.path("detected.npz")
    model = os.path.join(exported, "saved_model")
    arguments = ["detect", model, path, out]
    done = run_python("-m", "tests.helpers.saved_models", *arguments, timeout=300, env=OWN_MODE)
    assert done.status == 0, done.errors[-3000:]
    found = np.load(out)
    assert tiny_detector.fake_quants(os.path.join(model, "saved_model.pb")) > 50
    frozen = os.path.join(trained.model_dir, "eval", "frozen_eval_graph.pb")
    with open(frozen, "rb") as stream:
        graph_def = tf.GraphDef.FromString(stream.read())
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        for name, image in arrays.items():
            for key in ("detection_boxes", "detection_scores", "detection_classes", "num_detections"):
                expected = session.run(key + ":0", {"image_tensor:0": image[None]})
                np.testing.assert_allclose(found["{}/{}".format(name, key)], expected, atol=1e-5, err_msg=key)
    assert found["0/raw_detection_scores"].shape[0] == 1  # (all that post-processing gives)


def test_its_checkpoint_is_one_to_fine_tune_from(trained, exported):
    """As those of the zoo: checkpoint/ckpt-0, with the model and its ranges, without an optimizer."""
    assert pipeline.load(os.path.join(exported, "pipeline.config")).model.WhichOneof("model") == "ssd"
    before, after = [
        tf.train.load_checkpoint(prefix)
        for prefix in (trained.model_dir + "/ckpt-3", exported + "/checkpoint/ckpt-0")
    ]
    names = set(after.get_variable_to_shape_map()) - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    kept = {name for name in before.get_variable_to_shape_map() if name.startswith("model/")}
    assert kept <= names and not any("Momentum" in name for name in names)
    assert any("act_quant" in name for name in names)
    for name in names - {"save_counter/.ATTRIBUTES/VARIABLE_VALUE"}:
        np.testing.assert_array_equal(before.get_tensor(name), after.get_tensor(name), name)


@pytest.mark.zoo
def test_qat_goes_on_from_its_checkpoint(trained, exported):
    overrides = [
        "train_config.num_steps=1",
        "train_config.fine_tune_checkpoint_type=full",
        "train_config.fine_tune_checkpoint=" + os.path.join(exported, "checkpoint", "ckpt-0"),
    ]
    path = trained.path(trained.config)
    assert commands.train(path, trained.path("fine_tuned"), overrides=overrides).global_step == 1


@pytest.fixture(scope="module")
def to_convert(trained):
    trained(
        "export_tflite_graph_tf2",
        "--trained_checkpoint_dir=" + trained.model_dir,
        "--output_directory=to_convert",
        "--max_detections=7",
        "--ssd_use_regular_nms",
    )
    return trained.path("to_convert", "saved_model")


@pytest.mark.parametrize(
    "input_type", ["uint8"] + [pytest.param(name, marks=pytest.mark.long) for name in ("int8", "float32")]
)
def test_a_users_own_script_converts(trained, to_convert, run_python, input_type):
    """Without calibration: a network without float tensors, with outputs in TFLite's order."""
    path = trained.path(input_type + ".tflite")
    arguments = ["convert", to_convert, path, input_type]
    done = run_python("-m", "tests.helpers.saved_models", *arguments, timeout=300, env=OWN_MODE)
    assert done.status == 0, done.errors[-3000:]
    with open(path, "rb") as stream:
        model = stream.read()
    floats = tflite_checks.inspect(model).float_tensors
    assert floats == ([] if input_type != "float32" else floats[:1])
    mine = commands.export_tflite(
        os.path.join(trained.model_dir, "pipeline.config"),
        trained.model_dir,
        trained.path("mine"),
        max_detections=7,
        score_threshold="config",
    )
    image = np.random.RandomState(0).randint(0, 256, [1, 64, 64, 3])
    given = {"uint8": image.astype(np.uint8), "int8": (image - 128).astype(np.int8)}
    given["float32"] = ((image - 127.5) / 127.5).astype(np.float32)
    with open(mine, "rb") as stream:
        lite, expected = _outputs(stream.read(), given["uint8"])
    boxes, classes, scores, count = expected
    lite, found = _outputs(model, given[input_type])
    # What programs go by: names of the signature (pycoral), and names and order of the outputs (others).
    (signature,) = lite.get_signature_list().values()
    assert signature == {"inputs": ["input"], "outputs": ["output_{}".format(n) for n in range(4)]}
    names = [each["name"] for each in lite.get_output_details()]
    assert names == ["StatefulPartitionedCall:{}".format(n) for n in (1, 3, 0, 2)]
    by_signature = lite.get_signature_runner()(input=given[input_type])
    for number, value in enumerate((count, scores, classes, boxes)):
        assert by_signature["output_{}".format(number)].shape == value.shape
    for value, other in zip(found, (scores, boxes, count, classes)):
        np.testing.assert_allclose(value, other, atol=1e-5)


def _outputs(model, image):
    lite = interpreter.without_delegates(model)
    lite.allocate_tensors()
    lite.set_tensor(lite.get_input_details()[0]["index"], image)
    lite.invoke()
    return lite, [lite.get_tensor(each["index"]) for each in lite.get_output_details()]


# Programs in TensorFlow's own mode.

EAGER_PROGRAM = """
import sys
import od_qat.plugin_tf2
import tensorflow as tf
from od_qat import compat, tf2_drop_ins
from od_qat.od_api import hand_over, pipeline

tf.compat.v1.enable_v2_behavior()  # (the tests' processes have it switched off)
tf2_drop_ins.export_inference_graph = lambda *arguments: "od_qat"
either = hand_over.export_inference_graph.replaces(lambda input_type, pipeline_config: "upstream")
print(*[either("image_tensor", pipeline.load(path)) for path in sys.argv[1:]])
with tf.distribute.MirroredStrategy(["/cpu:0"]).scope():
    with compat.graph_mode(), tf.Graph().as_default():
        assert not tf.executing_eagerly()
        assert "Default" in type(tf.distribute.get_strategy()).__name__
    assert tf.distribute.get_strategy().num_replicas_in_sync == 1
print(tf.constant(3).numpy(), either("image_tensor", pipeline.load(sys.argv[1])))
"""


def test_an_eager_program_stays_eager_and_upstreams_without_a_block(run_python, tmp_path):
    paths = [tiny_detector.write_config(str(tmp_path), kind, str(kind), tf2=True) for kind in (False, True)]
    done = run_python("-c", EAGER_PROGRAM, *paths)
    assert done.output.splitlines() == ["upstream od_qat", "3 upstream"], done.errors[-2000:]


@pytest.mark.long
def test_qat_goes_on_from_what_upstream_trained(tmp_path, run_python):
    """Without a block the commands are upstream's own, eager, also on this TensorFlow."""
    pytest.importorskip("tensorboard", reason="upstream writes its events with TensorBoard")
    folder = str(tmp_path)
    tiny_detector.write_data(folder)
    tiny_detector.write_config(folder, False, "float", steps=1, tf2=True)
    qat = tiny_detector.write_config(folder, True, "qat", steps=1, tf2=True)
    run = Run(folder, "float")
    run("model_main_tf2", "--model_dir=float", "--checkpoint_every_n=1")
    reader = tf.train.load_checkpoint(os.path.join(folder, "float", "ckpt-2"))
    assert any(name.startswith("optimizer/") for name in reader.get_variable_to_shape_map())
    run("exporter_main_v2", "--trained_checkpoint_dir=float", "--output_directory=out")
    for checkpoint in ("float/ckpt-2", "out/checkpoint/ckpt-0"):
        overrides = [
            "train_config.fine_tune_checkpoint_type=full",
            "train_config.fine_tune_checkpoint=" + os.path.join(folder, checkpoint),
        ]
        result = commands.train(qat, os.path.join(folder, checkpoint, "qat"), overrides=overrides)
        assert result.global_step == 1


def test_tensorboard_is_asked_for_before_upstream_trains(monkeypatch):
    from od_qat.od_api import hand_over

    monkeypatch.setattr(hand_over.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingPackage, match="pip install tensorboard, or use od-qat train and eval"):
        hand_over._require_tensorboard()


# Wrong input.


def test_what_cannot_be_had_is_refused(trained, tmp_path):
    config = trained.path(trained.config)
    slim = tiny_detector.write_config(trained.folder, True, "slim")
    out = str(tmp_path / "out")
    with pytest.raises(ConfigError, match="TF 1 half.*Fix: run the commands of the TF 1 half"):
        tf2_drop_ins.train_loop(slim, out)
    with pytest.raises(ConfigError, match="does not train on TPUs"):
        tf2_drop_ins.train_loop(config, out, use_tpu=True)
    with pytest.raises(ConfigError, match="no such eval_input_reader.*allowed: 0 to 0"):
        tf2_drop_ins.eval_continuously(config, model_dir=out, checkpoint_dir=out, eval_index=1)
    with pytest.raises(CheckpointError, match="no checkpoint in the folder"):
        tf2_drop_ins.eval_continuously(config, model_dir=out, checkpoint_dir=out, timeout=0.1)
    message = pipeline.load(config)
    with pytest.raises(ConfigError, match="the image as their only input"):
        tf2_drop_ins.export_inference_graph("image_tensor", message, trained.model_dir, out, True)
    with pytest.raises(ConfigError, match="--input_type, found 'pixels', allowed: encoded_image"):
        tf2_drop_ins.export_inference_graph("pixels", message, trained.model_dir, out)
    with pytest.raises(ConfigError, match="no keypoints"):
        tf2_drop_ins.export_tflite_model(message, trained.model_dir, out, 10, False, True)
    with pytest.raises(CheckpointError, match="no such checkpoint.*found in that folder: no checkpoints"):
        tf2_drop_ins.export_tflite_model(message, out, out, 10, False)
    with tf.distribute.MirroredStrategy(["cpu:0"]).scope():
        assert tf2_drop_ins._replicas() == 1
    assert not os.path.exists(out)
