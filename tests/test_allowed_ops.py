"""A frozen graph is a program: what does more than compute is refused before it is imported and run."""

import os
import re

import numpy as np
import pytest

from od_qat import scoring
from od_qat.errors import ExportError
from od_qat.graph import allowed_ops
from tests.test_scoring import CANONICAL, EXAMPLES, write

pytestmark = pytest.mark.tf1
SHAPES = {"boxes": [1, 1, 4], "classes": [1, 1], "scores": [1, 1], "count": [1]}


def graph_of(tf, change):
    """GraphDef with the canonical names whose outputs all hang on `change(a float32 scalar of the image)`."""
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name=CANONICAL["image"])
        value = change(tf.reduce_max(tf.cast(image, tf.float32)))
        for role, shape in SHAPES.items():
            tf.fill(shape, value, name=CANONICAL[role])
        return graph.as_graph_def()


def refused(path, graph_def):
    write(str(path), graph_def.SerializeToString())
    with pytest.raises(ExportError) as caught:
        scoring.detect(str(path), EXAMPLES[:1], processes=1, progress=False)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value)
    return caught.value


def then(tf, value, op):
    with tf.control_dependencies([op]):
        return tf.identity(value)


def hostile(tf, path):
    """Name of an op -> what puts it into a graph."""
    from tensorflow.python.ops import gen_control_flow_ops, gen_io_ops, gen_script_ops

    by_name = {
        "WriteFile": lambda value: then(tf, value, tf.io.write_file(path, "x")),
        "ReadFile": lambda value: then(tf, value, tf.io.read_file(path)),
        "MatchingFiles": lambda value: then(tf, value, tf.io.matching_files("/etc/*")),
        "SaveV2": lambda value: then(
            tf, value, gen_io_ops.save_v2(path, tensor_names=["a"], shape_and_slices=[""], tensors=[value])
        ),
        "RestoreV2": lambda value: value + gen_io_ops.restore_v2(path, ["a"], [""], dtypes=[tf.float32])[0],
        "PyFunc": lambda value: tf.reshape(tf.py_func(lambda x: x, [value], tf.float32), []),
        "EagerPyFunc": lambda value: tf.reshape(
            gen_script_ops.eager_py_func(input=[value], token="0", Tout=[tf.float32])[0], []
        ),
        "PyFuncStateless": lambda value: tf.reshape(
            gen_script_ops.py_func_stateless(input=[value], token="0", Tout=[tf.float32])[0], []
        ),
        "PrintV2": lambda value: then(tf, value, tf.print(value, output_stream="file://" + path)),
        "Abort": lambda value: then(tf, value, gen_control_flow_ops.abort()),
        "VariableV2": lambda value: value + tf.get_variable("v", [], tf.float32, use_resource=False),
        "FIFOQueueV2": lambda value: value + tf.FIFOQueue(1, [tf.float32], [[]]).dequeue(),
        # (TensorFlow 1.15 has no function for it.)
        "DebugIdentity": lambda value: tf.identity(value, name="renamed"),
    }
    return by_name


HOSTILE = (
    "WriteFile ReadFile MatchingFiles SaveV2 RestoreV2 PyFunc EagerPyFunc PyFuncStateless PrintV2 Abort "
    "VariableV2 FIFOQueueV2 DebugIdentity"
).split()


@pytest.mark.parametrize("op", HOSTILE)
def test_what_does_more_than_compute_is_refused_and_not_run(tf, tmp_path, op):
    victim = str(tmp_path / "victim")
    graph_def = graph_of(tf, hostile(tf, victim)[op])
    for node in graph_def.node:
        if node.name == "renamed":
            node.op = op
    # Checked here first: nothing of it needs a session, a process or an import.
    with pytest.raises(ExportError, match=re.escape(op)):
        allowed_ops.require_harmless(graph_def, "a.pb")
    error = refused(tmp_path / "a.pb", graph_def)
    assert "more than compute detections" in error.what and op in error.found and error.fix
    assert not os.path.exists(victim)


def test_in_functions_too(tf, tmp_path):
    from tensorflow.python.framework import function

    @function.Defun(tf.float32)
    def body(value):
        with tf.control_dependencies([tf.io.write_file(str(tmp_path / "victim"), "x")]):
            return tf.identity(value)

    error = refused(tmp_path / "a.pb", graph_of(tf, lambda value: tf.reshape(body(value), [])))
    assert re.search(r"WriteFile \(node \S+ of function body", error.found)
    assert not (tmp_path / "victim").exists()


