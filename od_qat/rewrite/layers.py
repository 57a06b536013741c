"""Matching layers, backwards from the op that ends them.

The shapes, written as graphs (square brackets: optional)::

    weights -> [conv|depthwise|matmul] -> [BatchToSpaceND] [-> Identity] -> batch norm     (batch norm layer)
                                                           -> BiasAdd|Add                  (biased layer)
                                                           -> BiasAdd|Add -> batch norm    (not contrib's)
    layer -> [bypass Add] -> Relu|Relu6|Identity -> [post-activation bypass Add]

A batch norm is one of the fused ops, or the arithmetic of `tf.nn.batch_normalization`::

    s = Rsqrt(variance + epsilon) [* gamma];   y = x * s + (beta - mean * s), or + (-mean) * s

A fully connected layer's fused batch norm, which takes four dimensions, stands between two Reshapes.
Behind a batch norm that is in training mode contrib looks past one more Identity. One that waits for the
moving averages (tf-slim's in-place updates) is in no eval graph: it counts as part of the batch norm.

contrib matches these after it has folded the batch norms; here they are matched before anything is touched,
so a batch norm stands where contrib sees its `add_fold`. Which of several overlapping matches wins is
contrib's order: those with a post-activation bypass, those that end in an activation, bare biases and batch
norms, and last a separable convolution's bare depthwise.
"""

from typing import Dict, FrozenSet, Iterator, List, NamedTuple, Optional, Tuple

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex, in_control_flow
from od_qat.rewrite import policy

# How many ops are looked at on the way to random numbers: a dropout has six.
_STEPS_TO_RANDOM = 10


class BatchNorm(NamedTuple):
    """A batch norm. Tensors are [channels] float32, but for `data`.

    Attributes:
      op: a fused batch norm, or the last Add of an unfused one.
      data: what is normalised, a layer's output with the layer's dimensions.
      gamma, beta: None where an unfused one has none.
      moving_mean, moving_variance: the statistics' variables, as they are read.
      epsilon: added to the variance.
      training: whether the batch's own statistics are used.
      channels_first: whether `data` is NCHW.
      unfused: what an unfused one is made of; None for a fused one.
      reshape: behind a fully connected layer's, the Reshape to [batch, channels]; None for others.
    """

    op: object
    data: object
    gamma: Optional[object]
    beta: Optional[object]
    moving_mean: object
    moving_variance: object
    epsilon: float
    training: bool
    channels_first: bool
    unfused: Optional["Unfused"] = None
    reshape: Optional[object] = None

    @property
    def last(self) -> object:
        """The op whose first output is the result."""
        return self.op if self.reshape is None else self.reshape


class Unfused(NamedTuple):
    """The inside of an unfused batch norm.

    Attributes:
      mean, variance: [channels], what it normalises with.
      product: name of the op that scales the data.
      moments: names of the ops that read the data for the batch's statistics; empty out of training.
    """

    mean: object
    variance: object
    product: str
    moments: FrozenSet[str]


class Layer(NamedTuple):
    """An op with weights and what belongs to it.

    Attributes:
      op, weights: the op and its second input, a variable's value.
      batch_to_space: an atrous convolution's last op; None for others.
      batch_norm: None where none follows.
      bias_in_front: [channels], what is added in front of the batch norm; None where nothing is.
    """

    op: object
    weights: object
    batch_to_space: Optional[object]
    batch_norm: Optional[BatchNorm]
    bias_in_front: Optional[object] = None


class LayerMatch(NamedTuple):
    """A layer and the ops whose outputs are quantised with it; each may be None."""

    layer: Layer
    activation: Optional[object]
    bypass: Optional[object]
    post_activation_bypass: Optional[object]
    bias: Optional[object]


