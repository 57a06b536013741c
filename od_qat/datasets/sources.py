"""From an annotated image to an example, and from examples to a data set.

Every kind of data (`builtin`, `voc`, `coco`) goes through here, so the same things are refused everywhere.
"""

import hashlib
import io
import math
import os
import re
import sys
from typing import Any, Dict, Iterable, NamedTuple, Optional, Sequence, Tuple

from od_qat.datasets.info import DATASET_FILE, DatasetInfo
from od_qat.datasets.label_map import class_ids, shorten, write_label_map
from od_qat.datasets.records import EncodedExample, RecordWriter
from od_qat.errors import DataError

# VOC counts pixels from 1 and some tools write a last pixel of `width`, others of `width + 1`, so a box
# may overshoot the image by one pixel and is clipped; beyond that the box belongs to another image or size.
_OVERSHOOT_PIXELS = 1.0
# (MPO: a JPEG with more pictures behind it, as telephones make; TensorFlow reads the first, as Pillow does.)
_IMAGE_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_FIX_OBJECT = "correct the annotation, or leave such objects out with --skip-invalid"


class SourceObject(NamedTuple):
    """One object as annotated: edges in pixels of the image, not yet checked."""

    class_name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool = False
    truncated: bool = False
    is_crowd: bool = False
    label: str = ""


class SourceImage(NamedTuple):
    """One image file with its annotation.

    Attributes:
      image_id: unique in the data set.
      path: of the image file.
      objects: the annotated objects.
      annotation: the file that the objects come from, for messages.
      stated_size: (width, height) of the image that was annotated; None for the file's own.
      skipped: objects that were left out already when the annotation was read.
    """

    image_id: str
    path: str
    objects: Sequence[SourceObject]
    annotation: str
    stated_size: Optional[Tuple[int, int]] = None
    skipped: int = 0


class EncodedImage(NamedTuple):
    """An image file's bytes, its format ('jpeg' or 'png') and its size in pixels."""

    encoded: bytes
    format: str
    width: int
    height: int


def progress_bar(items: Iterable[Any], title: str, total: Optional[int], progress: bool) -> Iterable[Any]:
    """`items` with a progress bar on stderr, when that is a terminal."""
    from tqdm import tqdm

    # `disable=None` is tqdm's "only on a terminal".
    return tqdm(
        items, desc=title, total=total, unit="image", file=sys.stderr, disable=None if progress else True
    )


def read_image(path: str) -> EncodedImage:
    """Reads an image file and decodes it once, to be sure that training can.

    Raises:
      DataError: naming the file, when it is missing, damaged, or neither JPEG nor PNG.
    """
    from PIL import Image

    try:
        with open(path, "rb") as stream:
            encoded = stream.read()
    except OSError as error:
        raise DataError(
            "cannot read the image",
            where=path,
            found=error.strerror,
            fix="add the file or take it off the list",
        ) from error
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image_format, (width, height) = image.format, image.size
            if image_format in _IMAGE_FORMATS:
                image.load()
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and a few of their own.
    except Exception as error:
        raise DataError(
            "the image cannot be decoded",
            where=path,
            found=_image_problem(error),
            allowed="JPEG, PNG",
            fix="replace the file or take it off the list",
        ) from error
    if image_format not in _IMAGE_FORMATS:
        raise DataError(
            "the image has a format that training cannot decode",
            where=path,
            found=str(image_format),
            allowed="JPEG, PNG",
            fix="save it as JPEG or PNG",
        )
    return EncodedImage(encoded, _IMAGE_FORMATS[image_format], width, height)


def _image_problem(error: Exception) -> str:
    """What Pillow says, on one line, without the address of its stream."""
    text = re.sub(r"<_io\.\w+ object at \w+>", "", str(error))
    return shorten(" ".join(text.split())) or type(error).__name__


