"""The only file that depends on the version of TensorFlow.

All other modules use ``from od_qat.compat import tf``, which is ``tensorflow.compat.v1``. Code that builds
models of the OD API calls :func:`enable_tf1_behaviour` before it imports the OD API or tf-slim, as the OD API
decides at import time which of its halves (TF 1 or TF 2) it registers.

Each entry is needed by the TF 1 half of the OD API (tf-object-detection-api 0.1) or by tf-slim 1.1.0 on
TensorFlow 2.21 or 2.15.
"""

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import types
import warnings
from typing import Iterator

from od_qat.errors import EnvironmentProblem, MissingPackage
from od_qat.late_imports import imported_later
from od_qat.quiet import native_stderr_silenced


def _tf_keras_is_keras_2() -> bool:
    """Whether tf.keras is the Keras 2 of the package keras (TF 2.15), so that tf-keras is not needed."""
    if importlib.util.find_spec("tf_keras") is not None:
        return False
    try:
        from importlib import metadata

        return metadata.version("keras").startswith("2.")
    except ImportError:  # no keras, or Python 3.7, whose TensorFlow does not use it
        return False


# Both must be set before TensorFlow is imported. The first is for the OD API, which reads
# `layers.experimental` at import time, and Keras 3 does not have that. The second hides the log of the C++
# start-up, which does not help a user.
if not _tf_keras_is_keras_2():
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# tf_keras prints a page of FutureWarnings, and so does TF 1.15 about numpy.
warnings.filterwarnings("ignore", category=FutureWarning)
warnings.filterwarnings("ignore", category=DeprecationWarning)
# tf-slim's batch norm calls `apply` of a Keras layer, which warns once for each layer.
warnings.filterwarnings("ignore", message=".*layer.apply. is deprecated.*")
# In a graph, nothing but this sets the mode of the layers that the OD API calls without one.
warnings.filterwarnings("ignore", message=".*set_learning_phase. is deprecated.*")


# TensorFlow imports Keras, by either of two names, to register its optimizers with SavedModels, and Keras
# knows the tables of pandas. Many commands do without both.
_OF_TENSORFLOW = ("tf_keras.src.optimizers", "keras.src.optimizers", "pandas")

with native_stderr_silenced(), imported_later(*_OF_TENSORFLOW):
    import tensorflow as _tensorflow
    import tensorflow.compat.v1 as tf  # noqa: F401  (re-exported)

    if hasattr(_tensorflow.config, "list_physical_devices"):
        # The first search for devices logs, so it is made here. (TF 1.15 has no such function.)
        _tensorflow.config.list_physical_devices()

TF_VERSION = tuple(int(part) for part in _tensorflow.__version__.split(".")[:2])
IS_TF1 = TF_VERSION < (2, 0)
# Whether the Keras models of the OD API's TF 2 half can be built.
HAS_TF2_MODELS = not IS_TF1
# The types that the converter can make of fake quants. TF 1.15's has int8 for post-training quantization
# only; with trained ranges, its int8 model runs in no interpreter.
FAKE_QUANT_TYPES = ("uint8",) if IS_TF1 else ("int8", "uint8")


def quiet_logging() -> None:
    """Limits TensorFlow's Python log to errors, without deprecation notes."""
    tf.logging.set_verbosity(tf.logging.ERROR)
    try:
        from tensorflow.python.util import deprecation

        deprecation._PRINT_DEPRECATION_WARNINGS = False
    except (ImportError, AttributeError):
        pass


def has_gpu() -> bool:
    """Whether TensorFlow can use a GPU."""
    return bool(_tensorflow.config.experimental.list_physical_devices("GPU"))


def op_def(name: str):
    """Returns the OpDef of an op in this TensorFlow's registry; None if it is not there."""
    from tensorflow.python.framework import op_def_registry

    if hasattr(op_def_registry, "get"):
        return op_def_registry.get(name)
    try:  # TF 1.15, whose registry in Python lacks ops without a Python function
        return tf.Graph()._get_op_def(name)
    except tf.errors.NotFoundError:
        return None


