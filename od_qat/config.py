"""The options of quantization-aware training, which are validated when they are made."""

import dataclasses
import numbers
from typing import Any, Optional, Tuple

import regex

from od_qat.errors import ConfigError, quoted

PLACEMENTS = ("full", "contrib")
# An error shows this many characters of a wrong value.
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class LayerRule:
    """Settings of some layers that replace those of QatConfig; None leaves a setting unchanged.

    Attributes:
      scope: regular expression of a whole name scope (as `re.fullmatch`); the rule applies to everything
        below it. A fake quant's full name is a scope too: `.*/expanded_conv_3` means its layers, adds and
        activations, `.*/expanded_conv_3/project` one layer, `.*/act_quant` the activations of all layers.
      quantize: False keeps the layer float and its batch norm unchanged; True overrides an earlier False.
      weight_bits, activation_bits: width of the fake quants, 2 to 8.
      per_channel: whether the weights of convolutions get a range for each output channel.

    Raises:
      ConfigError: if a field is not valid; the message names rule and field.
    """

    scope: str
    quantize: Optional[bool] = None
    weight_bits: Optional[int] = None
    activation_bits: Optional[int] = None
    per_channel: Optional[bool] = None

    def __post_init__(self) -> None:
        if not isinstance(self.scope, str) or not self.scope:
            raise ConfigError(
                "a rule without a scope",
                where="rule",
                found=repr(self.scope),
                allowed="a regular expression such as 'BoxPredictor_.*'",
            )
        try:
            regex.compile(self.scope)
        except (regex.error, OverflowError, RecursionError) as error:
            raise ConfigError(
                "a rule's scope is not a regular expression",
                where=quoted(self),
                found=quoted(error),
                allowed="one such as 'BoxPredictor_.*'",
            ) from error
        for field in ("weight_bits", "activation_bits"):
            if getattr(self, field) is not None:
                _require_bits(getattr(self, field), "{}, {}".format(self, field))
        for field in ("quantize", "per_channel"):
            _require_bool(getattr(self, field), "{}, {}".format(self, field), optional=True)
        settings = (self.quantize, self.weight_bits, self.activation_bits, self.per_channel)
        if all(value is None for value in settings):
            raise ConfigError(
                "a rule that sets nothing",
                where=str(self),
                allowed="quantize, weight_bits, activation_bits, per_channel",
            )

    def __str__(self) -> str:
        return "rule {!r}".format(self.scope)


def _require_bits(value: Any, where: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not 2 <= value <= 8:
        raise ConfigError(
            "unsupported bit width",
            where=where,
            found=repr(value),
            allowed="2 to 8 in training, 8 for .tflite",
        )


def _require_steps(value: Any, where: str) -> None:
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or not 0 <= value < 2**63:  # it becomes an int64 in the graph
        raise ConfigError(
            "not a number of steps",
            where=where,
            found=repr(value)[:_SHOWN],
            allowed="a whole number from 0, or None",
        )


def _require_bool(value: Any, where: str, optional: bool = False) -> None:
    if not isinstance(value, bool) and not (optional and value is None):
        raise ConfigError("neither true nor false", where=where, found=repr(value), allowed="True or False")


@dataclasses.dataclass(frozen=True)
class QatConfig:
    """Options of the rewriter.

    Attributes:
      weight_bits, activation_bits: width of the fake quants, 2 to 8.
      symmetric: whether the ranges of activations and weights are symmetric around zero.
      quant_delay: the optimizer step, counted from 1, from which quantization is simulated; 0 and 1 both mean
        from the first. Ranges are tracked from the first step in any case.
      freeze_bn_delay: the optimizer step from which batch norms use their moving statistics; None for never.
      placement: 'full', or 'contrib' for exactly the tensors that tf.contrib.quantize quantizes.
      scope: rewrite only the ops below this name scope; None for all.
      ema_decay: decay of the moving average of activation ranges.
      per_channel: whether the weights of convolutions get a range for each output channel, for int8. MatMul
        always has one range, as TensorFlow's converter takes nothing else.
      rules: settings of some layers; if several rules match, the later wins, field by field.

    Raises:
      ConfigError: if a field is not valid; the message names it.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    symmetric: bool = False
    quant_delay: int = 0
    freeze_bn_delay: Optional[int] = None
    placement: str = "full"
    scope: Optional[str] = None
    ema_decay: float = 0.999
    per_channel: bool = False
    rules: Tuple[LayerRule, ...] = ()

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            _require_bits(getattr(self, field), field)
        for field in ("symmetric", "per_channel"):
            _require_bool(getattr(self, field), field)
        if self.placement not in PLACEMENTS:
            raise ConfigError(
                "unknown placement",
                where="placement",
                found=repr(self.placement),
                allowed=", ".join(PLACEMENTS),
            )
        for field in ("quant_delay", "freeze_bn_delay"):
            if getattr(self, field) is not None:
                _require_steps(getattr(self, field), field)
        if self.scope is not None and not isinstance(self.scope, str):
            raise ConfigError(
                "not a name scope",
                where="scope",
                found=repr(self.scope)[:_SHOWN],
                allowed="a name such as 'FeatureExtractor', or None for the whole graph",
            )
        if self.freeze_bn_delay is not None and self.freeze_bn_delay < (self.quant_delay or 0):
            raise ConfigError(
                "batch norm would freeze before quantization starts",
                where="freeze_bn_delay",
                found=str(self.freeze_bn_delay),
                allowed="at least quant_delay ({})".format(self.quant_delay),
            )
        if not isinstance(self.ema_decay, numbers.Real) or not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(
                "decay out of range", where="ema_decay", found=repr(self.ema_decay)[:_SHOWN], allowed="(0, 1)"
            )
        try:
            object.__setattr__(self, "rules", tuple(self.rules))  # a list is fine too
        except TypeError as error:
            raise ConfigError(
                "not a list of rules",
                where="rules",
                found=repr(self.rules)[:_SHOWN],
                allowed="LayerRules, or ()",
            ) from error
        for rule in self.rules:
            if not isinstance(rule, LayerRule):
                raise ConfigError("not a rule", where="rules", found=repr(rule), allowed="LayerRule")
        asked = [rule for rule in self.rules if rule.per_channel]
        if (self.per_channel or asked) and not self.symmetric_weights:
            raise ConfigError(
                "per-channel weights need symmetric ranges, as int8 does; contrib's are not symmetric",
                where="per_channel" if self.per_channel else "{}, per_channel".format(asked[0]),
                found="placement 'contrib'",
                fix="use placement 'full', or symmetric ranges",
            )

    def for_evaluation(self) -> "QatConfig":
        """Returns the options without those for training only, the delays and ema_decay."""
        return dataclasses.replace(
            self,
            quant_delay=QatConfig.quant_delay,
            freeze_bn_delay=QatConfig.freeze_bn_delay,
            ema_decay=QatConfig.ema_decay,
        )

    @property
    def symmetric_weights(self) -> bool:
        """Whether weight ranges are symmetric around zero.

        TFLite's int8 kernels need weights with zero point 0. contrib's ranges, whose ends are independent,
        fit only the uint8 kernels.
        """
        return self.symmetric or self.placement == "full"
