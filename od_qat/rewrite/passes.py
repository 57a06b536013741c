"""Drafts the edits that were planned, in passes.

There are two ordered tables of passes, for training and for evaluation; each row says why it has its place. A
pass takes the plan and the state of the rewrite, and writes into the draft. It decides nothing, and the graph
does not change before the draft is committed.
"""

from typing import Callable, Dict, FrozenSet, List, Optional, Tuple

from od_qat.checkpoints import QUANT_STEP, QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.errors import RewriteError
from od_qat.graph.draft import Draft
from od_qat.rewrite import fake_quant, folding, policy
from od_qat.rewrite.parts import BatchNorm
from od_qat.rewrite.plan import ActivationQuant, Plan, WeightQuant


class _State(object):
    """What passes share: the draft, the options, replaced tensors, ranges, and the delay."""

    def __init__(self, draft: Draft, config: QatConfig, training: bool) -> None:
        self.draft = draft
        self.config = config
        self.training = training
        self.moved = {}  # tensor name -> what replaces it, such as `add_fold`
        self._ranges: Dict[str, fake_quant.Range] = {}  # by the name of the fake quant
        # Of each weighted sum: the product, weight and fake quant of each input; and the sums, in order.
        self.sums: List[Tuple[List[Tuple[str, str, str]], List[str]]] = []
        self._step: Optional[str] = None
        self._quantising: Optional[str] = None

    def keep_range(self, quant, range_: fake_quant.Range) -> None:
        """Keeps the range of a fake quant of the first clone, for the other clones."""
        if not quant.clone:
            self._ranges[quant.name] = range_

    def shared_range(self, quant) -> Optional[fake_quant.Range]:
        """Returns the first clone's range for the same fake quant of another; None in the first clone.

        Raises:
          RewriteError: if the clones differ.
        """
        clone, name = quant.clone, quant.name
        if not clone:
            return None
        if name not in self._ranges:
            raise RewriteError(
                "the clones differ: the first clone lacks a fake quant",
                where=clone + name,
                fix="build every clone with the same function",
            )
        return self._ranges[name]._replace(scope=self.draft.unique_name(clone + name))

    def range_of(self, name: str) -> fake_quant.Range:
        """Returns the range of a fake quant by its name."""
        return self._ranges[name]

    def replace(self, original, new: str) -> None:
        """Lets all readers of a tensor of the graph read a new one, which later passes then find."""
        self.draft.reroute(original, new)
        self.moved[original.name] = new

    def step(self) -> str:
        """Returns the current optimizer step, from 1, an int64 scalar.

        It follows the global step if there is one, so that several workers agree. The variable has contrib's
        name, so that a run resumed from contrib's checkpoint continues the delay.
        """
        if self._step is None:
            with self.draft.on(""):
                self._step = self._add_step()
        return self._step

    def _add_step(self) -> str:
        draft, int64 = self.draft, tf.int64
        variable = draft.variable(
            QUANT_STEP,
            0,
            int64,
            (tf.GraphKeys.GLOBAL_VARIABLES, QUANT_VARIABLES),
            tf.VariableAggregation.ONLY_FIRST_REPLICA,
        )
        global_step = tf.train.get_global_step(draft.index.graph) if self.training else None
        if global_step is None:
            kind, value = "AssignAdd", draft.constant(1, int64)
        else:
            kind = "Assign"
            value = tf.convert_to_tensor(global_step)
            source = value.dtype.base_dtype
            value = draft.op("Cast", QUANT_STEP + "/Cast", (value,), SrcT=source, DstT=int64, Truncate=False)
            value = draft.op("AddV2", QUANT_STEP + "/add", (value, draft.constant(1, int64)), T=int64)
        update = draft.update(kind, "{}/{}".format(QUANT_STEP, kind), variable, value, int64)
        return draft.op("Identity", QUANT_STEP + "/Identity", (update,), T=int64)

    def reached(self, delay: int, name: str) -> str:
        """Returns a bool scalar: whether the current optimizer step is at least `delay`."""
        with self.draft.on(""):
            return self.draft.op(
                "GreaterEqual",
                "{}/{}".format(QUANT_STEP, name),
                (self.step(), self.draft.constant(delay, tf.int64)),
                T=tf.int64,
            )

    def quantising(self) -> Optional[str]:
        """Returns a bool scalar: whether quantization is simulated yet; None if there is no delay."""
        if self._quantising is None and self.config.quant_delay:
            self._quantising = self.reached(self.config.quant_delay, "quantising")
        return self._quantising


