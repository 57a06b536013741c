"""TensorFlow 2's object-based checkpoints, for a graph with a session and tf.train.Saver.

Such a checkpoint holds a graph of objects beside its tensors: which object has which children, by the names
of attributes, and which tensors. tf.train.Checkpoint writes them in upstream's model_main_tf2, and the TF 2
zoo has them. To restore, TensorFlow walks the checkpoint's objects and the program's from their roots, along
children of the same names. :func:`match` does the same, and returns a plain map from keys to variables, which
tf.train.Saver and the rest of od_qat work with. (Keys alone do not tell what fills what: a variable that can
be reached in two ways has the key of the way that was found first, which may be another one in the program.)

What is of od_qat alone (ranges, averages) is below one child of the root, EDGE. Eager code of upstream's does
not know it, and restores the model without it.
"""

import collections
from typing import Dict, Mapping, NamedTuple, Optional, Set, Tuple

from od_qat import compat
from od_qat.checkpoints.on_disk import damaged, shapes, tensors
from od_qat.compat import tf
from od_qat.errors import CheckpointError, ConfigError

# The child of the root that has the variables that upstream's model does not have.
EDGE = "od_qat"
# tf.train.Checkpoint numbers its checkpoints with this child of the root, and asks for it when it restores.
_COUNTER = "save_counter"
_COUNTER_KEY = "save_counter/.ATTRIBUTES/VARIABLE_VALUE"
# The number at the end of a checkpoint's prefix, or of the prefix of one of its shards.
_NUMBER = r"^(?s:.*?)(?:-(\d{1,18}))?(?:(?:_temp[/\\]part|\.part)-\d+-of-\d+)?$"

_SAME_MODEL = "use the pipeline.config it was trained with"


class Match(NamedTuple):
    """What a checkpoint fills, by key in the checkpoint, unless something else is said.

    Attributes:
      filled: key -> variable; the shapes are the same.
      other_shapes: key -> variable whose shape is another one.
      missing: key that a checkpoint of the same objects would have -> variable that this one does not have.
      unused: keys of variables of these objects in the checkpoint, which nothing here takes.
      elsewhere: keys of other objects (as the optimizer, if it was not asked for) and of slot variables that
        nothing here takes.
    """

    filled: Dict[str, object]
    other_shapes: Dict[str, object]
    missing: Dict[str, object]
    unused: Tuple[str, ...]
    elsewhere: Tuple[str, ...]

    def needed(self) -> Dict[str, object]:
        """Returns all variables by their keys, as `require_all` and `plan_fine_tune` take them."""
        return dict(self.missing, **dict(self.other_shapes, **self.filled))


def is_object_based(prefix: str) -> bool:
    """Whether a checkpoint is one of TensorFlow 2's; TF 1's have the names of variables only.

    Raises:
      CheckpointError: if it is missing or damaged; see `shapes`.
    """
    return compat.OBJECT_GRAPH_KEY in shapes(prefix)


