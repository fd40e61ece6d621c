import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.engine.base import EngineSettings
from airtune.engine.virtual import local_engine
from airtune.errors import FleetError, InfeasibleError, RecipeError
from airtune.fleet import load_fleet
from airtune.model.state import initial_state
from airtune.plan import CodecSpec, WorkSpec
from airtune.work import train as train_module
from airtune.work.evaluate import evaluate
from airtune.work.jobs import TrainSettings


@pytest.fixture
def state(base, problem_of, cell):
    return initial_state(base, problem_of(load_fleet(cell)).workload, 0)


def execute(engine, plan, state, keep, start_s=0.0):
    return engine.execute(plan, state, keep(plan), start_s=start_s)


def test_devices_train_and_every_column_follows_the_plan(engine_of, plan_of, keep, state):
    engine, plan = engine_of(), plan_of(5)
    done = execute(engine, plan, state, keep, start_s=10.0)
    results = done.results
    assert results.status.tolist() == ["ok"] * 5
    assert [update.device for update in done.updates] == [0, 1, 2, 3, 4]
    assert np.all(np.isfinite(results.loss_last))
    assert results.samples.tolist() == [4] * 5
    assert done.end_s == pytest.approx(10.0 + results.finish_s.max())
    assert done.faults == ("",) * 5


@pytest.mark.parametrize(
    ("needs", "hidden"),
    [
        (frozenset(), {"links", "flops_per_s"}),
        (frozenset({"channel"}), {"flops_per_s"}),
        (frozenset({"capability"}), {"links"}),
        (frozenset({"capability", "channel"}), set()),
    ],
)
def test_what_a_method_does_not_need_is_hidden(engine_of, needs, hidden):
    seen = engine_of(engine={"needs": needs}).observe(0, 0.0)
    assert {name for name in ("links", "flops_per_s") if getattr(seen, name) is None} == hidden


def test_participation_asks_a_fraction_and_others_in_other_rounds(engine_of):
    engine = engine_of(participation=0.5)
    asked = [engine.observe(round, 0.0).available for round in range(8)]
    assert {int(row.sum()) for row in asked} == {3}
    assert len({row.tobytes() for row in asked}) > 1
    assert np.array_equal(asked[2], engine.observe(2, 99.0).available)


def test_a_device_without_data_is_not_asked(engine_of, problem_of, cell):
    devices = problem_of(load_fleet(cell)).devices
    weight = np.where(np.arange(6) == 2, 0.0, devices.weight)
    engine = engine_of(problem={"devices": replace(devices, weight=weight)})
    assert np.flatnonzero(~engine.observe(0, 0.0).available).tolist() == [2]


def test_a_device_that_would_use_too_much_energy_is_left_out(engine_of, plan_of, state):
    engine, plan = engine_of(), plan_of()
    used = execute(engine, plan, state, lambda plan: lambda links, left: plan.assignments.share)
    limit = float(np.median(used.results.energy_j))
    faults = engine_of(problem={"joules_per_round": limit}).over_cap(plan, state)
    over = np.array([bool(fault) for fault in faults])
    assert 0 < over.sum() < 6
    assert all("limits.joules_per_round" in fault for fault in faults if fault)
    assert used.results.energy_j[over].min() > used.results.energy_j[~over].max()


def test_a_limit_of_energy_that_nothing_meets_names_the_least_and_its_device(
    engine_of, plan_of, state
):
    engine, plan = engine_of(problem={"joules_per_round": 1e-9}), plan_of()
    assert engine.observe(0, 0.0).available.all()
    assert all(engine.over_cap(plan, state))
    with pytest.raises(
        InfeasibleError, match=r"within 1e-09 J a round .* the least is (\S+) J, of (\S+) with"
    ) as refused:
        engine.idle_until_s(0.0, 60.0)
    least, name = re.search(r"the least is (\S+) J, of (\S+) with", str(refused.value)).groups()
    enough = engine_of(problem={"joules_per_round": 1.001 * float(least)})
    alone = replace(plan, assignments=replace(plan.assignments, share=np.ones(6)))
    within = [not fault for fault in enough.over_cap(alone, state)]
    names = enough._problem.devices.names
    assert [names[place] for place in np.flatnonzero(within)] == [name]
    # one that some device met before is a matter of waiting
    enough.observe(0, 0.0)
    assert enough.idle_until_s(0.0, 60.0) == 60.0


