"""Files of a data set, damaged at random: one clear line or a right result, nothing else, and soon.

20 damaged files of each kind normally, 1,000 with OD_QAT_MATRIX set.
"""

import json
import os
import signal
import warnings

import numpy as np
import pytest

from od_qat.datasets import check_records, coco, label_map, read_examples, voc
from od_qat.errors import OdQatError
from tests.test_datasets import CAT, DOG, VOC_CAT, VOC_DOG, coco_content, example, image_bytes, write_records
from tests.test_datasets import write_voc as make_voc

COUNT = 1000 if os.environ.get("OD_QAT_MATRIX") else 20
SECONDS = 60
# What a file of text or of JSON breaks with, beside chance.
TOKENS = [
    b"\0",
    b"\xff\xfe",
    b"\xed\xa0\x80",
    b"NaN",
    b"Infinity",
    b"-1",
    b"0",
    b"1e400",
    b"9" * 400,
    b"null",
    b"true",
] + [
    b'"\\ud800"',
    b"[" * 2000,
    b"{",
    b"}",
    b"<",
    b">",
    b"&x;",
    b"<!DOCTYPE a>",
    b"'",
    b'"',
    b"\\",
    b"..",
    b"/",
]


def damaged(random, data):
    """A copy that is cut, flipped in bits, or has bytes put in, swapped or doubled, once or a few times."""
    data = bytearray(data)
    for _ in range(random.randint(1, 4)):
        place = random.randint(len(data) + 1)
        kind = random.randint(6)
        if kind == 0:
            del data[place:]
        elif kind == 1 and data:
            for _ in range(random.randint(1, 9)):
                data[random.randint(len(data))] ^= 1 << random.randint(8)
        elif kind == 2:
            data[place:place] = bytes(random.randint(0, 256, random.randint(1, 20)).astype(np.uint8))
        elif kind == 3:
            data[place:place] = TOKENS[random.randint(len(TOKENS))]
        elif kind == 4:
            token = TOKENS[random.randint(len(TOKENS))]
            data[place : place + random.randint(1, 8)] = token
        else:
            first, second = sorted(random.randint(0, len(data) + 1, 2))
            length = random.randint(1, 40)
            one, other = data[first : first + length], data[second : second + length]
            data[second : second + length] = one
            data[first : first + length] = other
    return bytes(data)


def _too_long(*_):
    raise AssertionError("nothing for {} s".format(SECONDS))


def try_all(path, use, refuses=True, damage=damaged):
    """Runs `use` with the file damaged in COUNT ways; what it may raise is OdQatError, on one line.

    Where the damaged file is left out instead, nothing is refused. `damage` makes the damaged bytes, of a
    random state and of the whole.
    """
    with open(str(path), "rb") as stream:
        whole = stream.read()
    use()  # the whole file is good
    refused = 0
    former = signal.signal(signal.SIGALRM, _too_long)
    try:
        for seed in range(COUNT):
            content = damage(np.random.RandomState(seed), whole)
            with open(str(path), "wb") as stream:
                stream.write(content)
            signal.alarm(SECONDS)
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # (Pillow's, of files that it can read none the less)
                    use()
            except OdQatError as error:
                refused += 1
                text = str(error)
                assert "\n" not in text and "\0" not in text and len(text) < 2000, (seed, text)
                text.encode("utf-8")
            except Exception as error:
                raise AssertionError("damaged by seed {}: {!r}".format(seed, error)) from error
            finally:
                signal.alarm(0)
    finally:
        signal.signal(signal.SIGALRM, former)
    assert refused > COUNT // 10 or not refuses


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
