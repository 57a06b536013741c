"""The four public functions, with the names, parameters, order and defaults of tf.contrib.quantize (TF 1.15).

contrib's functions returned None; these return a RewriteReport. Options that contrib did not have are
keyword-only.
"""

import contextlib
import gc
import itertools
from typing import Dict, Iterable, Iterator, Optional

from od_qat import compat  # noqa: F401  (TensorFlow, set up)
from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.config import LayerRule, QatConfig
from od_qat.errors import RewriteError
from od_qat.graph.draft import Draft
from od_qat.graph.index import GraphIndex
from od_qat.rewrite import live, passes, policy
from od_qat.rewrite.planner import build_plan
from od_qat.rewrite.report import RewriteReport


def create_training_graph(
    input_graph=None,
    quant_delay: int = 0,
    *,
    placement: str = "full",
    per_channel: bool = False,
    rules: Iterable[LayerRule] = (),
) -> RewriteReport:
    """Rewrites a training graph in place for simulated quantization.

    Call it after the losses are built and before the gradients are.

    Args:
      input_graph: tf.Graph; by default the default graph.
      quant_delay: the optimizer step, counted from 1, from which quantization is simulated. 0 and 1 both mean
        from the first step, which suits fine-tuning.
      placement: 'full', or 'contrib' for exactly the tensors that tf.contrib.quantize quantizes.
      per_channel: whether the weights of convolutions get a range for each output channel, for int8.
      rules: od_qat.config.LayerRule, settings of some layers; if several match, the later wins.

    Returns:
      RewriteReport.

    Raises:
      RewriteError: if there is nothing to quantize, if the graph has gradients or has been rewritten already,
        or if a rule matches nothing; the graph is then unchanged.
      ConfigError: if an argument is not valid. Both errors are ValueErrors.
    """
    config = QatConfig(quant_delay=quant_delay, placement=placement, per_channel=per_channel, rules=rules)
    return rewrite(config, training=True, input_graph=input_graph)


def create_eval_graph(
    input_graph=None,
    *,
    placement: str = "full",
    per_channel: bool = False,
    rules: Iterable[LayerRule] = (),
) -> RewriteReport:
    """Rewrites an eval graph in place: folds batch norms, and adds fake quants with the trained ranges.

    Args:
      input_graph: tf.Graph; by default the default graph.
      placement, per_channel, rules: as for the training graph.

    Returns:
      RewriteReport.

    Raises:
      RewriteError, ConfigError: see create_training_graph.
    """
    config = QatConfig(placement=placement, per_channel=per_channel, rules=rules)
    return rewrite(config, training=False, input_graph=input_graph)


def experimental_create_training_graph(
    input_graph=None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    symmetric: bool = False,
    quant_delay: int = 0,
    freeze_bn_delay: Optional[int] = None,
    scope: Optional[str] = None,
    *,
    placement: str = "full",
    per_channel: bool = False,
    rules: Iterable[LayerRule] = (),
    ema_decay: float = 0.999,
) -> RewriteReport:
    """Does what create_training_graph does, with all options.

    Args:
      input_graph: tf.Graph; by default the default graph.
      weight_bits, activation_bits: 2 to 8; TFLite takes 8.
      symmetric: whether ranges are symmetric around zero.
      quant_delay: the optimizer step, counted from 1, from which quantization is simulated.
      freeze_bn_delay: the optimizer step from which batch norms use their moving statistics; None for never.
      scope: rewrite only the ops below this name scope.
      placement, per_channel, rules: as for create_training_graph.
      ema_decay: decay of the moving average of activation ranges.

    Returns:
      RewriteReport.

    Raises:
      RewriteError, ConfigError: see create_training_graph.
    """
    config = QatConfig(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        symmetric=symmetric,
        quant_delay=quant_delay or 0,
        freeze_bn_delay=freeze_bn_delay,
        scope=scope,
        placement=placement,
        per_channel=per_channel,
        rules=rules,
        ema_decay=ema_decay,
    )
    return rewrite(config, training=True, input_graph=input_graph)


