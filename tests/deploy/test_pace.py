"""An upload keeps to its share: what the bucket holds at once, the rest at the rate."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.deploy.agent.pace import Pacer
from airtune.errors import DeploymentError


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def sleep(self, seconds):
        self.now += seconds


def pacer_at(clock, burst=1000):
    return Pacer(burst_bytes=burst, clock=clock, sleep=clock.sleep)


@given(st.lists(st.integers(1, 5000), min_size=1, max_size=30), st.floats(1e3, 1e9))
def test_no_more_than_burst_and_rate_allow_is_ever_sent(sizes, rate):
    clock = Clock()
    pacer = pacer_at(clock)
    sent = 0
    for size in sizes:
        pacer(size, rate)
        sent += size
        assert sent <= 1000 + rate / 8 * clock.now * (1 + 1e-9) + 1e-6
    assert clock.now <= 8 * sent / rate


def test_a_pause_fills_the_bucket_but_no_more():
    clock = Clock()
    pacer = pacer_at(clock)
    pacer(1000, 8000.0)
    clock.now += 100.0
    assert pacer(1000, 8000.0) == 0.0
    assert pacer(500, 8000.0) == pytest.approx(0.5)


def test_the_rate_may_change_from_piece_to_piece():
    clock = Clock()
    pacer = pacer_at(clock, burst=0)
    assert pacer(1000, 8000.0) == pytest.approx(1.0)
    assert pacer(1000, 16000.0) == pytest.approx(0.5)


def test_a_share_of_nothing_is_refused():
    with pytest.raises(DeploymentError, match="above 0"):
        Pacer()(1, 0.0)


def test_on_a_real_clock_the_rate_is_kept_within_two_percent():
    pacer, rate = Pacer(), 20e6
    pay = pacer.at(rate)
    pay(1 << 14)
    start = time.monotonic()
    for _ in range(300):
        pay(16 << 10)
    measured = 8 * 300 * (16 << 10) / (time.monotonic() - start)
    assert measured == pytest.approx(rate, rel=0.02)
