"""slim's own commands for classifiers, under od-qat run and in a patched tree; od-qat freeze."""

import json
import os
import re

import pytest

from od_qat.cli import command_line
from od_qat.compat import tf
from tests.generations import road as trees
from tests.generations import slim_road
from tests.helpers import tiny_classifier, tiny_detector

try:
    from od_qat import plugin  # noqa: F401
    from od_qat.classifiers import score
    from od_qat.od_api import patching
except Exception as error:  # noqa: BLE001
    pytest.skip("the OD API cannot be imported: {}".format(error), allow_module_level=True)

pytestmark = [pytest.mark.tf1, pytest.mark.long_on_tf1]

NETWORK = ["--image_size=32", "--depth_multiplier=0.25", "--num_classes=7"]  # (of which it wants the best 5)
SCRIPTS = ("train_image_classifier.py", "eval_image_classifier.py", "export_inference_graph.py")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder as slim's ImageNet converter leaves it."""
    folder = str(tmp_path_factory.mktemp("imagenet"))
    for part in ("train", "validation"):
        tiny_classifier.write_records(os.path.join(folder, part + "-00000-of-00001"))
    return folder


def train_flags(data, folder):
    return NETWORK + [
        "--dataset_dir=" + data,
        "--checkpoint_dir=" + folder,
        "--batch_size=4",
        "--number_of_steps=3",
        "--quantize",
    ]


def eval_flags(data, folder, to):
    return NETWORK + [
        "--dataset_dir=" + data,
        "--checkpoint_dir=" + folder,
        "--eval_dir=" + to,
        "--batch_size=6",
        "--num_examples=36",
        "--quantize",
    ]


@pytest.fixture(scope="module")
def ran(tmp_path_factory, data, run_python):
    """Both commands have been run: the folder, and what the evaluation printed."""
    folder = str(tmp_path_factory.mktemp("slim"))
    flags = train_flags(data, os.path.join(folder, "train"))
    done = run_python("-m", "od_qat", "run", "nets.mobilenet_v1_train", "--", *flags, timeout=600)
    assert done.status == 0, done.errors[-2000:]
    flags = eval_flags(data, os.path.join(folder, "train"), os.path.join(folder, "eval"))
    done = run_python("-m", "od_qat", "run", "nets.mobilenet_v1_eval", "--", *flags, timeout=600)
    assert done.status == 0, done.errors[-2000:]
    return folder, done.output + done.errors


def test_the_evaluation_leaves_the_graph_that_it_scored(ran, data):
    path = os.path.join(ran[0], "eval", "frozen_eval_graph.pb")
    assert tiny_detector.fake_quants(path) > 50
    found = score.score(path, os.path.join(data, "validation-00000-of-00001"), progress=False)
    (printed,) = set(re.findall(r"eval/Accuracy\[([\d.]+)\]", ran[1]))
    assert found.accuracy == pytest.approx(float(printed), abs=1e-4)
    with open(path.replace(".pb", ".json")) as stream:
        beside = json.load(stream)
    assert beside["quantized"] and beside["checkpoint"] == "model.ckpt-3"
    assert beside["outputs"][0]["name"] == "MobilenetV1/Predictions/Reshape_1:0"


@pytest.mark.zoo
def test_a_float_checkpoint_is_refused_by_a_quantized_evaluation(ran, data, tmp_path, run_python):
    flags = [flag for flag in train_flags(data, str(tmp_path / "train")) if flag != "--quantize"]
    done = run_python("-m", "od_qat", "run", "nets.mobilenet_v1_train", "--", *flags, timeout=600)
    assert done.status == 0, done.errors[-2000:]
    flags = eval_flags(data, str(tmp_path / "train"), str(tmp_path / "eval"))
    done = run_python("-m", "od_qat", "run", "nets.mobilenet_v1_eval", "--", *flags, timeout=600)
    said = done.errors.strip().splitlines()[-1]
    assert done.status == 1 and said.startswith("od-qat: error: ") and "model.ckpt-3" in said
    assert not (tmp_path / "eval" / "frozen_eval_graph.pb").exists()


@pytest.mark.zoo
def test_in_a_patched_tree(tmp_path):
    source = patching.find_tree(trees.installed())
    tree = slim_road.prepare(source, str(tmp_path))
    assert slim_road.commands(source)
    for command in slim_road.commands(source):
        status, text = slim_road.run(tree, str(tmp_path), command)
        assert status == 0, text[-2000:]
        assert slim_road.wrong_graph(str(tmp_path), command) is None


# The one known tree that has slim's scripts for any network.
WITH_SCRIPTS = os.path.join("picsellia-tf1-0.6", "picsellia_tf1", "slim")


