"""od-qat targets: the rules of devices, against LiteRT itself where it runs here, and on edited files."""

import json
import os

import numpy as np
import pytest

from od_qat import cli
from od_qat.errors import ConfigError
from od_qat.model_files import interpreter, tflite_graph
from od_qat.report import target_report
from od_qat.targets import rules
from tests.test_model_nodes import changed

pytest.importorskip("ai_edge_litert")

COCO = os.environ.get("OD_QAT_COCO_DETECTOR")
HERE = os.path.join(os.path.dirname(os.path.abspath(rules.__file__)))


def content(name):
    with open(os.path.join(HERE, name + ".json"), encoding="utf-8") as stream:
        return json.load(stream)


@pytest.mark.parametrize("name", rules.NAMES)
def test_rules_are_whole(name):
    """Each names a check that there is, and a document."""
    target = rules.load(name)
    every = list(target.general) + [rule for of_op in target.ops.values() for rule in of_op]
    assert len(every) > 80 and len(target.ops) >= 38
    not_checked = {"unknown", "min_runtime"}
    for rule in every:
        assert rule.check in rules.CHECKS or rule.check in not_checked, rule
        assert rule.says.endswith(".") and 0 <= rule.source < len(target.sources)
    for source in target.sources:
        assert source["url"].startswith("https://") or source["url"].startswith("index"), source
        assert source["title"] and source["read"] == "2026-11-28"


def test_every_check_is_of_some_rule():
    used = {
        rule.check
        for name in rules.NAMES
        for of_op in [rules.load(name).general] + list(rules.load(name).ops.values())
        for rule in of_op
    }
    assert set(rules.CHECKS) <= used


def test_op_names_are_the_schemas():
    known = set(vars(tflite_graph.schema().BuiltinOperator))
    for name in rules.NAMES:
        custom = {op for op in rules.load(name).ops if op not in known}
        # (TFLM has custom ops of its own.)
        assert {op for op in custom if op.isupper()} <= {"CIRCULAR_BUFFER", "TFLM_DECODE"}


# XNNPACK: LiteRT says itself which ops it hands over.


def delegated(path):
    """The inputs and the outputs of each part of a .tflite that XNNPACK runs here."""
    opened = interpreter.module().Interpreter(model_path=path)
    opened.allocate_tensors()
    return [
        (set(map(int, op["inputs"])) - {-1}, set(map(int, op["outputs"])))
        for op in opened._get_ops_details()
        if op["op_name"] == "DELEGATE"
    ]


def require_same_parts(path):
    """Each op that the rules take is in one of LiteRT's parts, and each other op is in none."""
    graph = tflite_graph.read(path)
    taken = {one.op.index for one in rules.judge(graph, rules.load("xnnpack")) if one.status == rules.TAKEN}
    parts = delegated(path)
    inside = set()
    for inputs, outputs in parts:
        # Backwards from what a part makes to what it reads.
        pending = set(outputs)
        for op in reversed(graph.ops):
            if pending & set(op.outputs) and not set(op.outputs) & inputs:
                inside.add(op.index)
                pending |= set(op.inputs) - inputs
    assert inside == taken
    assert parts or not taken
    return graph, taken


@pytest.mark.parametrize("kind", ["int8", "uint8", "float32"])
def test_xnnpack_takes_what_the_rules_say(model_dir, kind):
    graph, taken = require_same_parts(os.path.join(model_dir, kind + ".tflite"))
    assert 0 < len(taken) < len(graph.ops)  # not the post-processing


@pytest.mark.skipif(not COCO, reason="OD_QAT_COCO_DETECTOR is not set")
def test_xnnpack_takes_what_the_rules_say_of_a_published_detector(capsys):
    path = os.path.join(COCO, "detect.tflite")
    graph, taken = require_same_parts(path)
    refused = [op.type for op in graph.ops if op.index not in taken]
    assert refused == ["CONCATENATION", "CONCATENATION", "TFLite_Detection_PostProcess"]
    assert cli.main(["targets", path]) == 0
    said = capsys.readouterr().out
    assert "not taken: 57 CONCATENATION concat (6 inputs); and 1 CONCATENATION" in said
    assert "Coral Edge TPU" in said and "1 not taken" in said


def test_a_ratio_of_scales_that_xnnpack_cannot_compute(model_dir, tmp_path):
    """As a training that has diverged leaves it: the interpreter refuses the whole file."""
    source = os.path.join(model_dir, "int8.tflite")

    def steep(model, schema):
        graph = model.subgraphs[0]
        (conv,) = [op for op in graph.operators if code(model, op) == schema.BuiltinOperator.CONV_2D]
        for index in (conv.inputs[1], conv.inputs[2]):
            quantization = graph.tensors[index].quantization
            quantization.scale = np.asarray(quantization.scale, np.float32) * 1e8

    path = changed(source, tmp_path / "steep.tflite", steep)
    (verdict,) = [one for one in verdicts(path, "xnnpack") if one.op.type == "CONV_2D"]
    assert verdict.status == rules.REFUSED
    assert [broken.rule.check for broken in verdict.broken] == ["scale_ratio"]
    with pytest.raises(RuntimeError, match="XNNPACK"):
        delegated(path)


def code(model, op):
    found = model.operatorCodes[op.opcodeIndex]
    return max(found.deprecatedBuiltinCode, found.builtinCode)


def verdicts(path, name):
    return rules.judge(tflite_graph.read(path), rules.load(name))


# Others: a file that fits, and the same with one thing changed.


def with_conv(change):
    def edit(model, schema):
        graph = model.subgraphs[0]
        (conv,) = [op for op in graph.operators if code(model, op) == schema.BuiltinOperator.CONV_2D]
        change(graph, conv)

    return edit


