"""The config's graph_rewriter block -> a rewrite of the default graph; upstream's graph_rewriter_builder."""

from typing import Callable

from od_qat.errors import ConfigError
from od_qat.rewrite import api

PROTO_DEFAULT_DELAY = 500000


def build(graph_rewriter_config, is_training: bool) -> Callable:
    """Drop-in for object_detection.builders.graph_rewriter_builder.build.

    Args:
      graph_rewriter_config: graph_rewriter_pb2.GraphRewriter.
      is_training: which rewrite.

    Returns:
      a function without arguments that rewrites the default graph and returns a RewriteReport.
    """
    quantization = graph_rewriter_config.quantization

    def rewrite():
        options = dict(
            weight_bits=quantization.weight_bits,
            activation_bits=quantization.activation_bits,
            symmetric=getattr(quantization, "symmetric", False),
        )
        if is_training:
            return api.experimental_create_training_graph(quant_delay=quantization.delay, **options)
        return api.experimental_create_eval_graph(**options)

    # The trainer, which gets this function and no config, compares it with num_steps.
    rewrite.quant_delay = quantization.delay if is_training else 0
    return rewrite


def check(config, training: bool, where: str) -> None:
    """Refuses a config that would never quantise, or not to something TFLite takes.

    Args:
      config: TrainEvalPipelineConfig.
      training: whether num_steps matters.
      where: its path, for the message.

    Raises:
      ConfigError.
    """
    if not config.HasField("graph_rewriter"):
        return
    quantization = config.graph_rewriter.quantization
    num_steps = config.train_config.num_steps
    if training and num_steps and quantization.delay >= num_steps:
        raise ConfigError(
            "quantization would never start: the delay is not below num_steps",
            where="{}, graph_rewriter.quantization.delay".format(where),
            found="delay {}{}, num_steps {}".format(
                quantization.delay,
                " (the proto's default)" if quantization.delay == PROTO_DEFAULT_DELAY else "",
                num_steps,
            ),
            allowed="a delay below num_steps",
            fix="set delay: 0 when fine-tuning from a float checkpoint",
        )
    for field in ("weight_bits", "activation_bits"):
        bits = getattr(quantization, field)
        if not 2 <= bits <= 8:
            raise ConfigError(
                "unsupported bit width",
                where="{}, graph_rewriter.quantization.{}".format(where, field),
                found=str(bits),
                allowed="2 to 8 in training, 8 for .tflite",
            )


def check_for_tflite(config, where: str) -> None:
    """TFLite takes 8 bits only.

    Raises:
      ConfigError.
    """
    if not config.HasField("graph_rewriter"):
        return
    for field in ("weight_bits", "activation_bits"):
        bits = getattr(config.graph_rewriter.quantization, field)
        if bits != 8:
            raise ConfigError(
                "TFLite takes 8 bits only",
                where="{}, graph_rewriter.quantization.{}".format(where, field),
                found=str(bits),
                allowed="8",
            )