@pytest.mark.long
@pytest.mark.skipif(not os.environ.get("OD_QAT_GENERATIONS"), reason="OD_QAT_GENERATIONS names no trees")
def test_the_scripts_for_any_network(tmp_path, run_python):
    """With the records of slim's MNIST converter, as `od-qat run` has them."""
    slim = os.path.join(os.environ["OD_QAT_GENERATIONS"], WITH_SCRIPTS)
    for part in ("train", "test"):
        tiny_classifier.write_records(str(tmp_path / "mnist_{}.tfrecord".format(part)), grey=True)
    network = ["--dataset_name=mnist", "--dataset_dir=" + str(tmp_path), "--model_name=lenet"]
    out = str(tmp_path / "out")
    train, evaluate, export = (os.path.join(slim, name) for name in SCRIPTS)
    steps = ["--max_number_of_steps=3", "--batch_size=4", "--quantize_delay=0", "--clone_on_cpu"]
    for command in (
        [train, "--", "--train_dir=" + out] + steps,
        [
            evaluate,
            "--",
            "--checkpoint_path=" + out,
            "--eval_dir=" + out,
            "--quantize",
            "--max_num_batches=1",
        ],
        [export, "--", "--output_file=" + os.path.join(out, "graph.pb"), "--quantize", "--use_grayscale"],
    ):
        done = run_python("-m", "od_qat", "run", *(command + network), timeout=600)
        assert done.status == 0, done.errors[-2000:]
    for name in ("frozen_eval_graph.pb", "graph.pb"):
        assert tiny_detector.fake_quants(os.path.join(out, name)) == 8
    found = score.score(
        os.path.join(out, "frozen_eval_graph.pb"), str(tmp_path / "mnist_test.tfrecord"), progress=False
    )
    assert found.images == 36