class LayerMatcher(object):
    """Finds every layer of a graph, each once.

    Args:
      index: the graph before any edit.
      as_contrib: match as contrib does where its training and eval graphs disagree (MnasFPN: what it has
        trained there it does not find in evaluation).
    """

    def __init__(self, index: GraphIndex, as_contrib: bool = False) -> None:
        self._index = index
        self._as_contrib = as_contrib
        self._layers: Dict[str, Optional[Layer]] = {}
        self._unfused: Dict[str, BatchNorm] = {}  # name of the last op -> the batch norm
        self._unfused_of: Dict[str, List[object]] = {}  # name of the data -> last ops
        self._reshaped: Dict[str, object] = {}  # name of the Reshape behind it -> fused batch norm
        self._reshaped_of: Dict[str, List[object]] = {}  # name of the data -> the Reshapes behind
        # Names of batch norms that a tensor, not the graph, puts into training mode.
        self.switched_norms = _switched_norms(index)
        self._find_unfused()
        self._find_reshaped()
        # Names of all tensors from which data flows into an op with weights.
        self.leading_to_layers = self._find_leading_to_layers()
        self.unmatched: Dict[str, str] = {}

    def _find_leading_to_layers(self) -> FrozenSet[str]:
        inputs = self._index.inputs
        pending = [inputs(op)[0] for op in self._index.operations if op.type in policy.WEIGHTED]
        found = set()
        while pending:
            tensor = pending.pop()
            if tensor.name not in found:
                found.add(tensor.name)
                # (The range of a model's own fake quant is no data.)
                pending.extend(inputs(tensor.op)[: 1 if tensor.op.type in policy.FAKE_QUANT else None])
        return frozenset(found)

    def match_all(self) -> List[LayerMatch]:
        """All matches, in contrib's order. `unmatched` then maps left-over weighted ops to the reason."""
        found: List[LayerMatch] = []
        taken = set()

        def take(match: Optional[LayerMatch]) -> None:
            if match is not None and match.layer.op.name not in taken:
                taken.add(match.layer.op.name)
                found.append(match)

        operations = self._index.operations
        for operation in operations:
            if operation.type in policy.ADD:
                take(self._post_activation_bypass(operation))
        for operation in operations:
            if operation.type in policy.ACTIVATION and not self._feeds_only_a_batch_norm(operation):
                take(self._activation(operation))
        for operation in operations:
            if operation.type in policy.BIAS_ADD and not self._is_norm(operation):
                take(self._bare(operation))
        for operation in operations:
            if self._is_norm(operation):
                take(self._bare(operation))
        for operation in operations:
            take(self._first_of_separable(operation))
        for operation in operations:
            if operation.type in policy.WEIGHTED and operation.name not in taken:
                self.unmatched[operation.name] = self._reason(operation)
            elif operation.type in policy.WEIGHTED_UNSUPPORTED:
                self.unmatched[operation.name] = "{} is not a supported layer".format(operation.type)
        self.unmatched.update(_layers_in_functions(self._index))
        return found

    def match_bare(self) -> List[LayerMatch]:
        """Layers that nothing of contrib's patterns follows, to be called after `match_all`.

        NASNet's factorised reductions are such: two convolutions, their concat, and a batch norm behind it.
        """
        found = []
        for name in list(self.unmatched):
            layer = self.layer(self._index.graph.get_operation_by_name(name))
            if layer is not None and layer.batch_norm is None:
                end = layer.batch_to_space or layer.op
                found.append(LayerMatch(layer, end, None, None, None))
                del self.unmatched[name]
        return found

    def before_noise(self, tensor):
        """What a dropout or a drop path is applied to; any other tensor as it is.

        An eval graph has no noise, and what training quantises must be found there. contrib's graphs disagree
        about NASNet's drop paths.
        """
        data = None if self._as_contrib else self._without_mask(tensor.op)
        if data is None:
            return tensor
        # What a mask leaves is scaled up by a scalar, first.
        if tensor.op.type not in policy.ADDS_NOISE and data.op.type in ("Mul", "RealDiv"):
            first, second = self._index.inputs(data.op)
            for kept, factor in ((first, second), (second, first)):
                if factor.get_shape().ndims == 0:
                    return kept
        return data

    def is_noise(self, operation) -> bool:
        """Whether an op is part of a dropout: its mask's product, or the scaling before that."""
        if self._as_contrib or operation.type not in policy.NOISY:
            return False
        if self._without_mask(operation) is not None:
            return True
        if operation.type in policy.ADDS_NOISE:
            return False
        consumers = self._index.consumer_ops(operation.outputs[0])
        return (
            len(consumers) == 1
            and consumers[0].type in ("Mul", "Select", "SelectV2")
            and self._without_mask(consumers[0]) is not None
        )

    def _without_mask(self, operation):
        """The data of a product with a random mask, a selection by one, or a sum with noise; else None."""
        if operation.type in policy.ADDS_NOISE or operation.type == "Mul":
            is_noise = self._is_random if operation.type == "Mul" else self._is_nothing_but_random
            for data, noise in self._both_ways(operation)[: 1 if operation.type == "Sub" else None]:
                if is_noise(noise):
                    return data
        elif operation.type in ("Select", "SelectV2"):
            condition, data, _ = self._index.inputs(operation)
            if self._is_random(condition):
                return data
        return None

    def _is_random(self, tensor) -> bool:
        """Whether a tensor is made of random numbers, by a few ops."""
        return any(kind in policy.RANDOM for kind in self._made_of(tensor))

    def _is_nothing_but_random(self, tensor) -> bool:
        """Whether random numbers, scaled and shifted by constants, are all that a tensor is made of."""
        kinds = set(self._made_of(tensor))
        return bool(kinds & policy.RANDOM) and kinds <= policy.RANDOM | {"Const"}

    def _made_of(self, tensor) -> Iterator[str]:
        """Types of the ops from which others make a mask or noise of a tensor; '' last when they are many."""
        pending = [tensor.op]
        for _ in range(_STEPS_TO_RANDOM):
            if not pending:
                return
            operation = pending.pop()
            if operation.type in policy.OF_MASKS:
                pending.extend(source.op for source in self._index.inputs(operation))
            else:
                yield operation.type
        if pending:
            yield ""

    def ends_layer(self, operation) -> bool:
        """Whether an op is a layer's bias or batch norm, or a layer that has neither."""
        if operation.type not in policy.WEIGHTED and operation.type != "BatchToSpaceND":
            return self._bias_or_norm(operation) is not None
        layer = self._layer_output(operation.outputs[0])
        if (
            layer is None
            or layer.batch_norm is not None
            or operation is not (layer.batch_to_space or layer.op)
        ):
            return False
        consumers = self._index.consumer_ops(operation.outputs[0])
        return len(consumers) != 1 or self._bias_or_norm(consumers[0]) is None

    def end_of(self, operation):
        """The op whose output is a batch norm's: the Identity that updates its averages, or itself."""
        consumers = self._index.consumer_ops(operation.outputs[0]) if operation.outputs else ()
        return consumers[0] if len(consumers) == 1 and self._updates_averages(consumers[0]) else operation

    def _updates_averages(self, operation) -> bool:
        """Whether an op is the Identity behind a batch norm that has to wait for its averages' updates."""
        if self._as_contrib or operation.type != "Identity" or not operation.control_inputs:
            return False
        source = self._index.inputs(operation)[0]
        return self._is_norm(source.op) and source.name == source.op.outputs[0].name

    def norm_alone(self, operation) -> Optional[BatchNorm]:
        """A batch norm behind no layer, such as a pre-activation (ResNet V2); None for any other op."""
        if operation.type not in policy.BATCH_NORM or self.ends_layer(operation):
            return None
        behind = self._index.consumer_ops(self.end_of(operation).outputs[0])
        if any(self.is_behind_norm(op) and self.ends_layer(op) for op in behind):
            return None
        if operation.get_attr("data_format") != b"NHWC":
            return None  # (it would become a convolution, which the converter knows in this layout only)
        return self._batch_norm(operation)

    # The pieces, from the weights outwards.

    def layer(self, operation) -> Optional[Layer]:
        """The layer of an op with weights; None when its second input is not a variable's value."""
        if operation.type not in policy.WEIGHTED:
            return None
        if operation.name not in self._layers:
            self._layers[operation.name] = self._build_layer(operation)
        return self._layers[operation.name]

    def _build_layer(self, operation) -> Optional[Layer]:
        weights = self._index.inputs(operation)[1]
        if not self._is_variable_value(weights) or in_control_flow(operation):
            return None
        if operation.outputs[0].dtype != tf.float32:
            return None
        output, batch_to_space = operation.outputs[0], None
        consumers = self._index.consumer_ops(output)
        if len(consumers) == 1 and consumers[0].type == "BatchToSpaceND":
            batch_to_space = consumers[0]
            output = batch_to_space.outputs[0]
        norms = self._norms_behind(output)
        if not norms:
            # An Identity in place of the layer's own normaliser; weight-shared predictors add one per level.
            behind = self._index.consumer_ops(output)
            if len(behind) == 1 and behind[0].type == "Identity":
                output = behind[0].outputs[0]
                norms = self._norms_behind(output)
        bias = None
        if not norms and not self._as_contrib:
            bias, output = self._bias_in_front(operation, output)
            norms = self._norms_behind(output) if bias is not None else []
        norm = self._batch_norm(norms[0]) if len(norms) == 1 else None
        several = norm is not None and (norm.unfused is not None or norm.reshape is not None)
        if several and not _has_channels_last(operation):
            norm = None
        if norm is not None and not self._as_contrib and self._is_read_beside(output, norm):
            norm = None
        return Layer(operation, weights, batch_to_space, norm, bias if norm is not None else None)

    def _bias_in_front(self, operation, output) -> Tuple[Optional[object], object]:
        """What is added to each channel of a layer's output, and the sum; None and the output without."""
        behind = self._index.consumer_ops(output)
        if len(behind) == 1 and behind[0].type in policy.BIAS_ADD:
            for data, bias in self._both_ways(behind[0]):
                by_channel = behind[0].type == "BiasAdd" or _has_channels_last(operation)
                is_bias = bias.get_shape().ndims == 1 and self._is_bias(behind[0], bias)
                if data.name == output.name and by_channel and is_bias:
                    return bias, behind[0].outputs[0]
        return None, output

    def _is_read_beside(self, output, norm: BatchNorm) -> bool:
        """Whether a batch norm is one of several ways from a layer to others, as in pre-activation blocks.

        Folded into the layer it would change what the others read, so it is no part of the layer then.
        """
        of_norm = {norm.op.name}
        if norm.reshape is not None:
            of_norm = {self._index.inputs(norm.op)[0].op.name}
        elif norm.unfused is not None:
            of_norm = norm.unfused.moments | {norm.unfused.product}
        return any(
            reader.name not in of_norm
            and reader.type not in policy.OF_SHAPES
            and any(tensor.name in self.leading_to_layers for tensor in reader.outputs)
            for reader in self._index.consumer_ops(output)
        )

    def _norms_behind(self, tensor) -> List[object]:
        fused = [op for op, at in self._index.consumers(tensor) if at == 0 and op.type in policy.BATCH_NORM]
        return fused + self._unfused_of.get(tensor.name, []) + self._reshaped_of.get(tensor.name, [])

    def _is_norm(self, operation) -> bool:
        """Whether an op is a batch norm, or the last one of an unfused or reshaped batch norm."""
        return operation.type in policy.BATCH_NORM or self._is_last_of_norm(operation)

    def _is_last_of_norm(self, operation) -> bool:
        return operation.name in self._unfused or self.is_behind_norm(operation)

    def is_behind_norm(self, operation) -> bool:
        """Whether an op is the Reshape behind a fully connected layer's fused batch norm."""
        return operation.name in self._reshaped

    def _is_variable_value(self, tensor) -> bool:
        """Variable -> Identity, VarHandleOp -> ReadVariableOp, or partitions of one put together."""
        operation = tensor.op
        if operation.type == "ReadVariableOp":
            return True
        if operation.type == "Identity":
            source = self._index.inputs(operation)[0].op
            return source.type in policy.VARIABLE or self._is_variable_value(source.outputs[0])
        if operation.type in policy.CONCAT:
            return all(self._is_variable_value(part) for part in self._index.inputs(operation)[:-1])
        return False

    def _batch_norm(self, operation) -> Optional[BatchNorm]:
        if operation.name in self._unfused:
            return self._unfused[operation.name]
        reshape = None
        if operation.name in self._reshaped:
            reshape, operation = operation, self._reshaped[operation.name]
        inputs = self._index.inputs(operation)
        training = bool(operation.get_attr("is_training"))
        mean, variance = inputs[3], inputs[4]
        if training:
            # TF 1 gives a training batch norm empty constants here: the statistics' variables are where
            # the batch's own are averaged into.
            mean = self._averaged_into(operation.outputs[1], mean)
            variance = self._averaged_into(operation.outputs[2], variance)
        if variance is None or mean is None:
            return None
        return BatchNorm(
            operation,
            inputs[0] if reshape is None else self._index.inputs(inputs[0].op)[0],
            inputs[1],
            inputs[2],
            mean,
            variance,
            float(operation.get_attr("epsilon")),
            training,
            channels_first=reshape is None and operation.get_attr("data_format") == b"NCHW",
            reshape=reshape,
        )

    def _find_reshaped(self) -> None:
        """Those of fully connected layers: [batch, channels] -> Reshape -> fused batch norm -> Reshape."""
        for operation in self._index.operations:
            if operation.type not in policy.BATCH_NORM:
                continue
            front = self._index.inputs(operation)[0].op
            behind = self._index.consumer_ops(self.end_of(operation).outputs[0])
            if front.type != "Reshape" or [op.type for op in behind] != ["Reshape"]:
                continue
            data = self._index.inputs(front)[0]
            if _keeps_channels(operation, data, front.outputs[0], behind[0].outputs[0]):
                self._reshaped[behind[0].name] = operation
                self._reshaped_of.setdefault(data.name, []).append(behind[0])

    def _find_unfused(self) -> None:
        for operation in self._index.operations:
            # (contrib finds them by their names.)
            may_be = not self._as_contrib or "BatchNorm/batchnorm" in operation.name
            if may_be and operation.type in policy.ADD:
                norm = self._unfused_ending_in(operation)
                if norm is not None:
                    self._unfused[operation.name] = norm
                    self._unfused_of.setdefault(norm.data.name, []).append(operation)

    def _unfused_ending_in(self, operation) -> Optional[BatchNorm]:
        for product, shift in self._both_ways(operation):
            if product.op.type != "Mul":
                continue
            for data, scale in self._both_ways(product.op):
                scaling = self._inverse_deviation(scale)
                shifting = scaling and self._shift(shift, scale)
                if shifting:
                    return self._unfused_of_parts(operation, product.op, data, scaling, shifting, scale)
        return None

    def _both_ways(self, operation):
        first, second = self._index.inputs(operation)
        return (first, second), (second, first)

    def _inverse_deviation(self, tensor) -> Optional[Tuple[object, float, Optional[object]]]:
        """variance, epsilon and gamma (or None) of Rsqrt(variance + epsilon) [* gamma]; None for others."""
        if tensor.get_shape().ndims != 1:
            return None
        if tensor.op.type == "Mul":
            for factor, gamma in self._both_ways(tensor.op):
                if factor.op.type == "Rsqrt" and gamma.get_shape().ndims == 1:
                    found = self._inverse_deviation(factor)
                    return found and found[:2] + (gamma,)
        elif tensor.op.type == "Rsqrt":
            source = self._index.inputs(tensor.op)[0].op
            if source.type in policy.ADD:
                for variance, epsilon in self._both_ways(source):
                    if epsilon.op.type == "Const" and epsilon.get_shape().ndims == 0:
                        return variance, float(tf.make_ndarray(epsilon.op.get_attr("value"))), None
        return None

    def _shift(self, tensor, scale) -> Optional[Tuple[object, Optional[object]]]:
        """mean and beta (or None) of beta - mean * scale or -mean * scale; None for any other tensor."""
        if tensor.op.type == "Sub":
            beta, tensor = self._index.inputs(tensor.op)
            means = self._times(tensor, scale)
            return (means[0], beta) if means and beta.get_shape().ndims == 1 else None
        for negative in self._times(tensor, scale):
            if negative.op.type == "Neg":
                return self._index.inputs(negative.op)[0], None
        return None

    def _times(self, tensor, scale) -> List[object]:
        """What is multiplied by `scale` to give a tensor: nothing or one."""
        if tensor.op.type != "Mul":
            return []
        return [other for other, factor in self._both_ways(tensor.op) if factor.name == scale.name][:1]

    def _unfused_of_parts(self, operation, product, data, scaling, shifting, scale) -> Optional[BatchNorm]:
        (variance, epsilon, gamma), (mean, beta) = scaling, shifting
        moving_mean, moving_variance, moments = mean, variance, frozenset()
        training = not (self._is_variable_value(mean) and self._is_variable_value(variance))
        if training:
            if mean.op.type in policy.BRANCH_ENDS or variance.op.type in policy.BRANCH_ENDS:
                self.switched_norms.append(operation.name)
                return None
            moments = self._moments(data, mean) | self._moments(data, variance)
            # (Behind these mean and variance are on their way to the result, not to their averages.)
            inside = frozenset(op.name for op in self._index.consumer_ops(scale)) | {scale.op.name}
            moving_mean = self._averaged_into(self._before_identities(mean), mean, inside)
            moving_variance = self._averaged_into(self._before_identities(variance), variance, inside)
            if not moments or moving_mean is None or moving_variance is None:
                return None
        return BatchNorm(
            operation,
            data,
            gamma,
            beta,
            moving_mean,
            moving_variance,
            epsilon,
            training,
            channels_first=False,
            unfused=Unfused(mean, variance, product.name, moments),
        )

    def _moments(self, data, statistic) -> FrozenSet[str]:
        """Names of the ops that read `data` for a batch statistic, as tf.nn.moments does."""
        found, pending = set(), [statistic]
        while pending:
            operation = pending.pop().op
            if operation.type in policy.OF_MOMENTS:
                for tensor in self._index.inputs(operation):
                    if tensor.name == data.name:
                        found.add(operation.name)
                    else:
                        pending.append(tensor)
        return frozenset(found)

    def _before_identities(self, tensor) -> object:
        """What a batch norm's statistic is before it waits for its average (updates_collections=None)."""
        while tensor.op.type == "Identity":
            tensor = self._index.inputs(tensor.op)[0]
        return tensor

    def _averaged_into(
        self, batch_statistic, fallback, inside: FrozenSet[str] = frozenset()
    ) -> Optional[object]:
        """The variable that a batch statistic is averaged into; not looked for behind the ops `inside`."""
        if self._is_variable_value(fallback):
            return fallback
        pending, seen = [batch_statistic], set(inside)
        while pending:
            tensor = pending.pop()
            for operation in self._index.consumer_ops(tensor):
                if operation.name in seen:
                    continue
                seen.add(operation.name)
                if operation.type == "Sub":
                    for candidate in self._index.inputs(operation):
                        if candidate.name != tensor.name and self._is_variable_value(candidate):
                            return candidate
                elif operation.type in policy.ADD:
                    # decay * average + (1 - decay) * statistic
                    for other in self._index.inputs(operation):
                        if other.name != tensor.name and other.op.type == "Mul":
                            for candidate in self._index.inputs(other.op):
                                if candidate.get_shape().ndims == 1 and self._is_variable_value(candidate):
                                    return candidate
                elif operation.type in ("Identity", "Mul", "Squeeze", "Reshape"):
                    pending.extend(operation.outputs)
        return None

    def _layer_output(self, tensor) -> Optional[Layer]:
        """The layer that makes a tensor, an atrous one's BatchToSpaceND included."""
        operation = tensor.op
        if operation.type == "BatchToSpaceND":
            operation = self._index.inputs(operation)[0].op
        return self.layer(operation)

    def _bias_or_norm(self, operation) -> Optional[Layer]:
        """BiasAdd|Add of a layer, or its batch norm."""
        if self._is_norm(operation):
            tensor = self._index.inputs(operation)[0]
            if self._is_last_of_norm(operation):
                norm = self._batch_norm(operation)
                if norm is None:
                    return None
                tensor = norm.data
            if tensor.op.type == "Identity":
                tensor = self._index.inputs(tensor.op)[0]
            layer = self._layer_output(tensor)
            if layer is None and tensor.op.type in policy.BIAS_ADD:
                layers = map(self._layer_output, self._index.inputs(tensor.op))
                layer = next((one for one in layers if one is not None), None)
            if (
                layer is not None
                and layer.batch_norm is not None
                and layer.batch_norm.last.name == operation.name
            ):
                return layer
        elif operation.type in policy.BIAS_ADD:
            for tensor, other in self._both_ways(operation):
                layer = self._layer_output(tensor)
                if layer is not None and layer.batch_norm is None and self._is_bias(operation, other):
                    return layer
            if self._as_contrib and operation.type in policy.ADD:
                return self._scaled_and_added_to(operation)
        return None

    def _scaled_and_added_to(self, operation) -> Optional[Layer]:
        """The layer of `layer * x + y + z`, which contrib takes for a batch norm that it has folded."""
        for correction, _ in self._both_ways(operation):
            if correction.op.type not in policy.ADD:
                continue
            for product, _ in self._both_ways(correction.op):
                if product.op.type != "Mul":
                    continue
                for tensor in reversed(self._index.inputs(product.op)):
                    layer = self._layer_output(tensor)
                    if layer is not None and layer.batch_norm is None:
                        return layer
        return None

    def _is_bias(self, operation, tensor) -> bool:
        """Whether what is added to a layer is a parameter, not another layer's output. (contrib: always.)"""
        if operation.type == "BiasAdd" or self._as_contrib:
            return True
        shape = tensor.get_shape()
        if shape.ndims is not None and sum(size != 1 for size in shape.as_list()) > 1:
            return False  # (Of several dimensions, a learned position: no layer's bias in TFLite.)
        while tensor.op.type in ("ExpandDims", "Identity", "Reshape") and not self._is_variable_value(tensor):
            tensor = self._index.inputs(tensor.op)[0]
        return tensor.op.type == "Const" or self._is_variable_value(tensor)

    def _biased(self, operation) -> Optional[Tuple[Layer, object]]:
        """A layer and the op that ends it: bias, batch norm, or the Identity of a batch norm."""
        layer = self._bias_or_norm(operation)
        if layer is not None:
            return layer, operation
        if operation.type == "Identity":
            source = self._index.inputs(operation)[0].op
            if self._is_norm(source):
                layer = self._bias_or_norm(source)
                # (contrib's pattern of this wants the corrections that it adds in training.)
                if layer is not None and (layer.batch_norm.training or not self._as_contrib):
                    return layer, self.end_of(source)
        return None

    def _bypass(self, operation) -> Optional[Tuple[Layer, object]]:
        if operation.type in policy.ADD:
            for tensor in self._index.inputs(operation):
                found = self._biased(self.before_noise(tensor).op)
                if found is not None:
                    return found
        return None

    def _activation(self, operation) -> Optional[LayerMatch]:
        if operation.type not in policy.ACTIVATION or self._updates_averages(operation):
            return None
        tensor = self._index.inputs(operation)[0]
        source, end = self.before_noise(tensor).op, operation
        if operation.type == "Identity" and not self._as_contrib:
            # It may be there to name a graph's output, which a fake quant behind it would not reach.
            if len(self._index.consumers(tensor)) == 1 and tensor.name == source.outputs[0].name:
                end = source
            elif not self._index.consumers(operation.outputs[0]):
                return None
        found = self._biased(source)
        if found is not None:
            return LayerMatch(found[0], end, None, None, found[1])
        found = self._bypass(source)
        if found is not None:
            return LayerMatch(found[0], end, source, None, found[1])
        layer = self.layer(source)
        if layer is not None and layer.batch_norm is None:
            return LayerMatch(layer, end, None, None, None)
        return None

    def _post_activation_bypass(self, operation) -> Optional[LayerMatch]:
        if self.is_noise(operation):
            return None
        # contrib's pattern prefers the second input.
        for tensor in reversed(self._index.inputs(operation)):
            match = self._activation(self.before_noise(tensor).op)
            if match is not None:
                return match._replace(post_activation_bypass=operation)
        return None

    def _bare(self, operation) -> Optional[LayerMatch]:
        layer = self._bias_or_norm(operation)
        return layer and LayerMatch(layer, operation, None, None, None)

    def _feeds_only_a_batch_norm(self, operation) -> bool:
        """conv -> Identity -> batch norm: nothing to quantise there."""
        if operation.type != "Identity" or len(operation.outputs) != 1:
            return False
        consumers = self._index.consumer_ops(operation.outputs[0])
        if self._reshaped_of.get(operation.outputs[0].name):
            return [op.type for op in consumers if op.type not in policy.OF_SHAPES] == ["Reshape"]
        for last in self._unfused_of.get(operation.outputs[0].name, []):
            inside = self._unfused[last.name].unfused
            return all(op.name == inside.product or op.name in inside.moments for op in consumers)
        return len(consumers) == 1 and consumers[0].type in policy.BATCH_NORM

    def _first_of_separable(self, operation) -> Optional[LayerMatch]:
        """The first of two layers with nothing between them, matched at the second."""
        if operation.type in policy.WEIGHTED:
            for tensor in self._index.inputs(operation):
                layer = self._layer_output(tensor)
                if layer is not None:
                    return LayerMatch(layer, layer.op, None, None, None)
        return None

    def _reason(self, operation) -> str:
        if in_control_flow(operation):
            return "it is inside a loop or a branch"
        if operation.outputs[0].dtype != tf.float32:
            return "it computes in {}, fake quants in float32 only".format(operation.outputs[0].dtype.name)
        if self.layer(operation) is None:
            return "its weights are not a variable"
        return "no bias, batch norm or activation follows it"


