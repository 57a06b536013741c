"""Editing the graph as planned.

Two ordered tables, one for training and one for eval; each row says why it stands where it does. A pass takes
the plan and the state of the rewrite and edits; nothing here decides.
"""

import contextlib
from typing import Callable, Dict, Optional, Tuple

from od_qat.checkpoints import QUANT_STEP, QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import QatConfig
from od_qat.graph import edit
from od_qat.rewrite import fake_quant, folding
from od_qat.rewrite.plan import Plan, WeightQuant, scope_of

# Where the plan's tensors have gone: an eval fold puts `add_fold` in a batch norm's place.
Moved = Dict[str, object]


class _State(object):
    """What passes share: options, where tensors have gone, and whether quantization is on yet."""

    def __init__(self, graph, config: QatConfig, training: bool) -> None:
        self.graph = graph
        self.config = config
        self.training = training
        self.moved: Moved = {}
        self._step = None
        self._quantising = None

    def step(self):
        """int64 scalar: the optimiser step that runs now, from 1.

        Follows the global step where there is one (several workers then agree); the variable has contrib's
        name, so that contrib's checkpoints resume here with the delay where it was.
        """
        if self._step is None:
            with self.graph.name_scope(None):
                variable = tf.get_variable(
                    QUANT_STEP,
                    shape=[],
                    dtype=tf.int64,
                    initializer=tf.zeros_initializer(),
                    trainable=False,
                    collections=[tf.GraphKeys.GLOBAL_VARIABLES, QUANT_VARIABLES],
                    aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA,
                )
                with self.graph.name_scope(QUANT_STEP + "/"):
                    global_step = tf.train.get_global_step(self.graph)
                    if global_step is None or not self.training:
                        update = tf.assign_add(variable, 1)
                    else:
                        update = tf.assign(variable, tf.cast(global_step, tf.int64) + 1)
                    self._step = tf.identity(update)
        return self._step

    def after_delay(self, quantised: Callable, plain: Callable, name: str):
        """quantised() once quant_delay has passed, plain() before; without a delay just quantised()."""
        delay = self.config.quant_delay
        if not delay:
            return quantised()
        if self._quantising is None:
            with self.graph.name_scope(QUANT_STEP + "/"):
                self._quantising = tf.greater_equal(self.step(), delay, name="quantising")
        with tf.name_scope(None):
            return tf.cond(self._quantising, quantised, plain, name=name + "/delayed_quant")


def quantise_training_weights(plan: Plan, state: _State) -> None:
    """Layers read fq(W * s) / s, or fq(W) where no batch norm follows."""
    for weight_quant in plan.weights:
        # A range that is not symmetric is moved to put 0 on a step, which can leave out weights at its ends:
        # there the kernel's own gradient is needed.
        every_weight_in_range = state.config.symmetric_weights
        with fake_quant.straight_through() if every_weight_in_range else contextlib.nullcontext():
            _quantise_training_weight(weight_quant, state)


def _quantise_training_weight(weight_quant: WeightQuant, state: _State) -> None:
    layer = weight_quant.layer
    scope = scope_of(layer.op.name)
    if layer.batch_norm is None:
        readers = [
            (op, at) for op, at in edit.live_consumers(layer.weights) if op.type == layer.op.type and at == 1
        ]
        quantised = fake_quant.last_value(layer.weights, weight_quant.name, state.config, training=True)
        tensor = state.after_delay(lambda q=quantised: q, lambda w=layer.weights: w, weight_quant.name)
    else:
        readers = [(layer.op, 1)]
        with state.graph.name_scope(scope + "/" if scope else None):
            with state.graph.name_scope("BatchNorm_Fold"):
                scale = folding.per_output_channel(layer, folding.safe_scale(layer.batch_norm))
            scaled = tf.multiply(layer.weights, scale, name="mul_fold")
        quantised = fake_quant.last_value(scaled, weight_quant.name, state.config, training=True)
        tensor = state.after_delay(
            lambda q=quantised, s=scale: tf.divide(q, s, name="unfold"),
            lambda w=layer.weights: w,
            weight_quant.name,
        )
    edit.reroute(readers, tensor)


def freeze_batch_norms(plan: Plan, state: _State) -> None:
    """After freeze_bn_delay a batch norm uses its moving statistics and no longer changes them."""
    if state.config.freeze_bn_delay is None:
        return
    with state.graph.name_scope(QUANT_STEP + "/"):
        frozen = tf.greater_equal(state.step(), state.config.freeze_bn_delay, name="batch_norm_frozen")
    for layer in plan.folds:
        norm = layer.batch_norm
        if not norm.training:
            continue
        outputs = norm.op.outputs
        replaced = [edit.live_consumers(output) for output in outputs[:3]]
        data = norm.op.inputs[0]
        data_format = norm.op.get_attr("data_format").decode()
        with state.graph.name_scope(norm.op.name + "_freeze/"):
            values = tf.cond(
                frozen,
                lambda n=norm, x=data, f=data_format: [
                    tf.nn.fused_batch_norm(
                        x,
                        n.gamma,
                        n.beta,
                        n.moving_mean,
                        n.moving_variance,
                        epsilon=n.epsilon,
                        is_training=False,
                        data_format=f,
                    )[0],
                    tf.identity(n.moving_mean),
                    tf.identity(n.moving_variance),
                ],
                lambda o=outputs: [tf.identity(o[0]), tf.identity(o[1]), tf.identity(o[2])],
            )
        for readers, original, value in zip(replaced, outputs, values):
            value.set_shape(original.get_shape())
            edit.reroute(readers, value)
        state.moved[outputs[0].name] = values[0]


