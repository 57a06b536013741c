"""Checkpoints: finds them, requires what a graph needs, and plans what a fine-tuning restores."""

from od_qat.checkpoints.fine_tune import (
    FineTunePlan,
    FreshModel,
    by_scope,
    fresh_model_variables,
    plan_fine_tune,
)
from od_qat.checkpoints.names import AVERAGE, OBJECTS, QUANT_STEP, QUANT_VARIABLES, quant_variable_names
from od_qat.checkpoints.of_graph import basename, global_step, named, require_kind, saver
from od_qat.checkpoints.on_disk import (
    latest,
    named_by,
    newest,
    normalised,
    remove_unfinished,
    require_no_pattern,
    restore,
    shapes,
    step_of,
)
from od_qat.checkpoints.strict import refuse_float_resume, require_all
from od_qat.checkpoints.watch import Watch

__all__ = [
    "AVERAGE",
    "OBJECTS",
    "QUANT_STEP",
    "QUANT_VARIABLES",
    "FineTunePlan",
    "FreshModel",
    "Watch",
    "basename",
    "by_scope",
    "fresh_model_variables",
    "global_step",
    "latest",
    "named",
    "named_by",
    "newest",
    "normalised",
    "plan_fine_tune",
    "quant_variable_names",
    "refuse_float_resume",
    "remove_unfinished",
    "require_all",
    "require_kind",
    "require_no_pattern",
    "restore",
    "saver",
    "shapes",
    "step_of",
]
