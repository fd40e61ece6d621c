import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.engine import clock
from airtune.engine.clock import in_step, passing, transfer


def table(rates):
    """Rates (slots, devices) in bit/s, repeated for ever."""
    return lambda slot, remaining: np.asarray(rates, np.float64)[slot % len(rates)]


def carried(rates, begin, end, slot_s, steps=100_000):
    """Bits between two moments by sampling the rate at midpoints: independent, nearly exact."""
    moments = begin + (np.arange(steps) + 0.5) * (end - begin) / steps
    return np.mean(np.asarray(rates)[(moments / slot_s).astype(int) % len(rates)]) * (end - begin)


@given(
    rates=st.lists(st.sampled_from([0.0, 5.0, 40.0, 300.0]), min_size=1, max_size=5).filter(any),
    start=st.floats(0.0, 3.0),
    size=st.floats(0.1, 60.0),
)
@settings(max_examples=60, deadline=None)
def test_a_transfer_ends_when_the_integral_of_its_rate_reaches_its_size(rates, start, size):
    done = transfer(
        table([[rate] for rate in rates]),
        start_s=np.array([start]),
        size_bytes=np.array([size]),
        slot_s=0.5,
    )
    assert carried(rates, start, done.finish_s[0], 0.5) == pytest.approx(8 * size, rel=1e-2)
    assert done.sent_bytes[0] == size


@given(
    rates=st.lists(st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3), min_size=1, max_size=6),
    sizes=st.lists(st.floats(0.0, 1e6), min_size=3, max_size=3),
    until=st.floats(0.1, 20.0),
)
@settings(max_examples=60, deadline=None)
def test_bytes_sent_by_a_deadline_are_the_integral_of_the_rate(rates, sizes, until):
    slot_s, sizes = 0.25, np.array(sizes)
    done = transfer(
        table(rates), start_s=np.zeros(3), size_bytes=sizes, slot_s=slot_s, until_s=until
    )
    edges = np.arange(0.0, until + slot_s, slot_s)
    lengths = np.diff(np.minimum(edges, until))
    room = sum(
        length * np.asarray(rates[slot % len(rates)]) / 8 for slot, length in enumerate(lengths)
    )
    # What was sent is the size less what is left: exact to the rounding of the size.
    assert done.sent_bytes == pytest.approx(np.minimum(room, sizes), rel=1e-9, abs=1e-12 * 1e6)
    assert np.all(np.isfinite(done.finish_s) == (done.sent_bytes >= sizes))


def test_an_outage_only_lets_time_pass():
    done = transfer(
        table([[80.0], [0.0], [0.0], [80.0]]),
        start_s=np.zeros(1),
        size_bytes=np.array([15.0]),
        slot_s=1.0,
    )
    assert done.finish_s[0] == 3.5


def test_a_link_that_stands_still_needs_one_question():
    asked = []

    def rates(slot, remaining):
        asked.append(slot)
        return np.array([8.0, 0.0])

    done = transfer(rates, start_s=np.array([2.0, 0.0]), size_bytes=np.full(2, 3.0), slot_s=None)
    assert done.finish_s.tolist() == [5.0, np.inf]
    assert done.sent_bytes.tolist() == [3.0, 0.0]
    assert asked == [0]


def test_slots_before_the_first_start_and_after_the_last_end_are_not_asked_about():
    asked = []

    def rates(slot, remaining):
        asked.append((slot, remaining.tolist()))
        return np.full(2, 8.0)

    transfer(rates, start_s=np.array([2.5, np.inf]), size_bytes=np.full(2, 1.0), slot_s=1.0)
    assert asked == [(2, [1.0, 0.0]), (3, [0.5, 0.0])]


def test_a_link_that_never_carries_anything_is_given_up(monkeypatch):
    monkeypatch.setattr(clock, "MAX_SLOTS", 50)
    done = transfer(table([[0.0]]), start_s=np.zeros(1), size_bytes=np.ones(1), slot_s=1.0)
    assert done.finish_s[0] == np.inf


SIZES = st.lists(st.floats(1.0, 100.0), min_size=2, max_size=2)
STARTS = st.lists(st.floats(0.0, 5.0), min_size=2, max_size=2)


@given(sizes=st.tuples(SIZES, SIZES), starts=st.tuples(STARTS, STARTS))
@settings(max_examples=60, deadline=None)
def test_two_processes_in_step_share_a_link_as_one_transfer_does(sizes, starts):
    """The link is divided by what all four have yet to send, at each slot edge."""

    def divided(remaining):
        return 40.0 * remaining / max(remaining.sum(), 1e-9)

    whole = transfer(
        lambda slot, remaining: divided(remaining),
        start_s=np.concatenate(starts),
        size_bytes=np.concatenate(sizes),
        slot_s=1.0,
    )
    told, shares = np.concatenate(sizes), {}

    def part(places, start_s, size_bytes):
        def tell(remaining):
            told[places] = remaining

        def rates(slot, remaining):
            return shares.setdefault(slot, divided(told.copy()))[places]

        return passing(
            rates, start_s=np.array(start_s), size_bytes=np.array(size_bytes), slot_s=1.0, tell=tell
        )

    parts = in_step(part(slice(0, 2), starts[0], sizes[0]), part(slice(2, 4), starts[1], sizes[1]))
    for name in ("finish_s", "sent_bytes"):
        found = np.concatenate([getattr(one, name) for one in parts])
        np.testing.assert_allclose(found, getattr(whole, name))
