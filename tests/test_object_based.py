"""TF 2's checkpoints in graph mode; the oracle is eager code without od_qat."""

import glob
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest

from od_qat import compat

compat.enable_tf1_behaviour()

from od_qat import checkpoints  # noqa: E402
from od_qat.checkpoints import object_based  # noqa: E402
from od_qat.compat import IS_TF1, tf  # noqa: E402
from od_qat.errors import CheckpointError, ConfigError, EnvironmentProblem  # noqa: E402
from tests.conftest import REPOSITORY  # noqa: E402
from tests.helpers import keras_nets, sessions  # noqa: E402

needs_tf2 = pytest.mark.skipif(IS_TF1, reason="TF 2 models need TensorFlow 2")
KERNEL = "net/stem/kernel/.ATTRIBUTES/VARIABLE_VALUE"
RANGE = "FeatureExtractor/layer_1/act_quant/max"


def variable(name, shape):
    return tf.get_variable(name, shape, initializer=tf.zeros_initializer(), use_resource=True)


def small_net(**options):
    return keras_nets.small_net(compat._tensorflow, variable, **options)


def step():
    return tf.train.get_or_create_global_step()


def saved(path):
    """The values of an .npz file, in order."""
    with np.load(path) as stored:
        return [stored["arr_{}".format(number)] for number in range(len(stored.files))]


def assert_equal(values, expected):
    assert len(values) == len(expected)
    for value, one in zip(values, expected):
        np.testing.assert_array_equal(value, one)


def fill(session, variables):
    """Gives variables random values, which it returns."""
    random = np.random.RandomState(1)
    values = [random.uniform(-1, 1, each.shape).astype(np.float32) for each in variables]
    sessions.assign(session, dict(zip(variables, values)))
    return values


def values_of(net, matched, prefix):
    """The values of the variables of a net in a session into which only a match was restored."""
    checkpoints.require_all(matched.filled, prefix, ())
    restorer = tf.train.Saver(matched.filled)
    with sessions.plain() as session:
        restorer.restore(session, prefix)
        return session.run(list(net.variables))


@pytest.fixture
def graph():
    with tf.Graph().as_default() as graph:
        yield graph


class Eager(object):
    """A process of keras_nets beside this one, and its folder."""

    def __init__(self, folder):
        self.folder = folder
        self.errors = os.path.join(folder, "errors.txt")
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.helpers.keras_nets", folder],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                cwd=REPOSITORY,
            )

    def wait(self):
        """Waits until the checkpoints of `write` are there."""
        assert self.process.stdout.readline().strip() == b"written", self.said()

    def restore(self):
        """Lets it restore, and returns what it prints."""
        output, _ = self.process.communicate(b"restore\n", timeout=120)
        assert self.process.returncode == 0, self.said()
        return output.decode("utf-8").splitlines()

    def said(self):
        with open(self.errors, encoding="utf-8", errors="replace") as stream:
            return stream.read()


@pytest.fixture(scope="module")
def eager(tmp_path_factory):
    if IS_TF1:
        pytest.skip("TF 2 models need TensorFlow 2")
    started = Eager(str(tmp_path_factory.mktemp("objects")))
    yield started
    if started.process.poll() is None:
        started.process.communicate(timeout=120)  # (the end of its input is the end of it)


@pytest.fixture(scope="module")
def folder(eager, detector):
    """A folder with eager/: what eager programs have written, see keras_nets.write."""
    eager.wait()
    return eager.folder


@pytest.fixture(scope="module")
def detector(eager):
    """An SSD of the OD API's TF 2 half in graph mode, with its graph."""
    pytest.importorskip("object_detection")
    from od_qat import plugin  # noqa: F401  (it has to be imported before object_detection)
    from od_qat.od_api import halves

    config = keras_nets.detector_config()
    with halves.active(config), tf.Graph().as_default() as graph:
        model = keras_nets.build_detector(tf)
        step()
    return model, graph


