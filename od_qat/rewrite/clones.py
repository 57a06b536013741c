"""Names ops without the scopes of clones.

slim's model_deploy builds a model once for each device, in scopes `clone_0/`, `clone_1/`, ... These scopes
are not part of a fake quant's name. Clones share their variables, so they share their ranges too, and the
checkpoint fits a graph with one clone. (With contrib, each clone had variables of its own, which no export
found.)
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
      scopes: `clone_0/`, `clone_1/`, ... if these are clones of one model, whose variables are outside of
        them; else ().
    """

    def __init__(self, index: GraphIndex) -> None:
        self.scopes = _scopes(index)

    def name(self, operation) -> str:
        """Returns an operation's name without the scope of its clone."""
        for clone in self.scopes:
            if operation.name.startswith(clone):
                return operation.name[len(clone) :]
        return operation.name

    def other_of(self, operation) -> str:
        """Returns the scope of an operation's clone; '' for the first clone, and if there are no clones."""
        return next((clone for clone in self.scopes[1:] if operation.name.startswith(clone)), "")


def _scopes(index: GraphIndex) -> Tuple[str, ...]:
    if any(_CLONE.match(v.op.name) for v in index.graph.get_collection("trainable_variables")):
        return ()  # these are scopes of the model itself, which hold its variables
    found = {}
    for operation in index.of_types(policy.WEIGHTED):
        match = _CLONE.match(operation.name)
        if match:
            found[match.group(1) + "/"] = None
    return tuple(found) if len(found) > 1 else ()
