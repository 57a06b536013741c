"""All changes that od_qat makes in the OD API's own modules, as data.

They are made in two ways. `import od_qat.plugin` makes them in memory while the modules are imported
(import_hook.py), for a tree of any age. `od-qat patch` (patching/) puts the patches of `patches/` into a
tree; these are the same changes as files, which tests/generations/record.py writes.

The changes were found by running tf-object-detection-api 0.1 (upstream's last state) on TensorFlow 2.21 with
numpy 2 and Pillow 13. Each row is the smallest edit: a fragment of a line and its replacement, or a line at
the end of the module. In memory, a row is skipped if its fragment is not in the module, since a tree of
another generation may not need it, or if the module already has the change.
"""

from typing import Dict, NamedTuple, Tuple

# The fragment of a row whose replacement becomes the module's last line.
END = ""

# module -> ((fragment, replacement), ...)
Changes = Dict[str, Tuple[Tuple[str, str], ...]]

# The series of patches, by the year of the first tree that each goes into. Trees of 2019 use
# tensorflow.contrib throughout and run on TensorFlow 1.15 only; the later ones differ in where they look for
# Keras.
SERIES = ("2019", "2020", "2021", "2022", "2023")
_LATER = SERIES[1:]


class Patch(NamedTuple):
    """One patch. Several series can have it.

    Attributes:
      name: of its file, without the extension.
      why: the text at the top of its file.
      series: the series that have it; empty if the changes are made in memory only.
      changes: module -> rows.
      in_memory: whether the plugin makes these changes too.
    """

    name: str
    why: str
    series: Tuple[str, ...]
    changes: Changes
    in_memory: bool = True


def _before(line: str, added: str, indent: str = "") -> Tuple[str, str]:
    """A row that puts lines above the one that starts with `line`."""
    lines = "".join(indent + one + "\n" for one in added.splitlines())
    return "\n" + indent + line, "\n" + lines + indent + line


def _replaced(function: str) -> Tuple[str, str]:
    """A row that puts a function of hand_over.py in the place of a module's own."""
    added = "from od_qat.od_api import hand_over\n@hand_over.{}.replaces".format(function)
    return _before("def {}(".format(function), added)


_COMMANDS = (
    "object_detection.legacy.train",
    "object_detection.legacy.eval",
    "object_detection.export_inference_graph",
    "object_detection.export_tflite_ssd_graph",
    "object_detection.model_main",
)


def _set_up(first_import: str) -> Changes:
    """The changes that make the commands import od_qat.plugin before their own first import."""
    return {module: (_before(first_import, "import od_qat.plugin"),) for module in _COMMANDS}


# What slim's commands for classifiers need.
_REWRITER = (
    _before("import tensorflow.compat.v1 as tf", "import od_qat.plugin"),
    ("from tensorflow.contrib import quantize as contrib_quantize", "import od_qat as contrib_quantize"),
)
_EVALUATE_ONCE = (
    _before("from datasets import dataset_factory", "from od_qat.classifiers import hand_over"),
    ("  slim.evaluation.evaluate_once(", "  hand_over.evaluate_once("),
)

_KERAS = "object_detection.models.keras_models.resnet_v1"
_KERAS_RESNET = "from od_qat.od_api.on_demand import keras_resnet as resnet"
_REFUSE = "from od_qat.od_api import refusals\nrefusals.refuse_block('object_detection.{}', {})"
_ON_DEMAND = "from od_qat.od_api.on_demand import"
_HPARAMS = (
    (
        "from tensorflow.contrib import training as contrib_training",
        "from od_qat.od_api import hparams as contrib_training",
    ),
)

