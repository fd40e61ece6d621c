from dataclasses import replace

import numpy as np
import pytest

from airtune.cost import known_shapes, ladder, peak_memory, train_flops, upload_bytes
from airtune.plan import Workload, whole_model

SHAPES = sorted(known_shapes())


def work(shape):
    names = tuple(linear.name for linear in shape.linears)
    return Workload(4, 64, local_steps=5, rank=8, lora_targets=names)


@pytest.mark.parametrize("name", SHAPES)
def test_pruned_fraction_rises_strictly_from_dense(name):
    levels = ladder(known_shapes()[name], work(known_shapes()[name]))
    assert levels.pruned[0] == 0.0
    assert np.all(np.diff(levels.pruned) > 0.0)
    assert 2 <= len(levels) <= 64


@pytest.mark.parametrize("name", SHAPES)
def test_costs_never_rise_along_the_ladder(name):
    levels = ladder(known_shapes()[name], work(known_shapes()[name]))
    for column in (levels.flops, levels.upload_bytes, levels.peak_bytes):
        assert np.all(np.diff(column) <= 0.0)
        assert np.all(column > 0.0)


@pytest.mark.parametrize("name", SHAPES)
def test_levels_are_whole_structures(name):
    shape = known_shapes()[name]
    levels = ladder(shape, work(shape))
    groups, channels = levels.prune_heads * shape.kv_groups, levels.prune_ffn * shape.ffn
    assert np.allclose(groups, np.rint(groups))
    assert np.allclose(channels, np.rint(channels))
    assert shape.kept_groups(levels.prune_heads[-1]) == 1


def test_prices_are_those_of_the_cost_model(sample_of):
    shape = sample_of("llama").shape
    levels, workload = ladder(shape, work(shape)), work(shape)
    count = len(levels)
    plan = replace(
        whole_model(np.arange(count), rank=8, local_steps=5, share=np.ones(count)),
        prune_heads=levels.prune_heads,
        prune_ffn=levels.prune_ffn,
    )
    assert levels.flops.tolist() == train_flops(shape, workload, plan).tolist()
    assert levels.upload_bytes.tolist() == upload_bytes(shape, workload, plan).tolist()
    assert levels.peak_bytes.tolist() == peak_memory(shape, workload, plan).total.tolist()


def test_payload_falls_more_slowly_than_the_model(sample_of):
    shape = known_shapes()["llama-2-7b"]
    levels = ladder(shape, work(shape))
    sent = levels.upload_bytes / levels.upload_bytes[0]
    assert np.all(sent[1:] > 1.0 - levels.pruned[1:])
