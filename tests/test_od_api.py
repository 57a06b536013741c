"""Stand-ins for what went with tf.contrib, against the originals where those run (TensorFlow 1.15)."""

import importlib.util
import os

import numpy as np
import pytest

from od_qat import compat, files
from od_qat.compat import IS_TF1, tf
from od_qat.errors import ConfigError, EnvironmentProblem
from od_qat.od_api import (
    bipartite,
    graph_transforms,
    import_hook,
    locate,
    moving_average,
    pipeline,
    source_changes,
)
from tests.helpers import tiny_detector

compat.enable_tf1_behaviour()
pytestmark = pytest.mark.tf1


@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15 has no file system in memory")
def test_files_of_other_file_systems(tmp_path):
    """What a config may name as gs://..., TensorFlow reads; `ram://` is one that is everywhere."""
    path = "ram://folder/below/a.config"
    with pytest.raises(ConfigError, match="cannot read the pipeline config: at ram://folder/below/a.config"):
        pipeline.load(path)
    files.write_atomically(path, "model { ssd { num_classes: 3 } }")
    assert pipeline.load(path).model.ssd.num_classes == 3
    files.write_atomically(path, "model { ssd { num_classes: 4 } }")
    assert pipeline.load(path).model.ssd.num_classes == 4
    assert tf.gfile.ListDirectory("ram://folder/below") == ["a.config"]
    assert not os.path.exists("ram:")


def _run_match(distance, valid):
    with tf.Graph().as_default(), tf.Session() as session:
        return session.run(bipartite.bipartite_match(tf.constant(distance), tf.constant(valid)))


def test_bipartite_match_takes_the_smallest_distance_first():
    distance = np.array([[0.5, 0.1, 0.9], [0.2, 0.15, 0.8]], np.float32)
    rows, columns = _run_match(distance, 2.0)
    assert rows.tolist() == [1, 0]
    assert columns.tolist() == [1, 0, -1]
    rows, columns = _run_match(distance, 1.0)
    assert rows.tolist() == [1, -1]
    assert columns.tolist() == [-1, 0, -1]


@pytest.mark.skipif(not IS_TF1, reason="the original kernel is in TensorFlow 1.15's contrib only")
def test_bipartite_match_equals_the_original():
    from tensorflow.contrib.image.python.ops import image_ops

    rng = np.random.RandomState(0)
    for shape in ((1, 1), (3, 7), (7, 3), (5, 5)):
        for valid in (-1.0, 1.0, float(shape[0])):  # (the kernel refuses more than there are rows)
            distance = rng.permutation(shape[0] * shape[1]).reshape(shape).astype(np.float32)
            with tf.Graph().as_default(), tf.Session() as session:
                original = session.run(image_ops.bipartite_match(tf.constant(distance), num_valid_rows=valid))
            for ours, theirs in zip(_run_match(distance, valid), original):
                np.testing.assert_array_equal(ours, theirs)


def _train(make_optimizer):
    with tf.Graph().as_default(), tf.Session() as session:
        variable = tf.get_variable("layer/weights", initializer=[1.0, -2.0])
        step = tf.train.get_or_create_global_step()
        optimizer = make_optimizer(tf.train.GradientDescentOptimizer(0.1))
        update = optimizer.minimize(tf.reduce_sum(tf.square(variable)), global_step=step)
        session.run(tf.global_variables_initializer())
        for _ in range(3):
            session.run(update)
        return session.run({v.op.name: v for v in tf.global_variables()})


def test_moving_average_is_kept_under_contribs_name():
    values = _train(lambda o: moving_average.MovingAverageOptimizer(o, average_decay=0.5))
    assert values["global_step"] == 3
    # w: 1 -> .8 -> .64 -> .512, average: 1 -> .9 -> .77 -> .641
    assert values["layer/weights"][0] == pytest.approx(0.512)
    assert values["layer/weights/ExponentialMovingAverage"][0] == pytest.approx(0.641)


@pytest.mark.skipif(not IS_TF1, reason="the original is in TensorFlow 1.15's contrib only")
def test_moving_average_equals_the_original():
    from tensorflow.contrib import opt

    ours = _train(lambda o: moving_average.MovingAverageOptimizer(o, average_decay=0.9))
    theirs = _train(lambda o: opt.MovingAverageOptimizer(o, average_decay=0.9))
    assert sorted(ours) == sorted(theirs)
    for name in ours:
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-6)


def test_strip_unused_nodes_is_the_one_transform():
    with tf.Graph().as_default() as graph:
        a = tf.constant(1.0, name="a")
        tf.identity(a, name="used")
        tf.identity(a, name="unused")
        stripped = graph_transforms.TransformGraph(graph.as_graph_def(), [], ["used"], ["strip_unused_nodes"])
        assert sorted(node.name for node in stripped.node) == ["a", "used"]
        with pytest.raises(ValueError):
            graph_transforms.TransformGraph(graph.as_graph_def(), [], ["used"], ["fold_constants"])


