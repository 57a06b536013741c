"""Finds layers: an op with weights, its batch norm, and the bias in front of that or instead of it.

These are the patterns (square brackets: optional)::

    weights -> [conv|depthwise|matmul] -> [BatchToSpaceND] [-> Identity] -> batch norm     (batch norm layer)
                                                           -> BiasAdd|Add                  (biased layer)
                                                           -> BiasAdd|Add -> batch norm    (not contrib's)

contrib matches layers after it has folded the batch norms. Here they are matched before any edit, so a batch
norm is where contrib finds its `add_fold`.
"""

from typing import Dict, Optional, Tuple

from od_qat.compat import tf
from od_qat.graph.index import GraphIndex, in_control_flow
from od_qat.rewrite import policy
from od_qat.rewrite.batch_norms import BatchNorms
from od_qat.rewrite.parts import BatchNorm, Layer
from od_qat.rewrite.tensors import both_ways, is_variable_value, leading_to_layers, variable_of


class Layers(object):
    """All layers of a graph.

    Args:
      index: the graph before any edit.
      as_contrib: whether to find what contrib finds, even if its training and eval graphs disagree (in
        MnasFPN it does not find in evaluation what it trained).

    Attributes:
      norms: the graph's batch norms.
      leading_to_layers: names of all tensors from which data flows into an op with weights.
    """

    def __init__(self, index: GraphIndex, as_contrib: bool) -> None:
        self._index = index
        self._as_contrib = as_contrib
        self.norms = BatchNorms(index, as_contrib)
        self.leading_to_layers = leading_to_layers(index)
        self._layers: Dict[str, Optional[Layer]] = {}  # by name of the op with weights

    def of(self, operation) -> Optional[Layer]:
        """Returns the layer of an op with weights; None for other ops, and if the op is not a layer.

        It is not one if its second input is not a variable's value, if it is in a loop or a branch, or if it
        does not compute in float32. For contrib a transposed convolution is none.
        """
        if operation.type not in policy.WEIGHTED:
            return None
        if operation.type == policy.TRANSPOSED and self._as_contrib:
            return None
        if operation.name not in self._layers:
            self._layers[operation.name] = self._build(operation)
        return self._layers[operation.name]

    def making(self, tensor) -> Optional[Layer]:
        """Returns the layer whose op with weights, or BatchToSpaceND, makes a tensor; else None."""
        operation = tensor.op
        if operation.type == "BatchToSpaceND":
            operation = self._index.inputs(operation)[0].op
        return self.of(operation)

    def with_bias_or_norm(self, operation) -> Optional[Layer]:
        """Returns the layer whose bias (BiasAdd or Add) or batch norm this op is; else None."""
        if self.norms.is_last(operation):
            return self._with_norm(operation)
        if operation.type not in policy.BIAS_ADD:
            return None
        for tensor, other in both_ways(self._index, operation):
            layer = self.making(tensor)
            if layer is not None and layer.batch_norm is None and self._is_bias(operation, other):
                return layer
        if self._as_contrib and operation.type in policy.ADD:
            return self._scaled_and_added_to(operation)
        return None

    def ends_layer(self, operation) -> bool:
        """Whether an op is a layer's bias or batch norm, or the last op of a layer that has neither."""
        kind = operation.type
        if kind not in policy.ENDS_LAYER:
            return False
        if kind not in policy.WEIGHTED and kind != "BatchToSpaceND":
            return self.with_bias_or_norm(operation) is not None
        layer = self.making(operation.outputs[0])
        if layer is None or layer.batch_norm is not None or operation is not layer.last:
            return False
        consumers = self._index.consumer_ops(operation.outputs[0])
        return len(consumers) != 1 or self.with_bias_or_norm(consumers[0]) is None

    def norm_alone(self, operation) -> Optional[BatchNorm]:
        """Returns a batch norm behind no layer, as in a pre-activation (ResNet V2); None for other ops."""
        if operation.type not in policy.BATCH_NORM or self.ends_layer(operation):
            return None
        behind = self._index.consumer_ops(self.norms.end_of(operation).outputs[0])
        if any(self.norms.is_reshape_behind(op) and self.ends_layer(op) for op in behind):
            return None
        if operation.get_attr("data_format") != b"NHWC":
            return None  # it would become a convolution, and the converter knows these in NHWC only
        return self.norms.ending_in(operation)

    def _build(self, operation) -> Optional[Layer]:
        weights = self._index.inputs(operation)[1]
        if not is_variable_value(self._index, weights) or in_control_flow(operation):
            return None
        if operation.outputs[0].dtype != tf.float32:
            return None
        consumers = self._index.consumer_ops(operation.outputs[0])
        atrous = len(consumers) == 1 and consumers[0].type == "BatchToSpaceND"
        batch_to_space = consumers[0] if atrous else None
        norm, bias = self._norm_and_bias_behind(operation, (batch_to_space or operation).outputs[0])
        return Layer(operation, weights, batch_to_space, norm, bias, self.kernel_of(operation))

    def kernel_of(self, operation) -> str:
        """Returns what tells the weights of an op from others; see Layer. contrib tells tensors apart."""
        weights = self._index.inputs(operation)[1]
        variable = None if self._as_contrib else variable_of(self._index, weights)
        return weights.name if variable is None else variable.name

    def _norm_and_bias_behind(self, operation, output) -> Tuple[Optional[BatchNorm], Optional[object]]:
        """Returns the batch norm behind a layer's output, and the bias in front of it; either may be None."""
        bias = None
        norms = self.norms.behind(output)
        if not norms:
            # Weight-shared predictors give the layer an Identity as its normaliser, and add a batch norm for
            # each level behind it.
            behind = self._index.consumer_ops(output)
            if len(behind) == 1 and behind[0].type == "Identity":
                output = behind[0].outputs[0]
                norms = self.norms.behind(output)
        if not norms and not self._as_contrib:
            bias, output = self._bias_in_front(operation, output)
            norms = self.norms.behind(output) if bias is not None else []
        norm = self.norms.ending_in(norms[0]) if len(norms) == 1 else None
        if norm is None:
            return None, None
        several = norm.unfused is not None or norm.reshape is not None
        if several and not _has_channels_last(operation):
            return None, None
        if not self._as_contrib and self._is_read_beside(output, norm):
            return None, None
        return norm, bias

    def _bias_in_front(self, operation, output) -> Tuple[Optional[object], object]:
        """Returns the bias behind a layer's output, and the sum; None and the output if there is no bias."""
        behind = self._index.consumer_ops(output)
        if len(behind) == 1 and behind[0].type in policy.BIAS_ADD:
            for data, bias in both_ways(self._index, behind[0]):
                by_channel = behind[0].type == "BiasAdd" or _has_channels_last(operation)
                is_bias = bias.get_shape().ndims == 1 and self._is_bias(behind[0], bias)
                if data.name == output.name and by_channel and is_bias:
                    return bias, behind[0].outputs[0]
        return None, output

    def _is_read_beside(self, output, norm: BatchNorm) -> bool:
        """Whether other ops that lead to layers read the batch norm's input too, as in pre-activation blocks.

        Folding the batch norm would change what these ops read, so it is then no part of the layer.
        """
        of_norm = self.norms.reading_data(norm)
        return any(
            reader.name not in of_norm
            and reader.type not in policy.OF_SHAPES
            and any(tensor.name in self.leading_to_layers for tensor in reader.outputs)
            for reader in self._index.consumer_ops(output)
        )

    def _with_norm(self, operation) -> Optional[Layer]:
        """Returns the layer whose batch norm's last op this is; else None."""
        tensor = self._index.inputs(operation)[0]
        if self.norms.is_last_of_several(operation):
            norm = self.norms.ending_in(operation)
            if norm is None:
                return None
            tensor = norm.data
        if tensor.op.type == "Identity":
            tensor = self._index.inputs(tensor.op)[0]
        layer = self.making(tensor)
        if layer is None and tensor.op.type in policy.BIAS_ADD:
            layers = map(self.making, self._index.inputs(tensor.op))
            layer = next((one for one in layers if one is not None), None)
        if layer is None or layer.batch_norm is None or layer.batch_norm.last.name != operation.name:
            return None
        return layer

    def _is_bias(self, operation, tensor) -> bool:
        """Whether a tensor that is added to a layer is a parameter, not another layer's output.

        contrib takes each such tensor for a bias.
        """
        if operation.type == "BiasAdd" or self._as_contrib:
            return True
        shape = tensor.get_shape()
        if shape.ndims is not None and sum(size != 1 for size in shape.as_list()) > 1:
            return False  # several dimensions, such as a learned position; a bias in TFLite has one
        while not is_variable_value(self._index, tensor):
            if tensor.op.type not in ("ExpandDims", "Identity", "Reshape"):
                return tensor.op.type == "Const"
            tensor = self._index.inputs(tensor.op)[0]
        return True

    def _scaled_and_added_to(self, operation) -> Optional[Layer]:
        """Returns the layer of `layer * x + y + z`, which contrib mistakes for a batch norm it has folded."""
        for correction, _ in both_ways(self._index, operation):
            if correction.op.type not in policy.ADD:
                continue
            for product, _ in both_ways(self._index, correction.op):
                if product.op.type != "Mul":
                    continue
                for tensor in reversed(self._index.inputs(product.op)):
                    layer = self.making(tensor)
                    if layer is not None and layer.batch_norm is None:
                        return layer
        return None


def _has_channels_last(operation) -> bool:
    """Whether output channels are the last dimension of a layer's output and of its weights.

    (Depthwise weights have them in their last two dimensions.)
    """
    if operation.type == "MatMul":
        return not operation.get_attr("transpose_b")
    return operation.get_attr("data_format") == b"NHWC"
