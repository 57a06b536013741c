"""`import od_qat.plugin`: the TF 1 half of the OD API on this TensorFlow, with QAT, nothing changed on disk.

Import it before `object_detection`. It switches TensorFlow to graph mode, finds the OD API (the
environment's OD_API, else the installed one), hooks in the source changes, the rewriter, the drop-in trainer
and the drop-in evaluator, and makes the extension of the graph_rewriter block known.
"""

from od_qat import compat
from od_qat.od_api import import_hook, layers_proto, locate

compat.enable_tf1_behaviour()
locate.add_to_path()
import_hook.install()
# From here on a config may hold `[od_qat.layers] { ... }`, whoever parses it.
layers_proto.extension()
