"""Collects the planned fake quants, with their names and settings, and tells which tensors have one."""

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
from od_qat.rewrite.tensors import variable_of


class Output(NamedTuple):
    """A tensor that gets a fake quant; the attributes are those of ActivationQuant."""

    name: str
    tensor: object
    initial_min: float
    pattern: str
    bits: int
    clone: str


class Quants(object):
    """Plans fake quants, except for what has one already, is out of scope, or is excluded by a rule.

    Names are made unique as `tf.variable_scope(None, name)` does: `name`, `name_1`, ... in the order in which
    they are added, separately in each clone.

    Args:
      index: the graph before any edit.
      config: options, rules included.
      by_variable: whether a layer is named after its resource variable; see the planner.

    Attributes:
      excluded: name of an op with weights that a rule keeps float -> the reason.
      outside: name of an op with weights outside of the scope -> the reason.
    """

    def __init__(self, index: GraphIndex, config: QatConfig, by_variable: bool = False) -> None:
        self._index = index
        self._by_variable = by_variable
        self._clones = Clones(index)
        self._rules = RuleBook(config)
        self._scope = config.scope.rstrip("/") + "/" if config.scope else ""
        self._names = set()  # (clone, name)
        self._weights: List[WeightQuant] = []
        self._of_weights: Dict[str, Tuple[str, Settings]] = {}  # kernel -> first layer that has it
        self._quantised_weights = set()  # names of weights
        self._at: Dict[Tuple[str, str], int] = {}  # (clone, kernel), no batch norm -> place in _weights
        self._outputs: List[Output] = []
        self._quantised: Dict[str, Output] = {}  # tensor name -> its own output, or its twin's
        self._twins: Dict[str, List[object]] = {}  # tensor name of an output -> its twins
        self.excluded: Dict[str, str] = {}
        self.outside: Dict[str, str] = {}

    # Questions about an op or a tensor.

    def in_scope(self, operation) -> bool:
        """Whether an op is below the config's name scope."""
        return self._clones.name(operation).startswith(self._scope)

    def name_of(self, operation) -> str:
        """Returns an op's name as fake quants use it, without the scope of its clone."""
        return self._clones.name(operation)

    def scope_of_layer(self, operation) -> str:
        """Returns the scope that the fake quants of a layer or a batch norm are named after.

        It is the scope of the op, or of the resource variable that it reads.
        """
        if self._by_variable:
            variable = self.variable_of(operation)
            if variable is not None:
                return scope_of(self._clones.name(variable))
        return scope_of(self._clones.name(operation))

    def variable_of(self, operation) -> Optional[object]:
        """Returns the resource variable of an op's weights, or of a batch norm's gamma; else None."""
        inputs = self._index.inputs(operation)
        return variable_of(self._index, inputs[1]) if len(inputs) > 1 else None

    def output_of(self, tensor) -> Optional[Output]:
        """Returns the output whose fake quant a tensor has, its own or its twin's; None if it has none."""
        return self._quantised.get(tensor.name)

    def are_weights(self, tensor) -> bool:
        """Whether a tensor is the weights of a layer without a batch norm, and gets a fake quant."""
        return tensor.name in self._quantised_weights

    # Additions.

    def add_weights(self, layer: Layer) -> None:
        """Adds the fake quant of a layer's weights. Layers without a batch norm share it with the weights."""
        if not self.in_scope(layer.op):
            self.outside[layer.op.name] = "it is outside of scope {}".format(self._scope)
            return
        name = self._weights_name(layer.op)
        settings = self._rules.weights(name, layer.op.type)
        if layer.batch_norm is None:
            self._require_one_setting(layer, settings)
        if not settings.quantise:
            self.excluded[layer.op.name] = settings.reason
            return
        clone = self._clones.other_of(layer.op)
        if layer.batch_norm is None:
            if layer.weights.name in self._quantised_weights:
                return
            self._quantised_weights.add(layer.weights.name)
            at = self._at.setdefault((clone, layer.kernel), len(self._weights))
            if at < len(self._weights):
                first = self._weights[at]
                self._weights[at] = first._replace(twins=first.twins + (layer.weights,))
                return
        name = self._unique(name, clone)
        self._weights.append(WeightQuant(name, layer, settings.bits, settings.per_channel, clone))

    def add_output(self, context: str, pattern: str, operation, initial_min: float) -> None:
        """Adds the fake quant `context/pattern` of an op's first output."""
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
        """Adds a tensor with the value of an output; it shares the output's fake quant."""
        self._twins.setdefault(output.tensor.name, []).append(tensor)
        self._quantised[tensor.name] = output

    def count_name(self, operation, name: str) -> None:
        """Reserves a name that no fake quant gets, so that the next one is `name_1`."""
        self._names.add((self._clones.other_of(operation), name))

    # Results.

    def require_rules_used(self, unmatched: Iterable[str]) -> None:
        """Raises if a rule matches nothing. Call it after everything has been added.

        Args:
          unmatched: names of ops that stay float in any case; a rule may match these too.

        Raises:
          RewriteError: the message names the rule and some scopes that exist.
        """
        for operation in self._index.operations:
            if operation.name in unmatched and self.in_scope(operation):
                self._rules.weights(self._weights_name(operation), operation.type)
        self._rules.require_all_used()

    def tensors(self) -> FrozenSet[str]:
        """Returns the names of the tensors that have a fake quant."""
        return frozenset(self._quantised)

    def weights(self) -> Tuple[WeightQuant, ...]:
        """Returns the fake quants of weights for the plan, in the order in which they were added."""
        return tuple(self._weights)

    def outputs(self) -> Tuple[Output, ...]:
        """Returns the outputs that have a fake quant of their own, in the order in which they were added."""
        return tuple(self._outputs)

    def activations(
        self, parts: Dict[str, List[object]], joined: Dict[str, str]
    ) -> Tuple[ActivationQuant, ...]:
        """Returns those of activations, in the same order.

        Args:
          parts, joined: by the tensor name of an output; see ActivationQuant.
        """
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
                joined="" if output.tensor.name in self._twins else joined.get(output.tensor.name, ""),
            )
            for output in self._outputs
        )

    def clones_but_first(self) -> Tuple[str, ...]:
        """Returns the scopes of all clones but the first, whose ranges they share."""
        return self._clones.scopes[1:]

    def _weights_name(self, operation) -> str:
        return join(self.scope_of_layer(operation), "weights_quant")

    def _require_one_setting(self, layer: Layer, settings: Settings) -> None:
        """Raises if rules disagree about layers without a batch norm that share weights, and so a fake quant.

        (Each layer with a batch norm scales its own copy of the weights.)
        """
        first, decided = self._of_weights.setdefault(layer.kernel, (layer.op.name, settings))
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
        """Whether a tensor has a planned fake quant, or one of the model's own (Spaghettinet)."""
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
