"""Writes, reads and checks TFRecord files of tf.Example in the OD API's layout.

Boxes are normalised to the image, in the files and in what is read from them.
"""

import io
import itertools
import os
from typing import Any, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from od_qat import files
from od_qat.datasets.label_map import read_items, shorten
from od_qat.errors import DataError

# The OD API's own limit for normalised coordinates.
_MAX_NORMALISED = 1.1
# A TFRecord file adds to each record its length (8 bytes) and two checksums (4 bytes each), of the length and
# of the data.
_FRAME_BYTES = 16
_IMAGE_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"BM")
# The greatest side of a JPEG in pixels, which is more than detectors take.
MAX_SIDE = 65535
_FIX_RECORD = "convert the data again with `od-qat data`"


class Example(NamedTuple):
    """One image and its objects, as read back from a record.

    Attributes:
      image_id: unique in its record.
      encoded: the JPEG or PNG bytes.
      height: pixels.
      width: pixels.
      boxes: float32 [N, 4], normalised ymin, xmin, ymax, xmax.
      classes: int64 [N], label map ids, from 1.
      difficult: bool [N].
      is_crowd: bool [N]: a box around many objects at once.
    """

    image_id: str
    encoded: bytes
    height: int
    width: int
    boxes: np.ndarray
    classes: np.ndarray
    difficult: np.ndarray
    is_crowd: Optional[np.ndarray] = None


class EncodedExample(NamedTuple):
    """A serialised tf.Example, the id of its image, and its number of objects."""

    image_id: str
    serialized: bytes
    objects: int


class RecordWriter(object):
    """Writes a TFRecord file beside its destination; :meth:`commit` renames it.

    As a context manager, it removes the file at its end unless that was committed.
    """

    def __init__(self, path: str) -> None:
        from od_qat.compat import tf

        self.path = path
        self.count = 0
        self._ids = set()
        self._errors = (OSError, tf.errors.OpError)
        self._writer = None
        self._temporary: Optional[str] = files.make_aside(path)
        try:
            self._writer = tf.python_io.TFRecordWriter(self._temporary)
        except self._errors as error:
            self.discard()
            raise files.cannot_write(self.path, error) from error

    def __enter__(self) -> "RecordWriter":
        return self

    def __exit__(self, *exc_info: Any) -> None:
        self.discard()

    def write(self, example: EncodedExample) -> None:
        """Appends one example.

        Raises:
          DataError: if an example of that image id was written before.
          OdQatError: if the disk is full.
        """
        if example.image_id in self._ids:
            raise DataError(
                "two images have the same id",
                where=self.path,
                found=repr(example.image_id),
                fix="give each image a name of its own and list it once",
            )
        self._ids.add(example.image_id)
        try:
            self._writer.write(example.serialized)
        except self._errors as error:
            raise files.cannot_write(self.path, error) from error
        self.count += 1

    def close(self) -> None:
        """Writes everything to the disk, still under the temporary name.

        Raises:
          OdQatError: if the disk is full.
        """
        if self._writer is None:
            return
        writer, self._writer = self._writer, None
        try:
            writer.close()
            with open(self._temporary, "rb") as stream:
                os.fsync(stream.fileno())
        except self._errors as error:
            raise files.cannot_write(self.path, error) from error

    def commit(self) -> None:
        """Closes the file and renames it.

        Raises:
          OdQatError: if the disk is full.
        """
        self.close()
        files.put_in_place(self._temporary, self.path)
        self._temporary = None

    def discard(self) -> None:
        """Removes the file if it has not been committed."""
        if self._writer is not None:
            writer, self._writer = self._writer, None
            try:
                writer.close()
            except self._errors:  # (the disk is full; the file is removed anyway)
                pass
        if self._temporary and os.path.exists(self._temporary):
            os.unlink(self._temporary)
        self._temporary = None


def is_pattern(path: str) -> bool:
    """Whether a path may stand for several files, as in the OD API's configs: `val.record-?????-of-00010`."""
    return any(sign in path for sign in "*?[")


