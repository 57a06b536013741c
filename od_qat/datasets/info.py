"""`dataset.json`: what a data set consists of."""

import dataclasses
import json
import os
from typing import Any, Dict, Tuple

from od_qat.errors import DataError
from od_qat.files import write_json

DATASET_FILE = "dataset.json"
_DATASET_FORMAT = "od_qat_dataset/1"
_FIX = "convert the data again with `od-qat data`"


@dataclasses.dataclass(frozen=True)
class DatasetInfo:
    """Where a data set is and what is in it.

    Attributes:
      train_record: path of the training records.
      val_record: path of the validation records.
      label_map: path of `label_map.pbtxt`.
      class_names: the names, in the order of their ids (from 1).
      train_images: number of training images.
      val_images: number of validation images.
      skipped_objects: invalid objects left out of both (`skip_invalid`).
    """

    train_record: str
    val_record: str
    label_map: str
    class_names: Tuple[str, ...]
    train_images: int
    val_images: int
    skipped_objects: int = 0

    def summary(self) -> str:
        """How much there is, and what was left out, in a line."""
        skipped = ", {} invalid objects left out".format(self.skipped_objects) if self.skipped_objects else ""
        return "{} training and {} validation images, {} classes{}".format(
            self.train_images, self.val_images, len(self.class_names), skipped
        )

    def save(self, path: str) -> None:
        """Writes `dataset.json`; files are named relative to it, so that the folder can be moved.

        Raises:
          OdQatError: when the file cannot be written.
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
          DataError: when it is missing or not a data set's description.
        """
        if os.path.isdir(path):
            path = os.path.join(path, DATASET_FILE)
        try:
            with open(path, encoding="utf-8") as stream:
                content = json.load(stream)
        except OSError as error:
            raise DataError(
                "cannot read the data set",
                where=path,
                found=error.strerror,
                fix="make one with `od-qat data builtin` or give the folder of another",
            ) from error
        except ValueError as error:
            raise DataError("the data set's description is not JSON", where=path, fix=_FIX) from error
        types = {"train_record": str, "val_record": str, "label_map": str, "class_names": list}
        types.update({"train_images": int, "val_images": int, "skipped_objects": int})
        if not isinstance(content, dict) or content.get("format") != _DATASET_FORMAT:
            raise DataError(
                "not the description of a data set",
                where=path,
                allowed="format " + _DATASET_FORMAT,
                fix=_FIX,
            )
        wrong = sorted(field for field, kind in types.items() if not isinstance(content.get(field), kind))
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
        values["class_names"] = tuple(str(name) for name in values["class_names"])
        return cls(**values)
