"""Makes a SavedModel of TensorFlow 2 from a frozen network, and the post-processing that it may end in.

`tf.saved_model.load` gives an object to call, with the signature `serving_default`, as it does for what
upstream's exporter_lib_v2 and export_tflite_graph_lib_tf2 (tf-object-detection-api 0.1) write. The network is
in it as constants. TensorFlow saves such models eagerly only, so an eager context is opened for that.
"""

import tempfile
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import numpy as np
from google.protobuf import text_format

from od_qat import compat, files
from od_qat.compat import tf
from od_qat.export.tflite import PostProcess
from od_qat.model_files.names import POST_PROCESS
from od_qat.quiet import native_stderr_silenced

FOLDER = "saved_model"


def content(
    graph_def,
    feed: str,
    fetches: Mapping[str, str],
    spec: Any,
    start: Optional[Callable[[Any], Any]] = None,
    finish: Optional[Callable[[Dict[str, Any], Any], Any]] = None,
    state: Optional[np.ndarray] = None,
) -> Dict[str, bytes]:
    """The files of a SavedModel, by their paths, which begin with FOLDER.

    Args:
      graph_def: frozen GraphDef.
      feed: name of the op that is the network's input, a placeholder.
      fetches: name of each output -> name of its op.
      spec: tf.TensorSpec of the input, with its name in the signature.
      start: makes the network's input from that of the signature; by default they are the same.
      finish: makes the results from the outputs by name and the state; by default they are the outputs.
      state: the value of a variable of the model. The converter calls the outputs of a model with variables
        StatefulPartitionedCall, which programs look for.
    """

    with tempfile.TemporaryDirectory() as folder:
        with compat.eager(), native_stderr_silenced():
            # (It takes the loops of TensorFlow 1, which a tf.function would not.)
            graph = tf.wrap_function(lambda: tf.import_graph_def(graph_def, name=""), [])
            network = graph.prune(feed + ":0", {key: name + ":0" for key, name in fetches.items()})

            module = tf.Module()
            module.state = None if state is None else tf.Variable(state, trainable=False)

            def call(image):
                results = network(start(image) if start else image)
                return finish(results, module.state) if finish else results

            module.__call__ = tf.function(call, input_signature=[spec])
            tf.saved_model.save(module, folder, signatures=module.__call__.get_concrete_function())
        return files.read_folder(folder, FOLDER)


def post_process(parameters: PostProcess) -> Callable[[Any, Any, Any], Tuple]:
    """A function of raw heads that TensorFlow's converter replaces by TFLite_Detection_PostProcess.

    The converter knows it by the attribute `_implements`. TensorFlow runs the function itself, which decodes
    and suppresses boxes class by class.

    Args:
      parameters: of the op.

    Returns:
      a function of the encoded boxes [1, N, 4], scores [1, N, classes + 1] and anchors [N, 4] (centre y,
      centre x, height, width). It returns boxes [1, D, 4], classes from 0 [1, D], scores [1, D] and their
      number [1], float32, in the order of the op's outputs.
    """
    scales = np.array([parameters.y_scale, parameters.x_scale, parameters.h_scale, parameters.w_scale])

    @tf.function(experimental_implements=_implements(parameters))
    def implemented(boxes, scores, anchors):
        centre, size = tf.split(boxes / scales.astype(np.float32), 2, axis=-1)
        centre = centre * anchors[:, 2:] + anchors[:, :2]
        half = tf.exp(size) * anchors[:, 2:] / 2.0
        found = tf.image.combined_non_max_suppression(
            tf.concat([centre - half, centre + half], -1)[:, :, None],
            scores[:, :, 1:],
            max_output_size_per_class=parameters.detections_per_class,
            max_total_size=parameters.max_detections,
            iou_threshold=parameters.iou_threshold,
            score_threshold=parameters.score_threshold,
            clip_boxes=False,
        )
        count = tf.cast(found.valid_detections, tf.float32)
        return found.nmsed_boxes, found.nmsed_classes, found.nmsed_scores, count

    return implemented


def _implements(parameters: PostProcess) -> str:
    """The value of the attribute: the op's name and attributes, a NameAttrList in text format."""
    found = tf.AttrValue().func
    found.name = POST_PROCESS
    parameters.put_into(found.attr)
    return text_format.MessageToString(found, as_one_line=True)
