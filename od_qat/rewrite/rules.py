"""Decides the settings of each fake quant: those of QatConfig and of its rules, of which the later win."""

import time
from typing import Any, Dict, Iterator, List, NamedTuple

import regex

from od_qat.config import QatConfig
from od_qat.errors import RewriteError
from od_qat.rewrite import policy

_NAMES_SHOWN = 8
# The time limit of one rule for all names of a graph together; usual patterns take milliseconds.
_SECONDS = 5.0
# The fields of a rule that apply to weights, and those that apply to activations.
_WEIGHT_FIELDS = ("quantize", "weight_bits", "per_channel")
_ACTIVATION_FIELDS = ("quantize", "activation_bits")


class Settings(NamedTuple):
    """The settings of one fake quant.

    Attributes:
      quantise: False if a rule excludes it.
      bits: its width.
      per_channel: whether each output channel has a range; for weights only.
      reason: why it is not quantized; empty if it is.
    """

    quantise: bool
    bits: int
    per_channel: bool
    reason: str


class RuleBook(object):
    """Looks up the settings of each fake quant by its name, and keeps track of which rules were used.

    Args:
      config: options, rules included.
    """

    def __init__(self, config: QatConfig) -> None:
        self._config = config
        self._patterns = [regex.compile(rule.scope) for rule in config.rules]
        self._seconds_left = [_SECONDS] * len(config.rules)
        self._used = [False] * len(config.rules)
        self._names: Dict[str, None] = {}  # all names that were looked up, in that order

    def weights(self, name: str, op_type: str) -> Settings:
        """Returns the settings of `<layer>/weights_quant`, for an op with weights."""
        can_be_per_channel = op_type in policy.PER_CHANNEL
        fields = [f for f in _WEIGHT_FIELDS if f != "per_channel" or can_be_per_channel]
        found = self._resolve(name, fields)
        per_channel = found.get("per_channel", self._config.per_channel) and can_be_per_channel
        return self._settings(found, found.get("weight_bits", self._config.weight_bits), per_channel)

    def activation(self, name: str) -> Settings:
        """Returns the settings of `<layer>/act_quant` and other fake quants on activations."""
        found = self._resolve(name, _ACTIVATION_FIELDS)
        return self._settings(found, found.get("activation_bits", self._config.activation_bits), False)

    def require_all_used(self) -> None:
        """Raises if a rule was not used for any fake quant.

        Raises:
          RewriteError: the message names the rule, and what it matches or some scopes that exist.
        """
        for number, rule in enumerate(self._config.rules):
            if self._used[number]:
                continue
            matched = [name for name in self._names if self._matches(number, name)]
            if matched:
                raise RewriteError(
                    "a rule sets nothing for what it matches",
                    where=str(rule),
                    found=_some(matched),
                    allowed="weight_bits for weights, per_channel for those of convolutions, activation_bits "
                    "for activations",
                )
            scopes = list(dict.fromkeys(name.rpartition("/")[0] or name for name in self._names))
            raise RewriteError(
                "a rule matches nothing in this graph",
                where=str(rule),
                found="{} scopes: {}".format(len(scopes), _some(scopes)),
                allowed="a regular expression that matches a whole scope, or one above it",
            )

    def _resolve(self, name: str, fields) -> Dict[str, Any]:
        self._names.setdefault(name)
        found: Dict[str, Any] = {}
        for number, rule in enumerate(self._config.rules):
            values = {field: getattr(rule, field) for field in fields if getattr(rule, field) is not None}
            if values and self._matches(number, name):
                self._used[number] = True
                found.update(values)
                if "quantize" in values:
                    found["decided_by"] = rule
        return found

    def _settings(self, found: Dict[str, Any], bits: int, per_channel: bool) -> Settings:
        quantise = found.get("quantize", True)
        reason = "" if quantise else "excluded by {}".format(found["decided_by"])
        return Settings(quantise, bits, per_channel, reason)

    def _matches(self, number: int, name: str) -> bool:
        return any(self._matches_whole(number, scope) for scope in _scopes_of(name))

    def _matches_whole(self, number: int, scope: str) -> bool:
        """Whether a rule's pattern matches a scope. Without a limit, `(a|a)*b` could take days."""
        started = time.time()
        try:
            return self._patterns[number].fullmatch(scope, timeout=self._seconds_left[number]) is not None
        except (TimeoutError, MemoryError) as error:
            raise RewriteError(
                "a rule's regular expression takes too long",
                where=str(self._config.rules[number]),
                found="more than {:g} s; the last name was {}".format(_SECONDS, scope),
                fix="write it without choices that match the same text, such as (a|a) or a repetition within "
                "a repetition",
            ) from error
        finally:
            self._seconds_left[number] -= min(time.time() - started, self._seconds_left[number] - 1e-3)


def _some(names: List[str]) -> str:
    """Joins a few names from all over the graph; the first ones would all be the backbone's."""
    every = max(1, -(-len(names) // _NAMES_SHOWN))
    return ", ".join(names[::every]) + (", ..." if every > 1 else "")


def _scopes_of(name: str) -> Iterator[str]:
    """`a/b/c` -> `a/b/c`, `a/b`, `a`."""
    while name:
        yield name
        name = name.rpartition("/")[0]
