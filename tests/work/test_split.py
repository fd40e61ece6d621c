"""Rounds of split training: equal to whole training where they should be, cheaper where not."""

import doctest
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, ViTConfig, ViTForImageClassification

from airtune.errors import CheckpointError, DataError, MethodError, ModelError
from airtune.model.aggregate import aggregate
from airtune.model.base import base_of
from airtune.model.images import Images, image_base_of
from airtune.model.state import initial_state
from airtune.plan import AggregateSpec, Assignment, CodecSpec, Workload, WorkSpec
from airtune.split import CutMemory, SplitJob, split_round
from airtune.work.batches import round_batches
from airtune.work.jobs import Job, TrainSettings
from airtune.work.train import train

SETTINGS = TrainSettings(learning_rate=1e-2, max_grad_norm=0.0)
PLAIN, SHARED = CodecSpec(), WorkSpec()
TOPK = CodecSpec("topk", keep=0.3, bits=4)


@pytest.fixture(scope="module")
def base():
    config = LlamaConfig(
        vocab_size=61,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaForCausalLM(config)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return base_of(network)


@pytest.fixture(scope="module")
def state_of(workload_of):
    """A state whose adapters are not zero."""

    def make(base):
        state = initial_state(base, workload_of(base), 0)
        stream = torch.Generator().manual_seed(1)
        noisy = {
            k: v + 0.05 * torch.randn(v.shape, generator=stream) for k, v in state.adapters.items()
        }
        return replace(state, adapters=noisy)

    return make


@pytest.fixture
def jobs_of(sequences_of):
    def make(base, *cuts, steps=2, codec=PLAIN):
        return [
            SplitJob(
                device,
                Assignment(device, 0.0, 0.0, 4, cut, 1.0, steps, codec),
                sequences_of(base, seed=device, count=4),
                1.0 + device,
            )
            for device, cut in enumerate(cuts)
        ]

    return make


@pytest.fixture
def go(workload_of, state_of):
    """Run a split round; memory and state may be carried on by the caller."""

    def run(base, jobs, *, work=SHARED, settings=SETTINGS, round=0, state=None, **more):
        return split_round(
            base,
            state or state_of(base),
            jobs,
            settings=settings,
            work=work,
            workload=workload_of(base),
            seed=0,
            round=round,
            **more,
        )

    return run


def same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"atol": 0, "rtol": 0}))


def blocks(adapters, wanted):
    return {k: v for k, v in adapters.items() if int(k.partition(".")[0]) in wanted}


@pytest.mark.parametrize(
    ("kind", "server", "labels"),
    [
        ("base", "shared", "travel"),
        ("base", "copies", "travel"),
        ("base", "sequential", "stay"),
        ("classifier", "shared", "travel"),
        ("classifier", "shared", "stay"),
    ],
)
def test_one_device_split_without_compression_trains_as_the_whole_model(
    go, jobs_of, state_of, workload_of, request, kind, server, labels
):
    base = request.getfixturevalue(kind)
    (job,) = jobs_of(base, 1, steps=3)
    found = go(base, [job], work=WorkSpec(server=server, labels=labels)).outcomes[0]
    (wanted,) = train(
        base,
        state_of(base),
        [Job(0, replace(job.row, cut=0), job.data, 1.0)],
        settings=SETTINGS,
        work=WorkSpec(),
        workload=workload_of(base),
        seed=0,
        round=0,
    )
    assert found.status == wanted.status == "ok"
    assert found.loss_first == pytest.approx(wanted.loss_first, abs=1e-5)
    assert found.loss_last == pytest.approx(wanted.loss_last, abs=1e-4)
    same(found.update.adapters, wanted.update.adapters, atol=2e-3, rtol=0)
    same(found.update.head, wanted.update.head, atol=2e-3, rtol=0)
    moved = [(found.update.adapters[k] - v).abs().max() for k, v in state_of(base).adapters.items()]
    assert min(moved) > 1e-2


def at_rank(job, rank):
    return replace(job, row=replace(job.row, rank=rank))


