"""What SFT decides, and the baselines beside it."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import predict, split_cost
from airtune.errors import InfeasibleError, RecipeError
from airtune.fleet.rates import uplink_bps
from airtune.methods import build_method, check_method, sample_problem
from airtune.methods.contract import sample_observation
from airtune.plan import WorkSpec

FORMS = [
    {"solver": "lagrangian", "spectrum": "sqp"}, {"cut": 1, "codec": "none", "spectrum": "equal"},
    {"codec": "quantised", "large_every": 1}, {"device_frozen": True, "cut": 2},
    {"predict": True, "labels": "stay", "codec": "topk", "keep": 0.1}, {"codec": "deadzone", "step": 1.0},
]  # fmt: skip


@pytest.mark.parametrize("settings", FORMS, ids=lambda form: next(iter(form)))
def test_its_variants_are_settings_that_keep_the_contract(settings):
    check_method(build_method("sft", settings))


@pytest.fixture
def decided():
    def plan(settings=None, number=0, **changes):
        method = build_method("sft", settings or {})
        problem = replace(sample_problem(), work=method.work, **changes)
        seen = sample_observation(problem, number)
        found, state = method.decider.plan(problem, method.decider.init(problem), seen)
        return found, state, problem, seen

    return plan


def test_the_device_that_cannot_hold_the_model_is_cut_within_its_memory(decided):
    plan, _, problem, _ = decided()
    peak = split_cost(problem, plan.assignments).device_peak_bytes
    assert np.all(plan.assignments.cut >= 1)
    assert np.all(peak <= problem.devices.memory_bytes)


def test_compression_stays_within_the_measured_quality_budget(decided):
    loose, _, _, _ = decided({"quality_budget": 0.1})
    tight, _, _, _ = decided({"quality_budget": 0.001})
    assert tight.notes["quality_loss"] <= 0.001
    assert loose.notes["quality_loss"] <= 0.1
    assert loose.predicted_s < tight.predicted_s


def test_a_device_with_hardly_any_rows_gets_no_codec_beyond_the_budget(decided):
    devices = sample_problem().devices
    few = np.where(np.arange(len(devices)) == 0, 1e-6, devices.samples)
    budget = 0.007
    plan, _, problem, _ = decided({"quality_budget": budget}, devices=replace(devices, samples=few))
    measured = problem.measurements
    cost = [
        measured.codec_loss(one.cut, one.codec, rounds=problem.rounds) for one in plan.assignments
    ]
    assert 0.0 < max(cost) <= budget


def test_without_a_measurement_nothing_is_compressed(decided):
    plan, _, _, _ = decided(measurements=None)
    kinds = {row.codec.kind for row in plan.assignments}
    assert kinds == {"identity"}
    assert "not measured" in plan.reasons[0]


def test_the_record_holds_how_far_apart_the_solvers_are(decided):
    plan, _, _, _ = decided()
    published, _, _, _ = decided({"solver": "lagrangian"})
    assert plan.notes["gap_lagrangian"] >= -1e-9
    assert abs(plan.notes["gap_sqp"]) <= 1e-6
    assert published.solution.objective >= plan.solution.objective * (
        1.0 - plan.solution.gap - 1e-9
    )


def test_equal_spectrum_and_no_compression_are_never_sooner(decided):
    best, _, _, _ = decided()
    for settings in ({"spectrum": "equal"}, {"codec": "none"}, {"cut": 2}):
        assert decided(settings)[0].solution.objective >= best.solution.objective * 0.999


def test_frozen_device_parts_are_cut_as_early_as_can_be(decided):
    plan, _, _, _ = decided({"device_frozen": True})
    assert set(plan.assignments.cut.tolist()) == {1}


def rounds_of(problem, settings, links_of):
    """Return the plans of three rounds over links that change."""
    decider = build_method("sft", settings).decider
    state, plans = decider.init(problem), []
    for number in range(3):
        seen = sample_observation(problem, number)
        plan, state = decider.plan(
            problem, state, replace(seen, links=links_of(seen.links, number))
        )
        plans.append(plan)
    return plans


def fading(links, number):
    """Half of the devices lose nearly all of their signal, others in every round."""
    weak = np.where(np.arange(9) % 2 == number % 2, 0.02, 1.0)
    return replace(
        links, up_signal_hz=links.up_signal_hz * weak, up_capacity_bps=links.up_capacity_bps * weak
    )


def cuts_of(plans):
    cuts = np.zeros((len(plans), 9), np.int64)
    for row, plan in enumerate(plans):
        cuts[row, plan.assignments.device] = plan.assignments.cut
    return cuts


def test_no_device_needs_blocks_it_does_not_hold_before_the_large_timescale_ends():
    first, *later = cuts_of(rounds_of(sample_problem(), {"large_every": 3}, fading))
    for cut in later:
        there = (first > 0) & (cut > 0)
        assert there.any()
        assert np.all(cut[there] <= first[there])


def test_where_both_ends_remember_samples_the_cut_stays():
    settings = {"large_every": 3, "predict": True}
    first, *later = cuts_of(rounds_of(sample_problem(), settings, fading))
    for cut in later:
        there = (first > 0) & (cut > 0)
        np.testing.assert_array_equal(cut[there], first[there])


def test_keeping_what_devices_hold_costs_next_to_nothing_in_a_step():
    kept, anew = (rounds_of(sample_problem(), {"large_every": every}, fading) for every in (10, 1))
    steps = [[plan.solution.objective for plan in plans] for plans in (kept, anew)]
    assert np.mean(steps[0]) <= 1.03 * np.mean(steps[1])


def test_a_slot_is_divided_so_that_what_remains_is_sent_together(decided):
    plan, state, problem, seen = decided()
    decider = build_method("sft").decider
    remaining = np.linspace(1e4, 5e4, len(plan.assignments))
    share = decider.divide(problem, state, plan, seen.links, remaining)
    radio = np.flatnonzero(problem.devices.link == 0)
    ends = remaining / uplink_bps(seen.links, share, plan.assignments.device)
    np.testing.assert_allclose(ends[radio], ends[radio][0], rtol=1e-4)
    assert share[radio].sum() == pytest.approx(1.0, abs=1e-4)


def test_memory_that_fits_no_cut_and_a_server_too_small_are_named(decided):
    tiny = replace(sample_problem().devices, memory_bytes=np.full(9, 1e4))
    with pytest.raises(InfeasibleError, match=r"sample-0 has 9\.8 KiB of memory"):
        decided(devices=tiny)
    with pytest.raises(InfeasibleError, match="the server has 1000 B of memory"):
        decided(server_memory_bytes=1000.0)
    with pytest.raises(InfeasibleError, match="at most 3"):
        decided({"cut": 9})


def test_a_small_server_is_spared_by_later_cuts(decided):
    free, _, problem, _ = decided()
    peak = split_cost(problem, free.assignments).server_peak_bytes
    spared, _, problem, _ = decided(server_memory_bytes=0.9 * peak)
    assert split_cost(problem, spared.assignments).server_peak_bytes <= 0.9 * peak
    assert spared.assignments.cut.min() > free.assignments.cut.min()


def test_a_budget_that_the_named_codec_cannot_keep_is_refused(decided):
    with pytest.raises(InfeasibleError, match="the mildest codecs of the menu already cost"):
        decided({"codec": "topk", "quality_budget": 0.0})
    plan, _, _, _ = decided({"codec": "auto", "quality_budget": 0.0})
    assert {row.codec.kind for row in plan.assignments} <= {"identity", "fp16"}


@pytest.mark.parametrize(
    "settings",
    [
        {"cut": 0},
        {"solver": "guess"},
        {"bits": 1},
        {"keep": 2.0},
        {"large_every": 0},
        {"quality_budget": -0.1},
    ],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(RecipeError, match=next(iter(settings))):
        build_method("sft", settings)


def test_baselines_differ_in_how_the_server_serves():
    works = {
        name: build_method(name).work
        for name in ("split-sequential", "splitfed-v1", "splitfed-v2", "splitlora")
    }
    assert works["split-sequential"] == WorkSpec(server="sequential", hand_over=True)
    assert [work.server for work in works.values()] == [
        "sequential",
        "copies",
        "sequential",
        "shared",
    ]


def test_in_turn_takes_longer_than_together_and_sft_least():
    times = {}
    for name in ("split-sequential", "splitlora", "sft"):
        method = build_method(name)
        problem = replace(sample_problem(), work=method.work)
        seen = sample_observation(problem, 0)
        plan, _ = method.decider.plan(problem, method.decider.init(problem), seen)
        found = predict(problem, plan.assignments, links=seen.links, flops_per_s=seen.flops_per_s)
        times[name] = found.round_s
    assert times["sft"] < times["splitlora"] < times["split-sequential"]
