"""Planning: no weights, the cost model's own numbers, and infeasibility said beforehand."""

from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import cut_peaks, ladder
from airtune.errors import InfeasibleError, ModelError, RecipeError
from airtune.fleet import load_fleet
from airtune.methods import sample_problem
from airtune.planner import (
    feasible,
    find_shape,
    plan_model,
    plan_of,
    plan_recipe,
    sample,
    setting_of,
    shape_of,
)
from airtune.planner.rows import device_rows
from airtune.planner.sample import turns
from airtune.recipe import load_recipe
from airtune.run import check_memory, workload_of


def test_a_plan_has_a_row_a_device_that_adds_up():
    plan = plan_recipe(load_recipe(overrides=["method.name=best-bandwidth"]))
    assert len(plan.devices) == 10
    for row in plan.devices:
        assert row.fits
        assert row.pruned == 0.0
        assert row.finish_s >= max(row.download_s, row.compute_s, row.upload_s)
        assert row.local_steps == 5
    assert device_rows(plan).rows[0][5] == "8, 5"
    assert plan.total_s == pytest.approx(plan.round_s * plan.rounds)
    sent = sum(row.upload_bytes for row in plan.devices) * plan.rounds
    assert plan.total_upload_bytes == pytest.approx(sent)
    assert any("planned sequence length" in line and "95 %" in line for line in plan.assumptions)


def test_better_division_plans_a_shorter_round():
    equal = plan_recipe(load_recipe(overrides=["method.name=fedavg-lora"]))
    best = plan_recipe(load_recipe(overrides=["method.name=best-bandwidth"]))
    pruned = plan_recipe(load_recipe(overrides=["method.budget=0.3"]))
    assert pruned.round_s < best.round_s < equal.round_s


def test_the_recipe_sets_the_bandwidth_of_the_shared_radio_link():
    plain = ["method.name=best-bandwidth", "fleet.devices=3"]
    narrow, wide = (
        plan_recipe(load_recipe(overrides=[*plain, f"fleet.bandwidth_mhz={mhz}"])) for mhz in (1, 4)
    )
    assert wide.round_s < narrow.round_s
    assert any("4 MHz up" in line for line in wide.assumptions)


def test_a_plan_without_calibration_says_so():
    text = " ".join(plan_recipe(load_recipe(overrides=["output=none"])).assumptions)
    assert "cost of pruning not measured" in text
    fixed = plan_recipe(load_recipe(overrides=["method.budget=0.3"]))
    assert "not measured" not in " ".join(fixed.assumptions)


