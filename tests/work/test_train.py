import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from airtune.errors import DataError, MethodError, ModelError
from airtune.model.batch import IGNORED, Sequences, collate
from airtune.model.lora import take
from airtune.plan import Assignment, CodecSpec, WorkSpec
from airtune.work import train as train_module
from airtune.work.batches import draw_batches, round_batches
from airtune.work.jobs import Job, TrainSettings
from airtune.work.train import train


def run(base, state, jobs, workload, *, work=WorkSpec(), seed=0, round=0, **settings):  # noqa: B008
    return train(
        base,
        state,
        jobs,
        settings=TrainSettings(**settings),
        work=work,
        workload=workload,
        seed=seed,
        round=round,
    )


def relative_difference(left, right, start):
    """Distance of two results, as a part of how far training moved.

    AdamW divides by the size of a gradient, so rounding in tiny gradients shows in single numbers.
    """
    apart = sum(float((left[name] - right[name]).square().sum()) for name in left)
    moved = sum(float((left[name] - start[name]).square().sum()) for name in left)
    return (apart / moved) ** 0.5


def largest_difference(left, right):
    assert left.keys() == right.keys()
    return max(float((left[name] - right[name]).abs().max()) for name in left)


@pytest.fixture(params=["base", "classifier"])
def any_base(request):
    return request.getfixturevalue(request.param)


def test_one_pass_over_many_devices_equals_a_pass_for_each(any_base, state_of, job_of, workload_of):
    state, workload = state_of(any_base), workload_of(any_base)
    jobs = [job_of(any_base, device, prune=0.5 * (device % 2)) for device in range(6)]
    together = run(any_base, state, jobs, workload)
    apart = [run(any_base, state, [job], workload)[0] for job in jobs]
    for one, other in zip(together, apart, strict=True):
        assert one.device == other.device
        assert one.loss_first == pytest.approx(other.loss_first, abs=1e-5)
        start = take(state.adapters, any_base.shape, one.update.kept, 4)
        assert relative_difference(one.update.adapters, other.update.adapters, start) < 0.02
        assert one.update.head.keys() == state.head.keys()


def test_the_cap_on_tokens_splits_a_group_and_changes_nothing(
    base, state_of, job_of, workload_of, monkeypatch
):
    passes = []
    whole = train_module._train_pass
    monkeypatch.setattr(
        train_module,
        "_train_pass",
        lambda here, kept, jobs: passes.append(len(jobs)) or whole(here, kept, jobs),
    )
    state, workload = state_of(base), workload_of(base)
    jobs = [job_of(base, device) for device in range(5)]
    wide = run(base, state, jobs, workload)
    narrow = run(base, state, jobs, workload, pass_tokens=60)
    assert passes == [5, 2, 2, 1]
    for one, other in zip(wide, narrow, strict=True):
        ours, theirs = one.update.adapters, other.update.adapters
        assert relative_difference(ours, theirs, state.adapters) < 0.02


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # in peft
def test_training_equals_a_plain_peft_loop(base, state_of, job_of, workload_of):
    state, workload, job = state_of(base), workload_of(base), job_of(base, 3)
    outcome = run(
        base, state, [job], workload, learning_rate=0.01, weight_decay=0.1, max_grad_norm=0.5
    )[0]
    model = get_peft_model(
        copy.deepcopy(base.network),
        LoraConfig(r=4, lora_alpha=8, target_modules=list(workload.lora_targets)),
    )
    factors = {}
    for block, layer in enumerate(model.base_model.model.model.layers):
        for linear, path in base.family.linears.items():
            module = layer.get_submodule(path)
            for part, holder in (("A", module.lora_A), ("B", module.lora_B)):
                weight = holder["default"].weight
                weight.data = state.adapters[f"{block}.{linear}.{part}"].clone()
                factors[f"{block}.{linear}.{part}"] = weight
    optimiser = torch.optim.AdamW(factors.values(), lr=0.01, weight_decay=0.1)
    drawn = round_batches(len(job.sequences), steps=3, batch=2, seed=0, round=0, device=3)
    losses = []
    for rows in drawn:
        batch = collate(job.sequences, rows)
        loss = model(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=batch.labels
        ).loss
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(factors.values(), 0.5)
        optimiser.step()
        losses.append(float(loss.detach()))
    assert outcome.loss_first == pytest.approx(losses[0], abs=1e-5)
    assert outcome.loss_last == pytest.approx(losses[-1], abs=1e-2)
    plain = {name: weight.detach() for name, weight in factors.items()}
    assert relative_difference(outcome.update.adapters, plain, state.adapters) < 0.02