def without_autotune(dataset):
    """Returns a tf.data dataset that keeps the parallelism that it was built with.

    The OD API sets the parallelism of its input readers, so tf.data's autotuning has nothing to choose. But
    its thread can delay the closing of a session by up to ten seconds (seen on TF 2.21). On TF 1.15 the
    dataset is returned as it is.
    """
    options = tf.data.Options()
    if not hasattr(options, "autotune"):
        return dataset
    options.autotune.enabled = False
    return dataset.with_options(options)


def eager():
    """Returns a context in which TensorFlow 2 runs eagerly, whatever it does outside."""
    from tensorflow.python.eager import context

    return context.eager_mode()


# The key of a checkpoint's object graph, and the attribute and the mark in keys that hold a variable's value.
OBJECT_GRAPH_KEY = "_CHECKPOINTABLE_OBJECT_GRAPH"
VARIABLE_VALUE = "VARIABLE_VALUE"


def is_variable(thing) -> bool:
    """Whether something is a variable, of either kind (reference or resource)."""
    return isinstance(thing, _tensorflow.Variable)


def parsed_object_graph(content: bytes):
    """Returns the TrackableObjectGraph that a checkpoint holds under OBJECT_GRAPH_KEY.

    Raises:
      ValueError: if it cannot be parsed.
    """
    from google.protobuf import message
    from tensorflow.core.protobuf import trackable_object_graph_pb2

    try:
        return trackable_object_graph_pb2.TrackableObjectGraph.FromString(content)
    except message.DecodeError as error:
        raise ValueError("its object graph cannot be parsed") from error


def group_of_objects(children):
    """Returns a trackable object that has others as its children.

    Args:
      children: name -> trackable object; a name may have slashes.

    Raises:
      EnvironmentProblem: on TensorFlow 1.15, which the OD API's TF 2 models do not run on.
      TypeError: if one of them is not trackable.
    """
    if IS_TF1:
        raise EnvironmentProblem(
            "object-based checkpoints are of TF 2 models, which need TensorFlow 2",
            found="TensorFlow {}".format(_tensorflow.__version__),
            fix="pip install 'tensorflow>=2.15,<2.22' in another environment",
        )
    from tensorflow.python.trackable import autotrackable

    group = autotrackable.AutoTrackable()
    for name, child in children.items():
        group._track_trackable(child, name)
    return group


def object_graph(root):
    """Returns the TrackableObjectGraph that a checkpoint of an object has, and its objects by node.

    It adds no ops to the graph.
    """
    from tensorflow.python.checkpoint import graph_view

    view = graph_view.ObjectGraphView(root)
    _, proto, _ = view.serialize_object_graph()
    objects = list(view.breadth_first_traversal()[0])
    objects += [None] * (len(proto.nodes) - len(objects))
    for optimizer, node in zip(objects[:], proto.nodes):
        for slot in node.slot_variables:
            original = objects[slot.original_variable_node_id]
            objects[slot.slot_variable_node_id] = slot_variable(optimizer, original, slot.slot_name)
    return proto, objects


def children_of(trackable):
    """Returns a function from names, as a checkpoint has them, to children of a trackable object, or None."""
    children = trackable._trackable_children()

    def child(name):
        return trackable._lookup_dependency(name, children)

    return child


def slot_variable(optimizer, variable, name):
    """Returns an optimizer's slot variable; None if it has none of that name."""
    try:
        return optimizer.get_slot(variable, name)
    except (AttributeError, KeyError):
        return None


def checkpoint_writer(beside, tensors_to_add):
    """Returns a builder for tf.train.Saver, whose checkpoints have further tensors that are never restored.

    Args:
      beside: a name that the saver has; with `sharded=True`, the tensors are written into its shard.
      tensors_to_add: function from the tensor with the prefix of the checkpoint, or of the shard, to a dict
        name -> tensor.
    """
    from tensorflow.python.training import saver

    class Builder(saver.BulkSaverBuilder):
        def save_op(self, filename_tensor, saveables):
            if any(saveable.name == beside for saveable in saveables):
                with tf.device("/cpu:0"):
                    added = tensors_to_add(filename_tensor)
                saveables = saveables + [
                    self.SaveableObject(tensor, [self.SaveSpec(tensor, "", name)], name)
                    for name, tensor in added.items()
                ]
            return super(Builder, self).save_op(filename_tensor, saveables)

    return Builder()