def quantise_training_weights(plan: Plan, state: _State) -> None:
    """Lets layers read fq(W * s) / s, or fq(W) if they have no batch norm."""
    with_norm = _layers_with_norm(plan)
    for weight_quant in plan.weights:
        with state.draft.on(weight_quant.layer.op.device):
            _quantise_training_weight(weight_quant, with_norm, state)


def _quantise_training_weight(
    weight_quant: WeightQuant, with_norm: Dict[str, FrozenSet[str]], state: _State
) -> None:
    draft, layer = state.draft, weight_quant.layer
    symmetric = state.config.symmetric_weights
    # The product with the scale and the quotient by it cancel each other in the gradient.
    through = fake_quant.PASS_THROUGH_GRADIENT
    # A range that is not symmetric is moved to put 0 on a step. Weights at its ends can then be outside of
    # it, and these need the kernel's own gradient.
    gradient = through if symmetric else None
    source, scale = layer.weights, None
    if layer.batch_norm is not None:
        scale = folding.per_output_channel(draft, layer, folding.safe_scale(draft, layer))
        source = draft.op(
            "Mul",
            folding.scope_prefix(layer) + "mul_fold",
            (layer.weights, scale),
            T=tf.float32,
            _gradient_op_type=through,
        )
    condition = state.quantising()
    range_, result = fake_quant.last_value(
        draft,
        source,
        weight_quant,
        symmetric,
        training=True,
        gradient=gradient,
        when=condition,
        shared=state.shared_range(weight_quant),
    )
    scope = range_.scope
    state.keep_range(weight_quant, range_)
    if scale is not None:
        result = draft.op(
            "RealDiv", scope + "/unfold", (result, scale), T=tf.float32, _gradient_op_type=through
        )
    if condition:
        plain, _ = draft.switch(scope + "/when_off", layer.weights, condition)
        result = draft.merge(scope + "/delayed_quant", plain, result)
    _reroute_weights(draft, weight_quant, result, with_norm)


def _layers_with_norm(plan: Plan) -> Dict[str, FrozenSet[str]]:
    """Maps weights to the layers with a batch norm that read them, all by name."""
    found: Dict[str, FrozenSet[str]] = {}
    for layer in plan.folds:
        name = layer.weights.name
        found[name] = found.get(name, frozenset()) | {layer.op.name}
    return found


def _reroute_weights(
    draft: Draft, weight_quant: WeightQuant, quantised: str, with_norm: Dict[str, FrozenSet[str]]
) -> None:
    """Lets layers read quantized weights.

    They are for one layer only if it has a batch norm, as the scale is its own; else for all layers without
    a batch norm that share them.
    """
    layer = weight_quant.layer
    if layer.batch_norm is not None:
        draft.reroute(layer.weights, quantised, lambda r: r.name == layer.op.name and r.position == 1)
        return
    for weights in (layer.weights,) + weight_quant.twins:
        others = with_norm.get(weights.name, frozenset())
        draft.reroute(
            weights,
            quantised,
            lambda r, o=others: r.type == layer.op.type and r.position == 1 and r.name not in o,
        )


def freeze_batch_norms(plan: Plan, state: _State) -> None:
    """Lets batch norms use their moving statistics, without updates, after freeze_bn_delay."""
    if state.config.freeze_bn_delay is None:
        return
    frozen = state.reached(state.config.freeze_bn_delay, "batch_norm_frozen")
    for norm in [layer.batch_norm for layer in plan.folds] + list(plan.norms):
        if norm.training:
            with state.draft.on(norm.op.device):
                (_freeze_batch_norm if norm.unfused is None else _freeze_unfused)(norm, state, frozen)


def _freeze_batch_norm(norm: BatchNorm, state: _State, frozen: str) -> None:
    draft = state.draft
    here = norm.op.name + "_freeze/"
    # All inputs of a branch go through a switch, so that gradients are dead if their branch is.
    still = []
    for position, name in enumerate(("data", "gamma", "beta")):
        tensor = draft.current_input(norm.op, position)
        training, moving = draft.switch(here + name, tensor, frozen)
        draft.reroute(tensor, training, lambda r, p=position: r.name == norm.op.name and r.position == p)
        still.append(moving)
    for name, tensor in (("mean", norm.moving_mean), ("variance", norm.moving_variance)):
        still.append(draft.switch(here + name, tensor, frozen)[1])
    values = (draft.copy(norm.op, here + "frozen", still, is_training=False), still[3], still[4])
    for original, name, value in zip(norm.op.outputs, ("output", "batch_mean", "batch_variance"), values):
        state.replace(original, draft.merge(here + name, original, value))