@pytest.mark.parametrize("target", ["train_image_classifier", "nets.no_such_command"])
def test_what_is_not_here_is_said(target, capsys):
    assert command_line.main(["run", target]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "no such module or script: at " + target in line
    assert ("clone" in line) == (target == "train_image_classifier")


# Without the code that built a graph.


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A function that saves a small classifier in one of the modes, and returns the path of its .meta."""
    import tf_slim as slim

    folder = str(tmp_path_factory.mktemp("meta"))

    def save(name, training, dropout=False, fixed_batch=False):
        from od_qat.rewrite import api

        with tf.Graph().as_default(), tf.Session() as session:
            queue = tf.FIFOQueue(4, [tf.float32], [[8, 8, 3]])
            images = queue.dequeue_many(2)
            net = slim.conv2d(
                images, 4, 3, normalizer_fn=slim.batch_norm, normalizer_params={"is_training": training}
            )
            net = slim.dropout(slim.flatten(net), is_training=dropout)
            logits = slim.fully_connected(net, 3, activation_fn=None)
            if fixed_batch:
                logits = tf.reshape(tf.reshape(logits, [6]), [2, 3])
            slim.softmax(logits, scope="Predictions")
            (api.create_training_graph if training else api.create_eval_graph)()
            session.run(tf.global_variables_initializer())
            return tf.train.Saver().save(session, os.path.join(folder, name)) + ".meta"

    return save


def freeze(capsys, meta, out, *more):
    status = command_line.main(["freeze", "--meta=" + meta, "--output=" + out, *more])
    printed = capsys.readouterr()
    return status, printed.out.strip(), printed.err.strip().splitlines()[-1]


def test_a_meta_graph_is_frozen(checkpoint, tmp_path, capsys):
    out = str(tmp_path / "frozen.pb")
    status, printed, said = freeze(capsys, checkpoint("good", False), out)
    assert (status, printed, said) == (0, "Predictions/Reshape_1", "input input [None, 8, 8, 3]")
    graph_def = tf.GraphDef()
    with open(out, "rb") as stream:
        graph_def.ParseFromString(stream.read())
    assert not [node.op for node in graph_def.node if "Queue" in node.op or "Variable" in node.op]
    with tf.Graph().as_default(), tf.Session() as session:
        tf.import_graph_def(graph_def, name="")
        found = session.run("Predictions/Reshape_1:0", {"input:0": [[[[0.5] * 3] * 8] * 8] * 3})
    assert found.shape == (3, 3) and found.sum(axis=1) == pytest.approx([1, 1, 1])


def test_a_graph_that_computes_with_its_batch_keeps_it(checkpoint, tmp_path, capsys):
    meta = checkpoint("fixed", False, fixed_batch=True)
    status, printed, said = freeze(capsys, meta, str(tmp_path / "frozen.pb"))
    assert (status, printed, said) == (0, "Predictions/Reshape_1", "input input [2, 8, 8, 3]")


@pytest.mark.parametrize(
    "options, says",
    [
        (dict(training=True), "takes its statistics from the batch"),
        (dict(training=False, dropout=True), "draws random numbers (dropout)"),
    ],
)
def test_a_training_graph_is_refused(options, says, checkpoint, tmp_path, capsys):
    out = str(tmp_path / "frozen.pb")
    status, _, said = freeze(capsys, checkpoint("bad", **options), out)
    assert status == 1 and says in said and "eval_image_classifier" in said
    assert not os.path.exists(out)


def _hand_written(kind):
    """Logits of a small network in tf.nn, with something that stands in training graphs only."""
    images = tf.placeholder(tf.float32, [2, 8, 8, 3], name="images")
    kernel = tf.get_variable("kernel", [3, 3, 3, 4])
    net = tf.nn.conv2d(images, kernel, 1, "SAME")
    if kind == "moments":
        mean, variance = tf.nn.moments(net, [0, 1, 2])
        net = tf.nn.batch_normalization(net, mean, variance, None, None, 1e-3)
    elif kind == "means":
        mean = tf.reduce_mean(net, [0, 1, 2], keepdims=True)
        net = (net - mean) * tf.rsqrt(tf.reduce_mean(tf.square(net - mean), [-4, 1, 2]) + 1e-3)
    elif kind == "stateless":
        net *= tf.cast(tf.random.stateless_uniform([2, 8, 8, 4], [1, 2]) > 0.5, tf.float32)
    elif kind == "layer norm":
        mean, variance = tf.nn.moments(net, [1, 2, 3], keep_dims=True)
        net = tf.nn.batch_normalization(net, mean, variance, None, None, 1e-3)
    net = tf.reduce_mean(tf.nn.relu(net), [1, 2])
    return tf.nn.softmax(tf.matmul(net, tf.get_variable("last", [4, 3])), name="probabilities")


@pytest.mark.parametrize(
    "kind, says",
    [
        ("moments", "takes its statistics from the batch"),
        ("means", "takes its statistics from the batch"),
        ("stateless", "draws random numbers"),
        ("updates", "writes a variable (as ranges are updated in training)"),
        ("layer norm", None),
        ("", None),
    ],
)
def test_a_hand_written_training_graph_is_refused(kind, says, tmp_path, capsys):
    from od_qat.rewrite import api

    out = str(tmp_path / "frozen.pb")
    with tf.Graph().as_default(), tf.Session() as session:
        _hand_written(kind)
        if kind == "updates":
            api.create_training_graph()
        session.run(tf.global_variables_initializer())
        meta = tf.train.Saver().save(session, str(tmp_path / "model.ckpt")) + ".meta"
    status, printed, said = freeze(capsys, meta, out)
    assert status == (0 if says is None else 1) and os.path.exists(out) == (says is None)
    assert printed == "probabilities" if says is None else says in said


def test_an_evaluation_with_averages_is_frozen_with_them(tmp_path):
    """As slim's eval_image_classifier.py does with --moving_average_decay."""
    from od_qat.classifiers import hand_over

    tf.app.flags.FLAGS.mark_as_parsed()

    def build():
        images = tf.placeholder_with_default(tf.ones([1, 4, 4, 1]), [None, 4, 4, 1], name="images")
        with tf.variable_scope("net"):
            weight = tf.get_variable("weight", [1, 1, 1, 3])
        net = tf.reduce_mean(tf.nn.conv2d(images, weight, 1, "SAME"), [1, 2])
        return weight, tf.nn.softmax(net, name="Predictions/Softmax")

    average = tf.train.ExponentialMovingAverage(0.5)
    with tf.Graph().as_default(), tf.Session() as session:
        weight, _ = build()
        tf.train.get_or_create_global_step()
        average.apply([weight])
        session.run(tf.global_variables_initializer())
        session.run(
            [weight.assign([[[[7.0, 0.0, 0.0]]]]), average.average(weight).assign([[[[1.0, 2.0, 3.0]]]])]
        )
        prefix = tf.train.Saver().save(session, str(tmp_path / "model.ckpt"))
    with tf.Graph().as_default():
        weight, _ = build()
        step = tf.train.get_or_create_global_step()
        average = tf.train.ExponentialMovingAverage(0.5)
        restored = average.variables_to_restore([weight])
        restored[step.op.name] = step
        hand_over.evaluate_once("", prefix, str(tmp_path), num_evals=1, variables_to_restore=restored)
    graph_def = tf.GraphDef()
    with open(str(tmp_path / "frozen_eval_graph.pb"), "rb") as stream:
        graph_def.ParseFromString(stream.read())
    (found,) = [
        tf.make_ndarray(node.attr["value"].tensor) for node in graph_def.node if node.name == "net/weight"
    ]
    assert found.reshape(-1).tolist() == [1.0, 2.0, 3.0]


def test_wrong_input(checkpoint, tmp_path, capsys):
    meta, out = checkpoint("wrong", False), str(tmp_path / "frozen.pb")
    damaged = str(tmp_path / "damaged.meta")
    with open(meta, "rb") as stream, open(damaged, "wb") as to:
        to.write(stream.read()[:500])
    prefix = "--checkpoint=" + meta[: -len(".meta")]
    for arguments, says in (
        ((str(tmp_path / "no.meta"), out), "cannot read the graph: at .*no.meta, found no such file"),
        ((damaged, out, prefix), "cannot import the graph: at .*damaged.meta"),
        ((meta, out, "--output_nodes=nothing"), "no such node in the graph.*found nothing"),
        ((meta, out, "--checkpoint=" + str(tmp_path / "none")), "no such checkpoint"),
    ):
        status, _, said = freeze(capsys, *arguments)
        assert status == 1 and re.search(says, said), said
    assert not os.path.exists(out)
