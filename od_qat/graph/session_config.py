"""How much a session optimizes its graph.

Before the first run of each set of fetches, TensorFlow optimizes the whole graph, twice by default, and
looks for tensors to move from a device's memory to the host's. A detector has thousands of ops, so this can
take longer than a command's own work (benchmarks/commands.py).
"""

from tensorflow.core.protobuf import rewriter_config_pb2

from od_qat import compat
from od_qat.compat import tf


def for_many_runs(**settings):
    """Returns a tf.ConfigProto for a session that runs one graph often.

    It optimizes once, since the second time makes no step faster, and moves no tensors if there is no GPU.

    Args:
      **settings: further fields of the tf.ConfigProto.
    """
    config = tf.ConfigProto(**settings)
    rewrites = config.graph_options.rewrite_options
    rewrites.meta_optimizer_iterations = rewriter_config_pb2.RewriterConfig.ONE
    if not compat.has_gpu():
        rewrites.memory_optimization = rewriter_config_pb2.RewriterConfig.NO_MEM_OPT
    return config


def for_few_runs():
    """Returns a tf.ConfigProto for a session that runs a graph once or twice: it optimizes nothing."""
    config = tf.ConfigProto()
    config.graph_options.rewrite_options.disable_meta_optimizer = True
    return config
