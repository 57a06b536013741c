"""The functions of od_qat that replace functions of the OD API's modules, under the OD API's names.

Each imports its target when it is called, because od_qat's trainer itself imports the OD API's modules.
"""

import importlib
from typing import Any, Callable


class _LateBound(object):
    """Calls `package.module:function`, with `first` as its first arguments."""

    def __init__(self, target: str, *first: Any) -> None:
        self._target = target
        self._first = first
        self.__doc__ = "od_qat's {}".format(target)

    def replaces(self, function: Callable) -> Callable:
        """As a decorator of a function of the OD API, puts this in its place."""
        del function
        return self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self._target.partition(":")
        return getattr(importlib.import_module(module), name)(*(self._first + args), **kwargs)


build = _LateBound("od_qat.od_api.graph_rewriter:build")
train = _LateBound("od_qat.trainer:train")
evaluate = _LateBound("od_qat.evaluator:evaluate")

train_loop = _LateBound("od_qat.tf2_drop_ins:train_loop")
eval_continuously = _LateBound("od_qat.tf2_drop_ins:eval_continuously")
export_inference_graph = _LateBound("od_qat.tf2_drop_ins:export_inference_graph")
export_tflite_model = _LateBound("od_qat.tf2_drop_ins:export_tflite_model")


def checked(create_estimator_and_inputs: Callable) -> Callable:
    """Puts the check of the config in front of object_detection.model_lib.create_estimator_and_inputs."""
    return _LateBound("od_qat.od_api.refusals:create_estimator_and_inputs", create_estimator_and_inputs)
