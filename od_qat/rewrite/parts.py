"""The parts of a network that are recognised, as what finds them hands them on to what plans and edits."""

from typing import FrozenSet, NamedTuple, Optional


class UnfusedParts(NamedTuple):
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
    unfused: Optional[UnfusedParts] = None
    reshape: Optional[object] = None

    @property
    def last(self) -> object:
        """The op whose first output is the result."""
        return self.op if self.reshape is None else self.reshape


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

    @property
    def last(self) -> object:
        """The op with weights, or what puts an atrous convolution's output together."""
        return self.batch_to_space or self.op


class LayerMatch(NamedTuple):
    """A layer and the ops whose outputs are quantised with it; each may be None.

    Attributes:
      layer: the layer.
      activation: the op behind it, or its own last one where none is behind it.
      bypass: the Add in front of the activation.
      post_activation_bypass: the Add behind the activation.
      bias: in front of a bypass or an activation, what ends the layer: bias, batch norm, or the Identity of
        a batch norm.
    """

    layer: Layer
    activation: Optional[object]
    bypass: Optional[object] = None
    post_activation_bypass: Optional[object] = None
    bias: Optional[object] = None
