"""Models of the OD API's TF 2 half: built, trained, evaluated and exported as those of the TF 1 half are."""

import glob
import json
import os
import shutil

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, EnvironmentProblem  # noqa: E402
from tests import tiers  # noqa: E402
from tests.helpers import sessions, tiny_detector  # noqa: E402

try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

from od_qat import checkpoints, scoring  # noqa: E402
from od_qat.checkpoints import object_based  # noqa: E402
from od_qat.export import tflite_checks  # noqa: E402
from od_qat.od_api import halves, keras_models, models, pipeline  # noqa: E402

needs_tf2 = pytest.mark.skipif(IS_TF1, reason="TF 2 models need TensorFlow 2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("tf2"))
    tiny_detector.write_data(folder)
    return folder


def _config(folder, quantised, name, steps=2, more=()):
    return tiny_detector.write_config(folder, quantised, name, steps, more, tf2=True)


@pytest.mark.tf1
def test_the_config_says_the_half(folder):
    keras = pipeline.load(_config(folder, True, "keras"))
    assert halves.is_tf2(keras)
    slim = pipeline.load(tiny_detector.write_config(folder, True, "slim"))
    assert not halves.is_tf2(slim)
    slim.model.center_net.num_classes = 1
    assert halves.is_tf2(slim)


@pytest.mark.tf1
@pytest.mark.skipif(not IS_TF1, reason="TensorFlow 2 has TF 2 models")
def test_tensorflow_1_is_told_apart(folder):
    with pytest.raises(ConfigError, match="TF 2 half, which needs TensorFlow 2: .*1.15.*Fix: install"):
        commands.train(_config(folder, True, "keras"), os.path.join(folder, "no"))


# The oracle: upstream's eager code, in a process without od_qat.


@pytest.fixture(scope="module")
def eager(folder, run_python):
    """A folder with a config, images, a checkpoint and what upstream computes with it."""
    out = os.path.join(folder, "eager")
    os.mkdir(out)
    random = np.random.RandomState(0)
    np.savez(
        os.path.join(out, "in.npz"),
        images=random.uniform(0, 255, [2, 80, 70, 3]).astype(np.float32),
        boxes=np.array([[[0.1, 0.1, 0.5, 0.6]], [[0.3, 0.2, 0.9, 0.8]]], np.float32),
        classes=np.array([[[1, 0]], [[0, 1]]], np.float32),
    )
    config = shutil.copy(_config(folder, False, "eager"), out)
    arguments = ["-m", "tests.helpers.eager_upstream", config, os.path.join(out, "in.npz"), out]
    # (This process has TensorFlow 2's behaviour switched off.)
    done = run_python(*arguments, timeout=1500, env={"TF2_BEHAVIOR": "1"})
    assert done.status == 0, done.errors[-3000:]
    return out


def _built(eager, training):
    """The model of the default graph on the eager run's images: model, predictions, shapes."""
    given = np.load(os.path.join(eager, "in.npz"))
    config = pipeline.load(os.path.join(eager, "eager.config"))
    model = models.model_fn(config, training)()
    images, shapes = model.preprocess(tf.constant(given["images"]))
    model.provide_groundtruth(
        [tf.constant(boxes) for boxes in given["boxes"]],
        [tf.constant(classes) for classes in given["classes"]],
    )
    return model, model.predict(images, shapes), shapes


def _restored(eager, number=1):
    """A session with the checkpoint's values, strictly restored."""
    prefix = os.path.join(eager, "ckpt-{}".format(number))
    variables = checkpoints.named(prefix)
    checkpoints.require_all(variables, prefix, ())
    session = sessions.plain()
    session.run([tf.global_variables_initializer(), tf.tables_initializer()])
    tf.train.Saver(variables).restore(session, prefix)
    return session


def _close(found, expected, name, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max(), err_msg=name)


@needs_tf2
def test_inference_is_upstreams(eager):
    expected = np.load(os.path.join(eager, "eager.npz"))
    config = pipeline.load(os.path.join(eager, "eager.config"))
    with halves.active(config), tf.Graph().as_default():
        model, predictions, shapes = _built(eager, False)
        detections = model.postprocess(predictions, shapes)
        found = dict(predictions, **detections)
        names = [name[len("inference/") :] for name in expected if name.startswith("inference/")]
        assert len(names) == 5
        with _restored(eager) as session:
            values = session.run({name: found[name] for name in names})
    for name, value in values.items():
        _close(value, expected["inference/" + name], name)


@needs_tf2
def test_a_step_of_training_is_upstreams(eager):
    """Losses, regularization, the norm of all gradients, and the averages of batch norms after it."""
    expected = np.load(os.path.join(eager, "eager.npz"))
    config = pipeline.load(os.path.join(eager, "eager.config"))
    after = os.path.join(eager, "ckpt-2")
    with halves.active(config), tf.Graph().as_default():
        model, predictions, shapes = _built(eager, True)
        found = dict(model.loss(predictions, shapes))
        keras_models.collect(model)
        found["regularization"] = tf.add_n(tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES))
        found["norm"] = tf.global_norm(tf.gradients(tf.add_n(list(found.values())), tf.trainable_variables()))
        averages = {name: v for name, v in checkpoints.named(after).items() if "/moving_" in name}
        updates = tf.get_collection(tf.GraphKeys.UPDATE_OPS)
        assert len(updates) == len(averages) > 50
        with _restored(eager) as session:
            before = session.run(averages)
            values, _ = session.run([found, updates])
            moved = session.run(averages)
    assert len(values) == 4
    for name, value in values.items():
        _close(value, expected["training/" + name], name)
    reader = tf.train.load_checkpoint(after)
    for name, value in moved.items():
        assert not np.array_equal(value, before[name]), name
        _close(value, reader.get_tensor(name), name)


