"""`import od_qat.plugin` makes the TF 1 half of the OD API run on this TensorFlow, with QAT.

Import it before `object_detection`. It switches TensorFlow to graph mode and finds the OD API: the one that
the environment variable OD_API names, or the installed one. It changes the OD API's modules in memory, puts
the rewriter, the trainer and the evaluator of od_qat in their places, and registers the extension of the
graph_rewriter block. It changes nothing on disk.
"""

from od_qat import compat
from od_qat.od_api import import_hook, layers_proto, locate

compat.enable_tf1_behaviour()
locate.add_to_path()
import_hook.install()
# From now on a config may have `[od_qat.layers] { ... }`, whoever parses it.
layers_proto.extension()
