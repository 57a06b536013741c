"""Matches each layer with the ops behind it that are quantized with it::

    layer -> [bypass Add] -> Relu|Relu6|Identity -> [post-activation bypass Add]

If a layer has several matches, the first in contrib's order counts: those with a post-activation bypass,
those that end in an activation, bare biases and batch norms, and last the depthwise half of a separable
convolution without anything behind it. After these come layers that match no pattern of contrib's and have
nothing behind them.
"""

from typing import Dict, Iterator, NamedTuple, Optional, Tuple

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex, in_control_flow
from od_qat.rewrite import policy
from od_qat.rewrite.layers import Layers
from od_qat.rewrite.noise import Noise
from od_qat.rewrite.parts import Layer, LayerMatch


class Matches(NamedTuple):
    """All layers of a graph, each once, and the ops with weights that are no layers.

    Attributes:
      found: one match for each layer. With placement 'contrib' they are in contrib's order; else in graph
        order, which is the same in training and evaluation, even if a layer is matched differently there.
      unmatched: name of an op with weights, or of a call of a function that holds some -> the reason.
    """

    found: Tuple[LayerMatch, ...]
    unmatched: Dict[str, str]


def find(index: GraphIndex, layers: Layers, noise: Noise, as_contrib: bool) -> Matches:
    """Matches every layer of a graph.

    Args:
      index: the graph before any edit.
      layers: the layers of the graph.
      noise: tells which ops add noise.
      as_contrib: whether to match what contrib matches, in the same way.
    """
    return _Matcher(index, layers, noise, as_contrib).matches()


