"""The kernels' own gradients, where the rewriter puts the straight-through one; for the tests to compare."""

from od_qat.compat import tf

OF_SCALED_WEIGHTS = "TestGradientOfScaledWeights"


@tf.RegisterGradient(OF_SCALED_WEIGHTS)
def _of_scaled_weights(operation, gradient):
    """Of products, quotients and fake quants; constant in the scale and the range."""
    if operation.type == "Mul":
        return gradient * operation.inputs[1], None
    if operation.type == "RealDiv":
        return gradient / operation.inputs[1], None
    kernel = tf.quantization.fake_quant_with_min_max_vars_gradient
    if operation.type.endswith("PerChannel"):
        kernel = tf.quantization.fake_quant_with_min_max_vars_per_channel_gradient
    return kernel(gradient, *operation.inputs, num_bits=8, narrow_range=True)[0], None, None
