"""The least energy of a round: that of a device that is alone, in closed form and as a bound."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airtune.cost import alone_j, energy_j, known_shapes, least_j, predict
from airtune.plan import (
    Assignments,
    CodecSpec,
    LinkSpec,
    LinkState,
    Problem,
    Profiles,
    RateModel,
    Workload,
)

SHAPE = known_shapes()["minilm-l6"]
WORK = Workload(4, 32, local_steps=5, rank=8, lora_targets=("query", "value"), trains_head=True)
SPEED = np.array([1e10, 2e10, 4e10])
CODECS = (CodecSpec(), CodecSpec("deadzone", step=0.75))
COUNT = len(SPEED)


def problem():
    power = np.array([5.0, 10.0, 20.0])
    devices = Profiles(
        names=("a", "b", "c"),
        weight=np.full(COUNT, 1 / COUNT),
        samples=np.full(COUNT, 100),
        link=np.zeros(COUNT, np.int64),
        flops_per_s=SPEED,
        memory_bytes=np.full(COUNT, 1e9),
        power_w=power,
        transmit_power_w=power / 100,
    )
    return Problem(SHAPE, devices, WORK, rounds=3, seed=0)


def links():
    cell = LinkSpec("cell", "shared", 1e6, 2e6, RateModel(), None)
    nothing = np.full(COUNT, np.nan)
    return LinkState(
        specs=(cell,),
        link=np.zeros(COUNT, np.int64),
        up_signal_hz=np.array([1e6, 3e6, 2e6]),
        down_signal_hz=np.array([2e6, 6e6, 4e6]),
        up_capacity_bps=nothing,
        down_capacity_bps=nothing,
        available=np.ones(COUNT, bool),
    )


def each(low, high):
    return st.lists(st.integers(low, high), min_size=COUNT, max_size=COUNT).map(np.array)


@settings(max_examples=25)
@given(
    cut=each(0, SHAPE.blocks - 1),
    codec=each(0, 1),
    rank=each(1, 8),
    pruned=each(0, 8),
    share=each(1, 10),
)
def test_nothing_that_is_told_takes_less_than_alone_nor_less_than_the_least(
    cut, codec, rank, pruned, share
):
    told = Assignments(
        device=np.arange(COUNT),
        prune_heads=np.where(cut > 0, 0.0, np.minimum(pruned, 4) / 12),
        prune_ffn=np.where(cut > 0, 0.0, pruned / 12),
        rank=rank,
        share=share / 10,
        local_steps=np.full(COUNT, WORK.local_steps),
        cut=cut,
        codec_index=codec,
        codecs=CODECS,
    )
    at = {"links": links(), "flops_per_s": SPEED}
    used, alone = predict(problem(), told, **at).energy_j, alone_j(problem(), told, **at)
    assert np.all(alone <= used * (1 + 1e-12))
    assert np.all(least() <= alone * (1 + 1e-12))


@cache
def least():
    return least_j(problem(), CODECS, prunes=True, links=links(), flops_per_s=SPEED)


def test_a_device_that_is_alone_waits_for_nobody():
    one = Assignments(
        device=np.array([1]),
        prune_heads=np.zeros(1),
        prune_ffn=np.zeros(1),
        rank=np.array([8]),
        share=np.array([0.5]),
        local_steps=np.array([5]),
        cut=np.array([0]),
        codec_index=np.array([0]),
    )
    at = {"links": links(), "flops_per_s": SPEED}
    with_link = predict(problem(), replace(one, share=np.ones(1)), **at)
    wanted = energy_j(
        problem(),
        one.device,
        compute_s=with_link.compute_s,
        upload_s=with_link.upload_s,
        download_s=with_link.download_s,
        round_s=with_link.round_s,
    )
    assert alone_j(problem(), one, **at) == pytest.approx(wanted, rel=1e-12)
