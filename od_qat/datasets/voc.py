"""Converts a folder in PASCAL VOC layout to records.

    FOLDER/JPEGImages/ID.jpg  FOLDER/Annotations/ID.xml  FOLDER/ImageSets/Main/{train,val}.txt

Coordinates are read as the OD API's own VOC script reads them, so that scores can be compared: divided by the
annotation's <size>, without VOC's shift by one. A box that exceeds the image by one pixel is clipped.
"""

import os
import re
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple

from od_qat.datasets import sources
from od_qat.datasets.findings import Findings, example_of
from od_qat.datasets.info import DatasetInfo
from od_qat.datasets.label_map import record_names, unusable
from od_qat.errors import DataError
from od_qat.files import read_regular

_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".JPG", ".JPEG", ".PNG")
# (A file name may have 255 bytes; this name may have a folder in front.)
_LONGEST_ID = 500
_SIDES = ("xmin", "ymin", "xmax", "ymax")
_FIX_XML = "correct the annotation, take the image off the list, or leave it out with --skip_invalid"


class _Annotation(NamedTuple):
    """The contents of an XML file, without objects that cannot be read."""

    objects: List[sources.SourceObject]
    filename: str
    size: Optional[Tuple[int, int]]


def _find_file(path: str, what: str) -> str:
    if not os.path.exists(path):
        raise DataError(
            "the VOC folder is incomplete",
            where=path,
            found="no " + what,
            allowed="JPEGImages, Annotations and ImageSets/Main in one folder",
            fix="give the folder that holds these three",
        )
    return path


def _read_list(folder: str, name: str) -> List[str]:
    """The image ids of `ImageSets/Main/NAME.txt`, in order."""
    path = _find_file(os.path.join(folder, "ImageSets", "Main", name + ".txt"), "image list")
    try:
        # (utf-8-sig, since some editors put a byte order mark before the first id.)
        lines = [line.strip() for line in re.split("\r\n|\r|\n", read_regular(path).decode("utf-8-sig"))]
    except (OSError, UnicodeDecodeError) as error:
        found = getattr(error, "strerror", None) or str(error)
        raise DataError(
            "cannot read the image list", where=path, found=found, fix="save it as a text file in UTF-8"
        ) from error
    broken = next((line for line in lines if unusable(line) or len(line) > _LONGEST_ID), None)
    if broken is not None:
        raise DataError(
            "the image list has an entry that cannot be used",
            where=path,
            found="{} in {}".format(
                unusable(broken) or "{:,} characters".format(len(broken)), example_of(broken)
            ),
            allowed="each image once, by its file name without suffix",
            fix="correct the list; it may be in another encoding than UTF-8",
        )
    ids = []
    for line in lines:
        # In the lists of one class, lines end in -1, 0 or 1 (absent, difficult, present). All images count.
        flagged = re.match(r"^(.*\S)\s+(?:-1|0|1)$", line)
        if flagged and not os.path.exists(os.path.join(folder, "Annotations", line + ".xml")):
            line = flagged.group(1)
        if line:
            ids.append(line)
    seen = set()
    for image_id in ids:
        if image_id in seen or os.path.isabs(image_id) or ".." in re.split(r"[/\\]", image_id):
            raise DataError(
                "the image list has an entry that cannot be used",
                where=path,
                found=example_of(image_id) + (" twice" if image_id in seen else ""),
                allowed="each image once, by its file name without suffix",
                fix="correct the list",
            )
        seen.add(image_id)
    if not ids:
        raise DataError("the image list is empty", where=path, fix="name one image a line")
    return ids


def _parse_xml(path: str):
    """Parses an annotation so that nothing in it can read files or grow, and returns its root element.

    Raises:
      DataError: if it is missing or malformed, or has a document type, which can declare entities.
    """
    from lxml import etree

    try:
        content = read_regular(path)
    except OSError as error:
        raise DataError(
            "cannot read the annotation", where=path, found=error.strerror, fix=_FIX_XML
        ) from error
    parser = etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )
    try:
        root = etree.fromstring(content, parser)
    except (etree.XMLSyntaxError, ValueError) as error:
        raise DataError(
            "the annotation is not XML", where=path, found=" ".join(str(error).split())[:120], fix=_FIX_XML
        ) from error
    information = root.getroottree().docinfo
    if information.doctype or information.internalDTD is not None:
        raise DataError(
            "the annotation declares a document type, which could read files or expand without end",
            where=path,
            found="<!DOCTYPE {}>".format(information.root_name),
            allowed="VOC annotations without a document type",
            fix="remove the declaration, and its entities, from the file",
        )
    if root.tag != "annotation":
        raise DataError(
            "not a VOC annotation",
            where=path,
            found="<{}>".format(root.tag),
            allowed="<annotation>",
            fix=_FIX_XML,
        )
    return root


