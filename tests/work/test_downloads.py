"""A coded broadcast: what it holds, what it loses, and that a damaged one is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from airtune.cost import broadcast_bytes
from airtune.errors import CodecError
from airtune.model.importance import Importance
from airtune.plan import Assignments, CodecSpec, Workload, WorkSpec
from airtune.work.downloads import code_broadcast, opened

EIGHT_BITS = CodecSpec("topk", keep=1.0, bits=8)


@pytest.fixture
def pruned(base, state_of):
    """A state with importance, and two rows of which one keeps more and the other has more rank."""
    shape = base.shape
    scores = Importance(
        np.tile(np.arange(shape.kv_groups, 0, -1.0), (shape.blocks, 1)),
        np.tile(np.arange(shape.ffn, 0, -1.0), (shape.blocks, 1)),
    )
    rows = Assignments(
        device=np.array([0, 1]),
        prune_heads=np.zeros(2),
        prune_ffn=np.array([0.5, 0.25]),
        rank=np.array([3, 2]),
        share=np.ones(2),
        local_steps=np.ones(2, np.int64),
        cut=np.zeros(2, np.int64),
        codec_index=np.zeros(2, np.int64),
    )
    return replace(state_of(base), importance=scores), rows


def coded(state, rows, shape, spec=EIGHT_BITS):
    return code_broadcast(state, rows, spec, np.random.default_rng(0), shape=shape, work=WorkSpec())


def test_it_holds_the_union_of_what_devices_keep_at_the_largest_rank(base, pruned):
    state, rows = pruned
    sent = coded(state, rows, base.shape)
    assert sent.rank == 3
    assert [len(row) for row in sent.kept.channels] == [36] * base.shape.blocks
    workload = Workload(
        batch=1,
        tokens=8,
        local_steps=1,
        rank=4,
        download=EIGHT_BITS,
        lora_targets=tuple(linear.name for linear in base.shape.linears),
    )
    priced = broadcast_bytes(base.shape, workload, rows)
    assert sent.size_bytes == pytest.approx(priced, rel=0.3)


def test_eight_bits_lose_less_than_a_level_and_nothing_else_changes(base, pruned):
    state, rows = pruned
    sent = coded(state, rows, base.shape)
    for group in "AB":
        names = [name for name in state.adapters if name.endswith(group)]
        level = max(float(state.adapters[name].abs().max()) for name in names) / 127
        for name in names:
            lost = (sent.state.adapters[name] - state.adapters[name]).abs()
            assert float(lost.max()) <= level * 1.001
            kept = lost[3:] if group == "A" else lost[:, 3:]
            assert not kept.any()


def test_both_ends_open_the_same_numbers(base, pruned):
    state, rows = pruned
    sent = coded(state, rows, base.shape)
    blank = replace(
        state, adapters={name: torch.zeros_like(item) for name, item in state.adapters.items()}
    )
    found = opened(blank, sent.payloads, sent.kept, sent.rank, shape=base.shape)
    name = next(iter(state.adapters))
    assert torch.equal(found.adapters[name][:3], sent.state.adapters[name][:3])
    with pytest.raises(CodecError, match="comes in payloads"):
        opened(blank, {"A": sent.payloads["A"]}, sent.kept, sent.rank, shape=base.shape)
    with pytest.raises(CodecError):
        opened(blank, sent.payloads, sent.kept, 1, shape=base.shape)
