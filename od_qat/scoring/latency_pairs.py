"""The latency of several models, measured in turns, so that what else the machine does meets all of them."""

import contextlib
from typing import Dict, Mapping, Optional

import numpy as np

from od_qat.model_files.description import describe_model
from od_qat.scoring import workers

ROUNDS, RUNS = 10, 5


def medians(
    models: Mapping[str, str], image: Optional[np.ndarray], threads: int = 1, rounds: int = ROUNDS
) -> Dict[str, float]:
    """The median milliseconds of one image, over rounds in which each model runs once after the other.

    Args:
      models: label -> path, as for scoring.detect.
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
            label: stack.enter_context(workers.Pool(describe_model(path), threads))
            for label, path in models.items()
        }
        for _ in range(rounds):
            for label, pool in pools.items():
                found[label].append(pool.latency(image, RUNS))
    return {label: float(np.median(values)) for label, values in found.items()}
