"""Writes what an export to .tflite leaves in its folder."""

import os
import sys
from typing import Any, Dict, Optional, Sequence, Union

from od_qat.model_files import description, tflite_metadata


def write(
    path: str, graph_def: Any, model: bytes, beside: Dict[str, Any], labels: Optional[Sequence[str]]
) -> None:
    """Writes a .tflite, the JSON beside it, tflite_graph.pb, which it was made from, and labels; all or none.

    A labels.txt that an earlier export has left is named on stderr if this one writes none.

    Args:
      path: of the .tflite.
      graph_def: from which it was converted.
      model: its bytes.
      beside: of description.content.
      labels: of its classes: the .tflite then gets metadata, and labels.txt is beside it. None for neither.
    """
    others: Dict[str, Union[bytes, str]] = {"tflite_graph.pb": graph_def.SerializeToString()}
    if labels is not None:
        model = tflite_metadata.attach(model, beside, labels)
        others[tflite_metadata.LABELS] = tflite_metadata.text_of(labels)
    description.write(path, model, beside, others)
    left = os.path.join(os.path.dirname(path), tflite_metadata.LABELS)
    if labels is None and os.path.exists(left):
        print("warning: {} is not of this export, which had no --metadata".format(left), file=sys.stderr)
