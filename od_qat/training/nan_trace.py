"""Finds the first layer, in forward order, that makes a NaN or an infinity, after a step has failed with one.

The trace adds nothing to the graph, which a training session has finalised, and runs nothing before a step
fails. For one batch it fetches tensors of the forward pass, in topological order, until one is not finite.
(The order of creation would not do: the rewriter makes its ops last, and they stand in the middle.)

The failed step has already put NaNs into moving averages. Before each run, variables that are not trained are
set back to the values in the newest checkpoint, or to their initial values if there is none, so that a layer
that only received a NaN is not blamed. A value that is not finite in the checkpoint stays, and is found.
"""

from typing import Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np

from od_qat.checkpoints import QUANT_VARIABLES
from od_qat.compat import tf
from od_qat.graph.index import in_control_flow
from od_qat.rewrite import policy

# The layers, and the ops (Merge) behind delayed quantization, whose branches are not always taken.
_WATCHED = (
    policy.WEIGHTED
    | policy.WEIGHTED_UNSUPPORTED
    | policy.BATCH_NORM
    | policy.FAKE_QUANT
    | frozenset(["Merge"])
)
# Ops that give another value in each run. They are read once and then fed, so that all runs see one batch.
_SOURCES = ("QueueDequeue", "IteratorGetNext", "OneShotIterator", "Random", "TruncatedNormal", "Multinomial")
_VARIABLE_READS = frozenset(["Identity", "ReadVariableOp"])

# A bad record is not in every batch. Each try costs a forward and a backward pass.
BATCHES = 5
# Early layers of a large batch take hundreds of megabytes each.
_CHUNK_BYTES = 256 * 2**20
_FIRST_CHUNK, _LARGEST_CHUNK = 4, 64


class Trace(NamedTuple):
    """Where a value is first not finite, and why; each is a clause of a message."""

    where: str
    cause: str


def trace(session, losses, gradients: Iterable[Tuple] = (), checkpoint: Optional[str] = None):
    """Runs the forward pass of the next batches again and finds the first value that is not finite.

    Args:
      session: an open tf.Session whose queues still run.
      losses: scalar tensors.
      gradients: (gradient, variable) pairs, which are looked at if all losses are finite.
      checkpoint: prefix of the checkpoint whose moving averages are used; None leaves them as they are.

    Returns:
      Trace; None if the losses and gradients of all batches were finite.
    """
    return _Tracer(session, losses, gradients, checkpoint).trace()


