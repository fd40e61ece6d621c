"""A round longer than the interval between prunings prunes several times and ends exactly."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.model.importance import measure
from airtune.model.kept import keep_all
from airtune.model.lora import take
from airtune.plan import WorkSpec
from airtune.work import train as train_module
from airtune.work.jobs import TrainSettings
from airtune.work.network import kept_by, stages_by
from airtune.work.train import train

WORK = WorkSpec(importance="lora-gradient", cumulative=True, prune_every=4, mend="none")


@pytest.fixture
def scored(base, state_of):
    return replace(
        state_of(base), importance=measure(base.network, base.shape, [], criterion="magnitude")
    )


def long(job, steps=10):
    return replace(job, row=replace(job.row, local_steps=steps))


@pytest.mark.parametrize("over", ["layers", "model"])
def test_each_pruning_keeps_a_part_of_the_last_and_the_end_is_what_was_told(
    base, scored, job_of, over
):
    work, row = replace(WORK, over=over), long(job_of(base, 0, prune=0.5)).row
    stages = stages_by(row, scored, base.shape, work)
    assert len(stages) == 3
    assert stages[-1] == kept_by(row, scored, base.shape, work)
    before = keep_all(base.shape)
    for stage in stages:
        for name in ("groups", "channels"):
            pairs = zip(getattr(before, name), getattr(stage, name), strict=True)
            assert all(set(less.tolist()) <= set(more.tolist()) for more, less in pairs)
        before = stage
    sizes = [sum(map(len, stage.channels)) for stage in stages]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]


def test_a_round_within_the_interval_prunes_once(base, scored, job_of):
    row = long(job_of(base, 0, prune=0.5), steps=4).row
    assert len(stages_by(row, scored, base.shape, WORK)) == 1
    assert len(stages_by(long(job_of(base, 0)).row, scored, base.shape, WorkSpec())) == 1


def test_training_goes_on_over_the_prunings(base, scored, job_of, workload_of, monkeypatch):
    seen = []
    network = train_module._network

    def watched(here, kept, jobs, carried):
        start = take(scored.adapters, base.shape, kept, 4)
        here_now = take(carried.adapters[0], base.shape, kept, 4)
        moved = sum(float((here_now[name] - start[name]).norm()) for name in start)
        seen.append((len(kept.channels[0]), moved))
        return network(here, kept, jobs, carried)

    monkeypatch.setattr(train_module, "_network", watched)
    jobs = [long(job_of(base, device, prune=0.5)) for device in range(2)]
    done = train(
        base,
        scored,
        jobs,
        settings=TrainSettings(learning_rate=0.01),
        work=WORK,
        workload=workload_of(base),
        seed=0,
        round=0,
    )
    channels, moved = zip(*seen, strict=True)
    assert len(seen) == 3
    assert list(channels) == sorted(channels, reverse=True)
    assert moved[0] == 0.0
    assert moved[2] > 0.5 * moved[1] > 0.0, "what was tuned is carried over each slicing"
    for outcome in done:
        assert outcome.status == "ok"
        assert outcome.update.kept == kept_by(jobs[0].row, scored, base.shape, WORK)
        assert np.isfinite(outcome.importance)
        assert outcome.samples == 10 * workload_of(base).batch
        assert all(bool(torch.isfinite(one).all()) for one in outcome.update.adapters.values())