def _read_serialized(path: str) -> Iterator[bytes]:
    """Yields the records of a TFRecord file, or of all files that match a pattern, sorted by path.

    Raises:
      DataError: if a file is missing, truncated or not a TFRecord file, with its path.
    """
    from od_qat import compat

    compat.quiet_logging()  # (tf_record_iterator is deprecated, but no other reader works without a session)
    tf = compat.tf
    if is_pattern(path) and not tf.gfile.Exists(path) and tf.gfile.IsDirectory(os.path.dirname(path) or "."):
        shards = sorted(tf.gfile.Glob(path))
        if shards:
            for shard in shards:
                for serialized in _read_serialized(shard):
                    yield serialized
            return
    if not tf.gfile.Exists(path) or tf.gfile.IsDirectory(path):
        raise DataError(
            "cannot find the record file",
            where=path,
            found="a folder" if tf.gfile.Exists(path) else "nothing",
            fix="give the path of a .record file, or make one with `od-qat data`",
        )

    if os.path.exists(path) and not os.path.isfile(path):
        raise DataError(
            "cannot read the record file",
            where=path,
            found="a FIFO or a device",
            allowed="a file",
            fix="give the path of a .record file",
        )

    def damaged():
        return DataError(
            "the record file is truncated or not a TFRecord file",
            where=path,
            found="damage after {} whole examples".format(count),
            fix="copy the file again or " + _FIX_RECORD,
        )

    count = size = 0
    try:
        for serialized in tf.python_io.tf_record_iterator(path):
            yield serialized
            count += 1
            size += _FRAME_BYTES + len(serialized)
        # If a file ends inside a record's header, TensorFlow reads it as if it ended before that record.
        if size != tf.gfile.Stat(path).length:
            raise damaged()
    except tf.errors.DataLossError as error:
        raise damaged() from error
    except tf.errors.OpError as error:
        raise DataError(
            "cannot read the record file",
            where=path,
            found=shorten(" ".join(str(error).split())),
            fix=_FIX_RECORD,
        ) from error


class _Features(object):
    """The features of one tf.Example, with the checks that both readers need."""

    def __init__(self, serialized: bytes, path: str, number: int) -> None:
        from google.protobuf.message import DecodeError

        from od_qat.compat import tf

        self.where = "{}, example {}".format(path, number)
        example = tf.train.Example()
        try:
            example.ParseFromString(serialized)
        except DecodeError as error:
            raise DataError("a record is not a tf.Example", where=self.where, fix=_FIX_RECORD) from error
        self._feature = example.features.feature

    def values(self, key: str, kind: str) -> Sequence[Any]:
        """The list of a feature, empty if there is none; `kind` is 'bytes', 'float' or 'int64'."""
        if key not in self._feature:
            return ()
        feature = self._feature[key]
        found = feature.WhichOneof("kind")
        if found is None:
            return ()
        if found != kind + "_list":
            raise DataError(
                "a feature has another type",
                where=self.where,
                found="{} as {}".format(key, found),
                allowed=kind + "_list",
                fix=_FIX_RECORD,
            )
        return getattr(feature, found).value

    def text(self, key: str) -> str:
        values = self.values(key, "bytes")
        return values[0].decode("utf-8", "replace") if values else ""

    def encoded(self) -> bytes:
        """The bytes of the image, of which only the first are checked."""
        values = self.values("image/encoded", "bytes")
        if not values or not values[0]:
            raise DataError(
                "an example has no image", where=self.where, found="no image/encoded", fix=_FIX_RECORD
            )
        encoded = values[0]
        if not encoded.startswith(_IMAGE_SIGNATURES) and self.text("image/format") != "raw":
            raise DataError(
                "an example's image is not an image file",
                where=self.where,
                found="image/encoded starting with {!r}".format(encoded[:8]),
                allowed="the bytes of a JPEG or PNG file",
                fix=_FIX_RECORD,
            )
        return encoded

    def size(self) -> Optional[Tuple[int, int]]:
        """Height and width in pixels as the record states them; None if it does not."""
        height, width = self.values("image/height", "int64"), self.values("image/width", "int64")
        if not height or not width:
            return None
        if not (1 <= height[0] <= MAX_SIDE and 1 <= width[0] <= MAX_SIDE):
            raise DataError(
                "an example states a size that no image has",
                where=self.where,
                found="image/height {}, image/width {}".format(height[0], width[0]),
                allowed="1 to {:,} pixels".format(MAX_SIDE),
                fix=_FIX_RECORD,
            )
        return int(height[0]), int(width[0])

    def boxes(self) -> np.ndarray:
        """float32 [N, 4], normalised ymin, xmin, ymax, xmax."""
        sides = [
            self.values("image/object/bbox/" + side, "float") for side in ("ymin", "xmin", "ymax", "xmax")
        ]
        if len({len(side) for side in sides}) != 1:
            raise DataError(
                "an example's boxes are incomplete",
                where=self.where,
                found="{} ymin, {} xmin, {} ymax, {} xmax".format(*[len(side) for side in sides]),
                fix=_FIX_RECORD,
            )
        boxes = np.array(sides, np.float32).T.reshape(-1, 4)
        with np.errstate(invalid="ignore"):  # (a NaN is invalid too, since it compares as false)
            valid = (boxes >= 1 - _MAX_NORMALISED).all(axis=1) & (boxes <= _MAX_NORMALISED).all(axis=1)
        valid &= (boxes[:, 0] <= boxes[:, 2]) & (boxes[:, 1] <= boxes[:, 3])
        if not valid.all():
            number = int(np.argmin(valid))
            raise DataError(
                "an example has an invalid box",
                where=self.where,
                found="object {}: ymin {:g}, xmin {:g}, ymax {:g}, xmax {:g}".format(
                    number + 1, *boxes[number]
                ),
                allowed="normalised coordinates, from 0 to 1, minimum before maximum",
                fix=_FIX_RECORD,
            )
        return boxes

    def per_object(self, key: str, kind: str, count: int) -> Sequence[Any]:
        """The values of a feature that has one for each object, or none at all."""
        values = self.values(key, kind)
        if len(values) not in (0, count):
            raise DataError(
                "an example's features differ in length",
                where=self.where,
                found="{} boxes, {} {}".format(count, len(values), key),
                fix=_FIX_RECORD,
            )
        return values


