"""Quantization-aware training for the detectors of the TensorFlow Object Detection API.

Importing this package does not import TensorFlow; the first use of one of these names does:

    create_training_graph, create_eval_graph, experimental_create_training_graph,
    experimental_create_eval_graph    put the fake quants into a graph, as tf.contrib.quantize did
    trainer, evaluator                drop-ins for object_detection.legacy.trainer and .evaluator
    output_nodes, freeze, tflite      from a checkpoint to a .pb and a .tflite
"""

import importlib
from typing import Any, List

__version__ = "0.1.0"

_REWRITER = (
    "create_eval_graph",
    "create_training_graph",
    "experimental_create_eval_graph",
    "experimental_create_training_graph",
)
# Public name -> the module that it is.
_MODULES = {
    "evaluator": "evaluator",
    "freeze": "export.freeze",
    "output_nodes": "model_files.output_nodes",
    "tflite": "export.tflite",
    "trainer": "trainer",
}

__all__ = sorted(_REWRITER + tuple(_MODULES))


def __getattr__(name: str) -> Any:
    """Imports a public name when it is first used (PEP 562)."""
    if name in _REWRITER:
        return getattr(importlib.import_module("od_qat.rewrite.api"), name)
    if name in _MODULES:
        return importlib.import_module("od_qat." + _MODULES[name])
    raise AttributeError("module {!r} has no attribute {!r}".format(__name__, name))


def __dir__() -> List[str]:
    return sorted(set(globals()) | set(__all__))
