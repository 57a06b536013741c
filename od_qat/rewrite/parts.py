"""The parts of a network that the rewriter recognises: batch norms, layers, and matches of layers."""

from typing import FrozenSet, NamedTuple, Optional


class UnfusedParts(NamedTuple):
    """The inside of an unfused batch norm.

    Attributes:
      mean, variance: [channels], the statistics that it normalises with.
      product: name of the op that scales the data.
      moments: names of the ops that read the data for the batch's statistics; empty if not in training.
    """

    mean: object
    variance: object
    product: str
    moments: FrozenSet[str]


class BatchNorm(NamedTuple):
    """A batch norm. All tensors except `data` are [channels] float32.

    Attributes:
      op: a fused batch norm, or the last Add of an unfused one.
      data: the tensor that is normalised, with the dimensions of the layer's output.
      gamma, beta: scale and offset; None if an unfused batch norm has none.
      moving_mean, moving_variance: the values of the variables with the moving statistics.
      epsilon: the constant that is added to the variance.
      training: whether the batch's own statistics are used.
      channels_first: whether `data` is NCHW.
      unfused: the parts of an unfused batch norm; None for a fused one.
      reshape: the Reshape to [batch, channels] behind the batch norm of a fully connected layer; else None.
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
    unfused: Optional[UnfusedParts] = None
    reshape: Optional[object] = None

    @property
    def last(self) -> object:
        """The op whose first output is the result of the batch norm."""
        return self.op if self.reshape is None else self.reshape


class Layer(NamedTuple):
    """An op with weights, and its batch norm with the bias in front of it.

    Attributes:
      op, weights: the op and its second input, the value of a variable.
      batch_to_space: the last op of an atrous convolution; else None.
      batch_norm: the batch norm behind the op; None if there is none.
      bias_in_front: [channels], the bias that is added in front of the batch norm; None if there is none.
      kernel: what tells its weights from others: the name of their tensor, or of their resource variable,
        which may be read at several places.
    """

    op: object
    weights: object
    batch_to_space: Optional[object]
    batch_norm: Optional[BatchNorm]
    bias_in_front: Optional[object] = None
    kernel: str = ""

    @property
    def last(self) -> object:
        """The op with weights, or the BatchToSpaceND behind it in an atrous convolution."""
        return self.batch_to_space or self.op


class LayerMatch(NamedTuple):
    """A layer and the ops whose outputs are quantized with it; all except the layer may be None.

    Attributes:
      layer: the layer.
      activation: the activation behind the layer, or the layer's last op if there is none.
      bypass: the Add in front of the activation.
      post_activation_bypass: the Add behind the activation.
      bias: the op that ends the layer in front of a bypass or an activation: bias, batch norm, or the
        Identity of a batch norm.
    """

    layer: Layer
    activation: Optional[object]
    bypass: Optional[object] = None
    post_activation_bypass: Optional[object] = None
    bias: Optional[object] = None
