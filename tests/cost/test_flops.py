from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from torch.utils.flop_counter import FlopCounterMode

from airtune.cost import forward_flops, known_shapes, llama_like, train_flops
from airtune.model.families import family_of
from airtune.plan import Workload, whole_model

# peft's own words with Conv1D layers and with transformers 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

BATCH, TOKENS = 2, 16


def adapted(sample, names, *, trains_head=False):
    family = family_of(sample.config)
    paths = [family.path(block, name) for block in range(3) for name in names]
    head = list(family.heads) if trains_head else None
    return get_peft_model(
        sample.build(), LoraConfig(r=4, target_modules=paths, modules_to_save=head)
    )


def counted(model, labels):
    """FLOPs of one step as torch counts them."""
    ids = torch.randint(5, 90, (BATCH, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    counter = FlopCounterMode(display=False)
    with counter:
        model(**inputs, labels=torch.zeros(BATCH, dtype=torch.long) if labels else ids)[
            0
        ].backward()
    return counter.get_total_flops()


def scored_by_transformers(shape):
    """Decoders that classify score every token in transformers; here only the last."""
    if not shape.labels or shape.family in ("bert", "roberta", "distilbert", "modernbert"):
        return 0
    return 2 * 3 * shape.head_macs * BATCH * (TOKENS - 1)


def test_step_equals_torchs_counter_with_every_layer_adapted(sample, workload_of, plan_of):
    shape, head = sample.shape, bool(sample.shape.labels)
    workload = workload_of(shape, trains_head=head)
    seen = counted(adapted(sample, workload.lora_targets, trains_head=head), head)
    expected = train_flops(shape, workload, plan_of())[0]
    assert seen == expected + scored_by_transformers(shape)


@pytest.mark.parametrize(
    ("name", "targets"),
    [
        ("llama", ("q_proj",)),
        ("llama", ("k_proj",)),
        ("llama", ("v_proj",)),
        ("llama", ("q_proj", "v_proj")),
        ("llama", ("o_proj",)),
        ("llama", ("up_proj",)),
        ("llama", ("down_proj",)),
        ("gpt2", ("mlp.c_proj",)),
        ("bert", ("query", "value")),
        ("bert", ("intermediate.dense",)),
        ("bert", ("output.dense",)),
    ],
)
def test_step_equals_torchs_counter_with_some_layers_adapted(
    name, targets, sample_of, workload_of, plan_of
):
    sample = sample_of(name)
    seen = counted(adapted(sample, targets), sample.shape.labels)
    workload = workload_of(sample.shape, lora_targets=targets)
    assert seen == train_flops(sample.shape, workload, plan_of())[0]


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert"])
def test_forward_equals_torchs_counter(name, sample_of, workload_of, plan_of):
    sample = sample_of(name)
    workload = workload_of(sample.shape)
    model = adapted(sample, workload.lora_targets)
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=torch.randint(5, 90, (BATCH, TOKENS)))
    expected = forward_flops(sample.shape, workload, plan_of())[0]
    assert counter.get_total_flops() == expected


def test_checkpointing_counts_at_most_a_hundredth_too_much(sample_of, workload_of, plan_of):
    sample = sample_of("llama")
    sample.config.use_cache = False
    workload = workload_of(sample.shape, checkpointing=True)
    model = adapted(sample, workload.lora_targets).train()
    model.base_model.model.activation_checkpointing_enable()
    model.base_model.model.disable_input_require_grads()
    seen = counted(model, labels=0)
    assert seen <= train_flops(sample.shape, workload, plan_of())[0] <= 1.01 * seen


def test_pruned_flops_are_those_of_the_smaller_model(sample_of, workload_of, plan_of):
    shape = sample_of("qwen2").shape
    smaller = llama_like(
        "qwen2", blocks=3, width=48, heads=3, kv_groups=1, head_dim=8, ffn=40, vocab=100, tied=True
    )
    workload = workload_of(shape)
    pruned = train_flops(shape, workload, plan_of(prune_heads=0.5, prune_ffn=0.5))
    assert pruned.tolist() == train_flops(smaller, workload, plan_of()).tolist()


def test_unscored_positions_spare_the_head(sample_of, workload_of, plan_of):
    shape = sample_of("llama").shape
    whole = train_flops(shape, workload_of(shape), plan_of())
    half = train_flops(shape, workload_of(shape, scored=0.5), plan_of())
    assert whole - half == 2 * 2 * 48 * 100 * (BATCH * TOKENS / 2)


def test_cut_device_pays_for_its_blocks_without_the_head(sample_of, workload_of, plan_of):
    shape = sample_of("bert").shape
    cost = train_flops(shape, workload_of(shape), plan_of(4, cut=[1, 2, 3, 0]))
    assert cost[2] - cost[1] == cost[1] - cost[0]
    assert cost[3] - cost[2] == 2 * 2 * BATCH * shape.head_macs


@given(
    ratios=st.lists(st.tuples(st.floats(0, 0.99), st.floats(0, 0.99)), min_size=2, max_size=2),
    steps=st.integers(1, 50),
)
def test_more_pruning_never_computes_more(ratios, steps):
    shape = known_shapes()["qwen2.5-0.5b"]
    low, high = np.sort(np.array(ratios), axis=0)
    plan = whole_model(np.arange(2), rank=8, local_steps=steps, share=np.ones(2))
    pruned = type(plan)(
        plan.device,
        np.array([low[0], high[0]]),
        np.array([low[1], high[1]]),
        plan.rank,
        plan.share,
        plan.local_steps,
        plan.cut,
        plan.codec_index,
    )
    workload = Workload(4, 128, local_steps=1, rank=8, lora_targets=("q_proj", "v_proj"))
    cost = train_flops(shape, workload, pruned)
    assert cost[1] <= cost[0]
    assert (
        cost[0]
        <= steps
        * train_flops(
            shape, workload, whole_model(np.arange(1), rank=8, local_steps=1, share=np.ones(1))
        )[0]
    )


def test_a_slice_that_learns_from_the_dense_base_runs_it_forwards(sample_of, workload_of, plan_of):
    sample = sample_of("llama")
    shape, workload = sample.shape, workload_of(sample.shape)
    plan = replace(plan_of(), prune_ffn=np.full(len(plan_of()), 0.5))
    alone, taught = (
        train_flops(shape, replace(workload, distills=on), plan)[0] for on in (False, True)
    )
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        sample.build()(torch.randint(5, 90, (BATCH, TOKENS)))
    steps = int(plan.local_steps[0])
    assert taught - alone == steps * counter.get_total_flops()
    whole = replace(workload, distills=True)
    assert train_flops(shape, whole, plan_of())[0] == train_flops(shape, workload, plan_of())[0]