@needs_tf2
class TestWhatEagerCodeWrote(object):
    def test_is_read_to_the_last_bit(self, folder, graph):
        prefix = os.path.join(folder, "eager", keras_nets.SMALL)
        net = small_net()
        found = object_based.match(prefix, {"net": net, "step": step()})
        assert (found.missing, found.other_shapes, found.unused) == ({}, {}, ())
        assert_equal(values_of(net, found, prefix), saved(os.path.join(folder, "eager", "small.npz")))
        assert (
            tf.train.load_checkpoint(prefix).get_tensor(
                object_based.match(prefix, {"step": step()}).filled.popitem()[0]
            )
            == 41
        )
        # Slot variables and the optimizer's own are no variables of the net.
        assert any("/.OPTIMIZER_SLOT/optimizer/momentum/" in key for key in found.elsewhere)
        assert any(key.startswith("optimizer/") for key in found.elsewhere)
        assert not any("save_counter" in key for key in found.elsewhere)

    def test_objects_are_matched_by_their_ways_and_not_by_keys(self, folder, graph):
        prefix = os.path.join(folder, "eager", keras_nets.SMALL)
        net = small_net(shortcut=False)
        assert KERNEL not in object_based.keys({"net": net})
        found = object_based.match(prefix, {"net": net})
        assert found.filled[KERNEL] is net.layers[0].kernel
        assert (found.missing, found.unused) == ({}, ())
        assert_equal(values_of(net, found, prefix), saved(os.path.join(folder, "eager", "small.npz")))

    def test_slot_variables_are_matched_by_their_variable(self, folder, graph):
        prefix = os.path.join(folder, "eager", keras_nets.SMALL)
        net = small_net()
        optimizer = tf.train.MomentumOptimizer(0.5, 0.9)
        optimizer.apply_gradients([(tf.ones(each.shape), each) for each in net.variables])
        found = object_based.match(prefix, {"net": net, "optimizer": optimizer})
        slots = [optimizer.get_slot(each, "momentum") for each in net.variables]
        restorer = tf.train.Saver(found.filled)
        with sessions.plain() as session:
            restorer.restore(session, prefix)
            assert_equal(session.run(slots), saved(os.path.join(folder, "eager", "slots.npz")))
        # Keras keeps the rate in the checkpoint, TF 1's optimizer does not.
        assert "optimizer/learning_rate/.ATTRIBUTES/VARIABLE_VALUE" in found.unused
        assert found.missing == {}

    def test_a_detector_is_read_to_the_last_bit(self, folder, detector):
        model, graph = detector
        prefix = os.path.join(folder, "eager", keras_nets.DETECTION)
        with graph.as_default():
            found = object_based.match(prefix, {"model": model, "step": step()})
            assert found[1:] == ({}, {}, (), ())
            assert_equal(
                values_of(model, found, prefix), saved(os.path.join(folder, "eager", "detection.npz"))
            )

    def test_the_parts_of_a_detector_that_fine_tuning_restores(self, folder, detector):
        model, graph = detector
        prefix = os.path.join(folder, "eager", keras_nets.DETECTION)
        with graph.as_default():
            found = object_based.match(prefix, model.restore_from_objects("detection"))
            values = dict(zip([v.ref() for v in model.variables], saved(prefix[:-2] + ".npz")))
            part = model._feature_extractor
            assert_equal(values_of(part, found, prefix), [values[v.ref()] for v in part.variables])
        assert found.missing == {}
        assert found.unused and all(key.startswith("model/_box_predictor/") for key in found.unused)

    def test_a_classifier_fills_the_backbone(self, folder, detector):
        model, graph = detector
        prefix = os.path.join(folder, "eager", keras_nets.CLASSIFICATION)
        with graph.as_default():
            parts = model.restore_from_objects("classification")
            found = object_based.match(prefix, parts)
            values = values_of(parts["feature_extractor"], found, prefix)
            assert_equal(values, saved(prefix[:-2] + ".npz"))
            assert found[1:] == ({}, {}, (), ())
            whole = object_based.match(prefix, {"model": model})
        assert whole.filled == {} and len(whole.missing) == len(model.variables)


