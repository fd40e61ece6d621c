"""The vocabulary: dataclasses and protocols that pass between the rooms, and nothing that acts."""

from airtune.plan.assignment import Assignment, Assignments, CodecSpec, whole_model
from airtune.plan.link import LinkSpec, LinkState, RateModel
from airtune.plan.mask import mask_observation, mask_problem
from airtune.plan.measurements import TABLES, CodedScale, Measurements, joined, measurements_from
from airtune.plan.method import (
    AggregateSpec,
    Decider,
    Method,
    Need,
    Note,
    RoundPlan,
    Solution,
    State,
    Want,
)
from airtune.plan.observe import (
    Observation,
    Problem,
    Profiles,
    Results,
    RoundColumns,
    Sensitivity,
    Workload,
)
from airtune.plan.pace import Pace
from airtune.plan.rounds_tables import (
    CodecRounds,
    PrunedRounds,
    RankRounds,
    StepRounds,
    UploadRounds,
)
from airtune.plan.shape import Bools, Floats, Ints, Linear, ModelShape
from airtune.plan.work import ImportanceKind, Mend, WorkSpec

__all__ = [
    "TABLES",
    "AggregateSpec",
    "Assignment",
    "Assignments",
    "Bools",
    "CodecRounds",
    "CodecSpec",
    "CodedScale",
    "Decider",
    "Floats",
    "ImportanceKind",
    "Ints",
    "Linear",
    "LinkSpec",
    "LinkState",
    "Measurements",
    "Mend",
    "Method",
    "ModelShape",
    "Need",
    "Note",
    "Observation",
    "Pace",
    "Problem",
    "Profiles",
    "PrunedRounds",
    "RankRounds",
    "RateModel",
    "Results",
    "RoundColumns",
    "RoundPlan",
    "Sensitivity",
    "Solution",
    "State",
    "StepRounds",
    "UploadRounds",
    "Want",
    "WorkSpec",
    "Workload",
    "joined",
    "mask_observation",
    "mask_problem",
    "measurements_from",
    "whole_model",
]