@pytest.mark.parametrize("labels", ["travel", "stay"])
def test_a_lower_rank_trains_as_the_full_one_with_directions_that_are_zero(
    go, base, jobs_of, state_of, labels
):
    # a direction whose A and B are zero has no gradient and stays so
    state, rank, work = state_of(base), 2, WorkSpec(labels=labels)
    cleared = {name: tensor.clone() for name, tensor in state.adapters.items()}
    for name, tensor in blocks(cleared, {0, 1}).items():
        (tensor if name[-1] == "A" else tensor.T)[rank:] = 0.0
    (job,) = jobs_of(base, 2, steps=3)
    wanted = go(base, [job], work=work, state=replace(state, adapters=cleared)).outcomes[0]
    found = go(base, [at_rank(job, rank)], work=work, state=state).outcomes[0]
    assert found.loss_last == pytest.approx(wanted.loss_last, abs=1e-5)
    for name, tensor in found.update.adapters.items():
        other = wanted.update.adapters[name]
        if int(name[0]) < 2:
            other = other[:rank] if name[-1] == "A" else other[:, :rank]
        torch.testing.assert_close(tensor, other, atol=1e-5, rtol=1e-4)


def test_each_direction_is_averaged_over_those_who_trained_it(go, base, jobs_of, state_of):
    low, full = jobs_of(base, 3, 1)
    updates = [one.update for one in go(base, [at_rank(low, 2), full]).outcomes]
    state = aggregate(
        AggregateSpec("nested"), state_of(base), updates, [1.0, 2.0], shape=base.shape
    )
    mine, other = (update.adapters["0.q_proj.A"] for update in updates)
    assert mine.shape[0] == 2
    assert other.shape[0] == 4
    found = state.adapters["0.q_proj.A"]
    torch.testing.assert_close(found[:2], (mine + 2.0 * other[:2]) / 3.0)
    torch.testing.assert_close(found[2:], other[2:])


def test_losses_of_all_devices_do_not_depend_on_the_labels_staying(go, base, jobs_of):
    jobs = jobs_of(base, 2, 1, 3)
    travel, stay = (go(base, jobs, work=WorkSpec(labels=labels)) for labels in ("travel", "stay"))
    np.testing.assert_allclose(travel.losses, stay.losses, atol=1e-4)
    for one, other in zip(travel.outcomes, stay.outcomes, strict=True):
        same(one.update.adapters, other.update.adapters, atol=2e-3, rtol=0)
    assert np.all(stay.down_bytes > 1.9 * travel.down_bytes)


def test_each_block_is_averaged_over_its_holders_and_the_server_for_the_rest(
    go, base, jobs_of, state_of
):
    jobs = jobs_of(base, 3, 1)
    result = go(base, jobs)
    weights = [job.weight for job in jobs]
    updates = [outcome.update for outcome in result.outcomes]
    state = aggregate(AggregateSpec(), state_of(base), updates, weights, shape=base.shape)
    same(blocks(state.adapters, {3}), blocks(result.server, {3}), atol=1e-6, rtol=1e-5)
    for name, found in blocks(state.adapters, {1, 2}).items():
        wanted = (updates[0].adapters[name] + 2.0 * result.server[name]) / 3.0
        torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)
    same(blocks(updates[1].adapters, {1, 2, 3}), result.server)


def test_copies_have_a_server_each_and_their_mean(go, base, jobs_of):
    jobs = jobs_of(base, 1, 2)
    result = go(base, jobs, work=WorkSpec(server="copies"))
    for job, outcome in zip(jobs, result.outcomes, strict=True):
        alone = go(base, [job])
        same(outcome.update.adapters, alone.outcomes[0].update.adapters)
    one, other = (outcome.update.adapters for outcome in result.outcomes)
    for name, found in blocks(result.server, {2, 3}).items():
        torch.testing.assert_close(found, (one[name] + 2.0 * other[name]) / 3.0)


