"""What detectors are measured by. (classifiers/measure.py has the same of classifiers.)"""

from typing import Any, Callable, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence

import numpy as np

from od_qat.scoring import class_ids, metrics, workers
from od_qat.scoring.runners import Detections
from od_qat.scoring.stored_images import StoredImages


class Quality(NamedTuple):
    """How good a model is.

    Attributes:
      value: the measure, 0 to 1.
      by_column: a column of the measure's -> value; None without such objects.
      per_class: name -> value; None without objects.
      more: name -> other measures.
    """

    value: float
    by_column: Dict[str, Optional[float]]
    per_class: Dict[str, Optional[float]]
    more: Dict[str, Optional[float]]


class DetectorMeasure(object):
    """COCO's mAP.

    Attributes:
      name: of the measure.
      note: what it is, for a sentence.
      columns: the parts that it is also given for.
      images: with their datasets.records.Example.
      examples: those, without the images.
      names: label map id -> name.
    """

    name = "mAP"
    note = "mAP at overlaps .50 to .95 in percent"
    columns = ("small", "medium", "large")

    def __init__(
        self, read: Callable[[], Iterator[Any]], names: Mapping[int, str], label_map: Optional[str] = None
    ) -> None:
        """Reads the ground truth; `read` is that of StoredImages, `label_map` the file of the names."""
        self.images, self.names, self._label_map = StoredImages(read), names, label_map
        self.examples = self.images.examples

    def run(self, path: str, processes: Optional[int]) -> Dict[Any, Detections]:
        """Runs a model on all images; see scoring.detect."""
        return workers.detect(path, self.images, processes)

    def quality(self, found: Mapping[Any, Detections]) -> Quality:
        """Of a model that found this."""
        score = metrics.coco_metrics(self.examples, found, self.names)
        sizes = metrics.map_by_size(self.examples, found, self.names)
        return Quality(score.map, sizes, score.per_class, {"map50": score.map50, "map75": score.map75})

    def warnings(self, path: str, found: Mapping[Any, Detections]) -> List[str]:
        """How the class ids of a model that found this do not fit; see class_ids.misfits."""
        return class_ids.misfits(path, self._label_map, self.names, self.examples, found)

    def samples(self, found: Mapping[Any, Detections], draws: Sequence[np.ndarray]) -> np.ndarray:
        """The mAP of each draw of images, which are numbered from 0."""
        return metrics.resampled_maps(self.examples, found, self.names, draws)
