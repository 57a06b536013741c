"""The latency of several models, measured in turns, so that what else the machine does meets all of them."""

import contextlib
import dataclasses
import os
import tempfile
from typing import Dict, Iterator, Mapping, Optional, Union

import numpy as np

from od_qat.errors import EnvironmentProblem
from od_qat.model_files import tflite_edits
from od_qat.model_files.description import PROBABILITIES, ModelDescription, describe_model
from od_qat.scoring import workers

ROUNDS, RUNS = 10, 5


@contextlib.contextmanager
def of_networks(models: Mapping[str, str]) -> Iterator[Dict[str, ModelDescription]]:
    """The networks of the models that end in TFLite_Detection_PostProcess, without it, for `medians`.

    Args:
      models: label -> path.

    Returns:
      a context manager: label -> description of a temporary .tflite; other models are left out, and all are
      without LiteRT's schema.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = {}
        for number, (label, path) in enumerate(models.items()):
            network = _network_of(path)
            if network is not None:
                alone = os.path.join(folder, "{}.tflite".format(number))
                with open(alone, "wb") as stream:
                    stream.write(network)
                found[label] = dataclasses.replace(
                    describe_model(path), path=alone, output_names=((PROBABILITIES, None),)
                )
        yield found


def _network_of(path: str) -> Optional[bytes]:
    if not path.endswith(".tflite"):
        return None
    with open(path, "rb") as stream:
        model = stream.read()
    try:
        return tflite_edits.without_post_processing(model)
    except EnvironmentProblem:
        return None


def medians(
    models: Mapping[str, Union[str, ModelDescription]],
    image: Optional[np.ndarray],
    threads: int = 1,
    rounds: int = ROUNDS,
) -> Dict[str, float]:
    """The median milliseconds of one image, over rounds in which each model runs once after the other.

    Args:
      models: label -> path, as for scoring.detect, or what describe_model says of it.
      image: uint8 [height, width, 3]; None for noise. Suppression takes longer the more there is to suppress.
      threads: of each model's process.
      rounds: how many.

    Returns:
      label -> milliseconds.

    Raises:
      as scoring.latency.
    """
    found: Dict[str, list] = {label: [] for label in models}
    with contextlib.ExitStack() as stack:
        pools = {
            label: stack.enter_context(
                workers.Pool(describe_model(model) if isinstance(model, str) else model, threads)
            )
            for label, model in models.items()
        }
        for _ in range(rounds):
            for label, pool in pools.items():
                found[label].append(pool.latency(image, RUNS))
    return {label: float(np.median(values)) for label, values in found.items()}
