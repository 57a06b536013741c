"""Files of a data set, damaged at random: one clear line or a right result, nothing else, and soon.

See damage.py for how many.
"""

import json
import os

import pytest

from od_qat.datasets import check_records, coco, label_map, read_examples, voc
from tests.helpers.damaged_files import try_all
from tests.test_datasets import CAT, DOG, VOC_CAT, VOC_DOG, coco_content, example, image_bytes, write_records
from tests.test_datasets import write_voc as make_voc


def check_dataset(info):
    """What was written is read without an error."""
    for path in (info.train_record, info.val_record):
        assert check_records(path, info.label_map) == len(list(read_examples(path)))


@pytest.mark.parametrize(
    "file", ["Annotations/a.xml", "ImageSets/Main/train.txt", "JPEGImages/a.jpg", "JPEGImages/c.png"]
)
@pytest.mark.parametrize("skip_invalid", [False, True])
def test_voc(tmp_path, file, skip_invalid):
    boxes = {"a": [VOC_CAT, VOC_DOG], "b": [VOC_CAT], "c": [VOC_DOG]}
    folder = make_voc(tmp_path / "voc", boxes, {"train": ["a", "c"], "val": ["b"]})
    images = tmp_path / "voc" / "JPEGImages"
    (images / "c.jpg").unlink()
    (images / "c.png").write_bytes(image_bytes(image_format="PNG"))

    def use():
        out = str(tmp_path / "out")
        check_dataset(voc.convert(folder, out, skip_invalid=skip_invalid, progress=False))

    try_all(os.path.join(folder, file), use, refuses=not skip_invalid)


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_coco(tmp_path, skip_invalid):
    (tmp_path / "a.jpg").write_bytes(image_bytes())
    for name in ("train.json", "val.json"):
        (tmp_path / name).write_text(json.dumps(coco_content()))

    def use():
        arguments = [str(tmp_path), str(tmp_path / "train.json"), str(tmp_path), str(tmp_path / "val.json")]
        out = str(tmp_path / "out")
        check_dataset(coco.convert(*(arguments + [out]), skip_invalid=skip_invalid, progress=False))

    try_all(tmp_path / "train.json", use)


def test_label_map(tmp_path):
    path = str(tmp_path / "labels.pbtxt")
    label_map.write_label_map(path, {1: "cat", 2: "it's", 90: "Übung"})

    def use():
        names = label_map.read_label_map(path)
        label_map.render_label_map(names)

    try_all(path, use)


def test_record(tmp_path):
    path = write_records(tmp_path / "a.record", example("a", [CAT, DOG]), example("b", [CAT]))
    labels = str(tmp_path / "labels.pbtxt")
    label_map.write_label_map(labels, ["cat", "dog"])
    try_all(path, lambda: (check_records(path, labels), list(read_examples(path))))


def test_example_in_a_record(tmp_path):
    """The checksums of a record keep chance out: here what they cover is damaged."""
    from od_qat.compat import tf

    labels, record = str(tmp_path / "labels.pbtxt"), str(tmp_path / "a.record")
    label_map.write_label_map(labels, ["cat", "dog"])
    content = tmp_path / "example"
    content.write_bytes(example("a", [CAT, DOG]).serialized)

    def use():
        with tf.python_io.TFRecordWriter(record) as writer:
            writer.write(content.read_bytes())
        check_records(record, labels)
        list(read_examples(record))

    try_all(content, use)


def test_dataset_json(tmp_path):
    from od_qat.datasets import DatasetInfo, sources

    sources.write_dataset(str(tmp_path), ["cat", "dog"], [example("a", [CAT])], [example("b", [DOG])])
    path = tmp_path / "dataset.json"
    try_all(path, lambda: DatasetInfo.load(str(path)).summary())
