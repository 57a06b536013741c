"""Files of models, damaged at random: one clear line or detections, no crash, hang or other exception.

See damage.py for how many. What a damaged .tflite does to the interpreter, it does in a process of its own.
"""

import os
import shutil

import numpy as np
import pytest

from od_qat import scoring
from od_qat.model_files import nodes as model_nodes
from tests.helpers.damaged_files import damaged, damaged_in_place, try_all
from tests.test_scoring import EXAMPLES

# For a loop in a damaged graph; a file as small as these takes less than a second.
SECONDS = 20


def copied(model_dir, folder, *names):
    for name in names:
        shutil.copy(os.path.join(model_dir, name), str(folder))
    return [os.path.join(str(folder), name) for name in names]


def detect(path):
    found = scoring.detect(path, EXAMPLES[:1], processes=1, progress=False, time_limit=SECONDS)
    (detections,) = found.values()
    number = len(detections.scores)
    assert detections.boxes.shape == (number, 4) and detections.classes.shape == (number,)
    assert np.isfinite(detections.scores).all()
    assert np.all((detections.boxes >= 0) & (detections.boxes <= 1))


@pytest.mark.parametrize("kind", [pytest.param("float32", marks=pytest.mark.long), "int8"])
def test_a_tflite(model_dir, tmp_path, kind):
    path, _ = copied(model_dir, tmp_path, kind + ".tflite", kind + ".json")
    try_all(path, lambda: detect(path), damage=damaged_in_place)


@pytest.mark.long
def test_the_published_tflite(tmp_path):
    """Of 4 MB, most of them weights: these may change as they like."""
    folder = os.environ.get("OD_QAT_COCO_DETECTOR")
    if not folder:
        pytest.skip("set OD_QAT_COCO_DETECTOR to the folder of a published COCO detector")
    path = str(tmp_path / "detect.tflite")
    shutil.copyfile(os.path.join(folder, "detect.tflite"), path)
    try_all(path, lambda: detect(path), refuses=False, damage=damaged_in_place)


def test_a_frozen_graph(model_dir, tmp_path):
    (path,) = copied(model_dir, tmp_path, "canonical.pb")
    try_all(path, lambda: detect(path), damage=damaged_in_place)


@pytest.mark.parametrize("model", ["int8.tflite", "named.pb"])
def test_the_json_beside_a_model(model_dir, tmp_path, model):
    path, beside = copied(model_dir, tmp_path, model, model.split(".")[0] + ".json")
    try_all(beside, lambda: detect(path), damage=damaged)


@pytest.mark.parametrize("model", ["int8.tflite", "canonical.pb"])
def test_the_nodes_of_a_model(model_dir, tmp_path, model):
    (path,) = copied(model_dir, tmp_path, model)
    try_all(path, lambda: model_nodes.find(path), damage=damaged_in_place)


def test_the_nodes_of_a_saved_model(tf, tmp_path):
    folder = str(tmp_path / "saved")
    with tf.Graph().as_default(), tf.Session() as session:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name="image_tensor")
        outputs = {"num_detections": tf.reshape(tf.reduce_sum(tf.cast(image, tf.float32)), [1])}
        tf.saved_model.simple_save(session, folder, {"inputs": image}, outputs)
    path = os.path.join(folder, "saved_model.pb")
    try_all(path, lambda: model_nodes.find(folder), damage=damaged_in_place)
