"""Penalties by hand against autograd, and ranks that prune themselves."""

from dataclasses import replace

import pytest
import torch

from airtune.errors import ModelError
from airtune.model.kept import keep_all
from airtune.model.lora import attach
from airtune.model.state import DeviceState
from airtune.plan import WorkSpec
from airtune.work.gradients import left_of_tail, shrink_tail_, tail_norms
from airtune.work.jobs import TrainSettings
from airtune.work.network import kept_by, mending_of, wants_means
from airtune.work.train import train


@pytest.fixture
def lora(base, state_of):
    adapters = state_of(base).adapters
    other = {name: 2.0 * tensor for name, tensor in adapters.items()}
    return attach(base.network, base.family, [adapters, other], scale=1.0)


def test_the_tail_penalty_adds_the_gradient_of_the_product_of_norms(lora):
    expected = {}
    for name, layer in lora.layers.items():
        a, b = (part.detach().clone().requires_grad_() for part in (layer.a, layer.b))
        value = sum(b[i][:, 3:].norm() * a[i][3:].norm() for i in range(2))
        torch.autograd.backward(0.3 * value)
        expected[name] = a.grad, b.grad
        layer.a.grad, layer.b.grad = torch.ones_like(a), torch.ones_like(b)
    shrink_tail_(lora, weight=0.3, share=0.99)
    for name, layer in lora.layers.items():
        torch.testing.assert_close(layer.a.grad - 1.0, expected[name][0])
        torch.testing.assert_close(layer.b.grad - 1.0, expected[name][1])


def test_tail_norms_are_sums_over_layers_by_device(lora):
    by_hand = sum(
        layer.b[1][:, 3:].norm() * layer.a[1][3:].norm() for layer in lora.layers.values()
    )
    torch.testing.assert_close(tail_norms(lora, share=0.99)[1], by_hand.detach())


def test_a_tail_of_zero_pulls_at_nothing(lora):
    for layer in lora.layers.values():
        layer.b.data.zero_()
        layer.a.grad, layer.b.grad = torch.zeros_like(layer.a), torch.zeros_like(layer.b)
    shrink_tail_(lora, weight=1.0, share=0.5)
    for layer in lora.layers.values():
        assert torch.all(layer.a.grad == 0)
        assert torch.all(torch.isfinite(layer.b.grad))


@pytest.mark.parametrize(("weight", "left"), [(1000.0, 3), (0.0, None)])
def test_a_rank_shrinks_when_its_tail_has_lost_weight(
    base, state_of, workload_of, job_of, weight, left
):
    work = WorkSpec(penalty="tail", penalty_weight=weight)
    (outcome,) = train(
        base,
        state_of(base),
        [job_of(base, 0)],
        settings=TrainSettings(learning_rate=0.005),
        work=work,
        workload=workload_of(base),
        seed=0,
        round=0,
    )
    assert outcome.rank_left == (left or outcome.rank_left)
    assert outcome.update.rank == 4
    assert left_of_tail(4, 0.99) == 3


def test_importance_comes_with_the_update_and_goes_on_where_it_was(
    base, state_of, workload_of, job_of
):
    work = WorkSpec(importance="lora-gradient", cumulative=True)
    jobs = [job_of(base, 0, prune=0.5), job_of(base, 1, prune=0.5)]
    outcomes = train(
        base,
        state_of(base),
        jobs,
        settings=TrainSettings(),
        work=work,
        workload=workload_of(base),
        seed=0,
        round=0,
    )
    for outcome in outcomes:
        kept = outcome.update.kept
        assert outcome.importance > 0
        for block, row in enumerate(kept.channels):
            scores = outcome.update.importance.channels[block]
            assert set(torch.from_numpy(scores).isfinite().nonzero().flatten().tolist()) == set(row)


def test_slices_are_mended_as_far_as_the_saved_model_can_say(base, without_switch, state_of):
    work = WorkSpec(cumulative=True)
    outputs = frozenset({"o_proj", "down_proj"})
    assert mending_of(base, state_of(base), work).biased == outputs
    qwen = without_switch
    assert mending_of(qwen, state_of(qwen), WorkSpec()).biased == outputs
    assert mending_of(qwen, state_of(qwen), work) is None
    assert not wants_means(qwen, work)
    assert wants_means(qwen, replace(work, mend="least-squares"))
    assert mending_of(base, state_of(base), WorkSpec(mend="none")) is None


def test_a_cumulative_slice_starts_from_what_the_device_has_left(base, state_of, job_of):
    state, shape = state_of(base), base.shape
    row = job_of(base, 0, prune=0.5).row
    assert kept_by(job_of(base, 0).row, state, shape, WorkSpec(cumulative=True)) == keep_all(shape)
    once = kept_by(row, state, shape, WorkSpec(cumulative=True))
    assert once == kept_by(row, state, shape, WorkSpec())
    flipped = replace(state.importance, channels=-state.importance.channels)
    later = replace(state, importance=flipped, devices={0: DeviceState(once)})
    again = kept_by(job_of(base, 0, prune=0.6).row, later, shape, WorkSpec(cumulative=True))
    assert all(
        set(few) < set(many) for few, many in zip(again.channels, once.channels, strict=True)
    )
    with pytest.raises(ModelError, match=r"device 0: .*never come back"):
        kept_by(job_of(base, 0, prune=0.1).row, later, shape, WorkSpec(cumulative=True))
