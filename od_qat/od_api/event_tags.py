"""The tags of TensorBoard events, which are upstream's for each half of the OD API."""

from typing import NamedTuple

from od_qat.od_api import keras_models


class Tags(NamedTuple):
    """The tag of the total loss, and what stands before the names of single losses and of learning rates."""

    total_loss: str
    of_losses: str
    of_rates: str


def of_graph() -> Tags:
    """The tags for the model of the default graph: those of legacy.trainer, or of model_lib_v2."""
    if keras_models.of_graph() is None:
        return Tags("Losses/TotalLoss", "Losses/", "LearningRate/")
    return Tags("Loss/total_loss", "", "")
