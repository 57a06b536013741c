"""What a checkpoint fills and what is refused: the table of docs/restore.md, a test for each row."""

import glob
import os
import re
import shutil
import threading
import time

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import checkpoints  # noqa: E402
from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.datasets import read_examples, records, sources  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, DataError, OdQatError  # noqa: E402
from tests import tiers  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402
from tests.helpers import sessions, tiny_detector  # noqa: E402

pytestmark = [pytest.mark.tf1, pytest.mark.long_on_tf1]

try:
    from od_qat import commands
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

BACKBONE = "FeatureExtractor/MobilenetV1/Conv2d_0/weights"
HEAD = "BoxPredictor_0/ClassPredictor/biases"
KERNEL = "BoxPredictor_0/ClassPredictor/weights"
LOAD_ALL = "train_config.load_all_detection_checkpoint_vars"
FRESH_HEADS = ["train_config.fine_tune_checkpoint_type=detection", LOAD_ALL + "=false"]
# (The op scope of slim's MobileNet V1 is doubled, that of its variables is not.)
RANGE = "FeatureExtractor/MobilenetV1/MobilenetV1/Conv2d_0/act_quant/max"
AVERAGE = BACKBONE + checkpoints.AVERAGE
# So small that a step shows in no weight: what was restored can be compared after it.
STILL = (
    "train_config.optimizer.adam_optimizer.learning_rate.constant_learning_rate.learning_rate=1e-9",
    "train_config.optimizer.use_moving_average=false",
)


class Runs(object):
    """A folder with data, a float run and a QAT run of two steps, and configs made on demand."""

    def __init__(self, folder):
        self.folder = folder
        tiny_detector.write_data(folder)
        self.float_config = tiny_detector.write_config(folder, False, "float", 2, STILL)
        self.qat_config = tiny_detector.write_config(folder, True, "qat", 2, STILL)
        self.float_dir, self.qat_dir = self.below("float"), self.below("qat")
        commands.train(self.float_config, self.float_dir, seed=1)
        commands.train(self.qat_config, self.qat_dir, seed=1, save_interval_steps=1)

    def below(self, name):
        return os.path.join(self.folder, name)

    def fine_tune(self, prefix, name, more=(), quantised=True):
        """Trains one step from a checkpoint; returns the new checkpoint's reader and train_dir."""
        start = ["train_config.num_steps=1", "train_config.fine_tune_checkpoint=" + prefix]
        train_dir = self.below(name)
        config = self.qat_config if quantised else self.float_config
        result = commands.train(config, train_dir, overrides=start + list(more), seed=2)
        return tf.train.load_checkpoint(result.checkpoint), train_dir


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    with sessions.all_plain():
        yield Runs(str(tmp_path_factory.mktemp("restore")))


def values(folder):
    return tf.train.load_checkpoint(checkpoints.latest(folder))


def same(one, other, name, other_name=None):
    # (One step of Adam moves a weight by the learning rate at most.)
    return np.allclose(one.get_tensor(name), other.get_tensor(other_name or name), atol=1e-6)


def save(path, arrays):
    """A checkpoint of some arrays by name."""
    with tf.Graph().as_default(), tf.Session() as session:
        for name, array in arrays.items():
            tf.Variable(array, name=name)
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, path)


# Fine-tuning.


def test_float_classification_checkpoint(runs, capsys):
    source = values(runs.float_dir)
    names = [n for n in source.get_variable_to_shape_map() if n.startswith("FeatureExtractor/MobilenetV1/")]
    names = [n for n in names if re.search("Conv2d_[0-9]+(_(depthwise|pointwise))?/", n) and "Adam" not in n]
    prefix = save(
        runs.below("classifier.ckpt"), {n[len("FeatureExtractor/") :]: source.get_tensor(n) for n in names}
    )
    more = ["train_config.fine_tune_checkpoint_type=classification"]
    trained, _ = runs.fine_tune(prefix, "from_classifier", more)
    assert same(trained, source, BACKBONE)
    assert "{} variables restored".format(len(names)) in capsys.readouterr().err


