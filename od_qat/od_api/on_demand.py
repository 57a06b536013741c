"""Packages that only some models of the OD API's TF 2 half need, though it imports them for all.

source_changes.py lets the OD API import them from here. One that is not installed is refused when something
of it is used.
"""

import importlib
from typing import Any

from od_qat import compat
from od_qat.errors import MissingPackage

_TF_MODELS = "pip install --no-deps tf-models-official"
# Name -> where it is in one version or another, what needs it, how to get it.
_PACKAGES = {
    "tensorflow_io": (("tensorflow_io",), "DeepMAC", "pip install tensorflow-io"),
    # (Inside of Keras, whose public module lacks ResNet; the stand-alone Keras 3 is none of TensorFlow's.)
    "keras_resnet": (
        (
            "tf_keras.src.applications.resnet",
            "keras.src.applications.resnet",
            "tensorflow.python.keras.applications.resnet",
        ),
        "a ResNet of 18 or 34 layers",
        "pip install tf-keras, of TensorFlow's version",
    ),
    "efficientnet_model": (
        (
            "official.legacy.image_classification.efficientnet.efficientnet_model",
            "official.vision.image_classification.efficientnet.efficientnet_model",
        ),
        "EfficientDet",
        _TF_MODELS,
    ),
    "ema_optimizer": (
        ("official.modeling.optimization.ema_optimizer",),
        "use_moving_average",
        _TF_MODELS,
    ),
}


def __getattr__(name: str) -> Any:
    if name not in _PACKAGES:
        raise AttributeError(name)
    places, what, how = _PACKAGES[name]
    for place in places:
        try:
            return importlib.import_module(place)
        except Exception:  # noqa: BLE001  (tensorflow_io of another TensorFlow fails in many ways)
            continue
    error = MissingPackage("{} needs a package that is not installed".format(what), found=places[0], fix=how)
    return compat.AbsentModule(name, error)
