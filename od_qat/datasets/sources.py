"""Turns annotated images into examples, and examples into a data set.

Every kind of data (`builtin`, `voc`, `coco`) goes through this file, so that all are checked in the same way.
"""

import hashlib
import io
import math
import os
import re
import sys
from typing import Any, Callable, Dict, Iterable, Iterator, NamedTuple, Optional, Sequence, Tuple

from od_qat.datasets.findings import Findings
from od_qat.datasets.info import DATASET_FILE, DatasetInfo
from od_qat.datasets.label_map import ClassNames, class_ids, names_by_id, shorten, write_label_map
from od_qat.datasets.records import EncodedExample, RecordWriter
from od_qat.errors import DataError
from od_qat.files import read_regular

# VOC counts pixels from 1, and some tools write the last pixel as `width`, others as `width + 1`. So a box
# that exceeds the image by one pixel is clipped. If it exceeds it by more, it belongs to another image or
# size.
_OVERSHOOT_PIXELS = 1.0
# (MPO is a JPEG with more pictures after the first, as phones make. TensorFlow and Pillow read the first.)
_IMAGE_FORMATS = {"JPEG": "jpeg", "MPO": "jpeg", "PNG": "png"}
_FIX_OBJECT = "correct the annotation, or leave such objects out with --skip_invalid"
_FIX_IMAGE = "replace the file, take it off the list, or leave such images out with --skip_invalid"
# Pixels of a side, more than any annotated image has. A greater number is a mistake or an attack.
_MAX_SIDE = 10**6
_PNG_END = b"IEND\xaeB`\x82"


_decoder = None  # type: Optional[Callable]


class SourceObject(NamedTuple):
    """One object as annotated, not yet checked, with its edges in pixels of the image."""

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
      stated_size: (width, height) of the image that was annotated; None if it is the file's own.
    """

    image_id: str
    path: str
    objects: Sequence[SourceObject]
    annotation: str
    stated_size: Optional[Tuple[int, int]] = None


class EncodedImage(NamedTuple):
    """An image file's bytes, its format ('jpeg' or 'png') and its size in pixels."""

    encoded: bytes
    format: str
    width: int
    height: int


def progress_bar(items: Iterable[Any], title: str, total: Optional[int], progress: bool) -> Iterable[Any]:
    """`items` with a progress bar on stderr, if that is a terminal."""
    from tqdm import tqdm

    # For tqdm, `disable=None` means "only on a terminal".
    return tqdm(
        items, desc=title, total=total, unit="image", file=sys.stderr, disable=None if progress else True
    )


def read_image(path: str) -> EncodedImage:
    """Reads an image file and decodes it once, to be sure that training can.

    If TensorFlow decodes an image that Pillow refuses (a PNG with a damaged comment, a JPEG with damaged EXIF
    data), its pixels are kept as a PNG, since scoring decodes with Pillow. TensorFlow decodes no truncated
    file, and no PNG with a wrong checksum, which Pillow overlooks.

    Raises:
      DataError: if the file is missing, damaged, or neither JPEG nor PNG, with its path.
    """
    from PIL import Image

    try:
        encoded = read_regular(path)
    except OSError as error:
        raise DataError(
            "cannot read the image",
            where=path,
            found=error.strerror,
            fix=_FIX_IMAGE,
        ) from error
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            image_format, (width, height) = image.format, image.size
            if image_format in _IMAGE_FORMATS:
                image.load()
    # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error and a few of their own.
    except Exception as error:
        pixels = None if isinstance(error, Image.DecompressionBombError) else _tensorflow_pixels(encoded)
        if pixels is None:
            raise _undecodable(path, _image_problem(error)) from error
        stream = io.BytesIO()
        Image.fromarray(pixels).save(stream, "PNG")
        return EncodedImage(stream.getvalue(), "png", pixels.shape[1], pixels.shape[0])
    if image_format not in _IMAGE_FORMATS:
        raise DataError(
            "the image has a format that training cannot decode",
            where=path,
            found=str(image_format),
            allowed="JPEG, PNG",
            fix="save it as JPEG or PNG, or leave such images out with --skip_invalid",
        )
    if image_format == "PNG" and _tensorflow_pixels(encoded) is None:
        broken_off = (
            "the file is truncated" if _PNG_END not in encoded else "a wrong checksum or length in it"
        )
        raise _undecodable(path, broken_off)
    return EncodedImage(encoded, _IMAGE_FORMATS[image_format], width, height)