class _Matcher(object):
    def __init__(self, index: GraphIndex, layers: Layers, noise: Noise, as_contrib: bool) -> None:
        self._index = index
        self._layers = layers
        self._norms = layers.norms
        self._noise = noise
        self._as_contrib = as_contrib

    def matches(self) -> Matches:
        found, unmatched = {}, {}
        for match in self._candidates():
            if match is not None:
                found.setdefault(match.layer.op.name, match)
        for operation in self._index.of_types(policy.WEIGHTED | policy.WEIGHTED_UNSUPPORTED):
            if operation.outputs[0].dtype.is_integer:
                continue  # (as in the targets of a loss; no network computes so)
            if operation.type in policy.WEIGHTED_UNSUPPORTED or self._is_unknown_to_contrib(operation):
                unmatched[operation.name] = "{} is not a supported layer".format(operation.type)
            elif operation.name not in found:
                bare = self._with_nothing_behind(operation)
                if bare is None:
                    unmatched[operation.name] = self._reason(operation)
                else:
                    found[operation.name] = bare
        unmatched.update(_layers_in_functions(self._index))
        ordered = list(found.values())
        if not self._as_contrib:
            ordered.sort(key=lambda match: self._index.position(match.layer.op))
        return Matches(tuple(ordered), unmatched)

    def _candidates(self) -> Iterator[Optional[LayerMatch]]:
        """Yields matches in contrib's order; the first of each layer counts."""
        of_types = self._index.of_types
        for operation in of_types(policy.ADD):
            yield self._with_post_activation_bypass(operation)
        for operation in of_types(policy.ACTIVATION):
            if not self._feeds_only_a_batch_norm(operation):
                yield self._with_activation(operation)
        for operation in of_types(policy.BIAS_ADD):
            if not self._norms.is_last(operation):
                yield self._with_bias_or_norm(operation)
        for operation in of_types(policy.ENDS_BATCH_NORM):
            if self._norms.is_last(operation):
                yield self._with_bias_or_norm(operation)
        for operation in of_types(policy.WEIGHTED):
            yield self._first_of_separable(operation)

    def _is_unknown_to_contrib(self, operation) -> bool:
        return self._as_contrib and operation.type == policy.TRANSPOSED

    def _with_post_activation_bypass(self, operation) -> Optional[LayerMatch]:
        if self._noise.is_part(operation):
            return None
        # contrib's pattern prefers the second input.
        for tensor in reversed(self._index.inputs(operation)):
            match = self._with_activation(self._noise.data(tensor).op)
            if match is not None:
                return match._replace(post_activation_bypass=operation)
        return None

    def _with_activation(self, operation) -> Optional[LayerMatch]:
        if operation.type not in policy.ACTIVATION or self._norms.updates_averages(operation):
            return None
        tensor = self._index.inputs(operation)[0]
        source, end = self._noise.data(tensor).op, operation
        if operation.type == "Identity" and not self._as_contrib:
            # An Identity may name an output of the graph, which a fake quant behind it would not change.
            if len(self._index.consumers(tensor)) == 1 and tensor.name == source.outputs[0].name:
                end = source
            elif not self._index.consumers(operation.outputs[0]):
                return None
        found = self._ended_by(source)
        if found is not None:
            return LayerMatch(found[0], end, bias=found[1])
        found = self._added_to_by(source)
        if found is not None:
            return LayerMatch(found[0], end, bypass=source, bias=found[1])
        layer = self._layers.of(source)
        if layer is not None and layer.batch_norm is None:
            return LayerMatch(layer, end)
        return None

    def _with_bias_or_norm(self, operation) -> Optional[LayerMatch]:
        layer = self._layers.with_bias_or_norm(operation)
        return layer and LayerMatch(layer, operation)

    def _first_of_separable(self, operation) -> Optional[LayerMatch]:
        """Matches the first of two layers with nothing between them; `operation` is the second."""
        for tensor in self._index.inputs(operation):
            layer = self._layers.making(tensor)
            if layer is not None:
                return LayerMatch(layer, layer.op)
        return None

    def _with_nothing_behind(self, operation) -> Optional[LayerMatch]:
        """Matches a layer with none of the ops of contrib's patterns behind it.

        NASNet's factorised reductions have such layers: two convolutions, a concat of both, and a batch norm.
        """
        layer = None if self._as_contrib else self._layers.of(operation)
        return LayerMatch(layer, layer.last) if layer is not None and layer.batch_norm is None else None

    def _ended_by(self, operation) -> Optional[Tuple[Layer, object]]:
        """Returns the layer that ends in an op, and its last op: a bias, or a batch norm or its Identity."""
        layer = self._layers.with_bias_or_norm(operation)
        if layer is not None:
            return layer, operation
        if operation.type == "Identity":
            source = self._index.inputs(operation)[0].op
            if self._norms.is_last(source):
                layer = self._layers.with_bias_or_norm(source)
                # contrib's pattern for this has the corrections that it adds in training, so it looks past
                # an Identity only behind a batch norm in training mode.
                if layer is not None and (layer.batch_norm.training or not self._as_contrib):
                    return layer, self._norms.end_of(source)
        return None

    def _added_to_by(self, operation) -> Optional[Tuple[Layer, object]]:
        """Returns the same for the layer in front of an Add, if the op is the bypass of one."""
        if operation.type in policy.ADD:
            for tensor in self._index.inputs(operation):
                found = self._ended_by(self._noise.data(tensor).op)
                if found is not None:
                    return found
        return None

    def _feeds_only_a_batch_norm(self, operation) -> bool:
        """Whether an op is the Identity of conv -> Identity -> batch norm, which is not quantized."""
        if operation.type != "Identity" or len(operation.outputs) != 1:
            return False
        return self._norms.is_only_reader(operation.outputs[0])

    def _reason(self, operation) -> str:
        if in_control_flow(operation):
            return "it is inside a loop or a branch"
        if operation.outputs[0].dtype != tf.float32:
            return "it computes in {}, fake quants in float32 only".format(operation.outputs[0].dtype.name)
        if self._layers.of(operation) is None:
            return "its weights are not a variable"
        return "no bias, batch norm or activation follows it"


def _layers_in_functions(index: GraphIndex) -> Dict[str, str]:
    """Maps the calls of functions that hold layers to the reason why these stay float."""
    found = {}
    for operation in index.of_types(policy.CALLS):
        layers = sum(kind in policy.WEIGHTED for kind in index.types_in_functions(operation))
        if layers:
            found[operation.name] = (
                "{} of its ops with weights are in a function; to see them by name, call "
                "tf.compat.v1.disable_control_flow_v2() before the model is built".format(layers)
            )
    return found