def test_a_device_is_not_left_out_for_waiting_for_one_that_is(engine_of, cell, plan_of, state):
    """The slow device takes more than the limit by itself, the others only by waiting for it."""
    cell["devices"][0]["gflops_per_s"] = 0.05
    cell["devices"][0]["count"] = 5
    cell["devices"].append(
        {**cell["devices"][0], "name": "slow", "count": 1, "gflops_per_s": 0.001}
    )
    plan = plan_of()
    used = execute(
        engine_of(), plan, state, lambda plan: lambda links, left: plan.assignments.share
    )
    limit = 0.9 * float(used.results.energy_j[:5].min())
    faults = engine_of(problem={"joules_per_round": limit}).over_cap(plan, state)
    assert [bool(fault) for fault in faults] == [False] * 5 + [True]


def test_where_all_are_over_together_half_of_them_are_asked_again(engine_of, plan_of, state):
    plan, alone = plan_of(), engine_of(problem={"joules_per_round": 1e-9})
    assert all(alone.over_cap(plan, state))
    limit = 1.001 * float(np.max(alone._limits._least_j))
    tight = replace(plan.assignments, share=np.full(6, 1e-3))
    faults = engine_of(problem={"joules_per_round": limit}).over_cap(
        replace(plan, assignments=tight), state
    )
    assert sum(bool(fault) for fault in faults) == 3


def test_absent_devices_are_not_asked(engine_of, cell):
    cell["devices"][0]["availability"] = 0.0
    assert not engine_of(participation=0.5).observe(0, 0.0).available.any()


def test_dropouts_are_absent_and_the_rest_counts(engine_of, plan_of, keep, state):
    engine = engine_of(dropout=0.5)
    rounds = [execute(engine, plan_of(round=round), state, keep) for round in range(4)]
    gone = np.array([done.results.status == "absent" for done in rounds])
    assert 0 < gone.sum() < gone.size
    for done, row in zip(rounds, gone, strict=True):
        assert [update.device for update in done.updates] == np.flatnonzero(~row).tolist()


def test_late_devices_do_not_train(engine_of, plan_of, keep, state, monkeypatch):
    done = execute(engine_of(), plan_of(deadline_s=1e-3), state, keep)
    assert done.updates == ()
    assert done.results.status.tolist() == ["late"] * 6
    assert np.all(np.isnan(done.results.loss_first))


def test_a_refused_update_is_recorded_and_the_round_goes_on(
    engine_of, plan_of, keep, state, monkeypatch
):
    honest = train_module._losses
    monkeypatch.setattr(
        train_module,
        "_losses",
        lambda here, watch, batch: (
            honest(here, watch, batch)
            * torch.where(torch.arange(watch.lora.devices) == 2, torch.nan, 1.0)
        ),
    )
    done = execute(engine_of(), plan_of(), state, keep)
    assert done.results.status.tolist() == ["ok", "ok", "refused", "ok", "ok", "ok"]
    assert done.faults[2].startswith("update refused: the loss was nan")
    assert [update.device for update in done.updates] == [0, 1, 3, 4, 5]
    assert done.results.upload_bytes[2] > 0


def test_importance_is_measured_once_before_the_first_round_that_prunes(
    engine_of, plan_of, keep, state
):
    engine = engine_of()
    dense = execute(engine, plan_of(), state, keep)
    assert dense.state.importance is None
    assert dense.setup.duration_s == 0.0
    first = execute(engine, plan_of(prune=0.5), dense.state, keep, start_s=5.0)
    assert first.state.importance is not None
    assert first.setup.duration_s > 0
    assert first.setup.upload_bytes > 0
    assert first.start_s == 5.0 + first.setup.duration_s
    second = execute(engine, plan_of(prune=0.5), first.state, keep)
    assert second.setup.duration_s == 0.0
    assert second.state.importance is first.state.importance


def test_importance_without_data_costs_nothing(engine_of, plan_of, keep, state):
    work = WorkSpec(importance="magnitude", mend="none")
    done = execute(engine_of(engine={"work": work}), plan_of(prune=0.5), state, keep)
    assert done.state.importance is not None
    assert done.setup.duration_s == 0.0


