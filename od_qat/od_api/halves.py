"""The two halves of the OD API, TF 1's (tf-slim) and TF 2's (Keras), in one process and in graph mode.

Upstream decides when its modules are imported, by `tf_version.is_tf2()`, which models there are. Here the
config decides: within :func:`active`, the OD API is of the half that its model belongs to.
"""

import contextlib
import importlib
import os
from typing import Iterator

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import ConfigError

# Upstream's TF 2 half names its extractors so; CenterNet is in that half only.
_KERAS = "_keras"
_ONLY_TF2 = ("center_net",)
# Modules that look at the half when they are imported, and are made again for the TF 2 half, in the order of
# their imports.
_BY_HALF = ("object_detection.builders.hyperparams_builder", "object_detection.builders.model_builder")

_is_tf2 = False


def is_tf2(config) -> bool:
    """Whether the model of a pipeline config is of the TF 2 half.

    Args:
      config: TrainEvalPipelineConfig.
    """
    kind = config.model.WhichOneof("model")
    extractor = getattr(getattr(config.model, kind), "feature_extractor", None)
    return kind in _ONLY_TF2 or getattr(extractor, "type", "").endswith(_KERAS)


@contextlib.contextmanager
def active(config) -> Iterator[None]:
    """Within it, the OD API builds and trains the model of a pipeline config, of whichever half it is.

    Args:
      config: TrainEvalPipelineConfig.

    Raises:
      ConfigError: for a TF 2 model on TensorFlow 1.15, or with a tree of the OD API from before TF 2.
    """
    global _is_tf2
    if not is_tf2(config) or _is_tf2:
        yield
        return
    if not compat.HAS_TF2_MODELS:
        raise ConfigError(
            "the model is of the OD API's TF 2 half, which needs TensorFlow 2",
            where="model",
            found="TensorFlow {}".format(tf.__version__),
            fix="install od_qat with TensorFlow 2, or use a TF 1 model",
        )
    _switch()
    _load()
    # (Keras applications take sizes for integers.)
    tf.enable_v2_tensorshape()
    _is_tf2 = True
    try:
        yield
    finally:
        _is_tf2 = False
        tf.disable_v2_tensorshape()


def is_active() -> bool:
    """Whether the OD API is in its TF 2 half here and now."""
    return _is_tf2


def _switch() -> None:
    """Lets the OD API ask this module for the half."""
    try:
        from object_detection.utils import tf_version
    except ImportError as error:
        raise ConfigError(
            "the model is of the OD API's TF 2 half, which this tree of the OD API does not have",
            where="model",
            found=os.path.dirname(importlib.import_module("object_detection").__file__),
            fix="use a tree of 2020 or later",
        ) from error

    # (A program that is not in graph mode is upstream's, of the TF 2 half.)
    tf_version.is_tf2 = lambda: _is_tf2 or compat.behaves_as_tf2()
    tf_version.is_tf1 = lambda: not tf_version.is_tf2()


_loaded = False


def _load() -> None:
    """Lets model_builder know the models of both halves, once."""
    global _is_tf2, _loaded
    if _loaded:
        return
    modules = [importlib.import_module(name) for name in _BY_HALF]
    builder = modules[-1]
    of_tf1 = list(builder.FEATURE_EXTRACTOR_MAPS)
    _is_tf2 = True
    try:
        for module in modules:
            importlib.reload(module)
    finally:
        _is_tf2 = False
    builder.FEATURE_EXTRACTOR_MAPS.extend(
        each for each in of_tf1 if each not in builder.FEATURE_EXTRACTOR_MAPS
    )
    _loaded = True
