"""Plans asked backwards: the answer meets, a little less does not, and what nothing meets says why."""

import re
from dataclasses import replace

import numpy as np
import pytest

from airtune.errors import RecipeError
from airtune.fleet.change import with_bandwidth, with_memory, without
from airtune.planner import plan_of, plan_within, read_vary, setting_of
from airtune.recipe import load_recipe
from airtune.units import parse_seconds

FEW = ("fleet.devices=5", "train.rounds=3", "output=none", "data.max_length=48")


def setting(*words):
    return setting_of(load_recipe(overrides=[*FEW, *words]))


@pytest.fixture(scope="module")
def shared():
    return setting("method.name=best-bandwidth", "train.local_steps=1")


@pytest.mark.parametrize("part", [0.7, 2.0])
def test_the_bandwidth_found_meets_and_a_little_less_does_not(shared, part):
    limit = part * plan_of(shared).total_s
    (answer,) = plan_within(shared, limit, vary=["bandwidth"]).answers

    def takes(factor):
        return plan_of(shared.on(with_bandwidth(shared.fleet, up=factor, down=factor))).total_s

    assert answer.meets
    assert answer.total_s == takes(answer.amount) <= limit
    assert takes(answer.amount / 1.03) > limit
    assert (answer.amount > 1.0) == (part < 1.0)


def test_the_verdict_is_of_the_rounds_that_were_asked_about(shared):
    usual = plan_within(shared, 1e9, vary=["rounds"])
    slow = plan_within(shared, 1e9, vary=["rounds"], quantile=0.9)
    assert usual.verdict.startswith("the run takes ")
    assert slow.verdict.startswith("with every round at the 90% quantile of round time")
    assert slow.total_s > usual.total_s


def test_rounds_are_as_many_as_fit(shared):
    now = plan_of(shared)
    (fewer,) = plan_within(shared, 0.7 * now.total_s, vary=["rounds"]).answers
    assert fewer.amount == 2
    (more,) = plan_within(shared, 2.0 * now.total_s, vary=["rounds"]).answers
    assert (
        more.total_s <= 2.0 * now.total_s < plan_of(shared.for_rounds(int(more.amount) + 1)).total_s
    )


def test_the_device_left_out_first_is_the_one_without_which_the_run_is_shortest(shared):
    now = plan_of(shared).total_s
    alone = {
        name: plan_of(shared.on(without(shared.fleet, np.array([index])))).total_s
        for index, name in enumerate(shared.fleet.names)
    }
    best = min(alone, key=lambda name: alone[name])
    (answer,) = plan_within(shared, (now + alone[best]) / 2, vary=["devices"]).answers
    assert answer.left_out == (best,)
    assert answer.total_s == pytest.approx(alone[best])
    assert answer.amount == 4


@pytest.mark.parametrize("method", ["fedavg-lora", "best-bandwidth"])
def test_memory_is_not_spared_at_the_price_of_a_device_or_of_pruning(method):
    now = setting(f"method.name={method}", "train.local_steps=1")
    (answer,) = plan_within(now, 1e9, vary=["memory"]).answers
    tight = plan_of(now.on(with_memory(now.fleet, factor=answer.amount)))
    assert all(row.fits and row.pruned == 0.0 for row in tight.devices)
    least = min(row.memory_bytes / row.peak_bytes for row in plan_of(now).devices)
    assert answer.amount == pytest.approx(1.0 / least, rel=0.03)


def test_a_server_that_serves_nobody_changes_nothing(shared):
    now = plan_of(shared).total_s
    found = plan_within(shared, 0.9 * now, vary=["server"])
    assert re.search(
        r"shortest time is .*, by changing server; the bottleneck is then", found.shortfall
    )
    assert plan_within(shared, 1.1 * now, vary=["server"]).shortfall == ""


def test_a_server_fast_enough_for_cut_devices_is_found():
    slow = setting("method.name=splitlora", "train.local_steps=1")
    slow = slow.on(replace(slow.fleet, server=replace(slow.fleet.server, flops_per_s=2e9)))
    limit = 0.8 * plan_of(slow).total_s
    (answer,) = plan_within(slow, limit, vary=["server"]).answers
    assert answer.meets
    assert 1.0 < answer.amount < 64.0


def test_nothing_that_meets_names_every_quantity_tried(shared):
    said = plan_within(shared, 1e-3).shortfall
    assert "within 1.0 ms" in said
    for name in ("bandwidth: not even 64 times", "1 round", "1 device", "memory", "server"):
        assert name in said


def test_quantities_are_checked():
    assert read_vary(None) == ("bandwidth", "memory", "server", "devices", "rounds")
    with pytest.raises(RecipeError, match=r"--vary must be among bandwidth, .*, got 'speed'"):
        read_vary("bandwidth,speed")


@pytest.mark.parametrize("text", ["", "6", "h", "-1h", "0h", "6h and more", "1e3s", "nan"])
def test_durations_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="a duration must be like 6h"):
        parse_seconds(text)
