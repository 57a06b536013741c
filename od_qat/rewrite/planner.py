"""Decides which tensors are quantized and how their fake quants are named, before any edit.

Names follow tf.contrib.quantize (TF 1.15), so that checkpoints fit without renaming:
`<layer scope>/weights_quant`, `<layer scope>/act_quant`, `<layer scope>/conv_quant` before a bypass,
`<block scope>/add_quant`, `<block scope>/post_activation_bypass_quant` and `<op>/activation_<Type>_quant`.
placement='full' adds `<op>/output_quant`, `<source>/relu_quant` (or `relu6_quant`) and
`<first source>/concat_quant`.

The scopes are those of ops, and in a graph of Keras layers these depend on how often the graph has built a
layer: the copy of a functional model that leads to the outputs is `model/Conv1/Conv2D` or `Conv1_1/Conv2D`,
and another number if the model was called before, as a training or an export may do. So in a rewrite with
given outputs, everything is named after resource variables, which a layer makes once, where it is built
first: `<scope of the kernel>/weights_quant`, and there too the fake quants on the layer's output, its bypass
and the Add behind that. (Both halves of a separable convolution are in one scope: `weights_quant` and
`weights_quant_1`.) An op between layers is named after the layer in front of it; if there are several, after
that which comes last in the graph: `<scope of its kernel>/activation_AddV2_quant`, `.../output_quant`, ... .
A batch norm behind no layer has the scope of its gamma.
Ops that lead to no output take no name. So the names are those of the variables, and of the order of the
layers in the model. Both are the same in training, evaluation and export, whatever else a graph holds or a
process has built, if each model has a graph of its own: Keras numbers layers of one type in each graph.
"""

from typing import Dict, List, Optional, Tuple

from od_qat.config import QatConfig
from od_qat.errors import RewriteError
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import between_layers, matches, policy, weighted_sums
from od_qat.rewrite.between_layers import Between, Kind
from od_qat.rewrite.layers import Layers
from od_qat.rewrite.noise import Noise
from od_qat.rewrite.parts import BatchNorm, Layer, LayerMatch
from od_qat.rewrite.plan import ActivationQuant, Plan
from od_qat.rewrite.planned_quants import Output, Quants, join, scope_of
from od_qat.rewrite.weighted_sums import WeightedSum

# contrib's initial minimum of a range, behind an activation and elsewhere.
_FROM_0, _FROM_BELOW = 0.0, -6.0


def build_plan(index: GraphIndex, config: QatConfig, by_variable: bool = False) -> Plan:
    """Makes the plan of a rewrite. Only reads the graph.

    Args:
      index: the graph, or the part of it that leads to outputs.
      config: options.
      by_variable: whether layers with resource variables, and the ops between them, are named after these
        instead of after ops.

    Raises:
      RewriteError: if a batch norm is switched inside the graph, or if a rule matches nothing, sets nothing
        for what it matches, takes too long, or disagrees with another about shared weights.
    """
    return _Planner(index, config, by_variable).plan()