def test_all_kinds_of_ops_are_named_at_once(tf, tmp_path):
    all_of_them = hostile(tf, str(tmp_path / "victim"))

    def change(value):
        for op in ("WriteFile", "PyFunc", "ReadFile", "Abort", "SaveV2"):
            value = all_of_them[op](value)
        return value

    found = refused(tmp_path / "a.pb", graph_of(tf, change)).found
    assert found.startswith("the ops Abort (node Abort), PyFunc (node ") and found.endswith(" and 2 more")


def test_no_allowed_op_is_given_a_file_or_an_address(tf):
    """By what this TensorFlow's registry says of each; and the stateful ones are those that are known."""
    from tensorflow.core.framework import op_def_pb2

    try:
        from tensorflow.python.client import pywrap_tf_session as native
    except ImportError:
        from tensorflow.python import pywrap_tensorflow as native
    registered = op_def_pb2.OpList.FromString(native.TF_GetBuffer(native.TF_GetAllOpList())).op
    outside = re.compile("file|path|dir$|directory|url|address|token|host_|memory_region|debug")
    stateful, number = set(), 0
    for op in registered:
        if op.name in allowed_ops.ALLOWED:
            number += 1
            names = [item.name for item in list(op.input_arg) + list(op.attr)]
            assert not [name for name in names if outside.search(name)], op.name
            if op.is_stateful:
                stateful.add(op.name)
    assert number > 400
    kept_within_a_run = re.compile(
        "TensorArray|TensorList|Stack|.*HashTable|LookupTable|InitializeTable|Random|TruncatedNormal|While|If|Case|"
        "StatefulPartitionedCall|Assert|Print$|CheckNumerics|GuaranteeConst|StatelessRandom"
    )
    assert [op for op in sorted(stateful) if not kept_within_a_run.match(op)] == []


def test_loops_tables_and_arrays_are_run(tf, tmp_path):
    """Of both kinds: ops of their own and, on TensorFlow 2, functions."""

    def change(value):
        array = tf.TensorArray(tf.float32, 3)
        _, array = tf.while_loop(
            lambda index, _: index < 3,
            lambda index, array: (index + 1, array.write(index, value)),
            [0, array],
        )
        value = tf.reduce_mean(array.stack())
        value = tf.cond(value > 0.0, lambda: value * 2.0, lambda: value)
        with tf.control_dependencies([tf.debugging.Assert(value >= 0.0, [value])]):
            return tf.Print(value, [value], "seen: ") + tf.random_uniform([], 0.0, 1e-6)

    path = str(tmp_path / "a.pb")
    write(path, graph_of(tf, change).SerializeToString())
    found = scoring.detect(path, EXAMPLES[:1], processes=1, progress=False)
    assert found["image 0"].scores.tolist() == [pytest.approx(2 * 230.0, abs=1e-3)]