def test_float_detection_checkpoint(runs, capsys):
    more = FRESH_HEADS
    trained, _ = runs.fine_tune(checkpoints.latest(runs.float_dir), "from_detector", more)
    assert same(trained, values(runs.float_dir), BACKBONE)
    assert not same(trained, values(runs.float_dir), KERNEL)
    ranges = [n for n in trained.get_variable_to_shape_map() if n.endswith("act_quant/max")]
    assert ranges and any(trained.get_tensor(name) != 6.0 for name in ranges)  # fresh, then updated
    said = capsys.readouterr().err
    assert re.search("[0-9]+ quantization variables fresh", said)
    assert re.search(r"fresh: [0-9]+ in BoxPredictor_\* \(BoxPredictor_0/.* to BoxPredictor_3/", said)
    assert max(map(len, said.splitlines())) < 600


@pytest.mark.parametrize("all_variables", [pytest.param(False, marks=pytest.mark.long), True])
def test_load_all_detection_checkpoint_vars(runs, all_variables):
    source = values(runs.float_dir)
    moved = {n: source.get_tensor(n) for n in source.get_variable_to_shape_map() if n != "global_step"}
    moved[HEAD] = moved[HEAD] + np.float32(0.25)
    prefix = save(runs.below("moved_{}.ckpt".format(all_variables)), moved)
    more = [
        "train_config.fine_tune_checkpoint_type=detection",
        "{}={}".format(LOAD_ALL, str(all_variables).lower()),
    ]
    trained, _ = runs.fine_tune(prefix, "all_{}".format(all_variables), more)
    assert np.allclose(trained.get_tensor(HEAD), moved[HEAD], atol=1e-6) == all_variables
    assert same(trained, source, BACKBONE)


def test_heads_that_the_checkpoint_has_are_not_fresh_by_mistake(runs):
    """Absent, load_all_detection_checkpoint_vars is false; a QAT run then starts at four times the loss."""
    prefix = checkpoints.latest(runs.float_dir)
    more = ["train_config.fine_tune_checkpoint_type=detection", LOAD_ALL + "="]
    with pytest.raises(ConfigError, match="heads would start fresh.*not set.* in BoxPredictor_") as caught:
        runs.fine_tune(prefix, "forgotten", more)
    assert not os.path.exists(runs.below("forgotten"))
    assert "Fix: restore them with --override {}=true".format(LOAD_ALL) in str(caught.value)


@pytest.mark.parametrize(
    "classes, quantised, asked, stops",
    [
        (2, True, None, True),
        (2, True, False, False),
        (2, False, None, False),
        (3, True, None, False),  # (heads of other classes are meant to be fresh)
    ],
)
def test_what_is_said_of_fresh_heads(classes, quantised, asked, stops, tmp_path):
    from object_detection.protos import train_pb2

    from od_qat.od_api import fine_tuning

    shapes = {"FeatureExtractor/w": 4, "BoxPredictor_0/boxes": 5, "BoxPredictor_1/classes": 2}
    prefix = save(str(tmp_path / "model.ckpt"), {n: np.zeros(s, np.float32) for n, s in shapes.items()})
    config = train_pb2.TrainConfig(load_all_detection_checkpoint_vars=asked)
    with tf.Graph().as_default():
        shapes["BoxPredictor_1/classes"] = classes
        variables = {name: tf.Variable(np.zeros(s, np.float32), name=name) for name, s in shapes.items()}
        backbone = {name: v for name, v in variables.items() if name.startswith("F")}
        plan = checkpoints.plan_fine_tune(backbone, prefix, (), "FeatureExtractor")
        fresh = checkpoints.fresh_model_variables(plan, prefix, variables.values())
    if stops:
        with pytest.raises(ConfigError, match="leaves out 2 variables"):
            fine_tuning.say_what_starts_fresh(config, fresh, prefix, quantised)
        return
    said = fine_tuning.say_what_starts_fresh(config, fresh, prefix, quantised)
    assert (
        "2 model variables fresh: 2 in BoxPredictor_* (BoxPredictor_0/boxes to BoxPredictor_1/classes)"
        in said
    )
    assert (LOAD_ALL + ": true restores" in said) == (asked is None)


def test_qat_checkpoint_into_qat_fine_tuning_keeps_its_ranges(runs, capsys):
    more = FRESH_HEADS
    runs.fine_tune(checkpoints.latest(runs.qat_dir), "from_qat", more)
    error = capsys.readouterr().err
    restored, fresh = re.search("([0-9]+) variables restored, ([0-9]+) quantization", error).groups()
    assert int(restored) > int(fresh)  # (those of the heads, which load_all_... would fill too)


