"""Reads images with labels: slim's TFRecords, or a folder with one sub-folder for each class.

The records are those of slim's converters (download_and_convert_data.py): `image/encoded` and
`image/class/label`, with a `labels.txt` beside them.
"""

import io
import os
import sys
from typing import Callable, Iterable, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from tqdm import tqdm

from od_qat.classifiers.networks import Network
from od_qat.compat import tf
from od_qat.errors import ConfigError, DataError

LABELS_FILE = "labels.txt"
_IMAGES = (".jpg", ".jpeg", ".png")
# Pillow's names of what TensorFlow's op decodes.
_FORMATS = ("JPEG", "MPO", "PNG", "GIF")
_ENCODED, _LABEL = "image/encoded", "image/class/label"
# As slim's scripts: threads that preprocess, and images to draw the next from.
_THREADS = 4
_SHUFFLED = 4096


class Classes(NamedTuple):
    """What labels mean.

    Attributes:
      names: of the classes, in the order of a network's outputs; empty if nothing says them.
      labels_offset: a label of the records, less this, is the place of a network's output.
    """

    names: Tuple[str, ...]
    labels_offset: int = 0


class Source(NamedTuple):
    """Images with labels.

    Attributes:
      where: how messages call it.
      records: files of TFRecords; empty for a folder.
      images: (path, label) of each image of a folder; empty for records.
      count: number of images.
      classes: what the labels mean.
    """

    where: str
    records: Tuple[str, ...]
    images: Tuple[Tuple[str, int], ...]
    count: int
    classes: Classes


def open_source(described, num_classes: int, where: str, names: Sequence[str] = ()) -> Source:
    """Looks through the images of an input block.

    Args:
      described: the message Input.
      num_classes: of the network.
      where: the name of the block, for messages.
      names: of the classes that the network was trained on, of which a folder may lack some; by default a
        folder has all classes.

    Raises:
      ConfigError: if the block names neither records nor a folder, or both.
      DataError: if a label is not below num_classes, if a class has no images, or if the records have another
        layout.
    """
    if bool(described.records) == bool(described.folder):
        raise ConfigError(
            "an input is either records or a folder",
            where=where,
            found="both" if described.folder else "neither",
            allowed="records: FILE, slim's TFRecords; or folder: DIR, with one sub-folder for each class",
        )
    if described.folder:
        if described.labels_offset:
            raise ConfigError(
                "the labels of a folder are those of its sub-folders",
                where=where + ".labels_offset",
                found=str(described.labels_offset),
                fix="remove it; it is for records",
            )
        return _of_folder(described.folder, num_classes, where + ".folder", names)
    return _of_records(described.records, described.labels_offset, num_classes, where + ".records", names)


def open_path(path: str, num_classes: int, labels_offset: int, names: Sequence[str]) -> Source:
    """The same for a folder, or for records by their path or pattern; without names any folder is taken."""
    if tf.gfile.IsDirectory(path):
        return _of_folder(path, num_classes if names else None, "the folder of images", names)
    return _of_records([path], labels_offset, num_classes, "the records or folder of images", names)


def _of_folder(folder: str, num_classes: Optional[int], where: str, classes: Sequence[str]) -> Source:
    if not tf.gfile.IsDirectory(folder):
        raise DataError("no such folder", where=where, found=folder, fix="correct the path")
    names = sorted(
        name.rstrip("/")
        for name in tf.gfile.ListDirectory(folder)
        if not name.startswith(".") and tf.gfile.IsDirectory(os.path.join(folder, name))
    )
    if classes:
        _require_known(folder, names, classes)
    elif not names or (num_classes is not None and len(names) > num_classes):
        raise DataError(
            "the number of classes does not fit the network",
            where=folder,
            found="{} sub-folders".format(len(names)),
            allowed="one for each class"
            + (", at most network.num_classes ({})".format(num_classes) if num_classes else ""),
            fix="set network.num_classes to the number of sub-folders",
        )
    elif num_classes not in (None, len(names)):
        print(
            "warning: {} has {} sub-folders for {} classes (network.num_classes)".format(
                folder, len(names), num_classes
            ),
            file=sys.stderr,
        )
    classes = tuple(classes) or tuple(names)
    images: List[Tuple[str, int]] = []
    left_out: List[str] = []
    for name in names:
        label = classes.index(name)
        files = sorted(one for one in tf.gfile.ListDirectory(os.path.join(folder, name)))
        right = [one for one in files if one.lower().endswith(_IMAGES)]
        left_out += [os.path.join(name, one) for one in files if one not in right]
        if not right:
            raise DataError(
                "a class has no images",
                where=os.path.join(folder, name),
                found="{} other files".format(len(files)) if files else "an empty folder",
                allowed=", ".join(_IMAGES),
                fix="add images, or remove the folder",
            )
        images += [(os.path.join(folder, name, one), label) for one in right]
    if left_out:
        print(
            "warning: {}: {} left out, since these are no images ({}): {}".format(
                folder,
                "1 entry is" if len(left_out) == 1 else "{} entries are".format(len(left_out)),
                ", ".join(_IMAGES),
                ", ".join(left_out[:3]),
            ),
            file=sys.stderr,
        )
    return Source(folder, (), tuple(images), len(images), Classes(classes))


