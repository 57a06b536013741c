"""`import od_qat.plugin_tf2` lets programs of the OD API's TF 2 half run on this TensorFlow, with QAT.

Import it before `object_detection`. It leaves TensorFlow in its own mode, eager in TensorFlow 2. A training,
evaluation or export whose config has a graph_rewriter block is carried out by od_qat, which switches to graph
mode meanwhile; without a block it is upstream's own. Otherwise it does what od_qat.plugin does.
"""

from od_qat import compat
from od_qat.od_api import import_hook, layers_proto, locate

compat.restore_names()
locate.add_to_path()
import_hook.install()
layers_proto.extension()
