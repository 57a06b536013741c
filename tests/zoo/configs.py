"""The models of the zoo as configs and pictures, for processes with od_qat and for those without it."""

import os

import numpy as np
import yaml

CLASSES = 3
_FOLDER = os.path.dirname(os.path.abspath(__file__))


def rows(name):
    """The rows of a file of models, in order."""
    with open(os.path.join(_FOLDER, name), encoding="utf-8") as stream:
        found = yaml.safe_load(stream)
    names = [row["name"] for row in found]
    assert len(set(names)) == len(names)
    return found


def text(row):
    """The DetectionModel message of a detector's row, as text."""
    return {"ssd": _ssd, "faster_rcnn": _faster_rcnn, "center_net": _center_net}[row["kind"]](row)


def images_value(row):
    """Pixels for the eval graph's placeholder: smooth shapes and noise."""
    size = row["size"]
    rng = np.random.RandomState(5)
    ramp = np.arange(size, dtype=np.float32) * (255.0 / (size - 1))
    smooth = np.stack(np.broadcast_arrays(ramp[:, None], ramp[None, ::-1], 0.5 * (ramp[:, None] + ramp)), -1)
    return (0.6 * smooth + rng.uniform(0, 102, [1, size, size, 3])).astype(np.float32)


def two_images_value(row):
    """The pixels, and those of the picture upside down."""
    picture = images_value(row)
    return np.concatenate([picture, picture[:, ::-1]])


_CONV = """
    activation: {activation}
    regularizer {{ l2_regularizer {{ weight: 0.00004 }} }}
    initializer {{ truncated_normal_initializer {{ mean: 0.0 stddev: 0.03 }} }}
    batch_norm {{ scale: true center: true decay: 0.997 epsilon: 0.001 train: true }}
"""

_PREDICTORS = {
    "plain": "convolutional_box_predictor {{ kernel_size: 1 conv_hyperparams {{ {conv} }} }}",
    "depthwise": "convolutional_box_predictor {{ kernel_size: 3 use_depthwise: true "
    "conv_hyperparams {{ {conv} }} }}",
    "shared": "weight_shared_convolutional_box_predictor {{ depth: 32 kernel_size: 3 "
    "num_layers_before_predictor: 2 conv_hyperparams {{ {conv} }} }}",
    "shared_depthwise": "weight_shared_convolutional_box_predictor {{ depth: 32 kernel_size: 3 "
    "num_layers_before_predictor: 2 use_depthwise: true conv_hyperparams {{ {conv} }} }}",
}

_SSD = """
ssd {{
  num_classes: {classes}
  image_resizer {{ fixed_shape_resizer {{ height: {size} width: {size} }} }}
  feature_extractor {{
    type: "{net}" depth_multiplier: {depth} min_depth: 8 use_depthwise: {depthwise}
    override_base_feature_extractor_hyperparams: {override}
    conv_hyperparams {{ {conv} }}
    {more}
  }}
  box_coder {{ faster_rcnn_box_coder {{ }} }}
  matcher {{
    argmax_matcher {{ matched_threshold: 0.5 unmatched_threshold: 0.5 force_match_for_each_row: true }}
  }}
  similarity_calculator {{ iou_similarity {{ }} }}
  box_predictor {{ {predictor} }}
  anchor_generator {{ {anchors} }}
  post_processing {{ score_converter: SIGMOID }}
  normalize_loss_by_num_matches: true
  loss {{
    localization_loss {{ weighted_smooth_l1 {{ }} }}
    classification_loss {{ weighted_sigmoid_focal {{ alpha: 0.75 gamma: 2.0 }} }}
  }}
}}
"""


def _multiscale_anchors(low, high):
    return (
        "multiscale_anchor_generator { min_level: %d max_level: %d anchor_scale: 4.0 aspect_ratios: 1.0 "
        "aspect_ratios: 2.0 scales_per_octave: 1 }" % (low, high)
    )


def _ssd(row):
    conv = _CONV.format(activation=row.get("activation", "RELU_6"))
    more = row.get("shrink", "")
    if "levels" in row:
        low, high = row["levels"]
        anchors = _multiscale_anchors(low, high)
        width = {"fpn": "additional_layer_depth: 32", "bifpn": "num_iterations: 2 num_filters: 32"}
        pyramid = row.get("pyramid", "fpn")
        more += " %s { min_level: %d max_level: %d %s }" % (pyramid, low, high, width[pyramid])
    else:
        anchors = (
            "ssd_anchor_generator { num_layers: %d min_scale: 0.2 max_scale: 0.95 aspect_ratios: 1.0 "
            "aspect_ratios: 2.0 }" % row["layers"]
        )
        if row["predictor"].startswith("shared"):  # one predictor needs as many anchors on each level
            anchors = anchors.replace("}", "reduce_boxes_in_lowest_layer: false }")
    return _SSD.format(
        classes=CLASSES,
        size=row["size"],
        net=row["net"],
        depth=row.get("depth", 1.0),
        depthwise=str(row.get("depthwise", False)).lower(),
        override=str(row.get("override", False)).lower(),
        conv=conv,
        more=more,
        predictor=_PREDICTORS[row["predictor"]].format(conv=conv),
        anchors=anchors,
    )