# The road.


class Road(object):
    """A float training, QAT from its checkpoint, its evaluation and its .tflite."""


@pytest.fixture(scope="module")
def road(folder):
    made = Road()
    made.float_config = _config(folder, False, "float", more=["train_config.fine_tune_checkpoint="])
    made.float_dir, made.qat_dir = os.path.join(folder, "float"), os.path.join(folder, "qat")
    with sessions.all_plain():
        made.float_result = commands.train(made.float_config, made.float_dir, seed=1)
        # At so low a rate no weight moves: what was restored can be compared after it.
        more = [
            "train_config.fine_tune_checkpoint=" + made.float_result.checkpoint,
            "train_config.optimizer.momentum_optimizer.learning_rate.cosine_decay_learning_rate."
            "warmup_learning_rate=1e-9",
            "train_config.optimizer.momentum_optimizer.learning_rate.cosine_decay_learning_rate."
            "learning_rate_base=1e-8",
        ]
        made.qat_config = _config(folder, True, "qat", more=more)
        made.result = commands.train(made.qat_config, made.qat_dir, seed=1)
        yield made


@needs_tf2
def test_checkpoints_are_upstreams(road):
    assert os.path.basename(road.result.checkpoint) == "ckpt-2"
    names = checkpoints.shapes(road.result.checkpoint)
    assert "_CHECKPOINTABLE_OBJECT_GRAPH" in names and "step/.ATTRIBUTES/VARIABLE_VALUE" in names
    assert any(name.startswith("model/_feature_extractor/") for name in names)
    assert any(name.startswith("od_qat/") for name in names)
    assert not any(name.startswith("od_qat/") and "_quant" in name for name in _shapes(road.float_result))


@needs_tf2
def test_the_step_is_the_one_in_the_checkpoint(road, tmp_path):
    """The number in the name of an eager program's checkpoint counts how often it has saved."""
    for path in glob.glob(road.result.checkpoint + ".*"):
        shutil.copy(path, str(tmp_path / os.path.basename(path).replace("ckpt-2", "ckpt-7")))
    assert checkpoints.global_step(str(tmp_path / "ckpt-7")) == 2


def _shapes(result):
    return checkpoints.shapes(result.checkpoint)


