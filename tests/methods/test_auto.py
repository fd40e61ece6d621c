"""What auto decides: whole and cut devices in one round, never slower than the plans it starts from."""

import re
from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import predict, split_cost
from airtune.errors import InfeasibleError, RecipeError
from airtune.methods import build_method, sample_problem
from airtune.methods.contract import sample_observation
from airtune.methods.mixed_lines import mixed_lines
from airtune.methods.mixed_pricing import pruning_curve
from airtune.plan import CodecSpec, StepRounds, UploadRounds
from airtune.units import parse_bytes


@pytest.fixture
def decided():
    def plan(settings=None, name="auto", number=0, **changes):
        method = build_method(name, settings or {})
        problem = replace(sample_problem(), work=method.work, **changes)
        seen = sample_observation(problem, number)
        found, state = method.decider.plan(problem, method.decider.init(problem), seen)
        return found, state, problem, seen

    return plan


def rounds_times_seconds(plan, problem, seen):
    """Return ln(K T) of a plan by the measured costs alone."""
    told, measured = plan.assignments, problem.measurements
    weight = problem.devices.weight[told.device] / problem.devices.weight[told.device].sum()
    pruned = problem.shape.pruned_fraction(told.prune_heads, told.prune_ffn)
    log_k = np.interp(weight @ pruned, *pruning_curve(measured, 1.0))
    for share, row in zip(weight, told, strict=True):
        cost = measured.cut + measured.codec_rounds(row.cut, row.codec) if row.cut else 0.0
        log_k += share * (cost + measured.rank_rounds(row.rank))
    took = predict(problem, told, links=seen.links, flops_per_s=seen.flops_per_s)
    return log_k + np.log(took.round_s)


def roomy():
    return replace(sample_problem().devices, memory_bytes=np.full(9, 1e12))


@pytest.mark.parametrize(("name", "number"), [("jcpba", 0), ("sft", 2), ("fedavg-lora", 0)])
def test_its_plan_is_never_slower_than_those_of_the_others(decided, name, number):
    found = decided(number=number)
    other = decided(name=name, number=number)
    if name == "fedavg-lora":  # it plans for a device that cannot hold the model
        found = decided(number=number, devices=roomy())
    assert rounds_times_seconds(found[0], *found[2:]) <= (
        rounds_times_seconds(other[0], *other[2:]) + 1e-6
    )


@pytest.mark.parametrize(
    "knobs", [["prune"], ["rank", "share"], ["cut"], ["cut", "codec", "share"]]
)
def test_any_knobs_may_be_chosen_and_the_others_stay_as_they_are(decided, knobs):
    # without pruning only a cut lets the smallest device train
    changes = {} if "cut" in knobs or "prune" in knobs else {"devices": roomy()}
    plan, _, problem, _ = decided({"knobs": knobs}, **changes)
    told = plan.assignments
    assert ("prune" in knobs) or not told.prune_ffn.any()
    assert ("cut" in knobs) or not told.cut.any()
    assert ("rank" in knobs) or set(told.rank.tolist()) == {problem.workload.rank}
    assert {row.codec.kind for row in told} == {"identity"} or "codec" in knobs


def test_what_was_not_measured_is_not_chosen(decided):
    plan, _, problem, _ = decided(measurements=None)
    told, dense = plan.assignments, sample_problem().workload.rank
    assert {row.codec.kind for row in told} == {"identity"}
    assert set(told.rank.tolist()) == {dense}
    roomy = problem.devices.memory_bytes[told.device] > problem.devices.memory_bytes.max() * 0.9
    assert not told.prune_ffn[roomy].any()


def test_updates_are_coded_where_that_costs_less_than_it_saves(decided):
    coded = CodecSpec("topk", keep=0.1, bits=4)
    measured, asked = sample_problem().measurements, {"knobs": ["prune", "upload", "share"]}
    found = []
    for cost, expected in ((0.0, coded), (50.0, sample_problem().workload.upload)):
        uploads = (UploadRounds(CodecSpec(), 0.0), UploadRounds(coded, cost))
        plan, _, problem, seen = decided(
            asked, measurements=replace(measured, uploads=uploads), devices=roomy()
        )
        sent = {problem.workload.upload_of(row) for row in plan.assignments}
        assert (coded in sent) == (expected == coded)
        assert any(f"sent by {expected.label}" in reason for reason in plan.reasons)
        found.append(rounds_times_seconds(plan, problem, seen))
    assert found[0] < found[1]


def test_whole_devices_take_the_steps_that_are_worth_their_time(decided):
    measured, usual = sample_problem().measurements, sample_problem().workload.local_steps
    for gain, most in ((-3.0, 4 * usual), (3.0, usual)):
        steps = (StepRounds(usual, 0.0), StepRounds(4 * usual, gain))
        plan, _, _, _ = decided(
            {"knobs": ["steps", "share"]},
            measurements=replace(measured, steps=steps),
            devices=roomy(),
        )
        assert plan.assignments.local_steps.max() == most
        assert any(f"{most} steps" in reason for reason in plan.reasons)
        assert plan.notes["log_rounds"] <= 1e-12
    unmeasured, _, _, _ = decided({"knobs": ["steps", "share"]}, devices=roomy())
    assert set(unmeasured.assignments.local_steps.tolist()) == {usual}


def test_no_more_rounds_than_allowed_are_asked_for(decided):
    free, _, _, _ = decided()
    tight, _, _, _ = decided({"quality": {"rounds": 1.02}})
    assert tight.notes["log_rounds"] <= np.log(1.02) + 1e-9 < free.notes["log_rounds"]
    assert tight.predicted_s >= free.predicted_s


