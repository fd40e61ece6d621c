"""What a device settles on, against every choice tried one by one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.errors import MethodError
from airtune.plan.pace import Pace, settle

VALUE = ((1.0, 2.0, 3.0, 4.0), (0.8, 1.6, 2.4, 3.2))
ARMS = ((0.0, 0.0, 8), (0.0, 0.0, 4))
SECONDS = st.floats(0.01, 20.0)


@given(
    finish_s=SECONDS,
    start_s=SECONDS,
    step=st.tuples(SECONDS, SECONDS),
    send=st.tuples(SECONDS, SECONDS),
)
def test_the_choice_is_the_best_of_all_that_end_in_time(finish_s, start_s, step, send):
    found = settle(
        Pace(finish_s, VALUE, ARMS),
        start_s=np.array([start_s]),
        step_s=np.array([step]),
        send_s=np.array([send]),
    )
    ends = {
        (arm, steps): start_s + steps * step[arm] + send[arm]
        for arm in range(2)
        for steps in range(1, 5)
    }
    in_time = [key for key, end_s in ends.items() if end_s <= finish_s * (1 + 1e-9)]
    if in_time:
        best = max(VALUE[arm][steps - 1] for arm, steps in in_time)
        assert VALUE[found.arm[0]][found.steps[0] - 1] == pytest.approx(best)
        assert found.finish_s[0] <= finish_s * (1 + 1e-8)
    else:
        assert not found.fits[0]
        assert found.finish_s[0] == pytest.approx(min(ends[arm, 1] for arm in range(2)))


def test_an_arm_that_memory_does_not_hold_is_not_played():
    found = settle(
        Pace(10.0, VALUE, ARMS),
        start_s=np.zeros(1),
        step_s=np.ones((1, 2)),
        send_s=np.zeros((1, 2)),
        allowed=np.array([[False, True]]),
    )
    assert found.arm.tolist() == [1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"finish_s": 0.0}, "must be above 0 and finite, got 0"),
        ({"value": ((1.0, float("nan")),)}, "must be finite"),
        ({"value": ((),)}, "at least 1 step"),
        ({"arms": ARMS}, "one row of values for each of 2 arms"),
    ],
)
def test_a_pace_that_means_nothing_is_refused(changes, message):
    with pytest.raises(MethodError, match=message):
        Pace(**({"finish_s": 1.0, "value": ((1.0, 2.0),)} | changes))