def experimental_create_eval_graph(
    input_graph=None,
    weight_bits: int = 8,
    activation_bits: int = 8,
    symmetric: bool = False,
    quant_delay: Optional[int] = None,
    scope: Optional[str] = None,
    *,
    placement: str = "full",
    per_channel: bool = False,
    rules: Iterable[LayerRule] = (),
) -> RewriteReport:
    """Does what create_eval_graph does, with all options; see experimental_create_training_graph."""
    config = QatConfig(
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        symmetric=symmetric,
        quant_delay=quant_delay or 0,
        scope=scope,
        placement=placement,
        per_channel=per_channel,
        rules=rules,
    )
    return rewrite(config, training=False, input_graph=input_graph)


def rewrite(
    config: QatConfig, training: bool, input_graph=None, outputs: Optional[Iterable[object]] = None
) -> RewriteReport:
    """Does what all four functions do, for callers that have a QatConfig.

    Give outputs for a graph of Keras layers. It may hold copies of the model that lead to none of them; these
    stay untouched. And the names of the fake quants are then the same in all graphs of the model, whatever
    else these hold: od_qat/rewrite/planner.py says how they come about.

    Args:
      config: options. Delays apply in an eval graph too; QatConfig.for_evaluation() has none.
      training: whether this is a training graph.
      input_graph: tf.Graph; by default the default graph.
      outputs: the tensors or operations that will be run: in training the losses, else the raw outputs of the
        model. (The updates of batch norms in front of them need not be given.) None for the whole graph, with
        names after ops, as in tf.contrib.quantize.

    Returns:
      RewriteReport.

    Raises:
      RewriteError: see create_training_graph; and if an output is not in the graph.
    """
    graph = input_graph if input_graph is not None else tf.get_default_graph()
    if not isinstance(graph, tf.Graph):
        raise RewriteError(
            "not a graph",
            where="input_graph",
            found=type(graph).__name__,
            allowed="a tf.Graph, or None for the default graph",
            fix="build the model in the graph; a GraphDef holds no variables to quantize",
        )
    with _no_garbage_collection():
        return _rewrite_graph(graph, training, config, outputs)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Turns Python's garbage collection off, since nearly all objects that a rewrite makes stay alive.

    A graph has a million objects. For one of 25,000 ops, two collections took 0.7 of the rewrite's 4.4 s.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rewrite_graph(
    graph, training: bool, config: QatConfig, outputs: Optional[Iterable[object]]
) -> RewriteReport:
    _refuse_unsuitable(graph)
    index = GraphIndex(graph, None if outputs is None else live.leading_to(graph, outputs))
    plan = build_plan(index, config, by_variable=outputs is not None)
    if not plan.weights and not plan.activations:
        raise RewriteError(
            "nothing to quantize in this graph",
            where="scope {}".format(config.scope) if config.scope else None,
            found=_instead(plan.stays_float)
            or "{} ops, none of them a {} with variable weights".format(
                len(index.operations), ", ".join(sorted(policy.WEIGHTED))
            ),
            fix="give a name scope that layers are in, or None for the whole graph"
            if config.scope
            else "call it after the model is built, on the graph it is built in, and before freezing",
        )
    with graph.as_default():
        draft = Draft(index)
        passes.run(plan, draft, config, training)
        draft.commit()
    # Operations come in creation order, so the new ones are last.
    added = graph.get_operations()[index.size :]
    return RewriteReport.from_plan(plan, index, added, config)


def _instead(stays_float: Dict[str, str]) -> str:
    """Why the first layers stay float; '' if there are no layers."""
    return "; ".join("{}: {}".format(*one) for one in itertools.islice(stays_float.items(), 3))


def _refuse_unsuitable(graph) -> None:
    if graph.get_collection(QUANT_VARIABLES):
        raise RewriteError(
            "the graph has been rewritten already",
            found="{} quantization variables".format(len(graph.get_collection(QUANT_VARIABLES))),
            fix="rewrite a graph once: either the config's graph_rewriter or your own call",
        )
    for operation in graph.get_operations():
        if operation.type.startswith(policy.TRAINING_OPS_PREFIXES) or policy.is_gradient(operation):
            raise RewriteError(
                # The first words are tf.contrib.quantize's, since callers may look for them.
                "Training op found in graph: it holds gradients already, those of the float model",
                where=operation.name,
                found=operation.type,
                fix="rewrite before the optimizer's minimize(), compute_gradients() or tf.gradients()",
            )
