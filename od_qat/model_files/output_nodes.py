"""Finds the output nodes of a graph, whose names freezing asks for.

These are tried in order, and the first that fits is taken:

1. `TFLite_Detection_PostProcess`, its four outputs in order;
2. the post-processed detection tensors by their canonical names;
3. the raw SSD heads by their canonical names;
4. detections by structure: the results of the non-maximum suppression, in a graph without those names;
5. a classifier's predictions, by name or as the only softmax, sigmoid or logits that nothing reads.

The last layer of the backbone is never taken, since it has readers or is no output op.
"""

from typing import Dict, List, NamedTuple, Optional, Tuple

from od_qat.errors import OdQatError
from od_qat.graph.index import op_name
from od_qat.model_files import names
from od_qat.model_files.names import POST_PROCESS
from od_qat.rewrite import policy

DETECTION_NAMES = tuple(names.OF_ROLE[role] for role in ("boxes", "scores", "classes", "count"))
OPTIONAL_DETECTION_NAMES = tuple(names.OF_ROLE[role] for role in ("masks", "keypoints"))
RAW_HEAD_NAMES = (names.RAW_BOXES, names.RAW_SCORES)
_CLASSIFIER_ENDINGS = (
    "Predictions/Reshape_1",
    "Predictions/Softmax",
    "predictions/Reshape_1",
    "predictions/Softmax",
    "Predictions/Sigmoid",
)
_FINAL_ACTIVATIONS = frozenset(["Softmax", "Sigmoid", "LogSoftmax"])
_LAYOUT = frozenset(["Identity", "Reshape", "Squeeze"])
# The last op of a layer that makes logits, which may be fake-quantized.
_LAST_OF_LAYERS = frozenset(["BiasAdd", "MatMul", "Conv2D", "Add", "AddV2"]) | policy.FAKE_QUANT
# What says which class is the best, and no more.
_OF_BEST = frozenset(["ArgMax", "TopK", "TopKV2", "InTopK", "InTopKV2"])
# Ops that a graph has beside the model: savers, summaries, initialisers, input queues.
_NOT_OUTPUTS = frozenset(
    [
        "NoOp",
        "Assign",
        "AssignAdd",
        "AssignSub",
        "AssignVariableOp",
        "Const",
        "SaveV2",
        "Assert",
        "MergeSummary",
        "ScalarSummary",
        "HistogramSummary",
        "ImageSummary",
        "Placeholder",
        "VariableV2",
        "VarHandleOp",
        "IsVariableInitialized",
        "VarIsInitializedOp",
        "QueueCloseV2",
        "QueueEnqueueV2",
        "QueueSizeV2",
        "MakeIterator",
        "InitializeTableV2",
        "InitializeTableFromTextFileV2",
        "LookupTableSizeV2",
    ]
)


class OutputNodes(NamedTuple):
    """The output nodes of a graph.

    Attributes:
      names: op names to freeze, in order.
      tensors: tensor names, `op:0` and so on.
      kind: 'tflite_detection', 'detection', 'raw_heads' or 'classifier'.
      reason: how they were found.
    """

    names: Tuple[str, ...]
    tensors: Tuple[str, ...]
    kind: str
    reason: str


def find_output_nodes(graph_def) -> OutputNodes:
    """Finds the output nodes of a GraphDef.

    Args:
      graph_def: GraphDef of any detection or classification graph, frozen or not.

    Returns:
      OutputNodes.

    Raises:
      OdQatError: if none or several fit; the message lists candidates with their shapes.
    """
    return _Finder(graph_def).find()


