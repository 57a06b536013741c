"""Deciding what is quantised and how it is called, before anything is touched.

Names follow tf.contrib.quantize (TF 1.15): `<layer scope>/weights_quant`, `<layer scope>/act_quant`,
`<layer scope>/conv_quant` before a bypass, `<block scope>/add_quant`,
`<block scope>/post_activation_bypass_quant` and `<op>/activation_<Type>_quant`, so that checkpoints are
exchanged without renaming. What `placement='full'` adds is called `<op>/output_quant`, `<source>/relu_quant`
and `<first source>/concat_quant`.
"""

from typing import Dict, List, Optional, Tuple

from od_qat.config import QatConfig
from od_qat.errors import RewriteError
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import between_layers, matches, policy
from od_qat.rewrite.between_layers import Between, Kind
from od_qat.rewrite.layers import Layers
from od_qat.rewrite.noise import Noise
from od_qat.rewrite.parts import BatchNorm, Layer, LayerMatch
from od_qat.rewrite.plan import Plan
from od_qat.rewrite.planned_quants import Output, Quants, join, scope_of

# Where a range starts: contrib's, behind an activation and elsewhere.
_FROM_0, _FROM_BELOW = 0.0, -6.0


def build_plan(index: GraphIndex, config: QatConfig) -> Plan:
    """Matches the graph and decides; reads only.

    Raises:
      RewriteError: for what cannot be done.
    """
    return _Planner(index, config).plan()