def _dilated(graph, conv):
    conv.builtinOptions.dilationHFactor = 2


def _of_two_pictures(graph, conv):
    graph.tensors[conv.inputs[0]].shape = [2, 32, 32, 3]


def _of_any_size(graph, conv):
    graph.tensors[conv.inputs[0]].shapeSignature = [1, -1, -1, 3]


def _zero_point(graph, conv):
    graph.tensors[conv.inputs[1]].quantization.zeroPoint = [3]


def _other_bias(graph, conv):
    quantization = graph.tensors[conv.inputs[2]].quantization
    quantization.scale = np.asarray(quantization.scale, np.float32) * 2


def _fused_tanh(graph, conv):
    conv.builtinOptions.fusedActivationFunction = 4


@pytest.mark.parametrize(
    "change, name, check, found",
    [
        (_dilated, "edge_tpu", "same_dilation", "dilation 2x1"),
        (_of_two_pictures, "edge_tpu", "three_innermost", "is [2, 32, 32, 3]"),
        (_of_any_size, "edge_tpu", "static_shapes", "is [1, -1, -1, 3]"),
        (_of_any_size, "micro", "static_shapes", "is [1, -1, -1, 3]"),
        (_zero_point, "specification", "zero_point_zero", "has the zero point 3"),
        (_zero_point, "xnnpack", "zero_point_zero", "has the zero point 3"),
        (_other_bias, "specification", "bias_scale", "has scale"),
        (_fused_tanh, "xnnpack", "fused_activation", "a fused TANH"),
    ],
)
def test_one_thing_that_does_not_fit(change, name, check, found, model_dir, tmp_path):
    source = os.path.join(model_dir, "int8.tflite")

    def of_conv(path):
        (verdict,) = [one for one in verdicts(path, name) if one.op.type == "CONV_2D"]
        return verdict

    assert of_conv(source).status in (rules.TAKEN, rules.NOT_KNOWN)
    verdict = of_conv(changed(source, tmp_path / "changed.tflite", with_conv(change)))
    assert verdict.status == rules.REFUSED
    (broken,) = [one for one in verdict.broken if one.rule.check == check]
    assert found in broken.found


def test_behind_the_first_op_that_an_edge_tpu_refuses(model_dir, tmp_path):
    def dilate(graph, conv):
        conv.builtinOptions.dilationHFactor = 2

    path = changed(os.path.join(model_dir, "int8.tflite"), tmp_path / "a.tflite", with_conv(dilate))
    graph = tflite_graph.read(path)
    found = verdicts(path, "edge_tpu")
    statuses = [one.status for one in found]
    first = statuses.index(rules.REFUSED)
    made = set(graph.ops[first].outputs)
    for one in found[first + 1 :]:
        depends = bool(made & set(one.op.inputs))
        made |= set(one.op.outputs) if depends else set()
        assert one.status in ((rules.BEHIND, rules.REFUSED) if depends else (rules.NOT_KNOWN, rules.REFUSED))
    assert rules.BEHIND in statuses
    found = target_report.OfTarget(tflite_graph.read(path), rules.load("edge_tpu"))
    assert found.multiply_adds == 0
    assert sum(found.counts().values()) == len(statuses)


def test_uint8_is_not_for_microcontrollers(model_dir):
    found = verdicts(os.path.join(model_dir, "uint8.tflite"), "micro")
    (conv,) = [one for one in found if one.op.type == "CONV_2D"]
    assert conv.status == rules.REFUSED and "is uint8" in conv.broken[0].found
    int8 = verdicts(os.path.join(model_dir, "int8.tflite"), "micro")
    assert [one.status for one in int8 if one.op.type == "CONV_2D"] == [rules.TAKEN]


def test_weights_beyond_the_memory(model_dir):
    graph = tflite_graph.read(os.path.join(model_dir, "int8.tflite"))
    assert rules.too_heavy(graph, rules.load("edge_tpu")) is None
    conv = next(op for op in graph.ops if op.type == "CONV_2D")
    large = graph.tensors[conv.inputs[1]]._replace(data=bytes(7000000))
    tensors = graph.tensors[: large.index] + (large,) + graph.tensors[large.index + 1 :]
    broken = rules.too_heavy(graph._replace(tensors=tensors), rules.load("edge_tpu"))
    assert broken.found == "7,000,000 bytes of weights"


def test_the_command(model_dir, tmp_path, capsys):
    model, out = os.path.join(model_dir, "int8.tflite"), str(tmp_path / "found.json")
    assert cli.main(["targets", model, "--target=edge_tpu", "--target=micro", "--json", out]) == 0
    said = capsys.readouterr().out
    assert "Coral Edge TPU" in said and "Microcontrollers" in said and "XNNPACK" not in said
    assert "what this file cannot tell:" in said
    with open(out) as stream:
        found = json.load(stream)
    graph = tflite_graph.read(model)
    assert [one["target"] for one in found] == ["edge_tpu", "micro"]
    for one in found:
        assert [op["type"] for op in one["ops"]] == [op.type for op in graph.ops]
        assert sum(one["counts"].values()) == len(graph.ops)
    last = found[0]["ops"][-1]
    assert (last["type"], last["status"]) == ("TFLite_Detection_PostProcess", rules.REFUSED)


def test_wrong_input(model_dir, tmp_path, capsys):
    with pytest.raises(ConfigError, match="unknown target: found 'tpu', allowed: xnnpack, edge_tpu, micro"):
        rules.load("tpu")
    assert cli.main(["targets", str(tmp_path / "none.tflite")]) == 1
    assert "cannot read the model: at" in capsys.readouterr().err
    text = tmp_path / "text.tflite"
    text.write_text("no model")
    assert cli.main(["targets", str(text)]) == 1
    assert "the .tflite is damaged, or is none" in capsys.readouterr().err
