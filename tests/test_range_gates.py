"""The gates on quantization ranges: each fires on what it is for, and a healthy run is silent."""

import json
import os
import re

import numpy as np
import pytest

from od_qat import ranges
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.errors import OdQatError
from od_qat.ranges import Range
from od_qat.rewrite import api
from od_qat.training import range_gates
from tests.helpers import nets, sessions

pytestmark = pytest.mark.tf1

RELU6 = "net/Conv/act_quant"


def _range(low, high, updates=None):
    return Range(np.array(low, np.float32), np.array(high, np.float32), updates)


@pytest.mark.parametrize(
    "found, reference, verdict",
    [
        (_range(-1.0, 3.0), None, "ok"),
        (_range(0.0, 6.0, 20), None, "ok"),  # a ReLU6 that reaches its end in every batch
        (_range(0.0, 6.0, 0), None, "never moved"),
        (_range(0.0, 6.0), None, "ok"),  # nothing counts: it cannot be told
        (_range(-6.0, 6.0), None, "never moved"),
        (_range([-6.0, -6.0], [6.0, 6.0]), None, "never moved"),
        (_range([-6.0, -2.0], [6.0, 2.0]), None, "ok"),
        (_range(0.0, 0.0, 20), None, "collapsed"),
        (_range(-4e-7, 4e-7), None, "collapsed"),
        (_range([-1.0, 0.0], [1.0, 0.0]), None, "ok"),  # one channel of a layer is pruned
        (_range(0.0, 0.004), 5.0, "collapsed"),
        (_range(0.0, 0.006), 5.0, "ok"),
        (_range(-100.0, 120.0), 2.0, "exploded"),
        (_range(-80.0, 100.0), 2.0, "ok"),
        (_range(-2.0, 7.0), 0.01, "ok"),  # a layer that woke up
        (_range(-100.0, 9800.0), None, "ok"),
        (_range(-300.0, 9800.0), None, "exploded"),
        (_range(0.5, 3.0), None, "inconsistent"),
        (_range(-3.0, -0.5), None, "inconsistent"),
        (_range(3.0, -3.0), None, "inconsistent"),
        (_range([-1.0, 2.0], [1.0, 3.0]), None, "inconsistent"),
        (_range(-1.0, np.inf), None, "not finite"),
        (_range([-1.0, np.nan], [1.0, 1.0]), None, "not finite"),
    ],
)
def test_verdicts(found, reference, verdict):
    assert ranges.judge(found, reference) == verdict


def test_an_untrained_range_is_no_trouble_before_training():
    assert ranges.judge(_range(-6.0, 6.0), trained=False) == "ok"


def test_messages_do_not_grow_with_the_graph():
    lines = ranges.messages(
        ("layer_{}/act_quant".format(n), "collapsed", _range(0.0, 0.0)) for n in range(500)
    )
    assert list(lines) == ["collapsed"]
    line = lines["collapsed"]
    assert "\n" not in line and len(line) < 400
    assert "(500): layer_0/act_quant [0, 0]" in line and "and 497 more" in line
    assert "usual" in line and "Fix:" in line


class Run(object):
    """A session that trains small_ssd with the gates, its files in a folder."""

    def __init__(self, folder, dead_classes=False, rate=0.001):
        self.folder = str(folder)
        self.dead_classes = dead_classes
        self.rate = rate
        self.hook = None

    def train(self, steps, edits=None, before=None):
        """Trains; `edits` maps a number of steps done to {variable: function of its value}."""
        with tf.Graph().as_default() as graph:
            tf.set_random_seed(3)
            images = tf.random_uniform([2, 32, 32, 3], -1, 1, seed=4)
            boxes, scores = nets.small_ssd(images, True)
            loss = tf.reduce_mean(tf.square(boxes - 0.3))
            if not self.dead_classes:
                loss += tf.reduce_mean(tf.square(scores + 0.2))
            api.create_training_graph(graph)
            step = tf.train.get_or_create_global_step()
            train = tf.train.GradientDescentOptimizer(self.rate).minimize(loss, step)
            variables = {v.op.name: v for v in tf.global_variables()}
            self.hook = range_gates.RangeGatesHook(self.folder, step)
            hooks = [tf.train.StopAtStepHook(num_steps=steps), self.hook]
            with tf.train.MonitoredTrainingSession(
                checkpoint_dir=self.folder,
                hooks=hooks,
                save_checkpoint_secs=None,
                save_checkpoint_steps=10000,
                save_summaries_steps=None,
                log_step_count_steps=0,
                config=sessions.plain_config(),
            ) as session:
                done = 0
                while not session.should_stop():
                    raw = session._tf_sess()
                    for name, change in (edits or {}).get(done, {}).items():
                        sessions.assign(raw, {variables[name]: change(raw.run(variables[name]))})
                    session.run(train)
                    done += 1
        return self.hook.verdicts

    def json(self):
        with open(os.path.join(self.folder, "quant_ranges.json")) as stream:
            return json.load(stream)


