"""Sessions that run a graph as it is: optimizing it takes longer than the few steps of a test."""

import contextlib

from od_qat.compat import tf


def plain_config(config=None):
    """A tf.ConfigProto, of another one if it is given, that leaves the graph as it is."""
    plain = tf.ConfigProto()
    if config is not None:
        plain.CopyFrom(config)
    plain.graph_options.rewrite_options.disable_meta_optimizer = True
    plain.graph_options.optimizer_options.opt_level = -1
    return plain


def plain():
    """A session of the default graph."""
    return tf.Session(config=plain_config())


def assign(session, values):
    """Gives variables their values, in one run.

    Args:
      session: of the variables' graph.
      values: variable -> array.
    """
    feed = {variable.initializer.inputs[1]: value for variable, value in values.items()}
    session.run([variable.initializer for variable in values], feed)


@contextlib.contextmanager
def all_plain():
    """Within it, every session of this process is plain, whoever opens it."""
    from tensorflow.python.client.session import BaseSession

    init = BaseSession.__init__

    def plain_init(self, target="", graph=None, config=None):
        init(self, target, graph, plain_config(config))

    BaseSession.__init__ = plain_init
    try:
        yield
    finally:
        BaseSession.__init__ = init
