"""What a round takes beside work and links is expected from what it took before."""

import numpy as np
import pytest

from airtune.engine.remote.handover import Handover


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