class Small(object):
    """What was saved of a small net: in FOLDER/graph/small, by a hook of a session whose graph is final."""

    def __init__(self, folder):
        self.folder = os.path.join(folder, "graph", "small")
        with tf.Graph().as_default():
            net, steps = small_net(), step()
            self.extra = {
                RANGE: tf.get_variable("range", [], use_resource=False),
                "a.b": variable("other", [2]),
            }
            saver = object_based.saver({"net": net, "step": steps}, self.extra, max_to_keep=2)
            assert type(saver) is tf.train.Saver
            more = tf.assign_add(steps, 1)
            scaffold = tf.train.Scaffold(saver=saver)
            hooks = [
                tf.train.CheckpointSaverHook(
                    self.folder, save_steps=2, checkpoint_basename="ckpt", scaffold=scaffold
                )
            ]
            creator = tf.train.ChiefSessionCreator(scaffold, config=sessions.plain_config())
            with tf.train.MonitoredSession(creator, hooks) as session:
                everything = list(net.variables) + list(self.extra.values())
                session.run_step_fn(lambda step_context: fill(step_context.session, everything))
                for _ in range(6):
                    session.run(more)
                values = session.run(everything)
            self.values, self.extra_values = values[:-2], values[-2:]
            # The saver restores what it has written.
            with sessions.plain() as session:
                saver.restore(session, tf.train.latest_checkpoint(self.folder))
                assert_equal(session.run(everything), values)
                assert session.run(steps) == 6


@pytest.fixture(scope="module")
def ours(eager, folder, detector):
    """The small net that was saved, the values of a detector that was, and what eager code says of both."""
    small = Small(folder)
    model, graph = detector
    with graph.as_default(), sessions.plain() as session:
        saver = object_based.saver({"model": model, "step": step()})
        values = fill(session, list(model.variables))
        session.run(step().initializer)
        os.makedirs(os.path.join(folder, "graph", "detection"))
        saver.save(session, os.path.join(folder, "graph", "detection", "ckpt"), global_step=1)
    kept = sorted(glob.glob(os.path.join(folder, "graph", "*", "*.index")))
    return small, values, kept, eager.restore()


@needs_tf2
class TestWhatIsWritten(object):
    def test_eager_code_restores_it_strictly_and_goes_on(self, folder, ours):
        small, values, kept, said = ours
        assert_equal(saved(os.path.join(folder, "graph", "small.npz")), small.values)
        assert_equal(saved(os.path.join(folder, "graph", "detection.npz")), values)
        assert said == ["small 6 ckpt-7", "detection 0 ckpt-2"]

    def test_old_ones_are_removed(self, ours):
        names = [os.path.basename(path) for path in ours[2]]
        assert names == ["ckpt-1.index", "ckpt-4.index", "ckpt-6.index"]

    def test_what_is_of_od_qat_alone_is_found_by_its_name(self, ours, graph):
        small = ours[0]
        prefix = os.path.join(small.folder, "ckpt-6")
        names = object_based.extra_keys(prefix)
        reader = tf.train.load_checkpoint(prefix)
        assert_equal([reader.get_tensor(names[name]) for name in small.extra], small.extra_values)
        one = tf.get_variable("another_name", [], use_resource=False)
        found = object_based.match(prefix, {"net": small_net()}, {RANGE: one, "new/min": variable("new", [])})
        assert found.filled[names[RANGE]] is one
        assert [each.op.name for each in found.missing.values()] == ["new"]
        assert found.unused == (names["a.b"],)

    def test_upstream_has_nothing_of_od_qat(self, folder):
        assert object_based.extra_keys(os.path.join(folder, "eager", keras_nets.SMALL)) == {}

    @pytest.mark.parametrize("sharded", [False, True])
    @pytest.mark.parametrize(
        "name,number", [("ckpt-12", 12), ("model-3.ckpt-0", 0), ("best", 0), ("of-2/v3", 0)]
    )
    def test_the_save_counter_is_the_number_in_the_name(self, graph, tmp_path, sharded, name, number):
        one = variable("one", [2])
        with tf.device("/cpu:0"):
            other = variable("other", [2])
        saver = object_based.saver({"one": one, "other": other}, sharded=sharded)
        prefix = str(tmp_path / name)
        os.makedirs(os.path.dirname(prefix), exist_ok=True)
        with sessions.plain() as session:
            values = fill(session, [one, other])
            saver.save(session, prefix)
            fill(session, [other, one])
            saver.restore(session, prefix)
            assert_equal(session.run([one, other]), values)
        assert len(glob.glob(prefix + ".data-*")) == 1 + sharded
        reader = tf.train.load_checkpoint(prefix)
        assert reader.get_tensor("save_counter/.ATTRIBUTES/VARIABLE_VALUE") == number
        assert set(object_based.match(prefix, {"one": one, "other": other}).filled.values()) == {one, other}

    def test_slot_variables_are_written_and_found(self, graph, tmp_path):
        net = small_net()
        optimizer = tf.train.AdamOptimizer()
        optimizer.apply_gradients([(tf.ones(each.shape), each) for each in net.variables])
        objects = {"net": net, "optimizer": optimizer}
        saver = object_based.saver(objects)
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            prefix = saver.save(session, str(tmp_path / "ckpt"))
        # Two slots of each, and two powers of the optimizer.
        assert len(object_based.keys(objects)) == 3 * len(net.variables) + 2
        found = object_based.match(prefix, objects)
        assert found.filled == object_based.keys(objects)
        assert found[1:] == ({}, {}, (), ())

    def test_nothing_is_added_to_the_graph_by_looking(self, ours, graph):
        net = small_net()
        graph.finalize()
        object_based.keys({"net": net})
        object_based.match(os.path.join(ours[0].folder, "ckpt-6"), {"net": net})