_FASTER_RCNN = """
faster_rcnn {{
  num_classes: {classes}
  image_resizer {{ fixed_shape_resizer {{ height: {size} width: {size} }} }}
  feature_extractor {{ type: "{net}" first_stage_features_stride: 16 {more} }}
  first_stage_anchor_generator {{ {anchors} }}
  first_stage_box_predictor_conv_hyperparams {{
    op: CONV
    regularizer {{ l2_regularizer {{ weight: 0.0 }} }}
    initializer {{ truncated_normal_initializer {{ stddev: 0.01 }} }}
  }}
  first_stage_box_predictor_depth: 32
  first_stage_minibatch_size: 16
  first_stage_nms_score_threshold: 0.0
  first_stage_nms_iou_threshold: 0.7
  first_stage_max_proposals: 8
  first_stage_localization_loss_weight: 2.0
  first_stage_objectness_loss_weight: 1.0
  initial_crop_size: {crop}
  maxpool_kernel_size: {pool}
  maxpool_stride: {pool}
  second_stage_batch_size: 8
  second_stage_box_predictor {{
    mask_rcnn_box_predictor {{
      fc_hyperparams {{
        op: FC
        regularizer {{ l2_regularizer {{ weight: 0.0 }} }}
        initializer {{ variance_scaling_initializer {{ factor: 1.0 uniform: true mode: FAN_AVG }} }}
      }}
    }}
  }}
  second_stage_post_processing {{
    batch_non_max_suppression {{ iou_threshold: 0.6 max_detections_per_class: 8 max_total_detections: 8 }}
    score_converter: SOFTMAX
  }}
  second_stage_localization_loss_weight: 2.0
  second_stage_classification_loss_weight: 1.0
}}
"""


_GRID = """
    grid_anchor_generator {
      scales: 0.25 scales: 0.5 aspect_ratios: 1.0 aspect_ratios: 2.0 height_stride: 16 width_stride: 16
    }
"""


def _faster_rcnn(row):
    more, anchors = "", _GRID
    if "levels" in row:
        low, high = row["levels"]
        of_octave = "scales_per_octave"
        anchors = _multiscale_anchors(low, high).replace(
            of_octave, "normalize_coordinates: false {}".format(of_octave)
        )
        more = "batch_norm_trainable: true conv_hyperparams {{ {} }} fpn {{ {} }}".format(
            _CONV.format(activation="RELU_6"),
            "min_level: {} max_level: {} additional_layer_depth: 32".format(low, high),
        )
    return _FASTER_RCNN.format(
        classes=CLASSES,
        size=row["size"],
        net=row["net"],
        crop=row.get("crop", 14),
        pool=row.get("pool", 2),
        more=more,
        anchors=anchors,
    )


_CENTER_NET = """
center_net {{
  num_classes: {classes}
  image_resizer {{ fixed_shape_resizer {{ height: {size} width: {size} }} }}
  feature_extractor {{ type: "{net}" depth_multiplier: {depth} use_separable_conv: {separable} {more} }}
  object_detection_task {{
    task_loss_weight: 1.0 offset_loss_weight: 1.0 scale_loss_weight: 0.1
    localization_loss {{ l1_localization_loss {{ }} }}
  }}
  object_center_params {{
    object_center_loss_weight: 1.0 min_box_overlap_iou: 0.7 max_box_predictions: 20
    classification_loss {{ penalty_reduced_logistic_focal_loss {{ alpha: 2.0 beta: 4.0 }} }}
  }}
}}
"""


def _center_net(row):
    return _CENTER_NET.format(
        classes=CLASSES,
        size=row["size"],
        net=row["net"],
        depth=row.get("depth", 1.0),
        separable=str(row.get("separable", False)).lower(),
        more=row.get("shrink", ""),
    )


def float_reasons(kind):
    """Why ops of a model may stay float: they are between the stages of a Faster R-CNN, boxes and crops."""
    types = ("CropAndResize", "Unpack") if kind == "faster_rcnn" else ()
    return {"no range is trained for {} between layers".format(each) for each in types}