@pytest.mark.long_on_tf1
def test_a_healthy_run_is_silent_and_writes_its_ranges(tmp_path, capsys):
    run = Run(tmp_path)
    verdicts = run.train(110)
    assert capsys.readouterr().err == ""
    assert set(verdicts.values()) == {"ok"} and len(verdicts) == 25
    written = run.json()
    assert sorted(written) == sorted(verdicts)
    low, high, verdict, reference = written[RELU6]
    assert (low, verdict) == (0.0, "ok") and 0.0 < high < 6.0
    run.train(20)  # resumed
    assert capsys.readouterr().err == ""
    assert run.json()[RELU6][3] == reference == pytest.approx(high, rel=0.1)


@pytest.mark.long_on_tf1
def test_a_relu6_that_always_saturates_is_not_called_unmoved(tmp_path, capsys):
    gamma = {0: {"net/Conv/BatchNorm/gamma": lambda value: value * 50}}
    run = Run(tmp_path, rate=0.0)
    run.train(12, gamma)
    assert run.json()[RELU6][:2] == [0.0, 6.0]
    assert "never moved" not in capsys.readouterr().err


@pytest.mark.long_on_tf1
def test_ranges_of_a_dead_branch_never_move(tmp_path, capsys):
    run = Run(tmp_path, dead_classes=True)
    verdicts = run.train(30)
    unmoved = sorted(name for name, verdict in verdicts.items() if verdict == "never moved")
    assert unmoved == [
        "Head_0/class/act_quant",
        "Head_0/class/concat_quant",
        "Head_0/class/weights_quant",
        "Head_1/class/act_quant",
        "Head_1/class/weights_quant",
    ]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1  # once, though it was looked at twice
    assert "never moved (5)" in lines[0] and "/class/" in lines[0] and "[-6, 6]" in lines[0]
    assert "and 2 more" in lines[0]


@pytest.mark.long_on_tf1
def test_few_steps_are_not_judged(tmp_path, capsys):
    Run(tmp_path, dead_classes=True).train(5)
    assert capsys.readouterr().err == ""


@pytest.mark.long_on_tf1
def test_a_dead_layer_collapses(tmp_path, capsys):
    zero = {
        0: {
            "net/down/BatchNorm/gamma": np.zeros_like,
            "net/down/BatchNorm/beta": np.zeros_like,
        }
    }
    verdicts = Run(tmp_path, rate=0.0).train(12, zero)
    collapsed = {name for name, verdict in verdicts.items() if verdict == "collapsed"}
    # (Their heads see zeros, and have no bias yet.)
    assert {"net/down/act_quant", "net/down/weights_quant"} <= collapsed
    assert all(name.startswith(("net/down/", "Head_1/")) for name in collapsed)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "collapsed" in error and "constant" in error


@pytest.mark.long_on_tf1
@pytest.mark.parametrize(
    "done, name, factor, quant",
    [
        # Past any sense at once; and 300 times what it was after warm-up.
        (5, "net/block/project/BatchNorm/gamma", 1e6, "net/block/project/act_quant"),
        (150, "net/Conv/BatchNorm/gamma", 300.0, "net/Conv/weights_quant"),
    ],
)
def test_an_explosion_is_named(tmp_path, capsys, done, name, factor, quant):
    edits = {done: {name: lambda value: value * factor}}
    run = Run(tmp_path, rate=0.0)
    verdicts = run.train(done + 60, edits)
    assert verdicts[quant] == "exploded"
    assert run.json()[quant][2] == "exploded"
    assert "exploded" in capsys.readouterr().err
    # What feeds it has not changed.
    if "project" in quant:
        assert verdicts[RELU6] == "ok"


@pytest.mark.long_on_tf1
def test_growth_is_measured_against_the_resumed_run(tmp_path):
    Run(tmp_path, rate=0.0).train(110)
    edits = {0: {"net/Conv/BatchNorm/gamma": lambda value: value * 300}}
    assert Run(tmp_path, rate=0.0).train(12, edits)["net/Conv/weights_quant"] == "exploded"


