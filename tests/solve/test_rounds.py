from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.plan import PrunedRounds
from airtune.solve import best_budget, best_joint_budget, convex_rounds, rounds_ratio, solve_joint


def measured(ratio):
    rates = np.linspace(0, 0.6, len(ratio))
    return [PrunedRounds(*row) for row in zip(rates, np.log(ratio), strict=True)]


def test_ratio_is_linear_between_points_and_goes_on_beyond():
    calibration = measured([1.0, 1.1, 1.5])
    assert rounds_ratio(calibration, 0.15) == pytest.approx(1.05)
    assert rounds_ratio(calibration, 0.75) == pytest.approx(1.7)


def test_free_pruning_is_used_to_the_full():
    assert best_budget(measured([1, 1, 1]), lambda g: 1 - g, least=0, most=0.9) == pytest.approx(
        0.6
    )


def test_pruning_that_never_pays_is_left():
    assert best_budget(measured([1, 3, 9]), lambda g: 1 - 0.5 * g, least=0, most=0.9) == 0.0


def test_memory_sets_a_floor():
    found = best_budget(measured([1, 3, 9]), lambda g: 1 - 0.5 * g, least=0.2, most=0.9)
    assert found == pytest.approx(0.2)


def test_finds_the_minimum_between_grid_points():
    calibration = measured([1.0, 1.2, 1.4, 1.6])
    found = best_budget(calibration, lambda g: (1 - g) ** 2 + 0.3, least=0, most=0.6)
    rates = np.linspace(0, 0.6, 2001)
    totals = [rounds_ratio(calibration, g) * ((1 - g) ** 2 + 0.3) for g in rates]
    total = rounds_ratio(calibration, found) * ((1 - found) ** 2 + 0.3)
    assert total <= min(totals) * 1.002


@pytest.mark.parametrize("seed", range(2))
def test_the_joint_search_is_as_good_as_a_dense_scan(joint, seed):
    problem, calibration = joint(15, seed), measured([1.0, 1.02, 1.1, 1.4])

    def total(rate):
        return (
            rounds_ratio(calibration, rate)
            * solve_joint(replace(problem, prune_budget=float(rate))).round_s
        )

    scan = min(total(rate) for rate in np.linspace(0, 0.6, 25))
    assert total(best_joint_budget(calibration, problem)) <= scan * 1.01


RISES = st.lists(st.floats(0.0, 1.0), min_size=1, max_size=6)


@given(rises=RISES)
def test_the_curve_of_pruning_is_convex_and_rises_from_nothing(rises):
    values = [0.0, *np.cumsum(rises)]
    rows = [PrunedRounds(0.1 * place, value) for place, value in enumerate(values)]
    rate, log_k = convex_rounds(rows)
    assert rate.tolist() == [row.pruned for row in rows]
    slopes = np.diff(log_k)
    assert log_k[0] == 0.0
    assert np.all(slopes >= -1e-9)
    assert np.all(np.diff(slopes) >= -1e-9)


def test_a_convex_measurement_is_read_as_it_is():
    rows = [PrunedRounds(0.0, 0.0), PrunedRounds(0.2, 0.1), PrunedRounds(0.5, 0.7)]
    assert convex_rounds(rows)[1] == pytest.approx([0.0, 0.1, 0.7])


def test_what_was_not_measured_costs_nothing():
    assert [column.tolist() for column in convex_rounds([])] == [[0.0], [0.0]]
