"""What the demo decides by itself: input size and anchor scales."""

import numpy as np
import pytest

from od_qat import demo
from od_qat.datasets.records import Example
from od_qat.errors import DataError


def _example(sides, height=240, width=320):
    """An image with square boxes (in pixels), given as shares of the image's shorter side."""
    boxes = [
        [0.0, 0.0, side * min(height, width) / height, side * min(height, width) / width] for side in sides
    ]
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    count = len(boxes)
    return Example("a", b"", height, width, boxes, np.ones(count, np.int64), np.zeros(count, bool))


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


def test_input_keeps_the_images_aspect_ratio():
    examples = [_example([0.3], height=400, width=300)] * 2 + [_example([0.3], height=100, width=500)]
    height, width, _ = demo.fit_to_boxes(examples, pixels=160 * 160)
    assert height % 16 == 0 and width % 16 == 0
    assert height / width == pytest.approx(4 / 3, rel=0.1)
    assert height * width == pytest.approx(160 * 160, rel=0.15)


def test_no_boxes_at_all():
    with pytest.raises(DataError, match="no boxes"):
        demo.fit_to_boxes([_example([])], pixels=160 * 160)
