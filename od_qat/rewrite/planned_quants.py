"""The fake quants that are planned so far: how each is called and set, and which tensors have one."""

from typing import Dict, FrozenSet, Iterable, List, NamedTuple, Optional, Tuple

from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.errors import RewriteError
from od_qat.graph.index import GraphIndex, first_free
from od_qat.rewrite import policy
from od_qat.rewrite.clones import Clones
from od_qat.rewrite.parts import Layer
from od_qat.rewrite.plan import ActivationQuant, WeightQuant
from od_qat.rewrite.rules import RuleBook, Settings


class Output(NamedTuple):
    """A tensor that gets a fake quant; see ActivationQuant."""

    name: str
    tensor: object
    initial_min: float
    pattern: str
    bits: int
    clone: str


class Quants(object):
    """Takes what is to be quantised, unless it is already, out of scope, or a rule excludes it.

    Names are made unique as `tf.variable_scope(None, name)` does: `name`, `name_1`, ... in the order in which
    things are added, in each clone by itself.

    Args:
      index: the graph before any edit.
      config: options, rules included.

    Attributes:
      excluded: name of an op with weights -> the reason why a rule keeps it float.
      outside: name of an op with weights -> that it is outside of the scope.
    """

    def __init__(self, index: GraphIndex, config: QatConfig) -> None:
        self._index = index
        self._clones = Clones(index)
        self._rules = RuleBook(config)
        self._scope = config.scope.rstrip("/") + "/" if config.scope else ""
        self._names = set()  # (clone, name)
        self._weights: List[WeightQuant] = []
        self._of_weights: Dict[str, Tuple[str, Settings]] = {}  # weights that layers may share -> first layer
        self._quantised_weights = set()  # names of weights; of layers with a batch norm, of their ops
        self._outputs: List[Output] = []
        self._quantised: Dict[str, Output] = {}  # tensor name -> the output that it is, or is a twin of
        self._twins: Dict[str, List[object]] = {}  # tensor name of an output -> its twins
        self.excluded: Dict[str, str] = {}
        self.outside: Dict[str, str] = {}

    # What is asked of an op or a tensor.

    def in_scope(self, operation) -> bool:
        """Whether an op is below the name scope that was asked for."""
        return self._clones.name(operation).startswith(self._scope)

    def name_of(self, operation) -> str:
        """An op's name as it is in a fake quant's: without the scope of its clone."""
        return self._clones.name(operation)

    def output_of(self, tensor) -> Optional[Output]:
        """The output whose fake quant a tensor has, its own or its twin's; None where it has none."""
        return self._quantised.get(tensor.name)

    def are_weights(self, tensor) -> bool:
        """Whether a tensor is the quantised weights of a layer without a batch norm."""
        return tensor.name in self._quantised_weights

    # What is added.

    def add_weights(self, layer: Layer) -> None:
        """The fake quant of a layer's weights; layers that share weights share it."""
        if not self.in_scope(layer.op):
            self.outside[layer.op.name] = "it is outside of scope {}".format(self._scope)
            return
        name = self._weights_name(layer.op)
        settings = self._rules.weights(name, layer.op.type)
        if layer.batch_norm is None:
            self._require_one_setting(layer, settings)
        key = layer.op.name if layer.batch_norm else layer.weights.name
        if not settings.quantise:
            self.excluded[layer.op.name] = settings.reason
        elif key not in self._quantised_weights:
            clone = self._clones.other_of(layer.op)
            name = self._unique(name, clone)
            self._quantised_weights.add(key)
            self._weights.append(WeightQuant(name, layer, settings.bits, settings.per_channel, clone))

    def add_output(self, context: str, pattern: str, operation, initial_min: float) -> None:
        """The fake quant `context/pattern` of an op's first output."""
        tensor = operation.outputs[0]
        if not self.in_scope(operation) or self._followed_by_quant(tensor) or tensor.dtype != tf.float32:
            return
        name = join(context, pattern)
        settings = self._rules.activation(name)
        if settings.quantise:
            clone = self._clones.other_of(operation)
            name = self._unique(name, clone)
            output = Output(name, tensor, initial_min, pattern, settings.bits, clone)
            self._outputs.append(output)
            self._quantised[tensor.name] = output

    def add_twin(self, tensor, output: Output) -> None:
        """A tensor with the value of an output, whose fake quant it takes."""
        self._twins.setdefault(output.tensor.name, []).append(tensor)
        self._quantised[tensor.name] = output

    def count_name(self, operation, name: str) -> None:
        """A name that nothing gets, so that the next one is `name_1`."""
        self._names.add((self._clones.other_of(operation), name))

    # What comes of it.

    def require_rules_used(self, unmatched: Iterable[str]) -> None:
        """Raises for a rule that matches nothing, when everything has been added.

        Args:
          unmatched: names of ops that stay float in any case; a rule that says so is right all the same.

        Raises:
          RewriteError: naming the rule and some scopes that exist.
        """
        for operation in self._index.operations:
            if operation.name in unmatched and self.in_scope(operation):
                self._rules.weights(self._weights_name(operation), operation.type)
        self._rules.require_all_used()

    def tensors(self) -> FrozenSet[str]:
        """Names of the tensors that have a fake quant."""
        return frozenset(self._quantised)

    def weights(self) -> Tuple[WeightQuant, ...]:
        """For the plan, in the order in which they were added."""
        return tuple(self._weights)

    def activations(self, parts: Dict[str, List[object]]) -> Tuple[ActivationQuant, ...]:
        """For the plan, in the order in which they were added; `parts` are by an output's tensor name."""
        return tuple(
            ActivationQuant(
                output.name,
                output.tensor,
                output.initial_min,
                output.pattern,
                output.bits,
                twins=tuple(self._twins.get(output.tensor.name, ())),
                clone=output.clone,
                parts=tuple(parts.get(output.tensor.name, ())),
            )
            for output in self._outputs
        )

    def clones_but_first(self) -> Tuple[str, ...]:
        """Scopes of the clones that take the first one's ranges."""
        return self._clones.scopes[1:]

    def _weights_name(self, operation) -> str:
        return join(scope_of(self._clones.name(operation)), "weights_quant")

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

    def _unique(self, name: str, clone: str) -> str:
        unique = first_free(name, lambda one: (clone, one) in self._names)
        self._names.add((clone, unique))
        return unique

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