def test_the_same_round_gives_the_same_bits(engine_of, plan_of, keep, state):
    first, again = (execute(engine_of(), plan_of(prune=0.5), state, keep) for _ in range(2))
    for one, other in zip(first.updates, again.updates, strict=True):
        assert all(torch.equal(one.adapters[name], other.adapters[name]) for name in one.adapters)
    assert first.end_s == again.end_s


def test_quality_is_that_of_the_dense_base_with_the_global_adapters(engine_of, state, data, base):
    engine = engine_of()
    validation, test = engine.evaluate(state, "validation"), engine.evaluate(state, "test")
    assert set(validation) == {"loss", "worst_tenth", "perplexity"}
    assert set(test) == {"loss", "perplexity"}
    assert test["loss"] == evaluate(base.network, data.test).loss  # fresh adapters add nothing
    moved = replace(state, adapters={name: t + 0.1 for name, t in state.adapters.items()})
    assert engine.evaluate(moved, "test")["loss"] != test["loss"]


def test_threads_are_pinned_until_the_engine_is_closed(engine_of):
    before = torch.get_num_threads()
    engine = engine_of(threads=before + 1)
    assert torch.get_num_threads() == before + 1
    engine.close()
    assert torch.get_num_threads() == before


def test_a_fleet_of_another_size_than_the_data_is_refused(cell, problem_of, base, data):
    fleet = load_fleet(cell)
    fewer = replace(data, devices=data.devices[:5])
    with pytest.raises(FleetError, match="fleet has 6 devices, the problem 6 and the data 5"):
        local_engine(fleet, problem_of(fleet), base, fewer)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"participation": 0.0}, "participation must be above 0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(RecipeError, match=message):
        EngineSettings(**setting)


TOPK = CodecSpec("topk", keep=0.1, bits=3)


def coded(problem_of, cell, **changes):
    workload = replace(problem_of(load_fleet(cell)).workload, upload=TOPK, **changes)
    return {"workload": workload}


def test_a_coded_update_costs_what_was_really_sent(
    engine_of, problem_of, plan_of, keep, state, cell
):
    plain = execute(engine_of(), plan_of(), state, keep)
    small = execute(engine_of(problem=coded(problem_of, cell)), plan_of(), state, keep)
    assert np.all(small.results.upload_bytes < 0.2 * plain.results.upload_bytes)
    assert len(set(small.results.upload_bytes.tolist())) > 1
    assert np.all(small.results.upload_s < plain.results.upload_s)
    np.testing.assert_array_equal(small.results.loss_last, plain.results.loss_last)
    for one, other in zip(small.updates, plain.updates, strict=True):
        lost = [(one.adapters[name] - other.adapters[name]).abs().max() for name in one.adapters]
        assert 0 < max(lost) < 0.02


def test_only_what_counts_leaves_a_debt(engine_of, problem_of, plan_of, keep, state, cell):
    engine = engine_of(problem=coded(problem_of, cell, upload_feedback=True))
    done = execute(engine, plan_of(), state, keep)
    middle = float(np.median(done.results.finish_s))
    engine.restore({})
    cut_short = execute(engine, plan_of(deadline_s=middle), state, keep)
    ok = [update.device for update in cut_short.updates]
    assert 0 < len(ok) < 6
    assert {int(name.split("/")[1]) for name in engine.snapshot()} == set(ok)


def in_codecs(plan, *specs):
    return replace(plan, assignments=plan.assignments.coded_as(specs, CodecSpec()))


def test_each_device_codes_its_update_as_it_is_told(engine_of, plan_of, keep, state):
    plain = execute(engine_of(), plan_of(), state, keep)
    mixed = in_codecs(plan_of(), TOPK, None, CodecSpec("fp16"), None, None, None)
    done = execute(engine_of(), mixed, state, keep)
    ratio = done.results.upload_bytes / plain.results.upload_bytes
    assert ratio[0] < 0.2 < ratio[2] < 0.6
    assert ratio[[1, 3, 4, 5]].tolist() == [1.0] * 4
    same = [
        all(torch.equal(one.adapters[name], other.adapters[name]) for name in one.adapters)
        for one, other in zip(done.updates, plain.updates, strict=True)
    ]
    assert same == [False, True, False, True, True, True]