def _text(element, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _read_object(element, where: str) -> sources.SourceObject:
    """Reads one <object>, with its own <bndbox> and not those of its <part>s."""
    name, box = _text(element, "name"), element.find("bndbox")
    sides: List[float] = []
    for side in _SIDES:
        text = _text(box, side) if box is not None else ""
        try:
            sides.append(float(text))
        except ValueError as error:
            raise DataError(
                "an object has no readable box",
                where=where,
                found="{} {} {}".format(name or "no name", side, example_of(text))
                if box is not None
                else "no bndbox",
                allowed="numbers as xmin, ymin, xmax, ymax in a bndbox",
                fix="correct the annotation, or leave such objects out with --skip_invalid",
            ) from error
    return sources.SourceObject(
        name,
        *sides,
        difficult=_text(element, "difficult") == "1",
        truncated=_text(element, "truncated") == "1",
        label=where.rsplit(", ", 1)[1],
    )


def _read_annotation(path: str, include_difficult: bool, findings: Findings) -> _Annotation:
    root = _parse_xml(path)
    objects = []
    for number, element in enumerate(root.findall("object"), start=1):
        try:
            item = _read_object(element, "{}, object {}".format(path, number))
        except DataError as error:
            findings.object(error)
            continue
        if include_difficult or not item.difficult:
            objects.append(item)
    size = None
    if root.find("size") is not None:
        numbers = [_text(root.find("size"), tag) for tag in ("width", "height")]
        if all(re.match(r"^[0-9]{1,9}$", number) for number in numbers):
            size = (int(numbers[0]), int(numbers[1]))
    return _Annotation(objects, _text(root, "filename"), size)


def _find_image(folder: str, image_id: str, filename: str) -> str:
    """Finds the image of an id; without one, the <filename> is tried, which is often out of date."""
    images = os.path.join(folder, "JPEGImages")
    candidates = [os.path.join(images, image_id + suffix) for suffix in _IMAGE_SUFFIXES]
    if filename:
        candidates.append(os.path.join(images, re.split(r"[/\\]", filename)[-1]))
    for path in candidates:
        if os.path.exists(path):
            return path
    raise DataError(
        "an annotated image is missing",
        where=candidates[0],
        allowed="a JPEG or PNG file of that name",
        fix="add the file, take {} off the list, or leave it out with --skip_invalid".format(image_id),
    )


def _read_sources(
    folder: str, name: str, include_difficult: bool, findings: Findings, progress: bool
) -> List[sources.SourceImage]:
    annotated = []
    ids = _read_list(folder, name)
    for image_id in sources.progress_bar(ids, "annotations of " + name, len(ids), progress):
        path = os.path.join(folder, "Annotations", image_id + ".xml")
        try:
            annotation = _read_annotation(path, include_difficult, findings)
            image = _find_image(folder, image_id, annotation.filename)
        except DataError as error:
            findings.image(error)
            continue
        annotated.append(sources.SourceImage(image_id, image, annotation.objects, path, annotation.size))
    return annotated


def _class_names(annotated: Sequence[sources.SourceImage], folder: str, findings: Findings) -> Dict[int, str]:
    """The class names that occur, sorted and numbered from 1."""
    names = {item.class_name for source in annotated for item in source.objects} - {""}
    if not names:
        findings.settle()
        raise DataError(
            "no annotation names an object",
            where=os.path.join(folder, "Annotations"),
            fix="check that the lists name annotated images",
        )
    return dict(enumerate(sorted(names), start=1))


def convert(
    folder: str,
    output_dir: str,
    train_list: str = "train",
    val_list: str = "val",
    label_map: Optional[str] = None,
    include_difficult: bool = True,
    skip_invalid: bool = False,
    progress: bool = True,
    skip_invalid_objects: bool = False,
) -> DatasetInfo:
    """Writes the records, label map and description of a VOC folder.

    Args:
      folder: the folder with JPEGImages, Annotations and ImageSets/Main.
      output_dir: where to write.
      train_list: name in ImageSets/Main of the training list, without `.txt`.
      val_list: name of the validation list. It may be the training list itself, but it may not share only
        some images with that.
      label_map: a label map that gives classes and ids, with or without gaps. Without it, the classes are
        the names that occur, sorted and numbered from 1.
      include_difficult: keep objects marked as difficult.
      skip_invalid: leave out, list and count invalid objects and images. An object is invalid if its class is
        unknown, or if its box is unreadable, empty or outside the image. An image is invalid if it or its
        annotation is missing or damaged.
      progress: show progress bars on a terminal.
      skip_invalid_objects: leave out, list and count invalid objects, but not images.

    Raises:
      DataError: with the file and the object; if there are several, they are listed on standard error and the
        error has their number.
      OdQatError: if the output cannot be written.
    """
    _find_file(os.path.join(folder, "JPEGImages"), "such folder")
    _find_file(os.path.join(folder, "Annotations"), "such folder")
    names = record_names(label_map) if label_map else None
    findings = Findings(folder, skip_invalid, skip_invalid or skip_invalid_objects)
    shared = set(_read_list(folder, train_list)) & set(_read_list(folder, val_list))
    if shared and train_list != val_list:
        raise DataError(
            "images are in both lists, so the scores would flatter the model",
            where=os.path.join(folder, "ImageSets", "Main", val_list + ".txt"),
            found="{} of them in {}.txt, such as {}".format(len(shared), train_list, min(shared)),
            fix="choose lists that share no image",
        )
    train = _read_sources(folder, train_list, include_difficult, findings, progress)
    val = _read_sources(folder, val_list, include_difficult, findings, progress)
    if names is None:
        names = _class_names(train + val, folder, findings)
    return sources.write_sources(output_dir, names, train, val, findings, progress)