def match(prefix: str, objects: Mapping[str, object], extra: Optional[Mapping[str, object]] = None) -> Match:
    """Finds out which variables a checkpoint fills, as the restoring of tf.train.Checkpoint does.

    Slot variables of optimizers among the objects are matched too, by the variable that they belong to.

    Args:
      prefix: prefix of an object-based checkpoint.
      objects: name -> trackable object (layer, tf.Module, tf.train.Checkpoint, variable), as they are given
        to tf.train.Checkpoint. Layers must be built.
      extra: name -> variable, as it was given to `saver`.

    Raises:
      CheckpointError: if the checkpoint is missing, damaged or name-based, or if a variable has another type
        there, or two values.
    """
    graph = _object_graph(prefix)
    root = _root(objects, extra)
    try:
        bound = _walk(graph, root)
        below = _below(graph, set(objects) | ({EDGE} if extra else set()))
    except IndexError as error:
        raise damaged(prefix, "its object graph refers to a node that is not there") from error
    available, types = shapes(prefix), tf.train.NewCheckpointReader(prefix).get_variable_to_dtype_map()
    filled, other_shapes, taken = {}, {}, {}
    for node, thing in bound.items():
        key = _key(graph.nodes[node]) if compat.is_variable(thing) else None
        if key is None:
            continue
        if key not in available:
            raise damaged(prefix, "{} is in its object graph, its value is not there".format(key))
        if taken.setdefault(id(thing), key) != key:
            raise CheckpointError(
                "the checkpoint is of another model: it has two values for a variable that is shared here",
                where=prefix,
                found="{} and {}".format(taken[id(thing)], key),
                fix=_SAME_MODEL,
            )
        if types[key] != thing.dtype.base_dtype:
            raise CheckpointError(
                "the checkpoint is of another model: a variable has another type",
                where=prefix,
                found="{} is {}".format(key, types[key].name),
                allowed=thing.dtype.base_dtype.name,
                fix=_SAME_MODEL,
            )
        same = available[key] == thing.shape.as_list()
        (filled if same else other_shapes)[key] = thing
    missing = {key: each for key, each in _keys(root)[0].items() if id(each) not in taken}
    unused, elsewhere = [], []
    for number, node in enumerate(graph.nodes):
        for attribute in node.attributes:
            key = attribute.checkpoint_key
            if key not in filled and key not in other_shapes and key != _COUNTER_KEY:
                (unused if number in below else elsewhere).append(key)
    return Match(filled, other_shapes, missing, tuple(sorted(unused)), tuple(sorted(elsewhere)))


def keys(objects: Mapping[str, object], extra: Optional[Mapping[str, object]] = None) -> Dict[str, object]:
    """Returns the keys that a checkpoint of these objects has, and the variable of each.

    Args:
      objects: as for `match`.
      extra: name -> variable that upstream's objects do not have.

    Raises:
      CheckpointError: if an object has state that is no variable, as a hash table.
      ConfigError: if an object has a name that is taken.
    """
    return _keys(_root(objects, extra))[0]


def extra_keys(prefix: str) -> Dict[str, str]:
    """Returns the names of what `saver` wrote as `extra`, and the key of each; upstream's have none.

    Raises:
      CheckpointError: if the checkpoint is missing, damaged or name-based.
    """
    graph = _object_graph(prefix)
    try:
        children = _children(graph.nodes[0])
        found = _children(graph.nodes[children[EDGE]]) if EDGE in children else {}
        return {name: _key(graph.nodes[number]) for name, number in found.items()}
    except IndexError as error:
        raise damaged(prefix, "its object graph refers to a node that is not there") from error


def saver(objects: Mapping[str, object], extra: Optional[Mapping[str, object]] = None, **options):
    """Returns a tf.train.Saver of the default graph that writes object-based checkpoints.

    Eager code restores them by `tf.train.Checkpoint(**objects).restore(prefix)`, and continues with the next
    number: the checkpoint's save counter is the number in its name (of `global_step`), or 0.

    The saver restores what it wrote itself. For other checkpoints of the same objects see `match`.

    Args:
      objects: as for `match`.
      extra: name -> variable that upstream's objects do not have. The names may have slashes.
      **options: of tf.train.Saver (`max_to_keep` and so on), but not `var_list` or `builder`.

    Raises:
      CheckpointError: if an object has state that is no variable, as a hash table.
      ConfigError: if an object has a name that is taken.
    """
    variables, graph = _keys(_root(objects, extra))
    counter = graph.nodes.add()
    counter.attributes.add(name=compat.VARIABLE_VALUE, full_name=_COUNTER, checkpoint_key=_COUNTER_KEY)
    counter.has_checkpoint_values.value = True
    graph.nodes[0].children.add(node_id=len(graph.nodes) - 1, local_name=_COUNTER)
    content = graph.SerializeToString()

    def beside_variables(prefix):
        number = tf.strings.regex_replace(prefix, _NUMBER, r"\1")
        return {
            compat.OBJECT_GRAPH_KEY: tf.constant(content),
            _COUNTER_KEY: tf.strings.to_number(tf.strings.join(["0", number]), tf.int64),
        }

    writer = compat.checkpoint_writer(min(variables), beside_variables)
    return tf.train.Saver(variables, builder=writer, **options)