def test_another_number_of_classes(runs):
    """Backbone from the checkpoint, heads fresh; a resumed or evaluated model has to fit."""
    with open(runs.below("more_classes.pbtxt"), "w") as stream:
        for number, name in enumerate(tiny_detector.CLASSES + ("other",), 1):
            stream.write("item {{ id: {} name: '{}' }}\n".format(number, name))
    other = ["model.ssd.num_classes=3"] + [
        "{}.label_map_path={}".format(reader, runs.below("more_classes.pbtxt"))
        for reader in ("train_input_reader", "eval_input_reader.0")
    ]
    more = ["train_config.fine_tune_checkpoint_type=detection"]
    more.append(LOAD_ALL + "=true")
    trained, _ = runs.fine_tune(checkpoints.latest(runs.float_dir), "classes", other + more)
    assert same(trained, values(runs.float_dir), BACKBONE)
    assert (
        trained.get_variable_to_shape_map()[HEAD] != values(runs.float_dir).get_variable_to_shape_map()[HEAD]
    )
    refused = pytest.raises(CheckpointError, match="shapes are another model's.*num_classes")
    if tiers.ALL:
        with refused:
            commands.export(runs.qat_config, runs.qat_dir, runs.below("no_export"), overrides=other)
        assert not os.path.exists(runs.below("no_export"))
    with refused:
        commands.evaluate(
            runs.qat_config, runs.qat_dir, runs.below("no_eval"), overrides=other, run_once=True
        )
    train_dir, _ = _copy_of(runs, "other_classes")
    before = sorted(os.listdir(train_dir))
    with refused:
        commands.train(runs.qat_config, train_dir, overrides=other + ["train_config.num_steps=3"])
    assert sorted(os.listdir(train_dir)) == before


# Resuming, evaluating.


@pytest.fixture(scope="module")
def moved(runs):
    """A copy of the QAT run's folder, whose list of checkpoints names the old place."""
    folder, _ = _copy_of(runs, "moved")
    # (Absolute paths, as upstream's and contrib's savers write them.)
    with open(os.path.join(folder, "checkpoint"), "w") as stream:
        for key in ("model_checkpoint_path", "all_model_checkpoint_paths"):
            stream.write('{}: "/home/old/train/model.ckpt-2"\n'.format(key))
    return folder


@pytest.fixture(scope="module")
def resumed(runs, moved):
    """What training one step more in that folder returns."""
    assert commands.export(runs.qat_config, moved, os.path.join(moved, "out"))
    return commands.train(runs.qat_config, moved, overrides=["train_config.num_steps=3"], seed=1)


def test_qat_resumes_with_its_ranges(runs, resumed):
    before, after = values(runs.qat_dir), tf.train.load_checkpoint(resumed.checkpoint)
    updates = next(
        n for n in after.get_variable_to_shape_map() if n.endswith("Conv2d_0/act_quant/max/local_step")
    )
    assert after.get_tensor(updates) == before.get_tensor(updates) + 1
    assert same(after, before, BACKBONE)


def test_float_run_is_not_resumed_as_qat(runs):
    train_dir = runs.below("float_as_qat")
    shutil.copytree(runs.float_dir, train_dir)
    with pytest.raises(CheckpointError, match="_quant/.*fine_tune_checkpoint"):
        commands.train(runs.qat_config, train_dir, overrides=["train_config.num_steps=3"])


def test_qat_run_is_not_resumed_as_float(runs):
    train_dir, _ = _copy_of(runs, "qat_as_float")
    before = sorted(os.listdir(train_dir))
    with pytest.raises(CheckpointError, match="QAT run would go on as a float one.*_quant.*new train_dir"):
        commands.train(runs.float_config, train_dir, overrides=["train_config.num_steps=3"])
    assert sorted(os.listdir(train_dir)) == before


def test_qat_checkpoint_into_a_float_eval(runs, capsys):
    metrics = commands.evaluate(runs.float_config, runs.qat_dir, runs.below("float_eval"), run_once=True)
    assert "DetectionBoxes_Precision/mAP" in metrics
    graph_def = tf.GraphDef()
    with open(os.path.join(runs.below("float_eval"), "frozen_eval_graph.pb"), "rb") as stream:
        graph_def.ParseFromString(stream.read())
    assert not any(node.op.startswith("FakeQuant") for node in graph_def.node)
    assert "warning: " in capsys.readouterr().err