def _flags(values: Sequence[int], count: int) -> np.ndarray:
    return np.array(values, np.int64) != 0 if len(values) else np.zeros(count, bool)


def read_examples(path: str) -> Iterator[Example]:
    """Reads the examples of a record, in the order of the file.

    An example without `image/source_id` gets its file name as its id or, without that, its number.

    Raises:
      DataError: while iterating, with file and example: if the file is missing, truncated or not a TFRecord
        file, if an example is not the OD API's tf.Example, or if two images have the same id.
    """
    ids = set()
    for number, serialized in enumerate(_read_serialized(path), start=1):
        features = _Features(serialized, path, number)
        encoded = features.encoded()
        boxes = features.boxes()
        classes = features.per_object("image/object/class/label", "int64", len(boxes))
        if len(boxes) and not len(classes):
            raise DataError(
                "an example has boxes without class ids",
                where=features.where,
                found="no image/object/class/label",
                fix=_FIX_RECORD,
            )
        image_id = features.text("image/source_id") or features.text("image/filename") or str(number)
        if image_id in ids:
            raise DataError(
                "two examples have the same image id",
                where=features.where,
                found=repr(image_id),
                allowed="an image/source_id of its own for each image",
                fix=_FIX_RECORD,
            )
        ids.add(image_id)
        size = features.size() or _size_of(encoded, features.where)
        yield Example(
            image_id=image_id,
            encoded=encoded,
            height=size[0],
            width=size[1],
            boxes=boxes,
            classes=np.array(classes, np.int64),
            difficult=_flags(features.per_object("image/object/difficult", "int64", len(boxes)), len(boxes)),
            is_crowd=_flags(features.per_object("image/object/is_crowd", "int64", len(boxes)), len(boxes)),
        )


def _size_of(encoded: bytes, where: str) -> Tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(io.BytesIO(encoded)) as image:
            return image.size[1], image.size[0]
    except Exception as error:  # (Pillow's decoders raise many kinds, see sources.read_image)
        raise DataError("an example's image cannot be decoded", where=where, fix=_FIX_RECORD) from error


def check_records(record_path: str, label_map_path: str, max_images: Optional[int] = None) -> int:
    """Reads a record through and compares it with the label map, before a graph is built.

    Args:
      record_path: a TFRecord file.
      label_map_path: the label map that training or scoring will use.
      max_images: number of examples to read, from the first; by default all.

    Returns:
      the number of examples that were read.

    Raises:
      DataError: with file and example: if the record is missing, truncated, empty or not the OD API's
        tf.Example, if a class id is not in the label map, or if a class text is not that id's name.
    """
    names: Dict[int, Tuple[str, ...]] = {}
    ids: Dict[str, int] = {}
    for item in read_items(label_map_path):
        names[item.id] = (item.name, item.display_name)
        ids[item.name] = ids[item.display_name] = item.id
    fix = "use the label map that was made with this record, or convert the data again"

    count = 0
    examples = itertools.islice(_read_serialized(record_path), max_images)
    for number, serialized in enumerate(examples, start=1):
        features = _Features(serialized, record_path, number)
        features.encoded()
        features.size()
        objects = len(features.boxes())
        labels = features.per_object("image/object/class/label", "int64", objects)
        texts = features.per_object("image/object/class/text", "bytes", objects)
        if objects and not len(labels) and not len(texts):
            raise DataError("an example has boxes without classes", where=features.where, fix=_FIX_RECORD)
        for label in labels:
            if label not in names:
                raise DataError(
                    "a class id of the record is not in the label map",
                    where=features.where,
                    found=str(label),
                    allowed=shorten(", ".join(str(known) for known in names)) + " of " + label_map_path,
                    fix=fix,
                )
        # The OD API uses the text if there is one, so a text that disagrees with the id trains another class.
        for index, text in enumerate(texts):
            name = text.decode("utf-8", "replace")
            if name not in ids or (len(labels) and ids[name] != labels[index]):
                raise DataError(
                    "a class of the record has another name in the label map",
                    where=features.where,
                    found="{!r}{}".format(name, " for id {}".format(labels[index]) if len(labels) else ""),
                    allowed=shorten(repr(names[labels[index]][1]) if len(labels) else ", ".join(ids))
                    + " of "
                    + label_map_path,
                    fix=fix,
                )
        count = number
    if not count:
        raise DataError("the record file is empty", where=record_path, found="no examples", fix=_FIX_RECORD)
    return count
