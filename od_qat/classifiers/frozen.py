"""Freezes a classifier, from the preprocessed image to the probabilities, with the JSON beside it."""

import os
from typing import Any, Callable, Dict, NamedTuple, Optional

from od_qat import checkpoints
from od_qat.classifiers import preparation
from od_qat.classifiers.inputs import Classes
from od_qat.classifiers.networks import Network
from od_qat.classifiers.preparation import Preparation
from od_qat.compat import tf
from od_qat.export import freeze
from od_qat.model_files import description, names, output_nodes
from od_qat.model_files.preprocessing import Preprocessing


class Frozen(NamedTuple):
    """A frozen classifier.

    Attributes:
      graph_def: from names.CLASSIFIER_INPUT to `output`.
      output: op name of the probabilities.
      excluded: names of the layers that a rule keeps float.
      stays_float: op -> why it stays float for other reasons.
    """

    graph_def: Any
    output: str
    excluded: frozenset
    stays_float: Dict[str, str]


def freeze_network(
    network: Network, hook: Optional[Callable], checkpoint: str, batch: Optional[int] = None
) -> Frozen:
    """Builds the inference graph of a network, rewrites it, restores it strictly, and freezes it.

    Args:
      network: the network.
      hook: rewrites the default graph for evaluation; None for a float network.
      checkpoint: prefix.
      batch: number of images; None for any.

    Raises:
      CheckpointError, ExportError: see freeze.freeze.
    """
    with tf.Graph().as_default() as graph:
        images = tf.placeholder(tf.float32, [batch] + list(network.input_shape), names.CLASSIFIER_INPUT)
        network.build(images, is_training=False)
        (output,) = output_nodes.find_output_nodes(graph.as_graph_def()).names
        report = hook() if hook else None
        graph_def = freeze.freeze(checkpoint, [output])
    if report is None:
        return Frozen(graph_def, output, frozenset(), {})
    return Frozen(graph_def, output, report.excluded, report.stays_float)


def describe(
    path: str,
    network: Network,
    output: str,
    classes: Classes,
    checkpoint: str,
    quantized: bool,
    prepared: Preparation,
    dtype: str = "float32",
    of_image: Optional[Preprocessing] = None,
) -> Dict[str, Any]:
    """Returns the content of the JSON beside a classifier.

    Args:
      path: of the model.
      network: the network.
      output: name of the tensor of the probabilities.
      classes: names and labels of its classes.
      checkpoint: prefix.
      quantized: whether it is.
      prepared: what is done to an image before.
      dtype: of the image.
      of_image: from pixels to the numbers that the model takes, if these are others than the network's.
    """
    return description.content(
        path,
        inputs=[
            {
                "name": names.CLASSIFIER_INPUT + ":0",
                "shape": [None] + list(network.input_shape),
                "dtype": dtype,
            }
        ],
        outputs=[{"name": output, "role": description.PROBABILITIES}],
        preprocessing=prepared.as_json(network, of_image),
        class_id_offset=classes.labels_offset,
        checkpoint=os.path.basename(checkpoint),
        global_step=checkpoints.global_step(checkpoint),
        quantized=quantized,
        labels=list(classes.names),
    )


def export(
    network: Network,
    hook: Optional[Callable],
    checkpoint: str,
    path: str,
    classes: Classes,
) -> str:
    """Writes a frozen classifier and the JSON beside it; returns its path.

    Args:
      network, hook, checkpoint: as for :func:`freeze_network`.
      path: of the .pb.
      classes: names and labels of its classes.
    """
    found = freeze_network(network, hook, checkpoint)
    quantized = freeze.is_quantised(found.graph_def)
    prepared = preparation.of_network(network)
    beside = describe(path, network, found.output + ":0", classes, checkpoint, quantized, prepared)
    description.write(path, found.graph_def.SerializeToString(), beside)
    return path