def require(prefix: str) -> None:
    """Raises unless a checkpoint is one of TensorFlow 2's.

    Raises:
      CheckpointError: if it is name-based, missing or damaged.
    """
    if not is_object_based(prefix):
        raise CheckpointError(
            "the checkpoint is one of TensorFlow 1, and the model is one of TensorFlow 2",
            where=prefix,
            found="the names of variables only, without an object graph",
            fix="use a checkpoint of the TF 2 zoo (its folder `checkpoint` has ckpt-0) or of a training of "
            "this model, or the TF 1 config of the same model",
        )


def _object_graph(prefix: str):
    require(prefix)
    (content,) = tensors(prefix, [compat.OBJECT_GRAPH_KEY])
    try:
        graph = compat.parsed_object_graph(content)
    except ValueError as error:
        raise damaged(prefix, str(error)) from error
    if not graph.nodes:
        raise damaged(prefix, "its object graph is empty")
    return graph


def _root(objects: Mapping[str, object], extra: Optional[Mapping[str, object]]):
    for name in (EDGE, _COUNTER):
        if name in objects:
            raise ConfigError("the name {} of an object is taken in checkpoints".format(name))
    children = dict(objects)
    if extra:
        children[EDGE] = compat.group_of_objects(extra)
    return compat.group_of_objects(children)


def _walk(graph, root) -> Dict[int, object]:
    """Returns the objects of ours by the number of their node in the checkpoint's graph.

    As when TensorFlow restores: breadth first, and a node has the object that was found first.
    """
    bound = {0: root}
    queue = collections.deque([0])
    while queue:
        number = queue.popleft()
        child_named = compat.children_of(bound[number])
        for child in graph.nodes[number].children:
            if child.node_id in bound:
                continue
            graph.nodes[child.node_id]  # (raises if it is not there)
            found = child_named(child.local_name)
            if found is not None:
                bound[child.node_id] = found
                queue.append(child.node_id)
    for number, optimizer in list(bound.items()):
        for slot in graph.nodes[number].slot_variables:
            graph.nodes[slot.slot_variable_node_id]
            original = bound.get(slot.original_variable_node_id)
            found = None if original is None else compat.slot_variable(optimizer, original, slot.slot_name)
            if found is not None:
                bound.setdefault(slot.slot_variable_node_id, found)
    return bound


def _below(graph, names: Set[str]) -> Set[int]:
    """Returns the nodes below children of the root."""
    queue = [child.node_id for child in graph.nodes[0].children if child.local_name in names]
    below: Set[int] = set()
    while queue:
        number = queue.pop()
        if number not in below:
            below.add(number)
            queue.extend(child.node_id for child in graph.nodes[number].children)
    return below


def _keys(root) -> Tuple[Dict[str, object], object]:
    """Returns the variables below an object by their keys, and the object graph."""
    graph, objects = compat.object_graph(root)
    found: Dict[str, object] = {}
    for node, thing in zip(graph.nodes, objects):
        for attribute in node.attributes:
            if not compat.is_variable(thing):
                raise CheckpointError(
                    "an object of the model has state that a graph's checkpoint cannot hold",
                    where=attribute.checkpoint_key,
                    found=type(thing).__name__,
                    allowed="variables",
                )
            found[attribute.checkpoint_key] = thing
    return found, graph


def _key(node) -> Optional[str]:
    """Returns the key of the variable of a node; None if it has none."""
    for attribute in node.attributes:
        if attribute.name == compat.VARIABLE_VALUE:
            return attribute.checkpoint_key
    return None


def _children(node) -> Dict[str, int]:
    return {child.local_name: child.node_id for child in node.children}