def _upsampled(tensor, reshaped):
    """As the OD API builds it: trees from 2021 on reshape between the two stacks."""
    batch, height, width, channels = tensor.shape.as_list()
    across = tf.stack([tensor] * 2, axis=3)
    if reshaped:
        across = tf.reshape(across, [batch, height, width * 2, channels])
        down = tf.stack([across] * 2, axis=2)
    else:
        down = tf.stack([across] * 2, axis=2)
    return tf.reshape(down, [batch, height * 2, width * 2, channels])


def _pyramid(reshaped, quantised):
    """Two upsamplings one after the other, behind fake quants or not, and one behind none at all."""
    images = tf.placeholder(tf.float32, [1, 4, 4, 2], "images")

    def quant(tensor):
        return tf.quantization.fake_quant_with_min_max_vars(tensor, -4.0, 4.0) if quantised else tensor

    with tf.name_scope("top"):
        top = _upsampled(quant(images), reshaped)
    middle = quant(tf.add(top, tf.ones([1, 8, 8, 2])))
    with tf.name_scope("middle"):
        cut = _upsampled(middle, reshaped)[:, :15, :15, :]
    with tf.name_scope("plain"):
        plain = _upsampled(tf.tanh(images), reshaped)
    return tf.identity(tf.add_n([cut, tf.ones([1, 15, 15, 2])]) * 2.0, "out"), plain * 3.0


def _types(graph):
    """What can be reached from the outputs, by type."""
    kept = tf.graph_util.extract_sub_graph(graph.as_graph_def(), ["out", "mul_1"])
    return sorted(node.op for node in kept.node if node.op not in ("Const", "Identity"))


