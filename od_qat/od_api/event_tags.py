"""The tags of TensorBoard events, which are upstream's for each half of the OD API."""

from od_qat.od_api import keras_models
from od_qat.training.task import Tags


def of_graph() -> Tags:
    """The tags for the model of the default graph: those of legacy.trainer, or of model_lib_v2."""
    if keras_models.of_graph() is None:
        return Tags()
    return Tags("Loss/total_loss", "", "")
