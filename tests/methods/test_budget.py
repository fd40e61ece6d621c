"""The most that a device may prune: as set, as measured, or what memory forces."""

import numpy as np
import pytest

from airtune.cost import llama_like
from airtune.methods.budget import UNMEASURED_MOST, most_of
from airtune.plan import Measurements, Problem, Profiles, PrunedRounds, Sensitivity, Workload

SHAPE = llama_like(
    "llama", blocks=2, width=64, heads=6, kv_groups=3, head_dim=8, ffn=12, vocab=60, tied=True
)
STEEP = Sensitivity((0.0, 0.5), (0.0, 99.0), (0.0, 0.25, 0.5), (0.0, 0.9, 9.0), "")


def problem_of(**measured):
    nothing = Profiles(
        ("one",), np.ones(1), np.ones(1, np.int64), np.zeros(1, np.int64), None, None, None, None
    )
    work = Workload(1, 8, local_steps=1, rank=2, lora_targets=())
    return Problem(SHAPE, nothing, work, rounds=1, seed=0, **measured)


def pruned_up_to(most):
    return Measurements("", "", pruning=(PrunedRounds(0.0, 0.0),), most_pruned=most)


def test_what_is_set_counts_whatever_was_measured():
    assert most_of(problem_of(sensitivity=STEEP), 0.6) == 0.6


def test_what_was_measured_counts_and_the_smaller_of_both():
    quarter = float(SHAPE.pruned_fraction(0.0, 0.25))
    assert most_of(problem_of(), "auto") == UNMEASURED_MOST
    assert most_of(problem_of(sensitivity=STEEP), "auto") == pytest.approx(quarter)
    both = problem_of(sensitivity=STEEP, measurements=pruned_up_to(0.01))
    assert most_of(both, "auto") == 0.01
