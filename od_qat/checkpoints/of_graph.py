"""The names that the variables of the default graph have in checkpoints, and the saver that writes them.

A TF 1 model's checkpoints have the names of its variables' ops. A graph with a Keras model (see OBJECTS)
reads and writes object-based checkpoints, as upstream's TF 2 half does: the model and the step are its
objects, and all that upstream does not have (ranges, the optimizer's slots) stands beside them.
"""

from typing import Dict, List, Mapping, Optional

from od_qat import compat
from od_qat.checkpoints import object_based
from od_qat.checkpoints.names import OBJECTS
from od_qat.checkpoints.on_disk import shapes, step_of, tensors
from od_qat.compat import tf
from od_qat.errors import CheckpointError

# Upstream's name for the global step among the objects.
_STEP = "step"


def basename() -> str:
    """Returns the beginning of the names of the default graph's checkpoints, which differs between halves."""
    return "ckpt" if _objects() else "model.ckpt"


def saver(**options):
    """Returns a tf.train.Saver of all variables of the default graph.

    Args:
      **options: of tf.train.Saver, but not `var_list`.
    """
    objects = _objects()
    if not objects:
        return tf.train.Saver(save_relative_paths=True, **options)
    return object_based.saver(objects, _beside(objects), save_relative_paths=True, **options)


def named(prefix: str) -> Dict[str, object]:
    """Returns all variables of the default graph by the names that a checkpoint has for them.

    A variable that the checkpoint lacks has the name that it would have there.

    Args:
      prefix: checkpoint prefix.

    Raises:
      CheckpointError: in a graph with a Keras model, if the checkpoint is missing or damaged, or of a TF 1
        model.
    """
    objects = _objects()
    if not objects:  # (the checkpoint is not looked at: an evaluation may meet one that is gone)
        return {variable.op.name: variable for variable in tf.global_variables()}
    return object_based.match(prefix, objects, _beside(objects)).needed()


def global_step(prefix: str) -> Optional[int]:
    """Returns the step that a checkpoint is of; None if that is not known.

    An object-based checkpoint holds it, and has another number in its name if upstream wrote it. The name of
    a TF 1 checkpoint ends in it.

    Args:
      prefix: checkpoint prefix.

    Raises:
      CheckpointError: if the checkpoint is missing or damaged.
    """
    key = _STEP + "/.ATTRIBUTES/VARIABLE_VALUE"
    if key in shapes(prefix):
        (value,) = tensors(prefix, [key])
        return int(value)
    return step_of(prefix)


def require_kind(prefix: str) -> None:
    """Raises if a checkpoint is of one half of the OD API, and the default graph's model of the other.

    Raises:
      CheckpointError: in that case, and if the checkpoint is missing or damaged.
    """
    if _objects():
        object_based.require(prefix)
    elif object_based.is_object_based(prefix):
        raise CheckpointError(
            "the checkpoint is one of TensorFlow 2, and the model is one of TensorFlow 1",
            where=prefix,
            found="an object-based checkpoint",
            fix="use a checkpoint of a TF 1 model (model.ckpt-N), or a TF 2 config of the same model, whose "
            "feature extractor's type ends in _keras",
        )


def by_plain_name(variables: Mapping[str, object]) -> Dict[str, object]:
    """Returns variables by the names that messages use, given those by the names of a checkpoint.

    What stands beside the objects of an object-based checkpoint has the name of its op.
    """
    beside = object_based.EDGE + "/"
    return {v.op.name if name.startswith(beside) else name: v for name, v in variables.items()}


def plain_shapes(prefix: str) -> Dict[str, List[int]]:
    """Returns the shapes of the variables in a checkpoint, by the names that messages use.

    Raises:
      CheckpointError: if the checkpoint is missing or damaged.
    """
    found = shapes(prefix)
    if compat.OBJECT_GRAPH_KEY not in found:
        return found
    plain = {key: name for name, key in object_based.extra_keys(prefix).items()}
    return {plain.get(key, key): shape for key, shape in found.items()}


def _objects() -> Dict[str, object]:
    objects = dict(tf.get_collection(OBJECTS))
    step = tf.train.get_global_step()
    if objects and step is not None:
        objects[_STEP] = step
    return objects


def _beside(objects: Dict[str, object]) -> Dict[str, object]:
    """Returns the variables of the default graph that none of its objects has, by name."""
    of_objects = {id(variable) for variable in object_based.keys(objects).values()}
    return {v.op.name: v for v in tf.global_variables() if id(v) not in of_objects}
