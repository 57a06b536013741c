"""Builds the OD API's part of a training graph: input queue, losses, optimizer, adjustment of gradients."""

import sys
from typing import Callable, List, Tuple

import tf_slim as slim
from object_detection.builders import optimizer_builder, preprocessor_builder
from object_detection.legacy import trainer as upstream
from object_detection.utils import variables_helper

from od_qat.compat import tf
from od_qat.errors import ConfigError
from od_qat.od_api import halves, keras_models

# For how many a queue of the input has images, as upstream's input_reader.proto prefetches in the TF 2 half.
_STEPS = 2


def input_queue(batch_size: int, create_tensor_dict_fn: Callable, train_config, in_order: bool = False):
    """Builds the input queue, with reading, augmentation and batching as `train_config` says.

    The protos' own capacities, 150 images and 5 batches, are of COCO's size: they hold the images as float32
    before they are resized, 700 MB of them at 640x480, and preparing so many delays the first step and the
    end. Where the config does not set them, each queue holds the batches of two steps.

    Args:
      batch_size: images per clone and step.
      create_tensor_dict_fn: makes the tensors of one example.
      train_config: train_pb2.TrainConfig.
      in_order: whether only one thread augments and batches, so that the order of the examples and their
        random numbers do not depend on which of several threads comes first.
    """
    augmentation = [preprocessor_builder.build(step) for step in train_config.data_augmentation_options]
    clones = max(1, train_config.batch_size // batch_size)
    images, batches = _STEPS * clones * batch_size, _STEPS * clones
    if train_config.HasField("batch_queue_capacity"):
        images = train_config.batch_queue_capacity
    if train_config.HasField("prefetch_queue_capacity"):
        batches = train_config.prefetch_queue_capacity
    return upstream.create_input_queue(
        batch_size,
        create_tensor_dict_fn,
        images,
        1 if in_order else train_config.num_batch_queue_threads,
        batches,
        augmentation,
    )


def add_losses(queue, create_model_fn: Callable, train_config) -> None:
    """Builds the model on an input queue, and adds its losses to the graph."""
    upstream._create_losses(queue, create_model_fn, train_config)
    model = keras_models.of_graph()
    if model is not None:
        keras_models.collect(model)


def optimizer(train_config) -> Tuple[object, List]:
    """The optimizer of the config, and the tensors for its summaries (the learning rates)."""
    return optimizer_builder.build(train_config.optimizer)


def adjust_gradients(grads_and_vars: List, train_config) -> List:
    """Applies the bias multiplier, the frozen variables and clipping to gradients, in upstream's order.

    It honours update_trainable_variables too, as upstream's model_main does; upstream's legacy trainer
    ignores that field.

    Raises:
      ConfigError: if update_trainable_variables matches no variable.
    """
    if train_config.bias_grad_multiplier:
        grads_and_vars = variables_helper.multiply_gradients_matching_regex(
            grads_and_vars, [".*/biases"], multiplier=train_config.bias_grad_multiplier
        )
    if train_config.freeze_variables:
        count = len(grads_and_vars)
        grads_and_vars = variables_helper.freeze_gradients_matching_regex(
            grads_and_vars, train_config.freeze_variables
        )
        if len(grads_and_vars) == count:
            text = "warning: train_config.freeze_variables matches no variable, all are trained: found {}"
            print(text.format(", ".join(train_config.freeze_variables)), file=sys.stderr)
    wanted = list(train_config.update_trainable_variables)
    if wanted:
        every = [variable for _, variable in grads_and_vars]
        kept = {v.op.name for v in slim.filter_variables(every, include_patterns=wanted)}
        if not kept:
            raise ConfigError(
                "no variable would be trained",
                where="train_config.update_trainable_variables",
                found=", ".join(wanted),
                allowed="regular expressions of names such as {}".format(every[0].op.name if every else "-"),
            )
        grads_and_vars = [(gradient, v) for gradient, v in grads_and_vars if v.op.name in kept]
    if train_config.gradient_clipping_by_norm > 0:
        with tf.name_scope("clip_grads"):
            limit = train_config.gradient_clipping_by_norm
            if halves.is_active():  # (upstream's loop of that half clips the norm of all gradients together)
                gradients, variables = zip(*grads_and_vars)
                return list(zip(tf.clip_by_global_norm(gradients, limit)[0], variables))
            grads_and_vars = [
                (None if gradient is None else tf.clip_by_norm(gradient, limit), variable)
                for gradient, variable in grads_and_vars
            ]
    return grads_and_vars
