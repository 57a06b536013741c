"""Data sets in the OD API's TFRecord format: the built-in digits, VOC folders, COCO annotations.

Importing this package imports no TensorFlow, Pillow or lxml; the functions that need them do.
"""

from od_qat.datasets.info import DatasetInfo
from od_qat.datasets.records import Example, check_records, read_examples

__all__ = ["DatasetInfo", "Example", "check_records", "read_examples"]
