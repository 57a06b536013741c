"""The functions of od_qat that replace functions of the OD API's modules, under the OD API's names.

Each imports its target when it is called, because od_qat's trainer itself imports the OD API's modules.
"""

import functools
import importlib
import importlib.util
import inspect
from typing import Any, Callable, Dict

from od_qat.errors import MissingPackage


class _LateBound(object):
    """Calls `package.module:function`, with `first` as its first arguments."""

    def __init__(self, target: str, *first: Any) -> None:
        self._target = target
        self._first = first
        self.__doc__ = "od_qat's {}".format(target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        module, _, name = self._target.partition(":")
        return getattr(importlib.import_module(module), name)(*(self._first + args), **kwargs)


class _ForBlocks(_LateBound):
    """Stands for a function of the TF 2 half if a config has a graph_rewriter block, or in graph mode.

    Args:
      target: see _LateBound.
      writes_events: whether the OD API's own function needs TensorBoard.
    """

    def __init__(self, target: str, writes_events: bool) -> None:
        super(_ForBlocks, self).__init__(target)
        self._writes_events = writes_events

    def replaces(self, function: Callable) -> Callable:
        """As a decorator of the OD API's function, puts this in its place where that is asked for."""

        @functools.wraps(function)
        def either(*args: Any, **kwargs: Any) -> Any:
            from od_qat.compat import tf

            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            if not tf.executing_eagerly() or _has_block(arguments):
                return self(*args, **kwargs)
            if self._writes_events:
                _require_tensorboard()
            return function(*args, **kwargs)

        return either


def _require_tensorboard() -> None:
    """Raises MissingPackage before the first step: without TensorBoard, upstream ends at its first event."""
    if importlib.util.find_spec("tensorboard") is None:
        raise MissingPackage(
            "the OD API writes its events with TensorBoard, which TensorFlow no longer brings",
            found="no package tensorboard",
            fix="pip install tensorboard, or use od-qat train and eval, which need none",
        )


def _has_block(arguments: Dict[str, Any]) -> bool:
    from od_qat.od_api import pipeline

    config = arguments.get("pipeline_config")
    if config is None:
        config = pipeline.load(arguments["pipeline_config_path"])
        if arguments.get("config_override") is not None:
            pipeline.merge(config, arguments["config_override"])
    return config.HasField("graph_rewriter")


build = _LateBound("od_qat.od_api.graph_rewriter:build")
train = _LateBound("od_qat.trainer:train")
evaluate = _LateBound("od_qat.evaluator:evaluate")

train_loop = _ForBlocks("od_qat.tf2_drop_ins:train_loop", writes_events=True)
eval_continuously = _ForBlocks("od_qat.tf2_drop_ins:eval_continuously", writes_events=True)
export_inference_graph = _ForBlocks("od_qat.tf2_drop_ins:export_inference_graph", writes_events=False)
export_tflite_model = _ForBlocks("od_qat.tf2_drop_ins:export_tflite_model", writes_events=False)


def checked(create_estimator_and_inputs: Callable) -> Callable:
    """Puts the check of the config in front of object_detection.model_lib.create_estimator_and_inputs."""
    return _LateBound("od_qat.od_api.refusals:create_estimator_and_inputs", create_estimator_and_inputs)