PATCHES: Tuple[Patch, ...] = (
    Patch(
        "set-up-2019",
        "The commands know the extension of the graph_rewriter block before they read a config.",
        ("2019",),
        _set_up("import tensorflow as tf"),
        in_memory=False,  # (the plugin is this set-up)
    ),
    Patch(
        "set-up",
        "The commands set TensorFlow up for the TF 1 half (graph mode, legacy Keras, the names that tf-slim\n"
        "expects) before anything else imports it, and know the extension of the graph_rewriter block.",
        _LATER,
        _set_up("import tensorflow.compat.v1 as tf"),
        in_memory=False,
    ),
    Patch(
        "drop-ins",
        "A graph_rewriter block is carried out by od_qat, and training and evaluation are od_qat's:\n"
        "restoring is strict, ranges are watched. Each module keeps its own function and hands the name\n"
        "over at its end. An Estimator's input is checked first, and the model it exports is rewritten,\n"
        "which upstream leaves float.",
        SERIES,
        {
            "object_detection.builders.graph_rewriter_builder": (
                (END, "from od_qat.od_api.hand_over import build"),
            ),
            "object_detection.legacy.trainer": ((END, "from od_qat.od_api.hand_over import train"),),
            "object_detection.legacy.evaluator": ((END, "from od_qat.od_api.hand_over import evaluate"),),
            "object_detection.model_lib": (
                _before(
                    "exported_output = exporter_lib.add_output_tensor_nodes(detections)",
                    "if 'graph_rewriter_config' in configs:\n"
                    "  graph_rewriter_builder.build(configs['graph_rewriter_config'], is_training=False)()",
                    "      ",
                ),
                (
                    END,
                    "from od_qat.od_api import hand_over\n"
                    "create_estimator_and_inputs = hand_over.checked(create_estimator_and_inputs)",
                ),
            ),
        },
    ),
    Patch(
        "contrib",
        "tensorflow.contrib went with TensorFlow 1. Our own stand-ins have the same signatures, results and\n"
        "variable names.",
        _LATER,
        {
            # The kernel of its custom op is in contrib.
            "object_detection.matchers.bipartite_matcher": (
                (
                    "from tensorflow.contrib.image.python.ops import image_ops",
                    "from od_qat.od_api import bipartite as image_ops",
                ),
            ),
            # TF 2 has no TransformGraph.
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
            # These two use contrib's tfprof and graph_matcher.
            "object_detection.exporter": (
                (
                    END,
                    "from od_qat.od_api.graph_transforms import "
                    "profile_inference_graph, rewrite_nn_resize_op",
                ),
            ),
            # These use contrib's HParams, a record with attributes.
            "nets.nasnet.nasnet": _HPARAMS,
            "nets.nasnet.pnasnet": _HPARAMS,
        },
    ),
    Patch(
        "removed-names",
        "Names that numpy 1.24 and 2.0 and Pillow 10 removed.",
        _LATER,
        {
            "object_detection.metrics.tf_example_parser": (("dtype=np.float)", "dtype=np.float64)"),),
            "nets.mobilenet.mobilenet_v3": (("np.int(", "int("),),
            "object_detection.utils.visualization_utils": (
                ("font.getsize(ds)[1]", "font.getbbox(ds)[3]"),
                ("= font.getsize(display_str)", "= font.getbbox(display_str)[2:]"),
            ),
        },
    ),
    Patch(
        "metrics",
        "Names that numpy 1.24 and 2.0 removed.",
        ("2020", "2021", "2022"),
        {
            "object_detection.utils.metrics": (
                ("np.float or", "np.float64 or"),
                ("!= np.float and", "!= np.float64 and"),
                ("!= np.float:", "!= np.float64:"),
                ("!= np.bool:", "!= np.bool_:"),
                ("np.NAN", "np.nan"),
            ),
        },
    ),
    Patch(
        "metrics-2023",
        "A name that numpy 2.0 removed; upstream took out the others in 2023.",
        ("2023",),
        {"object_detection.utils.metrics": (("np.NAN", "np.nan"),)},
    ),
    Patch(
        "keras-2020",
        "The ResNets of 18 and 34 layers are made of functions inside of Keras, which have moved.",
        ("2020",),
        {_KERAS: (("from tensorflow.python.keras.applications import resnet", _KERAS_RESNET),)},
    ),
    Patch(
        "keras-2021",
        "The same for trees of 2021.",
        ("2021",),
        {_KERAS: (("from keras.applications import resnet", _KERAS_RESNET),)},
    ),
    Patch(
        "keras-2022",
        "The same for trees of 2022 on.",
        ("2022", "2023"),
        {_KERAS: (("from keras.applications import resnet", _KERAS_RESNET),)},
    ),
    Patch(
        "estimator-2020",
        "`tf.estimator` left TensorFlow in 2.16. Later trees import it, which od_qat's set-up answers.",
        ("2020",),
        {
            "object_detection.model_lib": (
                (
                    "\nimport tensorflow.compat.v1 as tf\nimport tensorflow.compat.v2 as tf2\n",
                    "\nimport tensorflow.compat.v1 as tf\nimport tensorflow.compat.v2 as tf2\n"
                    "from tensorflow.compat.v1 import estimator as _\n",
                ),
            ),
        },
    ),
    Patch(
        "tpu-export",
        "The exporter for TPUs builds a float graph, whatever the config says. It stops at a graph_rewriter\n"
        "block and says what to run.",
        SERIES,
        {
            "object_detection.tpu_exporters.export_saved_model_tpu_lib": (
                _before(
                    "with tf.gfile.GFile(pipeline_config_file, 'r') as config_file:",
                    _REFUSE.format("tpu_exporters.export_saved_model_tpu", "pipeline_config_file"),
                    "  ",
                ),
            ),
        },
    ),
    Patch(
        "set-up-tf2",
        "The commands of the TF 2 half find what they import on this TensorFlow, and know the extension of\n"
        "the graph_rewriter block.",
        _LATER,
        {
            module: (_before("from absl import " + first, "import od_qat.plugin_tf2"),)
            for module, first in (
                ("object_detection.model_main_tf2", "flags"),
                ("object_detection.exporter_main_v2", "app"),
                ("object_detection.export_tflite_graph_tf2", "app"),
            )
        },
        in_memory=False,  # (the plugin is this set-up)
    ),
    Patch(
        "tf2-drop-ins",
        "A graph_rewriter block is carried out by od_qat in the TF 2 half too. Without a block, an eager\n"
        "program runs the module's own function.",
        _LATER,
        {
            "object_detection.model_lib_v2": (_replaced("train_loop"), _replaced("eval_continuously")),
            "object_detection.exporter_lib_v2": (_replaced("export_inference_graph"),),
            "object_detection.export_tflite_graph_lib_tf2": (_replaced("export_tflite_model"),),
        },
    ),
    Patch(
        "classifiers",
        "slim's commands for MobileNet V1 rewrite with od_qat, and the evaluation leaves a frozen graph.",
        _LATER,
        {
            "nets.mobilenet_v1_train": _REWRITER,
            "nets.mobilenet_v1_eval": _REWRITER
            + _EVALUATE_ONCE
            + (
                ("names_to_values.iteritems()", "names_to_values.items()"),
                ("return names_to_updates.values()", "return list(names_to_updates.values())"),
            ),
        },
    ),
    Patch(
        "image-classifiers",
        "The same for slim's scripts for any network, which are in clones of TensorFlow models only.",
        _LATER,
        {
            "train_image_classifier": _REWRITER,
            "eval_image_classifier": _REWRITER + _EVALUATE_ONCE,
            "export_inference_graph": _REWRITER,
        },
    ),
    Patch(
        "on-demand",
        "Packages that only some models of the TF 2 half need are asked for when such a model is built.",
        (),
        {
            "object_detection.meta_architectures.deepmac_meta_arch": (
                ("import tensorflow_io as tfio", "from od_qat.od_api.on_demand import tensorflow_io as tfio"),
            ),
            "object_detection.models.ssd_efficientnet_bifpn_feature_extractor": (
                ("from official.legacy.image_classification.efficientnet import", _ON_DEMAND),
                ("from official.vision.image_classification.efficientnet import", _ON_DEMAND),
            ),
            "object_detection.builders.optimizer_builder": (
                ("from official.modeling.optimization import ema_optimizer", _ON_DEMAND + " ema_optimizer"),
            ),
        },
    ),
)

# What the plugin changes in memory.
SOURCE_CHANGES: Changes = {}
for _patch in PATCHES:
    for _module, _rows in _patch.changes.items() if _patch.in_memory else ():
        SOURCE_CHANGES[_module] = SOURCE_CHANGES.get(_module, ()) + _rows


def changed(source: str, rows: Tuple[Tuple[str, str], ...]) -> str:
    """Returns a module's source with its changes. It does not repeat those that the source already has.

    Args:
      source: the text of the module, with \\n as line ends.
      rows: the module's rows.
    """
    for fragment, replacement in rows:
        if fragment == END:
            if replacement not in source:
                source = "{}\n{}\n".format(source.rstrip("\n"), replacement)
        elif not (fragment in replacement and replacement in source):
            source = source.replace(fragment, replacement)
    return source
