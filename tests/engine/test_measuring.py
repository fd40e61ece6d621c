"""Second moments for least squares: measured once, priced, held by a checkpoint, and who can."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.cost import gram_bytes
from airtune.engine.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from airtune.errors import InfeasibleError
from airtune.fleet import load_fleet
from airtune.model.importance import measure, pool
from airtune.model.state import initial_state
from airtune.plan import WorkSpec
from airtune.work.importance import measure_device_grams, measure_importance, measured_batches

WORK = WorkSpec(mend="least-squares")


@pytest.fixture
def state(base, problem_of, cell):
    return initial_state(base, problem_of(load_fleet(cell)).workload, 0)


def execute(engine, plan, state, keep):
    return engine.execute(plan, state, keep(plan), start_s=0.0)


def test_they_are_measured_once_with_the_scores_and_cost_what_they_weigh(
    engine_of, plan_of, keep, state, base
):
    engine = engine_of(engine={"work": WORK})
    plain = execute(engine_of(), plan_of(prune=0.5), state, keep)
    first = execute(engine, plan_of(prune=0.5), state, keep)
    size = gram_bytes(base.shape)
    assert first.setup.upload_bytes == pytest.approx(plain.setup.upload_bytes + 6 * size)
    assert first.setup.download_bytes == 6 * size
    assert first.setup.each_bytes == plain.setup.each_bytes + 2 * size
    assert first.setup.duration_s > plain.setup.duration_s
    assert not torch.equal(
        first.updates[0].adapters["0.down_proj.B"], plain.updates[0].adapters["0.down_proj.B"]
    )
    again = execute(engine, plan_of(prune=0.5), first.state, keep)
    assert again.setup.duration_s == 0.0
    assert again.state.grams is first.state.grams


def test_only_devices_that_hold_the_dense_model_measure(
    engine_of, plan_of, keep, state, base, cell, data, problem_of
):
    small = {**cell["devices"][0], "name": "small", "memory_gib": 5e-5, "count": 1}
    cell["devices"].insert(0, small)
    cell["devices"][1]["count"] = 5
    fleet = load_fleet(cell)
    weight = problem_of(fleet).devices.weight
    done = execute(engine_of(engine={"work": WORK}), plan_of(prune=0.5), state, keep)
    held = [(one, data.devices[one].train, float(weight[one])) for one in range(1, 6)]
    batch = problem_of(fleet).workload.batch
    batches = measured_batches(WORK, batch)
    assert batches * batch >= 32
    expected = measure_device_grams(base, held, batch=batch, batches=batches, seed=3)
    torch.testing.assert_close(done.state.grams.ffn.factor, expected.ffn.factor)
    for device in cell["devices"]:
        device["memory_gib"] = 5e-5
    with pytest.raises(InfeasibleError, match=r"least squares need .* set train\.mend to mean"):
        execute(engine_of(engine={"work": WORK}), plan_of(prune=0.5), state, keep)


def test_scores_come_from_devices_that_hold_the_dense_model_and_are_not_cut(
    engine_of, plan_of, keep, state, base, cell, data
):
    cell["devices"].insert(
        0, {**cell["devices"][0], "name": "small", "memory_gib": 5e-5, "count": 1}
    )
    cell["devices"][1]["count"] = 5
    plan = plan_of(prune=0.5)
    cut = np.array([0, 1, 0, 0, 0, 0])
    pruned = np.where(cut > 0, 0.0, 0.5)
    told = replace(plan.assignments, cut=cut, prune_heads=pruned, prune_ffn=pruned)
    plan = replace(plan, assignments=told)
    done = execute(engine_of(), plan, state, keep)
    assert done.setup.devices == (2, 3, 4, 5)
    reports = [
        measure_importance(base, data.devices[one].train, batch=2, seed=3, device=one)
        for one in (2, 3, 4, 5)
    ]
    expected = pool(reports, [len(data.devices[one].train) for one in (2, 3, 4, 5)])
    np.testing.assert_allclose(done.state.importance.channels, expected.channels, rtol=1e-6)


def test_where_nobody_holds_it_the_server_scores_by_the_size_of_weights(
    engine_of, plan_of, keep, state, base, cell
):
    cell["devices"][0]["memory_gib"] = 5e-5
    done = execute(engine_of(), plan_of(prune=0.5), state, keep)
    assert done.setup.devices == ()
    assert "no device of the round holds the dense model" in done.setup.faults[0]
    by_size = measure(base.network, base.shape, [], criterion="magnitude")
    np.testing.assert_allclose(done.state.importance.channels, by_size.channels)


def test_a_checkpoint_holds_them(engine_of, plan_of, keep, state, tmp_path):
    done = execute(engine_of(engine={"work": WORK}), plan_of(prune=0.5), state, keep)
    save_checkpoint(tmp_path, Checkpoint(1, 0.0, done.state, {}), identity="me")
    read = load_checkpoint(tmp_path, identity="me").state.grams
    for place in ("attention", "ffn"):
        found, held = getattr(read, place), getattr(done.state.grams, place)
        assert torch.equal(found.factor, held.factor)
        assert torch.equal(found.variance, held.variance)
    np.testing.assert_array_equal(read.means.ffn, done.state.grams.means.ffn)