def _freeze_unfused(norm: BatchNorm, state: _State, frozen: str) -> None:
    """Replaces the batch statistics, which are then not computed, by their averages, which stay fixed."""
    draft, parts = state.draft, norm.unfused
    here = norm.op.name + "_freeze/"
    training, _ = draft.switch(here + "data", norm.data, frozen)
    draft.reroute(norm.data, training, lambda reader: reader.name in parts.moments)
    for name, batch, average in (
        ("mean", parts.mean, norm.moving_mean),
        ("variance", parts.variance, norm.moving_variance),
    ):
        _, moving = draft.switch(here + "moving_" + name, average, frozen)
        state.replace(batch, draft.merge(here + name, batch, moving))


def fold_and_quantise_eval_weights(plan: Plan, state: _State) -> None:
    """Copies layers with folded and quantized weights, and turns batch norms behind no layer into layers.

    All these batch norms then have no readers.
    """
    draft, config = state.draft, state.config
    folded, biases, with_norm = {}, {}, _layers_with_norm(plan)
    for layer in plan.folds:
        here = folding.fold_scope(layer)
        scale = folding.scale(draft, layer.batch_norm, here)
        biases[layer.op.name] = folding.folded_bias(draft, layer.batch_norm, here, scale, layer.bias_in_front)
        folded[layer.op.name] = draft.op(
            "Mul",
            folding.scope_prefix(layer) + "mul_fold",
            (layer.weights, folding.per_output_channel(draft, layer, scale)),
            T=tf.float32,
        )
    for weight_quant in plan.weights:
        layer = weight_quant.layer
        source = folded.get(layer.op.name, layer.weights)
        range_, result = fake_quant.last_value(
            draft,
            source,
            weight_quant,
            config.symmetric_weights,
            training=False,
            shared=state.shared_range(weight_quant),
        )
        state.keep_range(weight_quant, range_)
        result = _delayed(state, range_.scope, source, result)
        if layer.batch_norm is None:
            _reroute_weights(draft, weight_quant, result, with_norm)
        else:
            folded[layer.op.name] = result
    for layer in plan.folds:
        name = layer.op.name
        if name in plan.read_on:
            data = draft.index.inputs(layer.op)[0].name
        else:
            data = draft.current_input(layer.op, policy.DATA_INPUT.get(layer.op.type, 0))
        output = folding.fold_for_eval(draft, layer, data, folded[name], biases[name])
        state.replace(layer.batch_norm.last.outputs[0], output)
    for norm in plan.norms:
        state.replace(norm.op.outputs[0], folding.norm_as_layer(draft, norm))


def leave_out_identities(plan: Plan, state: _State) -> None:
    """Lets readers of an IdentityN, in which tf.nn.swish ends, read its input.

    The op is for gradients, which an eval graph does not have. The converter of TensorFlow 1.15 does not know
    it, and finds no range behind it.
    """
    if state.config.placement != "full":
        return
    for operation in state.draft.index.of_types(["IdentityN"]):
        for position, output in enumerate(operation.outputs):
            state.draft.reroute(output, state.draft.current_input(operation, position))


def negatives_as_products(plan: Plan, state: _State) -> None:
    """Replaces Neg, which the converter knows in float only, by a product with -1. (PReLU has a Neg.)"""
    draft = state.draft
    for operation in plan.negatives:
        inputs = (draft.current_input(operation, 0), draft.constant(-1.0))
        product = draft.op("Mul", operation.name + "_product", inputs, T=tf.float32)
        draft.count_as_reader(product)
        state.replace(operation.outputs[0], product)


def weighted_sums_as_products(plan: Plan, state: _State) -> None:
    """Replaces a BatchMatMul of stacked features by products and sums, which the converter knows in int8.

    The weights are constants once the graph is frozen.
    """
    draft = state.draft
    for one, names in plan.sums:
        with draft.on(one.matmul.device):
            here = one.matmul.name + "_products/"
            shape = draft.constant([len(names)], tf.int32)
            flat = draft.op("Reshape", here + "weights", (one.weights, shape), T=tf.float32, Tshape=tf.int32)
            scalar = draft.op("Unpack", here + "unstack", (flat,), T=tf.float32, num=len(names), axis=0)
            products, sums = [], []
            for position, name in enumerate(names):
                weight = scalar[:-1] + str(position)
                inputs = (draft.current_input(one.pack, position), weight)
                product = draft.op("Mul", here + "mul", inputs, T=tf.float32)
                draft.count_as_reader(product)
                products.append((product, weight, name))
                if position:
                    before = sums[-1] if sums else products[0][0]
                    sums.append(draft.op("AddV2", here + "add", (before, product), T=tf.float32))
                    draft.count_as_reader(sums[-1])
            state.sums.append((products, sums))
            state.replace(one.squeeze.outputs[0], sums[-1])


