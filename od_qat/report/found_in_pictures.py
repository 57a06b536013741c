"""What a model finds in pictures that have no ground truth: as text, JSON, CSV and drawn."""

import csv
import io
import os
import sys
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Sequence, Set, Tuple

import numpy as np

from od_qat.datasets.label_map import shorten
from od_qat.errors import ConfigError, DataError
from od_qat.files import read_regular, write_atomically
from od_qat.model_files.description import ModelDescription
from od_qat.report import pictures

EXTENSIONS = (".jpg", ".jpeg", ".png")
_OTHER_EXTENSIONS = (".bmp", ".gif", ".tif", ".tiff", ".webp")
# EXIF's tag.
_ORIENTATION = 0x0112
_COLUMNS = ("picture", "class_id", "class", "score", "ymin", "xmin", "ymax", "xmax")


class Photograph(NamedTuple):
    """A picture as the scoring's processes take it: its path, and the bytes of the file."""

    image_id: str
    encoded: bytes

    @classmethod
    def read(cls, path: str) -> "Photograph":
        """Reads one, and turns it upright as its orientation tag says. Raises DataError."""
        try:
            encoded = read_regular(path)
        except OSError as error:
            raise DataError("cannot read the picture", where=path, found=error.strerror) from error
        return cls(path, _upright(encoded))


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
    """A picture and what was found in it, the best score first; of a classifier the best class."""

    path: str
    classified: bool
    found: Tuple[One, ...]

    def as_text(self) -> str:
        """A line."""
        texts = ["{} {:.2f}".format(one.name, one.score) for one in self.found]
        return "{}: {}".format(_printable(self.path), ", ".join(texts) or "nothing")

    def as_json(self) -> Dict[str, Any]:
        """For json.dumps."""
        key = "classes" if self.classified else "detections"
        return {"picture": self.path, key: [dict(one._asdict(), box=list(one.box)) for one in self.found]}


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
        # (macOS puts ._a.jpg beside a.jpg, which is no picture.)
        names = sorted(name for name in os.listdir(path) if not name.startswith("."))
        inside = [name for name in names if name.lower().endswith(EXTENSIONS)]
        others = [name for name in names if name.lower().endswith(_OTHER_EXTENSIONS)]
        if others:
            print(
                "warning: {} pictures of {} are left out, {} first; taken are {}".format(
                    len(others), path, others[0], ", ".join(EXTENSIONS)
                ),
                file=sys.stderr,
            )
        folders = [name for name in names if os.path.isdir(os.path.join(path, name))]
        if inside and folders:
            print(
                "warning: pictures in folders of {} are left out: {}".format(
                    path, shorten(", ".join(folders))
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


def found(
    description: ModelDescription, path: str, result: Any, names: Mapping[int, str], min_score: float
) -> Picture:
    """What a model found in a picture, with the names of the classes.

    Args:
      result: scoring.Detections, or a classifier's probabilities, float32 [classes].
      min_score: detections that score less are left out.
    """
    if description.is_classifier:
        # (Of equal scores the first counts.)
        best = int(np.argmax(result))
        key = best + description.class_id_offset
        ones = [One(key, names.get(key, str(key)), float(result[best]), (0.0, 0.0, 1.0, 1.0))]
    else:
        ones = [
            One(int(key), names.get(int(key), str(key)), float(score), tuple(float(side) for side in box))
            for box, key, score in zip(result.boxes, result.classes, result.scores)
            if score >= min_score
        ]
    return Picture(path, description.is_classifier, tuple(ones))


def as_csv(of: Iterable[Picture]) -> str:
    """One line for each detection, with a line of headers."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for picture in of:
        for one in picture.found:
            writer.writerow((_printable(picture.path), one.class_id, one.name, one.score) + one.box)
    return stream.getvalue()


def places_of(paths: Sequence[str], folder: str) -> Dict[str, str]:
    """Path of a picture -> where it is drawn.

    Raises:
      ConfigError: if a picture would be overwritten.
    """
    taken: Set[str] = set()
    places = {path: os.path.join(folder, pictures.file_name(path, taken)) for path in paths}
    inputs = {os.path.realpath(path) for path in paths}
    over = [place for place in places.values() if os.path.realpath(place) in inputs]
    if over:
        raise ConfigError(
            "a drawing would take the place of a picture",
            where=over[0],
            found="the folder of the pictures",
            fix="give another --output_dir",
        )
    return places


def draw(picture: Picture, place: str) -> None:
    """Draws a picture, as PNG in its own size. Raises OdQatError."""
    boxes = [(one.box, one.class_id, "{} {:.2f}".format(one.name, one.score)) for one in picture.found]
    write_atomically(place, pictures.drawn(Photograph.read(picture.path).encoded, picture.path, boxes))


def _upright(encoded: bytes) -> bytes:
    """The picture without an orientation tag, which cameras set in place of turning the pixels."""
    from PIL import Image, ImageOps

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.getexif().get(_ORIENTATION, 1) == 1:
                return encoded
            stream = io.BytesIO()
            ImageOps.exif_transpose(image).save(stream, format="PNG", compress_level=1)
            return stream.getvalue()
    except Exception:  # (which kind depends on the damage; whoever decodes the picture says that it has one)
        return encoded


def _printable(path: str) -> str:
    """A path whose name may not be UTF-8, as text that can be written."""
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
