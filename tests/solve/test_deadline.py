"""The deadline against brute force, and what its answers remember."""

import numpy as np
import pytest

from airtune.plan.pace import Pace
from airtune.solve.deadline import NO_ANSWERS, REMEMBERED, Answers, best_deadline


def answers(*unit_s):
    unit = np.array(unit_s)
    return Answers(unit, np.full(unit.shape, 2.0), np.zeros(unit.shape))


def best(answers, steps=8, asked=4):
    pace = Pace(1.0, (tuple(np.arange(1.0, steps + 1.0)),))
    return best_deadline(
        answers,
        pace,
        step_flops=np.ones(1),
        up_bytes=np.ones(1),
        asked=asked,
        generator=np.random.default_rng(0),
    )


def test_equal_devices_take_all_steps_as_the_download_is_paid_once():
    # a round of s steps lasts 2 + s seconds: s / (2 + s) rises up to the most steps
    assert best(answers(1.0, 1.0, 1.0)) == pytest.approx(10.0, rel=0.05)


def test_a_slow_device_is_not_waited_for():
    """With a device eight times slower, more than its one step would let seven others wait."""
    found = best(answers(*[1.0] * 7, 8.0), asked=8)
    assert found == pytest.approx(10.0, rel=0.1)


def test_only_the_last_answers_are_remembered():
    many = NO_ANSWERS.joined(answers(*np.arange(200.0)))
    assert len(many) == REMEMBERED
    assert many.unit_s[-1] == 199.0
    assert many.joined(answers(5.0)).unit_s[-1] == 5.0