def test_the_same_keys_give_the_same_bits_and_other_keys_do_not(
    base, state_of, job_of, workload_of
):
    state, workload = state_of(base), workload_of(base)
    jobs = [job_of(base, device) for device in range(3)]
    torch.manual_seed(1)
    first = run(base, state, jobs, workload, dropout=0.2)
    torch.manual_seed(2)
    again = run(base, state, jobs, workload, dropout=0.2)
    other = run(base, state, jobs, workload, dropout=0.2, round=1)
    for one, two, three in zip(first, again, other, strict=True):
        assert largest_difference(one.update.adapters, two.update.adapters) == 0.0
        assert largest_difference(one.update.adapters, three.update.adapters) > 0.0


def test_a_device_whose_loss_is_not_finite_is_refused_and_the_others_are_untouched(
    base, state_of, job_of, workload_of, monkeypatch
):
    state, workload = state_of(base), workload_of(base)
    jobs = [job_of(base, device) for device in range(3)]
    clean = run(base, state, jobs, workload)
    honest = train_module._losses

    def poisoned(here, watch, batch):
        losses = honest(here, watch, batch)
        factor = torch.ones(watch.lora.devices)
        factor[1] = torch.nan
        return losses * factor

    monkeypatch.setattr(train_module, "_losses", poisoned)
    outcomes = run(base, state, jobs, workload)
    assert [outcome.status for outcome in outcomes] == ["ok", "refused", "ok"]
    assert outcomes[1].update is None
    assert "loss was nan in step 0" in outcomes[1].reason
    for place in (0, 2):
        same = largest_difference(outcomes[place].update.adapters, clean[place].update.adapters)
        assert same == 0.0


def test_a_learning_rate_that_explodes_is_refused(base, state_of, job_of, workload_of):
    outcome = run(
        base,
        state_of(base),
        [job_of(base, 0, steps=4)],
        workload_of(base),
        learning_rate=1e30,
        max_grad_norm=0.0,
    )[0]
    assert outcome.status == "refused"
    assert "lower train.learning_rate" in outcome.reason


def test_pruned_devices_return_their_slice_and_rank(base, state_of, job_of, workload_of):
    outcome = run(base, state_of(base), [job_of(base, 0, prune=0.5, rank=2)], workload_of(base))[0]
    update = outcome.update
    assert [len(row) for row in update.kept.groups] == [1, 1]
    assert [len(row) for row in update.kept.channels] == [24, 24]
    assert update.adapters["0.down_proj.A"].shape == (2, 24)
    assert update.adapters["1.q_proj.B"].shape == (16, 2)


def test_a_rank_with_its_own_scale_trains_as_if_it_were_the_rank_of_the_run(
    base, state_of, job_of, workload_of
):
    state, job = state_of(base), job_of(base, 0, prune=0.5, rank=2)
    moved = {n: t + 0.01 if n.endswith("B") else t for n, t in state.adapters.items()}
    state = replace(state, adapters=moved)
    own = run(base, state, [job], workload_of(base), work=WorkSpec(rank_scale="own"), scale=2.0)[0]
    first = {n: t[:, :2] / 2 if n.endswith("B") else t[:2] for n, t in moved.items()}
    alone = run(base, replace(state, adapters=first), [job], workload_of(base, rank=2), scale=4.0)[
        0
    ]
    shared = run(base, state, [job], workload_of(base), scale=2.0)[0]
    expected = {n: t * 2 if n.endswith("B") else t for n, t in alone.update.adapters.items()}
    assert own.loss_last == pytest.approx(alone.loss_last, rel=1e-5)
    assert own.loss_last != pytest.approx(shared.loss_last, rel=1e-5)
    for name, tensor in own.update.adapters.items():
        torch.testing.assert_close(tensor, expected[name], atol=1e-5, rtol=1e-4)


def test_compensation_changes_what_a_pruned_device_trains_on(base, state_of, job_of, workload_of):
    state, workload, jobs = state_of(base), workload_of(base), [job_of(base, 0, prune=0.5)]
    with_means, without = (
        run(base, state, jobs, workload, work=WorkSpec(mend="mean" if flag else "none"))[0]
        for flag in (True, False)
    )
    assert with_means.loss_first != without.loss_first


def test_the_proximal_penalty_keeps_adapters_near_the_global_ones(
    base, state_of, job_of, workload_of
):
    state, workload = state_of(base), workload_of(base)

    def moved(weight):
        work = WorkSpec(penalty="proximal", penalty_weight=weight)
        update = run(base, state, [job_of(base, 0, steps=8)], workload, work=work)[0].update
        return sum(
            float((update.adapters[name] - state.adapters[name]).square().sum())
            for name in state.adapters
        )

    assert moved(1e4) < moved(1.0) < moved(0.0) * 1.0001
    assert moved(1e4) < 0.7 * moved(0.0)


