"""What a device says of its time is believed as far as the server waited for it."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from airtune.engine.learnt import MOST, LearntRatio
from airtune.engine.message import Reply, Spent
from airtune.engine.remote.answers import Answer

SAID = st.floats(allow_nan=True, allow_infinity=True)


def answer(spent: Spent, **figures: float) -> Answer:
    reply = Reply("train", 1, 0, 0, "a", "ticket", spent=spent, figures=figures)
    return Answer("ok", "", after_s=5.0, sent_bytes=0, received_bytes=0, reply=reply, upload_s=2.0)


@given(st.tuples(SAID, SAID, SAID, SAID, SAID))
def test_no_part_is_longer_than_the_server_waited_nor_below_nothing(
    said: tuple[float, ...],
) -> None:
    found = answer(Spent(*said[:4]), stepping_s=said[4])
    assert found.spent is not None
    assert found.spent.judging_s is not None
    parts = (found.spent.load_s, found.spent.compute_s, found.spent.judging_s)
    assert all(0.0 <= part <= 3.0 for part in (*parts, found.spent.download_s, found.work_s))


def test_what_can_be_is_believed() -> None:
    spent = Spent(0.5, 1.5, 0.25, 0.125)
    assert answer(spent).spent == spent
    assert answer(spent).work_s == 1.5
    assert answer(spent, stepping_s=0.75).work_s == 0.75


@given(st.lists(SAID, min_size=1, max_size=8))
def test_whatever_is_reported_a_speed_stays_one_that_can_be_planned_with(
    reported: list[float],
) -> None:
    ratio = LearntRatio(1)
    for seconds in reported:
        ratio.learn(np.zeros(1, np.int64), np.ones(1), np.array([seconds]))
    assert abs(np.log(ratio.factor[0])) <= np.log(MOST) + 1e-9
    assert np.isfinite(ratio.spread[0])