def _undecodable(path: str, found: str) -> DataError:
    return DataError(
        "the image cannot be decoded", where=path, found=found, allowed="JPEG, PNG", fix=_FIX_IMAGE
    )


def _tensorflow_pixels(encoded: bytes) -> Any:
    """A JPEG or PNG as TensorFlow decodes it, uint8 [height, width, 3]; None if TensorFlow refuses it."""
    from od_qat.compat import tf

    if not encoded.startswith((b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")):
        return None
    global _decoder
    if _decoder is None:
        with tf.Graph().as_default() as graph:
            placeholder = tf.placeholder(tf.string, [])
            # The OD API's decoder uses this op.
            pixels = tf.image.decode_image(placeholder, channels=3)
        _decoder = tf.Session(graph=graph).make_callable(pixels, [placeholder])
    try:
        return _decoder(encoded)
    except tf.errors.OpError:
        return None


def _image_problem(error: Exception) -> str:
    """Pillow's message on one line, without the address of its stream."""
    text = re.sub(r"<_io\.\w+ object at \w+>", "", str(error))
    return shorten(" ".join(text.split())) or type(error).__name__


def _checked(item: SourceObject, size: Tuple[int, int], ids: Dict[str, int], where: str) -> SourceObject:
    """The object with its box clipped to an image of that width and height.

    Raises:
      DataError: if the class or the box is not valid.
    """
    if not item.class_name:
        raise DataError("an object has no class", where=where, found="an empty name", fix=_FIX_OBJECT)
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
    """Makes a tf.Example in the OD API's layout. The same arguments always give the same bytes.

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
    # Features are a map field, whose order differs between processes without `deterministic`.
    return EncodedExample(image_id, example.SerializeToString(deterministic=True), len(objects))


def _annotated_size(source: SourceImage, image: EncodedImage) -> Tuple[int, int]:
    """The width and height that the boxes refer to. The file may have been resized since it was annotated.

    Raises:
      DataError: if the file is no resized copy of the annotated image, but turned (by an EXIF orientation,
        which training does not read), cropped or another image.
    """
    width, height = source.stated_size or (0, 0)
    if width == 0 or height == 0:
        return image.width, image.height  # (tools that do not know the size write 0)
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise DataError(
            "the annotation states a size that no image has",
            where=source.annotation,
            found="a side below 1" if min(width, height) < 0 else "a side of more than a million pixels",
            allowed="{}x{}, as {} has".format(image.width, image.height, source.path),
            fix="correct the annotation's size",
        )
    across, down = image.width / float(width), image.height / float(height)
    # Resizing rounds, so either size may be off by up to a pixel.
    off = (width * down - image.width, height * across - image.height)
    off += (image.width / down - width, image.height / across - height)
    if min(map(abs, off)) > 1.0:
        raise DataError(
            "the annotation is of an image of another shape",
            where=source.annotation,
            found="{}x{} pixels; {} has {}x{}".format(width, height, source.path, image.width, image.height),
            allowed="the file's size, or that of an image of which it is a resized copy",
            fix="turn the pixels as the EXIF orientation says and save the image, or correct the "
            "annotation's size",
        )
    return width, height


def encode_source(
    source: SourceImage, ids: Dict[str, int], invalid_object: Callable[[DataError], None]
) -> EncodedExample:
    """Reads the image of a source, checks its objects against it and encodes both.

    Args:
      source: image and annotation.
      ids: label map ids by class name.
      invalid_object: is called with the error of each object that is left out; it may raise.

    Raises:
      DataError: if the image cannot be used, with its path.
    """
    image = read_image(source.path)
    size = _annotated_size(source, image)
    across, down = image.width / float(size[0]), image.height / float(size[1])
    kept = []
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
        except DataError as error:
            invalid_object(error)
    return encode_example(source.image_id, os.path.basename(source.path), image, kept, ids)


def write_dataset(
    output_dir: str,
    class_names: ClassNames,
    train: Iterable[EncodedExample],
    val: Iterable[EncodedExample],
    findings: Optional[Findings] = None,
) -> DatasetInfo:
    """Writes `train.record`, `val.record`, `label_map.pbtxt` and `dataset.json`, all or none.

    An older data set in the folder stays as it was until the new one is complete.

    Args:
      output_dir: where to write.
      class_names: names from id 1 on, or id -> name.
      train, val: the examples.
      findings: collects problems while the examples are made; it is settled before a file is put in place.

    Raises:
      DataError: if a problem may not be left out, if the training or the validation images have no object, or
        if an image id occurs twice.
      OdQatError: if the folder cannot be written.
    """
    paths = {split: os.path.join(output_dir, split + ".record") for split in ("train", "val")}
    names = names_by_id(class_names)
    label_map = os.path.join(output_dir, "label_map.pbtxt")
    description = os.path.join(output_dir, DATASET_FILE)
    findings = findings or Findings(output_dir)
    with RecordWriter(paths["train"]) as train_writer, RecordWriter(paths["val"]) as val_writer:
        objects = {"training": 0, "validation": 0}
        for writer, examples, split in ((train_writer, train, "training"), (val_writer, val, "validation")):
            for example in examples:
                writer.write(example)
                objects[split] += example.objects
        findings.settle()
        for writer, split in ((train_writer, "training"), (val_writer, "validation")):
            _require_objects(objects[split], writer.count, split, output_dir)
            writer.close()
        # Only renames are left. The old description is removed before them, so that it never describes files
        # of the new data set.
        write_label_map(label_map, names)
        if os.path.exists(description):
            os.unlink(description)
        train_writer.commit()
        val_writer.commit()
        info = DatasetInfo(
            train_record=os.path.abspath(paths["train"]),
            val_record=os.path.abspath(paths["val"]),
            label_map=os.path.abspath(label_map),
            class_names=tuple(names.values()),
            class_ids=tuple(names),
            train_images=train_writer.count,
            val_images=val_writer.count,
            skipped_objects=findings.count("object"),
            skipped_images=findings.count("image"),
        )
    info.save(description)
    return info


def _require_objects(objects: int, images: int, split: str, output_dir: str) -> None:
    if not objects:
        raise DataError(
            "there is nothing to learn or score in the {} images".format(split),
            where=output_dir,
            found="{} images, no objects".format(images),
            fix="check the list and the annotations of that part",
        )


def write_sources(
    output_dir: str,
    class_names: ClassNames,
    train: Sequence[SourceImage],
    val: Sequence[SourceImage],
    findings: Findings,
    progress: bool = True,
) -> DatasetInfo:
    """Reads the images of annotated sources and writes them as a data set.

    All images are checked, even if nothing can be written because of one of them.

    Raises:
      DataError, OdQatError: as :func:`write_dataset`.
    """
    ids = class_ids(class_names)

    def examples(sources: Sequence[SourceImage], title: str) -> Iterator[EncodedExample]:
        for source in progress_bar(sources, title, len(sources), progress):
            try:
                example = encode_source(source, ids, findings.object)
            except DataError as error:
                findings.image(error)
                continue
            # If it is known that nothing will be written, the other images are only checked.
            if not findings.stops():
                yield example

    return write_dataset(
        output_dir,
        class_names,
        examples(train, "training images"),
        examples(val, "validation images"),
        findings,
    )
