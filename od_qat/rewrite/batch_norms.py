"""Finds the batch norms of a graph: fused ones, unfused ones, and those of fully connected layers.

The batch norm of a fully connected layer is a fused one between two Reshapes, as a fused one takes four
dimensions. In training, tf-slim may put an Identity behind a batch norm that waits for the updates of the
moving averages (updates_collections=None). No eval graph has it, so it counts as part of the batch norm.
"""

from typing import Dict, FrozenSet, List, Optional, Tuple

from od_qat.graph.index import GraphIndex, in_control_flow
from od_qat.rewrite import policy, unfused_norms
from od_qat.rewrite.parts import BatchNorm
from od_qat.rewrite.tensors import averaged_into, is_variable_value


class BatchNorms(object):
    """All batch norms of a graph.

    A batch norm is looked up by its last op: the fused op itself, the last Add of an unfused one, or the
    Reshape behind that of a fully connected layer.

    Args:
      index: the graph before any edit.
      as_contrib: whether to find what contrib finds.

    Attributes:
      switched: names of the batch norms that a tensor switches between training and evaluation.
    """

    def __init__(self, index: GraphIndex, as_contrib: bool) -> None:
        self._index = index
        self._as_contrib = as_contrib
        unfused, switched = unfused_norms.find(index, as_contrib)
        reshaped = _between_reshapes(index, as_contrib)
        self.switched: Tuple[str, ...] = tuple(_fused_and_switched(index) + switched)
        self._unfused: Dict[str, BatchNorm] = {norm.op.name: norm for norm in unfused}
        self._reshaped: Dict[str, Tuple[object, object]] = {last.name: (last, op) for last, op in reshaped}
        self._last_ops: Dict[str, List[object]] = {}  # name of the data -> those of several ops
        for norm in unfused:
            self._last_ops.setdefault(norm.data.name, []).append(norm.op)
        for last, fused in reshaped:
            self._last_ops.setdefault(_in_front(index, fused).name, []).append(last)

    def behind(self, tensor) -> List[object]:
        """Returns the last ops of all batch norms that normalise a tensor."""
        fused = [op for op, at in self._index.consumers(tensor) if at == 0 and op.type in policy.BATCH_NORM]
        return fused + self._last_ops.get(tensor.name, [])

    def is_last(self, operation) -> bool:
        """Whether an op is the last one of a batch norm."""
        return operation.type in policy.BATCH_NORM or self.is_last_of_several(operation)

    def is_last_of_several(self, operation) -> bool:
        """Whether an op is the last one of a batch norm that has several ops."""
        return operation.name in self._unfused or self.is_reshape_behind(operation)

    def is_reshape_behind(self, operation) -> bool:
        """Whether an op is the Reshape behind a fully connected layer's fused batch norm."""
        return operation.name in self._reshaped

    def ending_in(self, operation) -> Optional[BatchNorm]:
        """Returns the batch norm whose last op this is; None if its moving averages are not found."""
        if operation.name in self._unfused:
            return self._unfused[operation.name]
        if operation.name in self._reshaped:
            last, fused = self._reshaped[operation.name]
            return _of_fused(self._index, fused, reshape=last)
        return _of_fused(self._index, operation)

    def reading_data(self, norm: BatchNorm) -> FrozenSet[str]:
        """Returns the names of the batch norm's ops that read the data it normalises."""
        if norm.reshape is not None:
            return frozenset([self._index.inputs(norm.op)[0].op.name])
        if norm.unfused is not None:
            return norm.unfused.moments | {norm.unfused.product}
        return frozenset([norm.op.name])

    def is_only_reader(self, tensor) -> bool:
        """Whether a batch norm is the only reader of a tensor."""
        consumers = self._index.consumer_ops(tensor)
        last_ops = self._last_ops.get(tensor.name)
        if not last_ops:
            return len(consumers) == 1 and consumers[0].type in policy.BATCH_NORM
        if self.is_reshape_behind(last_ops[0]):
            return [op.type for op in consumers if op.type not in policy.OF_SHAPES] == ["Reshape"]
        inside = self.reading_data(self._unfused[last_ops[0].name])
        return all(op.name in inside for op in consumers)

    def end_of(self, operation) -> object:
        """Returns the Identity that waits behind a batch norm's last op, or else the last op itself."""
        waiting = _waiting_behind(self._index, operation) if self._may_wait(operation) else None
        return waiting or operation

    def updates_averages(self, operation) -> bool:
        """Whether an op is the Identity that waits for the updates of a batch norm's moving averages."""
        if not _waits(operation):
            return False
        source = self._index.inputs(operation)[0]
        return self._may_wait(source.op) and source.name == source.op.outputs[0].name

    def _may_wait(self, operation) -> bool:
        return not self._as_contrib and self.is_last(operation)


