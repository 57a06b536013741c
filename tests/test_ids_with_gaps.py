"""A label map that leaves ids out, as COCO's does: trained, evaluated, exported and scored with its ids."""

import os

import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat.datasets import label_map, read_examples, records, sources  # noqa: E402
from od_qat.errors import ConfigError  # noqa: E402
from tests.helpers import tiny_detector  # noqa: E402

try:
    from od_qat import commands
    from od_qat.od_api import models, pipeline
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

NAMES = {3: "square", 90: "bar"}
NUM_CLASSES = "model.ssd.num_classes="


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The tiny data set under other ids."""
    folder = str(tmp_path_factory.mktemp("gaps"))
    record, labels = tiny_detector.write_data(folder, images=8)
    examples = list(read_examples(record))
    label_map.write_label_map(labels, NAMES)
    ids = label_map.class_ids(NAMES)
    with records.RecordWriter(record) as writer:
        for example in examples:
            image = sources.EncodedImage(example.encoded, "png", example.width, example.height)
            objects = [
                sources.SourceObject(
                    tiny_detector.CLASSES[number - 1],
                    *[float(box[side]) * tiny_detector.SIZE for side in (1, 0, 3, 2)],
                )
                for number, box in zip(example.classes, example.boxes)
            ]
            writer.write(sources.encode_example(example.image_id, "a.png", image, objects, ids))
        writer.commit()
    return folder


@pytest.mark.parametrize("num_classes", [80, 89])
def test_too_few_classes(folder, num_classes):
    config = pipeline.load(
        tiny_detector.write_config(folder, False, "few", more=[NUM_CLASSES + str(num_classes)])
    )
    with pytest.raises(
        ConfigError, match="found 2 classes, highest id 90.*ids up to.*{}".format(num_classes)
    ):
        models.check_inputs(config, config.train_input_reader)


def test_more_classes_than_ids_are_said(folder, capsys):
    config = pipeline.load(tiny_detector.write_config(folder, False, "more", more=[NUM_CLASSES + "91"]))
    models.check_inputs(config, config.train_input_reader)
    assert "num_classes is 91, and the highest id of" in capsys.readouterr().err
    config = pipeline.load(tiny_detector.write_config(folder, False, "right", more=[NUM_CLASSES + "90"]))
    models.check_inputs(config, config.train_input_reader)
    assert "num_classes" not in capsys.readouterr().err


@pytest.mark.long
def test_whole_road(folder):
    pytest.importorskip("pycocotools")
    from od_qat import scoring

    config = tiny_detector.write_config(folder, True, "qat", steps=2, more=[NUM_CLASSES + "90"])
    train_dir = os.path.join(folder, "train")
    commands.train(config, train_dir, seed=1)
    metrics = commands.evaluate(config, train_dir, os.path.join(folder, "eval"), run_once=True)
    assert metrics["DetectionBoxes_Precision/mAP"] >= 0
    model = commands.export_tflite(config, train_dir, os.path.join(folder, "tflite"))
    score = scoring.score(
        model, os.path.join(folder, "data.record"), os.path.join(folder, "label_map.pbtxt"), processes=1
    )
    assert sorted(score.score.per_class) == sorted(NAMES.values())
    assert max(int(found.classes.max()) for found in score.detections.values() if len(found.classes)) <= 90
