"""The names of quantization variables and moving averages in checkpoints and graphs."""

from od_qat.compat import tf

# The collection that the rewriter puts its range variables into.
QUANT_VARIABLES = "quant_vars"
# The quantization variable that counts steps. A graph has it if something is delayed.
QUANT_STEP = "fake_quantization_step"
# The collection of a graph with Keras models: pairs of a name and an object that its checkpoints hold.
OBJECTS = "od_qat_objects"
# TensorFlow adds this to a variable's name for its moving average.
AVERAGE = "/ExponentialMovingAverage"


def quant_variable_names(graph=None) -> frozenset:
    """Returns the names of the variables that the rewriter added to a graph, helper variables included."""
    graph = graph or tf.get_default_graph()
    return frozenset(variable.op.name for variable in graph.get_collection(QUANT_VARIABLES))
