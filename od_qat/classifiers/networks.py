"""Builds slim's networks and their preprocessing."""

import importlib
import inspect
from typing import Dict, NamedTuple, Optional, Tuple

from od_qat import plugin  # noqa: F401  (makes slim importable on TensorFlow 2)
from od_qat.compat import tf
from od_qat.errors import ConfigError, MissingPackage, first_line

_OF_VIDEOS = ("i3d", "s3dg")


class Network(NamedTuple):
    """One of slim's networks, as a config describes it.

    Attributes:
      name: in slim's nets_factory.
      num_classes: size of its output.
      size: height and width of the image.
      channels: of the image, 3 or 1.
      preprocessing: name in slim's preprocessing_factory.
      batch_norm_decay: of the moving averages; None for the network's own, .9997 for many.
    """

    name: str
    num_classes: int
    size: int
    channels: int
    preprocessing: str
    batch_norm_decay: Optional[float] = None

    @property
    def input_shape(self) -> Tuple[int, int, int]:
        """Height, width and channels of the image."""
        return (self.size, self.size, self.channels)

    def build(self, images, is_training: bool, weight_decay: float = 0.0) -> Tuple[object, Dict[str, object]]:
        """Adds the network to the default graph.

        Args:
          images: float32 [batch, size, size, channels], preprocessed.
          is_training: whether batch normalization and dropout are in training mode.
          weight_decay: of the weights' regularization.

        Returns:
          logits [batch, num_classes], and slim's end points. Among them is `Predictions`, the probabilities;
          for VGG, AlexNet and OverFeat, which end with the logits, a softmax is added.
        """
        import tf_slim as slim

        factory, more = _factory(), {}
        if self.batch_norm_decay is not None:
            more[_decay_of(self.name)] = self.batch_norm_decay
        with slim.arg_scope(factory.arg_scopes_map[self.name](weight_decay=weight_decay, **more)):
            try:
                logits, end_points = factory.networks_map[self.name](
                    images, self.num_classes, is_training=is_training
                )
            except ValueError as error:
                raise self._misfit(error) from error
            end_points = dict(end_points)
            end_points["Predictions"] = end_points.pop("predictions", end_points.get("Predictions"))
            if end_points["Predictions"] is None:
                end_points["Predictions"] = slim.softmax(logits, scope="Predictions")
        return logits, end_points

    def _misfit(self, error: Exception) -> ConfigError:
        return ConfigError(
            "the network {} cannot be built for such images".format(self.name),
            where="network.image_size",
            found="{} x {} with {} channels: {}".format(
                self.size, self.size, self.channels, first_line(error)
            ),
            fix="its own size is {}".format(default_size(self.name)),
        )

    def preprocess(self, image, is_training: bool):
        """Preprocesses one image, uint8 [height, width, channels]; returns float32 [size, size, channels]."""
        function = _preprocessing_factory().get_preprocessing(self.preprocessing, is_training=is_training)
        try:
            image = function(image, self.size, self.size)
            image.set_shape(self.input_shape)
        except ValueError as error:
            raise ConfigError(
                "slim's preprocessing {} does not take such images".format(self.preprocessing),
                where="network.channels",
                found="{}: {}".format(self.channels, first_line(error)),
                fix='set network.preprocessing: "lenet" for grey images',
            ) from error
        return tf.cast(image, tf.float32)

    def require_preprocessing(self, is_training: bool) -> None:
        """Raises ConfigError if the preprocessing does not make images of the network's channels and size.

        Among the images of a data set it would look like an image that cannot be read.
        """
        with tf.Graph().as_default(), tf.Session() as session:
            if is_training:
                self.preprocess(tf.placeholder(tf.uint8, [None, None, self.channels]), True)
            # (What training does is random, so the evaluation's is run.)
            blank = self.preprocess(tf.zeros(self.input_shape, tf.uint8), is_training=False)
            try:
                session.run(blank)
            except tf.errors.InvalidArgumentError as error:
                own = default_size(self.name)
                raise ConfigError(
                    "slim's preprocessing {} does not make images of this size".format(self.preprocessing),
                    where="network.image_size",
                    found="{}: {}".format(self.size, first_line(error)),
                    fix="take another network.preprocessing"
                    + ("" if own == self.size else ", or set it to {}, the network's own".format(own)),
                ) from error


def names() -> Tuple[str, ...]:
    """The names of all networks that classify images."""
    return tuple(sorted(set(_factory().networks_map) - set(_OF_VIDEOS)))


def default_size(name: str) -> int:
    """The size of the image that a network is meant for."""
    return getattr(_factory().networks_map[name], "default_image_size", 224)


def _decay_of(name: str) -> Optional[str]:
    """What a network's arg_scope calls the decay of batch norms; None if it has no such argument."""
    arguments = inspect.signature(_factory().arg_scopes_map[name]).parameters
    return next((one for one in ("batch_norm_decay", "bn_decay") if one in arguments), None)


def takes_batch_norm_decay(name: str) -> bool:
    """Whether the decay of a network's batch norms can be set."""
    return _decay_of(name) is not None


def default_preprocessing(name: str) -> str:
    """The name of a network's preprocessing: its own, or that of its family (mobilenet_v1 of its widths)."""
    family = name.rpartition("_")[0]
    return family if not has_preprocessing(name) and has_preprocessing(family) else name


def has_preprocessing(name: str) -> bool:
    """Whether slim has preprocessing of this name."""
    try:
        _preprocessing_factory().get_preprocessing(name)
    except ValueError:
        return False
    return True


def _factory():
    return _slim("nets.nets_factory")


def _preprocessing_factory():
    return _slim("preprocessing.preprocessing_factory")


def _slim(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingPackage(
            "slim cannot be imported",
            found=str(error),
            allowed="slim of the TensorFlow models (research/slim), which packages of the OD API bring along",
            fix="run `od-qat install-od-api`, or set OD_API to a models/research folder",
        ) from error