class _Planner(object):
    """What is decided so far, and the steps in which it is."""

    def __init__(self, index: GraphIndex, config: QatConfig) -> None:
        self._index = index
        self._as_contrib = config.placement == "contrib"
        self._layers = Layers(index, self._as_contrib)
        self._noise = Noise(index, self._as_contrib)
        self._quants = Quants(index, config)
        self._in_patterns = set()  # names of ops that contrib counts as quantised already
        self._norms: List[BatchNorm] = []
        self._negatives: List[object] = []
        self._float_between: Dict[str, str] = {}  # name of an op between layers -> the reason

    def plan(self) -> Plan:
        if not self._as_contrib:
            self._refuse_switched_norms()
        matched = matches.find(self._index, self._layers, self._noise, self._as_contrib)
        for match in matched.found:
            self._plan_match(match)
        self._plan_adds_and_muls()
        if not self._as_contrib:
            self._plan_between_layers()
            self._plan_concats()
        self._quants.require_rules_used(matched.unmatched)
        folds = self._folds()
        passed_over = self._passed_over(folds) if self._as_contrib else {}
        stays_float = dict(matched.unmatched)
        stays_float.update(self._quants.outside)
        stays_float.update(self._quants.excluded)
        stays_float.update(self._float_between)
        for reader, layer in passed_over.items():
            stays_float[layer] = "in evaluation, as with contrib: {} reads past its folding".format(reader)
        return Plan(
            folds=folds,
            norms=tuple(self._norms),
            weights=self._quants.weights(),
            activations=self._quants.activations({} if self._as_contrib else self._parts()),
            stays_float=stays_float,
            excluded=frozenset(self._quants.excluded),
            clones=self._quants.clones_but_first(),
            read_on=frozenset(passed_over),
            negatives=tuple(self._negatives),
        )

    def _refuse_switched_norms(self) -> None:
        switched = self._layers.norms.switched
        if switched:
            raise RewriteError(
                "a batch norm is switched between training and evaluation inside the graph",
                where=switched[0],
                found="a tf.cond, as is_training is a tensor: such a batch norm cannot be folded",
                fix="build the training graph with is_training=True and the eval graph with False "
                "(Keras layers: call them with training=True and with False)",
            )

    # The layers, and what is quantised with each.

    def _plan_match(self, match: LayerMatch) -> None:
        layer = match.layer
        context = scope_of(self._quants.name_of(layer.op))
        if self._as_contrib and match.post_activation_bypass is None:
            self._number_as_contrib(layer, context)
        self._quants.add_weights(layer)
        activation_context = scope_of(context) if match.bypass is not None else context
        if match.activation is not None:
            self._plan_of_match(activation_context, "act_quant", match.activation, _FROM_0)
        if match.bypass is not None:
            self._plan_of_match(context, "conv_quant", match.bias, _FROM_BELOW)
            if not self._feeds_any(match.bypass, policy.ACTIVATION):
                self._plan_of_match(activation_context, "add_quant", match.bypass, _FROM_BELOW)
        if match.post_activation_bypass is not None:
            bypass = match.post_activation_bypass
            if not self._feeds_any(bypass, policy.RELU):
                context = scope_of(self._quants.name_of(bypass))
                self._plan_of_match(context, "post_activation_bypass_quant", bypass, _FROM_BELOW)

    def _plan_of_match(self, context: str, pattern: str, operation, initial_min: float) -> None:
        if self._quants.in_scope(operation):
            self._in_patterns.add(operation.name)
            self._quants.add_output(context, pattern, operation, initial_min)

    def _number_as_contrib(self, layer: Layer, context: str) -> None:
        """fully connected -> Identity -> fused batch norm: contrib's first names are those of what it leaves.

        It folds the layer and finds the Identity behind the unfolded one, which nothing but the batch's
        statistics needs any more, before the copy.
        """
        norm = layer.batch_norm
        if norm is not None and norm.reshape is not None and norm.data.op.type == "Identity":
            for name in ("weights_quant", "act_quant"):
                self._quants.count_name(layer.op, join(context, name))

    def _folds(self) -> Tuple[Layer, ...]:
        layers = map(self._layers.of, self._index.operations)
        return tuple(
            layer
            for layer in layers
            if layer is not None
            and layer.batch_norm is not None
            and layer.op.name not in self._quants.excluded
        )

    def _passed_over(self, folds: Tuple[Layer, ...]) -> Dict[str, str]:
        """Layer -> the folded layer whose bare batch norm it reads, where contrib lets it read on.

        contrib looks for all fused batch norms before it folds the first: the copy of a layer behind it reads
        the unfolded batch norm, and nothing reads the folded one. The layer in front is float in the eval
        graph then, whatever was trained (fold_batch_norms.py of TensorFlow 1.15, _FoldFusedBatchNorms).
        """
        fused = [layer for layer in folds if layer.batch_norm.unfused is None]
        by_output = {layer.batch_norm.last.outputs[0].name: layer.op.name for layer in fused}
        data = {layer.op.name: self._index.inputs(layer.op)[0].name for layer in fused}
        return {name: by_output[tensor] for name, tensor in data.items() if tensor in by_output}

    # Sums and products of quantised values, where contrib looks for them.

    def _plan_adds_and_muls(self) -> None:
        for operation in self._index.operations:
            if self._is_intermediate_of_quantised(operation):
                pattern = "activation_{}_quant".format(operation.type)
                self._quants.add_output(self._quants.name_of(operation), pattern, operation, _FROM_BELOW)

    def _is_intermediate_of_quantised(self, operation) -> bool:
        if operation.name in self._in_patterns or operation.type not in policy.INTERMEDIATE:
            return False
        if self._noise.is_part(operation):
            return False
        consumers = self._index.consumers(operation.outputs[0])
        if len(consumers) == 1 and consumers[0][0].type in policy.RELU:
            return False
        for tensor in map(self._noise.data, self._index.inputs(operation)):
            while not self._is_quantised(tensor) and tensor.op.type in policy.RANGE_KEEPING:
                tensor = self._index.inputs(tensor.op)[0]
            if self._is_quantised(tensor) or tensor.op.type == policy.FAKE_QUANT_PER_TENSOR:
                return True
            if tensor.op.type in policy.INTERMEDIATE:
                for below in self._index.inputs(tensor.op):
                    if self._is_intermediate_of_quantised(below.op):
                        return True
        return False

    def _is_quantised(self, tensor) -> bool:
        """Weights count with contrib, which so quantises what a regulariser makes of them, too."""
        return self._quants.output_of(tensor) is not None or (
            self._as_contrib and self._quants.are_weights(tensor)
        )

    # What stands between layers (placement='full').

    def _plan_between_layers(self) -> None:
        """Arithmetic on quantised values that no pattern covers, such as a ReLU behind a sum of sums.

        Without a range the converter leaves it float, or takes a range that was not trained. Only between
        layers: what comes after the heads (decoding, scores) is not the network's, but for the activation of
        what is quantised (FCOS' boxes). What stands there and can have no range is reported.
        """
        quantised = self._quants.tensors()
        for between in between_layers.classify(self._index, self._layers, self._noise, quantised):
            operation = between.op
            if between.kind is Kind.FLOAT:
                reason = "no range is trained for {} between layers".format(operation.type)
                self._float_between[operation.name] = reason
            elif between.kind is Kind.OWN_RANGE and self._quants.in_scope(operation):
                if self._leads_to_layers(operation) or self._is_activation_at_the_end(operation):
                    self._plan_own_range(between)

    def _leads_to_layers(self, operation) -> bool:
        return operation.outputs[0].name in self._layers.leading_to_layers

    def _is_activation_at_the_end(self, operation) -> bool:
        """Whether an op is the activation of quantised values, or of their sum or product."""
        if operation.type not in policy.RELU | policy.LEAKY_RELU:
            return False
        source = self._index.inputs(operation)[0]
        through = source.op.type in policy.INTERMEDIATE | policy.JOINS
        sources = (source,) + (self._index.inputs(source.op) if through else ())
        return any(self._quantised_source(tensor) is not None for tensor in sources)

    def _plan_own_range(self, between: Between) -> None:
        operation = between.op
        if between.norm is not None:
            self._norms.append(between.norm)
        if operation.type == "Neg":
            self._negatives.append(operation)
        if self._feeds_only(operation, policy.RELU):
            return
        twin = self._twin_of(operation)
        if twin is not None:
            self._quants.add_twin(operation.outputs[0], twin)
            return
        if operation.type in policy.RELU:
            # Named after its source: which of several twins comes first differs between training and eval.
            source, pattern = self._index.inputs(operation)[0].op, operation.type.lower() + "_quant"
        else:
            source, pattern = operation, "output_quant"
        # (A batch norm's op is called by its type, which differs between versions.)
        context = self._quants.name_of(source)
        if source.type in policy.BATCH_NORM or self._layers.norms.is_reshape_behind(source):
            context = scope_of(context)
        initial_min = _FROM_0 if operation.type in policy.RELU else _FROM_BELOW
        self._quants.add_output(context, pattern, operation, initial_min)

    def _twin_of(self, operation) -> Optional[Output]:
        """The output of another ReLU of what a ReLU reads, whose fake quant it shares.

        NASNet has several of each; the converter computes them once, and then there can be one range only.
        """
        if operation.type not in policy.RELU or self._quants.output_of(operation.outputs[0]) is not None:
            return None
        readers = self._index.consumer_ops(self._index.inputs(operation)[0])
        found = (self._quants.output_of(twin.outputs[0]) for twin in readers if twin.type == operation.type)
        return next((output for output in found if output is not None), None)

    def _plan_concats(self) -> None:
        """A concat needs one range for all its inputs; untrained, the converter takes one of theirs.

        Named after its first quantised source, not after itself: `concat_3` in a training graph is `concat`
        in the eval graph of the same model. In front of layers the others need no range (coordinates, the
        image, what a rule leaves float). A concat on the side, of feature maps that go on into layers while
        it does not (the OD API's `detection_features`), is no part of the network and is left alone: it
        exists in one of the two graphs only.
        """
        to_layers = self._layers.leading_to_layers
        for operation in self._index.operations:
            joined = self._joined(operation)
            found = [self._quantised_source(tensor) for tensor in joined]
            sources = [source for source in found if source is not None]
            if len(joined) < 2 or not sources:
                continue
            if operation.outputs[0].name not in to_layers and (
                len(sources) < len(found) or any(source.name in to_layers for source in sources)
            ):
                continue
            context = scope_of(self._quants.output_of(sources[0]).name)
            self._quants.add_output(context, "concat_quant", operation, _FROM_BELOW)

    def _joined(self, operation) -> Tuple[object, ...]:
        """The tensors that a concat or a stack puts together; () for other ops and of one several times."""
        inputs = self._index.inputs(operation)
        if operation.type in policy.CONCAT:
            return inputs[:-1]
        if operation.type in policy.JOINS and len({tensor.name for tensor in inputs}) > 1:
            return inputs
        return ()

    def _quantised_source(self, tensor) -> Optional[object]:
        """The quantised tensor whose range a tensor has; None where it has none."""
        tensor = self._noise.data(tensor)
        while self._quants.output_of(tensor) is None:
            kind, inputs = tensor.op.type, self._index.inputs(tensor.op)
            if kind not in policy.HANDS_ON_RANGE or len(self._joined(tensor.op)) > 1:
                return None
            at = tensor.value_index if kind == "IdentityN" else policy.DATA_INPUT.get(kind, 0)
            tensor = self._noise.data(inputs[at])
        return tensor

    def _parts(self) -> Dict[str, List[object]]:
        """Tensor name of an output -> what splits give of it, of those with an output that nobody reads."""
        parts: Dict[str, List[object]] = {}
        for operation in self._index.operations:
            if operation.type in policy.SPLIT and not all(map(self._index.consumers, operation.outputs)):
                for part in filter(self._index.consumers, operation.outputs):
                    source = self._quantised_source(part)
                    if source is not None:
                        parts.setdefault(self._quants.output_of(source).tensor.name, []).append(part)
        return parts

    def _feeds_any(self, operation, types) -> bool:
        return any(consumer.type in types for consumer in self._index.consumer_ops(operation.outputs[0]))

    def _feeds_only(self, operation, types) -> bool:
        consumers = self._index.consumer_ops(self._layers.norms.end_of(operation).outputs[0])
        return len(consumers) == 1 and consumers[0].type in types
