"""What Flower adds to a round is expected from what it added before."""

import numpy as np
import pytest

from airtune.engine.flower.handover import LOOK_S, Handover


def test_before_any_round_more_devices_wait_longer_and_never_beyond_a_look_and_the_rest() -> None:
    expected = [Handover().expected_s(devices) for devices in (1, 2, 10, 1000)]
    assert expected == sorted(expected)
    assert LOOK_S / 2 < expected[0] < expected[-1] < LOOK_S + 1.0


def test_the_longest_of_many_random_waits_is_the_first_guess() -> None:
    waits = np.random.default_rng(0).uniform(0.0, LOOK_S, (20_000, 4)).max(axis=1).mean()
    assert Handover().expected_s(4) - Handover().expected_s(1) == pytest.approx(
        waits - LOOK_S / 2, abs=0.02
    )


def test_what_a_round_took_beyond_its_work_is_expected_of_the_next() -> None:
    seen = Handover()
    for over_s in (1.0, 5.0, 2.0):
        seen.learn(np.array([10.0, 30.0 + over_s, np.nan]), np.array([9.5, 30.0, 90.0]))
    assert seen.expected_s(3) == pytest.approx(2.0)


def test_a_round_in_which_nobody_was_done_teaches_nothing() -> None:
    seen = Handover()
    seen.learn(np.array([np.nan]), np.array([1.0]))
    assert seen.expected_s(2) == Handover().expected_s(2)


def test_nobody_asked_is_nothing_to_wait_for() -> None:
    assert Handover().expected_s(0) == 0.0
