"""A changed plan: few plans close in on the amount that meets, and a few rounds stand for all."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.planner.changed import SeenPlan, closed_in
from airtune.planner.sample import draws_of, sample
from airtune.planner.setting import setting_of
from airtune.recipe import load_recipe


def searched(takes_s, limit_s, short, enough, **how):
    seen = []

    def see(amount):
        seen.append(amount)
        return SeenPlan(takes_s(amount), 1, 0.0, "")

    found, _ = closed_in(
        limit_s,
        (short, see(short)),
        (enough, see(enough)),
        see,
        lambda plan: plan.total_s <= limit_s,
        **how,
    )
    return found, len(seen)


@given(st.floats(0.1, 2.0), st.floats(-3.9, 3.9))
def test_a_power_is_closed_in_on_by_few_plans(power, log_root):
    root = math.exp(log_root)
    found, plans = searched(lambda factor: (root / factor) ** power, 1.0, 1 / 64, 64.0, close=1.02)
    assert root * (1 - 1e-9) <= found <= 1.021 * root
    assert plans <= 6


@given(st.floats(0.0, 0.95), st.floats(-3.9, 3.9))
def test_a_time_with_a_part_that_does_not_change_is_closed_in_on_too(fixed, log_root):
    root = math.exp(log_root)
    found, plans = searched(
        lambda factor: fixed + (1 - fixed) * root / factor, 1.0, 1 / 64, 64.0, close=1.02
    )
    assert root * (1 - 1e-9) <= found <= 1.021 * root
    assert plans <= 20


@given(st.integers(2, 4000), st.floats(0.0, 0.9))
def test_the_most_rounds_are_found(most, fixed):
    found, plans = searched(
        lambda rounds: fixed + (1 - fixed) * rounds / (most + 0.5),
        1.0,
        4001,
        1,
        close=1 + 1 / 8000,
        snap=round,
    )
    assert found == most
    assert plans <= 26


@pytest.mark.parametrize("quantile", [None, 0.9])
def test_the_rounds_that_stand_for_all_end_next_to_the_quantile(quantile):
    setting = setting_of(
        load_recipe(
            overrides=[
                "fleet.devices=5",
                "method.name=fedavg-lora",
                "data.max_length=48",
                "output=none",
            ]
        )
    )
    every = sample(setting, draws_of(setting.problem.rounds, quantile))
    few = sample(setting, every.typical(quantile))
    level = 0.5 if quantile is None else quantile
    assert set(few.round_s) <= set(every.round_s)
    below = np.sum(every.round_s < few.round_s.min()) / (every.round_s.size - 1)
    above = np.sum(every.round_s <= few.round_s.max()) / (every.round_s.size - 1)
    assert below < level < above
    assert few.totals(10).total_s == pytest.approx(every.totals(10, quantile).total_s, rel=0.05)
