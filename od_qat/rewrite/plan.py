"""Deciding what is quantised and how it is called, before anything is touched.

Names follow tf.contrib.quantize (TF 1.15): `<layer scope>/weights_quant`, `<layer scope>/act_quant`,
`<layer scope>/conv_quant` before a bypass, `<block scope>/add_quant`,
`<block scope>/post_activation_bypass_quant` and `<op>/activation_<Type>_quant`, so that checkpoints are
exchanged without renaming. What `placement='full'` adds is called `<op>/output_quant`, `<source>/relu_quant`
and `<first source>/concat_quant`.

Of a model that slim's model_deploy builds once for each device, the scopes `clone_0/`, `clone_1/`, ... are no
part of a name: clones share their variables, so they share their ranges too, and a checkpoint holds what a
graph of one clone asks for. (With contrib each clone had variables of its own, and no export found them.)
"""

import re
from typing import Dict, FrozenSet, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.errors import RewriteError
from od_qat.graph.index import GraphIndex, first_free, in_control_flow
from od_qat.rewrite import policy
from od_qat.rewrite.layers import BatchNorm, Layer, LayerMatch, LayerMatcher
from od_qat.rewrite.rules import RuleBook, Settings


class WeightQuant(NamedTuple):
    """A fake quant on a layer's (scaled) weights.

    Attributes:
      name: of its variable scope.
      layer: whose weights.
      bits: its width.
      per_channel: a range for each output channel.
      clone: scope of the clone it is in when that takes the first clone's range, `clone_1/`; else ''.
    """

    name: str
    layer: Layer
    bits: int
    per_channel: bool
    clone: str = ""


class ActivationQuant(NamedTuple):
    """A fake quant on a tensor.

    Attributes:
      name: of its variable scope.
      tensor: what it quantises.
      initial_min: contrib's: 0 behind an activation, else -6.
      pattern: what it was recognised as, the last part of its name.
      bits: its width.
      twins: other tensors with the same value; their readers read this fake quant too.
      parts: of it, what splits give that have an output which nobody reads.
      clone: scope of the clone it is in when that takes the first clone's range, `clone_1/`; else ''.
    """

    name: str
    tensor: object
    initial_min: float
    pattern: str
    bits: int
    twins: Tuple[object, ...] = ()
    clone: str = ""
    parts: Tuple[object, ...] = ()


class Plan(NamedTuple):
    """Everything that the passes will do, in order, and what stays float with its reason.

    Attributes:
      folds: layers with a batch norm to fold.
      norms: batch norms behind no layer, which become layers in an eval graph.
      negatives: Neg ops between layers, which become products there.
      weights, activations: the fake quants.
      stays_float: op with weights, or between layers -> reason.
      clones: scopes of the clones but the first, `clone_1/` and so on.
      read_on: names of the folded layers whose copies in an eval graph read what the layers read before
        anything was folded.
    """

    folds: Tuple[Layer, ...]
    norms: Tuple[BatchNorm, ...]
    weights: Tuple[WeightQuant, ...]
    activations: Tuple[ActivationQuant, ...]
    stays_float: Dict[str, str]
    clones: Tuple[str, ...] = ()
    read_on: FrozenSet[str] = frozenset()
    negatives: Tuple[object, ...] = ()

    def of_first_clone(self) -> "Plan":
        """What is done to the first clone; all there is without clones."""
        if not self.clones:
            return self

        def first(name: str) -> bool:
            return not name.startswith(self.clones)

        return self._replace(
            folds=tuple(layer for layer in self.folds if first(layer.op.name)),
            norms=tuple(norm for norm in self.norms if first(norm.op.name)),
            weights=tuple(quant for quant in self.weights if not quant.clone),
            activations=tuple(quant for quant in self.activations if not quant.clone),
            stays_float={name: reason for name, reason in self.stays_float.items() if first(name)},
        )


def build_plan(index: GraphIndex, config: QatConfig) -> Plan:
    """Matches the graph and decides; reads only."""
    return _Planner(index, config).plan()