@needs_tf2
def test_every_range_moves_and_spare_copies_have_none(road):
    with open(os.path.join(road.qat_dir, "quant_ranges.json")) as stream:
        ranges = json.load(stream)
    with open(os.path.join(road.qat_dir, "rewrite_report.json")) as stream:
        report = json.load(stream)
    assert set(ranges) == set(report["weights"] + report["activations"])
    counts = object_based.extra_keys(road.result.checkpoint)
    reader = tf.train.load_checkpoint(road.result.checkpoint)
    updates = {n: reader.get_tensor(key) for n, key in counts.items() if n.endswith("/max/local_step")}
    assert len(updates) == len(report["activations"]) and set(updates.values()) == {2.0}
    backbone = [layer["op"] for layer in report["layers"] if "_expand" in layer["op"]]
    assert backbone and all("/model/" in name for name in backbone)


@needs_tf2
def test_qat_starts_from_the_whole_float_model(road):
    before, after = [tf.train.load_checkpoint(r.checkpoint) for r in (road.float_result, road.result)]
    kernels = [name for name in _shapes(road.float_result) if name.startswith("model/") and "kernel" in name]
    assert len(kernels) > 50
    for name in kernels:
        np.testing.assert_allclose(after.get_tensor(name), before.get_tensor(name), atol=1e-6, err_msg=name)
    assert any(name.endswith("act_quant/max") for name in object_based.extra_keys(road.result.checkpoint))


@needs_tf2
@pytest.mark.long
def test_heads_are_fresh_where_the_type_says_so(road, folder, capsys):
    more = ["train_config.fine_tune_checkpoint_type=detection", "train_config.num_steps=1"]
    commands.train(road.qat_config, os.path.join(folder, "heads"), overrides=more, seed=1)
    said = capsys.readouterr().err
    assert "in WeightSharedConvolutionalBoxPredictor" in said
    assert 'in the same shape, which train_config.fine_tune_checkpoint_type: "full" restores' in said


@needs_tf2
@pytest.mark.zoo
def test_training_resumes(road, folder, capsys):
    train_dir = os.path.join(folder, "resumed")
    shutil.copytree(road.qat_dir, train_dir)
    result = commands.train(road.qat_config, train_dir, overrides=["train_config.num_steps=3"], seed=1)
    assert (result.global_step, os.path.basename(result.checkpoint)) == (3, "ckpt-3")
    assert "resuming from" in capsys.readouterr().err


@needs_tf2
@pytest.mark.zoo
def test_it_is_evaluated_and_exported(road, folder):
    evaluation, out = os.path.join(folder, "eval"), os.path.join(folder, "out")
    metrics = commands.evaluate(road.qat_config, road.qat_dir, evaluation, run_once=True)
    assert "DetectionBoxes_Precision/mAP" in metrics
    assert tiny_detector.fake_quants(os.path.join(evaluation, "frozen_eval_graph.pb")) > 50
    path = commands.export_tflite(road.qat_config, road.qat_dir, out)
    with open(path, "rb") as stream:
        inspection = tflite_checks.inspect(stream.read())
    assert inspection.float_tensors == []
    with open(os.path.join(out, "detect.json")) as stream:
        assert json.load(stream)["checkpoint"] == "ckpt-2"
    record = os.path.join(folder, "data.record")
    scores = [
        scoring.score(
            each, record, class_names=list(tiny_detector.CLASSES), processes=1, progress=False
        ).detections
        for each in (path, os.path.join(evaluation, "frozen_eval_graph.pb"))
    ]
    for image, detections in scores[1].items():
        assert abs(detections.scores.max() - scores[0][image].scores.max()) < 4.0 / 256


@needs_tf2
@pytest.mark.zoo
def test_the_float_model_is_exported_too(road, folder):
    out = os.path.join(folder, "ptq")
    path = commands.export_tflite(road.float_config, road.float_dir, out, ptq=True, calibration_images=4)
    assert os.path.exists(path)
    frozen = commands.export(road.float_config, road.float_dir, os.path.join(folder, "frozen"))
    assert tiny_detector.fake_quants(frozen) == 0


@needs_tf2
@pytest.mark.long
def test_clones_share_the_model(road, folder):
    """Two clones of half the batch: one set of variables, names of a single model."""
    result = commands.train(
        road.qat_config, os.path.join(folder, "clones"), num_clones=2, clone_on_cpu=True, seed=1
    )
    assert result.global_step == 2
    single = {name: shape for name, shape in _shapes(road.result).items()}
    assert _shapes(result) == single


