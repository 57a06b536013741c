"""Converts images with COCO annotations (`instances_*.json`) to records.

Category ids are kept. COCO's ids have gaps, and upstream's label map and published detectors have the same.
On request they are numbered from 1. The areas of segmentations are not used, so whether an object is small,
medium or large is decided by its box.
"""

import json
import os
import re
import sys
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

from od_qat.datasets import sources
from od_qat.datasets.findings import Findings, example_of
from od_qat.datasets.info import DatasetInfo
from od_qat.datasets.label_map import MAX_ID, shorten, unusable
from od_qat.errors import DataError
from od_qat.files import read_regular

_FIX_JSON = "give a COCO file of object instances"


class _Annotations(NamedTuple):
    """A checked COCO file: names of categories by id, images in order, annotations by image id."""

    path: str
    categories: Dict[int, str]
    images: List[Tuple[int, str, Any]]
    objects: Dict[int, List[sources.SourceObject]]
    crowds_left_out: int


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63


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
        content = json.loads(read_regular(path).decode("utf-8"))
    except OSError as error:
        raise DataError(
            "cannot read the annotations", where=path, found=error.strerror, fix=_FIX_JSON
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            "the annotations are not JSON", where=path, found=shorten(str(error)), fix=_FIX_JSON
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
    names = set()
    for entry in _entries(content, "categories", path):
        identifier, name = entry.get("id"), entry.get("name")
        found = "id {}, name {}".format(example_of(identifier), example_of(name))
        if not _is_id(identifier) or not isinstance(name, str) or not name or unusable(name):
            raise DataError(
                "a category needs a whole number as id, and a name",
                where=path,
                found=found,
                allowed="names without NUL and half characters",
                fix=_FIX_JSON,
            )
        if identifier in categories or name in names:
            raise DataError(
                "a category is there twice",
                where=path,
                found=found,
                fix="give each category an id and a name of its own",
            )
        categories[identifier] = name
        names.add(name)
    return categories


def _read_images(content: Dict[str, Any], path: str) -> List[Tuple[int, str, Any]]:
    images, seen = [], set()
    for entry in _entries(content, "images", path):
        identifier, name = entry.get("id"), entry.get("file_name")
        found = "id {}, file_name {}".format(example_of(identifier), example_of(name))
        if not _is_id(identifier) or not isinstance(name, str) or not name or unusable(name):
            raise DataError(
                "an image needs a whole number as id, and a file_name",
                where=path,
                found=found,
                allowed="file names without NUL and half characters",
                fix=_FIX_JSON,
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
        images.append((identifier, name, _stated_size(entry, path)))
    return images


def _stated_size(entry: Dict[str, Any], path: str) -> Optional[Tuple[int, int]]:
    """Width and height of an image; None if the file does not say."""
    size = []
    for value in (entry.get("width"), entry.get("height")):
        if value is None:
            return None
        if isinstance(value, float) and value.is_integer():  # (infinity is not)
            value = int(value)
        if not _is_id(value):
            raise DataError(
                "an image has a size that is no number of pixels",
                where="{}, image {}".format(path, entry["id"]),
                found="width {}, height {}".format(
                    example_of(entry.get("width")), example_of(entry.get("height"))
                ),
                allowed="whole numbers",
                fix="correct them or leave them out",
            )
        size.append(value)
    return size[0], size[1]


def _read_object(entry: Dict[str, Any], categories: Dict[int, str], where: str) -> sources.SourceObject:
    fix = "correct the annotation, or leave such objects out with --skip_invalid"
    category, box = entry.get("category_id"), entry.get("bbox")
    if not _is_id(category) or category not in categories:
        raise DataError(
            "an object has no known category",
            where=where,
            found="category_id " + example_of(category),
            allowed="the ids of the file's categories",
            fix=fix,
        )
    numbers = isinstance(box, list) and all(
        isinstance(value, (int, float)) and not isinstance(value, bool) for value in box
    )
    # (A float holds no larger integer. Infinity and NaN are refused later, where the image is known.)
    numbers = numbers and all(isinstance(value, float) or abs(value) < 2**63 for value in box)
    if not numbers or len(box) != 4:
        raise DataError(
            "an object has no readable box",
            where=where,
            found="bbox " + example_of(box),
            allowed="[x, y, width, height] in pixels",
            fix=fix,
        )
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise DataError(
            "an object's iscrowd is neither 0 nor 1", where=where, found=example_of(crowd), fix=fix
        )
    xmin, ymin, width, height = (float(value) for value in box)
    return sources.SourceObject(
        categories[category],
        xmin,
        ymin,
        xmin + width,
        ymin + height,
        is_crowd=bool(crowd),
        label=where.rsplit(", ", 1)[1],
    )


def _read(path: str, findings: Findings, include_crowd: bool) -> _Annotations:
    content = _load(path)
    categories, images = _read_categories(content, path), _read_images(content, path)
    objects: Dict[int, List[sources.SourceObject]] = {identifier: [] for identifier, _, _ in images}
    crowds_left_out = 0
    if not categories:
        raise DataError("the annotations have no categories", where=path, fix=_FIX_JSON)
    for number, entry in enumerate(_entries(content, "annotations", path), start=1):
        where = "{}, annotation {}".format(path, example_of(entry.get("id", "number {}".format(number))))
        image_id = entry.get("image_id")
        try:
            if not _is_id(image_id) or image_id not in objects:
                raise DataError(
                    "an object belongs to no image",
                    where=where,
                    found="image_id " + example_of(image_id),
                    allowed="the ids of the file's images",
                    fix="correct the annotation, or leave such objects out with --skip_invalid",
                )
            item = _read_object(entry, categories, where)
        except DataError as error:
            findings.object(error)
            continue
        if include_crowd or not item.is_crowd:
            objects[image_id].append(item)
        else:
            crowds_left_out += 1
    return _Annotations(path, categories, images, objects, crowds_left_out)


def _merged_categories(train: _Annotations, val: _Annotations, renumber: bool) -> Dict[int, str]:
    """The names of both files by id: their own ids, or 1 to N in the order of the ids."""
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
    if renumber:
        return dict(enumerate((merged[identifier] for identifier in sorted(merged)), start=1))
    if min(merged) < 1 or max(merged) > MAX_ID:
        identifier = min(merged) if min(merged) < 1 else max(merged)
        raise DataError(
            "a category has an id that no label map can have",
            where=train.path if identifier in train.categories else val.path,
            found="id {} for {!r}".format(identifier, merged[identifier]),
            allowed="1 to {:,} (0 is the background)".format(MAX_ID),
            fix="number the categories from 1 with --renumber_categories",
        )
    return {identifier: merged[identifier] for identifier in sorted(merged)}


def _sources(annotations: _Annotations, folder: str) -> List[sources.SourceImage]:
    return [
        sources.SourceImage(
            str(identifier),
            os.path.join(folder, name),
            annotations.objects[identifier],
            annotations.path,
            size,
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
    renumber_categories: bool = False,
    skip_invalid_objects: bool = False,
) -> DatasetInfo:
    """Writes the records, label map and description of COCO annotations.

    Args:
      train_images: folder of the training images.
      train_annotations: their COCO JSON file.
      val_images: folder of the validation images.
      val_annotations: their COCO JSON file, with the same categories.
      output_dir: where to write.
      skip_invalid: leave out, list and count invalid objects and images. An object is invalid if its image or
        category is unknown, or if its box is unreadable, empty (COCO has some) or outside the image. An
        image is invalid if it is missing or damaged.
      include_crowd: train on boxes around crowds (`iscrowd`) too. The validation records always have them,
        marked as `image/object/is_crowd`, because COCO's metrics count no detection inside them as wrong.
      progress: show progress bars on a terminal.
      renumber_categories: number the categories from 1 without gaps, in the order of their ids. Otherwise
        the label map has the file's ids, so that models of the same categories can be scored and trained
        further. The num_classes of a model is then the highest id.
      skip_invalid_objects: leave out, list and count invalid objects, but not images.

    Raises:
      DataError: with the file and the annotation; if there are several, they are listed on standard error
        and the error has their number.
      OdQatError: if the output cannot be written.
    """
    findings = Findings(train_annotations, skip_invalid, skip_invalid or skip_invalid_objects)
    train = _read(train_annotations, findings, include_crowd)
    val = _read(val_annotations, findings, include_crowd=True)
    if train.crowds_left_out:
        text = "{}: {} boxes around crowds are not trained on (--include_crowd trains on them)"
        print(text.format(train_annotations, train.crowds_left_out), file=sys.stderr)
    names = _merged_categories(train, val, renumber_categories)
    return sources.write_sources(
        output_dir, names, _sources(train, train_images), _sources(val, val_images), findings, progress
    )
