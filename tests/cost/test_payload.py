from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model

from airtune.cost import (
    base_bytes,
    download_bytes,
    known_shapes,
    llama_like,
    lora_parameters,
    upload_bytes,
)
from airtune.model.families import family_of
from airtune.plan import CodecSpec, Workload, whole_model

# peft's own words with Conv1D layers and with transformers 5
pytestmark = [
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set"),
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]

SLICED = llama_like(
    "qwen2", blocks=3, width=48, heads=3, kv_groups=1, head_dim=8, ffn=40, vocab=100, tied=True,
    qkv_bias=True,
)  # fmt: skip


def work(shape):
    names = tuple(linear.name for linear in shape.linears)
    return Workload(2, 16, local_steps=1, rank=4, lora_targets=names)


def pruned_plan(rank, *pruned):
    count, ratio = len(pruned), np.array(pruned)
    plan = whole_model(np.arange(count), rank=rank, local_steps=1, share=np.ones(count))
    return replace(plan, prune_heads=ratio, prune_ffn=ratio)


def peft_numbers(sample, names, rank, *, trains_head):
    """Count the tensors that peft would send for these targets."""
    paths = {family_of(sample.config).path(block, name) for block in range(3) for name in names}
    head = [family_of(sample.config).head] if trains_head else None
    settings = LoraConfig(r=rank, target_modules=list(paths), modules_to_save=head)
    model = get_peft_model(sample.build(), settings)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def test_upload_equals_the_tensors_peft_makes(sample, workload_of, plan_of):
    workload = workload_of(sample.shape, trains_head=bool(sample.shape.labels))
    expected = peft_numbers(sample, workload.lora_targets, 4, trains_head=workload.trains_head)
    assert upload_bytes(sample.shape, workload, plan_of()).tolist() == [expected * 4.0]
    assert download_bytes(sample.shape, workload, 4) == expected * 4.0


def test_each_row_costs_what_a_fleet_of_its_codec_costs(sample, workload_of, plan_of):
    specs = (CodecSpec("fp16"), CodecSpec(), CodecSpec("topk", keep=0.1, bits=4))
    plain = workload_of(sample.shape)
    told = replace(plan_of(3), upload_index=np.arange(3), uploads=specs)
    alone = [upload_bytes(sample.shape, replace(plain, upload=each), plan_of()) for each in specs]
    assert upload_bytes(sample.shape, plain, told).tolist() == np.concatenate(alone).tolist()


@pytest.mark.parametrize("target", ["q_proj", "v_proj", "o_proj", "gate_proj", "down_proj"])
def test_sliced_adapters_are_those_of_the_smaller_model(target, sample_of, workload_of, plan_of):
    shape = sample_of("qwen2").shape
    workload = workload_of(shape, lora_targets=(target,))
    pruned = lora_parameters(shape, workload, plan_of(prune_heads=0.5, prune_ffn=0.5))
    assert pruned.tolist() == lora_parameters(SLICED, workload, plan_of()).tolist()


def test_adapters_keep_the_side_that_faces_the_residual_stream(sample_of, workload_of, plan_of):
    shape = sample_of("llama").shape
    workload = workload_of(shape, lora_targets=("up_proj", "down_proj"), rank=1)
    numbers = lora_parameters(shape, workload, plan_of(rank=1, prune_ffn=0.75))
    assert numbers.tolist() == [3 * 2 * (48 + 20)]


@given(low=st.floats(0, 0.9), more=st.floats(0, 0.09), rank=st.integers(1, 32))
def test_more_pruning_never_sends_more(low, more, rank):
    shape, plan = known_shapes()["tinyllama-1.1b"], pruned_plan(rank, low, low + more)
    sent = upload_bytes(shape, work(shape), plan)
    assert 0 < sent[1] <= sent[0]


@given(rank=st.integers(1, 64))
def test_bytes_are_proportional_to_the_rank(rank):
    shape = known_shapes()["gpt2"]
    workload = work(shape)
    assert download_bytes(shape, workload, rank) == rank * download_bytes(shape, workload, 1)


def test_cut_device_sends_the_adapters_of_its_blocks(sample_of, workload_of, plan_of):
    shape = sample_of("bert").shape
    workload = workload_of(shape, trains_head=True)
    sent = lora_parameters(shape, workload, plan_of(4, cut=[0, 1, 2, 3])).tolist()
    assert sent == [sent[1] * 3, sent[1], sent[1] * 2, sent[1] * 3]
    assert upload_bytes(shape, workload, plan_of(cut=3))[0] == sent[3] * 4.0


def test_base_is_every_parameter_at_its_precision(sample_of, workload_of):
    shape = sample_of("qwen2").shape
    assert base_bytes(shape, workload_of(shape)) == 4.0 * shape.parameters
    assert base_bytes(shape, workload_of(shape, base_bits=16)) == 2.0 * shape.parameters


def test_quantised_base_keeps_embedding_norms_and_biases_plain(sample_of, workload_of):
    shape = sample_of("qwen2").shape
    linears = 3 * (48 * 48 * 2 + 2 * 48 * 16 + 3 * 48 * 80)
    plain = shape.parameters - linears
    quantised = workload_of(shape, base_bits=4, dtype_bytes=2)
    assert base_bytes(shape, quantised) == linears * 4.5 / 8 + plain * 2.0