def fold_and_quantise_eval_weights(plan: Plan, state: _State) -> None:
    """Layers are cloned with folded weights; their batch norms are left without readers."""
    quant_names = {weight_quant.layer.op.name: weight_quant.name for weight_quant in plan.weights}
    scaled, biases = {}, {}
    for layer in plan.folds:
        scope = scope_of(layer.op.name)
        norm = layer.batch_norm
        with state.graph.name_scope(scope + "/" if scope else None):
            with state.graph.name_scope((scope + "/" if scope else "") + "BatchNorm_Fold/"):
                scale = folding.scale(norm)
                biases[layer.op.name] = tf.subtract(norm.beta, norm.moving_mean * scale, name="bias")
                scale = folding.per_output_channel(layer, scale)
            scaled[layer.op.name] = tf.multiply(layer.weights, scale, name="mul_fold")
    weights = {}
    for weight_quant in plan.weights:
        layer = weight_quant.layer
        source = scaled.get(layer.op.name, layer.weights)
        quantised = fake_quant.last_value(source, weight_quant.name, state.config, training=False)
        tensor = state.after_delay(lambda q=quantised: q, lambda s=source: s, weight_quant.name)
        if layer.batch_norm is None:
            readers = [
                (op, at)
                for op, at in edit.live_consumers(layer.weights)
                if op.type == layer.op.type and at == 1
            ]
            edit.reroute(readers, tensor)
        else:
            weights[layer.op.name] = tensor
    for layer in plan.folds:
        name = layer.op.name
        scope = scope_of(name)
        with state.graph.name_scope(scope + "/" if scope else None):
            folded_weights = weights[name] if name in quant_names else scaled[name]
            output, _ = folding.fold_for_eval(layer, folded_weights, biases[name])
        original = layer.batch_norm.op.outputs[0]
        output.set_shape(original.get_shape())
        edit.reroute(edit.live_consumers(original), output)
        state.moved[original.name] = output


def quantise_activations(plan: Plan, state: _State) -> None:
    """Consumers of each planned tensor read its fake quant instead.

    In training a ReLU in front is absorbed: the fake quant's range starts at 0 and ends at the ReLU's own
    ceiling, so it clips the same and the ReLU is no longer computed.
    """
    for activation_quant in plan.activations:
        tensor = state.moved.get(activation_quant.tensor.name, activation_quant.tensor)
        readers = edit.live_consumers(tensor)
        # (A symmetric range reaches below 0 and would not clip as the ReLU does.)
        absorb = state.training and not state.config.symmetric
        ceiling = _ceiling(tensor.op) if absorb else None
        source = tensor.op.inputs[0] if ceiling is not None else tensor
        make = fake_quant.moving_average(
            source,
            activation_quant.name,
            state.config,
            state.training,
            activation_quant.initial_min,
            ceiling,
        )
        quantised = state.after_delay(make, _plain(tensor, source, ceiling), activation_quant.name)
        quantised.set_shape(tensor.get_shape())
        edit.reroute(readers, quantised)


def _ceiling(operation) -> Optional[float]:
    return {"Relu6": 6.0, "Relu": float("inf")}.get(operation.type)


def _plain(tensor, source, ceiling: Optional[float]) -> Callable:
    if ceiling is None:
        return lambda: tensor
    # Built inside the branch: the ReLU outside of it would run in every step.
    return lambda: tf.nn.relu6(source) if ceiling == 6.0 else tf.nn.relu(source)


Pass = Callable[[Plan, _State], None]

TRAINING_PASSES: Tuple[Tuple[Pass, str], ...] = (
    (quantise_training_weights, "first: reads the layers' own inputs, which later passes leave alone"),
    (freeze_batch_norms, "before activations, which must see the output that is used"),
    (quantise_activations, "last: its readers are those that are left"),
)
EVAL_PASSES: Tuple[Tuple[Pass, str], ...] = (
    (fold_and_quantise_eval_weights, "first: clones layers, whose inputs the activations then reroute"),
    (quantise_activations, "last: its readers include the clones"),
)


def run(plan: Plan, graph, config: QatConfig, training: bool) -> None:
    """Applies the passes, in order."""
    state = _State(graph, config, training)
    for one_pass, _ in TRAINING_PASSES if training else EVAL_PASSES:
        one_pass(plan, state)
