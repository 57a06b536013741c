"""What exports to .tflite have in common: what a user asks for, the conversion, the JSON."""

import functools
import os
from typing import Any, Dict, NamedTuple, Optional, Sequence, Tuple, Union

from od_qat import checkpoints
from od_qat.errors import ConfigError
from od_qat.export import suppression, tflite
from od_qat.export.network import Network
from od_qat.model_files import description, names, tflite_metadata
from od_qat.od_api import models, pipeline

# The label map id of the class with index 0: upstream puts the background before it.
CLASS_ID_OFFSET = 1


class Options(NamedTuple):
    """What the user asks for; see commands.export_tflite.

    `labels` are those of labels_of, for metadata; None for a file without.
    """

    inference_type: str
    input_type: str
    fast_nms: bool
    max_detections: Optional[int]
    score_threshold: Union[float, str, None]
    ptq: bool
    calibration_images: int
    form: str = names.INT8
    labels: Optional[Tuple[str, ...]] = None

    @property
    def takes_floats(self) -> bool:
        """Whether it is a .tflite with float inputs, which is not fully quantized."""
        return self.ptq and self.form not in names.QUANTIZED_FORMS


def require_options(options: Options) -> None:
    """Raises ConfigError for types or numbers that cannot be had, before anything is read or built."""
    tflite.require_types(options.inference_type, options.input_type, options.ptq)
    tflite.require_form(options.form, options.ptq)
    suppression.require_threshold(options.score_threshold)
    if options.max_detections is not None and options.max_detections < 1:
        raise ConfigError(
            "a detector reports one detection at least",
            where="--max_detections",
            found=str(options.max_detections),
            allowed="a whole number from 1",
        )


def convert(graph_def, network: Network, config, options: Options, outputs: Sequence[str]) -> bytes:
    """Runs TensorFlow's converter; returns the bytes of the .tflite.

    Args:
      graph_def: of the network, with its post-processing.
      network: the network.
      config: TrainEvalPipelineConfig; post-training quantization calibrates on its training records.
      options: what the user asks for.
      outputs: tensor names.

    Raises:
      ExportError: with the reason that the converter gives.
    """
    shape = [1, network.height, network.width, 3]
    if options.takes_floats:
        return tflite.convert_float(graph_def, names.TFLITE_INPUT, shape, list(outputs), options.form)
    calibration_images = None
    if options.ptq:
        of_training = pipeline.input_files(config.train_input_reader)
        calibration_images = functools.partial(network.images, of_training, options.calibration_images)
    return tflite.convert(
        graph_def,
        names.TFLITE_INPUT,
        shape,
        list(outputs),
        options.inference_type,
        network.mean,
        network.std,
        calibration_images,
        options.input_type,
        per_channel=options.form != names.PER_TENSOR,
    )


def describe(
    path: str,
    network: Network,
    checkpoint: str,
    input_type: str,
    outputs: Sequence[str],
    max_detections: int,
    **more: Any,
) -> Dict[str, Any]:
    """Returns the content of the JSON beside a .tflite.

    Args:
      path: of the .tflite.
      network: the network.
      checkpoint: prefix of its checkpoint.
      input_type: of the image; 'float32' for a .tflite that takes floats.
      outputs: tensor names, in the order of names.ROLES.
      max_detections: number of detections.
      **more: further arguments of description.content.
    """
    shape = [1, network.height, network.width, 3]
    return description.content(
        path,
        inputs=[{"name": names.TFLITE_INPUT, "shape": shape, "dtype": input_type}],
        outputs=[{"name": name, "role": role} for name, role in zip(outputs, names.ROLES)],
        preprocessing={
            "resize": {"method": network.method, "height": network.height, "width": network.width},
            "mean": network.mean,
            "std": network.std,
            "channels": "RGB",
        },
        class_id_offset=CLASS_ID_OFFSET,
        checkpoint=os.path.basename(checkpoint),
        global_step=checkpoints.global_step(checkpoint),
        quantized=input_type != "float32",
        max_detections=max_detections,
        **more,
    )


def labels_of(config: Any) -> Tuple[str, ...]:
    """The labels of a detector's classes, in the order of their indices, from the config's label map.

    Raises:
      DataError, ConfigError: see models.class_names.
    """
    readers = list(config.eval_input_reader)[:1] + [config.train_input_reader]
    named = [reader for reader in readers if reader.label_map_path] or readers
    classes = getattr(config.model, config.model.WhichOneof("model")).num_classes
    return tflite_metadata.labels_by_index(models.class_names(config, named[0]), CLASS_ID_OFFSET, classes)
