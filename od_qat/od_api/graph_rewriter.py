"""The config's graph_rewriter block -> a rewrite of the default graph; upstream's graph_rewriter_builder."""

from typing import Callable

from od_qat.config import QatConfig
from od_qat.errors import ConfigError
from od_qat.od_api import layers_proto
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
    config = qat_config(graph_rewriter_config)

    def rewrite():
        options = dict(
            weight_bits=config.weight_bits,
            activation_bits=config.activation_bits,
            symmetric=config.symmetric,
            placement=config.placement,
            per_channel=config.per_channel,
            rules=config.rules,
        )
        if is_training:
            return api.experimental_create_training_graph(
                quant_delay=config.quant_delay,
                freeze_bn_delay=config.freeze_bn_delay,
                ema_decay=config.ema_decay,
                **options,
            )
        return api.experimental_create_eval_graph(**options)

    # The trainer, which gets this function and no config, compares it with num_steps.
    rewrite.quant_delay = config.quant_delay if is_training else 0
    return rewrite


def qat_config(graph_rewriter_config) -> QatConfig:
    """What a graph_rewriter block asks for: upstream's quantization { } and our [od_qat.layers] { }.

    Raises:
      ConfigError: naming the field.
    """
    quantization = graph_rewriter_config.quantization
    try:
        return QatConfig(
            weight_bits=quantization.weight_bits,
            activation_bits=quantization.activation_bits,
            symmetric=getattr(quantization, "symmetric", False),
            quant_delay=quantization.delay,
            **layers_proto.options(graph_rewriter_config),
        )
    except ConfigError as error:
        block = "quantization" if error.where in quantization.DESCRIPTOR.fields_by_name else "[od_qat.layers]"
        raise _elsewhere(error, "graph_rewriter.{}.{}".format(block, error.where)) from error


def _elsewhere(error: ConfigError, where: str) -> ConfigError:
    return ConfigError(error.what, where=where, found=error.found, allowed=error.allowed, fix=error.fix)


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
    try:
        qat_config(config.graph_rewriter)
    except ConfigError as error:
        raise _elsewhere(error, "{}, {}".format(where, error.where)) from error


def check_for_tflite(config, where: str) -> None:
    """TFLite takes 8 bits only.

    Raises:
      ConfigError.
    """
    if not config.HasField("graph_rewriter"):
        return
    found = qat_config(config.graph_rewriter)
    asked = [("quantization.", found)] + [("[od_qat.layers].{}, ".format(rule), rule) for rule in found.rules]
    for prefix, one in asked:
        for field in ("weight_bits", "activation_bits"):
            bits = getattr(one, field)
            if bits not in (8, None):
                raise ConfigError(
                    "TFLite takes 8 bits only",
                    where="{}, graph_rewriter.{}{}".format(where, prefix, field),
                    found=str(bits),
                    allowed="8",
                )