_tf1_behaviour_enabled = False


def enable_tf1_behaviour() -> None:
    """Switches to graph mode, reference variables and v1 control flow, and adds names that tf-slim needs.

    On TF 1.15 this only limits the log. On TF 2 it must run before any eager op, and before the OD API is
    imported, which asks ``tf2.enabled()``. It may be called again.

    Raises:
      RuntimeError: from TensorFlow, if eager ops have run already.
    """
    global _tf1_behaviour_enabled
    if _tf1_behaviour_enabled:
        return
    quiet_logging()
    if not IS_TF1:
        tf.disable_v2_behavior()
        restore_names()
    _tf1_behaviour_enabled = True


def restore_names() -> None:
    """Adds names that tf-slim and the OD API look for in TensorFlow, and imports tf-slim if it is installed.

    It may be called again.
    """
    # Keras knows the tables of pandas, and tf-slim's cluster loss needs scikit-learn. They take 0.3 and 0.6
    # seconds to import, where they are installed.
    with imported_later("pandas", "sklearn.metrics"):
        if not IS_TF1:
            _restore_names_for_tf_slim()
            _restore_estimator()
        if importlib.util.find_spec("tf_slim") is not None:
            importlib.import_module("tf_slim")


def behaves_as_tf2() -> bool:
    """Whether TensorFlow 2's behaviour is on, by default or by tf.enable_v2_behavior."""
    from tensorflow.python import tf2

    return bool(tf2.enabled())


@contextlib.contextmanager
def graph_mode() -> Iterator[None]:
    """Within it, TensorFlow behaves as after enable_tf1_behaviour. An eager program is eager afterwards."""
    eager = tf.executing_eagerly()
    enable_tf1_behaviour()
    if not eager:
        yield
        return
    tf.disable_v2_behavior()
    try:
        yield
    finally:
        from tensorflow.python.eager import context
        from tensorflow.python.framework import ops

        # (Otherwise it refuses to, since there is a default graph by now.)
        context.default_execution_mode = context.EAGER_MODE
        ops.enable_eager_execution_internal()
        tf.enable_v2_behavior()


def _restore_names_for_tf_slim() -> None:
    """Restores names that tf-slim 1.1.0 looks up in TensorFlow's internal modules.

    They moved within TensorFlow between 2.9 and 2.13. Only missing names are set.
    """
    from tensorflow.python.framework import indexed_slices, ops, tensor
    from tensorflow.python.ops import (
        array_ops,
        array_ops_stack,
        cond,
        control_flow_assert,
        control_flow_case,
        control_flow_ops,
        variable_scope,
        variable_v1,
        while_loop,
    )

    moved = [
        (control_flow_ops, "cond", cond.cond),
        (control_flow_ops, "case", control_flow_case.case),
        (control_flow_ops, "while_loop", while_loop.while_loop),
        (control_flow_ops, "Assert", control_flow_assert.Assert),
        (array_ops, "stack", array_ops_stack.stack),
        (array_ops, "unstack", array_ops_stack.unstack),
        (ops, "Tensor", tensor.Tensor),
        (ops, "IndexedSlices", indexed_slices.IndexedSlices),
        (variable_scope, "variable", getattr(variable_v1, "VariableV1", None)),
    ]
    for module, name, value in moved:
        if not hasattr(module, name) and value is not None:
            setattr(module, name, value)
    _restore_legacy_layers()


def _restore_legacy_layers() -> None:
    """Restores tf-slim's batch norm, which TensorFlow looks for in `tf_keras.legacy_tf_layers`.

    tf-keras has it in `src`. So does Keras 2, which is enough on TF 2.15.
    """
    from tensorflow.python.layers import normalization as layers

    try:
        from tf_keras.src.legacy_tf_layers import normalization
    except ImportError:
        try:
            from keras.src.legacy_tf_layers import normalization
        except ImportError:
            return  # od-qat doctor says what is missing, and TensorFlow does if a model needs it
    layers.normalization = normalization