class _Finder(object):
    def __init__(self, graph_def) -> None:
        self._graph_def = graph_def
        self._nodes: Dict[str, object] = {node.name: node for node in graph_def.node}
        self._readers: Dict[str, List[str]] = {}
        for node in graph_def.node:
            for source in node.input:
                self._readers.setdefault(op_name(source), []).append(node.name)

    def find(self) -> OutputNodes:
        for attempt in (
            self._post_process,
            self._canonical_detections,
            self._raw_heads,
            self._structural_detections,
            self._classifier,
        ):
            found = attempt()
            if found is not None:
                return found
        if any(node.op.startswith(policy.TRAINING_OPS_PREFIXES) for node in self._graph_def.node):
            raise OdQatError(
                "a training graph, which has no outputs",
                found="an optimizer's updates",
                fix="make the inference graph: od-qat export, or od-qat eval",
            )
        raise self._no_answer("no output nodes found", self._candidates())

    def _post_process(self) -> Optional[OutputNodes]:
        found = [node.name for node in self._graph_def.node if node.op == POST_PROCESS]
        if len(found) > 1:
            raise self._no_answer("several post-processing ops", found)
        if not found:
            return None
        tensors = tuple("{}:{}".format(found[0], i) for i in range(4))
        return OutputNodes((found[0],), tensors, "tflite_detection", "the post-processing op of a .tflite")

    def _canonical_detections(self) -> Optional[OutputNodes]:
        if not all(name in self._nodes for name in DETECTION_NAMES):
            return None
        names = DETECTION_NAMES + tuple(n for n in OPTIONAL_DETECTION_NAMES if n in self._nodes)
        return self._answer(names, "detection", "the OD API's names")

    def _raw_heads(self) -> Optional[OutputNodes]:
        if not all(name in self._nodes for name in RAW_HEAD_NAMES):
            return None
        return self._answer(RAW_HEAD_NAMES, "raw_heads", "the names of upstream's export_tflite_ssd_graph")

    def _structural_detections(self) -> Optional[OutputNodes]:
        """Detections by the scope below which the OD API stacks boxes, scores, classes and counts."""
        suppression = [n.name for n in self._graph_def.node if n.op.startswith("NonMaxSuppression")]
        if not suppression:
            return None
        in_post = [name for name in suppression if "BatchMultiClassNonMaxSuppression" in name]
        if not in_post:
            raise self._no_answer(
                "a non-maximum suppression that is not the OD API's: which outputs are meant?",
                self._candidates(),
            )
        scopes = sorted({_batch_scope(name) for name in in_post})
        if len(scopes) > 1:
            # A two-stage detector has two such scopes; the second one has the detections.
            scopes = [scope for scope in scopes if "SecondStage" in scope] or scopes
        if len(scopes) != 1:
            raise self._no_answer("several non-maximum suppressions", scopes)
        return self._suppression_outputs(scopes[0])

    def _suppression_outputs(self, scope: str) -> Optional[OutputNodes]:
        """The tensors below the scope that no op below it reads, identified by their shapes and order."""
        ends = []
        for node in self._graph_def.node:
            if not node.name.startswith(scope):
                continue
            if node.op not in (
                "TensorArrayGatherV3",
                "TensorListStack",
                "Pack",
                "Identity",
                "Cast",
                "Reshape",
            ):
                continue
            if any(reader.startswith(scope) for reader in self._readers.get(node.name, ())):
                continue
            ends.append(node)
        ordered = {}
        for node in ends:
            ordered.setdefault(node.op, []).append(node.name)
        gathered = ordered.get("TensorArrayGatherV3") or ordered.get("TensorListStack") or ordered.get("Pack")
        if not gathered or len(gathered) < 4:
            raise self._no_answer("the suppression's outputs are not recognised", [n.name for n in ends])
        # The OD API's suppression returns boxes, scores and classes, then masks and additional fields, and
        # the count last.
        names = (gathered[0], gathered[1], gathered[2], gathered[-1])
        return self._answer(names, "detection", "the outputs of {}".format(scope.rstrip("/")))

    def _classifier(self) -> Optional[OutputNodes]:
        named = [
            node.name
            for node in self._graph_def.node
            if node.name.endswith(_CLASSIFIER_ENDINGS) and not self._used(node.name)
        ]
        if len(named) == 1:
            return self._answer(tuple(named), "classifier", "a classifier's predictions by name")
        finals = []
        for node in self._graph_def.node:
            if self._used(node.name) or node.op in _NOT_OUTPUTS:
                continue
            if self._source_of(node.name) in _FINAL_ACTIVATIONS:
                finals.append(node.name)
        if len(finals) == 1:
            return self._answer(tuple(finals), "classifier", "the only final activation that nothing reads")
        if len(finals) > 1:
            raise self._no_answer("several possible outputs", finals)
        candidates = self._candidates()
        if len(candidates) == 1 and self._source_of(candidates[0]) in _LAST_OF_LAYERS:
            return self._answer(tuple(candidates), "classifier", "the logits, the only op that nothing reads")
        return None

    def _source_of(self, name: str) -> Optional[str]:
        """The type of the op whose values a node has, in whatever shape; None if there is none."""
        node = self._nodes.get(name)
        while node is not None and node.op in _LAYOUT and node.input:
            node = self._nodes.get(op_name(node.input[0]))
        return None if node is None else node.op

    def _used(self, name: str) -> bool:
        """Whether another op reads it; one that only says which class is the best does not count."""
        return any(self._nodes[reader].op not in _OF_BEST for reader in self._readers.get(name, ()))

    def _candidates(self) -> List[str]:
        return [
            node.name
            for node in self._graph_def.node
            if not self._used(node.name)
            and node.op not in _NOT_OUTPUTS
            and node.input
            and not node.name.startswith("save/")
        ]

    def _answer(self, names: Tuple[str, ...], kind: str, reason: str) -> OutputNodes:
        return OutputNodes(tuple(names), tuple(name + ":0" for name in names), kind, reason)

    def _no_answer(self, what: str, candidates: List[str]) -> OdQatError:
        shapes = self._shapes(candidates[:8])
        return OdQatError(
            what,
            found="candidates: "
            + ", ".join("{} {}".format(name, shapes.get(name, "")).strip() for name in candidates[:8])
            if candidates
            else "no op that nothing reads",
            fix="name the outputs yourself (od-qat freeze --output_nodes=your/node, or in Python "
            "freeze.freeze(checkpoint, ['your/node']))",
        )

    def _shapes(self, names: List[str]) -> Dict[str, str]:
        from od_qat.compat import tf
        from od_qat.graph import allowed_ops

        if allowed_ops.run_by_importing(self._graph_def):
            return {}
        try:
            with tf.Graph().as_default() as graph:
                tf.import_graph_def(self._graph_def, name="")
                return {
                    name: str(graph.get_operation_by_name(name).outputs[0].shape)
                    for name in names
                    if graph.get_operation_by_name(name).outputs
                }
        except (ValueError, KeyError, tf.errors.OpError):
            return {}  # this TensorFlow does not know an op; the names are still useful


def _batch_scope(name: str) -> str:
    head, marker, tail = name.partition("BatchMultiClassNonMaxSuppression")
    return head + marker + tail.split("/")[0] + "/"
