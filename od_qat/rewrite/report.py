"""What a rewrite did."""

from typing import Any, Dict, NamedTuple, Tuple


class RewriteReport(NamedTuple):
    """What a rewrite did.

    Attributes:
      weights, activations: names of the fake quants on weights and on activations.
      patterns: how many activations each pattern gave (act_quant, add_quant, concat_quant, ...).
      folded: layers whose batch norm was folded.
      stays_float: ops with weights that stay float, with the reason.
      ops_before, ops_after: size of the graph.
    """

    weights: Tuple[str, ...]
    activations: Tuple[str, ...]
    patterns: Dict[str, int]
    folded: int
    stays_float: Dict[str, str]
    ops_before: int
    ops_after: int

    def as_dict(self) -> Dict[str, Any]:
        """For JSON."""
        return dict(self._asdict())

    def __str__(self) -> str:
        text = "quantised {} weights and {} activations, folded {} batch norms".format(
            len(self.weights), len(self.activations), self.folded
        )
        if self.stays_float:
            text += "; {} ops with weights stay float".format(len(self.stays_float))
        return text
