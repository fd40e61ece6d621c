"""What loss curves say of rounds, against curves that are known in closed form."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.calibrate.curves import later_loss, log_rounds, rounds_needed, runs_away
from airtune.calibrate.tables import read_pruning


def exponential(rate, rounds=8):
    return tuple(float(1 + 4 * np.exp(-rate * number)) for number in range(rounds + 1))


@given(st.floats(0.1, 1.0))
def test_a_curve_twice_as_slow_needs_twice_the_rounds(rate):
    fast, slow = exponential(rate), exponential(rate / 2)
    assert rounds_needed(fast, slow) == pytest.approx(2.0, rel=0.1)
    assert log_rounds(slow, fast) == -log_rounds(fast, slow)


def test_no_loss_of_quality_costs_nothing():
    same = exponential(0.3)
    assert [row[1:] for row in read_pruning((0.0, 0.2, 0.4), (same, same, same))] == [
        (0.0, 0.0)
    ] * 3


def test_better_with_pruning_counts_as_free_and_costs_never_fall():
    curves = (exponential(0.3), exponential(0.2), exponential(0.4))
    none, some, more = read_pruning((0.0, 0.2, 0.4), curves)
    assert none[1:] == (0.0, 0.0)
    assert some.log_rounds == more.log_rounds > 0.0
    assert some.loss == more.loss > 0.0


def test_no_progress_at_all_gets_the_worst_ratio():
    assert rounds_needed(exponential(0.3), (5.0,) * 9) == pytest.approx(10.0)


def test_a_model_that_learns_nothing_says_nothing_of_pruning():
    assert not runs_away((4.0, 4.0, 4.1), (4.0, 4.2, 4.3))


def test_losses_are_read_over_the_later_half():
    assert later_loss((9.0, 2.0, 1.0, 1.0), (9.0, 5.0, 1.2, 1.0)) == pytest.approx(0.1)