@needs_tf2
class TestWhatDoesNotFit(object):
    def test_missing_variables_and_other_shapes_are_named(self, folder, graph):
        prefix = os.path.join(folder, "eager", keras_nets.SMALL)
        net = small_net(classes=5)
        net.added = variable("added", [7])
        found = object_based.match(prefix, {"net": net})
        added = "net/added/.ATTRIBUTES/VARIABLE_VALUE"
        heads = {
            "net/heads/classes/{}/.ATTRIBUTES/VARIABLE_VALUE".format(name) for name in ("kernel", "bias")
        }
        assert (list(found.missing), set(found.other_shapes)) == ([added], heads)
        assert found.missing[added] is net.added
        assert len(found.filled) == len(net.variables) - 3
        with pytest.raises(CheckpointError, match="lacks 1 of 9 variables.*" + added):
            checkpoints.require_all(found.needed(), prefix, ())
        del net.added
        net._self_unconditional_checkpoint_dependencies[:] = []
        with pytest.raises(
            CheckpointError, match=r"found net/heads/classes/bias/.* is \[3\], allowed: \[5\]"
        ):
            checkpoints.require_all(dict(found.filled, **found.other_shapes), prefix, ())
        plan = checkpoints.plan_fine_tune(found.needed(), prefix, (), "first")
        assert plan.restored == found.filled and set(plan.fresh_other) == heads | {added}

    def test_values_of_another_type_are_refused(self, folder, graph):
        prefix = os.path.join(folder, "eager", keras_nets.SMALL)
        wrong = tf.get_variable("wrong", [], tf.float32)
        with pytest.raises(CheckpointError, match="step/.* is int64, allowed: float32. Fix: ") as refused:
            object_based.match(prefix, {"step": wrong})
        assert "\n" not in str(refused.value)

    def test_two_values_for_a_shared_variable_are_refused(self, folder, graph):
        prefix = os.path.join(folder, "eager", keras_nets.SMALL)
        net = small_net()
        net.layers[1].kernel = variable("third", [2, 3])
        net.layers[0].bias = net.heads["boxes/0"].bias
        with pytest.raises(CheckpointError, match="two values for a variable that is shared here"):
            object_based.match(prefix, {"net": net})

    def test_state_that_is_no_variable_is_refused(self, graph):
        table = compat._tensorflow.lookup.experimental.MutableHashTable(tf.string, tf.int64, 0)
        with pytest.raises(CheckpointError, match="cannot hold: at table/.* found MutableHashTable"):
            object_based.saver({"table": table, "net": small_net()})

    @pytest.mark.parametrize("name", ["od_qat", "save_counter"])
    def test_names_that_are_taken(self, graph, name):
        with pytest.raises(ConfigError, match=name):
            object_based.keys({name: small_net()})


