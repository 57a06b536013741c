"""Names without the scopes of clones.

Of a model that slim's model_deploy builds once for each device, the scopes `clone_0/`, `clone_1/`, ... are no
part of a fake quant's name: clones share their variables, so they share their ranges too, and a checkpoint
holds what a graph of one clone asks for. (With contrib each clone had variables of its own, and no export
found them.)
"""

import re
from typing import Tuple

from od_qat.graph.index import GraphIndex
from od_qat.rewrite import policy

_CLONE = re.compile(r"(clone_\d+)/")


class Clones(object):
    """The clones of a graph.

    Args:
      index: the graph.

    Attributes:
      scopes: `clone_0/`, `clone_1/`, ... when these hold a model several times, over variables outside of
        them; else ().
    """

    def __init__(self, index: GraphIndex) -> None:
        self.scopes = _scopes(index)

    def name(self, operation) -> str:
        """An operation's name without the scope of its clone."""
        for clone in self.scopes:
            if operation.name.startswith(clone):
                return operation.name[len(clone) :]
        return operation.name

    def other_of(self, operation) -> str:
        """The scope of its clone; '' in the first, and without clones."""
        return next((clone for clone in self.scopes[1:] if operation.name.startswith(clone)), "")


def _scopes(index: GraphIndex) -> Tuple[str, ...]:
    if any(_CLONE.match(v.op.name) for v in index.graph.get_collection("trainable_variables")):
        return ()  # a model's own scopes, with variables of their own
    found = {}
    for operation in index.operations:
        match = _CLONE.match(operation.name) if operation.type in policy.WEIGHTED else None
        if match:
            found[match.group(1) + "/"] = None
    return tuple(found) if len(found) > 1 else ()
