import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
    RobertaConfig,
)
from transformers.pytorch_utils import Conv1D

from airtune.cost import bert_like, known_shapes, llama_like
from airtune.errors import ModelError
from airtune.model.families import family_of


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_parameter_count_equals_the_real_model(sample):
    with torch.device("meta"):
        model = sample.build()
    assert sample.shape.parameters == parameters(model)


def test_linear_sizes_and_biases_equal_the_real_layers(sample):
    with torch.device("meta"):
        model = sample.build()
    for linear in sample.shape.linears:
        layer = model.get_submodule(family_of(sample.config).path(1, linear.name))
        columns, rows = sample.shape.linear_sizes(linear, sample.shape.kv_groups, sample.shape.ffn)
        size = tuple(layer.weight.shape)
        assert (int(columns), int(rows)) == (size if isinstance(layer, Conv1D) else size[::-1])
        assert linear.bias == (layer.bias is not None)


def test_trained_head_is_the_module_peft_trains(sample):
    with torch.device("meta"):
        model = sample.build()
    names = ("classifier", "score", "pre_classifier")  # by the ends of names, as peft looks
    heads = [getattr(model, name) for name in names if hasattr(model, name)]
    assert sample.shape.trained_head_parameters == sum(parameters(head) for head in heads)


REAL = {
    "qwen2.5-0.5b": Qwen2Config(
        hidden_size=896, intermediate_size=4864, num_hidden_layers=24, num_attention_heads=14,
        num_key_value_heads=2, vocab_size=151936, tie_word_embeddings=True,
    ),
    "qwen3-0.6b": Qwen3Config(
        hidden_size=1024, intermediate_size=3072, num_hidden_layers=28, num_attention_heads=16,
        num_key_value_heads=8, head_dim=128, vocab_size=151936, tie_word_embeddings=True,
    ),
    "llama-2-7b": LlamaConfig(),
    "mistral-7b": MistralConfig(),
    "gpt2": GPT2Config(),
    "bert-base": BertConfig(),
    "roberta-base": RobertaConfig(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_configurations_match_on_the_meta_device(name):
    task = AutoModelForSequenceClassification if "bert" in name else AutoModelForCausalLM
    with torch.device("meta"):
        model: PreTrainedModel = task.from_config(REAL[name])
    assert known_shapes()[name].parameters == parameters(model)


def test_heads_that_form_no_whole_groups_are_refused():
    with pytest.raises(ModelError, match="got 6 heads and 4 groups"):
        llama_like(
            "llama", blocks=1, width=8, heads=6, kv_groups=4, head_dim=4, ffn=8, vocab=9, tied=True
        )


def test_encoder_without_classes_is_refused():
    with pytest.raises(ModelError, match="at least 1 class, got labels=0"):
        bert_like(
            "bert", blocks=1, width=8, heads=2, ffn=8, vocab=9, positions=4, types=2, labels=0
        )


def test_width_that_heads_do_not_divide_is_refused():
    with pytest.raises(ModelError, match="got 9 and 2"):
        bert_like(
            "bert", blocks=1, width=9, heads=2, ffn=8, vocab=9, positions=4, types=2, labels=2
        )


def test_empty_size_is_refused():
    with pytest.raises(ModelError, match="ffn of a model must be at least 1, got 0"):
        llama_like(
            "llama", blocks=1, width=8, heads=2, kv_groups=2, head_dim=4, ffn=0, vocab=9, tied=True
        )