def test_an_evaluation_without_objects(runs):
    """The OD API's metrics are -1 there."""
    first = next(read_examples(runs.below("data.record")))
    image = sources.EncodedImage(first.encoded, "png", first.width, first.height)
    with records.RecordWriter(runs.below("empty.record")) as writer:
        for number in range(4):
            writer.write(sources.encode_example(str(number), "a.png", image, [], {}))
        writer.commit()
    reader = "eval_input_reader.0.tf_record_input_reader.input_path={}".format(runs.below("empty.record"))
    with pytest.raises(DataError, match="no object to find: at eval_input_reader, found 4 images"):
        commands.evaluate(
            runs.float_config, runs.float_dir, runs.below("empty"), run_once=True, overrides=[reader]
        )
    assert not glob.glob(os.path.join(runs.below("empty"), "metrics-*"))


def test_a_full_disk_in_evaluation(runs, small_disk, capfd):
    """Events are written by a thread of TensorFlow's, which ended in a traceback."""
    out = os.path.join(small_disk(16), "eval")
    with pytest.raises(OdQatError, match="cannot write the file: at .*/eval.*No space left.*Fix: free"):
        commands.evaluate(runs.float_config, runs.float_dir, out, run_once=True)
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("kilobytes", [2000, 13000, 16000])
def test_a_full_disk_in_training(runs, small_disk, kilobytes, capfd):
    """Of graph and events, of the first checkpoint, of its graph."""
    out = os.path.join(small_disk(kilobytes), "train")
    with pytest.raises(OdQatError, match="cannot write the file: at .*/train.*No space left.*Fix: free"):
        commands.train(runs.float_config, out)
    assert "Traceback" not in capfd.readouterr().err
    assert not [name for name in os.listdir(out) if "temp" in name]


def test_float_checkpoint_into_a_qat_eval_is_refused(runs):
    with pytest.raises(CheckpointError, match="_quant/.*float checkpoint"):
        commands.evaluate(runs.qat_config, runs.float_dir, runs.below("no_eval"), run_once=True)


