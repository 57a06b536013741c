"""What classifiers are measured by, as scoring/measures.py has it for detectors."""

from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from od_qat.classifiers import counts, score
from od_qat.model_files.description import describe_model
from od_qat.scoring import workers
from od_qat.scoring.measures import Quality
from od_qat.scoring.stored_images import StoredImages


class ClassifierMeasure(object):
    """The share of images whose class a model finds.

    Attributes:
      name, note, columns, names: as of scoring.measures.DetectorMeasure.
      images: with their score.Image.
      examples: those, without the images.
    """

    name = "accuracy"
    note = "accuracy in percent"
    columns: Tuple[str, ...] = ()

    def __init__(self, read: Callable[[], Iterator[score.Image]], names: Mapping[int, str]) -> None:
        """Reads the labels; `read` is that of StoredImages."""
        self.images, self.names = StoredImages(read), names
        self.examples = self.images.examples
        self._labels = np.array([image.label for image in self.examples])

    def run(self, path: str, processes: Optional[int]) -> Dict[Any, np.ndarray]:
        """Image id -> probabilities, float32 [classes]; errors are those of scoring.detect."""
        with workers.Pool(describe_model(path)) as pool:
            found = pool.detect(iter(self.images), len(self.images), processes, True)
        score.require_labels(self._labels, len(next(iter(found.values()))), path)
        return found

    def quality(self, found: Mapping[Any, np.ndarray]) -> Quality:
        """Of a model that found this."""
        probabilities = self._stacked(found)
        right = counts.Counts()
        right.add(probabilities, self._labels)
        metrics = right.metrics()
        of_class: Dict[str, Optional[float]] = {}
        hits = self._hits(found)
        for label in sorted(set(self._labels)):
            name = self.names.get(int(label), str(label))
            # (ImageNet has two classes of the name crane.)
            name = "{} ({})".format(name, label) if name in of_class else name
            of_class[name] = float(hits[self._labels == label].mean())
        return Quality(metrics[counts.ACCURACY], {}, of_class, {"recall_5": metrics.get(counts.RECALL_5)})

    def warnings(self, path: str, found: Mapping[Any, np.ndarray]) -> List[str]:
        """None: what does not fit is refused by `run`."""
        return []

    def samples(self, found: Mapping[Any, np.ndarray], draws: Sequence[np.ndarray]) -> np.ndarray:
        """The accuracy of each draw of images, which are numbered from 0."""
        hits = self._hits(found)
        return np.array([hits[draw].mean() for draw in draws])

    def _stacked(self, found: Mapping[Any, np.ndarray]) -> np.ndarray:
        return np.stack([found[image.image_id] for image in self.examples])

    def _hits(self, found: Mapping[Any, np.ndarray]) -> np.ndarray:
        # (Of equal scores the first counts, as in np.argmax.)
        return self._stacked(found).argmax(1) == self._labels