def _checked(item: SourceObject, size: Tuple[int, int], ids: Dict[str, int], where: str) -> SourceObject:
    """The object with its box clipped to an image of that width and height.

    Raises:
      DataError: when class or box are not valid.
    """
    if item.class_name not in ids:
        raise DataError(
            "an object has no known class",
            where=where,
            found=repr(item.class_name),
            allowed=shorten(", ".join(ids)),
            fix=_FIX_OBJECT,
        )
    box = (item.xmin, item.ymin, item.xmax, item.ymax)
    found = "{} at xmin {:g}, ymin {:g}, xmax {:g}, ymax {:g}".format(item.class_name, *box)
    if not all(math.isfinite(value) for value in box):
        raise DataError("an object's box is not made of numbers", where=where, found=found, fix=_FIX_OBJECT)
    if item.xmax <= item.xmin or item.ymax <= item.ymin:
        raise DataError(
            "an object's box is empty",
            where=where,
            found=found,
            allowed="xmin < xmax, ymin < ymax",
            fix=_FIX_OBJECT,
        )
    slack, (width, height) = _OVERSHOOT_PIXELS, size
    clipped = (
        min(max(item.xmin, 0.0), width),
        min(max(item.ymin, 0.0), height),
        min(max(item.xmax, 0.0), width),
        min(max(item.ymax, 0.0), height),
    )
    outside = min(item.xmin, item.ymin) < -slack
    outside = outside or item.xmax > width + slack or item.ymax > height + slack
    if outside or clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        raise DataError(
            "an object's box lies outside the image",
            where=where,
            found=found,
            allowed="the image's {}x{} pixels".format(width, height),
            fix=_FIX_OBJECT,
        )
    return item._replace(xmin=clipped[0], ymin=clipped[1], xmax=clipped[2], ymax=clipped[3])


def encode_example(
    image_id: str,
    filename: str,
    image: EncodedImage,
    objects: Sequence[SourceObject],
    ids: Dict[str, int],
) -> EncodedExample:
    """A tf.Example in the OD API's layout; the same arguments always give the same bytes.

    Args:
      image_id: unique in the data set; the OD API's evaluators tell images apart by it.
      filename: the image's file name.
      image: the image.
      objects: valid objects, edges in pixels.
      ids: label map ids by class name.
    """
    from od_qat.compat import tf

    def integers(values):
        return tf.train.Feature(int64_list=tf.train.Int64List(value=[int(value) for value in values]))

    def floats(values):
        return tf.train.Feature(float_list=tf.train.FloatList(value=list(values)))

    def texts(values):
        encoded = [value if isinstance(value, bytes) else value.encode("utf-8") for value in values]
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=encoded))

    width, height = float(image.width), float(image.height)
    feature = {
        "image/encoded": texts([image.encoded]),
        "image/format": texts([image.format]),
        "image/filename": texts([filename]),
        "image/source_id": texts([image_id]),
        "image/key/sha256": texts([hashlib.sha256(image.encoded).hexdigest()]),
        "image/height": integers([image.height]),
        "image/width": integers([image.width]),
        "image/object/bbox/xmin": floats(item.xmin / width for item in objects),
        "image/object/bbox/xmax": floats(item.xmax / width for item in objects),
        "image/object/bbox/ymin": floats(item.ymin / height for item in objects),
        "image/object/bbox/ymax": floats(item.ymax / height for item in objects),
        "image/object/class/text": texts([item.class_name for item in objects]),
        "image/object/class/label": integers(ids[item.class_name] for item in objects),
        "image/object/difficult": integers(item.difficult for item in objects),
        "image/object/truncated": integers(item.truncated for item in objects),
        "image/object/is_crowd": integers(item.is_crowd for item in objects),
    }
    example = tf.train.Example(features=tf.train.Features(feature=feature))
    # Features are a map field: without `deterministic` their order changes from process to process.
    return EncodedExample(image_id, example.SerializeToString(deterministic=True), len(objects))


def _annotated_size(source: SourceImage, image: EncodedImage) -> Tuple[int, int]:
    """Width and height that the boxes are in: the file may have been resized since it was annotated.

    Raises:
      DataError: when the file is no resized copy but turned (by a camera's note on how it was held, which
        training does not read), cropped or another image.
    """
    width, height = source.stated_size or (0, 0)
    if width <= 0 or height <= 0:
        return image.width, image.height  # (tools that do not know write 0)
    across, down = image.width / float(width), image.height / float(height)
    # Within a pixel of either: resizing rounds.
    off = (width * down - image.width, height * across - image.height)
    off += (image.width / down - width, image.height / across - height)
    if min(map(abs, off)) > 1.0:
        raise DataError(
            "the annotation is of an image of another shape",
            where=source.annotation,
            found="{}x{} pixels; {} has {}x{}".format(width, height, source.path, image.width, image.height),
            allowed="the file's size, or that of an image of which it is a resized copy",
            fix="turn the pixels as the camera's note says (EXIF orientation) and save, or correct the "
            "annotation's size",
        )
    return width, height


