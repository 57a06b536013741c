"""Images with COCO annotations (`instances_*.json`) -> records.

COCO's category ids have gaps; they are renumbered 1 to N in their order. The areas of segmentations are not
taken over, so small, medium and large objects are told apart by their boxes.
"""

import json
import os
import re
import sys
from typing import Any, Dict, List, NamedTuple, Tuple

from od_qat.datasets import sources
from od_qat.datasets.info import DatasetInfo
from od_qat.errors import DataError

_FIX_JSON = "give a COCO file of object instances"


class _Annotations(NamedTuple):
    """A checked COCO file: category names by id, images in order, annotations by image id."""

    path: str
    categories: Dict[int, str]
    images: List[Tuple[int, str, Any]]
    objects: Dict[int, List[sources.SourceObject]]
    skipped: Dict[int, int]
    crowds_left_out: int


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _entries(content: Dict[str, Any], key: str, path: str) -> List[Dict[str, Any]]:
    entries = content.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise DataError(
            "not a COCO file of object instances",
            where=path,
            found="no list of {}".format(key),
            allowed="images, annotations, categories",
            fix=_FIX_JSON,
        )
    return entries


def _load(path: str) -> Dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as stream:
            content = json.load(stream)
    except OSError as error:
        raise DataError(
            "cannot read the annotations", where=path, found=error.strerror, fix=_FIX_JSON
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the annotations are not JSON", where=path, found=str(error)[:120], fix=_FIX_JSON
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            "not a COCO file of object instances",
            where=path,
            found="a " + type(content).__name__,
            fix=_FIX_JSON,
        )
    return content


def _read_categories(content: Dict[str, Any], path: str) -> Dict[int, str]:
    categories: Dict[int, str] = {}
    for entry in _entries(content, "categories", path):
        identifier, name = entry.get("id"), entry.get("name")
        found = "id {!r}, name {!r}".format(identifier, name)
        if not _is_id(identifier) or not isinstance(name, str) or not name:
            raise DataError(
                "a category needs a whole number as id, and a name", where=path, found=found, fix=_FIX_JSON
            )
        if identifier in categories or name in categories.values():
            raise DataError(
                "a category is there twice",
                where=path,
                found=found,
                fix="give each category an id and a name of its own",
            )
        categories[identifier] = name
    return categories


def _read_images(content: Dict[str, Any], path: str) -> List[Tuple[int, str, Any]]:
    images, seen = [], set()
    for entry in _entries(content, "images", path):
        identifier, name = entry.get("id"), entry.get("file_name")
        found = "id {!r}, file_name {!r}".format(identifier, name)
        if not _is_id(identifier) or not isinstance(name, str) or not name:
            raise DataError(
                "an image needs a whole number as id, and a file_name", where=path, found=found, fix=_FIX_JSON
            )
        if os.path.isabs(name) or ".." in re.split(r"[/\\]", name):
            raise DataError(
                "an image lies outside the image folder",
                where=path,
                found=found,
                allowed="a path inside the image folder",
                fix="correct its file_name",
            )
        if identifier in seen:
            raise DataError(
                "an image id is there twice", where=path, found=found, fix="give each image its own id"
            )
        seen.add(identifier)
        size = (entry.get("width"), entry.get("height"))
        images.append((identifier, name, size if _is_id(size[0]) and _is_id(size[1]) else None))
    return images


def _read_object(entry: Dict[str, Any], categories: Dict[int, str], where: str) -> sources.SourceObject:
    fix = "correct the annotation, or leave such objects out with --skip-invalid"
    category, box = entry.get("category_id"), entry.get("bbox")
    if not _is_id(category) or category not in categories:
        raise DataError(
            "an object has no known category",
            where=where,
            found="category_id {!r}".format(category),
            allowed="the ids of the file's categories",
            fix=fix,
        )
    numbers = isinstance(box, list) and all(
        isinstance(value, (int, float)) and value is not True for value in box
    )
    if not numbers or len(box) != 4:
        raise DataError(
            "an object has no readable box",
            where=where,
            found="bbox {!r}".format(box)[:120],
            allowed="[x, y, width, height] in pixels",
            fix=fix,
        )
    xmin, ymin, width, height = (float(value) for value in box)
    return sources.SourceObject(
        categories[category],
        xmin,
        ymin,
        xmin + width,
        ymin + height,
        is_crowd=bool(entry.get("iscrowd", 0)),
        label=where.rsplit(", ", 1)[1],
    )