@pytest.mark.long_on_tf1
def test_a_layer_that_dies_in_mid_run_is_named_within_two_looks(tmp_path, capsys):
    killed = {
        150: {
            "net/down/BatchNorm/gamma": np.zeros_like,
            "net/down/BatchNorm/beta": np.zeros_like,
        }
    }
    run = Run(tmp_path)
    verdicts = run.train(310, killed)
    name = "net/down/act_quant"
    low, high, verdict, reference = run.json()[name]
    assert verdict == verdicts[name] == "collapsed"
    assert low == 0.0 and high > reference / 10  # the average is far from what is called collapsed
    collapsed = {name for name, verdict in verdicts.items() if verdict != "ok"}
    assert all(name.startswith(("net/down/", "Head_1/")) for name in collapsed)
    error = capsys.readouterr().err
    # Its weights at once, itself at the second look, at step 300.
    assert "net/down/weights_quant" in error
    width = float(re.search(r"net/down/act_quant \[0, ([^]]+)\]", error).group(1))
    assert width < 1e-3 * reference


@pytest.mark.long_on_tf1
def test_a_layer_that_explodes_in_mid_run_is_named_before_its_average_is(tmp_path):
    # Behind a residual add's shortcut, where no ReLU6 clips.
    name = "net/block/project/act_quant"
    edits = {105: {"net/block/project/BatchNorm/gamma": lambda value: value * 150}}
    run = Run(tmp_path, rate=0.0)
    assert run.train(205, edits)[name] == "exploded"
    low, high, _, reference = run.json()[name]
    assert high - low < 100 * reference


@pytest.mark.long_on_tf1
def test_the_reference_outlives_the_run(tmp_path):
    name, gamma = "net/Conv/weights_quant", "net/Conv/BatchNorm/gamma"
    run = Run(tmp_path, rate=0.0)
    run.train(110)
    reference = run.json()[name][3]
    assert reference > 0
    shrink = {0: {gamma: lambda value: value / 50}}
    assert run.train(12, shrink)[name] == "ok"
    assert run.json()[name][3] == reference
    assert run.train(12, shrink)[name] == "collapsed"  # 2,500 times; against the last run's it would be 50
    assert run.json()[name][3] == reference


@pytest.mark.long_on_tf1
def test_a_reference_of_another_training_is_not_taken(tmp_path):
    run = Run(tmp_path, rate=0.0)
    entries = {RELU6: [0.0, 1e5, "ok", 1e5], "net/Conv/weights_quant": [0.0, 1e5, "ok", 1e5]}
    (tmp_path / "quant_ranges.json").write_text(json.dumps(entries))
    verdicts = run.train(12)
    assert verdicts[RELU6] == verdicts["net/Conv/weights_quant"] == "ok"
    assert run.json()[RELU6][3] is None


@pytest.mark.long_on_tf1
def test_a_file_that_is_not_ours_is_no_trouble(tmp_path):
    run = Run(tmp_path, rate=0.0)
    run.train(11)
    for text in ("", "[]", "null", '{"a": 1}', '{"net/Conv/act_quant": [0, 1, "ok"]}'):
        (tmp_path / "quant_ranges.json").write_text(text)
        assert run.hook._kept_references() == {}
    assert set(run.train(11).values()) == {"ok"}


def _after(values, decay, before=(0.0, 0.0), dtype=np.float32):
    """`biased` and `local_step` after more values."""
    biased, steps = dtype(before[0]), before[1]
    for value in values:
        biased -= (biased - dtype(value)) * dtype(1.0 - decay)
        steps += 1
    return ranges.Average(float(biased), float(steps))


@pytest.mark.parametrize("decay", [0.9, 0.99, 0.999, 0.9999])
@pytest.mark.parametrize("steps_before, steps", [(0, 10), (10, 90), (20000, 100), (20000, 1000)])
def test_the_mean_between_two_looks(decay, steps_before, steps):
    random = np.random.RandomState(0)
    first = _after(5.0 + random.uniform(-1, 1, steps_before), decay)
    for value in (7.0, 5.0, 0.0):
        then = Range(np.float32(0), np.float32(5), first.steps, (None, first))
        second = _after([value] * steps, decay, first)
        now = Range(np.float32(0), np.float32(5), second.steps, (None, second))
        found = ranges.between(then, now, decay)
        if found is None:
            assert decay == 0.9999  # (too slow for ten or a hundred steps of float32)
            continue
        assert found.low == 0.0 and found.updates == steps
        assert abs(found.high - value) < 5.0 * 1e-3 / 2  # half of what is called collapsed
    if decay <= 0.999:
        assert found is not None and ranges.judge(found, 5.0) == "collapsed"


