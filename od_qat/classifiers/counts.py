"""Counts a classifier's right answers."""

from typing import Dict

import numpy as np

# The names of slim's eval_image_classifier.py.
ACCURACY, RECALL_5 = "Accuracy", "Recall_5"


class Counts(object):
    """Counts right answers."""

    def __init__(self) -> None:
        self._images, self._right, self._among_5, self._classes = 0, 0, 0, 0

    def add(self, predictions: np.ndarray, labels: np.ndarray) -> None:
        """Adds images.

        Args:
          predictions: [N, classes].
          labels: whole numbers [N].
        """
        # (Of equal scores the first counts, as in np.argmax.)
        best = np.argsort(-predictions, axis=1, kind="stable")[:, :5]
        self._images += len(labels)
        self._right += int((best[:, 0] == labels).sum())
        self._among_5 += int((best == np.asarray(labels)[:, None]).any(axis=1).sum())
        self._classes = predictions.shape[1]

    def metrics(self) -> Dict[str, float]:
        """Accuracy, and the part of images whose label is among the five best, if there are more classes."""
        found = {ACCURACY: self._right / float(self._images)}
        if self._classes > 5:
            found[RECALL_5] = self._among_5 / float(self._images)
        return found
