"""Builds the model and the inputs of a pipeline config, and checks the inputs."""

import copy
import sys
from typing import Any, Callable, Dict, List, Optional

from od_qat import compat
from od_qat.errors import ConfigError, OdQatError, quoted
from od_qat.od_api import keras_models, pipeline


def model_fn(config, is_training: bool) -> Callable:
    """Returns a function without arguments that builds the config's DetectionModel.

    That function raises ConfigError if the OD API cannot build the model.

    Args:
      config: TrainEvalPipelineConfig.
      is_training: whether batch normalization and dropout are in training mode.
    """
    from object_detection.builders import model_builder

    def build():
        keras_models.prepare(is_training)
        try:
            with keras_models.nothing_downloaded():
                model = model_builder.build(model_config=config.model, is_training=is_training)
        except OdQatError:
            raise
        except Exception as error:  # noqa: BLE001  (a wrong field can lead to any)
            raise ConfigError(
                "the OD API cannot build this model",
                where="model." + config.model.WhichOneof("model"),
                found="{}: {}".format(type(error).__name__, quoted(error) or "no message"),
                fix="correct the field that causes it; --debug shows where it is raised",
            ) from error
        keras_models.remember(model)
        _keep_from_autograph(model)
        return model

    return build


def _keep_from_autograph(model) -> None:
    """Lets AutoGraph leave a model of upstream's as it is.

    It would rewrite the Python of Keras layers and of what tf.map_fn calls, such as the suppression. That
    takes seconds and changes nothing, as the OD API's models are written for graphs. A model or a feature
    extractor that the user registered may rely on it.
    """
    for part in (model, getattr(model, "_feature_extractor", None)):
        if part is not None and not type(part).__module__.startswith("object_detection."):
            return
    for name in ("preprocess", "predict", "postprocess", "loss"):
        setattr(model, name, compat.tf.autograph.experimental.do_not_convert(getattr(model, name)))


def input_fn(reader, in_order: bool = False, available: Optional[int] = None) -> Callable:
    """Returns a function without arguments that makes the tensors of one example of an input reader.

    Args:
      reader: input_reader_pb2.InputReader; it is not changed.
      in_order: whether to read the record files one at a time. If the OD API reads several at once, it takes
        whichever has a record ready. Shuffling stays, and follows the graph's seed.
      available: the number of examples in its records, if it is known. A shuffle buffer that the config does
        not size holds no more; the proto's default, 2,048 encoded images, would hold a small data set
        several times.
    """
    from object_detection.builders import dataset_builder

    reader = copy.deepcopy(reader)
    if in_order:
        reader.num_readers = 1
    if available and not reader.HasField("shuffle_buffer_size"):
        reader.shuffle_buffer_size = min(available, reader.shuffle_buffer_size)

    # (AutoGraph would rewrite the decoder, which takes a second. It is written for graphs, and has no need.)
    @compat.tf.autograph.experimental.do_not_convert
    def example():
        dataset = compat.without_autotune(dataset_builder.build(reader))
        return dataset_builder.make_initializable_iterator(dataset).get_next()

    return example


def categories(label_map_path: str) -> List[dict]:
    """The categories of a label map: [{'id': 1, 'name': ...}, ...]."""
    from object_detection.utils import label_map_util

    return label_map_util.create_categories_from_labelmap(label_map_path)


def class_names(config: Any, reader: Any) -> Dict[int, str]:
    """The display names of a model's classes, by label map id, from the label map of an input reader.

    Raises:
      DataError: for a label map that is missing or damaged.
      ConfigError: if the reader has none, or one with an id above the model's num_classes.
    """
    from od_qat.datasets import label_map

    if not reader.label_map_path:
        raise ConfigError(
            "the input reader has no label map",
            where="label_map_path",
            fix="set it to the label_map.pbtxt that `od-qat data` wrote",
        )
    kind = config.model.WhichOneof("model")
    expected = getattr(config.model, kind).num_classes
    names = label_map.read_label_map(reader.label_map_path)
    if max(names) > expected:
        raise ConfigError(
            "the label map does not match the model",
            where=reader.label_map_path,
            found="{} classes, highest id {}".format(len(names), max(names)),
            allowed="ids up to the model's num_classes, {}".format(expected),
            fix="pass --override model.{}.num_classes={}".format(kind, max(names)),
        )
    return names


def check_inputs(config, reader) -> Dict[str, int]:
    """Reads every record and the label map before a graph is built.

    Returns:
      path of each record file -> its number of examples.

    Raises:
      DataError: for a record or label map that is missing, damaged or does not fit the other, with its path.
      ConfigError: if the reader has no records; and see class_names.
    """
    from od_qat.datasets import records

    names = class_names(config, reader)
    kind = config.model.WhichOneof("model")
    expected = getattr(config.model, kind).num_classes
    if max(names) < expected:
        print(
            "warning: model.{}.num_classes is {}, and the highest id of {} is {}: no image teaches the model "
            "the ids from {} on".format(kind, expected, reader.label_map_path, max(names), max(names) + 1),
            file=sys.stderr,
        )
    return {path: records.check_records(path, reader.label_map_path) for path in pipeline.input_files(reader)}
