"""What a graph has of a Keras model of the OD API: objects for checkpoints, losses, updates, predictions.

Upstream's eager loop (model_lib_v2) finds these at each step. In a graph they are found once, after the model
has been called.
"""

import contextlib
import importlib
import itertools
import re
from typing import Dict, Iterable, Iterator, List, Optional, Set

from od_qat.checkpoints import OBJECTS, QUANT_VARIABLES, object_based
from od_qat.compat import tf
from od_qat.od_api import halves
from od_qat.rewrite import live

# The collection of the tensors that a Keras model has predicted in its graph.
_PREDICTIONS = "od_qat_predictions"
# The collection of the names of its backbones that upstream would have filled with downloaded weights.
_NOT_DOWNLOADED = "od_qat_not_downloaded"
_CLONE = re.compile(r"^clone_\d+(/|$)")


def prepare(is_training: bool) -> None:
    """Sets the default graph's mode, before a model is built; otherwise each batch norm has both modes.

    Args:
      is_training: whether batch normalization and dropout are in training mode.
    """
    if halves.is_active():
        tf.keras.backend.set_learning_phase(is_training)


@contextlib.contextmanager
def variables_of_one_model(deploy) -> Iterator[None]:
    """Within it, the variables of a Keras model have the names of a single model, and the place of slim's.

    slim's model_deploy builds each clone in a name scope (`clone_0/`), on the clone's device, and tells
    tf-slim where variables are. Variables of tf-slim have no name scopes in their names. Those of Keras have,
    and they would be on the device of the clone, so that each worker would train a model of its own. What
    reads a variable on a parameter server, layers and regularizer, shares one copy of it in each step.

    Args:
      deploy: model_deploy.DeploymentConfig.
    """
    devices = _devices_of_variables(deploy)

    def create(next_creator, **kwargs):
        scope = _CLONE.sub("", tf.get_default_graph().get_name_scope())
        if deploy.num_ps_tasks:
            kwargs["caching_device"] = deploy.inputs_device()
        with tf.name_scope(scope + "/" if scope else None), tf.device(next(devices)):
            return next_creator(**kwargs)

    if not halves.is_active():
        yield
        return
    with tf.variable_creator_scope(create):
        yield


def _devices_of_variables(deploy) -> Iterator[str]:
    """The device of each variable, in the order in which they are made: the parameter servers in turn.

    (model_deploy's own device function does not know Keras's kind of variables, those of resources.)
    """
    if not deploy.num_ps_tasks:
        # With one clone they are where they are used.
        return itertools.repeat(deploy.variables_device() if deploy.num_clones > 1 else "")
    return itertools.cycle(
        "{}/task:{}/device:CPU:0".format(deploy.ps_device, task) for task in range(deploy.num_ps_tasks)
    )


@contextlib.contextmanager
def nothing_downloaded() -> Iterator[None]:
    """Within it, a model is built without the ImageNet weights that upstream downloads for some backbones.

    These are the MobileNets V2 of CenterNet, of width 1. Where a checkpoint fills the model, as in an
    evaluation or an export, nothing of these weights would be left. See :func:`not_downloaded`.
    """
    if not halves.is_active():
        yield
        return
    module = importlib.import_module("object_detection.models.keras_models.mobilenet_v2")
    build = module.mobilenet_v2

    def build_fresh(*args, **kwargs):
        asked, kwargs["weights"] = kwargs.get("weights", "imagenet"), None
        if asked is not None:
            name = "MobileNet V2 of width {:g}".format(kwargs.get("alpha", 1.0))
            tf.add_to_collection(_NOT_DOWNLOADED, name)
        return build(*args, **kwargs)

    module.mobilenet_v2 = build_fresh
    try:
        yield
    finally:
        module.mobilenet_v2 = build


def not_downloaded() -> List[str]:
    """The names of the default graph's backbones for which upstream downloads ImageNet weights."""
    return list(tf.get_collection(_NOT_DOWNLOADED))