def test_a_sequential_server_goes_on_where_the_last_device_left_it(go, base, jobs_of):
    jobs = jobs_of(base, 1, 1)
    result = go(base, jobs, work=WorkSpec(server="sequential"))
    firsts = [go(base, [job]).losses[0, 0] for job in jobs]
    is_first = np.isclose(result.losses[0], firsts)
    assert sorted(is_first) == [False, True]
    one, other = (outcome.update.adapters for outcome in result.outcomes)
    same(blocks(one, {1, 2, 3}), blocks(other, {1, 2, 3}))
    assert not torch.equal(one["0.q_proj.A"], other["0.q_proj.A"])


def test_a_device_part_that_is_handed_over_is_one_for_all(go, base, jobs_of):
    work = WorkSpec(server="sequential")
    result = go(base, jobs_of(base, 1, 1), work=replace(work, hand_over=True))
    one, other = (outcome.update.adapters for outcome in result.outcomes)
    same(one, other)
    apart = go(base, jobs_of(base, 1, 1), work=work)
    assert not torch.allclose(one["0.q_proj.A"], apart.outcomes[0].update.adapters["0.q_proj.A"])


@pytest.mark.parametrize("labels", ["travel", "stay"])
def test_a_device_lost_between_forward_and_backward_costs_its_own_update(go, base, jobs_of, labels):
    work = WorkSpec(labels=labels)
    jobs = jobs_of(base, 1, 2, 1, steps=1)
    whole, lossy = go(base, jobs, work=work), go(base, jobs, work=work, drops={0: 0})
    lost = lossy.outcomes[0]
    assert lost.update is None
    assert lost.reason == "lost between forward and backward in step 0"
    assert lossy.down_bytes[0, 0] == 0
    for one, other in zip(whole.outcomes[1:], lossy.outcomes[1:], strict=True):
        assert other.status == "ok"
        same(blocks(one.update.adapters, {0}), blocks(other.update.adapters, {0}))
    np.testing.assert_array_equal(whole.losses[:, 1:], lossy.losses[:, 1:])


def test_a_lost_device_is_gone_for_the_rest_of_the_round(go, base, jobs_of):
    result = go(base, jobs_of(base, 1, 1, steps=3), drops={1: 1})
    assert (result.up_bytes[:, 1] > 0).tolist() == [True, True, False]
    assert np.all(result.up_bytes[:, 0] > 0)
    assert result.outcomes[0].status == "ok"


def test_a_tensor_the_codec_refuses_costs_one_device(go, base, jobs_of):
    # One token's embedding is beyond float16, and only the first device has that token. Every block
    # normalises what it reads, so all else stays of usual size.
    loud = 60
    network = deepcopy(base.network)
    with torch.no_grad():
        network.get_input_embeddings().weight[loud] = 1e5
    one, other = jobs_of(base, 1, 1, steps=1)
    quiet = tuple(np.where(row == loud, 5, row) for row in other.data.tokens)
    one = replace(
        one,
        row=replace(one.row, codec=CodecSpec("fp16")),
        data=replace(one.data, tokens=tuple(np.full_like(row, loud) for row in one.data.tokens)),
    )
    other = replace(other, data=replace(other.data, tokens=quiet))
    result = go(base_of(network), [one, other])
    assert "activation refused: an entry of" in result.outcomes[0].reason
    assert result.outcomes[1].status == "ok"


def test_bytes_are_those_of_real_tokens_and_compression_reaches_its_point(go, base, jobs_of):
    jobs = jobs_of(base, 2, 1)
    plain = go(base, jobs)
    tight = go(base, [replace(j, row=replace(j.row, codec=TOPK)) for j in jobs])
    tokens = np.array(
        [
            [
                sum(len(job.data.tokens[i]) for i in rows)
                for rows in round_batches(4, steps=2, batch=2, seed=0, round=0, device=job.device)
            ]
            for job in jobs
        ]
    ).T
    full = 4 * base.shape.width * tokens
    beside = 4 * (tokens + 2)  # labels and lengths
    np.testing.assert_allclose(plain.down_bytes, full, rtol=0.15)
    np.testing.assert_allclose(plain.up_bytes - beside, full, rtol=0.15)
    assert np.all(tight.down_bytes < 0.15 * full)
    assert np.all(tight.up_bytes - beside < 0.15 * full)