def test_no_mean_between_looks_that_are_too_near_or_of_what_is_not_averaged():
    def at(steps, low=None):
        averages = (low and _after([low] * steps, 0.999), _after([1.0] * steps, 0.999))
        return Range(np.float32(-1), np.float32(1), steps, averages)

    assert ranges.between(at(100), at(109), 0.999) is None
    assert ranges.between(at(100), at(50), 0.999) is None
    assert ranges.between(_range(-1, 1), _range(-1, 1), 0.999) is None
    found = ranges.between(at(100, -2.0), at(200, -2.0), 0.999)
    assert (found.low, found.high) == (pytest.approx(-2.0, rel=1e-3), pytest.approx(1.0, rel=1e-3))


@pytest.mark.long_on_tf1
def test_an_inconsistent_range_is_named(tmp_path, capsys):
    edits = {0: {"Head_0/class/act_quant/min": lambda value: np.float32(1.0)}}
    verdicts = Run(tmp_path, dead_classes=True).train(12, edits)
    assert verdicts["Head_0/class/act_quant"] == "inconsistent"
    assert "inconsistent (1): Head_0/class/act_quant [1, 6]" in capsys.readouterr().err


@pytest.mark.long_on_tf1
def test_a_range_that_is_not_finite_ends_training_before_it_is_saved(tmp_path):
    edits = {3: {"Head_0/class/act_quant/max": lambda value: np.float32(np.nan)}}
    run = Run(tmp_path, dead_classes=True)
    with pytest.raises(OdQatError, match="Head_0/class/act_quant.*earlier checkpoint"):
        run.train(12, edits)
    assert run.json()["Head_0/class/act_quant"] == [0.0, None, "not finite", None]
    newest = tf.train.load_checkpoint(tf.train.latest_checkpoint(run.folder))
    assert np.isfinite(newest.get_tensor("Head_0/class/act_quant/max"))


@pytest.mark.long_on_tf1
def test_tensorboard_counts_each_kind(tmp_path):
    Run(tmp_path, dead_classes=True).train(12)
    tf.summary.FileWriterCache.get(str(tmp_path)).flush()
    counts = {}
    for name in os.listdir(str(tmp_path)):
        if name.startswith("events"):
            for event in tf.train.summary_iterator(str(tmp_path / name)):
                counts.update((value.tag, value.simple_value) for value in event.summary.value)
    assert counts["range_gates/never_moved"] == 5
    assert counts["range_gates/exploded"] == 0


def _checkpoint(folder, values):
    with tf.Graph().as_default(), tf.Session() as session:
        for name, value in values.items():
            tf.Variable(np.float32(value), name=name)
        session.run(tf.global_variables_initializer())
        return tf.train.Saver().save(session, os.path.join(str(folder), "model.ckpt"))


def test_a_checkpoint_to_be_exported_is_looked_at(tmp_path, capsys):
    values = {
        "a/act_quant/min": 0.0,
        "a/act_quant/max": 6.0,
        "a/act_quant/a/act_quant/max/local_step": 7.0,
        "b/act_quant/min": 0.0,
        "b/act_quant/max": 6.0,
        "b/act_quant/b/act_quant/max/local_step": 0.0,
        "b/weights_quant/min": -1.0,
        "b/weights_quant/max": 1.0,
        "c/weights_quant/min": 0.0,
        "c/weights_quant/max": 0.0,
        "other/min": 0.0,  # not of the graph
        "other/max": 0.0,
    }
    prefix = _checkpoint(tmp_path, values)
    quant_names = [name for name in values if "_quant/" in name and "local_step" not in name]
    lines = ranges.warn_of_checkpoint(prefix, quant_names)
    assert capsys.readouterr().err.splitlines() == lines
    assert len(lines) == 2
    assert "never moved (1): b/act_quant [0, 6];" in lines[0]
    assert "collapsed (1): c/weights_quant [0, 0];" in lines[1]


def test_a_checkpoint_with_a_nan_range_is_refused(tmp_path):
    values = {"a/act_quant/min": 0.0, "a/act_quant/max": np.nan}
    prefix = _checkpoint(tmp_path, values)
    with pytest.raises(OdQatError, match="a/act_quant"):
        ranges.warn_of_checkpoint(prefix, values)


def test_a_graph_without_ranges_is_left_alone(tmp_path):
    with tf.Graph().as_default():
        assert tf.get_collection(QUANT_VARIABLES) == []
        step = tf.train.get_or_create_global_step()
        train = tf.assign_add(step, 1)
        hook = range_gates.RangeGatesHook(str(tmp_path), step)
        hooks = [tf.train.StopAtStepHook(num_steps=12), hook]
        with tf.train.MonitoredTrainingSession(hooks=hooks, log_step_count_steps=0) as session:
            while not session.should_stop():
                session.run(train)
    assert os.listdir(str(tmp_path)) == []