def quantise_products(plan: Plan, state: _State) -> None:
    """Lets the sums read fake quants of the products, and the last sum those of the sums before it.

    Their ranges need no training. A product with a constant has the input's range times the constant, so it
    has the same integers as the input, and loses nothing. A sum's range is at most the sum of ranges.
    """
    draft = state.draft
    bits = {quant.name: quant.bits for quant in plan.activations}
    for products, sums in state.sums:
        low = high = None
        for position, (product, weight, name) in enumerate(products):
            known, scope = state.range_of(name), product[:-2] + "_quant"
            ends = [_op(draft, "Mul", scope + "/mul", end, weight) for end in (known.low, known.high)]
            range_ = fake_quant.Range(
                scope,
                _op(draft, "Minimum", scope + "/low", *ends),
                # (A weight of 0 would make an empty range.)
                _op(draft, "Maximum", scope + "/high", *(ends + [draft.constant(_SMALLEST)])),
            )
            _reroute_to_fake_quant(state, product, range_, bits[name])
            low = range_.low if low is None else _op(draft, "AddV2", scope + "/sum_low", low, range_.low)
            high = (
                range_.high if high is None else _op(draft, "AddV2", scope + "/sum_high", high, range_.high)
            )
            if 0 < position < len(products) - 1:
                scope = sums[position - 1][:-2] + "_quant"
                range_ = fake_quant.Range(scope, low, high)
                _reroute_to_fake_quant(state, sums[position - 1], range_, bits[name])


def _reroute_to_fake_quant(state: _State, tensor: str, range_: fake_quant.Range, bits: int) -> None:
    result = fake_quant.quantise(state.draft, tensor, range_, bits, False)
    state.draft.reroute(tensor, _delayed(state, range_.scope, tensor, result))


def _op(draft: Draft, kind: str, name: str, *inputs: str) -> str:
    """Adds an op of float32 tensors; of more than two, it is applied to two at a time."""
    result = inputs[0]
    for other in inputs[1:]:
        result = draft.op(kind, name, (result, other), T=tf.float32)
    return result


def _delayed(state: _State, scope: str, plain, quantised: str) -> str:
    """Selects the quantized value after the delay, in an eval graph; returns it if there is no delay.

    Both values are computed. This costs time, but the converter knows Select.
    """
    condition = state.quantising()
    if not condition:
        return quantised
    return state.draft.op("SelectV2", scope + "/delayed_quant", (condition, quantised, plain), T=tf.float32)


def quantise_activations(plan: Plan, state: _State) -> None:
    """Lets the readers of each planned tensor read its fake quant.

    In training, the fake quant of a ReLU absorbs it: its range starts at 0 and ends at or below the ceiling
    of the ReLU, so it clips as the ReLU does, and the ReLU is not computed.
    """
    # In graph order, so that an absorbed ReLU's input is already the fake quant in front of it.
    position = state.draft.index.position
    ordered = sorted(plan.activations, key=lambda quant: position(quant.tensor.op))
    # In evaluation all ranges are made first, as what a concat joins may have the range of the concat.
    ranges = [] if state.training else [_activation_range(quant, quant.tensor, state) for quant in ordered]
    for number, activation_quant in enumerate(ordered):
        with state.draft.on(activation_quant.tensor.op.device):
            _quantise_activation(activation_quant, state, ranges[number] if ranges else None)


def _activation_range(quant: ActivationQuant, source, state: _State, ceiling: Optional[float] = None):
    range_ = state.shared_range(quant)
    if range_ is None:
        range_ = fake_quant.moving_average(state.draft, source, quant, state.config, state.training, ceiling)
        state.keep_range(quant, range_)
    return range_