@pytest.mark.parametrize("reshaped", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_upsamplings_are_rewritten_as_upstream_does(reshaped, quantised):
    pixels = np.random.RandomState(0).rand(1, 4, 4, 2).astype(np.float32)

    def run(rewrite):
        with tf.Graph().as_default() as graph, tf.Session() as session:
            outputs = _pyramid(reshaped, quantised)
            rewrite(is_quantized=quantised)
            return _types(graph), session.run(outputs, {"images:0": pixels})

    types, results = run(graph_transforms.rewrite_nn_resize_op)
    _, before = run(lambda is_quantized: None)
    for one, other in zip(results, before):
        np.testing.assert_array_equal(one, other)
    # Without a fake quant the third stays as it is where only those are asked for.
    assert types.count("ResizeNearestNeighbor") == (2 if quantised else 3)
    assert types.count("Pack") == (2 if quantised else 0)
    if IS_TF1 and reshaped:  # (the installed tree's pattern is that of 2021)
        assert types == run(_upstreams_rewriting())[0]


def _upstreams_rewriting():
    """object_detection.exporter.rewrite_nn_resize_op as the file has it, past the import hook."""
    locate.add_to_path()
    import_hook.install()  # (what it imports may be changed)
    path = importlib.util.find_spec("object_detection.exporter").origin
    spec = importlib.util.spec_from_file_location("upstreams_exporter", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rewrite_nn_resize_op


def test_a_folder_that_is_no_od_api_is_named(tmp_path):
    with pytest.raises(EnvironmentProblem, match="object_detection"):
        locate.add_to_path(str(tmp_path))


@pytest.mark.skipif(
    importlib.util.find_spec("object_detection") is None and not os.environ.get("OD_API"),
    reason="the OD API is not installed here and OD_API is not set",
)
def test_every_source_change_finds_its_line():
    """A fragment that is nowhere in its module is a change that no longer does anything."""
    locate.add_to_path()
    import_hook.install()
    for patch in source_changes.PATCHES:
        if patch.series and "2022" not in patch.series:
            continue  # for another tree than the installed one; tests/test_patching.py has those
        for module, changes in patch.changes.items():
            spec = importlib.util.find_spec(module)
            if patch.name == "image-classifiers" and spec is None:
                continue  # (a script of slim's that is in clones only)
            assert spec is not None, module
            with open(spec.origin) as stream:
                text = stream.read()
            for fragment, _ in changes:
                assert fragment in text, (module, fragment)


def test_input_readers_are_not_autotuned(tmp_path):
    """All their parallelism is set; a thread that tunes would hold up the end of a session."""
    from od_qat.od_api import models, pipeline

    tiny_detector.write_data(str(tmp_path))
    config = pipeline.load(tiny_detector.write_config(str(tmp_path), False, "float"))
    with tf.Graph().as_default() as graph:
        example = models.input_fn(config.train_input_reader)()
    assert "groundtruth_boxes" in example
    nodes = {node.name: node for node in graph.as_graph_def().node}
    (parsing,) = [node for node in nodes.values() if node.op.startswith("ParallelMapDataset")]
    (calls,) = [nodes[name] for name in parsing.input if name.startswith("num_parallel_calls")]
    assert tf.make_ndarray(calls.attr["value"].tensor) == config.train_input_reader.num_parallel_map_calls > 0
    options = [node for node in nodes.values() if node.op == "OptionsDataset"]
    if IS_TF1:
        assert options == []
        return
    from tensorflow.core.framework import dataset_options_pb2

    (only,) = options
    found = dataset_options_pb2.Options.FromString(only.attr["serialized_options"].s)
    assert found.autotune_options.HasField("enabled") and not found.autotune_options.enabled


def _shuffle_buffer(graph) -> int:
    """The buffer size of the graph's shuffle of records, whose input is not the few names of files."""
    nodes = {node.name: node for node in graph.as_graph_def().node}
    sizes = []
    for node in nodes.values():
        if node.op.startswith("Shuffle"):
            (size,) = [nodes[name] for name in node.input if nodes[name].op == "Const" and "buffer" in name]
            sizes.append(int(tf.make_ndarray(size.attr["value"].tensor)))
    return max(sizes)


@pytest.mark.parametrize(
    ("available", "given", "expected"),
    [(None, None, 2048), (160, None, 160), (5000, None, 2048), (160, 400, 400)],
)
def test_shuffle_buffer_holds_no_more_than_the_data(tmp_path, available, given, expected):
    from od_qat.od_api import models, pipeline

    tiny_detector.write_data(str(tmp_path))
    config = pipeline.load(tiny_detector.write_config(str(tmp_path), False, "float"))
    reader = config.train_input_reader
    reader.ClearField("shuffle_buffer_size")
    if given:
        reader.shuffle_buffer_size = given
    before = reader.SerializeToString()
    with tf.Graph().as_default() as graph:
        models.input_fn(reader, available=available)()
    assert _shuffle_buffer(graph) == expected
    assert reader.SerializeToString() == before


@pytest.mark.parametrize("half", ["tf1", "tf2"])
def test_graphs_without_autograph_are_the_same(tmp_path, monkeypatch, half):
    """AutoGraph takes seconds for the Python of a model, and its graph is the same, to the node."""
    from od_qat import plugin  # noqa: F401  (before object_detection)
    from od_qat.od_api import halves, inference, models

    if half == "tf2" and not compat.HAS_TF2_MODELS:
        pytest.skip("TensorFlow 1.15 has no TF 2 models")
    tiny_detector.write_data(str(tmp_path))
    config = pipeline.load(tiny_detector.write_config(str(tmp_path), False, "a", tf2=half == "tf2"))

    def build():
        with tf.Graph().as_default() as graph, halves.active(config):
            tf.set_random_seed(1)
            inference.build_detection_graph(models.model_fn(config, is_training=False)())
            return graph.as_graph_def()

    without = build()
    monkeypatch.setattr(models, "_keep_from_autograph", lambda model: None)
    assert build() == without
    assert len(without.node) > 1000


@pytest.mark.skipif(IS_TF1, reason="TensorFlow 1.15's tf.map_fn does without AutoGraph")
def test_a_users_model_keeps_autograph():
    """A registered feature extractor may have Python that branches on tensors."""
    from od_qat.od_api import models

    class Model(object):
        def preprocess(self, data):
            if tf.reduce_sum(data) > 0:
                data = -data
            return data

        predict = postprocess = loss = preprocess

    class OfUpstream(Model):
        pass

    OfUpstream.__module__ = "object_detection.meta_architectures.ssd_meta_arch"
    users, upstreams, extended = Model(), OfUpstream(), OfUpstream()
    extended._feature_extractor = Model()
    for model in (users, upstreams, extended):
        models._keep_from_autograph(model)
    with tf.Graph().as_default():
        data = tf.constant([1.0])
        for model in (users, extended):
            assert tf.map_fn(model.preprocess, data[None]).shape == [1, 1]
        # (Its class is TypeError, or one of TensorFlow's own.)
        with pytest.raises(Exception, match="as a Python `bool`"):
            tf.map_fn(upstreams.preprocess, data[None])


def test_sessions_optimize_as_often_as_is_worth_it():
    """What a graph computes does not depend on it."""
    from od_qat.graph import session_config

    configs = [session_config.for_many_runs(log_device_placement=True), session_config.for_few_runs(), None]
    assert configs[0].log_device_placement
    rewrites = [config.graph_options.rewrite_options for config in configs[:2]]
    assert rewrites[0].meta_optimizer_iterations == rewrites[0].ONE
    assert rewrites[1].disable_meta_optimizer and not rewrites[0].disable_meta_optimizer
    value = np.random.RandomState(0).rand(4, 5).astype(np.float32)
    found = []
    for config in configs:
        with tf.Graph().as_default(), tf.Session(config=config) as session:
            data = tf.placeholder(tf.float32, [4, 5])
            found.append(
                session.run(tf.nn.relu(tf.matmul(data, data, transpose_b=True) - 1.0), {data: value})
            )
    np.testing.assert_array_equal(found[0], found[2])
    np.testing.assert_array_equal(found[1], found[2])
