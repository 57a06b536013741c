"""What a graph_rewriter block says, as options of the rewriter, and what is wrong with it.

A detector's block is the OD API's message, a classifier's one of the same layout.
"""

from typing import Callable, Optional

from od_qat.config import QatConfig
from od_qat.errors import ConfigError
from od_qat.messages import layers
from od_qat.rewrite import api

PROTO_DEFAULT_DELAY = 500000
# The fields of QatConfig that have another name in the block.
_FIELDS = {"quant_delay": "delay"}


def rewrite_fn(block, is_training: bool, outputs_fn: Callable = lambda: None) -> Callable:
    """Returns a function without arguments that rewrites the default graph, and returns a RewriteReport.

    Args:
      block: the graph_rewriter block.
      is_training: whether to rewrite for training or for evaluation.
      outputs_fn: returns the ops to whose inputs the rewrite keeps, when it is called; None for all ops.
    """
    config = qat_config(block)
    if not is_training:
        config = config.for_evaluation()

    def rewrite():
        return api.rewrite(config, training=is_training, outputs=outputs_fn())

    # The trainer gets this function and no config, and compares the delay with num_steps.
    rewrite.quant_delay = config.quant_delay
    return rewrite


def qat_config(graph_rewriter_config) -> QatConfig:
    """The QatConfig of a graph_rewriter block: upstream's quantization { } and od_qat's [od_qat.layers] { }.

    Raises:
      ConfigError: for a value that is not allowed, with the name of its field in the block.
    """
    quantization = graph_rewriter_config.quantization
    options = dict(
        weight_bits=quantization.weight_bits,
        activation_bits=quantization.activation_bits,
        symmetric=getattr(quantization, "symmetric", False),
        quant_delay=quantization.delay,
    )
    try:
        return QatConfig(**options, **layers.options(graph_rewriter_config))
    except ConfigError as error:
        block = "quantization" if error.where in options else "[od_qat.layers]"
        field = _FIELDS.get(error.where, error.where)
        raise _elsewhere(error, "graph_rewriter.{}.{}".format(block, field)) from error


def _elsewhere(error: ConfigError, where: str) -> ConfigError:
    return ConfigError(error.what, where=where, found=error.found, allowed=error.allowed, fix=error.fix)


def check(config, num_steps: Optional[int], where: str) -> None:
    """Refuses a config whose graph_rewriter block is invalid or, for training, would never quantize.

    Args:
      config: of a detector or a classifier.
      num_steps: steps of the training, with which the delay is compared; None if nothing is trained.
      where: the config's path, for the message.

    Raises:
      ConfigError: for a delay that training never reaches, or for a value that is not allowed.
    """
    if not config.HasField("graph_rewriter"):
        return
    if num_steps is not None:
        require_delay_below(
            num_steps,
            config.graph_rewriter.quantization.delay,
            where="{}, graph_rewriter.quantization.delay".format(where),
        )
    try:
        qat_config(config.graph_rewriter)
    except ConfigError as error:
        raise _elsewhere(error, "{}, {}".format(where, error.where)) from error


def require_delay_below(num_steps: int, delay: int, where: str) -> None:
    """Refuses a delay that training never reaches, so that quantization would never start.

    Args:
      num_steps: steps of the training; 0 if it has no end.
      delay: steps before quantization starts.
      where: the field, for the message.

    Raises:
      ConfigError: if the delay is not below num_steps.
    """
    if num_steps and delay >= num_steps:
        raise ConfigError(
            "quantization would never start: the delay is not below num_steps",
            where=where,
            found="delay {}{}, num_steps {}".format(
                delay, " (the proto's default)" if delay == PROTO_DEFAULT_DELAY else "", num_steps
            ),
            allowed="a delay below num_steps",
            fix="set delay: 0 when fine-tuning from a float checkpoint",
        )


def prepare_for_tflite(config, ptq: bool, where: str) -> None:
    """Makes a config ready for an export to .tflite: with post-training quantization, it loses its block.

    Raises:
      ConfigError: if a model would not be quantized, or not with 8 bits.
    """
    if ptq:
        config.ClearField("graph_rewriter")
    elif not config.HasField("graph_rewriter"):
        raise ConfigError(
            "the config has no graph_rewriter block, so its model is not quantized",
            where=where,
            fix="export with the QAT config that it was trained with, or pass --ptq",
        )
    check_for_tflite(config, where=where)


def check_for_tflite(config, where: str) -> None:
    """Refuses a graph_rewriter block that asks for other than 8 bits, which TFLite does not take.

    Raises:
      ConfigError: with the field and its bits.
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
