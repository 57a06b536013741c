"""Detections are some of a detector's candidates."""

import numpy as np

from od_qat import scoring
from od_qat.scoring.matching import iou_matrix


def require_all_among(reader, detected, examples):
    """Every detection is a candidate, with its class, its score and its box."""
    seen = 0
    for example in examples:
        found = detected[example.image_id]
        before = reader.read(scoring.decode(example.encoded, ""))
        for box, class_id, score in zip(*found):
            column = before.scores[:, class_id - before.first_class]
            near = np.abs(column - score) < 1e-4
            assert np.any(near & (iou_matrix(box, before.boxes)[0] > 0.999))
            seen += 1
    assert seen > 5