def _of_fused(index: GraphIndex, operation, reshape=None) -> Optional[BatchNorm]:
    """Returns the batch norm of a fused op; None if the variables of its statistics are not found.

    `reshape` is the Reshape behind it, for a fully connected layer.
    """
    data, gamma, beta, mean, variance = index.inputs(operation)[:5]
    training = bool(operation.get_attr("is_training"))
    if training:
        # In TF 1, a batch norm in training mode has empty constants as these inputs. The variables are
        # those that the statistics of the batch are averaged into.
        mean = _moving_average(index, mean, operation.outputs[1])
        variance = _moving_average(index, variance, operation.outputs[2])
    if variance is None or mean is None:
        return None
    return BatchNorm(
        operation,
        data if reshape is None else _in_front(index, operation),
        gamma,
        beta,
        mean,
        variance,
        float(operation.get_attr("epsilon")),
        training,
        channels_first=reshape is None and operation.get_attr("data_format") == b"NCHW",
        reshape=reshape,
    )


def _moving_average(index: GraphIndex, given, statistic) -> Optional[object]:
    return given if is_variable_value(index, given) else averaged_into(index, statistic)


def _between_reshapes(index: GraphIndex, as_contrib: bool) -> List[Tuple[object, object]]:
    """Finds [batch, channels] -> Reshape -> fused batch norm -> Reshape; (last Reshape, batch norm) pairs."""
    found = []
    for operation in index.of_types(policy.BATCH_NORM):
        waiting = None if as_contrib else _waiting_behind(index, operation)
        front = index.inputs(operation)[0]
        behind = index.consumer_ops((waiting or operation).outputs[0])
        if front.op.type != "Reshape" or [op.type for op in behind] != ["Reshape"]:
            continue
        if _keeps_channels(operation, _in_front(index, operation), front, behind[0].outputs[0]):
            found.append((behind[0], operation))
    return found


def _in_front(index: GraphIndex, fused) -> object:
    """Returns the input of the Reshape in front of a fused batch norm."""
    return index.inputs(index.inputs(fused)[0].op)[0]


def _keeps_channels(norm, data, reshaped, result) -> bool:
    """Whether the channels of the four-dimensional batch norm are those of its 2-D input and result."""
    shapes = [tensor.get_shape() for tensor in (data, reshaped, result)]
    if [shape.ndims for shape in shapes] != [2, 4, 2]:
        return False
    two, four, back = [shape.as_list() for shape in shapes]
    if norm.get_attr("data_format") == b"NCHW":
        four = [four[0]] + four[2:] + [four[1]] if four[2:] == [1, 1] else [None]
    return two[1] is not None and two[1] == four[-1] == back[1]


def _waiting_behind(index: GraphIndex, operation) -> Optional[object]:
    """Returns the only reader of an op if that is an Identity with control inputs; else None."""
    consumers = index.consumer_ops(operation.outputs[0]) if operation.outputs else ()
    return consumers[0] if len(consumers) == 1 and _waits(consumers[0]) else None


def _waits(operation) -> bool:
    return operation.type == "Identity" and bool(operation.control_inputs)


def _fused_and_switched(index: GraphIndex) -> List[str]:
    """Returns the names of fused batch norms in a branch of a tf.cond whose data comes from outside it.

    If the branches are functions (TF 2's tf.cond), the name is that of the tf.cond.
    """
    found = []
    for operation in index.of_types(policy.BATCH_NORM | policy.BRANCHES):
        if operation.type in policy.BATCH_NORM and in_control_flow(operation):
            data = index.inputs(operation)[0].op
            if data.type == "Switch" and not in_control_flow(index.inputs(data)[0].op):
                found.append(operation.name)
        elif operation.type in policy.BRANCHES:
            types = set(index.types_in_functions(operation))
            if types & policy.BATCH_NORM and not types & policy.WEIGHTED:
                found.append(operation.name)
    return found
