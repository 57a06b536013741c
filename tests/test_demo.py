"""What the demo decides by itself: input size and anchor scales."""

import os

import numpy as np
import pytest

from od_qat import demo, files
from od_qat.compat import tf
from od_qat.datasets.records import Example
from od_qat.errors import ConfigError, DataError, EnvironmentProblem


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


@pytest.mark.parametrize("which", ["demo_builtin", "demo_folder"])
@pytest.mark.parametrize("kind", ["float", "qat"])
def test_the_configs_make_these_anchors(which, kind):
    """The OD API's own anchors, of the demo's config with the scales filled in: all boxes match."""
    pipeline, anchor_generator_builder = _od_api()
    sides = [0.09] * 10 + [0.21] * 80 + [0.4] * 10
    height, width, scales = demo.fit_to_boxes([_example(sides)], pixels=240 * 320)
    field = "model.ssd.anchor_generator.ssd_anchor_generator.scales={}".format(scales)
    config = pipeline.load(os.path.join(demo.CONFIG_FOLDER, "{}_{}.config".format(which, kind)), [field])
    generator = anchor_generator_builder.build(config.model.ssd.anchor_generator)
    shapes = [(-(-height // stride), -(-width // stride)) for stride in (16, 32, 64, 128)]
    with tf.Graph().as_default(), tf.Session() as session:
        lists = generator.generate(shapes, im_height=height, im_width=width)
        anchors = session.run(tf.concat([boxes.get() for boxes in lists], 0))
    sizes = (anchors[:, 2:] - anchors[:, :2]) * [height, width] / min(height, width)
    threshold = config.model.ssd.matcher.argmax_matcher.matched_threshold
    for side in sorted(set(sides)):
        shared = np.minimum(sizes, side).prod(axis=1)
        assert (shared / (sizes.prod(axis=1) + side**2 - shared)).max() > threshold + 0.15, side


def test_input_keeps_the_images_aspect_ratio():
    examples = [_example([0.3], height=400, width=300)] * 2 + [_example([0.3], height=100, width=500)]
    height, width, _ = demo.fit_to_boxes(examples, pixels=160 * 160)
    assert height % 16 == 0 and width % 16 == 0
    assert height / width == pytest.approx(4 / 3, rel=0.1)
    assert height * width == pytest.approx(160 * 160, rel=0.15)


def test_a_folder_keeps_to_one_run(tmp_path):
    work_dir = str(tmp_path / "work")
    demo._keep_to_one_run(work_dir, {"data": "builtin", "seed": 0})
    files.write_json(os.path.join(work_dir, "demo_settings.json"), {"data": "builtin", "seed": 0})
    demo._keep_to_one_run(work_dir, {"data": "builtin", "seed": 0})
    with pytest.raises(ConfigError, match="another run.*seed 0.*1.*WORK"):
        demo._keep_to_one_run(work_dir, {"data": "builtin", "seed": 1})
    demo._keep_to_one_run(str(tmp_path / "other"), {"data": "builtin", "seed": 1})


def test_a_run_that_made_nothing_leaves_the_folder_to_another(tmp_path):
    work_dir = str(tmp_path / "work")
    for data in ("voc:" + str(tmp_path / "missing"), "voc:", "photographs"):
        with pytest.raises((ConfigError, DataError), match="missing|unknown data"):
            demo.run(data, work_dir)


def test_no_boxes_at_all():
    with pytest.raises(DataError, match="no boxes"):
        demo.fit_to_boxes([_example([])], pixels=160 * 160)
