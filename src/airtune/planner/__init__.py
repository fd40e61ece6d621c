"""Planning without weights and without training: what a run, or a model on a device, would cost.

Everything comes from the cost model that the virtual clock uses: bytes and FLOPs are exact, seconds
are as good as the speeds and links of the fleet. Unknown before the data are read, and therefore
assumed and said so: every device holds equally many rows, and every sequence is as long as
`data.max_length`.
"""

from airtune.planner.cuts import CutChoice, cut_choices, cut_peaks, feasible_cuts
from airtune.planner.model import Choice, ModelPlan, plan_model
from airtune.planner.run import DevicePlan, Plan, feasible, plan_recipe
from airtune.planner.shape import find_shape, shape_of

__all__ = [
    "Choice",
    "CutChoice",
    "DevicePlan",
    "ModelPlan",
    "Plan",
    "cut_choices",
    "cut_peaks",
    "feasible",
    "feasible_cuts",
    "find_shape",
    "plan_model",
    "plan_recipe",
    "shape_of",
]