def test_rounds_with_a_random_codec_repeat_bit_for_bit(go, base, jobs_of):
    jobs = jobs_of(base, 2, 1, codec=TOPK)
    one, again, other = (go(base, jobs, round=round) for round in (0, 0, 1))
    np.testing.assert_array_equal(one.up_bytes, again.up_bytes)
    for left, right in zip(one.outcomes, again.outcomes, strict=True):
        same(left.update.adapters, right.update.adapters)
    assert not np.array_equal(one.losses, other.losses)


def test_a_gradient_that_reuses_the_mask_is_smaller(go, base, jobs_of):
    jobs = jobs_of(base, 1, 1, codec=TOPK)
    own, reused = (go(base, jobs, work=WorkSpec(reuse_mask=flag)) for flag in (False, True))
    assert np.all(reused.down_bytes[0] < 0.9 * own.down_bytes[0])
    assert all(outcome.status == "ok" for outcome in reused.outcomes)


def test_gradients_may_have_a_codec_of_their_own(go, base, jobs_of):
    half = go(base, jobs_of(base, 1), work=WorkSpec(gradient=CodecSpec("fp16")))
    assert np.all(half.down_bytes < 0.55 * go(base, jobs_of(base, 1)).down_bytes)


@pytest.mark.parametrize("labels", ["travel", "stay"])
def test_with_a_frozen_device_part_every_sample_crosses_once(go, base, jobs_of, state_of, labels):
    memory, jobs = CutMemory(), jobs_of(base, 2, 1)
    work = WorkSpec(device_frozen=True, labels=labels)
    first = go(base, jobs, work=work, memory=memory)
    second = go(base, jobs, work=work, memory=memory, round=1)
    if labels == "travel":
        assert np.all(second.up_bytes == 16 + 8)  # a stamp, and the two samples' numbers
        assert not first.down_bytes.any()
    assert np.all(second.up_bytes < first.up_bytes)
    for outcome in (*first.outcomes, *second.outcomes):
        same(blocks(outcome.update.adapters, {0, 1}), blocks(state_of(base).adapters, {0, 1}))
        assert not torch.equal(
            outcome.update.adapters["2.q_proj.B"], state_of(base).adapters["2.q_proj.B"]
        )
    tokens = sum(map(len, jobs[0].data.tokens))
    assert memory.held_bytes(0) == 4 * base.shape.width * tokens


def test_a_frozen_part_whose_adapters_changed_sends_again(go, base, jobs_of, state_of):
    memory, jobs, work = CutMemory(), jobs_of(base, 2), WorkSpec(device_frozen=True)
    first = go(base, jobs, work=work, memory=memory)
    state = state_of(base)
    other = replace(state, adapters={k: v * 1.1 for k, v in state.adapters.items()})
    again = go(base, jobs, work=work, memory=memory, round=1, state=other)
    assert again.up_bytes.sum() == pytest.approx(first.up_bytes.sum(), rel=0.01)


def test_predictive_coding_sends_less_and_errs_less_when_samples_return(go, base, jobs_of):
    spec = CodecSpec("deadzone", step=0.75)
    slow = replace(SETTINGS, learning_rate=1e-5)
    exact = go(base, jobs_of(base, 2), settings=slow, round=2)
    errors = {}
    for predict in (False, True):
        memory, jobs = CutMemory(), jobs_of(base, 2, codec=replace(spec, predict=predict))
        for round in range(3):
            found = go(base, jobs, settings=slow, round=round, memory=memory)
        errors[predict] = np.abs(found.losses - exact.losses).max()
    assert errors[True] < 0.3 * errors[False]