def encode_source(source: SourceImage, ids: Dict[str, int], skip_invalid: bool = False) -> EncodedExample:
    """Reads the image of a source, checks its objects against it and encodes both.

    Args:
      source: image and annotation.
      ids: label map ids by class name.
      skip_invalid: leave invalid objects out and count them, instead of raising.

    Raises:
      DataError: naming file and object.
    """
    image = read_image(source.path)
    size = _annotated_size(source, image)
    across, down = image.width / float(size[0]), image.height / float(size[1])
    kept, skipped = [], source.skipped
    for number, item in enumerate(source.objects, start=1):
        where = "{}, {}".format(source.annotation, item.label or "object {}".format(number))
        try:
            item = _checked(item, size, ids, where)
            kept.append(
                item._replace(
                    xmin=item.xmin * across,
                    ymin=item.ymin * down,
                    xmax=item.xmax * across,
                    ymax=item.ymax * down,
                )
            )
        except DataError:
            if not skip_invalid:
                raise
            skipped += 1
    return encode_example(source.image_id, os.path.basename(source.path), image, kept, ids)._replace(
        skipped=skipped
    )


def write_dataset(
    output_dir: str,
    class_names: Sequence[str],
    train: Iterable[EncodedExample],
    val: Iterable[EncodedExample],
) -> DatasetInfo:
    """Writes `train.record`, `val.record`, `label_map.pbtxt` and `dataset.json`, all or none.

    An older data set in the folder stays as it was until the new one is complete.

    Raises:
      DataError: when there is no image, no training object, or one image id twice.
      OdQatError: when the folder cannot be written.
    """
    paths = {split: os.path.join(output_dir, split + ".record") for split in ("train", "val")}
    label_map = os.path.join(output_dir, "label_map.pbtxt")
    description = os.path.join(output_dir, DATASET_FILE)
    skipped = 0
    with RecordWriter(paths["train"]) as train_writer, RecordWriter(paths["val"]) as val_writer:
        for writer, examples, split in ((train_writer, train, "training"), (val_writer, val, "validation")):
            objects = 0
            for example in examples:
                writer.write(example)
                objects += example.objects
                skipped += example.skipped
            if not objects:
                raise DataError(
                    "there is nothing to learn or score in the {} images".format(split),
                    where=output_dir,
                    found="{} images, no objects".format(writer.count),
                    fix="check the list and the annotations of that part",
                )
            writer.close()
        # From here only renames are left. The old description goes first, so that it never describes
        # files of the new data set.
        write_label_map(label_map, class_names)
        if os.path.exists(description):
            os.unlink(description)
        train_writer.commit()
        val_writer.commit()
        info = DatasetInfo(
            train_record=os.path.abspath(paths["train"]),
            val_record=os.path.abspath(paths["val"]),
            label_map=os.path.abspath(label_map),
            class_names=tuple(class_names),
            train_images=train_writer.count,
            val_images=val_writer.count,
            skipped_objects=skipped,
        )
    info.save(description)
    return info


def write_sources(
    output_dir: str,
    class_names: Sequence[str],
    train: Sequence[SourceImage],
    val: Sequence[SourceImage],
    skip_invalid: bool = False,
    progress: bool = True,
) -> DatasetInfo:
    """Reads the images of annotated sources and writes them as a data set.

    Raises:
      DataError, OdQatError: as :func:`encode_source` and :func:`write_dataset`.
    """
    ids = class_ids(class_names)

    def examples(sources, title):
        for source in progress_bar(sources, title, len(sources), progress):
            yield encode_source(source, ids, skip_invalid)

    return write_dataset(
        output_dir, class_names, examples(train, "training images"), examples(val, "validation images")
    )
