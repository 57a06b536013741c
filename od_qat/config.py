"""What a user can ask of quantization-aware training, validated once."""

import dataclasses
from typing import Optional

from od_qat.errors import ConfigError

PLACEMENTS = ("full", "contrib")


@dataclasses.dataclass(frozen=True)
class QatConfig:
    """Options of the rewriter.

    Attributes:
      weight_bits, activation_bits: width of the fake quants, 2 to 8.
      symmetric: activation ranges symmetric around zero, and weights' with them.
      quant_delay: optimiser steps before quantization is simulated; ranges are tracked from the first.
      freeze_bn_delay: optimiser steps before batch norm uses its moving statistics; None for never.
      placement: 'full', or 'contrib' for exactly the tensors that tf.contrib.quantize quantises.
      scope: only ops below this name scope; None for all.
      ema_decay: decay of the activation ranges' moving average.

    Raises:
      ConfigError: naming the field.
    """

    weight_bits: int = 8
    activation_bits: int = 8
    symmetric: bool = False
    quant_delay: int = 0
    freeze_bn_delay: Optional[int] = None
    placement: str = "full"
    scope: Optional[str] = None
    ema_decay: float = 0.999

    def __post_init__(self) -> None:
        for field in ("weight_bits", "activation_bits"):
            value = getattr(self, field)
            if not isinstance(value, int) or not 2 <= value <= 8:
                raise ConfigError("unsupported bit width", where=field, found=repr(value), allowed="2 to 8")
        if self.placement not in PLACEMENTS:
            raise ConfigError(
                "unknown placement",
                where="placement",
                found=repr(self.placement),
                allowed=", ".join(PLACEMENTS),
            )
        if self.quant_delay is not None and self.quant_delay < 0:
            raise ConfigError(
                "negative delay", where="quant_delay", found=str(self.quant_delay), allowed=">= 0"
            )
        if self.freeze_bn_delay is not None and self.freeze_bn_delay < (self.quant_delay or 0):
            raise ConfigError(
                "batch norm would freeze before quantization starts",
                where="freeze_bn_delay",
                found=str(self.freeze_bn_delay),
                allowed="at least quant_delay ({})".format(self.quant_delay),
            )
        if not 0.0 < self.ema_decay < 1.0:
            raise ConfigError(
                "decay out of range", where="ema_decay", found=str(self.ema_decay), allowed="(0, 1)"
            )

    @property
    def symmetric_weights(self) -> bool:
        """Whether weight ranges are symmetric around zero.

        TFLite's int8 kernels take weights with zero point 0 only; contrib's ranges, each end by itself, fit
        its uint8 kernels only.
        """
        return self.symmetric or self.placement == "full"
