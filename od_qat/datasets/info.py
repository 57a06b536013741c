"""`dataset.json`, which describes a data set."""

import dataclasses
import json
import os
from typing import Any, Dict, Tuple

from od_qat.errors import DataError
from od_qat.files import read_regular, write_json

DATASET_FILE = "dataset.json"
_DATASET_FORMAT = "od_qat_dataset/1"
_FIX = "convert the data again with `od-qat data`"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """The files of a data set and their contents.

    Attributes:
      train_record: path of the training records.
      val_record: path of the validation records.
      label_map: path of `label_map.pbtxt`.
      class_names: the names, in the order of their ids.
      class_ids: their ids, ascending, with or without gaps; by default 1 to N.
      train_images: number of training images.
      val_images: number of validation images.
      skipped_objects: invalid objects left out of both (`skip_invalid`).
      skipped_images: images left out of both, because they or their annotations cannot be read.
    """

    train_record: str
    val_record: str
    label_map: str
    class_names: Tuple[str, ...]
    train_images: int
    val_images: int
    skipped_objects: int = 0
    skipped_images: int = 0
    class_ids: Tuple[int, ...] = ()

    def names_by_id(self) -> Dict[int, str]:
        """id -> name; the highest id is the number of classes that a model needs."""
        return dict(zip(self.class_ids or range(1, len(self.class_names) + 1), self.class_names))

    def summary(self) -> str:
        """A line that says how much there is and how much was left out."""
        text = "{} training and {} validation images, {} classes".format(
            self.train_images, self.val_images, len(self.class_names)
        )
        highest = max(self.names_by_id())
        if highest != len(self.class_names):
            text += " with ids up to {} (the model's num_classes)".format(highest)
        if self.skipped_images:
            text += ", {} unreadable images left out".format(self.skipped_images)
        if self.skipped_objects:
            text += ", {} invalid objects left out".format(self.skipped_objects)
        return text

    def save(self, path: str) -> None:
        """Writes `dataset.json`. It names the files relative to itself, so that the folder can be moved.

        Raises:
          OdQatError: if the file cannot be written.
        """
        folder = os.path.dirname(os.path.abspath(path))
        content: Dict[str, Any] = {"format": _DATASET_FORMAT}
        content.update(dataclasses.asdict(self))
        for field in ("train_record", "val_record", "label_map"):
            content[field] = os.path.relpath(os.path.abspath(content[field]), folder).replace(os.sep, "/")
        write_json(path, content)

    @classmethod
    def load(cls, path: str) -> "DatasetInfo":
        """Reads a `dataset.json`, given its path or that of its folder.

        Raises:
          DataError: if it is missing or does not describe a data set.
        """
        if os.path.isdir(path):
            path = os.path.join(path, DATASET_FILE)
        try:
            content = json.loads(read_regular(path).decode("utf-8"))
        except OSError as error:
            raise DataError(
                "cannot read the data set",
                where=path,
                found=error.strerror,
                fix="make one with `od-qat data builtin` or give the folder of another",
            ) from error
        except (ValueError, RecursionError) as error:
            raise DataError("the data set's description is not JSON", where=path, fix=_FIX) from error
        types = {"train_record": str, "val_record": str, "label_map": str, "class_names": list}
        types.update({"train_images": int, "val_images": int, "skipped_objects": int})
        optional = {"skipped_images": 0, "class_ids": []}
        if not isinstance(content, dict) or content.get("format") != _DATASET_FORMAT:
            raise DataError(
                "not the description of a data set",
                where=path,
                allowed="format " + _DATASET_FORMAT,
                fix=_FIX,
            )
        content = dict(optional, **content)  # (older files lack these fields)
        types.update({"skipped_images": int, "class_ids": list})
        wrong = sorted(field for field, kind in types.items() if not isinstance(content.get(field), kind))
        if not wrong:
            ids, names = content["class_ids"], content["class_names"]
            if not names or not all(isinstance(name, str) for name in names):
                wrong.append("class_names")
            if not all(type(number) is int for number in ids) or len(ids) not in (0, len(names)):
                wrong.append("class_ids")
        if wrong:
            raise DataError(
                "the data set's description is incomplete",
                where=path,
                found="no valid " + ", ".join(wrong),
                fix=_FIX,
            )
        folder = os.path.dirname(os.path.abspath(path))
        values = {field: content[field] for field in types}
        for field in ("train_record", "val_record", "label_map"):
            values[field] = os.path.normpath(os.path.join(folder, values[field]))
        values["class_names"] = tuple(values["class_names"])
        values["class_ids"] = tuple(values["class_ids"])
        return cls(**values)
