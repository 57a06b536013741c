"""What checkpoints and graphs call the variables of quantization and of moving averages."""

from od_qat.compat import tf

# The collection that the rewriter puts its range variables into.
QUANT_VARIABLES = "quant_vars"
# The one of them that counts steps; a graph has it when something is delayed.
QUANT_STEP = "fake_quantization_step"
# What TensorFlow calls the moving average of a variable.
AVERAGE = "/ExponentialMovingAverage"


def quant_variable_names(graph=None) -> frozenset:
    """Names of the variables that the rewriter made in a graph, moving-average helpers included."""
    graph = graph or tf.get_default_graph()
    return frozenset(variable.op.name for variable in graph.get_collection(QUANT_VARIABLES))
