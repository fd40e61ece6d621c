from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.cost import (
    download_bytes,
    known_shapes,
    peak_memory,
    predict,
    train_flops,
    transfer_s,
    upload_bytes,
)
from airtune.errors import MethodError
from airtune.plan import LinkSpec, LinkState, Problem, Profiles, RateModel, Workload, whole_model

SHAPE = known_shapes()["minilm-l6"]
WORK = Workload(4, 32, local_steps=5, rank=8, lora_targets=("query", "value"), trains_head=True)
SPEED = np.array([1e10, 2e10, 4e10, 5e9])


def problem(powers=True):
    power = np.array([5.0, 10.0, 20.0, 2.0]) if powers else None
    devices = Profiles(
        names=("a", "b", "c", "d"),
        weight=np.full(4, 0.25),
        samples=np.full(4, 100),
        link=np.array([0, 0, 1, 1]),
        flops_per_s=SPEED,
        memory_bytes=np.full(4, 1e9),
        power_w=power,
        transmit_power_w=power,
    )
    return Problem(SHAPE, devices, WORK, rounds=3, seed=0)


def links():
    radio = LinkSpec("cell", "shared", 1e6, 2e6, RateModel(), None)
    site = LinkSpec("site", "dedicated", 0.0, 0.0, RateModel(), None)
    nan = np.nan
    return LinkState(
        specs=(radio, site),
        link=np.array([0, 0, 1, 1]),
        up_signal_hz=np.array([1e6, 3e6, nan, nan]),
        down_signal_hz=np.array([2e6, 6e6, nan, nan]),
        up_capacity_bps=np.array([nan, nan, 8e5, 0.0]),
        down_capacity_bps=np.array([nan, nan, 8e6, 8e6]),
        available=np.ones(4, bool),
    )


def plan(device, share):
    return whole_model(np.array(device), rank=8, local_steps=5, share=np.array(share))


def test_shares_of_a_radio_link_are_shares_of_its_hertz():
    told = plan([0, 1], [0.5, 0.25])
    seen = predict(problem(), told, links=links(), flops_per_s=SPEED)
    bits = 8 * upload_bytes(SHAPE, WORK, told)
    rate = np.array([5e5 * np.log2(1 + 2), 2.5e5 * np.log2(1 + 12)])
    assert seen.upload_s == pytest.approx(bits / rate, rel=1e-12)


def test_broadcast_comes_at_each_devices_own_rate_whatever_the_shares():
    seen = predict(problem(), plan([0, 1, 2], [0.1, 0.9, 1.0]), links=links(), flops_per_s=SPEED)
    rate = np.array([2e6 * np.log2(1 + 1), 2e6 * np.log2(1 + 3), 8e6])
    bits = 8 * download_bytes(SHAPE, WORK, 8)
    assert seen.download_s == pytest.approx(bits / rate, rel=1e-12)


def test_finish_is_the_sum_and_the_round_ends_with_the_last():
    seen = predict(problem(), plan([0, 1, 2], [0.5, 0.5, 1.0]), links=links(), flops_per_s=SPEED)
    total = seen.download_s + seen.compute_s + seen.upload_s
    assert seen.finish_s.tolist() == total.tolist()
    assert seen.round_s == max(total)


def test_device_without_rate_never_finishes():
    seen = predict(problem(), plan([2, 3], [1.0, 1.0]), links=links(), flops_per_s=SPEED)
    assert np.isfinite(seen.finish_s).tolist() == [True, False]
    assert seen.round_s == np.inf


def test_device_without_a_share_never_finishes():
    seen = predict(problem(), plan([0, 1], [0.0, 1.0]), links=links(), flops_per_s=SPEED)
    assert seen.upload_s[0] == np.inf


def test_columns_are_those_of_the_parts_of_the_model():
    told = replace(plan([1, 2], [0.5, 1.0]), prune_ffn=np.array([0.0, 0.5]))
    seen = predict(problem(), told, links=links(), flops_per_s=SPEED)
    assert seen.flops.tolist() == train_flops(SHAPE, WORK, told).tolist()
    assert seen.compute_s.tolist() == (seen.flops / SPEED[[1, 2]]).tolist()
    assert seen.peak_bytes.tolist() == peak_memory(SHAPE, WORK, told).total.tolist()


def test_energy_is_what_board_amplifier_and_receiver_draw_until_the_round_ends():
    known = problem()
    seen = predict(known, plan([0, 2], [0.5, 1.0]), links=links(), flops_per_s=SPEED)
    board_w = known.devices.power_w[[0, 2]]
    antenna_w = known.devices.transmit_power_w[[0, 2]]
    waiting_s = seen.finish_s.max() - seen.compute_s
    expected = (
        board_w * seen.compute_s
        + 0.15 * board_w * waiting_s
        + (antenna_w / 0.35 + 0.0828) * seen.upload_s
        + 0.1058 * seen.download_s
    )
    assert seen.energy_j == pytest.approx(expected, rel=1e-12)


def test_a_device_that_waits_longer_uses_more_energy():
    alone = predict(problem(), plan([2], [1.0]), links=links(), flops_per_s=SPEED)
    slow = np.where(np.arange(len(SPEED)) == 0, SPEED / 50, SPEED)
    beside = predict(problem(), plan([0, 2], [0.0, 1.0]), links=links(), flops_per_s=slow)
    late = predict(problem(), plan([0, 2], [0.5, 1.0]), links=links(), flops_per_s=slow)
    assert beside.energy_j[1] == pytest.approx(alone.energy_j[0])
    assert late.energy_j[1] > beside.energy_j[1]


def test_hidden_powers_leave_the_energy_unknown():
    seen = predict(problem(powers=False), plan([0], [1.0]), links=links(), flops_per_s=SPEED)
    assert np.isnan(seen.energy_j).all()


def test_speeds_of_another_fleet_are_refused():
    with pytest.raises(MethodError, match=r"got shape \(2,\) for 4 devices"):
        predict(problem(), plan([0], [1.0]), links=links(), flops_per_s=np.ones(2))


def test_empty_plan_takes_no_time():
    nobody = plan(np.zeros(0, np.int64), [])
    assert predict(problem(), nobody, links=links(), flops_per_s=SPEED).round_s == 0.0


@given(share=st.floats(0.01, 0.99), prune=st.floats(0.0, 0.9))
def test_more_share_or_more_pruning_never_finishes_later(share, prune):
    def finish(share, prune):
        told = replace(plan([0], [share]), prune_ffn=np.array([prune]))
        return predict(problem(), told, links=links(), flops_per_s=SPEED).finish_s[0]

    assert finish(share + 0.01, prune) < finish(share, prune)
    assert finish(share, min(prune + 0.05, 0.95)) <= finish(share, prune)


@given(st.floats(1.0, 1e12), st.floats(1.0, 1e9))
def test_transfer_conserves_bits(size, rate):
    seconds = transfer_s(np.array([size]), np.array([rate]))
    assert seconds * rate == pytest.approx(8 * size, rel=1e-12)
