"""A detector of the OD API as what is trained; see training/task.py."""

from typing import Callable, ContextManager, List, Optional, Tuple

from od_qat.od_api import config_checks, event_tags, fine_tuning, keras_models, training
from od_qat.training.task import FineTuning, Schedule, Tags, TrainingTask


class DetectorTask(TrainingTask):
    """A detection model, its records, and its train_config.

    Args:
      create_tensor_dict_fn: makes the tensors of one example.
      create_model_fn: makes a DetectionModel.
      train_config: train_pb2.TrainConfig.

    Raises:
      ConfigError: if the config is not valid.
    """

    def __init__(self, create_tensor_dict_fn: Callable, create_model_fn: Callable, train_config) -> None:
        config_checks.check_training(train_config)
        if train_config.fine_tune_checkpoint:
            fine_tuning.fine_tune_type(train_config)
        super(DetectorTask, self).__init__(
            Schedule(**{name: getattr(train_config, name) for name in Schedule._fields})
        )
        self._create_tensor_dict_fn = create_tensor_dict_fn
        self._create_model_fn = create_model_fn
        self._config = train_config
        self._model = None

    def input_queue(self, batch_size: int, in_order: bool) -> object:
        return training.input_queue(batch_size, self._create_tensor_dict_fn, self._config, in_order)

    def add_losses(self, queue: object) -> None:
        training.add_losses(queue, self._create_and_keep_model, self._config)

    def _create_and_keep_model(self):
        # (A second call of a Keras model shares the variables of the first; a second model would not.)
        if self._model is not None and keras_models.of_graph() is not None:
            return self._model
        model = self._create_model_fn()
        if self._model is None:
            self._model = model
        return model

    def regularization_losses(self) -> Optional[List]:
        return None if self._config.add_regularization_loss else []

    def optimizer(self) -> Tuple[object, List]:
        return training.optimizer(self._config)

    def adjust_gradients(self, grads_and_vars: List) -> List:
        return training.adjust_gradients(grads_and_vars, self._config)

    def variables_of_clones(self, deploy) -> ContextManager:
        return keras_models.variables_of_one_model(deploy)

    def fine_tuning(self) -> Optional[FineTuning]:
        return fine_tuning.of_config(self._config, self._model)

    def tags(self) -> Tags:
        return event_tags.of_graph()
