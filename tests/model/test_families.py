import pytest
from transformers import BertConfig, DeiTConfig, Gemma3TextConfig, OPTConfig

from airtune.errors import ModelError
from airtune.model.families import FAMILIES, family_of, shape_from_config


def test_parameters_equal_those_of_the_network(base):
    counted = sum(parameter.numel() for parameter in base.network.parameters())
    assert base.shape.parameters == counted


def test_classifiers_have_the_parameters_of_the_network(make_base, family_name):
    base = make_base(family_name, labels=5)
    counted = sum(parameter.numel() for parameter in base.network.parameters())
    assert base.shape.parameters == counted


def test_every_linear_layer_has_the_size_its_shape_says(base):
    from airtune.model.weights import shape_of

    for linear in base.shape.linears:
        columns, rows = base.shape.linear_sizes(linear, base.shape.kv_groups, base.shape.ffn)
        module = base.family.linear(base.network, 1, linear.name)
        assert shape_of(module) == (rows, columns)
        assert base.network.get_submodule(base.family.path(1, linear.name)) is module


def test_biases_are_where_the_shape_says(base):
    from airtune.model.weights import bias_of

    for linear in base.shape.linears:
        bias = bias_of(base.family.linear(base.network, 0, linear.name))
        assert (bias is not None) == linear.bias


@pytest.mark.parametrize("config", [OPTConfig(), DeiTConfig()])
def test_an_unknown_family_names_the_supported_ones(config):
    with pytest.raises(
        ModelError, match="supported are bert, distilbert, gemma3_text, gpt2, llama"
    ):
        family_of(config)


def test_an_encoder_is_no_language_model():
    with pytest.raises(ModelError, match="bert model is an encoder and cannot be a language model"):
        shape_from_config(BertConfig(), labels=0)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("final_logit_softcapping", 30.0, "caps its logits"),
        ("use_bidirectional_attention", True, "attends to both sides"),
    ],
)
def test_a_gemma_that_would_be_trained_otherwise_than_it_computes_is_refused(field, value, said):
    with pytest.raises(ModelError, match=said):
        shape_from_config(Gemma3TextConfig(**{field: value}))


def test_families_are_named_after_their_model_type():
    assert all(name == family.name for name, family in FAMILIES.items())
