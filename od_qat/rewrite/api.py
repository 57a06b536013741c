"""The four public functions, with the names, parameters, order and defaults of tf.contrib.quantize (TF 1.15).

contrib returned None; these return a RewriteReport. New options are keyword-only.
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
from od_qat.rewrite import passes, policy
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

    Call it once the losses are built and before the gradients are.

    Args:
      input_graph: tf.Graph, default the default graph.
      quant_delay: the optimiser step, counted from 1, from which quantization is simulated; 0, as 1, is from
        the first, and suits fine-tuning.
      placement: 'full', or 'contrib' for exactly the tensors that tf.contrib.quantize quantises.
      per_channel: convolutions' weights with a range for each output channel, for int8.
      rules: od_qat.config.LayerRule, for settings of some layers; the later wins.

    Returns:
      RewriteReport.

    Raises:
      RewriteError: when there is nothing to quantise, gradients are there already, a rule matches nothing, or
        the graph has been rewritten; the graph is then as it was.
      ConfigError: for an argument that is not what it has to be. Both are ValueErrors.
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
    """Rewrites an eval graph in place: batch norms folded, fake quants with the trained ranges.

    Args:
      input_graph: tf.Graph, default the default graph.
      placement, per_channel, rules: as the training graph's.

    Returns:
      RewriteReport.

    Raises:
      RewriteError, ConfigError: as create_training_graph.
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
    """create_training_graph with all options.

    Args:
      input_graph: tf.Graph, default the default graph.
      weight_bits, activation_bits: 2 to 8; TFLite takes 8.
      symmetric: ranges symmetric around zero.
      quant_delay: the optimiser step, counted from 1, from which quantization is simulated.
      freeze_bn_delay: the optimiser step from which batch norms use their moving statistics; None for never.
      scope: only ops below this name scope.
      placement, per_channel, rules: as create_training_graph's.
      ema_decay: decay of the activation ranges' moving average.

    Returns:
      RewriteReport.

    Raises:
      RewriteError, ConfigError: as create_training_graph.
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
    """create_eval_graph with all options; see experimental_create_training_graph."""
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


def rewrite(config: QatConfig, training: bool, input_graph=None) -> RewriteReport:
    """What all four functions do, for callers that have a QatConfig.

    Args:
      config: options. The delays hold in an eval graph too: QatConfig.for_evaluation() is without.
      training: which rewrite.
      input_graph: tf.Graph, default the default graph.

    Returns:
      RewriteReport.

    Raises:
      RewriteError: as create_training_graph.
    """
    graph = input_graph if input_graph is not None else tf.get_default_graph()
    if not isinstance(graph, tf.Graph):
        raise RewriteError(
            "not a graph",
            where="input_graph",
            found=type(graph).__name__,
            allowed="a tf.Graph, or None for the default graph",
            fix="build the model in the graph; a GraphDef holds no variables to quantise",
        )
    with _no_garbage_collection():
        return _rewrite_graph(graph, training, config)


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keeps Python from looking for cycles among objects that nearly all stay.

    A graph is a million of them: two walks over all took 0.7 of the 4.4 s of rewriting one of 25,000 ops.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _rewrite_graph(graph, training: bool, config: QatConfig) -> RewriteReport:
    index = GraphIndex(graph)
    _refuse_unsuitable(index, training)
    plan = build_plan(index, config)
    if not plan.weights and not plan.activations:
        raise RewriteError(
            "nothing to quantise in this graph",
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
    # (In creation order: what is new comes last.)
    added = graph.get_operations()[len(index.operations) :]
    return RewriteReport.from_plan(plan, index, added, config)


def _instead(stays_float: Dict[str, str]) -> str:
    """Why the first layers stay float; '' where there are none."""
    return "; ".join("{}: {}".format(*one) for one in itertools.islice(stays_float.items(), 3))


def _refuse_unsuitable(index: GraphIndex, training: bool) -> None:
    if index.graph.get_collection(QUANT_VARIABLES):
        raise RewriteError(
            "the graph has been rewritten already",
            found="{} quantization variables".format(len(index.graph.get_collection(QUANT_VARIABLES))),
            fix="rewrite a graph once: either the config's graph_rewriter or your own call",
        )
    for operation in index.operations:
        if operation.type.startswith(policy.TRAINING_OPS_PREFIXES) or policy.is_gradient(operation):
            raise RewriteError(
                # (The first words are tf.contrib.quantize's, which its callers may look for.)
                "Training op found in graph: it holds gradients already, which would stay the float model's",
                where=operation.name,
                found=operation.type,
                fix="rewrite before the optimizer's minimize(), compute_gradients() or tf.gradients()",
            )