def _require_known(folder: str, names: Sequence[str], classes: Sequence[str]) -> None:
    """Raises DataError for a sub-folder that is no class, and warns of classes without one."""
    unknown = [name for name in names if name not in classes]
    if unknown or not names:
        raise DataError(
            "the folder's classes are not those of the network",
            where=folder,
            found=", ".join(unknown[:8]) or "no sub-folder",
            allowed=", ".join(classes[:8]),
            fix="give each class a sub-folder with the name that training had",
        )
    absent = [name for name in classes if name not in names]
    if absent:
        print(
            "warning: {} has no images of {} of {} classes: {}".format(
                folder, len(absent), len(classes), ", ".join(absent[:8])
            ),
            file=sys.stderr,
        )


def _of_records(
    patterns: Iterable[str], labels_offset: int, num_classes: int, where: str, names: Sequence[str]
) -> Source:
    files: List[str] = []
    for pattern in patterns:
        # (A path may have brackets, which are a pattern too.)
        found = [pattern] if tf.gfile.Exists(pattern) else sorted(tf.gfile.Glob(pattern))
        if not found:
            raise DataError("no such records", where=where, found=pattern, fix="correct the path")
        files += found
    count = 0
    for path in files:
        for number, content in enumerate(_contents(path)):
            label = _label_of(content, path, number) - labels_offset
            if not 0 <= label < num_classes:
                raise DataError(
                    "a label is beyond the network's classes",
                    where="{}, record {}".format(path, number),
                    found="label {}{}".format(label, " (less labels_offset)" if labels_offset else ""),
                    allowed="0 to {} (network.num_classes is {})".format(num_classes - 1, num_classes),
                    fix="correct network.num_classes, or set labels_offset if the records' labels begin at 1",
                )
            count += 1
    if not count:
        raise DataError("no images", where=", ".join(files[:3]), found="empty records")
    classes, labels_path = classes_beside(files[0], labels_offset), _labels_beside(files[0])
    if len(classes.names) > num_classes:
        raise DataError(
            "the list of labels is longer than the network's classes",
            where=labels_path,
            found="{} labels".format(len(classes.names)),
            allowed="at most {} (network.num_classes)".format(num_classes),
            fix="correct the list, or network.num_classes",
        )
    if names and classes.names and tuple(names) != classes.names:
        raise DataError(
            "the records' classes are not those of the network",
            where=labels_path,
            found=", ".join(classes.names[:8]),
            allowed=", ".join(names[:8]),
            fix="make the records with the labels that training had",
        )
    classes = classes._replace(names=classes.names or tuple(names))
    return Source(", ".join(files[:3]), tuple(files), (), count, classes)


def _contents(path: str):
    try:
        records = tf.python_io.tf_record_iterator(path)
        quiet = not sys.stderr.isatty()
        yield from tqdm(records, os.path.basename(path), unit="image", leave=False, disable=quiet)
    except tf.errors.OpError as error:
        raise DataError(
            "cannot read the records",
            where=path,
            found=error.message.splitlines()[0],
            allowed="TFRecords of slim's converters",
        ) from error


def _label_of(content: bytes, path: str, number: int) -> int:
    """The label of a record.

    Raises:
      DataError: if it is not of slim's layout.
    """
    example = tf.train.Example()
    try:
        example.ParseFromString(content)
    except Exception as error:  # noqa: BLE001  (protobuf's DecodeError, of any of its versions)
        raise DataError(
            "a record is no tf.Example", where="{}, record {}".format(path, number), found=str(error)
        ) from error
    features = example.features.feature
    labels = features[_LABEL].int64_list.value if _LABEL in features else ()
    encoded = features[_ENCODED].bytes_list.value if _ENCODED in features else ()
    if len(labels) == len(encoded) == 1:
        return int(labels[0])
    detection = any(name.startswith("image/object/") for name in features)
    raise DataError(
        "the records have another layout than slim's",
        where="{}, record {}".format(path, number),
        found="{}{}".format(
            ", ".join(sorted(features)[:6]) or "no features",
            "; these are records of a detector" if detection else "",
        ),
        allowed="{} and {}, one of each".format(_ENCODED, _LABEL),
        fix="make them as slim's converters do, or give a folder with one sub-folder for each class",
    )


def _labels_beside(path: str) -> str:
    return os.path.join(os.path.dirname(path), LABELS_FILE)