def test_no_weight_is_loaded(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("weights were loaded")

    monkeypatch.setattr("airtune.run.load.load_base", refuse)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", refuse)
    assert plan_recipe(load_recipe(overrides=["method.name=fedavg-lora"])).parameters > 0


def test_ten_thousand_devices_are_planned():
    plan = plan_recipe(
        load_recipe(overrides=["fleet.devices=10000", "train.rounds=1", "method.name=fedavg-lora"])
    )
    assert len(plan.devices) == 10_000


def test_a_fleet_without_the_memory_is_refused():
    fleet = (
        "fleet.source={base: pocket, devices: [{name: b, count: 3, link: cell, "
        "gflops_per_s: 1, memory_gib: 0.001, power_w: 1}]}"
    )
    with pytest.raises(
        InfeasibleError, match=r"heaviest pruning still needs .* b-\d, which has most"
    ):
        plan_recipe(load_recipe(overrides=[fleet]))


def test_choices_of_a_model_fall_in_memory():
    plan = plan_model("Qwen/Qwen2.5-0.5B", "orin-nano-8gb")
    dense = {choice.precision: choice for choice in plan.choices if choice.pruned == 0.0}
    peaks = [choice.peak_bytes for choice in dense.values()]
    assert peaks == sorted(peaks, reverse=True)
    assert plan.parameters == 494_032_768
    for name, choice in dense.items():
        lighter = [c for c in plan.choices if c.precision == name and c.pruned > 0]
        assert all(
            c.step_s < choice.step_s and c.upload_bytes < choice.upload_bytes for c in lighter
        )


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B", "meta-llama/Llama-2-7b-hf", "qwen3-0.6b"])
def test_published_shapes_need_no_network(model):
    assert find_shape(model).parameters > 5e8


def test_an_unknown_model_lists_what_is_known(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError):
        find_shape(str(tmp_path))


def test_feasible_says_what_memory_leaves():
    recipe = load_recipe()
    shape = shape_of(recipe)
    levels = ladder(shape, workload_of(recipe, shape, tokens=64))
    assert feasible(levels, np.inf).startswith("any, 0-")
    assert feasible(levels, 0.0) == "nothing fits"
    middle = float(levels.peak_bytes[len(levels) // 2])
    assert feasible(levels, middle).endswith("pruned or more")


def test_a_plan_of_a_split_method_shows_cuts_within_memory():
    recipe = load_recipe(overrides=["method.name=sft", "method.codec=deadzone", "output=none"])
    whole = plan_recipe(load_recipe(overrides=["method.name=fedavg-lora"]))
    plan = plan_recipe(recipe)
    assert all(row.cut >= 1 and row.fits for row in plan.devices)
    assert all("cut after block 1" in row.feasible for row in plan.devices)
    assert plan.devices[0].codec == "deadzone 0.75"
    assert plan.devices[0].peak_bytes < whole.devices[0].peak_bytes


def test_a_plan_of_a_split_without_calibration_says_that_nothing_is_compressed():
    plan = plan_recipe(load_recipe(overrides=["method.name=sft", "output=none"]))
    assert "sent uncompressed" in plan.assumptions[0]


def test_a_plan_says_who_misses_the_deadline():
    text = "method.name=fedavg-lora"
    easy = plan_recipe(load_recipe(overrides=[text, "deadline_s=1e6"]))
    assert not any("miss the deadline" in line for line in easy.assumptions)
    tight = plan_recipe(load_recipe(overrides=[text, "deadline_s=1e-6"]))
    said = next(line for line in tight.assumptions if "10 of 10 devices miss" in line)
    least = min(tight.devices, key=lambda row: row.finish_s)
    assert f"({least.name}): raise deadline_s" in said


def test_a_cut_outside_the_model_is_refused_before_a_run():
    with pytest.raises(RecipeError, match=r"split\.cuts must be at most .* got 9"):
        plan_recipe(load_recipe(overrides=["method.name=sft", "split.cuts=[9]"]))


def test_what_a_device_remembers_counts_where_it_may_cut():
    problem = sample_problem()
    assert np.all(cut_peaks(problem, predicts=True) > cut_peaks(problem))


def test_only_a_method_that_cuts_is_let_through_by_a_cut():
    problem, fleet = sample_problem(), load_fleet("pocket")
    least = float(ladder(problem.shape, problem.workload).peak_bytes.min())
    memory = (least + float(cut_peaks(problem)[0])) / 2
    small = replace(fleet, memory_bytes=np.full(len(fleet), memory))
    check_memory(problem, small, "sft", may_cut=True)
    with pytest.raises(InfeasibleError, match="the heaviest pruning still needs"):
        check_memory(problem, small, "sft", may_cut=False)


def test_a_model_too_large_for_a_device_has_a_cut_that_fits():
    plan = plan_model("Qwen/Qwen2.5-7B", "orin-nano-8gb")
    assert not any(choice.fits for choice in plan.choices if choice.precision == "float32")
    first = plan.cuts[0]
    assert first.cut == 1
    assert first.fits
    assert first.frozen_peak_bytes < first.peak_bytes
    peaks = [choice.peak_bytes for choice in plan.cuts]
    servers = [choice.server_peak_bytes for choice in plan.cuts]
    assert peaks == sorted(peaks)
    assert servers == sorted(servers, reverse=True)


def test_an_energy_that_no_device_keeps_is_said_with_the_least_that_one_needs():
    few = ["method.name=fedavg-lora", "fleet.devices=3", "train.rounds=2"]
    free = plan_recipe(load_recipe(overrides=few))
    used = sorted(row.energy_j for row in free.devices)
    none = plan_recipe(load_recipe(overrides=[*few, "limits.joules_per_round=1e-6"]))
    one = plan_recipe(load_recipe(overrides=[*few, f"limits.joules_per_round={used[0] * 1.01}"]))
    assert any(f"The lowest value is {used[0]:.3g} J (board-" in line for line in none.assumptions)
    assert any(
        line.startswith("2 of 3 devices use more energy a round") for line in one.assumptions
    )
    assert not any("joules_per_round" in line for line in free.assumptions)


@pytest.mark.parametrize("name", ["untuned", "local-only", "pooled"])
def test_a_control_sends_nothing_and_is_bound_by_no_cap(name):
    capped = ["limits.device_bytes_per_month=1MB", "deadline_s=1e-6"]
    plan = plan_recipe(load_recipe(overrides=[f"method.name={name}", *capped]))
    assert plan.total_upload_bytes == plan.total_download_bytes == 0.0
    assert not any("month" in line or "deadline" in line for line in plan.assumptions)
    assert plan.assumptions[0].startswith(f"{name}: ")
    assert plan.rounds == (1 if name == "untuned" else load_recipe().train.rounds)


def test_a_control_takes_the_time_of_those_who_train():
    fleet, by = load_fleet("pocket"), {}
    for name in ("fedavg-lora", "untuned", "local-only", "pooled"):
        by[name] = plan_recipe(load_recipe(overrides=[f"method.name={name}"]))
    slowest = max(row.compute_s for row in by["fedavg-lora"].devices)
    assert by["local-only"].round_s == pytest.approx(slowest)
    assert by["untuned"].total_s == by["untuned"].total_energy_j == 0.0
    flops = [
        row.compute_s * speed
        for row, speed in zip(by["fedavg-lora"].devices, fleet.flops_at(0), strict=True)
    ]
    assert by["pooled"].round_s == pytest.approx(sum(flops) / fleet.server.flops_per_s)
    assert by["pooled"].straggler == "no device trains"


def test_every_device_is_asked_in_turn_and_as_many_together_as_a_round_asks():
    present = np.array([True] * 7 + [False] * 2)
    asked = np.array(list(turns(present, 0.4, np.random.default_rng(0))))
    assert asked.shape == (3, 9)
    assert asked.sum(axis=1).tolist() == [3, 3, 3]
    np.testing.assert_array_equal(asked.any(axis=0), present)
    (everybody,) = turns(present, 1.0, np.random.default_rng(0))
    np.testing.assert_array_equal(everybody, present)
    assert list(turns(np.zeros(3, bool), 0.5, np.random.default_rng(0))) == []


def test_a_round_that_asks_a_part_of_the_fleet_costs_that_part():
    whole, part = (
        plan_recipe(
            load_recipe(None, overrides=["fleet.source=jetson-80", f"fleet.participation={p}"])
        )
        for p in (1.0, 0.1)
    )
    assert part.total_upload_bytes == pytest.approx(0.1 * whole.total_upload_bytes)
    assert part.round_s < whole.round_s
    assert len(part.devices) == 80
    assert all(np.isfinite(device.finish_s) for device in part.devices)
    assert any("fleet.participation" in line for line in part.assumptions)


@pytest.mark.parametrize(
    "words",
    [
        ["method.name=fedavg-lora", "fleet.availability=0.5"],
        ["method={name: auto, knobs: [share], sampling_rate: 0.3}"],
    ],
)
def test_a_run_counts_what_devices_send_in_the_rounds_that_they_take_part_in(words):
    setting = setting_of(load_recipe(overrides=["output=none", *words]))
    rounds = sample(setting)
    sent = rounds.columns["upload_bytes"]  # of a device the same in each round
    assert np.isnan(sent).any()
    plan = plan_of(setting, sampled=rounds)
    assert plan.total_upload_bytes == pytest.approx(np.nansum(sent) / len(sent) * plan.rounds)
    assert any("each round samples" in line for line in plan.assumptions) == ("auto" in words[0])


def test_a_plan_prices_the_scores_that_a_method_measures():
    plain, scored = (
        plan_recipe(load_recipe(None, overrides=[f"method.name={name}", "method.sparsity=0.5"]))
        for name in ("magnitude-prune", "loraprune")
    )
    assert scored.total_upload_bytes > plain.total_upload_bytes
