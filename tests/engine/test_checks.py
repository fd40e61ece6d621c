from dataclasses import replace

import numpy as np
import pytest

from airtune.engine.checks import check_plan, check_shares, checked_state
from airtune.errors import MethodError
from airtune.fleet import load_fleet
from airtune.methods import build_method
from airtune.plan import Observation

PLAIN = build_method("fedavg-lora")


@pytest.fixture
def observation():
    return Observation(0, 0.0, None, np.array([True, True, False, True]), None)


def test_a_sound_plan_passes(plan_of, observation):
    check_plan(plan_of(2), observation, PLAIN)


@pytest.mark.parametrize(
    ("devices", "changes", "message"),
    [
        (2, {"round": 1}, "plan is for round 1, but it is round 0"),
        (3, {}, "device 2, which is not available"),
        (5, {}, "names device 4, the fleet has 0..3"),
    ],
)
def test_a_plan_that_cannot_be_executed_is_refused(plan_of, observation, devices, changes, message):
    with pytest.raises(MethodError, match=message):
        check_plan(plan_of(devices, **changes), observation, PLAIN)


def test_every_device_needs_a_reason(plan_of, observation):
    with pytest.raises(MethodError, match="one reason a device, got 1 for 2"):
        check_plan(replace(plan_of(2), reasons=("why",)), observation, PLAIN)


@pytest.mark.parametrize(
    ("may_sample", "devices", "left", "message"),
    [
        (False, 1, {1: "why"}, "declares may_sample"),
        (True, 2, {1: "why"}, "assigns work to device 1 and lists it as not asked"),
        (True, 0, {1: "why"}, "asks no device"),
    ],
)
def test_who_is_not_asked_is_known_to_be_left_out(
    plan_of, observation, may_sample, devices, left, message
):
    plan = replace(plan_of(max(devices, 1)), not_asked=left)
    if not devices:
        plan = replace(plan, assignments=plan.assignments.take(np.arange(0)), reasons=())
    with pytest.raises(MethodError, match=message):
        check_plan(plan, observation, replace(PLAIN, may_sample=may_sample))


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        (np.array([0.5]), r"must return 2 shares, got shape \(1,\)"),
        (np.array([0.5, -0.1]), "got -0.1 for device 1"),
        (np.array([0.5, np.nan]), "got nan for device 1"),
        (np.array([0.6, 0.5]), "link cell sum to 1.1"),
    ],
)
def test_shares_that_a_link_does_not_have_are_refused(plan_of, cell, shares, message):
    links = load_fleet(cell).links_at(0, 0, 0.0)
    with pytest.raises(MethodError, match=message):
        check_shares(shares, plan_of(2).assignments, links)


def test_devices_on_links_of_their_own_hold_them_whole(plan_of, cell):
    cell["links"]["cell"]["kind"] = "dedicated"
    links = load_fleet(cell).links_at(0, 0, 0.0)
    assert check_shares(np.ones(2), plan_of(2).assignments, links).tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (None, "a state must map names to arrays.*got None"),
        ([1.0], r"got \[1\.0\]"),
        ({"x": None}, "state 'x' must be an array of numbers or text.*got None"),
        ({"x": np.array([{}])}, "state 'x' .*got an array of objects"),
    ],
)
def test_a_state_that_cannot_be_saved_is_refused(state, said):
    with pytest.raises(MethodError, match=said):
        checked_state(state)


def test_a_state_of_arrays_and_plain_values_is_let_through():
    state = {"a": np.zeros(2), "b": np.float64(1.0), "c": 1, "d": "text", "e": True}
    assert checked_state(state) is state
