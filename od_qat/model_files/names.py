"""Names and roles of the inputs and outputs of detectors, in graphs of the OD API and in .tflite files."""

IMAGE_TENSOR = "image_tensor"
TFLITE_INPUT = "normalized_input_image_tensor"

# The outputs of every detector, in the order of TFLite_Detection_PostProcess.
ROLES = ("boxes", "classes", "scores", "count")
# Role -> name of the op, and key of the post-processed dictionary, in the order of the JSON beside a model.
OF_ROLE = {
    "boxes": "detection_boxes",
    "classes": "detection_classes",
    "scores": "detection_scores",
    "count": "num_detections",
    "masks": "detection_masks",
    "keypoints": "detection_keypoints",
}

# The raw outputs before the suppression, with the names of upstream's export_tflite_ssd_graph.
RAW_BOXES = "raw_outputs/box_encodings"
RAW_SCORES = "raw_outputs/class_predictions"

# What an evaluation leaves of each checkpoint.
FROZEN_EVAL_GRAPH = "frozen_eval_graph.pb"

# Op name of a frozen classifier's input, as in slim's export_inference_graph.py.
CLASSIFIER_INPUT = "input"

POST_PROCESS = "TFLite_Detection_PostProcess"

# What post-training quantization can make of a float model: nothing; 16-bit or 8-bit weights, and floats
# between them; or all of it int8, with a range for each channel of the weights, or one for all.
FLOAT32, FLOAT16, DYNAMIC_RANGE, INT8, PER_TENSOR = FORMS = (
    "float32",
    "float16",
    "dynamic_range",
    "int8",
    "int8_per_tensor",
)
QUANTIZED_FORMS = (INT8, PER_TENSOR)