def test_the_trained_head_moves_and_a_language_model_has_none(
    base, classifier, state_of, job_of, workload_of
):
    state = state_of(classifier)
    update = run(classifier, state, [job_of(classifier, 0)], workload_of(classifier))[0].update
    assert update.head
    assert largest_difference(update.head, state.head) > 0
    assert run(base, state_of(base), [job_of(base, 0)], workload_of(base))[0].update.head == {}


def test_training_leaves_base_and_state_as_they_were(any_base, state_of, job_of, workload_of):
    state = state_of(any_base)
    weights = {name: tensor.clone() for name, tensor in any_base.network.state_dict().items()}
    adapters = {name: tensor.clone() for name, tensor in state.adapters.items()}
    run(
        any_base, state, [job_of(any_base, 0, prune=0.5)], workload_of(any_base, checkpointing=True)
    )
    assert largest_difference(any_base.network.state_dict(), weights) == 0.0
    assert largest_difference(state.adapters, adapters) == 0.0
    assert not any_base.network.training


@pytest.mark.parametrize("change", [{"checkpointing": True}, {"loss_chunk": 3}])
def test_switches_that_save_memory_do_not_change_the_result(
    base, state_of, job_of, workload_of, change
):
    state, jobs = state_of(base), [job_of(base, device) for device in range(2)]
    plain = run(base, state, jobs, workload_of(base), dropout=0.1)
    saving = run(base, state, jobs, workload_of(base, **change), dropout=0.1)
    for one, other in zip(plain, saving, strict=True):
        ours, theirs = one.update.adapters, other.update.adapters
        assert relative_difference(ours, theirs, state.adapters) < 0.02


def test_a_batch_with_nothing_to_score_teaches_nothing_and_refuses_nobody(
    base, state_of, workload_of, job_of
):
    silent = Sequences((np.arange(3, 9),) * 2, (np.full(6, IGNORED),) * 2)
    jobs = [Job(0, job_of(base, 0).row, silent, 1.0), job_of(base, 1)]
    state = state_of(base)
    outcome, other = run(base, state, jobs, workload_of(base))
    assert (outcome.status, other.status) == ("ok", "ok")
    assert np.isnan(outcome.loss_last)
    assert largest_difference(outcome.update.adapters, state.adapters) == 0.0


@pytest.mark.parametrize(
    ("work", "cut", "message"),
    [
        (WorkSpec(penalty="ridge"), 0, "penalty 'ridge' is not available"),
        (WorkSpec(), 1, "told to cut at block 1"),
    ],
)
def test_work_that_does_not_exist_is_refused_with_a_reason(
    base, state_of, workload_of, sequences_of, work, cut, message
):
    row = Assignment(0, 0.0, 0.0, 4, cut, 1.0, 1, CodecSpec())
    with pytest.raises(MethodError, match=message):
        run(
            base,
            state_of(base),
            [Job(0, row, sequences_of(base), 1.0)],
            workload_of(base),
            work=work,
        )


def test_pruning_without_importance_is_refused(base, state_of, job_of, workload_of):
    state = replace(state_of(base), importance=None)
    with pytest.raises(ModelError, match="no importance was measured"):
        run(base, state, [job_of(base, 0, prune=0.5)], workload_of(base))


def test_what_the_stacked_rule_merged_is_part_of_the_base(base, state_of, job_of, workload_of):
    state = state_of(base)
    delta = {"0.q_proj": torch.full((32, 32), 0.1)}
    plain, merged = (
        run(base, version, [job_of(base, 0)], workload_of(base))[0].loss_first
        for version in (state, replace(state, merged=delta))
    )
    assert plain != merged


@given(
    examples=st.integers(1, 40),
    steps=st.integers(1, 9),
    batch=st.integers(1, 9),
    seed=st.integers(0, 99),
)
@settings(max_examples=50, deadline=None)
def test_no_example_is_used_twice_before_all_were_used_once(examples, steps, batch, seed):
    drawn = draw_batches(
        examples, steps=steps, batch=batch, stream=np.random.default_rng(seed)
    ).ravel()
    counts = np.bincount(drawn, minlength=examples)
    assert drawn.shape == (steps * batch,)
    assert counts.max() - counts.min() <= 1


def test_a_device_without_data_is_an_error_of_the_data():
    with pytest.raises(DataError, match="at least one training example"):
        draw_batches(0, steps=1, batch=1, stream=np.random.default_rng(0))


def test_only_a_slice_learns_from_the_dense_base(base, state_of, job_of, workload_of):
    state, workload = state_of(base), workload_of(base)
    jobs = [job_of(base, 0), job_of(base, 1, prune=0.5)]
    plain, taught = (
        run(base, state, jobs, workload, work=WorkSpec(distill=share)) for share in (0.0, 0.5)
    )
    same, other = (
        largest_difference(one.update.adapters, two.update.adapters)
        for one, two in zip(plain, taught, strict=True)
    )
    assert same == 0.0
    assert other > 0.0
