import pytest

from airtune.cost.graph import flows, targets
from airtune.errors import ModelError


def test_first_block_has_gradients_only_behind_its_first_adapter(sample_of, workload_of):
    shape = sample_of("llama").shape
    first, later = flows(shape, workload_of(shape, lora_targets=("v_proj",)))
    assert not any((first.hidden, first.query, first.key, first.scores))
    assert all((first.value, first.context, first.middle, first.gate, first.output))
    assert all((later.hidden, later.scores))


def test_adapters_on_the_ffn_leave_the_first_attention_alone(sample_of, workload_of):
    shape = sample_of("bert").shape
    first, _ = flows(shape, workload_of(shape, lora_targets=("output.dense",)))
    assert not any((first.context, first.middle, first.product))
    assert first.output


def test_fused_layer_gives_gradients_to_queries_keys_and_values(sample_of, workload_of):
    shape = sample_of("gpt2").shape
    first, _ = flows(shape, workload_of(shape, lora_targets=("c_attn",)))
    assert all((first.query, first.key, first.value))


def test_unknown_target_is_refused_with_the_allowed_names(sample_of, workload_of):
    shape = sample_of("gpt2").shape
    with pytest.raises(ModelError, match=r"'c_proj' for a gpt2 model, allowed are c_attn, attn\."):
        targets(shape, workload_of(shape, lora_targets=("c_proj",)))