def classes_beside(path: str, labels_offset: int) -> Classes:
    """The classes of records, with their names from slim's labels.txt (`0:name`) if there is one."""
    labels = _labels_beside(path)
    if not tf.gfile.Exists(labels):
        return Classes((), labels_offset)
    try:
        with tf.gfile.GFile(labels) as stream:
            lines = [line for line in stream.read().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DataError(
            "the list of labels is damaged", where=labels, found="not UTF-8 text", fix="save it as UTF-8"
        ) from error
    found = {}
    for line in lines:
        number, colon, name = line.partition(":")
        if not colon or not number.strip().isdigit():
            raise DataError(
                "the list of labels is damaged",
                where=labels,
                found=repr(line),
                allowed="lines of a label and its name, such as 0:daisy",
            )
        found[int(number) - labels_offset] = name
    count = max(found) + 1 if found else 0
    return Classes(tuple(found.get(number, str(number)) for number in range(count)), labels_offset)


def batches(
    source: Source,
    network: Network,
    batch_size: int,
    is_training: bool,
    in_order: bool = False,
    every: int = 1,
) -> Callable:
    """Builds the input of a network.

    Args:
      source: the images.
      network: the network, whose preprocessing is applied.
      batch_size: images at a time.
      is_training: whether to shuffle, repeat for ever and distort the images.
      in_order: whether one thread does it, so that the graph's seed decides everything.
      every: take the first of so many images, and leave the others out.

    Returns:
      a function without arguments that returns the next images, float32 [batch, height, width, channels], and
      labels, int64 [batch]. The graph's table initializer starts it.
    """
    network.require_preprocessing(is_training)
    data = _encoded(source, is_training, every)
    data = data.map(
        lambda encoded, label: (
            network.preprocess(_decode(encoded, network.channels), is_training),
            label - source.classes.labels_offset,
        ),
        num_parallel_calls=1 if in_order else _THREADS,
    )
    iterator = tf.data.make_initializable_iterator(
        data.batch(batch_size, drop_remainder=is_training).prefetch(2)
    )
    tf.add_to_collection(tf.GraphKeys.TABLE_INITIALIZERS, iterator.initializer)
    return iterator.get_next


def _encoded(source: Source, is_training: bool, every: int = 1):
    """A tf.data.Dataset of encoded images and their labels; to train shuffled, and for ever."""
    if source.images:
        paths, labels = zip(*source.images)
        data = tf.data.Dataset.from_tensor_slices((list(paths), tf.constant(labels, tf.int64))).shard(
            every, 0
        )
        # (They stand class by class, so that nothing less than all of them would mix the classes.)
        data = data.shuffle(source.count).repeat() if is_training else data
        return data.map(lambda path, label: (tf.read_file(path), label))
    features = {
        _ENCODED: tf.FixedLenFeature([], tf.string),
        _LABEL: tf.FixedLenFeature([], tf.int64),
    }

    def parse(content):
        found = tf.parse_single_example(content, features)
        return found[_ENCODED], found[_LABEL]

    data = tf.data.TFRecordDataset(list(source.records)).shard(every, 0).map(parse)
    return data.shuffle(min(source.count, _SHUFFLED)).repeat() if is_training else data


def _decode(encoded, channels: int):
    """uint8 [height, width, channels]. (The op reads PNG and GIF too.)"""
    return tf.image.decode_jpeg(encoded, channels)


def each(source: Source) -> Iterator[Tuple[str, bytes, int]]:
    """Each image in order: its file or its number, the encoded bytes, its label."""
    for path, label in source.images:
        with tf.gfile.GFile(path, "rb") as stream:
            yield path, stream.read(), label
    for path in source.records:
        for number, content in enumerate(tf.python_io.tf_record_iterator(path)):
            features = tf.train.Example.FromString(content).features.feature
            label = features[_LABEL].int64_list.value[0] - source.classes.labels_offset
            yield "{}, record {}".format(path, number), features[_ENCODED].bytes_list.value[0], label


def require_all_classes(source: Source, count: int, where: str) -> None:
    """Raises DataError for a folder that lacks classes, where no names say which."""
    if source.images and len(source.classes.names) != count:
        raise DataError(
            "nothing says which classes the sub-folders are",
            where=where,
            found="{} sub-folders".format(len(source.classes.names)),
            allowed="one for each of {} classes".format(count),
            fix="make a sub-folder for each class",
        )


def spread(source: Source, count: Optional[int]) -> Source:
    """At most so many images: of a folder, which has them class by class, at equal distances."""
    if count is None or count >= source.count or not source.images:
        return source
    places = [place * source.count // count for place in range(count)]
    return source._replace(images=tuple(source.images[place] for place in places), count=count)


def first_unreadable(source: Source) -> Optional[str]:
    """The first image that cannot be decoded, by its file or its number; None if all can."""
    from PIL import Image

    for name, encoded, _ in each(source):
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                image.load()
                if image.format not in _FORMATS:
                    return name
        except Exception:  # noqa: BLE001  (Pillow raises many kinds)
            return name
    return None
