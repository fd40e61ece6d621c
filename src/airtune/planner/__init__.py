"""Planning without weights and without training: what a run, or a model on a device, would cost.

Everything comes from the cost model that the virtual clock uses: bytes and FLOPs are exact, seconds
are as good as the speeds and links of the fleet. Unknown before the data are read, and therefore
assumed and said so: every device holds equally many rows, and every sequence is as long as
`data.max_length`.
"""

from airtune.planner.cuts import CutChoice, cut_choices, feasible_cuts
from airtune.planner.front import FrontPoint, ParetoFront, plan_front, read_axes
from airtune.planner.groups import Group, groups_of, span
from airtune.planner.machine import training_flops_per_s
from airtune.planner.model import ModelChoice, ModelPlan, plan_model
from airtune.planner.page import page_of
from airtune.planner.prices import PRICED_DEVICES, Price, price_lines, prices_of
from airtune.planner.result import DevicePlan, Money, Plan
from airtune.planner.run import plan_of, plan_recipe
from airtune.planner.sample import Draws, draws_of, sample
from airtune.planner.setting import PlanSetting, setting_of
from airtune.planner.shape import find_shape, shape_of
from airtune.planner.within import VARIED, Requirement, Within, plan_within, read_vary
from airtune.planner.words import feasible

__all__ = [
    "PRICED_DEVICES",
    "VARIED",
    "CutChoice",
    "DevicePlan",
    "Draws",
    "FrontPoint",
    "Group",
    "ModelChoice",
    "ModelPlan",
    "Money",
    "ParetoFront",
    "Plan",
    "PlanSetting",
    "Price",
    "Requirement",
    "Within",
    "cut_choices",
    "draws_of",
    "feasible",
    "feasible_cuts",
    "find_shape",
    "groups_of",
    "page_of",
    "plan_front",
    "plan_model",
    "plan_of",
    "plan_recipe",
    "plan_within",
    "price_lines",
    "prices_of",
    "read_axes",
    "read_vary",
    "sample",
    "setting_of",
    "shape_of",
    "span",
    "training_flops_per_s",
]
