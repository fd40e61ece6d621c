"""What of an update arrives: everything, or the coded difference with what was lost made up for."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.codec import encode
from airtune.cost import upload_bytes
from airtune.errors import CheckpointError, CodecError
from airtune.model.kept import Kept, keep_all
from airtune.model.lora import take
from airtune.model.state import Update
from airtune.plan import Assignments, CodecSpec, WorkSpec
from airtune.work.uploads import Residuals, decode_update, encode_update, returned_of

SPECS = {
    "fp16": CodecSpec("fp16"),
    "topk": CodecSpec("topk", keep=0.2, bits=4),
    "deadzone": CodecSpec("deadzone", step=0.75),
}


@pytest.fixture(params=["base", "classifier"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def update_of(state_of):
    """An update a little away from the state, of any slice and rank."""

    def make(base, *, kept=None, rank=4, seed=0, size=1e-3):
        state, stream = state_of(base), torch.Generator().manual_seed(seed)
        kept = kept or keep_all(base.shape)
        moved = {
            name: tensor + size * torch.randn(tensor.shape, generator=stream)
            for name, tensor in (take(state.adapters, base.shape, kept, rank) | state.head).items()
        }
        head = {name: moved.pop(name) for name in state.head}
        return Update(1, 0, kept, rank, moved, head, 8)

    return make


def half(shape):
    return Kept(
        (np.arange(1, shape.kv_groups),) * shape.blocks,
        (np.arange(0, shape.ffn, 2),) * shape.blocks,
    )


def reference_of(state, shape, kept, rank, cut=0):
    return returned_of(state, shape, kept, rank, cut=cut, work=WorkSpec())


def cross(update, reference, spec, residual=None):
    coded = encode_update(update, reference, spec, np.random.default_rng(0), residual)
    return coded, decode_update(update, coded.payloads, reference, spec)


def distance(one, other):
    pairs = [(one[name], other[name]) for name in one]
    return float(sum((a - b).square().sum() for a, b in pairs)) ** 0.5


def test_the_identity_arrives_bit_for_bit(model, state_of, update_of):
    update = update_of(model)
    reference = reference_of(state_of(model), model.shape, update.kept, 4)
    coded, found = cross(update, reference, CodecSpec())
    for name, tensor in (update.adapters | update.head).items():
        assert torch.equal(tensor, (found.adapters | found.head)[name])
    assert found.adapters.keys() == update.adapters.keys()
    assert found.head.keys() == update.head.keys()
    assert not any(tensor.any() for tensor in coded.lost.values())


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("rank", [2, 4])
def test_only_the_difference_suffers(model, state_of, update_of, name, rank):
    update = update_of(model, kept=half(model.shape), rank=rank)
    reference = reference_of(state_of(model), model.shape, update.kept, rank)
    coded, found = cross(update, reference, SPECS[name])
    moved = distance(update.adapters, reference)
    lost = distance(found.adapters, update.adapters)
    assert lost < 0.85 * moved
    assert lost < 0.05 * sum(float(t.norm()) for t in update.adapters.values())
    owed = distance(
        {k: v for k, v in coded.lost.items() if k in update.adapters},
        {k: torch.zeros_like(v) for k, v in update.adapters.items()},
    )
    assert owed == pytest.approx(lost, rel=1e-3)


def test_a_cut_device_sends_its_own_blocks_and_the_rest_stays(base, state_of, update_of):
    update = update_of(base)
    reference = reference_of(state_of(base), base.shape, update.kept, 4, cut=1)
    assert {name.partition(".")[0] for name in reference} == {"0"}
    _, found = cross(update, reference, SPECS["topk"])
    for name, tensor in update.adapters.items():
        assert torch.equal(tensor, found.adapters[name]) == name.startswith("1.")


@pytest.mark.parametrize("name", SPECS)
def test_what_is_sent_is_as_long_as_was_expected(model, state_of, update_of, workload_of, name):
    shape, kept = model.shape, half(model.shape)
    ratio = np.array([1 - len(kept.groups[0]) / shape.kv_groups])
    told = Assignments(
        device=np.array([1]),
        prune_heads=ratio,
        prune_ffn=np.array([0.5]),
        rank=np.array([4]),
        share=np.ones(1),
        local_steps=np.ones(1, np.int64),
        cut=np.zeros(1, np.int64),
        codec_index=np.zeros(1, np.int64),
    )
    workload = workload_of(model, upload=SPECS[name])
    update = update_of(model, kept=kept)
    coded, _ = cross(update, reference_of(state_of(model), shape, kept, 4), SPECS[name])
    assert upload_bytes(shape, workload, told)[0] == pytest.approx(coded.size_bytes, rel=0.15)
    assert coded.size_bytes < 0.55 * upload_bytes(shape, workload_of(model), told)[0]


def test_feedback_sends_in_time_what_was_held_back(base, state_of, update_of):
    state, residuals, spec = state_of(base), Residuals(), CodecSpec("topk", keep=0.05, bits=3)
    update = update_of(base)
    reference = reference_of(state, base.shape, update.kept, 4)
    sent = {name: torch.zeros_like(tensor) for name, tensor in reference.items()}
    for _ in range(40):
        owed = residuals.of(update, state, base.shape, reference)
        coded, found = cross(update, reference, spec, owed)
        residuals.keep(update, state, base.shape, coded.lost)
        sent = {k: v + found.adapters[k] - reference[k] for k, v in sent.items()}
    mean = {name: reference[name] + tensor / 40 for name, tensor in sent.items()}
    once = cross(update, reference, spec)[1]
    assert distance(mean, update.adapters) < 0.35 * distance(once.adapters, update.adapters)


def test_what_was_lost_waits_for_its_slice_to_return(base, state_of, update_of):
    state, residuals, shape = state_of(base), Residuals(), base.shape
    whole, part = update_of(base), update_of(base, kept=half(base.shape), rank=2)
    everything = reference_of(state, shape, whole.kept, 4)
    coded, _ = cross(whole, everything, SPECS["topk"])
    residuals.keep(whole, state, shape, coded.lost)
    reference = reference_of(state, shape, part.kept, 2)
    owed = residuals.of(part, state, shape, reference)
    for name, tensor in take(coded.lost, shape, part.kept, 2).items():
        assert torch.equal(tensor, owed[name])
    residuals.keep(part, state, shape, {name: torch.zeros_like(t) for name, t in owed.items()})
    again = residuals.of(whole, state, shape, everything)
    left = take(again, shape, part.kept, 2)
    assert not any(tensor.any() for tensor in left.values())
    assert any(tensor.any() for tensor in again.values())


def test_what_was_lost_on_another_grid_is_dropped(base, state_of, update_of):
    state, residuals, shape = state_of(base), Residuals(), base.shape
    update = update_of(base)
    coded, _ = cross(update, reference_of(state, shape, update.kept, 4), SPECS["topk"])
    residuals.keep(update, state, shape, coded.lost)
    smaller = replace(state, adapters=take(state.adapters, shape, update.kept, 2))
    reference = reference_of(smaller, shape, update.kept, 2)
    owed = residuals.of(replace(update, rank=2), smaller, shape, reference)
    assert not any(tensor.any() for tensor in owed.values())


def test_what_was_lost_survives_a_checkpoint_bit_for_bit(base, state_of, update_of):
    state, residuals, shape = state_of(base), Residuals(), base.shape
    update = update_of(base)
    reference = reference_of(state, shape, update.kept, 4)
    residuals.keep(update, state, shape, cross(update, reference, SPECS["topk"])[0].lost)
    restored = Residuals.from_arrays(residuals.arrays())
    one, other = (item.of(update, state, shape, reference) for item in (residuals, restored))
    assert all(torch.equal(one[name], other[name]) for name in one)
    with pytest.raises(CheckpointError, match="'weights' is no part of what coding has lost"):
        Residuals.from_arrays({"weights": np.zeros(1)})


def test_payloads_that_do_not_fit_the_slice_are_refused(base, state_of, update_of):
    update, spec = update_of(base), SPECS["deadzone"]
    reference = reference_of(state_of(base), base.shape, update.kept, 4)
    payloads = dict(cross(update, reference, spec)[0].payloads)
    with pytest.raises(CodecError, match=r"comes in payloads \['A', 'B'\], got \['A'\]"):
        decode_update(update, {"A": payloads["A"]}, reference, spec)
    long = encode(np.zeros((10**6, 1), np.float32), spec, np.random.default_rng(0))
    with pytest.raises(CodecError, match="declares 1000000 elements"):
        decode_update(update, payloads | {"B": long}, reference, spec)
    short = encode(np.zeros((10, 1), np.float32), spec, np.random.default_rng(0))
    with pytest.raises(CodecError, match=r"must hold .* numbers in a column"):
        decode_update(update, payloads | {"A": short}, reference, spec)
    broken = replace(update, adapters={k: v * np.nan for k, v in update.adapters.items()})
    with pytest.raises(CodecError, match="NaN"):
        encode_update(broken, reference, spec, np.random.default_rng(0))