def test_on_links_that_stand_still_a_round_takes_what_was_predicted(
    engine_of, plan_of, keep, state, cell
):
    link = cell["links"]["cell"]
    del link["slot_s"], link["radio"]["fading"]
    found = execute(engine_of(), plan_of(), state, keep).results
    np.testing.assert_allclose(found.predicted_s, found.finish_s)
    for nothing in (found.server_s, found.step_up_bytes, found.step_down_bytes):
        assert not nothing.any()


def far_off(engine, plan_of, keep, state, rounds):
    """Return ln of what each round took over what was predicted, (rounds, devices)."""
    found = []
    for round in range(rounds):
        results = execute(engine, plan_of(round=round), state, keep).results
        found.append(np.log(results.finish_s / results.predicted_s))
    return np.array(found)


@pytest.fixture
def wrong(cell):
    link = cell["links"]["cell"]
    del link["slot_s"], link["radio"]["fading"]
    cell["devices"][0]["truth"] = {"speed": [0.5, 2], "rate": [0.5, 2]}


@pytest.mark.usefixtures("wrong")
def test_speeds_and_rates_that_were_declared_wrong_are_learnt(engine_of, plan_of, keep, state):
    believing = far_off(engine_of(learns=False), plan_of, keep, state, 3)
    learning = far_off(engine_of(), plan_of, keep, state, 3)
    np.testing.assert_array_equal(learning[0], believing[0])
    assert np.abs(believing[2]).max() > 0.3
    assert np.abs(learning[2]).max() < 0.1 * np.abs(believing[2]).max()


@pytest.mark.usefixtures("wrong")
def test_what_was_learnt_goes_on_from_a_snapshot_to_the_same_bits(engine_of, plan_of, keep, state):
    one, other = engine_of(), engine_of()
    done = [execute(one, plan_of(round=round), state, keep) for round in range(2)][-1]
    other.restore({name: array.copy() for name, array in one.snapshot().items()})
    found = [execute(engine, plan_of(round=2), state, keep) for engine in (one, other)]
    np.testing.assert_array_equal(found[0].results.predicted_s, found[1].results.predicted_s)
    assert found[0].learnt == found[1].learnt
    speed = done.learnt["speed"]
    assert np.all(np.array(speed["low"]) < speed["middle"])
    assert np.ptp(speed["middle"]) > 0.1


def test_where_devices_are_as_declared_nothing_is_learnt(engine_of, plan_of, keep, state):
    engine = engine_of(engine={"needs": frozenset({"capability", "channel"})})
    done = execute(engine, plan_of(), state, keep)
    seen, fleet = engine.observe(1, done.end_s), engine._fleet
    np.testing.assert_array_equal(seen.flops_per_s, fleet.flops_at(1))
    assert done.learnt is None
    assert done.expected is None
    assert not any(name.startswith("learnt/") for name in engine.snapshot())


def test_what_coding_lost_is_made_up_for_in_another_codec(
    engine_of, problem_of, plan_of, keep, state, cell
):
    engine = engine_of(problem=coded(problem_of, cell, upload_feedback=True))
    plain = execute(engine_of(), plan_of(), state, keep).updates[0].adapters
    first = execute(engine, plan_of(), state, keep).updates[0].adapters
    again = in_codecs(
        plan_of(), *[CodecSpec()] * 6
    )  # the same round, whose loss is then made up for
    second = execute(engine, again, state, keep).updates[0].adapters
    for name, tensor in plain.items():
        torch.testing.assert_close(first[name] + second[name], 2 * tensor, atol=1e-5, rtol=1e-5)
    assert not any(array.any() for array in engine.snapshot().values())


def test_a_codec_that_cannot_hold_an_update_refuses_it(
    engine_of, problem_of, plan_of, keep, state, cell
):
    # Adam's first step moves every entry of B by the learning rate, whatever the processor's rounding;
    # a second step would compute with weights of that size, which may overflow first.
    workload = replace(problem_of(load_fleet(cell)).workload, upload=CodecSpec("fp16"))
    engine = engine_of(
        problem={"workload": workload}, train=TrainSettings(learning_rate=1e5, max_grad_norm=0.0)
    )
    plan = plan_of()
    one_step = replace(plan.assignments, local_steps=np.ones(6, np.int64))
    plan = replace(plan, assignments=one_step)
    done = execute(engine, plan, state, keep)
    assert set(done.results.status.tolist()) == {"refused"}
    assert done.updates == ()
    assert all("does not fit float16" in fault for fault in done.faults)
    assert np.all(done.results.upload_bytes > 0)