@needs_tf2
class TestDamagedCheckpoints(object):
    @pytest.fixture
    def prefix(self, folder, tmp_path):
        for path in glob.glob(os.path.join(folder, "eager", keras_nets.SMALL + ".*")):
            shutil.copy(path, str(tmp_path))
        return str(tmp_path / keras_nets.SMALL)

    @pytest.mark.parametrize("kind", ["data", "index", "graph", "no data"])
    def test_one_line_says_so(self, graph, prefix, kind):
        data, index = prefix + ".data-00000-of-00001", prefix + ".index"
        path = index if kind == "index" else data
        with open(path, "rb") as stream:
            content = bytearray(stream.read())
        if kind == "graph":
            content[content.index(b"heads")] ^= 1
        else:
            del content[len(content) // 2 :]
        with open(path, "wb") as stream:
            stream.write(content)
        if kind == "no data":
            os.remove(data)
        with pytest.raises(CheckpointError, match="the checkpoint is damaged.*Fix: ") as refused:
            object_based.match(prefix, {"net": small_net()})
        assert "\n" not in str(refused.value) and prefix in str(refused.value)

    @pytest.mark.parametrize("change", ["empty", "child", "slot", "text"])
    def test_an_object_graph_that_makes_no_sense(self, graph, tmp_path, monkeypatch, change):
        one = variable("one", [2])
        serialized = object_based._keys(object_based._root({"one": one}, None))[1]
        if change == "empty":
            del serialized.nodes[:]
        elif change == "child":
            serialized.nodes[0].children[0].node_id = 9
        elif change == "slot":
            serialized.nodes[0].slot_variables.add(slot_variable_node_id=9)
        content = b"\xff" if change == "text" else serialized.SerializeToString()
        text = tf.get_variable("text", initializer=tf.constant(content), use_resource=True)
        saver = tf.train.Saver({compat.OBJECT_GRAPH_KEY: text, "one": one})
        with sessions.plain() as session:
            session.run([one.initializer, text.initializer])
            prefix = saver.save(session, str(tmp_path / "ckpt"))
        with pytest.raises(CheckpointError, match="the checkpoint is damaged.*object graph"):
            object_based.match(prefix, {"one": one})


@pytest.mark.tf1
class TestTheKindOfACheckpoint(object):
    @pytest.fixture
    def prefix(self, graph, tmp_path):
        variable("one", [2])
        saver = tf.train.Saver()
        with sessions.plain() as session:
            session.run(tf.global_variables_initializer())
            return saver.save(session, str(tmp_path / "model.ckpt"))

    def test_one_of_tf_1_is_told_from_one_of_tf_2(self, prefix, tmp_path):
        assert not object_based.is_object_based(prefix)
        with tf.Graph().as_default(), sessions.plain() as session:
            text = tf.get_variable(compat.OBJECT_GRAPH_KEY[1:], initializer=tf.constant(b""))
            session.run(text.initializer)
            saver = tf.train.Saver({compat.OBJECT_GRAPH_KEY: text})
            assert object_based.is_object_based(saver.save(session, str(tmp_path / "ckpt")))

    def test_one_of_tf_1_is_refused_with_the_way_on(self, prefix):
        with pytest.raises(CheckpointError, match="one of TensorFlow 1.*Fix: use a checkpoint of") as refused:
            object_based.match(prefix, {})
        assert "\n" not in str(refused.value) and prefix in str(refused.value)

    def test_one_that_is_missing_is_refused(self, prefix):
        with pytest.raises(CheckpointError, match="no such checkpoint"):
            object_based.is_object_based(prefix + "-1")

    @pytest.mark.skipif(not IS_TF1, reason="TensorFlow 2 has object-based checkpoints")
    def test_objects_need_tf_2(self):
        with pytest.raises(EnvironmentProblem, match="need TensorFlow 2: found TensorFlow 1.15"):
            object_based.keys({})