def _quantise_activation(
    activation_quant: ActivationQuant, state: _State, range_: Optional[fake_quant.Range]
) -> None:
    draft, config = state.draft, state.config
    original = activation_quant.tensor
    tensor = state.moved.get(original.name, original.name)
    # A symmetric range reaches below 0, so its fake quant does not clip as a ReLU does.
    absorb = state.training and not config.symmetric and tensor == original.name
    ceiling, gradient = _ABSORBED.get(original.op.type, _NONE_ABSORBED) if absorb else _NONE_ABSORBED
    source = tensor if ceiling is None else draft.current_input(original.op, 0)
    if range_ is None:
        range_ = _activation_range(activation_quant, source, state, ceiling)
    elif activation_quant.joined:
        range_ = state.range_of(activation_quant.joined)._replace(scope=range_.scope)
    condition = state.quantising()
    plain, data = source, source
    if condition and state.training:
        plain, data = draft.switch(range_.scope + "/delay", source, condition)
    # An eval graph has no gradients, and its attributes go to the converter.
    gradient = gradient if state.training else None
    result = fake_quant.quantise(draft, data, range_, activation_quant.bits, False, gradient)
    if condition and state.training:
        if ceiling is not None:
            # The ReLU is copied into the branch, as outside of it, it would run in every step.
            plain = draft.op(original.op.type, range_.scope + "/plain", (plain,), T=tf.float32)
        result = draft.merge(range_.scope + "/delayed_quant", plain, result)
    else:
        result = _delayed(state, range_.scope, plain, result)
    draft.reroute(tensor, result)
    for twin in activation_quant.twins:
        draft.reroute(twin, result)
    if original.op.type in policy.JOINS and not state.training:
        _keep_in_front_of_reshapes(draft, range_.scope, result)
    for part in () if state.training else activation_quant.parts:
        # If an output of a split is not read, the converter (TensorFlow 2.21) leaves the split float for some
        # ranges, unless it finds the range behind the split too.
        again = fake_quant.quantise(draft, part, range_, activation_quant.bits, False)
        draft.reroute(part, _delayed(state, range_.scope, part.name, again))


def _keep_in_front_of_reshapes(draft: Draft, scope: str, result: str) -> None:
    """Lets a Reshape read a concat's fake quant through two ops that cancel each other.

    The converter moves a fake quant behind a Reshape that reads it. The concat then has the range of one of
    its inputs: in TensorFlow 2.15 of the first, so that the others clip; in 2.21 the widest, and a QUANTIZE
    op follows. With these two ops in between, it leaves the fake quant in place, and it removes the two.
    """
    if not any(reader.type == "Reshape" for reader in draft.readers(result)):
        return
    dimension = draft.constant(0, tf.int32)
    more = draft.op("ExpandDims", scope + "/ExpandDims", (result, dimension), T=tf.float32, Tdim=tf.int32)
    same = draft.op("Squeeze", scope + "/Squeeze", (more,), T=tf.float32, squeeze_dims=[0])
    draft.reroute(result, same, lambda reader: reader.type == "Reshape")


# For a fake quant that absorbs no activation: no ceiling, and the straight-through gradient.
_NONE_ABSORBED = (None, fake_quant.PASS_THROUGH_GRADIENT)
# The end of the range of a product with 0.
_SMALLEST = 1e-6
# The activations that a fake quant can absorb: their ceiling and gradient.
_ABSORBED = {
    "Relu6": (6.0, fake_quant.RELU6_GRADIENT),
    "Relu": (float("inf"), fake_quant.RELU_GRADIENT),
}

Pass = Callable[[Plan, _State], None]

TRAINING_PASSES: Tuple[Tuple[Pass, str], ...] = (
    (quantise_training_weights, "first: it reads the layers' own inputs, which later passes do not change"),
    (freeze_batch_norms, "before activations: their fake quants must read the output that is used"),
    (quantise_activations, "last: it moves all readers that are left"),
)
EVAL_PASSES: Tuple[Tuple[Pass, str], ...] = (
    (leave_out_identities, "first: all other passes then find the ops that read through them"),
    (negatives_as_products, "before activations: some of the products get a range"),
    (weighted_sums_as_products, "before activations, as the negatives"),
    (fold_and_quantise_eval_weights, "before activations: it copies layers, whose inputs these then reroute"),
    (quantise_activations, "almost last: it moves readers that are copies, too"),
    (quantise_products, "last: their ranges are made of those of activations"),
)


def run(plan: Plan, draft: Draft, config: QatConfig, training: bool) -> None:
    """Runs all passes in order, which writes them into the draft."""
    state = _State(draft, config, training)
    for one_pass, _ in TRAINING_PASSES if training else EVAL_PASSES:
        one_pass(plan, state)
