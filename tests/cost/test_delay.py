from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.cost import (
    broadcast_bytes,
    gradient_bps,
    known_shapes,
    predict,
    split_cost,
    split_times,
)
from airtune.fleet.rates import downlink_bps, uplink_bps
from airtune.plan import (
    Assignments,
    CodecSpec,
    LinkSpec,
    LinkState,
    Problem,
    Profiles,
    RateModel,
    Workload,
    WorkSpec,
)

SPEED = np.array([1e10, 2e10, 4e10, 5e9])
LINK = np.array([0, 0, 1, 0])


@pytest.fixture
def problem():
    work = Workload(4, 32, local_steps=3, rank=8, lora_targets=("query", "value"), trains_head=True)
    devices = Profiles(
        names=("a", "b", "c", "d"),
        weight=np.full(4, 0.25),
        samples=np.full(4, 100),
        link=LINK,
        flops_per_s=SPEED,
        memory_bytes=np.full(4, 1e9),
        power_w=np.full(4, 5.0),
        transmit_power_w=np.full(4, 0.2),
    )
    return Problem(known_shapes()["minilm-l6"], devices, work, 3, 0, server_flops_per_s=1e11)


@pytest.fixture
def links():
    radio = LinkSpec("cell", "shared", 1e6, 2e6, RateModel(), None)
    site = LinkSpec("site", "dedicated", 0.0, 0.0, RateModel(), None)
    nan = np.nan
    return LinkState(
        specs=(radio, site),
        link=LINK,
        up_signal_hz=np.array([1e6, 3e6, nan, 5e5]),
        down_signal_hz=np.array([2e6, 6e6, nan, 1e6]),
        up_capacity_bps=np.array([nan, nan, 8e5, nan]),
        down_capacity_bps=np.array([nan, nan, 8e6, nan]),
        available=np.ones(4, bool),
    )


def plan(steps=(3, 3, 3, 3), cut=(1, 2, 3, 1)):
    zeros = np.zeros(4)
    return Assignments(
        device=np.arange(4),
        prune_heads=zeros,
        prune_ffn=zeros,
        rank=np.full(4, 8),
        share=np.array([0.5, 0.2, 1.0, 0.3]),
        local_steps=np.array(steps),
        cut=np.array(cut),
        codec_index=np.zeros(4, np.int64),
        codecs=(CodecSpec("topk", keep=0.1, bits=4),),
    )


def played(problem, told, links):
    """The finish times of a round played step by step."""
    cost = split_cost(problem, told)
    up, down = uplink_bps(links, told.share, told.device), downlink_bps(links, told.device)
    ready = 8 * cost.adapter_down_bytes / down
    finish, whole = np.zeros(4), told.cut == 0
    sent = 8 * broadcast_bytes(problem.shape, problem.workload, told) / down
    heard = max(sent[(LINK == 0) & whole], default=0.0)
    free = np.where(LINK == 0, heard, 0.0)
    for step in range(max(told.local_steps)):
        going = [i for i in range(4) if step < told.local_steps[i] and not whole[i]]
        arrived = max(
            ready[i]
            + cost.forward_flops[i] / SPEED[i]
            + 8 * (cost.activation_bytes[i] + cost.beside_bytes[i]) / up[i]
            for i in going
        )
        served = arrived + sum(cost.server_flops[i] for i in going) / problem.server_flops_per_s
        air = {i: 8 * cost.gradient_bytes[i] / down[i] for i in going}
        shared = sum(seconds for i, seconds in air.items() if LINK[i] == 0)
        done = {
            i: max(served, free[i])
            + (shared if LINK[i] == 0 else air[i])
            + cost.backward_flops[i] / SPEED[i]
            for i in going
        }
        barrier = max(done.values())
        for i in going:
            ready[i] = barrier
            if step == told.local_steps[i] - 1:
                finish[i] = done[i] + 8 * cost.adapter_up_bytes[i] / up[i]
    return finish


@pytest.mark.parametrize("steps", [(1, 1, 1, 1), (3, 3, 3, 3), (1, 3, 2, 5)])
def test_a_round_takes_as_long_as_one_played_step_by_step(problem, links, steps):
    told = plan(steps)
    found = predict(problem, told, links=links, flops_per_s=SPEED)
    np.testing.assert_allclose(found.finish_s, played(problem, told, links), rtol=1e-12)


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("slower", [1.0, 1e3])
def test_gradients_wait_for_the_broadcast_on_their_link(problem, links, steps, slower):
    slow = links.down_signal_hz / np.array([slower, 1.0, 1.0, 1.0])
    here, told = replace(links, down_signal_hz=slow), plan((steps,) * 4, cut=(0, 2, 3, 1))
    found = predict(problem, told, links=here, flops_per_s=SPEED).finish_s
    np.testing.assert_allclose(found[1:], played(problem, told, here)[1:], rtol=1e-12)
    alone = predict(problem, told, links=links, flops_per_s=SPEED).finish_s
    assert np.all(found[[1, 3]] > alone[[1, 3]]) == (slower > 1.0)


def test_a_sequential_server_takes_the_sum_and_gives_each_its_link(problem, links):
    one_by_one = replace(problem, work=WorkSpec(server="sequential"))
    told = plan()
    cost = split_cost(one_by_one, told)
    times = split_times(one_by_one, told, cost, links=links, flops_per_s=SPEED)
    alone = uplink_bps(links, np.ones(4), told.device)
    np.testing.assert_allclose(times.up_s, 8 * cost.up_bytes / alone)
    step = times.forward_s + times.up_s + times.server_s + times.down_s + times.backward_s
    whole = predict(one_by_one, told, links=links, flops_per_s=SPEED)
    assert whole.round_s == pytest.approx(np.sum(3 * step + times.fetch_s + times.send_s))


def test_a_device_with_the_whole_model_does_not_wait_for_the_others(problem, links):
    mixed = predict(problem, plan(cut=(0, 2, 3, 1)), links=links, flops_per_s=SPEED)
    alone = predict(problem, plan(cut=(0, 0, 0, 0)), links=links, flops_per_s=SPEED)
    assert mixed.finish_s[0] == alone.finish_s[0]
    assert mixed.upload_bytes[0] == alone.upload_bytes[0]


@given(st.lists(st.floats(0.0, 1e6), min_size=4, max_size=4))
def test_gradients_on_a_shared_link_end_together_within_its_air_time(sizes):
    spec = LinkSpec("air", "shared", 0.0, 0.0, RateModel(), None)
    nan = np.full(4, np.nan)
    capacity = np.array([1e6, 2e6, 5e6, 8e6])
    links = LinkState((spec,), np.zeros(4, np.int64), nan, nan, capacity, capacity, nan == nan)
    size = np.array(sizes)
    rate = gradient_bps(links, np.arange(4), size)
    assert np.sum(rate / capacity) <= 1.0 + 1e-9
    wanted = size > 1e-3
    ends = 8 * size[wanted] / rate[wanted]
    np.testing.assert_allclose(ends, np.sum(8 * size / capacity), rtol=1e-6)
