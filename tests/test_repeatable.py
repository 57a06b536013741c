"""What a seed has to reach for a training run to be repeatable."""

import numpy as np
import pytest

from od_qat.compat import tf
from od_qat.training.graph import seed_the_unseeded

pytestmark = pytest.mark.tf1


def _crops(seed, repeatable=True):
    """Random crops, whose op TensorFlow leaves without a seed, and random numbers, which it seeds."""
    with tf.Graph().as_default() as graph:
        tf.set_random_seed(seed)
        boxes = tf.constant([[[0.2, 0.2, 0.8, 0.8]]])
        crops = [
            tf.image.sample_distorted_bounding_box([500, 500, 3], boxes, min_object_covered=0.1)[0]
            for _ in range(2)
        ]
        numbers = tf.random_uniform([3])
        if repeatable:
            before = [op.node_def for op in graph.get_operations() if "RandomUniform" in op.type]
            seed_the_unseeded(graph, seed)
            assert before == [op.node_def for op in graph.get_operations() if "RandomUniform" in op.type]
        with tf.Session() as session:
            return [np.concatenate(session.run(crops + [numbers])) for _ in range(3)]


@pytest.mark.parametrize("seed", [0, 5])
def test_ops_that_the_graphs_seed_does_not_reach_are_seeded(seed):
    assert not np.array_equal(_crops(seed, False), _crops(seed, False))  # else this tests nothing
    once = _crops(seed)
    np.testing.assert_array_equal(once, _crops(seed))
    assert not np.array_equal(once, _crops(seed + 1))
    first_crop, second_crop = once[0][:3], once[0][3:6]
    assert not np.array_equal(first_crop, second_crop)  # each has its own
    assert not np.array_equal(once[0], once[1])  # and goes on
