"""What has to change in the OD API's own modules, as data; nothing is changed on disk.

Found by running tf-object-detection-api 0.1 (upstream's last state) on TensorFlow 2.21 with numpy 2 and
Pillow 13. Each row is the smallest edit: a fragment of one line and what stands there instead. Rows are
applied to a module's source while it is imported (see import_hook.py); a row whose fragment is not
in the module is skipped, since a tree of another generation may not need it.
"""

from typing import Dict, Tuple

# module -> ((fragment, replacement), ...)
SOURCE_CHANGES: Dict[str, Tuple[Tuple[str, str], ...]] = {
    # The custom op's kernel went with contrib; ours has the same signature and results.
    "object_detection.matchers.bipartite_matcher": (
        (
            "from tensorflow.contrib.image.python.ops import image_ops",
            "from od_qat.od_api import bipartite as image_ops",
        ),
    ),
    # The stand-alone Keras, which TF 1.15 neither needs nor brings.
    "object_detection.models.keras_models.resnet_v1": (
        (
            "from keras.applications import resnet",
            "try:\n  from keras.applications import resnet\n"
            "except ImportError:\n  from tensorflow.keras.applications import resnet",
        ),
    ),
    # TransformGraph is gone from TF 2.
    "object_detection.export_tflite_ssd_graph_lib": (
        (
            "from tensorflow.tools.graph_transforms import TransformGraph",
            "from od_qat.od_api.graph_transforms import TransformGraph",
        ),
    ),
    "object_detection.builders.optimizer_builder": (
        (
            "from tensorflow.contrib import opt as tf_opt",
            "from od_qat.od_api import moving_average as tf_opt",
        ),
    ),
    # Names that numpy 1.24 and 2.0 removed.
    "object_detection.utils.metrics": (
        ("np.float or", "np.float64 or"),
        ("!= np.float and", "!= np.float64 and"),
        ("!= np.float:", "!= np.float64:"),
        ("np.NAN", "np.nan"),
    ),
    "object_detection.metrics.tf_example_parser": (("dtype=np.float)", "dtype=np.float64)"),),
    "nets.mobilenet.mobilenet_v3": (("np.int(", "int("),),
    # Pillow 10 removed font.getsize.
    "object_detection.utils.visualization_utils": (
        ("font.getsize(ds)[1]", "font.getbbox(ds)[3]"),
        ("= font.getsize(display_str)", "= font.getbbox(display_str)[2:]"),
    ),
    # contrib's HParams: a record with attributes.
    "nets.nasnet.nasnet": (
        (
            "from tensorflow.contrib import training as contrib_training",
            "from od_qat.od_api import hparams as contrib_training",
        ),
    ),
    "nets.nasnet.pnasnet": (
        (
            "from tensorflow.contrib import training as contrib_training",
            "from od_qat.od_api import hparams as contrib_training",
        ),
    ),
}

# module -> {attribute: "our module:our attribute"}, set once the module has run.
REPLACED_ATTRIBUTES: Dict[str, Dict[str, str]] = {
    "object_detection.builders.graph_rewriter_builder": {"build": "od_qat.od_api.graph_rewriter:build"},
    "object_detection.legacy.trainer": {"train": "od_qat.trainer:train"},
    "object_detection.legacy.evaluator": {"evaluate": "od_qat.evaluator:evaluate"},
    "object_detection.exporter": {
        "profile_inference_graph": "od_qat.od_api.graph_transforms:profile_inference_graph"
    },
    "object_detection.model_lib_v2": {
        "train_loop": "od_qat.od_api.refusals:train_loop",
        "eval_continuously": "od_qat.od_api.refusals:eval_continuously",
    },
    "object_detection.exporter_lib_v2": {
        "export_inference_graph": "od_qat.od_api.refusals:export_inference_graph"
    },
    "object_detection.export_tflite_graph_lib_tf2": {
        "export_tflite_model": "od_qat.od_api.refusals:export_tflite_model"
    },
}

# The same, for functions of ours that get what they stand for as their first argument.
WRAPPED_ATTRIBUTES: Dict[str, Dict[str, str]] = {
    "object_detection.model_lib": {
        "create_estimator_and_inputs": "od_qat.od_api.refusals:create_estimator_and_inputs"
    },
}
