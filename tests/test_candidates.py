"""What detectors have before their suppression, and how much of a disagreement the suppression makes."""

import os
import shutil

import numpy as np
import pytest

from od_qat import cli, scoring
from od_qat.report import before_suppression, disagreement
from od_qat.scoring import Detections, candidates
from tests.helpers.all_among import require_all_among
from tests.test_scoring import EXAMPLES, write_record

pytest.importorskip("ai_edge_litert")


@pytest.mark.parametrize("kind", ["float32", "int8", "uint8"])
def test_candidates_of_a_tflite(kind, model_dir):
    path = os.path.join(model_dir, kind + ".tflite")
    detected = scoring.detect(path, EXAMPLES, processes=1, progress=False)
    require_all_among(candidates.open_reader(path), detected, EXAMPLES)


def test_a_graph_without_upstreams_names_has_none(model_dir):
    assert candidates.open_reader(os.path.join(model_dir, "canonical.pb")) is None


@pytest.mark.parametrize("cut", [True, False])
def test_the_background_is_cut_off_where_upstream_cuts_it_off(cut, tf, model_dir, tmp_path):
    """(ssd_meta_arch.py does so behind raw_box_scores, if the model has a background class.)"""
    graph_def = tf.GraphDef()
    with open(os.path.join(model_dir, "canonical.pb"), "rb") as stream:
        graph_def.ParseFromString(stream.read())
    scores = np.array([[[0.9, 0.1, 0.2], [0.2, 0.8, 0.3]]], np.float32)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        tf.constant(np.tile(np.float32([0, 0, 0.5, 2]), (1, 2, 1)), name="raw_box_locations")
        given = tf.constant(scores, name="raw_box_scores")
        if cut:
            tf.slice(given, [0, 0, 1], [-1, -1, -1])
    path = str(tmp_path / "canonical.pb")
    with open(path, "wb") as stream:
        stream.write(graph.as_graph_def().SerializeToString())
    reader = candidates.open_reader(path)
    found = reader.read(scoring.decode(EXAMPLES[0].encoded, ""))
    reader.close()
    assert found.first_class == 1
    np.testing.assert_array_equal(found.scores, scores[0][:, 1:] if cut else scores[0])
    np.testing.assert_array_equal(found.boxes, np.tile(np.float32([0, 0, 0.5, 1]), (2, 1)))


def changed(detected, change):
    return {key: Detections(*change(*found)) for key, found in detected.items()}


def test_shares(model_dir):
    path = os.path.join(model_dir, "float32.tflite")
    by_id = {example.image_id: example for example in EXAMPLES}
    detected = scoring.detect(path, EXAMPLES, processes=1, progress=False)
    total = sum(len(found.scores) for found in detected.values())

    def shares(other):
        result = disagreement.disagreement(detected, other)
        return before_suppression.shares(result, {"a": path, "b": path}, by_id)

    assert shares(detected) is None
    # What the other model has not kept is among its candidates: its suppression left it out.
    empty = changed(detected, lambda boxes, classes, scores: (boxes[:0], classes[:0], scores[:0]))
    assert shares(empty) == (total, 0, sum(len(found.scores) > 0 for found in detected.values()))
    # A box that is nowhere among the candidates is the network's; those of this model are there.
    moved = changed(detected, lambda boxes, classes, scores: (np.roll(boxes, 1, 1), classes, scores))
    found = shares(moved)
    assert found.of_suppression + found.of_network == 2 * total and total / 2 < found.of_network <= total
    assert "{} are among".format(found.of_suppression) in found.as_text()


def test_agree_says_it(tf, model_dir, tmp_path, capsys):
    record = str(tmp_path / "val.record")
    write_record(tf, record, EXAMPLES, None)
    for name in ("float32.tflite", "float32.json"):
        shutil.copy(os.path.join(model_dir, name), str(tmp_path))
    models = [os.path.join(model_dir, "int8.tflite"), str(tmp_path / "float32.tflite")]
    assert cli.main(["agree", *models, "--record", record, "--iou=0.99", "--score_tolerance=0"]) == 0
    assert "are among the other model's boxes before its suppression" in capsys.readouterr().out