def test_looking_for_nodes_runs_nothing(tf, tmp_path, capsys):
    """TensorFlow computes shapes while it imports a graph, and reads files for that: here one without end."""
    from od_qat import cli

    fifo, path = str(tmp_path / "fifo"), str(tmp_path / "a.pb")
    os.mkfifo(fifo)
    with tf.Graph().as_default() as graph:
        image = tf.placeholder(tf.uint8, [1, None, None, 3], name=CANONICAL["image"])
        name = tf.placeholder(tf.string, [], name="name")
        size = tf.cast(tf.strings.to_number(tf.io.read_file(name)), tf.int32)
        for role in SHAPES:
            tf.fill([size], tf.reduce_max(tf.cast(image, tf.float32)), name=CANONICAL[role])
    graph_def = graph.as_graph_def()
    (node,) = [node for node in graph_def.node if node.name == "name"]
    node.op = "Const"
    del node.attr["shape"]
    node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(fifo))
    write(path, graph_def.SerializeToString())
    assert allowed_ops.run_by_importing(graph_def) == ["ReadFile"]
    capsys.readouterr()
    assert cli.main(["nodes", path]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("detection_boxes,")
    assert "no shapes, as TensorFlow would run ReadFile to find them" in printed.err


def _detectors():
    from tests.zoo import build

    return [row for row in build.models() if row["kind"] != "classifier" and not row.get("skip")]


@pytest.mark.long
def test_the_detectors_of_the_od_api_are_allowed(tf):
    """All that it registers for TF 1, from the image to the detections."""
    from tests.zoo import build

    for row in _detectors():
        with tf.Graph().as_default() as graph:
            image = tf.placeholder(tf.uint8, [1, None, None, 3])
            model = build._detector(row, False)
            preprocessed, shapes = model.preprocess(tf.cast(image, tf.float32))
            found = model.postprocess(model.predict(preprocessed, shapes), shapes)
            names = [tensor.op.name for tensor in found.values()]
            graph_def = tf.graph_util.extract_sub_graph(graph.as_graph_def(), names)
        for node in graph_def.node:  # as freezing does
            if node.op in ("VariableV2", "VarHandleOp"):
                node.op = "Const"
            elif node.op == "ReadVariableOp":
                node.op = "Identity"
        allowed_ops.require_harmless(graph_def, row["name"])


# Errors that were only an exception's name.


def test_a_constant_of_a_million_million_elements(tf, tmp_path):
    graph_def = graph_of(tf, lambda value: value + tf.reduce_max(tf.constant(1.0, name="splat")))
    (node,) = [node for node in graph_def.node if node.name == "splat"]
    for _ in range(2):
        node.attr["value"].tensor.tensor_shape.dim.add().size = 2**20
    error = refused(tmp_path / "a.pb", graph_def)
    assert "a constant of the frozen graph is too large" in error.what and "node splat" in error.where
    assert error.found == "1,099,511,627,776 elements of float32" and error.allowed == "2,147,483,648 bytes"


def with_outputs(tf, **changes):
    """GraphDef whose outputs are right but for `changes`: role -> function of nothing."""
    with tf.Graph().as_default() as graph:
        tf.placeholder(tf.uint8, [1, None, None, 3], name=CANONICAL["image"])
        for role, shape in SHAPES.items():
            tf.identity(changes[role]() if role in changes else tf.ones(shape), name=CANONICAL[role])
        return graph.as_graph_def()


@pytest.mark.parametrize(
    "role, value, message",
    [
        (
            "count",
            np.zeros([0], np.float32),
            "how many detections.*found 0 numbers.*one number, 0 to 1",
        ),
        ("count", np.array([np.nan], np.float32), "how many detections.*found nan in the output for count"),
        ("count", np.ones([3], np.float32), "how many detections.*found 3 numbers"),
        ("count", np.array(["one"]), "an output.* holds no numbers.*found num_detections:0 of type string"),
        ("boxes", np.zeros([0, 1, 4], np.float32), r"not detections.*found boxes \(0, 1, 4\)"),
        ("boxes", np.full([1, 1, 4], np.nan, np.float32), "not numbers.*found NaN or infinity among 1"),
        ("classes", np.full([1, 1], 1e30, np.float32), r"not ids.*found 1e\+30 among 1 detections"),
    ],
)
def test_outputs_that_are_no_detections(tf, tmp_path, role, value, message):
    graph_def = with_outputs(tf, **{role: lambda: tf.constant(value)})
    assert re.search(message, str(refused(tmp_path / "a.pb", graph_def)))


@pytest.mark.parametrize(
    "dtype, shape, message",
    [
        ("string", [1, None, None, 3], "the input.* holds no numbers.*found image_tensor:0 of type string"),
        ("string", [None], r"does not take one RGB image.*found image_tensor:0 \[None\]"),
        (
            "uint8",
            [1, None, None, 1],
            r"found image_tensor:0 \[1, None, None, 1\], allowed: .*width, 3\]",
        ),
        ("uint8", [8, None, None, 3], r"found image_tensor:0 \[8, None, None, 3\]"),
        ("uint8", [1, 9, 8, 3], "images of one size only.*found an image of 64x48, allowed: 9x8"),
    ],
)
def test_inputs_that_are_no_image(tf, tmp_path, dtype, shape, message):
    with tf.Graph().as_default() as graph:
        tf.placeholder(getattr(tf, dtype), shape, name=CANONICAL["image"])
        for role, size in SHAPES.items():
            tf.ones(size, name=CANONICAL[role])
    assert re.search(message, str(refused(tmp_path / "a.pb", graph.as_graph_def())))


def test_what_fails_while_it_runs_is_one_line_with_the_reason(tf, tmp_path):
    graph_def = graph_of(tf, lambda value: tf.reshape(tf.fill([tf.cast(value, tf.int32)], value), []))
    error = refused(tmp_path / "a.pb", graph_def)
    assert error.what == "the frozen graph does not run" and "230 values" in error.found
