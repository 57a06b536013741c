"""What a model finds in pictures that have no ground truth: as text, JSON, CSV and drawn."""

import csv
import io
import os
import sys
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Set, Tuple

import numpy as np

from od_qat.errors import ConfigError, DataError
from od_qat.files import read_regular, write_atomically
from od_qat.model_files.description import ModelDescription
from od_qat.report import pictures

EXTENSIONS = (".jpg", ".jpeg", ".png")
_OTHER_EXTENSIONS = (".bmp", ".gif", ".tif", ".tiff", ".webp")
_COLUMNS = ("picture", "class_id", "class", "score", "ymin", "xmin", "ymax", "xmax")


class Photograph(NamedTuple):
    """A picture as the scoring's processes take it: its path, and the bytes of the file."""

    image_id: str
    encoded: bytes

    @classmethod
    def read(cls, path: str) -> "Photograph":
        """Reads one. Raises DataError."""
        try:
            return cls(path, read_regular(path))
        except OSError as error:
            raise DataError("cannot read the picture", where=path, found=error.strerror) from error


class One(NamedTuple):
    """A detection, or a class of a classifier, whose box is the picture.

    Attributes:
      class_id: label map id.
      name: of the class; its number if it has none.
      score: 0 to 1.
      box: normalised ymin, xmin, ymax, xmax.
    """

    class_id: int
    name: str
    score: float
    box: Tuple[float, ...]


class Picture(NamedTuple):
    """A picture and what was found in it, the best score first."""

    path: str
    classified: bool
    everything: Tuple[One, ...]

    def shown(self, min_score: float) -> Tuple[One, ...]:
        """Detections from a score on; of a classifier the best class."""
        if self.classified:
            return self.everything[:1]
        return tuple(one for one in self.everything if one.score >= min_score)

    def as_text(self, min_score: float) -> str:
        """A line."""
        shown = self.shown(min_score)
        texts = ["{} {:.2f}".format(one.name, one.score) for one in shown]
        return "{}: {}".format(self.path, ", ".join(texts) or "nothing")

    def as_json(self, min_score: float) -> Dict[str, Any]:
        """For json.dumps."""
        key = "classes" if self.classified else "detections"
        return {
            "picture": self.path,
            key: [dict(one._asdict(), box=list(one.box)) for one in self.shown(min_score)],
        }


def paths_of(given: Sequence[str]) -> List[str]:
    """The pictures that are named, and those in the folders that are, each once, by name.

    Raises:
      DataError: if one is not there, or a folder has none.
    """
    found: Dict[str, None] = {}
    for path in given:
        if not os.path.isdir(path):
            if not os.path.exists(path):
                raise DataError("no such picture", where=path, found="no file", fix="check the path")
            found[path] = None
            continue
        names = sorted(os.listdir(path))
        inside = [name for name in names if name.lower().endswith(EXTENSIONS)]
        others = [name for name in names if name.lower().endswith(_OTHER_EXTENSIONS)]
        if others:
            print(
                "warning: {} pictures of {} are left out, {} first; taken are {}".format(
                    len(others), path, others[0], ", ".join(EXTENSIONS)
                ),
                file=sys.stderr,
            )
        if not inside:
            raise DataError(
                "the folder has no pictures",
                where=path,
                found="{} other files and folders".format(len(names)),
                allowed=", ".join(EXTENSIONS),
            )
        found.update(dict.fromkeys(os.path.join(path, name) for name in inside))
    return list(found)


def found(description: ModelDescription, path: str, result: Any, names: Mapping[int, str]) -> Picture:
    """What a model found in a picture, with the names of the classes.

    Args:
      result: scoring.Detections, or a classifier's probabilities, float32 [classes].
    """
    if description.is_classifier:
        order = np.argsort(-result, kind="stable")
        ids = [int(index) + description.class_id_offset for index in order]
        ones = [
            One(key, names.get(key, str(key)), float(result[index]), (0.0, 0.0, 1.0, 1.0))
            for key, index in zip(ids, order)
        ]
    else:
        ones = [
            One(int(key), names.get(int(key), str(key)), float(score), tuple(float(side) for side in box))
            for box, key, score in zip(result.boxes, result.classes, result.scores)
        ]
    return Picture(path, description.is_classifier, tuple(ones))


def as_csv(of: Iterable[Picture], min_score: float) -> str:
    """One line for each detection, with a line of headers."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for picture in of:
        for one in picture.shown(min_score):
            writer.writerow((picture.path, one.class_id, one.name, one.score) + one.box)
    return stream.getvalue()


def draw(of: Iterable[Picture], folder: str, min_score: float) -> List[str]:
    """Draws each picture into a folder, as PNG in its own size; returns the paths.

    Raises:
      ConfigError: if a picture would be overwritten; nothing is drawn then.
    """
    of = list(of)
    places: List[str] = []
    taken: Set[str] = set()
    for picture in of:
        places.append(os.path.join(folder, pictures.file_name(picture.path, taken)))
    inputs = {os.path.realpath(picture.path) for picture in of}
    over = [place for place in places if os.path.realpath(place) in inputs]
    if over:
        raise ConfigError(
            "a drawing would take the place of a picture",
            where=over[0],
            found="the folder of the pictures",
            fix="give another --output_dir",
        )
    for picture, place in zip(of, places):
        boxes = [
            (one.box, one.class_id, "{} {:.2f}".format(one.name, one.score))
            for one in picture.shown(min_score)
        ]
        write_atomically(place, pictures.drawn(Photograph.read(picture.path).encoded, picture.path, boxes))
    return places
