"""Finds the LiteRT interpreter, whose package has another name on Python 3.7."""

import importlib
from typing import Any

from od_qat.errors import EnvironmentProblem


def module() -> Any:
    """The module that has Interpreter and OpResolverType.

    Raises:
      EnvironmentProblem: if no such module is installed.
    """
    for name in ("ai_edge_litert", "tflite_runtime"):
        try:
            return importlib.import_module(name + ".interpreter")
        except ImportError:
            continue
    raise EnvironmentProblem(
        "the LiteRT interpreter is not installed",
        found="neither ai_edge_litert nor tflite_runtime",
        fix="pip install ai-edge-litert (Python 3.7: tflite-runtime)",
    )


def without_delegates(model: bytes, **options: Any) -> Any:
    """Makes an interpreter without delegates, which hide the tensors of the ops that they take over.

    Args:
      model: the bytes of a .tflite.
      **options: further arguments of the Interpreter.
    """
    found = module()
    return found.Interpreter(
        model_content=model,
        experimental_op_resolver_type=found.OpResolverType.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
        **options,
    )
