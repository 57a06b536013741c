"""The two halves of the OD API, TF 1's (tf-slim) and TF 2's (Keras), in one process and in graph mode.

Upstream decides when its modules are imported, by `tf_version.is_tf2()`, which models there are. Here the
config decides: within :func:`active`, the OD API is of the half that its model belongs to.
"""

import contextlib
import importlib
import os
import sys
from typing import Iterator

from od_qat import compat
from od_qat.compat import tf
from od_qat.errors import ConfigError, MissingPackage

# Upstream's TF 2 half names its extractors so; CenterNet is in that half only.
_KERAS = "_keras"
_ONLY_TF2 = ("center_net",)
# Modules that look at the half when they are imported: those that are made again for the TF 2 half, in the
# order of their imports, and those that serve both halves once they are imported in the TF 1 half.
_SERVE_BOTH = ("object_detection.builders.optimizer_builder",)
_BY_HALF = ("object_detection.builders.hyperparams_builder", "object_detection.builders.model_builder")
# What only some models of the TF 2 half need: module -> (model, how to get it).
_ON_DEMAND = {
    "tensorflow_io": ("DeepMAC", "pip install tensorflow-io"),
    "official.legacy.image_classification.efficientnet.efficientnet_model": (
        "EfficientDet",
        "pip install --no-deps tf-models-official",
    ),
}

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

    tf_version.is_tf1 = lambda: not _is_tf2
    tf_version.is_tf2 = is_active


_loaded = False


def _load() -> None:
    """Lets model_builder know the models of both halves, once."""
    global _is_tf2, _loaded
    if _loaded:
        return
    for name in _SERVE_BOTH:
        importlib.import_module(name)
    modules = [importlib.import_module(name) for name in _BY_HALF]
    builder = modules[-1]
    of_tf1 = list(builder.FEATURE_EXTRACTOR_MAPS)
    _is_tf2 = True
    try:
        with _absent_on_demand():
            for module in modules:
                importlib.reload(module)
    finally:
        _is_tf2 = False
    builder.FEATURE_EXTRACTOR_MAPS.extend(
        each for each in of_tf1 if each not in builder.FEATURE_EXTRACTOR_MAPS
    )
    _loaded = True


@contextlib.contextmanager
def _absent_on_demand() -> Iterator[None]:
    """Within it, modules of _ON_DEMAND that are not installed can be imported; using them is refused."""
    added = []
    for name in _ON_DEMAND:
        try:
            importlib.import_module(name)
        except Exception:  # noqa: BLE001  (tensorflow_io of another TensorFlow fails in many ways)
            parts = name.split(".")
            for end in range(1, len(parts) + 1):
                part = ".".join(parts[:end])
                if part not in sys.modules:
                    sys.modules[part] = compat.AbsentModule(part, _missing(name) if part == name else None)
                    added.append(part)
    try:
        yield
    finally:
        for part in added:
            del sys.modules[part]


def _missing(package: str) -> MissingPackage:
    model, how = _ON_DEMAND[package]
    return MissingPackage("{} needs a package that is not installed".format(model), found=package, fix=how)