def test_a_memory_survives_a_checkpoint_bit_for_bit(go, base, jobs_of):
    jobs = jobs_of(base, 2, 1, codec=replace(TOPK, predict=True))
    memory = CutMemory()
    go(base, jobs, memory=memory)
    restored = CutMemory.from_arrays(memory.arrays())
    one, other = (go(base, jobs, memory=item, round=1) for item in (memory, restored))
    np.testing.assert_array_equal(one.up_bytes, other.up_bytes)
    for left, right in zip(one.outcomes, other.outcomes, strict=True):
        same(left.update.adapters, right.update.adapters)
    with pytest.raises(CheckpointError, match="'weights' is no part of a memory"):
        CutMemory.from_arrays({"weights": np.zeros(1)})


def test_devices_may_take_unlike_numbers_of_steps(go, base, jobs_of):
    long, short = jobs_of(base, 1, 1)
    long = replace(long, row=replace(long.row, local_steps=3))
    result = go(base, [long, short])
    assert np.isnan(result.losses).tolist() == [[False, False], [False, False], [False, True]]
    assert result.outcomes[1].loss_last == result.losses[1, 1]


def test_a_vision_transformer_learns_through_its_cuts():
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        image_size=8,
        patch_size=4,
        num_labels=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = image_base_of(ViTForImageClassification(config))
    draw = np.random.default_rng(0)
    jobs = []
    for device, cut in enumerate((1, 2)):
        targets = np.arange(8) % 2
        bright = (targets * 120)[:, None, None, None]
        pixels = (draw.integers(0, 130, (8, 3, 8, 8)) + bright).astype(np.uint8)
        row = Assignment(device, 0.0, 0.0, 4, cut, 1.0, 12, CodecSpec("deadzone"))
        jobs.append(SplitJob(device, row, Images(pixels, targets), 1.0))
    workload = Workload(
        batch=4,
        tokens=5,
        local_steps=12,
        rank=4,
        trains_head=True,
        lora_targets=("q_proj", "fc1", "fc2"),
    )
    result = split_round(
        base,
        initial_state(base, workload, 0),
        jobs,
        settings=SETTINGS,
        work=WorkSpec(),
        workload=workload,
        seed=0,
        round=0,
    )
    assert np.all(result.losses[-3:].mean(0) < 0.5 * result.losses[:2].mean(0))
    assert result.head.keys() == {"classifier.weight", "classifier.bias"}


def test_what_split_training_cannot_do_is_refused(go, base, jobs_of):
    (job,) = jobs_of(base, 1)
    with pytest.raises(MethodError, match="at least one device, got none"):
        go(base, [])
    for change, message in [
        ({"cut": 0}, "device 0 has no cut; train it with the whole model"),
        ({"rank": 5}, "ranks from 1 to 4; device 0 is told to prune 0 and 0 at rank 5"),
        ({"prune_ffn": 0.5}, "told to prune 0 and 0.5 at rank 4"),
    ]:
        with pytest.raises(MethodError, match=message):
            go(base, [replace(job, row=replace(job.row, **change))])
    with pytest.raises(ModelError, match="a cut must be between 1 and 3 of 4 blocks, got 4"):
        go(base, jobs_of(base, 4))
    with pytest.raises(MethodError, match="penalty 'proximal' is not available in split training"):
        go(base, [job], work=WorkSpec(penalty="proximal"))
    with pytest.raises(
        MethodError, match="told rank 2 of 4, but a device part that is handed over"
    ):
        go(
            base,
            [replace(job, row=replace(job.row, rank=2))],
            work=WorkSpec(server="sequential", hand_over=True),
        )
    with pytest.raises(MethodError, match=r"one cut for all; got a shared server and cuts \[1\]"):
        go(base, [job], work=WorkSpec(hand_over=True))


def test_the_example_of_the_page_runs():
    page = Path(__file__).resolve().parents[2] / "docs" / "split.md"
    result = doctest.testfile(str(page), module_relative=False)
    assert result.attempted > 10
    assert result.failed == 0


def test_a_device_without_an_example_is_named_before_anything_is_learnt(base, go, jobs_of):
    jobs = jobs_of(base, 1, 2)
    nothing = replace(jobs[0].data, tokens=(), targets=())
    with pytest.raises(DataError, match="example"):
        go(base, [replace(jobs[0], data=nothing), jobs[1]])