def remember(model) -> None:
    """Notes a model of the default graph as what its checkpoints hold, under upstream's name for it.

    What the model predicts is noted too, whoever calls it: see :func:`outputs`.
    """
    if not halves.is_active():
        return
    tf.get_default_graph().clear_collection(OBJECTS)
    tf.add_to_collection(OBJECTS, ("model", model))
    predict = model.predict

    def predict_and_note(*args, **kwargs):
        predictions = predict(*args, **kwargs)
        for tensor in tf.nest.flatten(predictions):
            if isinstance(tensor, tf.Tensor):
                tf.add_to_collection(_PREDICTIONS, tensor)
        return predictions

    model.predict = predict_and_note


def of_graph():
    """The Keras model of the default graph; None if it has none."""
    return dict(tf.get_collection(OBJECTS)).get("model")


def outputs() -> Optional[List[tf.Operation]]:
    """The predictions of the default graph's Keras model, in all its clones, and the ops that read them.

    These are the losses in training, and the detections or the raw heads otherwise. None in a graph without
    such a model.
    """
    predictions = tf.get_collection(_PREDICTIONS)
    graph = tf.get_default_graph()
    names = _forward(tensor.op for tensor in predictions)
    return [graph.get_operation_by_name(name) for name in sorted(names)] or None


def collect(model) -> None:
    """Puts the regularization losses, updates and variables of a called model into the graph's collections.

    A clone calls the same model again. Its updates are added then, and nothing else.
    """
    if not tf.get_collection(tf.GraphKeys.REGULARIZATION_LOSSES):
        for loss in model.regularization_losses():
            tf.add_to_collection(tf.GraphKeys.REGULARIZATION_LOSSES, loss)
    known = {update.name for update in tf.get_collection(tf.GraphKeys.UPDATE_OPS)}
    for update in _updates(model):
        if update.name not in known:
            known.add(update.name)
            tf.add_to_collection(tf.GraphKeys.UPDATE_OPS, update)
    in_graph = {variable.op.name for variable in tf.model_variables()}
    for variable in model.variables:
        if variable.op.name not in in_graph:
            in_graph.add(variable.op.name)
            tf.add_to_collection(tf.GraphKeys.MODEL_VARIABLES, variable)


def restore_map(model, prefix: str, kind: str) -> Dict[str, object]:
    """Name in a fine-tune checkpoint -> variable, for what upstream restores from this type of checkpoint.

    The ranges of what is restored are restored too, if the checkpoint has them.

    Args:
      model: the Keras DetectionModel of the default graph.
      prefix: prefix of an object-based checkpoint.
      kind: 'classification' (backbone), 'detection' (feature extractor) or 'full'.

    Raises:
      CheckpointError: if the checkpoint cannot be read.
    """
    objects = model.restore_from_objects(fine_tune_checkpoint_type=kind)
    ranges = {variable.op.name: variable for variable in tf.get_collection(QUANT_VARIABLES)}
    if kind != "full":
        restored = object_based.keys(objects).values() if kind == "detection" else ()
        scopes = {variable.op.name.rpartition("/")[0] for variable in restored}
        ranges = {name: variable for name, variable in ranges.items() if scopes & set(_scopes_around(name))}
    return object_based.match(prefix, objects, ranges).needed()


def _scopes_around(name: str) -> Iterator[str]:
    """`a/b/c` -> `a/b`, `a`. (A range is named after the variables of a layer.)"""
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def _updates(model) -> List[tf.Operation]:
    """The ops that update the averages of batch norms, but for those of copies that lead to no prediction."""
    used = {operation.name for operation in live.leading_to(tf.get_default_graph(), outputs())}
    found = {}
    for layer in model.submodules:
        for update in getattr(layer, "updates", ()):
            operation = getattr(update, "op", update)
            if operation.name in used:
                found[operation.name] = operation
    return list(found.values())


def _forward(operations: Iterable[tf.Operation]) -> Set[str]:
    found, pending = set(), list(operations)
    while pending:
        operation = pending.pop()
        if operation.name not in found:
            found.add(operation.name)
            for output in operation.outputs:
                pending.extend(output.consumers())
    return found