class _Planner(object):
    def __init__(self, index: GraphIndex, config: QatConfig) -> None:
        self._index = index
        self._config = config
        self._matcher = LayerMatcher(index, as_contrib=config.placement == "contrib")
        self._scope = config.scope.rstrip("/") + "/" if config.scope else ""
        self._clones = clone_scopes(index)
        self._quantised: Dict[str, str] = {}  # tensor name -> quant name
        self._quantised_weights = set()  # names of weights; of layers with a batch norm, of their ops
        self._weights: List[WeightQuant] = []
        self._activations: List[ActivationQuant] = []
        self._position_of: Dict[str, int] = {}  # tensor name -> where in self._activations
        self._norms: List[BatchNorm] = []
        self._negatives: List[object] = []
        self._skip_ops = set()  # ops contrib counts as quantised already
        self._rules = RuleBook(config)
        self._excluded: Dict[str, str] = {}  # name of an op with weights -> reason
        self._outside: Dict[str, str] = {}  # the same, of the scope that was asked for
        self._float_between: Dict[str, str] = {}  # name of an op between layers -> reason
        self._names = set()  # (clone, name) of the fake quants
        self._of_weights: Dict[str, Tuple[str, Settings]] = {}  # weights that layers may share -> first layer

    def plan(self) -> Plan:
        matcher, full = self._matcher, self._config.placement == "full"
        if full:
            self._refuse_switched_norms()
        matches = matcher.match_all()
        if full:
            # Layers of one scope are told apart by a number in their fake quants' names. In the order of the
            # graph it is the same in training and evaluation; as what a layer is matched may differ there.
            matches += matcher.match_bare()
            matches.sort(key=lambda match: self._index.position(match.layer.op))
        for match in matches:
            self._plan_match(match)
        self._plan_adds_and_muls()
        if full:
            self._plan_between_layers()
            self._plan_concats()
            self._find_parts()
        folds = {}
        for operation in self._index.operations:
            layer = matcher.layer(operation)
            if layer is not None and layer.batch_norm is not None and operation.name not in self._excluded:
                folds[operation.name] = layer
            if operation.name in matcher.unmatched and self._in_scope(operation):
                # It stays float in any case; a rule that says so is right all the same.
                self._rules.weights(join(scope_of(self._name(operation)), "weights_quant"), operation.type)
        self._rules.require_all_used()
        passed_over = {} if full else self._passed_over(folds)
        stays_float = dict(matcher.unmatched)
        stays_float.update(self._outside)
        stays_float.update(self._excluded)
        stays_float.update(self._float_between)
        for reader, layer in passed_over.items():
            stays_float[layer] = "in evaluation, as with contrib: {} reads past its folding".format(reader)
        return Plan(
            tuple(folds.values()),
            tuple(self._norms),
            tuple(self._weights),
            tuple(self._activations),
            stays_float,
            self._clones[1:],
            frozenset(passed_over),
            tuple(self._negatives),
        )

    def _passed_over(self, folds: Dict[str, Layer]) -> Dict[str, str]:
        """Layer -> the folded layer whose bare batch norm it reads, where contrib lets it read on.

        contrib looks for all fused batch norms before it folds the first: the copy of a layer behind it reads
        the unfolded batch norm, and nothing reads the folded one. The layer in front is float in the eval
        graph then, whatever was trained (fold_batch_norms.py of TensorFlow 1.15, _FoldFusedBatchNorms).
        """
        fused = [layer for layer in folds.values() if layer.batch_norm.unfused is None]
        by_output = {layer.batch_norm.last.outputs[0].name: layer.op.name for layer in fused}
        data = {layer.op.name: self._index.inputs(layer.op)[0].name for layer in fused}
        return {name: by_output[tensor] for name, tensor in data.items() if tensor in by_output}

    def _refuse_switched_norms(self) -> None:
        if self._matcher.switched_norms:
            raise RewriteError(
                "a batch norm is switched between training and evaluation inside the graph",
                where=self._matcher.switched_norms[0],
                found="a tf.cond, as is_training is a tensor: such a batch norm cannot be folded",
                fix="build the training graph with is_training=True and the eval graph with False "
                "(Keras layers: call them with training=True and with False)",
            )

    def _plan_match(self, match: LayerMatch) -> None:
        layer = match.layer
        context = scope_of(self._name(layer.op))
        if self._config.placement == "contrib" and match.post_activation_bypass is None:
            self._number_as_contrib(layer, context)
        if self._in_scope(layer.op):
            self._plan_weights(layer, join(context, "weights_quant"))
        else:
            self._outside[layer.op.name] = "it is outside of scope {}".format(self._scope)
        activation_context = scope_of(context) if match.bypass is not None else context
        if match.activation is not None:
            self._add(activation_context, "act_quant", match.activation, 0.0)
        if match.bypass is not None:
            self._add(context, "conv_quant", match.bias, -6.0)
            if not self._feeds_any(match.bypass, policy.ACTIVATION):
                self._add(activation_context, "add_quant", match.bypass, -6.0)
        if match.post_activation_bypass is not None:
            bypass = match.post_activation_bypass
            if not self._feeds_any(bypass, policy.RELU):
                self._add(scope_of(self._name(bypass)), "post_activation_bypass_quant", bypass, -6.0)

    def _number_as_contrib(self, layer: Layer, context: str) -> None:
        """fully connected -> Identity -> fused batch norm: contrib's first names are those of what it leaves.

        It folds the layer and finds the Identity behind the unfolded one, which nothing but the batch's
        statistics needs any more, before the copy.
        """
        norm = layer.batch_norm
        if norm is not None and norm.reshape is not None and norm.data.op.type == "Identity":
            clone = self._clone_of(layer.op)
            self._names.update((clone, join(context, name)) for name in ("weights_quant", "act_quant"))

    def _plan_weights(self, layer: Layer, name: str) -> None:
        settings = self._rules.weights(name, layer.op.type)
        if layer.batch_norm is None:
            self._require_one_setting(layer, settings)
        key = layer.op.name if layer.batch_norm else layer.weights.name
        if not settings.quantise:
            self._excluded[layer.op.name] = settings.reason
        elif key not in self._quantised_weights:
            clone = self._clone_of(layer.op)
            name = self._unique(name, clone)
            self._quantised_weights.add(key)
            self._weights.append(WeightQuant(name, layer, settings.bits, settings.per_channel, clone))

    def _unique(self, name: str, clone: str) -> str:
        """`name`, `name_1`, ...: as `tf.variable_scope(None, name)` counts, in each clone by itself."""
        unique = first_free(name, lambda one: (clone, one) in self._names)
        self._names.add((clone, unique))
        return unique

    def _require_one_setting(self, layer: Layer, settings: Settings) -> None:
        """Layers that share weights share their fake quant (with a batch norm, each scales its own copy)."""
        first, decided = self._of_weights.setdefault(layer.weights.name, (layer.op.name, settings))
        if decided._replace(reason="") != settings._replace(reason=""):
            raise RewriteError(
                "rules disagree about layers that share their weights",
                where="{} and {}".format(first, layer.op.name),
                found="{} and {}".format(_described(decided), _described(settings)),
                fix="let one rule match both",
            )

    def _plan_adds_and_muls(self) -> None:
        for operation in self._index.operations:
            if self._is_intermediate_of_quantised(operation):
                name = "activation_{}_quant".format(operation.type)
                self._add(self._name(operation), name, operation, -6.0, skip=False)

    def _is_intermediate_of_quantised(self, operation) -> bool:
        if operation.name in self._skip_ops or operation.type not in policy.INTERMEDIATE:
            return False
        if self._matcher.is_noise(operation):
            return False
        consumers = self._index.consumers(operation.outputs[0])
        if len(consumers) == 1 and consumers[0][0].type in policy.RELU:
            return False
        for tensor in map(self._matcher.before_noise, self._index.inputs(operation)):
            while not self._is_quantised(tensor) and tensor.op.type in policy.RANGE_KEEPING:
                tensor = self._index.inputs(tensor.op)[0]
            if self._is_quantised(tensor) or tensor.op.type == "FakeQuantWithMinMaxVars":
                return True
            if tensor.op.type in policy.INTERMEDIATE:
                for below in self._index.inputs(tensor.op):
                    if self._is_intermediate_of_quantised(below.op):
                        return True
        return False

    def _is_quantised(self, tensor) -> bool:
        """Weights count with contrib, which so quantises what a regulariser makes of them, too."""
        as_contrib = self._config.placement == "contrib"
        return tensor.name in self._quantised or (as_contrib and tensor.name in self._quantised_weights)

    def _plan_between_layers(self) -> None:
        """Arithmetic on quantised values that no pattern covers, such as a ReLU behind a sum of sums.

        Without a range the converter leaves it float, or takes a range that was not trained. Only between
        layers: what comes after the heads (decoding, scores) is not the network's, but for the activation of
        what is quantised (FCOS' boxes). A batch norm behind no layer counts as arithmetic, and so does a
        layer's end that is read by more than its activation. What stands there and is none of all these is
        reported.
        """
        to_layers = self._matcher.leading_to_layers
        from_quantised = set(self._quantised)
        for operation in self._index.operations:
            ends_layer = self._matcher.ends_layer(operation)
            if not ends_layer and not any(
                tensor.name in from_quantised or tensor.op.type in policy.FAKE_QUANT
                for tensor in self._index.inputs(operation)
            ):
                continue
            norm = self._matcher.norm_alone(operation)
            if self._matcher.is_noise(operation):
                pass  # (in training only; its input's range)
            elif self._has_own_range(operation) or norm is not None or ends_layer:
                between = operation.outputs[0].name in to_layers or self._is_activation_at_the_end(operation)
                if between and self._in_scope(operation):
                    if norm is not None:
                        self._norms.append(norm)
                    if operation.type == "Neg":
                        self._negatives.append(operation)
                    if not self._feeds_only(operation, policy.RELU) and not self._is_twin(operation):
                        self._add_own_range(operation)
            elif operation.type in policy.OWN_RANGE:
                continue
            elif operation.type not in policy.STAYS_QUANTISED:
                if self._is_float_between_layers(operation):
                    reason = "no range is trained for {} between layers".format(operation.type)
                    self._float_between[operation.name] = reason
                continue
            from_quantised.update(output.name for output in operation.outputs)

    def _is_activation_at_the_end(self, operation) -> bool:
        """Whether an op is the activation of quantised values, or of their sum or product."""
        if operation.type not in policy.RELU | policy.LEAKY_RELU:
            return False
        source = self._index.inputs(operation)[0]
        through = source.op.type in policy.INTERMEDIATE | policy.JOINS
        sources = (source,) + (self._index.inputs(source.op) if through else ())
        return any(self._quantised_source(tensor) is not None for tensor in sources)

    def _has_own_range(self, operation) -> bool:
        """Not the inside of a batch norm that stays as it is: vectors, and means over the batch."""
        if operation.type not in policy.OWN_RANGE or operation.outputs[0].get_shape().ndims == 1:
            return False
        if operation.type != "Mean":
            return True
        axes = tf.get_static_value(self._index.inputs(operation)[1])
        return axes is None or 0 not in np.ravel(axes)

    def _is_float_between_layers(self, operation) -> bool:
        if operation.type in policy.NEEDS_NO_RANGE or in_control_flow(operation):
            return False
        if operation.type == "SquaredDifference" and all(
            consumer.type == "Mean" and not self._has_own_range(consumer)
            for consumer in self._index.consumer_ops(operation.outputs[0])
        ):
            return False  # (a batch norm's variance in training)
        return any(
            output.name in self._matcher.leading_to_layers and output.dtype.base_dtype == tf.float32
            for output in operation.outputs
        )

    def _add_own_range(self, operation) -> None:
        if operation.type in policy.RELU:
            # Named after its source: which of several twins comes first differs between training and eval.
            source, name = self._index.inputs(operation)[0].op, operation.type.lower() + "_quant"
        else:
            source, name = operation, "output_quant"
        # (A batch norm's op is called by its type, which differs between versions.)
        context = self._name(source)
        if source.type in policy.BATCH_NORM or self._matcher.is_behind_norm(source):
            context = scope_of(context)
        self._add(context, name, operation, 0.0 if operation.type in policy.RELU else -6.0)

    def _is_twin(self, operation) -> bool:
        """A ReLU of what another ReLU reads shares its fake quant.

        NASNet has several of each; the converter computes them once, and then there can be one range only.
        """
        if operation.type not in policy.RELU or operation.outputs[0].name in self._quantised:
            return False
        for twin in self._index.consumer_ops(self._index.inputs(operation)[0]):
            position = self._position_of.get(twin.outputs[0].name)
            if twin.type == operation.type and position is not None:
                quant, output = self._activations[position], operation.outputs[0]
                self._activations[position] = quant._replace(twins=quant.twins + (output,))
                self._quantised[output.name] = quant.name
                self._position_of[output.name] = position
                return True
        return False

    def _feeds_only(self, operation, types) -> bool:
        consumers = self._index.consumer_ops(self._matcher.end_of(operation).outputs[0])
        return len(consumers) == 1 and consumers[0].type in types

    def _plan_concats(self) -> None:
        """A concat needs one range for all its inputs; untrained, the converter takes one of theirs.

        Named after its first quantised source, not after itself: `concat_3` in a training graph is `concat`
        in the eval graph of the same model. In front of layers the others need no range (coordinates, the
        image, what a rule leaves float). A concat on the side, of feature maps that go on into layers while
        it does not (the OD API's `detection_features`), is no part of the network and is left alone: it
        exists in one of the two graphs only.
        """
        to_layers = self._matcher.leading_to_layers
        for operation in self._index.operations:
            joined = self._joined(operation)
            found = [self._quantised_source(tensor) for tensor in joined]
            sources = [source for source in found if source is not None]
            if len(joined) < 2 or not sources or not self._in_scope(operation):
                continue
            if operation.outputs[0].name not in to_layers and (
                len(sources) < len(found) or any(source.name in to_layers for source in sources)
            ):
                continue
            self._add(
                scope_of(self._quantised[sources[0].name]), "concat_quant", operation, -6.0, check_scope=False
            )

    def _find_parts(self) -> None:
        for operation in self._index.operations:
            if operation.type in policy.SPLIT and not all(map(self._index.consumers, operation.outputs)):
                for output in filter(self._index.consumers, operation.outputs):
                    source = self._quantised_source(output)
                    if source is not None:
                        position = self._position_of[source.name]
                        quant = self._activations[position]
                        self._activations[position] = quant._replace(parts=quant.parts + (output,))

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
        tensor = self._matcher.before_noise(tensor)
        while tensor.name not in self._quantised:
            kind, inputs = tensor.op.type, self._index.inputs(tensor.op)
            if kind not in policy.HANDS_ON_RANGE or len(self._joined(tensor.op)) > 1:
                return None
            at = tensor.value_index if kind == "IdentityN" else policy.DATA_INPUT.get(kind, 0)
            tensor = self._matcher.before_noise(inputs[at])
        return tensor

    def _add(
        self,
        context: str,
        name: str,
        operation,
        initial_min: float,
        check_scope: bool = True,
        skip: bool = True,
    ) -> None:
        if check_scope and not self._in_scope(operation):
            return
        if skip:
            self._skip_ops.add(operation.name)
        tensor = operation.outputs[0]
        if self._followed_by_quant(tensor) or tensor.dtype != tf.float32:
            return
        full_name = join(context, name)
        settings = self._rules.activation(full_name)
        if settings.quantise:
            clone = self._clone_of(operation)
            full_name = self._unique(full_name, clone)
            self._quantised[tensor.name] = full_name
            self._position_of[tensor.name] = len(self._activations)
            self._activations.append(
                ActivationQuant(full_name, tensor, initial_min, name, settings.bits, clone=clone)
            )

    def _followed_by_quant(self, tensor) -> bool:
        """By one that is planned, or by a model's own (Spaghettinet's)."""
        pending = [tensor]
        while pending:
            current = pending.pop()
            if current.name in self._quantised:
                return True
            for consumer in self._index.consumer_ops(current):
                if consumer.type in policy.FAKE_QUANT:
                    return True
                if consumer.type in policy.ALREADY_QUANTISED_THROUGH:
                    pending.extend(consumer.outputs)
        return False

    def _feeds_any(self, operation, types) -> bool:
        return any(consumer.type in types for consumer in self._index.consumer_ops(operation.outputs[0]))

    def _in_scope(self, operation) -> bool:
        return self._name(operation).startswith(self._scope)

    def _name(self, operation) -> str:
        """An operation's name without the scope of its clone."""
        for clone in self._clones:
            if operation.name.startswith(clone):
                return operation.name[len(clone) :]
        return operation.name

    def _clone_of(self, operation) -> str:
        """The scope of its clone; '' in the first, and without clones."""
        return next((clone for clone in self._clones[1:] if operation.name.startswith(clone)), "")


_CLONE = re.compile(r"(clone_\d+)/")


def clone_scopes(index: GraphIndex) -> Tuple[str, ...]:
    """`clone_0/`, `clone_1/`, ... when these hold a model several times, over variables outside of them."""
    if any(_CLONE.match(v.op.name) for v in index.graph.get_collection("trainable_variables")):
        return ()  # a model's own scopes, with variables of their own
    found = {}
    for operation in index.operations:
        match = _CLONE.match(operation.name) if operation.type in policy.WEIGHTED else None
        if match:
            found[match.group(1) + "/"] = None
    return tuple(found) if len(found) > 1 else ()


def _described(settings: Settings) -> str:
    if not settings.quantise:
        return "float"
    return "{} bits{}".format(settings.bits, " per channel" if settings.per_channel else "")


def scope_of(name: str) -> str:
    """`a/b/c` -> `a/b`; '' at the top."""
    return name.rpartition("/")[0]


def join(context: str, name: str) -> str:
    """`a/b` and `c` -> `a/b/c`."""
    return "{}/{}".format(context, name) if context else name