def _read(path: str, skip_invalid: bool, include_crowd: bool) -> _Annotations:
    content = _load(path)
    categories, images = _read_categories(content, path), _read_images(content, path)
    objects: Dict[int, List[sources.SourceObject]] = {identifier: [] for identifier, _, _ in images}
    skipped: Dict[int, int] = {}
    crowds_left_out = 0
    for number, entry in enumerate(_entries(content, "annotations", path), start=1):
        where = "{}, annotation {}".format(path, entry.get("id", "number {}".format(number)))
        image_id = entry.get("image_id")
        try:
            if not _is_id(image_id) or image_id not in objects:
                raise DataError(
                    "an object belongs to no image",
                    where=where,
                    found="image_id {!r}".format(image_id),
                    allowed="the ids of the file's images",
                    fix="correct the annotation, or leave such objects out with --skip-invalid",
                )
            item = _read_object(entry, categories, where)
        except DataError:
            if not skip_invalid:
                raise
            # One that belongs to no image is counted with the first, so that it is counted at all.
            counted = image_id if _is_id(image_id) and image_id in objects else next(iter(objects), None)
            skipped[counted] = skipped.get(counted, 0) + 1
            continue
        if include_crowd or not item.is_crowd:
            objects[image_id].append(item)
        else:
            crowds_left_out += 1
    return _Annotations(path, categories, images, objects, skipped, crowds_left_out)


def _merged_categories(train: _Annotations, val: _Annotations) -> List[str]:
    """The names of both files, in the order of their ids."""
    merged = dict(train.categories)
    ids = {name: identifier for identifier, name in merged.items()}
    for identifier, name in val.categories.items():
        if merged.setdefault(identifier, name) != name or ids.setdefault(name, identifier) != identifier:
            raise DataError(
                "the two annotation files disagree about a category",
                where=val.path,
                found="id {} for {!r}".format(identifier, name),
                allowed="the ids and names of {}".format(train.path),
                fix="use the same categories in both files",
            )
    if not merged:
        raise DataError("the annotations have no categories", where=train.path, fix=_FIX_JSON)
    return [merged[identifier] for identifier in sorted(merged)]


def _sources(annotations: _Annotations, folder: str) -> List[sources.SourceImage]:
    return [
        sources.SourceImage(
            str(identifier),
            os.path.join(folder, name),
            annotations.objects[identifier],
            annotations.path,
            size,
            annotations.skipped.get(identifier, 0),
        )
        for identifier, name, size in annotations.images
    ]


def convert(
    train_images: str,
    train_annotations: str,
    val_images: str,
    val_annotations: str,
    output_dir: str,
    skip_invalid: bool = False,
    include_crowd: bool = False,
    progress: bool = True,
) -> DatasetInfo:
    """Writes the records, label map and description of COCO annotations.

    Args:
      train_images: folder of the training images.
      train_annotations: their COCO JSON file.
      val_images: folder of the validation images.
      val_annotations: their COCO JSON file, with the same categories.
      output_dir: where to write.
      skip_invalid: leave objects out, and count them, whose image or category is unknown or whose box is
        unreadable, empty (COCO has some) or outside the image. Files that are missing or damaged are
        errors all the same.
      include_crowd: train on the boxes around crowds (`iscrowd`) too. The validation images have them in any
        case, marked as `image/object/is_crowd`: COCO's metrics count no detection within as wrong.
      progress: show progress bars on a terminal.

    Raises:
      DataError: naming file and annotation.
      OdQatError: when the output cannot be written.
    """
    train = _read(train_annotations, skip_invalid, include_crowd)
    val = _read(val_annotations, skip_invalid, include_crowd=True)
    if train.crowds_left_out:
        text = "{}: {} boxes around crowds are not trained on (--include_crowd trains on them)"
        print(text.format(train_annotations, train.crowds_left_out), file=sys.stderr)
    names = _merged_categories(train, val)
    return sources.write_sources(
        output_dir, names, _sources(train, train_images), _sources(val, val_images), skip_invalid, progress
    )
