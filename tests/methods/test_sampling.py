"""Who is asked: dear devices more rarely, nobody never, and everybody for a reason."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.errors import RecipeError
from airtune.methods import build_method, check_method, sample_problem
from airtune.methods.contract import sample_observation
from airtune.methods.sampling import LEAST, probabilities

NUMBERS = st.lists(st.tuples(st.floats(1e-3, 1.0), st.floats(0.0, 2.0)), min_size=1, max_size=12)


@given(NUMBERS, st.floats(LEAST, 1.0))
def test_probabilities_keep_the_mean_the_floor_and_one_device_for_certain(devices, mean):
    weight, price = np.array(devices).T
    found = probabilities(weight, price, mean)
    assert (found >= LEAST).all()
    others = np.arange(len(found)) != np.argmax(weight / np.sqrt(1 / len(found) + price))
    assert (found[~others] == 1.0).all()
    least = (1.0 + LEAST * others.sum()) / len(found)
    assert found.mean() == pytest.approx(max(mean, least), abs=1e-6)
    for one in np.flatnonzero(others):  # no more data and no cheaper: asked no more often
        dearer = others & (weight <= weight[one]) & (price >= price[one])
        assert (found[dearer] <= found[one] + 1e-9).all()


def test_the_rule_has_less_variance_than_any_other_of_its_cost():
    """Against random probabilities of the same cost, where no bound is met; the first is certain."""
    weight, price = np.array([0.4, 0.3, 0.2, 0.2]), np.array([0.1, 0.5, 0.2, 0.8])
    cost, found = (0.25 + price)[1:], probabilities(weight, price, 0.7)
    assert found[0] == 1.0
    weight, found = weight[1:], found[1:]
    assert ((found > LEAST) & (found < 1.0)).all()
    draws = np.random.default_rng(0).uniform(LEAST, 1.0, (20_000, 3))
    draws *= (found @ cost) / (draws @ cost)[:, None]
    others = draws[((draws <= 1.0) & (draws >= LEAST)).all(axis=1)]
    assert len(others) > 1000
    assert np.sum(weight**2 / found) <= np.sum(weight**2 / others, axis=1).min() + 1e-9


def test_who_was_never_planned_for_is_asked():
    found = probabilities(np.ones(4), np.array([0.0, 0.0, 0.0, np.nan]), 0.5)
    assert found[3] == 1.0


def test_auto_asks_all_at_first_and_then_some_each_with_a_reason():
    method = build_method("auto", {"sampling_rate": 0.5, "knobs": ["prune", "share"]})
    problem = replace(sample_problem(), work=method.work)
    state, left = method.decider.init(problem), 0
    for number in range(4):
        seen = sample_observation(problem, number)
        plan, state = method.decider.plan(problem, state, seen)
        told = plan.assignments
        both = np.union1d(told.device, list(plan.not_asked)).astype(int)
        assert both.tolist() == np.flatnonzero(seen.available).tolist()
        assert number or not plan.not_asked
        assert all("sampled in" in reason for reason in plan.not_asked.values())
        rare = told.probability < 1.0
        assert all(
            ("with weight" in reason) == is_rare
            for reason, is_rare in zip(plan.reasons, rare, strict=True)
        )
        left += len(plan.not_asked)
    assert left


def test_a_method_that_asks_some_keeps_the_contract():
    check_method(build_method("auto", {"sampling_rate": 0.5}))


@pytest.mark.parametrize("rate", [0.0, 0.05, 1.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    with pytest.raises(RecipeError, match=r"sampling_rate: must be from 0\.1 to 1"):
        build_method("auto", {"sampling_rate": rate})