# Wrong input.


@needs_tf2
def test_checkpoints_of_the_other_half_are_refused(road, folder):
    slim = tiny_detector.write_config(folder, True, "slim", steps=1)
    slim_dir = os.path.join(folder, "slim")
    with tf.Graph().as_default(), tf.Session() as session:
        saved = tf.train.Saver([tf.Variable(1.0, name="FeatureExtractor/weights")])
        session.run(tf.global_variables_initializer())
        of_tf1 = saved.save(session, os.path.join(slim_dir, "model.ckpt-1"))
    of_tf2 = road.result.checkpoint
    fine_tune = "train_config.fine_tune_checkpoint="
    with pytest.raises(CheckpointError, match="one of TensorFlow 1, and the model is one of TensorFlow 2"):
        commands.train(road.qat_config, os.path.join(folder, "no"), overrides=[fine_tune + of_tf1])
    more = [fine_tune + of_tf2, "train_config.fine_tune_checkpoint_type=detection"]
    with pytest.raises(CheckpointError, match="one of TensorFlow 2, and the model is one of TensorFlow 1"):
        commands.train(slim, os.path.join(folder, "no"), overrides=more)
    for config, directory in ((slim, road.qat_dir), (road.qat_config, slim_dir)):
        if tiers.ALL:
            with pytest.raises(CheckpointError, match="the checkpoint is one of TensorFlow"):
                commands.export(config, directory, os.path.join(folder, "no"))
    assert not os.path.exists(os.path.join(folder, "no"))


@needs_tf2
@pytest.mark.parametrize(
    "more, says",
    [
        (
            ["model.ssd.feature_extractor.type=ssd_mobilenet_v9_keras"],
            "unknown feature extractor.*allowed: ssd_mobilenet_v1_keras.*ssd_resnet50_v1_fpn_keras",
        ),
        (
            ["train_config.fine_tune_checkpoint_type=whole"],
            "fine_tune_checkpoint_type, found 'whole', allowed: classification .*, detection .*, full",
        ),
        (
            ["train_config.load_all_detection_checkpoint_vars=true"],
            "fine_tune_checkpoint_type: .full. in TF 2",
        ),
        (
            ["train_config.optimizer.use_moving_average=true"],
            "moving averages of a TF 2 model.*use_moving_average",
        ),
        (["eval_config.use_moving_averages=true"], "moving averages of a TF 2 model.*eval_config"),
    ],
)
def test_what_a_tf2_config_cannot_have(road, folder, more, says):
    with pytest.raises(ConfigError, match=says) as caught:
        commands.train(road.qat_config, os.path.join(folder, "no"), overrides=more)
    assert "\n" not in str(caught.value)
    assert not os.path.exists(os.path.join(folder, "no"))


@needs_tf2
def test_a_missing_package_is_asked_for_when_a_model_needs_it(road, folder):
    try:
        import official  # noqa: F401

        pytest.skip("tf-models-official is installed")
    except ImportError:
        pass
    more = [
        "model.ssd.feature_extractor.type=ssd_efficientnet-b0_bifpn_keras",
        "model.ssd.feature_extractor.bifpn.num_filters=16",
        "model.ssd.feature_extractor.depth_multiplier=1.0",
        "model.ssd.feature_extractor.use_depthwise=false",
    ]
    with pytest.raises(EnvironmentProblem, match="EfficientDet needs.*tf-models-official"):
        commands.train(road.qat_config, os.path.join(folder, "no"), overrides=more)


@needs_tf2
def test_both_halves_in_one_process(road, folder):
    """A TF 1 model after a TF 2 one, and a TF 2 one after that."""
    slim = pipeline.load(tiny_detector.write_config(folder, True, "slim_again"))
    for path in (road.qat_config, None, road.qat_config):
        config = pipeline.load(path) if path else slim
        with halves.active(config), tf.Graph().as_default():
            model = models.model_fn(config, is_training=False)()
            image, shapes = model.preprocess(tf.placeholder(tf.float32, [1, 64, 64, 3]))
            assert model.predict(image, shapes)["box_encodings"].shape[0] == 1
            assert (keras_models.of_graph() is model) == (path is not None)
    assert not halves.is_active()