def test_ranges_that_a_graph_leaves_aside_are_named(runs, capsys):
    more = ["graph_rewriter.[od_qat.layers].rule=[{scope: 'BoxPredictor_0/.*' quantize: false}]"]
    commands.export(runs.qat_config, runs.qat_dir, runs.below("fewer"), overrides=more)
    (warning,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert "BoxPredictor_0/" in warning and "another graph_rewriter block" in warning
    commands.export(runs.qat_config, runs.qat_dir, runs.below("all_of_them"))
    assert "warning: " not in capsys.readouterr().err


@pytest.mark.parametrize("scope, named", [("layer/other_quant", True), ("Dropout/mul/act_quant", False)])
def test_ranges_of_what_only_training_has_are_not_named(scope, named, tmp_path, capsys):
    """placement 'contrib' quantises dropout's products, which no eval graph has."""
    own = ["layer/act_quant/min", "layer/act_quant/max"]
    spare = [scope + "/min", scope + "/max"]
    prefix = save(str(tmp_path / "model.ckpt"), {name: np.float32(1.0) for name in own + spare})
    with tf.Graph().as_default():
        variables = {name: tf.Variable(0.0, name=name) for name in own}
        checkpoints.require_all(variables, prefix, own)
    assert (scope in capsys.readouterr().err) == named


# Moving averages.


@pytest.fixture(scope="module")
def averaged(runs):
    more = ["train_config.optimizer.use_moving_average=true", "train_config.num_steps=2"]
    train_dir = runs.below("averaged")
    commands.train(runs.qat_config, train_dir, overrides=more, seed=1)
    return train_dir


@pytest.mark.zoo
def test_what_training_froze_is_its_own_average(runs, capsys):
    more = [
        "train_config.freeze_variables=.*FeatureExtractor.*",
        "train_config.optimizer.use_moving_average=true",
        "train_config.num_steps=1",
    ]
    train_dir = runs.below("frozen_averaged")
    commands.train(runs.qat_config, train_dir, overrides=more, seed=1)
    assert "freeze_variables" not in capsys.readouterr().err
    trained = values(train_dir)
    assert not trained.has_tensor(AVERAGE) and trained.has_tensor(HEAD + checkpoints.AVERAGE)
    more = ["eval_config.use_moving_averages=true"]
    for constants in _exported_and_evaluated(runs, train_dir, "frozen_averaged", more):
        for name, wanted in ((BACKBONE, BACKBONE), (HEAD, HEAD + checkpoints.AVERAGE)):
            np.testing.assert_array_equal(constants[name], trained.get_tensor(wanted))


def _exported_and_evaluated(runs, train_dir, name, overrides):
    """The constants, by name, of the graph that export writes and of the one that evaluation freezes."""
    export, evaluation = runs.below(name + "_export"), runs.below(name + "_eval")
    path = commands.export(runs.qat_config, train_dir, export, overrides=overrides)
    commands.evaluate(runs.qat_config, train_dir, evaluation, overrides=overrides, run_once=True)
    for each in (path, os.path.join(evaluation, "frozen_eval_graph.pb")):
        graph_def = tf.GraphDef()
        with open(each, "rb") as stream:
            graph_def.ParseFromString(stream.read())
        yield {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in graph_def.node if n.op == "Const"}


def test_averages_are_kept_of_weights_and_not_of_ranges(averaged):
    names = values(averaged).get_variable_to_shape_map()
    assert AVERAGE in names
    assert RANGE in names and not any("_quant/" in n and checkpoints.AVERAGE in n for n in names)


@pytest.mark.parametrize(
    "in_training, in_evaluation",
    [
        pytest.param(True, True, marks=pytest.mark.zoo),
        pytest.param(True, False, marks=pytest.mark.zoo),
        pytest.param(False, True, marks=pytest.mark.zoo),
        pytest.param(False, False, marks=pytest.mark.long),
    ],
)
def test_averages(runs, averaged, in_training, in_evaluation):
    train_dir = averaged if in_training else runs.qat_dir
    out = runs.below("averages_{}_{}".format(in_training, in_evaluation))
    more = ["eval_config.use_moving_averages={}".format(str(in_evaluation).lower())]
    if in_evaluation and not in_training:
        refused = pytest.raises(CheckpointError, match="without moving averages.*use_moving_averages: false")
        with refused:
            commands.export(runs.qat_config, train_dir, out, overrides=more)
        assert not os.path.exists(out)
        with refused:
            commands.evaluate(runs.qat_config, train_dir, out, overrides=more, run_once=True)
        return
    wanted = AVERAGE if in_evaluation else BACKBONE
    for constants in _exported_and_evaluated(runs, train_dir, os.path.basename(out), more):
        np.testing.assert_array_equal(constants[BACKBONE], values(train_dir).get_tensor(wanted))
        assert RANGE in constants


# Damage.


def _copy_of(runs, name):
    folder = runs.below(name)
    shutil.copytree(runs.qat_dir, folder)
    return folder, checkpoints.latest(folder)


def _data_file(prefix):
    return prefix + ".data-00000-of-00001"


def _truncate_data(prefix):
    with open(_data_file(prefix), "r+b") as stream:
        stream.truncate(os.path.getsize(_data_file(prefix)) // 2)


def _truncate_index(prefix):
    with open(prefix + ".index", "r+b") as stream:
        stream.truncate(os.path.getsize(prefix + ".index") // 2)


def _flip(path, position):
    with open(path, "r+b") as stream:
        stream.seek(position)
        byte = stream.read(1)
        stream.seek(position)
        stream.write(bytes([byte[0] ^ 4]))


def _flip_data(prefix):
    """A bit of the backbone's first kernel, found by its bytes."""
    kernel = tf.train.load_checkpoint(prefix).get_tensor(BACKBONE).tobytes()
    with open(_data_file(prefix), "rb") as stream:
        _flip(_data_file(prefix), stream.read().index(kernel) + 7)


def _flip_index(prefix):
    _flip(prefix + ".index", os.path.getsize(prefix + ".index") // 2)


def _remove_data(prefix):
    os.remove(_data_file(prefix))


@pytest.mark.parametrize(
    "damage",
    [_truncate_data, _truncate_index, _flip_data, _flip_index, _remove_data],
    ids=lambda f: f.__name__,
)
def test_a_damaged_checkpoint(runs, damage):
    folder, prefix = _copy_of(runs, "damaged" + damage.__name__)
    damage(prefix)
    out = os.path.join(folder, "out")
    with pytest.raises(CheckpointError, match="damaged.*model.ckpt-2"):
        commands.export(runs.qat_config, folder, out)
    assert not os.path.exists(out)
    # (All commands look through a checkpoint by the same function.)
    if damage is _flip_data or tiers.ALL:
        more = ["train_config.fine_tune_checkpoint_type=detection"]
        with pytest.raises(CheckpointError, match="damaged.*model.ckpt-2"):
            runs.fine_tune(prefix, "from_damaged" + damage.__name__, more)
    if tiers.ALL:
        with pytest.raises(CheckpointError, match="damaged.*model.ckpt-2"):
            commands.evaluate(runs.qat_config, folder, os.path.join(folder, "eval"), run_once=True)
        with pytest.raises(CheckpointError, match="damaged.*model.ckpt-2"):
            commands.train(runs.qat_config, folder, overrides=["train_config.num_steps=3"])


def _lose(path):
    os.remove(path)


def _empty(path):
    open(path, "w").close()


def _garble(path):
    with open(path, "w") as stream:
        stream.write("model_checkpoint_path: model.ckpt")


def _name_another(path):
    with open(path, "w") as stream:
        stream.write('model_checkpoint_path: "/home/old/model.ckpt-9"\n')


@pytest.mark.parametrize(
    "damage, says",
    [
        (_lose, "found missing; in that folder: model.ckpt-1, model.ckpt-2"),
        pytest.param(
            _empty, "found damaged; in that folder: model.ckpt-1, model.ckpt-2", marks=pytest.mark.zoo
        ),
        (_garble, "found damaged; in that folder: model.ckpt-1, model.ckpt-2"),
        pytest.param(
            _name_another,
            "found naming /home/old/model.ckpt-9, which is not there; in that folder: model",
            marks=pytest.mark.zoo,
        ),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_lost_list_of_checkpoints(runs, damage, says):
    """Training would start anew, and overwrite what is there."""
    folder, prefix = _copy_of(runs, "list" + damage.__name__)
    listed = os.path.join(folder, "checkpoint")
    damage(listed)
    before = sorted(os.listdir(folder))
    for call in (
        lambda: commands.train(runs.qat_config, folder, overrides=["train_config.num_steps=3"]),
        lambda: commands.export(runs.qat_config, folder, os.path.join(folder, "out")),
        lambda: commands.evaluate(runs.qat_config, folder, os.path.join(folder, "eval"), run_once=True),
    ):
        with pytest.raises(CheckpointError, match=re.escape(says)) as caught:
            call()
        assert listed in str(caught.value)
    assert sorted(os.listdir(folder)) == before
    with open(listed, "w") as stream:  # what the message says to do
        stream.write(re.search("put the line (.*) into it", str(caught.value)).group(1))
    assert checkpoints.latest(folder) == prefix


def test_a_moved_folder(runs, moved, resumed):
    assert (resumed.global_step, os.path.dirname(resumed.checkpoint)) == (3, moved)
    assert same(values(moved), values(runs.qat_dir), BACKBONE)


def test_a_checkpoint_that_is_being_written_is_not_looked_at(runs):
    """The saver writes parts, then the index, then the file `checkpoint`, which names what is complete."""
    folder, prefix = _copy_of(runs, "being_written")
    next_one = prefix.replace("-2", "-9")
    os.makedirs(next_one + "_temp_0123456789abcdef")
    with open(os.path.join(next_one + "_temp_0123456789abcdef", "part-00000-of-00001"), "wb") as stream:
        stream.write(b"half")
    with open(_data_file(next_one), "wb") as stream:
        stream.write(b"half of it")
    assert checkpoints.latest(folder) == prefix
    if tiers.ALL:
        out = os.path.join(folder, "eval")
        commands.evaluate(runs.qat_config, folder, out, run_once=True)
        assert os.path.exists(os.path.join(out, "metrics-2.json"))


def test_an_evaluation_that_starts_before_the_training(runs, capsys):
    """As upstream's does, it waits: for the folder, for the first checkpoint, for the next."""
    folder, out = runs.below("not_yet"), runs.below("waiting")
    with pytest.raises(CheckpointError, match="found no such folder"):
        commands.evaluate(runs.qat_config, folder, out, run_once=True)

    def save(step):
        names = glob.glob(os.path.join(runs.qat_dir, "model.ckpt-{}.*".format(step)))
        for name in names:
            shutil.copy(name, folder)
        time.sleep(1.5)  # the list comes last
        with open(os.path.join(folder, "checkpoint"), "w") as stream:
            stream.write('model_checkpoint_path: "model.ckpt-{}"\n'.format(step))

    def training():
        time.sleep(2)
        os.mkdir(folder)
        save(1)
        while not os.path.exists(os.path.join(out, "metrics-1.json")):
            time.sleep(0.1)
        save(2)

    beside = threading.Thread(target=training, daemon=True)
    beside.start()
    more = ["eval_config.max_evals=2", "eval_config.eval_interval_secs=1"]
    commands.evaluate(runs.qat_config, folder, out, overrides=more)
    beside.join()
    assert os.path.exists(os.path.join(out, "metrics-2.json"))
    said = capsys.readouterr().err
    assert said.count("no checkpoint in {} yet: looking again every 1 s".format(folder)) == 1


def test_a_checkpoint_that_is_removed_while_eval_looks(runs, monkeypatch):
    """A training keeps five checkpoints; a slow evaluation meets one that has gone, and takes the next."""
    folder, prefix = _copy_of(runs, "removed")
    looks = []

    def latest(path):
        looks.append(path)
        return os.path.join(folder, "model.ckpt-1") if len(looks) <= 2 else prefix

    monkeypatch.setattr(checkpoints, "latest", latest)
    out = os.path.join(folder, "eval")
    commands.evaluate(runs.qat_config, folder, out, run_once=True)
    assert os.path.exists(os.path.join(out, "metrics-2.json"))


# tf.contrib.quantize.


@pytest.mark.skipif(not IS_TF1, reason="tf.contrib.quantize is in TensorFlow 1.15 only")
def test_contrib_trained_checkpoint(runs):
    """contrib's ranges are found by their names and have the values that it trained."""
    from tensorflow.contrib import quantize

    from od_qat import trainer
    from od_qat.od_api import models, pipeline

    more = [
        "graph_rewriter.[od_qat.layers].placement='contrib'",
        "graph_rewriter.[od_qat.layers].per_channel=false",
    ]
    config = pipeline.load(runs.qat_config, more)
    train_dir = runs.below("contrib")
    trainer.train(
        models.input_fn(config.train_input_reader),
        models.model_fn(config, is_training=True),
        config.train_config,
        *("", 0, 1, 1, False, 0, "lonely_worker", True, train_dir),
        graph_hook_fn=lambda: quantize.create_training_graph(quant_delay=0),
        seed=1,
    )
    trained = values(train_dir)
    path = commands.export(runs.qat_config, train_dir, runs.below("contrib_export"), overrides=more)
    graph_def = tf.GraphDef()
    with open(path, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    constants = {n.name: tf.make_ndarray(n.attr["value"].tensor) for n in graph_def.node if n.op == "Const"}
    ranges = [n for n in constants if n.endswith(("_quant/min", "_quant/max"))]
    assert len(ranges) > 50
    for name in ranges:
        np.testing.assert_array_equal(constants[name], trained.get_tensor(name), err_msg=name)
    metrics = commands.evaluate(
        runs.qat_config, train_dir, runs.below("contrib_eval"), overrides=more, run_once=True
    )
    assert "DetectionBoxes_Precision/mAP" in metrics
    # And training goes on from it, delay variable and averages' helpers included.
    result = commands.train(runs.qat_config, train_dir, overrides=more + ["train_config.num_steps=3"], seed=1)
    assert result.global_step == 3


_NO_ROWS = {
    "test_a_full_disk_in_evaluation",
    "test_a_full_disk_in_training",
    "test_what_is_said_of_fresh_heads",
    "test_the_page_names_every_row",
    "test_ranges_of_what_only_training_has_are_not_named",
}


def test_the_page_names_every_row():
    with open(os.path.join(REPOSITORY, "docs", "restore.md"), encoding="utf-8") as stream:
        named = set(re.findall(r"test_restore\.py::(\w+)", stream.read()))
    here = {name for name in globals() if name.startswith("test_")} - _NO_ROWS
    assert named == here
