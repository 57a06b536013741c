"""What is trained: the interface between the training, which is the same for all models, and a kind of model.

A detector of the OD API is one kind (od_api/detector_task.py), a classifier of slim's another
(classifiers/task.py). Each makes its own part of the training graph.
"""

import contextlib
from typing import Iterator, List, NamedTuple, Optional, Tuple

from od_qat import checkpoints


class Schedule(NamedTuple):
    """How long a training takes, and in what steps. (The names are those of the OD API's TrainConfig.)

    Attributes:
      batch_size: images in a step, of all clones together.
      num_steps: steps in all; 0 for no end.
      startup_delay_steps: the step until which workers other than the chief wait.
      sync_replicas: whether the workers' gradients make one step together.
      replicas_to_aggregate: number of workers in such a step.
      keep_checkpoint_every_n_hours: how often a checkpoint is kept for ever.
    """

    batch_size: int
    num_steps: int = 0
    startup_delay_steps: float = 0.0
    sync_replicas: bool = False
    replicas_to_aggregate: int = 1
    keep_checkpoint_every_n_hours: float = 10000.0


class Tags(NamedTuple):
    """The TensorBoard tag of the total loss, and what stands before the names of losses and of rates."""

    total_loss: str = "Losses/TotalLoss"
    of_losses: str = "Losses/"
    of_rates: str = "LearningRate/"


class FineTuning(NamedTuple):
    """What a training takes from another checkpoint than its own.

    Attributes:
      prefix: of the checkpoint.
      plan: which variables it fills.
      fresh: a part of a sentence about model variables that start fresh; empty if there are none.
    """

    prefix: str
    plan: checkpoints.FineTunePlan
    fresh: str


class TrainingTask(object):
    """A model with its inputs, losses and optimizer. Methods add to the default graph.

    Attributes:
      schedule: Schedule.
      where: what messages call the part of the config that has the schedule.
      where_input: the same for the input.
      images: what messages say that the records have to hold.
      fix_images: what they say to do with one that cannot be read.
    """

    where = "train_config"
    where_input = "train_input_reader"
    images = "tf.Examples with JPEG or PNG images"
    fix_images = "make the records anew (`od-qat data` decodes each image once)"

    def __init__(self, schedule: Schedule) -> None:
        self.schedule = schedule

    def input_queue(self, batch_size: int, in_order: bool) -> object:
        """Builds the input.

        Args:
          batch_size: images per clone and step.
          in_order: whether the order of the examples may not depend on threads.

        Returns:
          what add_losses takes.
        """
        raise NotImplementedError

    def add_losses(self, queue: object) -> None:
        """Builds the model, once for each clone, and adds its losses to the collection of losses."""
        raise NotImplementedError

    def regularization_losses(self) -> Optional[List]:
        """The regularization losses of the total loss; None for all in their collection."""
        return None

    def optimizer(self) -> Tuple[object, List]:
        """The optimizer, and its learning rates, scalars, for summaries."""
        raise NotImplementedError

    def adjust_gradients(self, grads_and_vars: List) -> List:
        """Changes or leaves out gradients, given as (gradient, variable)."""
        return grads_and_vars

    @contextlib.contextmanager
    def variables_of_clones(self, deploy) -> Iterator[None]:
        """A context in which clones share their variables, where tf-slim's scopes do not see to it.

        Args:
          deploy: model_deploy.DeploymentConfig.
        """
        yield

    def fine_tuning(self) -> Optional[FineTuning]:
        """What another checkpoint fills in the graph at the start of a training; None if there is none."""
        return None

    def unreadable(self) -> Optional[str]:
        """After an image could not be read: the image, if the task can tell which; None otherwise."""
        return None

    def tags(self) -> Tags:
        """The tags of the graph's summaries."""
        return Tags()