def test_the_server_holds_the_cuts_that_are_chosen(decided):
    plan, _, problem, _ = decided(number=1)
    needed = split_cost(problem, plan.assignments).server_peak_bytes
    small, _, problem, _ = decided(number=1, server_memory_bytes=0.7 * needed)
    assert split_cost(problem, small.assignments).server_peak_bytes <= 0.7 * needed
    with pytest.raises(InfeasibleError, match="server has 1000 B"):
        decided({"knobs": ["cut"]}, number=1, server_memory_bytes=1000.0)


def test_a_device_that_nothing_fits_is_named_with_what_it_lacks(decided):
    devices = sample_problem().devices
    memory = devices.memory_bytes.copy()
    memory[3] = 1000.0
    with pytest.raises(
        InfeasibleError, match=r"sample-3 has 1000 B.*less than the lightest choice"
    ) as told:
        decided(devices=replace(devices, memory_bytes=memory))
    assert "too small too" not in str(told.value)


@pytest.mark.parametrize("name", ["auto", "jcpba", "sft"])
def test_all_devices_that_nothing_fits_are_named(decided, name):
    devices = sample_problem().devices
    memory = np.where(np.isin(np.arange(9), [3, 5, 6]), 1000.0, devices.memory_bytes)
    with pytest.raises(
        InfeasibleError, match=r"sample-3 has .* too small too of sample-5, sample-6;"
    ):
        decided(name=name, devices=replace(devices, memory_bytes=memory))


def test_a_server_too_small_is_told_what_would_serve(decided):
    knobs = {"knobs": ["cut"]}
    with pytest.raises(InfeasibleError, match=r"that takes .* at least") as told:
        decided(knobs, number=1, server_memory_bytes=1000.0)
    said = re.search(r"takes ([\d.]+ \wi?B) at least", str(told.value))
    assert said is not None
    enough = 1.05 * parse_bytes(said[1])
    assert decided(knobs, number=1, server_memory_bytes=enough)[0].assignments.cut.any()
    with pytest.raises(InfeasibleError):
        decided(knobs, number=1, server_memory_bytes=0.9 * parse_bytes(said[1]))


def test_lines_are_kept_while_others_save_little(decided):
    method = build_method("auto", {"hysteresis": 0.9})
    problem = replace(sample_problem(), work=method.work)
    first, state = method.decider.plan(
        problem, method.decider.init(problem), sample_observation(problem, 0)
    )
    again, _ = method.decider.plan(problem, state, sample_observation(problem, 2))
    both = np.intersect1d(first.assignments.device, again.assignments.device)
    rows = [np.searchsorted(plan.assignments.device, both) for plan in (first, again)]
    for column in ("cut", "rank", "prune_ffn", "codec_index"):
        one, other = (
            getattr(plan.assignments, column)[at]
            for plan, at in zip((first, again), rows, strict=True)
        )
        assert np.array_equal(one, other)


def test_no_device_falls_to_a_lower_rank_than_it_had(decided):
    """What it trained beyond that rank would still count, but nobody would train with it."""
    method = build_method("auto", {"hysteresis": 0.0})
    problem = replace(sample_problem(), work=method.work)
    state, before = method.decider.init(problem), np.zeros(len(problem.devices), int)
    for number in range(6):
        seen = sample_observation(problem, number)
        plan, state = method.decider.plan(problem, state, seen)
        told = plan.assignments
        assert (told.rank >= before[told.device]).all()
        before[told.device] = told.rank


@pytest.mark.parametrize(
    "settings",
    [
        {"knobs": "prune"},
        {"knobs": ["depth"]},
        {"knobs": []},
        {"quality": "1%"},
        {"quality": {"rounds": 0.5}},
        {"quality": {"loss": 1}},
        {"ranks": 8},
        {"ranks": [0]},
        {"hysteresis": 1.5},
        {"max_prune": 2.0},
    ],
)
def test_settings_that_mean_nothing_are_refused_with_their_value(settings):
    key, value = next(iter(settings.items()))
    with pytest.raises(RecipeError, match=key) as refused:
        build_method("auto", settings)
    assert str(value) in str(refused.value) or repr(value) in str(refused.value)


def test_the_menu_has_only_ranks_and_codecs_that_were_measured():
    problem = sample_problem()
    lines = mixed_lines(problem, ["rank", "codec", "cut"], ranks=())
    full = problem.workload.rank
    assert set(lines.rank.tolist()) <= {full, full // 2, full // 4, full // 8}
    assert {codec.kind for codec in lines.codecs} == {"identity", "fp16", "deadzone", "topk"}
    at_cut = {
        rank: lines.adapter_up_bytes[~lines.whole & (lines.rank == rank)]
        for rank in (full, full // 2)
    }
    np.testing.assert_allclose(at_cut[full // 2], 0.5 * at_cut[full])


def test_a_quantile_gives_late_devices_more_of_the_link_and_plans_a_longer_round():
    method = build_method("auto", {"quantile": 0.95, "knobs": ["share"]})
    problem = replace(sample_problem(), devices=roomy())
    seen = sample_observation(problem, 0)
    usual, state = method.decider.plan(problem, method.decider.init(problem), seen)
    late = np.array(state["late_log"])
    late[3] = 1.0
    found, _ = method.decider.plan(problem, {**state, "late_log": late}, seen)
    row = int(np.flatnonzero(found.assignments.device == 3)[0])
    assert found.assignments.share[row] > usual.assignments.share[row]
    assert found.predicted_s > usual.predicted_s
    took = predict(
        problem, usual.assignments, links=seen.links, flops_per_s=seen.flops_per_s
    ).round_s
    assert usual.predicted_s > took
    with pytest.raises(RecipeError, match=r"quantile: must be from 0\.5 to 0\.99, got 1"):
        build_method("auto", {"quantile": 1.0})
