"""Reads and checks a classifier's config."""

import os
import re
from typing import Any, Iterable, NamedTuple, Union

from google.protobuf import text_format

from od_qat import files
from od_qat.classifiers import messages, networks
from od_qat.classifiers.networks import Network
from od_qat.errors import ConfigError, OdQatError
from od_qat.messages import graph_rewriter, overrides, text
from od_qat.messages.text import place_of, to_text

# Its name in the folders that commands write.
FILE = "classifier.config"
EXAMPLE = "configs/mobilenet_v1_025_mnist_qat.config"

OPTIMIZERS = ("momentum", "sgd", "rmsprop", "adam")
DECAYS = ("exponential", "cosine", "polynomial", "fixed")


# A block that only a pipeline config has.
_OF_DETECTORS = re.compile(r"^\s*(model|train_config)\s*[:{]", re.MULTILINE)


class _Bounds(NamedTuple):
    low: float
    high: float
    text: str


_COUNT = _Bounds(1, 2**31, "a whole number from 1")
_STEPS = _Bounds(0, 2**31, "a whole number from 0; 0 for no end")
_POSITIVE = _Bounds(1e-30, 1e30, "a number above 0")
_NOT_NEGATIVE = _Bounds(0, 1e30, "a number from 0")
_BELOW_1 = _Bounds(0, 0.999999, "a number from 0, below 1")
# Field -> the values that it may have.
_ALLOWED = {
    "network.num_classes": _Bounds(2, 2**20, "a whole number from 2"),
    "network.image_size": _Bounds(1, 16384, "pixels, a whole number from 1 to 16384"),
    "network.batch_norm_decay": _BELOW_1,
    "training.num_steps": _STEPS,
    "training.batch_size": _COUNT,
    "training.learning_rate": _POSITIVE,
    "training.end_learning_rate": _NOT_NEGATIVE,
    "training.learning_rate_decay_factor": _POSITIVE,
    "training.num_epochs_per_decay": _POSITIVE,
    "training.momentum": _BELOW_1,
    "training.weight_decay": _NOT_NEGATIVE,
    "training.label_smoothing": _BELOW_1,
    "training.gradient_clipping_by_norm": _NOT_NEGATIVE,
    "training.replicas_to_aggregate": _COUNT,
    "training.keep_checkpoint_every_n_hours": _POSITIVE,
    "evaluation.batch_size": _COUNT,
    "evaluation.eval_interval_secs": _COUNT,
}
# Field -> the texts that it may be.
_NAMES = {
    "training.optimizer": OPTIMIZERS,
    "training.learning_rate_decay_type": DECAYS,
}


def is_classifiers(path: str) -> bool:
    """Whether the config in a file is a classifier's: it has a block of one, and no detector's.

    False for files that cannot be read; the reader of the other kind says what is wrong with them.
    """
    found = messages.classifier_class()()
    try:
        content = files.read(path).decode("utf-8")
        if _OF_DETECTORS.search(content):
            return False
        text_format.Parse(
            content, found, allow_unknown_field=True, descriptor_pool=found.DESCRIPTOR.file.pool
        )
    except (OSError, UnicodeDecodeError, OdQatError, text_format.ParseError):
        pass  # (A malformed config is the classifier's if it says so before its first error.)
    return any(field.name != "graph_rewriter" for field, _ in found.ListFields())


def load(source: Union[str, Any], overridden: Iterable[str] = ()) -> Any:
    """Reads a config.

    Args:
      source: path of the config; or the message, which is copied.
      overridden: `dotted.path=value` strings, applied in order.

    Returns:
      the message Classifier (messages.py).

    Raises:
      ConfigError: if the file cannot be read or is malformed, with the line, or if a value is not allowed.
    """
    config = messages.classifier_class()()
    if isinstance(source, str):
        text.read(source, config, "classifier's config", like=EXAMPLE, fields="docs/classifiers.md")
    else:
        config.CopyFrom(source)
    for override in overridden:
        overrides.apply(config, override)
    _check(config, place_of(source))
    return config


def _check(config, where: str) -> None:
    if config.network.name not in networks.names():
        raise ConfigError(
            "unknown network",
            where="{}, network.name".format(where),
            found=repr(config.network.name),
            allowed=", ".join(networks.names()),
        )
    required = ["network.num_classes"]
    for field, bounds in _ALLOWED.items():
        block, name = field.split(".")
        value = getattr(getattr(config, block), name)
        if field not in required and not getattr(config, block).HasField(name):
            continue
        if not bounds.low <= value <= bounds.high:  # (NaN is outside, too)
            raise ConfigError(
                "value out of range",
                where="{}, {}".format(where, field),
                found=str(value),
                allowed=bounds.text,
            )
    for field, allowed in _NAMES.items():
        block, name = field.split(".")
        value = getattr(getattr(config, block), name)
        if value not in allowed:
            raise ConfigError(
                "unknown name",
                where="{}, {}".format(where, field),
                found=repr(value),
                allowed=", ".join(allowed),
            )
    if config.network.channels not in (1, 3):
        raise ConfigError(
            "an image has 1 channel or 3",
            where="{}, network.channels".format(where),
            found=str(config.network.channels),
            allowed="1, 3",
        )
    found = network(config)
    if found.batch_norm_decay is not None and not networks.takes_batch_norm_decay(found.name):
        raise ConfigError(
            "slim's network takes no batch_norm_decay",
            where="{}, network.batch_norm_decay".format(where),
            found=str(found.batch_norm_decay),
            allowed="absent for {}".format(found.name),
        )
    if not networks.has_preprocessing(found.preprocessing):
        raise ConfigError(
            "slim has no preprocessing of this name",
            where="{}, network.preprocessing".format(where),
            found=repr(found.preprocessing),
            allowed="the name of one of slim's networks, lenet or mobilenet_v1 for example",
        )


def check_rewriting(config, training: bool, where: str) -> None:
    """Refuses a graph_rewriter block that is invalid or, for training, would never quantize.

    Raises:
      ConfigError: see messages/graph_rewriter.py.
    """
    graph_rewriter.check(config, config.training.num_steps if training else None, where)


def network(config) -> Network:
    """The network of a config."""
    described = config.network
    return Network(
        described.name,
        described.num_classes,
        described.image_size or networks.default_size(described.name),
        described.channels,
        described.preprocessing or networks.default_preprocessing(described.name),
        described.batch_norm_decay if described.HasField("batch_norm_decay") else None,
    )


def rewrite_fn(config, is_training: bool):
    """The rewrite of the config's graph_rewriter block; None without one."""
    if not config.HasField("graph_rewriter"):
        return None
    return graph_rewriter.rewrite_fn(config.graph_rewriter, is_training)


def save(config, folder: str) -> str:
    """Writes `classifier.config` into a folder, and returns its path."""
    path = os.path.join(folder, FILE)
    files.write_atomically(path, to_text(config))
    return path
