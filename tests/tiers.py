"""Which tests run, by the environment's OD_QAT_TESTS: quick (the default), zoo or all.

quick   make test: every command, contract and error once, and the zoo by one member of each family
zoo     make test-zoo: and the other models of the zoo that have blocks of their own
all     make test-all: and what takes minutes: models with the blocks of others, upstream's tests

OD_QAT_MINUTES ends the zoo after so many minutes: what is left of it is skipped, each model by name.
"""

import os
import sys
import time

import pytest

TIERS = ("quick", "zoo", "all")
TIER = os.environ.get("OD_QAT_TESTS") or TIERS[0]
if TIER not in TIERS:
    raise pytest.UsageError("OD_QAT_TESTS: found {!r}, allowed: {}".format(TIER, ", ".join(TIERS)))
ALL = TIER == "all"
# Marker -> the tier that runs it.
_MARKERS = {"zoo": "zoo", "long": "all", "canary": "all"}
if sys.version_info < (3, 8):  # TensorFlow 1.15's, which takes twice the time to build a graph
    _MARKERS["long_on_tf1"] = "all"
_MINUTES = float(os.environ.get("OD_QAT_MINUTES") or "inf")
_STARTED = time.time()


def of_model(row):
    """The marks of a test of a model of the zoo, by its row of models.yaml."""
    if "like" in row:
        return [pytest.mark.zoo, pytest.mark.long]
    return [] if row.get("quick") else [pytest.mark.zoo]


def leave_out(items):
    """Marks what the tier does not run as skipped."""
    for item in items:
        for marker, tier in _MARKERS.items():
            if item.get_closest_marker(marker) and TIERS.index(tier) > TIERS.index(TIER):
                item.add_marker(
                    pytest.mark.skip(reason="of the tier {0}: make test-{0} runs it".format(tier))
                )
                break


def skip_if_the_time_is_over(item):
    """For models of the zoo, where there is less time than they take."""
    if item.get_closest_marker("zoo") and time.time() - _STARTED > 60 * _MINUTES:
        pytest.skip("OD_QAT_MINUTES={:g} are over".format(_MINUTES))