def _switched_norms(index: GraphIndex) -> List[str]:
    """Names of fused batch norms in a branch of a tf.cond, or of that, whose data comes from outside it."""
    found = []
    for operation in index.operations:
        if operation.type in policy.BATCH_NORM and in_control_flow(operation):
            data = index.inputs(operation)[0].op
            if data.type == "Switch" and not in_control_flow(index.inputs(data)[0].op):
                found.append(operation.name)
        elif operation.type in policy.BRANCHES:
            types = set(_op_types_within(index, operation))
            if types & policy.BATCH_NORM and not types & policy.WEIGHTED:
                found.append(operation.name)
    return found


def _layers_in_functions(index: GraphIndex) -> Dict[str, str]:
    """Calls of functions that hold layers -> the reason why these stay float."""
    found = {}
    for operation in index.operations:
        if operation.type not in policy.CALLS:
            continue
        layers = sum(kind in policy.WEIGHTED for kind in _op_types_within(index, operation))
        if layers:
            found[operation.name] = (
                "{} of its ops with weights are in a function; "
                "tf.compat.v1.disable_control_flow_v2() before the model is built names them".format(layers)
            )
    return found


def _op_types_within(index: GraphIndex, operation) -> List[str]:
    """Types of all ops in the functions that an op calls, and that these call; of each function once."""
    bodies = index.function_nodes()
    pending, seen, types = _functions(operation.node_def), set(), []
    while pending:
        name = pending.pop()
        if name not in seen:
            seen.add(name)
            for node in bodies.get(name, ()):
                types.append(node.op)
                pending.extend(_functions(node))
    return types


def _functions(node) -> List[str]:
    """Names of the functions that a node calls."""
    found = []
    for value in node.attr.values():
        found += [one.name for one in [value.func] + list(value.list.func) if one.name]
    return found


def _has_channels_last(operation) -> bool:
    """Whether a vector multiplied with a layer's output has a value for each output channel.

    And so for each value of the weights' last dimension, but for depthwise ones.
    """
    if operation.type == "MatMul":
        return not operation.get_attr("transpose_b")
    return operation.get_attr("data_format") == b"NHWC"


def _keeps_channels(norm, data, reshaped, result) -> bool:
    """Whether a batch norm's channels, in four dimensions, are those of the two that come in and go out."""
    shapes = [tensor.get_shape() for tensor in (data, reshaped, result)]
    if [shape.ndims for shape in shapes] != [2, 4, 2]:
        return False
    two, four, back = [shape.as_list() for shape in shapes]
    if norm.get_attr("data_format") == b"NCHW":
        four = [four[0]] + four[2:] + [four[1]] if four[2:] == [1, 1] else [None]
    return two[1] is not None and two[1] == four[-1] == back[1]