class _Planner(object):
    """The decisions so far, and the steps that make them."""

    def __init__(self, index: GraphIndex, config: QatConfig, by_variable: bool) -> None:
        self._index = index
        self._by_variable = by_variable
        self._as_contrib = config.placement == "contrib"
        self._layers = Layers(index, self._as_contrib)
        self._noise = Noise(index, self._as_contrib)
        self._quants = Quants(index, config, by_variable)
        self._in_patterns = set()  # names of ops that contrib counts as quantized already
        self._norms: List[BatchNorm] = []
        self._negatives: List[object] = []
        self._all_sums = {} if self._as_contrib else weighted_sums.find(index)  # by the names of their ops
        self._sums: Dict[str, WeightedSum] = {}  # by the name of their last op
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
        sums = self._sums_with_ranges()
        stays_float = dict(matched.unmatched)
        for one, _ in sums:
            del stays_float[one.matmul.name]
        stays_float.update(self._quants.outside)
        stays_float.update(self._quants.excluded)
        stays_float.update(self._float_between)
        for reader, layer in passed_over.items():
            stays_float[layer] = "in evaluation, as with contrib: {} reads past its folding".format(reader)
        return Plan(
            folds=folds,
            norms=tuple(self._norms),
            weights=self._quants.weights(),
            activations=self._activations(),
            stays_float=stays_float,
            excluded=frozenset(self._quants.excluded),
            clones=self._quants.clones_but_first(),
            read_on=frozenset(passed_over),
            negatives=tuple(self._negatives),
            sums=sums,
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

    # The layers, and what is quantized with each.

    def _plan_match(self, match: LayerMatch) -> None:
        layer = match.layer
        context = self._quants.scope_of_layer(layer.op)
        by_variable = self._by_variable and self._quants.variable_of(layer.op) is not None
        if self._as_contrib and match.post_activation_bypass is None:
            self._number_as_contrib(layer, context)
        self._quants.add_weights(layer)
        activation_context = context if match.bypass is None or by_variable else scope_of(context)
        if match.activation is not None:
            self._plan_of_match(activation_context, "act_quant", match.activation, _FROM_0)
        if match.bypass is not None:
            self._plan_of_match(context, "conv_quant", match.bias, _FROM_BELOW)
            if not self._feeds_any(match.bypass, policy.ACTIVATION):
                self._plan_of_match(activation_context, "add_quant", match.bypass, _FROM_BELOW)
        if match.post_activation_bypass is not None:
            bypass = match.post_activation_bypass
            if not self._feeds_any(bypass, policy.RELU):
                context = context if by_variable else scope_of(self._quants.name_of(bypass))
                self._plan_of_match(context, "post_activation_bypass_quant", bypass, _FROM_BELOW)

    def _plan_of_match(self, context: str, pattern: str, operation, initial_min: float) -> None:
        if self._quants.in_scope(operation):
            self._in_patterns.add(operation.name)
            self._quants.add_output(context, pattern, operation, initial_min)

    def _number_as_contrib(self, layer: Layer, context: str) -> None:
        """Reserves the names of the unfolded layer in front of an Identity and a batch norm, as contrib does.

        After contrib has folded such a fully connected layer, only the batch's statistics need the unfolded
        one. It finds that first, by the Identity, so the folded copy gets the second names.
        """
        norm = layer.batch_norm
        if norm is not None and norm.reshape is not None and norm.data.op.type == "Identity":
            for name in ("weights_quant", "act_quant"):
                self._quants.count_name(layer.op, join(context, name))

    def _folds(self) -> Tuple[Layer, ...]:
        layers = map(self._layers.of, self._index.of_types(policy.WEIGHTED))
        return tuple(
            layer
            for layer in layers
            if layer is not None
            and layer.batch_norm is not None
            and layer.op.name not in self._quants.excluded
        )

    def _passed_over(self, folds: Tuple[Layer, ...]) -> Dict[str, str]:
        """Maps each layer that directly reads the batch norm of a folded layer to that layer.

        contrib finds all fused batch norms before it folds the first. So the copy of the layer behind reads
        the unfolded batch norm, and nothing reads the folded one. The layer in front is then float in the
        eval graph, whatever was trained (fold_batch_norms.py of TensorFlow 1.15, _FoldFusedBatchNorms).
        """
        fused = [layer for layer in folds if layer.batch_norm.unfused is None]
        by_output = {layer.batch_norm.last.outputs[0].name: layer.op.name for layer in fused}
        data = {layer.op.name: self._index.inputs(layer.op)[0].name for layer in fused}
        return {name: by_output[tensor] for name, tensor in data.items() if tensor in by_output}

    # Sums and products of quantized values, as contrib finds them.

    def _plan_adds_and_muls(self) -> None:
        for operation in self._index.of_types(policy.INTERMEDIATE):
            if self._is_intermediate_of_quantised(operation):
                pattern = "activation_{}_quant".format(operation.type)
                self._quants.add_output(self._context_of(operation), pattern, operation, _FROM_BELOW)

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
        """Whether a tensor is quantized. In contrib weights are, so it quantizes regularisers' terms too."""
        return self._quants.output_of(tensor) is not None or (
            self._as_contrib and self._quants.are_weights(tensor)
        )

    # Ops between layers (placement='full').

    def _plan_between_layers(self) -> None:
        """Plans ranges for arithmetic that no pattern covers, such as a ReLU behind a sum of sums.

        Without a range the converter leaves such an op float, or uses a range that was not trained. Only ops
        between layers get one. What follows the heads (decoding, scores) is no part of the network, except
        an activation of quantized values (FCOS' boxes). Ops between layers that can have no range are
        reported as float.
        """
        quantised = self._quants.tensors()
        for between in between_layers.classify(
            self._index, self._layers, self._noise, quantised, self._all_sums
        ):
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
        """Whether an op is the activation of quantized values, or of their sum, product or concat."""
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
        if operation.name in self._all_sums:
            self._sums[operation.name] = self._all_sums[operation.name]
        if self._feeds_only(operation, policy.RELU):
            return
        twin = self._twin_of(operation)
        if twin is not None:
            self._quants.add_twin(operation.outputs[0], twin)
            return
        if operation.type in policy.RELU:
            # It is named after its source, as the first of several twins differs between training and eval.
            source, pattern = self._index.inputs(operation)[0].op, operation.type.lower() + "_quant"
        else:
            source, pattern = operation, "output_quant"
        # The op of a batch norm is named after its type, which differs between versions of TensorFlow.
        context = self._context_of(source)
        if source.type in policy.BATCH_NORM or self._layers.norms.is_reshape_behind(source):
            context = self._quants.scope_of_layer(source)
        initial_min = _FROM_0 if operation.type in policy.RELU else _FROM_BELOW
        self._quants.add_output(context, pattern, operation, initial_min)

    def _context_of(self, operation) -> str:
        """Returns what the fake quant of an op between layers is named after: the op, or the layer in front.

        It is the layer if that is named after its variable.
        """
        found = self._in_front_of(operation) if self._by_variable else []
        by_position = sorted(found, key=lambda one: one[0])
        return by_position[-1][1] if by_position else self._quants.name_of(operation)

    def _in_front_of(self, operation) -> List[Tuple[int, str]]:
        """Returns position and scope of each layer or tensor with a range that is nearest in front of an op.

        An op that is one itself is nearest.
        """
        pending, seen, found = [operation.outputs[0]], set(), []
        while pending:
            tensor = self._noise.data(pending.pop())
            if tensor.name in seen:
                continue
            seen.add(tensor.name)
            source, output = tensor.op, self._quants.output_of(tensor)
            if output is not None:
                found.append((self._index.position(output.tensor.op), scope_of(output.name)))
            elif self._layers.of(source) is not None or self._layers.norm_alone(source) is not None:
                if self._quants.variable_of(source) is not None:
                    found.append((self._index.position(source), self._quants.scope_of_layer(source)))
            elif source.type not in policy.OF_SHAPES:
                pending.extend(self._index.inputs(source))
        return found

    def _twin_of(self, operation) -> Optional[Output]:
        """Returns the output of another ReLU of the same type with the same input; None if there is none.

        They share a fake quant: the converter merges them (NASNet has many), so there can be only one range.
        """
        if operation.type not in policy.RELU or self._quants.output_of(operation.outputs[0]) is not None:
            return None
        readers = self._index.consumer_ops(self._index.inputs(operation)[0])
        found = (self._quants.output_of(twin.outputs[0]) for twin in readers if twin.type == operation.type)
        return next((output for output in found if output is not None), None)

    def _plan_concats(self) -> None:
        """Plans a range for each concat, which needs one range for all inputs.

        Without one the converter uses that of an input. The fake quant is named after the first quantized
        source, as `concat_3` in a training graph may be `concat` in the eval graph of the same model. If the
        concat leads to layers, inputs without a range may stand beside quantized ones (coordinates, the
        image, what a rule keeps float). If it does not, all inputs must be quantized, and none may lead to
        layers. Otherwise it is no part of the network: the OD API's `detection_features`, for instance,
        exists in one of the two graphs only.
        """
        to_layers = self._layers.leading_to_layers
        for operation in self._index.of_types(policy.JOINS):
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

    def _sums_with_ranges(self) -> Tuple[Tuple[WeightedSum, Tuple[str, ...]], ...]:
        """Returns the weighted sums whose inputs all have a range, and the names of these fake quants."""
        found = []
        for one in self._sums.values():
            sources = [self._quantised_source(tensor) for tensor in self._index.inputs(one.pack)]
            if all(source is not None for source in sources):
                found.append((one, tuple(self._quants.output_of(source).name for source in sources)))
        return tuple(found)

    def _joined(self, operation) -> Tuple[object, ...]:
        """Returns the inputs of a concat or a stack; () for other ops, and for a stack of one tensor.

        The stack of a weighted sum is none, as an eval graph does not have it.
        """
        if operation.name in self._all_sums:
            return ()
        inputs = self._index.inputs(operation)
        if operation.type in policy.CONCAT:
            return inputs[:-1]
        if operation.type in policy.JOINS and len({tensor.name for tensor in inputs}) > 1:
            return inputs
        return ()

    def _quantised_source(self, tensor) -> Optional[object]:
        """Returns the quantized tensor whose range a tensor has; None if it has none."""
        tensor = self._noise.data(tensor)
        while self._quants.output_of(tensor) is None:
            kind, inputs = tensor.op.type, self._index.inputs(tensor.op)
            if kind not in policy.HANDS_ON_RANGE or len(self._joined(tensor.op)) > 1:
                return None
            at = tensor.value_index if kind == "IdentityN" else policy.DATA_INPUT.get(kind, 0)
            tensor = self._noise.data(inputs[at])
        return tensor

    def _activations(self) -> Tuple[ActivationQuant, ...]:
        if self._as_contrib:
            return self._quants.activations({}, {})
        return self._quants.activations(self._parts(), self._only_joined())

    def _only_joined(self) -> Dict[str, str]:
        """Maps the tensor name of each output that one concat alone reads to the concat's fake quant.

        In an eval graph such an output has the concat's range. With its own it would be rounded twice, and if
        a Reshape is in between, as behind the heads of an SSD, the .tflite would have another QUANTIZE op. If
        another concat alone reads the concat, all have the range of the last.
        """
        found: Dict[str, str] = {}
        outputs = self._quants.outputs()
        for output in sorted(outputs, key=lambda one: self._index.position(one.tensor.op), reverse=True):
            concat = self._concat_behind(output.tensor)
            if concat is not None and concat.bits == output.bits:
                found[output.tensor.name] = found.get(concat.tensor.name, concat.name)
        return found

    def _concat_behind(self, tensor) -> Optional[Output]:
        """Returns the output of the concat that all data of a tensor go into, and nowhere else."""
        ends, pending = {}, [tensor]
        while pending:
            readers = self._index.consumer_ops(pending.pop())
            readers = [reader for reader in readers if reader.type not in policy.OF_SHAPES]
            for reader in readers:
                if len(self._joined(reader)) > 1:
                    ends[reader.name] = self._quants.output_of(reader.outputs[0])
                elif reader.type in policy.HANDS_ON_RANGE and reader.name not in self._all_sums:
                    pending.extend(reader.outputs)
                else:
                    return None
            if not readers:  # an output of the graph
                return None
        return next(iter(ends.values())) if len(ends) == 1 else None

    def _parts(self) -> Dict[str, List[object]]:
        """Maps the tensor name of an output to its parts; see ActivationQuant."""
        parts: Dict[str, List[object]] = {}
        for operation in self._index.of_types(policy.SPLIT):
            if not all(map(self._index.consumers, operation.outputs)):
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