class AbsentModule(types.ModuleType):
    """Stands for a package that is not installed, until something of it is used.

    Args:
      name: of the module.
      error: what is raised then.
    """

    def __init__(self, name: str, error: Exception) -> None:
        super(AbsentModule, self).__init__(name)
        self._error = error

    def __getattr__(self, name: str):
        if name.startswith("__"):
            raise AttributeError(name)
        raise self._error


_ESTIMATOR = "tensorflow.compat.v1.estimator"
# Modules of the package tensorflow-estimator, and the names in `tf.estimator` that the OD API and scripts
# around it use. The `__init__` of the package imports the TPU half too, which needs modules that TensorFlow
# 2.16 and later do not have.
_ESTIMATOR_NAMES = {
    "estimator": ("Estimator", "VocabInfo", "WarmStartSettings"),
    "exporter": ("BestExporter", "Exporter", "FinalExporter", "LatestExporter"),
    "mode_keys": ("ModeKeys",),
    "model_fn": ("EstimatorSpec",),
    "run_config": ("RunConfig",),
    "training": ("EvalSpec", "TrainSpec", "train_and_evaluate"),
}


class _EstimatorFinder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Makes `from tensorflow.compat.v1 import estimator` work, which TensorFlow removed in 2.16.

    It imports nothing before that. tensorflow-estimator 2.15.0 is the last version. It runs on TensorFlow
    2.21 with the two replacements in `exec_module`. Without the package, what uses an Estimator is refused,
    and what only imports the name works: the OD API's TF 2 half.
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname != _ESTIMATOR:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec):
        if importlib.util.find_spec("tensorflow_estimator") is not None:
            return None
        return AbsentModule(
            spec.name,
            MissingPackage(
                "an Estimator is needed, which TensorFlow has not had since 2.16",
                found="no package tensorflow-estimator",
                fix="pip install --no-deps tensorflow-estimator==2.15.0, or use od-qat train and eval "
                "(object_detection.legacy.train and .eval), which need none",
            ),
        )

    def exec_module(self, module) -> None:
        if isinstance(module, AbsentModule):
            return
        from tensorflow.python import distribute
        from tensorflow.python.util import tf_export

        if not hasattr(tf_export, "ESTIMATOR_API_NAME"):
            tf_export.ESTIMATOR_API_NAME = "estimator"
            for attributes in (tf_export.API_ATTRS, tf_export.API_ATTRS_V1):
                attributes["estimator"] = tf_export._Attributes("_estimator_names", "_estimator_constants")
        name = "tensorflow.python.distribute.estimator_training"
        if importlib.util.find_spec(name) is None:
            # It is for strategies of tf.distribute with an Estimator, which the OD API does not use.
            distribute.estimator_training = types.ModuleType(name)
            distribute.estimator_training.should_run_distribute_coordinator = lambda config: False
            sys.modules[name] = distribute.estimator_training
        if "tensorflow_estimator" not in sys.modules:
            package = types.ModuleType("tensorflow_estimator")
            found = importlib.util.find_spec("tensorflow_estimator")
            package.__path__ = list(found.submodule_search_locations)
            sys.modules["tensorflow_estimator"] = package
        home = "tensorflow_estimator.python.estimator."
        for part, names in _ESTIMATOR_NAMES.items():
            for attribute in names:
                setattr(module, attribute, getattr(importlib.import_module(home + part), attribute))
        module.export = importlib.import_module(home + "export.export_lib")


def _restore_estimator() -> None:
    """Adds `_EstimatorFinder` if this TensorFlow has no `tf.estimator` of its own."""
    if not hasattr(tf, "estimator") and not any(isinstance(f, _EstimatorFinder) for f in sys.meta_path):
        sys.meta_path.insert(0, _EstimatorFinder())
