"""Rounds through cuts on the local engine: they learn as whole ones do, and cost what crossed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from airtune.cost import split_cost
from airtune.engine.base import EngineSettings
from airtune.engine.virtual import local_engine
from airtune.errors import MethodError
from airtune.fleet import load_fleet
from airtune.fleet.rates import downlink_bps
from airtune.model.aggregate import aggregate
from airtune.model.base import base_of
from airtune.model.state import initial_state
from airtune.plan import AggregateSpec, CodecSpec, WorkSpec
from airtune.work.jobs import TrainSettings

PLAIN, TOPK, DEADZONE = CodecSpec(), CodecSpec("topk", keep=0.3, bits=4), CodecSpec("deadzone")
SERVERS = ("shared", "copies", "sequential")
ONE_OF_SERVERS = ["copies", *(one for one in SERVERS[::2])]
"""For what costs more than a second each: one in the gate."""


@pytest.fixture(scope="module")
def deep():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=61,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
        )
        return base_of(LlamaForCausalLM(config))


@pytest.fixture
def cell(cell):
    cell["links"]["cell"]["radio"] |= {"up_bandwidth_mhz": 1.0, "down_bandwidth_mhz": 2.0}
    return cell


@pytest.fixture
def engine_of(deep, data, cell, problem_of):
    def make(*, work=WorkSpec(), rate=1e-3, workload=(), **settings):  # noqa: B008 - frozen
        fleet = load_fleet(cell, seed=1)
        problem = problem_of(fleet, shape=deep.shape, work=work)
        problem = replace(problem, workload=replace(problem.workload, **dict(workload)))
        tune = TrainSettings(learning_rate=rate, max_grad_norm=0.0)
        return local_engine(fleet, problem, deep, data, settings=EngineSettings(tune, **settings))

    return make


@pytest.fixture
def state(deep, cell, problem_of):
    workload = problem_of(load_fleet(cell), shape=deep.shape).workload
    return initial_state(deep, workload, 0)


@pytest.fixture
def cut_plan(plan_of):
    """A plan whose devices cut at these blocks, 0 = not at all."""

    def make(*cuts, codec=PLAIN, round=0, **changes):
        plan = plan_of(len(cuts), round=round, **changes)
        told = replace(plan.assignments, cut=np.array(cuts), codecs=(codec,))
        return replace(plan, assignments=told)

    return make


def execute(engine, plan, state, keep, start_s=0.0):
    return engine.execute(plan, state, keep(plan), start_s=start_s)


def losses(engine, cuts, state, keep, cut_plan, *, rounds=3, **choices):
    """Run a few rounds; return the validation loss after each."""
    found = []
    for round in range(rounds):
        done = execute(engine, cut_plan(*cuts, round=round, **choices), state, keep)
        weights = [1.0 + update.device for update in done.updates]
        state = aggregate(
            AggregateSpec(), state, done.updates, weights, shape=engine._workers.base.shape
        )
        found.append(engine.evaluate(state, "validation")["loss"])
    return np.array(found)


@pytest.mark.parametrize("server", SERVERS)
def test_one_device_learns_through_its_cut_as_with_the_whole_model(
    engine_of, state, keep, cut_plan, server
):
    whole = losses(engine_of(), [0], state, keep, cut_plan)
    cut = losses(engine_of(work=WorkSpec(server=server)), [2], state, keep, cut_plan)
    np.testing.assert_allclose(cut, whole, rtol=1e-4)


def test_copies_are_federated_learning_of_the_whole_model(engine_of, state, keep, cut_plan):
    whole = losses(engine_of(), [0] * 4, state, keep, cut_plan)
    cut = losses(engine_of(work=WorkSpec(server="copies")), [2] * 4, state, keep, cut_plan)
    np.testing.assert_allclose(cut, whole, rtol=1e-4)


def test_cut_and_whole_devices_are_divided_a_link_by_what_each_has_yet_to_send(
    engine_of, state, cut_plan
):
    plan = cut_plan(0, 3, 0, 1)
    told = []

    def divide(links, remaining_bytes):
        told.append(remaining_bytes)
        return plan.assignments.share

    done = engine_of().execute(plan, state, divide, start_s=0.0)
    finish_s, last = done.results.finish_s, np.array(told)[-1]
    assert np.all(np.diff(np.array(told)[:, [0, 2]], axis=0) <= 0.0), "asked in the order of time"
    assert finish_s[[1, 3]].max() < finish_s[2] - 0.1
    assert np.all(last[[1, 3]] == 0.0), "who is done has nothing left to send"
    assert 0.0 < last[2] <= done.results.upload_bytes[2]


def test_cut_and_whole_devices_learn_in_one_round(engine_of, state, keep, cut_plan):
    work = WorkSpec(server="copies")
    mixed = losses(engine_of(work=work), [0, 3, 0, 1], state, keep, cut_plan)
    whole = losses(engine_of(), [0] * 4, state, keep, cut_plan)
    np.testing.assert_allclose(mixed, whole, rtol=1e-4)
    done = execute(engine_of(work=work), cut_plan(0, 3, 0, 1), state, keep)
    assert done.results.status.tolist() == ["ok"] * 4
    assert done.split["first_step"]["device"] == [1, 3]
    alone = execute(engine_of(), cut_plan(0, 0, 0, 0), state, keep)
    both = (0, 2)
    np.testing.assert_array_equal(
        done.results.upload_bytes[[both]], alone.results.upload_bytes[[both]]
    )
    assert alone.split is None


@pytest.mark.parametrize("server", SERVERS)
def test_every_column_holds_what_crossed(engine_of, state, keep, cut_plan, server):
    engine = engine_of(work=WorkSpec(server=server))
    done = execute(engine, cut_plan(1, 2, 3, 1), state, keep, start_s=5.0)
    results, split = done.results, done.split
    assert results.status.tolist() == ["ok"] * 4
    total = split["activation_up_bytes"] + split["adapter_up_bytes"]
    assert results.upload_bytes.sum() == pytest.approx(total)
    total = split["gradient_down_bytes"] + split["adapter_down_bytes"]
    assert results.download_bytes.sum() == pytest.approx(total)
    assert 0 < split["beside_up_bytes"] < 0.1 * split["activation_up_bytes"]
    assert split["bound_up_bytes"] == pytest.approx(
        split["activation_up_bytes"] - split["beside_up_bytes"], rel=0.15
    )
    spent = results.download_s + results.compute_s + results.upload_s
    assert np.all(results.finish_s >= spent - 1e-9)
    assert done.end_s == pytest.approx(5.0 + results.finish_s.max())
    first = split["first_step"]
    order = ("forward_s", "upload_s", "download_s", "backward_s")
    moments = np.array([first[name] for name in order])
    assert np.all(np.diff(moments, axis=0) > 0)
    spans = np.array([first["server_start_s"], first["server_end_s"]])
    assert spans.shape == (2, 4 if server == "sequential" else 1)
    assert np.all(spans[1] > spans[0])
    assert all(len(slot["share"]) == 4 for slot in split["slots"])
    assert split["steps"] == 2
    assert 0 < split["server_s"] < split["step_s"]
    assert np.all(results.flops > 0)
    assert np.all(results.flops[[1, 2]] > results.flops[[0, 0]])


def test_compression_sends_less_and_ends_sooner(engine_of, state, keep, cut_plan):
    plain, small = (
        execute(engine_of(), cut_plan(1, 2, codec=codec), state, keep) for codec in (PLAIN, TOPK)
    )
    assert small.split["activation_up_bytes"] < 0.2 * plain.split["activation_up_bytes"]
    assert small.split["adapter_up_bytes"] == plain.split["adapter_up_bytes"]
    assert small.end_s < plain.end_s
    assert small.results.loss_last == pytest.approx(plain.results.loss_last, rel=0.05)


def test_no_gradient_comes_down_before_the_broadcast_is_over(
    engine_of, state, keep, cut_plan, cell
):
    link = cell["links"]["cell"]
    del link["slot_s"], link["radio"]["fading"]
    cell["devices"][0]["gflops_per_s"] = 1e6
    link["radio"]["down_bandwidth_mhz"] = 0.1
    done = execute(engine_of(), cut_plan(0, 2, 1), state, keep)
    over_s, at = done.results.download_s[0], done.split["first_step"]
    assert over_s > max(at["server_end_s"])
    # both gradients are there when the link has carried the broadcast and then them
    rate = downlink_bps(engine_of()._links(0, 0.0), np.array([1, 2]))
    one_step = done.results.step_down_bytes[1:] / 2
    np.testing.assert_allclose(at["download_s"], over_s + np.sum(8 * one_step / rate), rtol=0.05)


@pytest.mark.parametrize("cuts", [(1, 2, 3), (1, 0, 2), (0, 2, 0)])
def test_on_links_that_stand_still_a_round_of_any_devices_takes_what_was_predicted(
    engine_of, state, keep, cut_plan, cell, cuts
):
    link = cell["links"]["cell"]
    del link["slot_s"], link["radio"]["fading"]
    found = execute(engine_of(), cut_plan(*cuts), state, keep).results
    # rows shorter than the longest send fewer bytes than a plan counts
    np.testing.assert_allclose(found.finish_s, found.predicted_s, rtol=0.05)


def test_steps_adapters_and_the_servers_seconds_are_told_apart(engine_of, state, keep, cut_plan):
    engine = engine_of()
    done = execute(engine, cut_plan(1, 0, 2), state, keep)
    found, told = done.results, done.results.done
    cost = split_cost(engine._problem, told)
    assert found.step_up_bytes.sum() == done.split["activation_up_bytes"]
    np.testing.assert_allclose(
        found.upload_bytes - found.step_up_bytes,
        np.where(told.cut > 0, cost.adapter_up_bytes, found.upload_bytes),
    )
    assert found.step_down_bytes.sum() == done.split["gradient_down_bytes"]
    speed = engine._problem.server_flops_per_s
    np.testing.assert_allclose(found.server_s, told.local_steps * cost.server_flops / speed)
    assert (found.server_s[1], found.step_up_bytes[1], found.step_down_bytes[1]) == (0, 0, 0)
    assert np.all(found.predicted_s > 0)


def test_the_adapters_of_a_cut_device_are_coded_too(engine_of, state, keep, cut_plan):
    plain = execute(engine_of(), cut_plan(1, 2), state, keep)
    engine = engine_of(workload={"upload": TOPK, "upload_feedback": True})
    small = execute(engine, cut_plan(1, 2), state, keep)
    assert small.split["adapter_up_bytes"] < 0.3 * plain.split["adapter_up_bytes"]
    for one, other in zip(plain.updates, small.updates, strict=True):
        for name, tensor in one.adapters.items():
            held = int(name.partition(".")[0]) < 1 + one.device
            assert torch.equal(tensor, other.adapters[name]) == (not held)
    owed = {name.split("/", 2)[2].partition(".")[0] for name in engine.snapshot()}
    assert owed == {"0", "1"}


@pytest.mark.parametrize("server", ONE_OF_SERVERS)
def test_a_device_that_drops_costs_its_own_update_and_nobody_waits(
    engine_of, state, keep, cut_plan, server
):
    engine = engine_of(work=WorkSpec(server=server), dropout=0.4)
    rounds = [execute(engine, cut_plan(1, 2, 1, 3, 2, 1, round=r), state, keep) for r in range(3)]
    gone = np.array([done.results.status == "absent" for done in rounds])
    assert 0 < gone.sum() < gone.size
    for done, row in zip(rounds, gone, strict=True):
        assert [update.device for update in done.updates] == np.flatnonzero(~row).tolist()
        assert np.isfinite(done.end_s)
        for place in np.flatnonzero(row):
            assert "lost between forward and backward in step" in done.faults[place]
        assert np.all(np.isnan(done.results.finish_s) == row)
        assert np.all(done.results.upload_bytes > 0)


def test_what_does_not_fit_either_memory_is_refused(engine_of, state, keep, cut_plan, cell):
    engine = engine_of()
    peak = execute(engine, cut_plan(1, 3), state, keep).results.peak_bytes
    assert peak[0] < peak[1]
    cell["devices"][0]["memory_gib"] = float(peak.mean()) / 2**30
    done = execute(engine_of(), cut_plan(1, 3), state, keep)
    assert done.results.status.tolist() == ["ok", "failed"]
    assert done.faults[1].startswith("out of memory: needs")
    small = engine_of()
    small._workers.splitter._problem = replace(small._problem, server_memory_bytes=1e4)
    done = execute(small, cut_plan(1, 1), state, keep)
    assert done.results.status.tolist() == ["failed"] * 2
    assert done.faults[0].startswith("the server is out of memory: needs")
    assert done.faults[1].startswith("the server is out of memory: needs")


def test_a_deadline_makes_late_who_is_not_back(engine_of, state, keep, cut_plan):
    free = execute(engine_of(), cut_plan(1, 2, 1), state, keep)
    limit = 0.2 * free.end_s  # not one step is done by then
    none = execute(engine_of(), cut_plan(1, 2, 1, deadline_s=limit), state, keep)
    assert none.results.status.tolist() == ["late"] * 3
    assert none.end_s == pytest.approx(limit)
    assert np.all(none.results.upload_bytes < free.results.upload_bytes)
    spent = none.results.download_s + none.results.compute_s + none.results.upload_s
    assert np.all(spent <= limit + 1e-9)


def stepping(plan, steps):
    told = replace(plan.assignments, local_steps=np.broadcast_to(steps, len(plan.assignments)))
    return replace(plan, assignments=told)


@pytest.mark.parametrize("server", ONE_OF_SERVERS)
def test_steps_until_the_deadline_count_as_those_of_a_shorter_round(
    engine_of, state, keep, cut_plan, server
):
    work = WorkSpec(server=server)
    free = execute(engine_of(work=work), stepping(cut_plan(1, 2), 6), state, keep)
    limit = 0.7 * free.end_s
    cut = stepping(cut_plan(1, 2, deadline_s=limit), 6)
    done = execute(engine_of(work=work), cut, state, keep)
    steps = done.plan.assignments.local_steps
    counted = done.results.status == "ok"
    assert counted.any()
    assert np.nanmax(done.results.finish_s) <= limit
    assert (steps < 6).any()
    shorter = execute(engine_of(work=work), stepping(cut_plan(1, 2), steps), state, keep)
    found = {update.device: update for update in done.updates}
    for update in shorter.updates:
        if update.device in found:
            mine = found[update.device]
            assert mine.part == pytest.approx(mine.samples / (6 * 2))
            assert mine.samples == update.samples
            for name, tensor in update.adapters.items():
                torch.testing.assert_close(mine.adapters[name], tensor, rtol=0, atol=0)
    assert "steps by the deadline" in " ".join(done.plan.reasons)


@pytest.mark.parametrize(
    ("codec", "work"),
    [
        (replace(DEADZONE, predict=True), WorkSpec()),
        (TOPK, WorkSpec(device_frozen=True)),
        (TOPK, WorkSpec(server="sequential", hand_over=True)),
    ],
)
def test_an_engine_restored_from_its_snapshot_goes_on_to_the_same_bits(
    engine_of, state, keep, cut_plan, codec, work
):
    workload = {"upload": TOPK, "upload_feedback": True}
    one, other = (engine_of(work=work, workload=workload) for _ in range(2))
    execute(one, cut_plan(1, 1, codec=codec), state, keep)
    other.restore({name: array.copy() for name, array in one.snapshot().items()})
    ends = [execute(e, cut_plan(1, 1, codec=codec, round=1), state, keep) for e in (one, other)]
    np.testing.assert_array_equal(ends[0].results.upload_bytes, ends[1].results.upload_bytes)
    assert ends[0].split == ends[1].split
    for left, right in zip(ends[0].updates, ends[1].updates, strict=True):
        assert all(torch.equal(left.adapters[name], right.adapters[name]) for name in left.adapters)
    if work.device_frozen:
        fresh = execute(engine_of(work=work), cut_plan(1, 1, codec=codec, round=1), state, keep)
        assert np.all(ends[1].results.upload_bytes < fresh.results.upload_bytes)


def test_a_frozen_device_part_gets_nothing_back(engine_of, state, keep, cut_plan):
    done = execute(engine_of(work=WorkSpec(device_frozen=True)), cut_plan(1, 2), state, keep)
    assert np.all(done.results.download_bytes == 0)
    assert done.split["adapter_up_bytes"] == 0
    both = execute(engine_of(), cut_plan(1, 2), state, keep)
    assert np.all(done.results.compute_s < both.results.compute_s)


def test_split_work_that_does_not_exist_is_the_methods_fault(engine_of, state, keep, cut_plan):
    with pytest.raises(MethodError, match="penalty 'proximal' is not available in split training"):
        execute(engine_of(work=WorkSpec(penalty="proximal")), cut_plan(1), state, keep)