class _Tracer(object):
    def __init__(self, session, losses, gradients, checkpoint) -> None:
        self._session = session
        self._losses = list(losses)
        self._gradients = [
            (getattr(gradient, "values", gradient), variable)  # (IndexedSlices)
            for gradient, variable in gradients
            if gradient is not None
        ]
        self._order = list(_forward_order([loss.op for loss in self._losses]))
        self._state = _State(session, checkpoint)
        self._feed: Dict[str, np.ndarray] = {}

    def trace(self) -> Optional[Trace]:
        for _ in range(BATCHES):
            self._next_batch()
            if any(finite is False for finite in self._are_finite(self._losses)):
                return self._first_layer()
            bad = [finite is False for finite in self._are_finite([g for g, _ in self._gradients])]
            if any(bad):
                # (Losses may be finite all the same: some fake-quant kernels make a number of a NaN.)
                return self._first_layer() or self._last_gradient(bad)
        return None

    def _next_batch(self) -> None:
        tensors = [
            tensor
            for operation in self._order
            if operation.type.startswith(_SOURCES) and not in_control_flow(operation)
            for tensor in operation.outputs
            if tensor.dtype.base_dtype not in (tf.resource, tf.variant)
        ]
        self._feed = {}
        if tensors:
            values = self._session.run([tensor.name for tensor in tensors])
            self._feed = {tensor.name: value for tensor, value in zip(tensors, values)}

    def _first_layer(self) -> Optional[Trace]:
        layers = [op for op in self._order if op.type in _WATCHED and _is_readable(op)]
        layer, known = self._first_bad(layers)
        if layer is None:
            finite = self._are_finite(self._losses)
            bad = [loss.op for loss, is_finite in zip(self._losses, finite) if is_finite is False]
            if not bad:
                return None
            layer = bad[0]
        return Trace("{} ({})".format(layer.name, layer.type), self._cause(layer, known))

    def _cause(self, layer, known_finite) -> str:
        """What went wrong first between the last finite layers and the bad one."""
        between = list(_forward_order([layer], known_finite))
        bad_variables = self._state.bad_variables()
        for operation in between:
            if operation.name in bad_variables:
                return "its {} {} is not finite".format(bad_variables[operation.name], operation.name)
        for operation in between:
            for tensor in operation.outputs:
                if not _all_finite(self._feed.get(tensor.name, 0)):
                    return "its input {} is not finite: look at the records and the augmentation".format(
                        tensor.name
                    )
        values = [
            operation
            for operation in between
            if _is_readable(operation) and operation is not layer and not _reads_a_variable(operation)
        ]
        culprit, _ = self._first_bad(values)
        if culprit is not None:
            return "its input is not finite from {} ({}) on".format(culprit.name, culprit.type)
        return "its own output, from finite input, weights and range"

    def _last_gradient(self, bad: List[bool]) -> Trace:
        """The bad gradient whose layer is nearest to the losses, where the backward pass begins."""
        place = {operation.name: at for at, operation in enumerate(self._order)}
        nearest = {}
        for operation in self._order:
            for tensor in operation.inputs:
                nearest[tensor.op.name] = max(nearest.get(tensor.op.name, 0), place[operation.name])
        names = [variable.op.name for (_, variable), is_bad in zip(self._gradients, bad) if is_bad]
        return Trace(
            "the gradient of {}".format(max(names, key=lambda name: nearest.get(name, 0))),
            "losses and layers are finite, {} of {} gradients are not".format(len(names), len(bad)),
        )

    def _first_bad(self, operations) -> Tuple[Optional[object], frozenset]:
        """The first op whose first output is not finite, and the names of the ops known to be finite."""
        known, start, size = set(), 0, _FIRST_CHUNK
        while start < len(operations):
            chunk = operations[start : start + size]
            finite = self._are_finite([operation.outputs[0] for operation in chunk])
            for operation, is_finite in zip(chunk, finite):
                if is_finite is False:
                    return operation, frozenset(known)
                if is_finite:
                    known.add(operation.name)
            start += size
            size = max(1, min(_LARGEST_CHUNK, _CHUNK_BYTES // max(1, self._largest)))
        return None, frozenset(known)

    def _are_finite(self, tensors) -> List[Optional[bool]]:
        """Whether each tensor is finite for the batch; None for one in a branch that is not taken."""
        self._largest = 1
        try:
            return [_all_finite(value) for value in self._run(tensors)]
        except tf.errors.InvalidArgumentError:
            if len(tensors) == 1:
                return [None]
            return [finite for tensor in tensors for finite in self._are_finite([tensor])]

    def _run(self, tensors) -> List[np.ndarray]:
        self._state.heal()
        values = self._session.run([tensor.name for tensor in tensors], self._feed) if tensors else []
        self._largest = max([np.asarray(value).nbytes for value in values] + [1])
        return values


class _State(object):
    """The variables of the graph; those that are not trained can be set back to before the failed step."""

    def __init__(self, session, checkpoint: Optional[str]) -> None:
        self._session = session
        self._reader = tf.train.NewCheckpointReader(checkpoint) if checkpoint else None
        graph = session.graph
        trainable = frozenset(v.op.name for v in graph.get_collection(tf.GraphKeys.TRAINABLE_VARIABLES))
        quant = frozenset(v.op.name for v in graph.get_collection(QUANT_VARIABLES))
        self._variables = [
            v for v in graph.get_collection(tf.GraphKeys.GLOBAL_VARIABLES) if v.dtype.base_dtype.is_floating
        ]
        self._kinds = {
            v.op.name: (
                "variable"
                if v.op.name in trainable
                else "range"
                if v.op.name in quant
                else "moving statistic"
            )
            for v in self._variables
        }

    def heal(self) -> None:
        """Sets averages that are not finite back to the checkpoint's values if those are finite.

        Without a checkpoint they get their initial values.
        """
        initializers, feed = [], {}
        for variable in self._bad():
            if self._kinds[variable.op.name] == "variable":
                continue
            if self._reader is None:
                initializers.append(variable.initializer)
            elif self._reader.has_tensor(variable.op.name):
                value = self._reader.get_tensor(variable.op.name)
                if list(value.shape) == variable.shape.as_list() and _all_finite(value):
                    initializers.append(variable.initializer)
                    feed[variable.initializer.inputs[1].name] = value
        if initializers:
            self._session.run(initializers, feed)

    def bad_variables(self) -> Dict[str, str]:
        """Op name -> kind, of the variables that were not finite before the failed step."""
        self.heal()
        return {variable.op.name: self._kinds[variable.op.name] for variable in self._bad()}

    def _bad(self) -> List:
        return not_finite(self._session, self._variables)


def not_finite(session, variables: Iterable) -> List:
    """The variables of floating point that have values that are not finite."""
    floating = [variable for variable in variables if variable.dtype.base_dtype.is_floating]
    # (In a run of its own, so that no op of a step changes them.)
    values = session.run(floating)
    return [variable for variable, value in zip(floating, values) if not _all_finite(value)]


def _forward_order(targets, stop_at=frozenset()) -> Iterator:
    """The targets and the ops that their values are computed from, each after its inputs.

    Args:
      targets: operations.
      stop_at: names of the ops where the search ends.
    """
    seen = set()
    for target in targets:
        if target.name in seen:
            continue
        seen.add(target.name)
        stack = [(target, iter(list(target.inputs)))]
        while stack:
            operation, inputs = stack[-1]
            below = next((t.op for t in inputs if t.op.name not in seen and t.op.name not in stop_at), None)
            if below is None:
                stack.pop()
                yield operation
            else:
                seen.add(below.name)
                stack.append((below, iter(list(below.inputs))))


def _is_readable(operation) -> bool:
    return (
        len(operation.outputs) > 0
        and operation.outputs[0].dtype.base_dtype.is_floating
        and not in_control_flow(operation)
        and operation.type not in policy.VARIABLE
    )


def _reads_a_variable(operation) -> bool:
    return operation.type in _VARIABLE_READS and operation.inputs[0].op.type in policy.VARIABLE


def _all_finite(value) -> bool:
    value = np.asarray(value)
    if value.dtype.kind not in "fc":
        # (numpy has no bfloat16: such tensors, and strings, are not looked at.)
        return True
    return bool(np.all(np.isfinite(value)))
