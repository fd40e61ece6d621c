"""What is written as GGUF is read back by an independent reader and answers the same."""

import copy
import importlib.util
import json

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.errors import MissingExtraError, ModelError
from airtune.model.base import base_of
from airtune.model.gguf.adapter import write_adapter_gguf
from airtune.model.gguf.check import check_written
from airtune.model.gguf.fields import check_gguf
from airtune.model.gguf.write import write_gguf
from airtune.model.lora import init_adapters, merged

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the extra airtune[gguf]"
)
SIZES = {
    "vocab_size": 1030,
    "hidden_size": 32,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda **own: LlamaForCausalLM(LlamaConfig(**SIZES | own)),
    "mistral": lambda **own: MistralForCausalLM(
        MistralConfig(**SIZES | {"sliding_window": None} | own)
    ),
    "qwen2": lambda **own: Qwen2ForCausalLM(
        Qwen2Config(**SIZES | {"tie_word_embeddings": True} | own)
    ),
    "qwen3": lambda **own: Qwen3ForCausalLM(Qwen3Config(**SIZES | {"head_dim": 16} | own)),
}


def network_of(name, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MODELS[name](**settings).eval()
        for parameter in network.parameters():  # norms and biases too
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@needs_gguf
@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_file_and_gets_the_same_logits(tmp_path, tokenizer, name):
    network = network_of(name)
    write_gguf(tmp_path / "model.gguf", network, tokenizer)
    # transformers takes Qwen3's published head_dim, whatever a file says, and reads no Mistral as one
    own = {"config": network.config} if name == "qwen3" else {}
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", **own).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, network(ids).logits, atol=1e-5, rtol=0)
    found = check_written(tmp_path / "model.gguf", network, tokenizer, [ids])
    assert found.logit_rms < 1e-6


@needs_gguf
@pytest.mark.parametrize(
    ("quantise", "most", "bytes_a_number"), [("f16", 2e-3, 2), ("q8_0", 0.05, 34 / 32)]
)
@pytest.mark.parametrize("name", MODELS)
def test_a_quantised_file_answers_as_the_rounded_model_and_says_how_far_that_is(
    tmp_path, tokenizer, name, quantise, most, bytes_a_number
):
    network = network_of(name, intermediate_size=96)
    write_gguf(tmp_path / "model.gguf", network, tokenizer, quantise=quantise)
    ids = torch.arange(3, 40)[None]
    found = check_written(tmp_path / "model.gguf", network, tokenizer, [ids], quantise=quantise)
    assert 0 < found.logit_rms < most
    numbers = sum(item.numel() for item in network.parameters())
    assert found.file_bytes < bytes_a_number * numbers + 100_000


@needs_gguf
def test_a_width_of_any_number_of_heads_is_read_back(tmp_path, tokenizer):
    network = network_of("llama", hidden_size=48)
    write_gguf(tmp_path / "model.gguf", network, tokenizer)
    rows = [torch.arange(3, 40)[None]]
    assert check_written(tmp_path / "model.gguf", network, tokenizer, rows).logit_rms < 1e-6


@needs_gguf
def test_a_file_that_says_another_constant_is_not_kept(tmp_path, tokenizer):
    network = network_of("llama", intermediate_size=96)
    write_gguf(tmp_path / "model.gguf", network, tokenizer, quantise="q8_0")
    other = copy.deepcopy(network)
    other.model.layers[1].input_layernorm.weight.data *= 1.01
    with pytest.raises(ModelError, match="answers differently from the model it was made from"):
        check_written(
            tmp_path / "model.gguf", other, tokenizer, [torch.arange(3, 40)[None]], quantise="q8_0"
        )


@needs_gguf
def test_q8_0_needs_rows_of_whole_blocks(tmp_path, tokenizer):
    with pytest.raises(
        ModelError, match=r"down_proj.weight has rows of 72; prune to a multiple of 32"
    ):
        write_gguf(tmp_path / "x", network_of("llama"), tokenizer, quantise="q8_0")


@needs_gguf
def test_half_precision_refuses_what_it_cannot_hold(tmp_path, tokenizer):
    network = network_of("llama")
    network.model.layers[0].mlp.up_proj.weight.data[0, 0] = 1e5
    with pytest.raises(ModelError, match=r"up to 1e\+05 where 65504 is the most"):
        write_gguf(tmp_path / "x", network, tokenizer, quantise="f16")


@needs_gguf
def test_more_tokens_than_embeddings_are_refused(tmp_path):
    more = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    more.add_tokens([f"<t{place}>" for place in range(60)])
    with pytest.raises(ModelError, match="that the model's embedding of 1030 rows lacks"):
        write_gguf(tmp_path / "x", network_of("llama"), more)


@needs_gguf
def test_the_file_splits_text_as_the_tokenizer_does(tmp_path, tokenizer):
    write_gguf(tmp_path / "model.gguf", network_of("llama"), tokenizer)
    read = AutoTokenizer.from_pretrained(tmp_path, gguf_file="model.gguf")
    for text in ("What is 12345 + 678?", "it isn't  so, é 漢", "<|user|>add 3<|end|>"):
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]


@needs_gguf
def test_sentencepiece_merges_become_scores(tmp_path):
    import gguf

    pieces = ["<unk>", "<s>", "<0x41>", "▁", "a", "b", "ab", "▁ab"]
    model = models.BPE(
        {piece: place for place, piece in enumerate(pieces)},
        [("a", "b"), ("▁", "ab")],
        byte_fallback=True,
        unk_token="<unk>",
    )
    plain = Tokenizer(model)
    content = json.loads(plain.to_str()) | {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
            ],
        }
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(content)), unk_token="<unk>", bos_token="<s>"
    )
    write_gguf(tmp_path / "model.gguf", network_of("llama"), tokenizer)
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    scores = fields["tokenizer.ggml.scores"].contents()[:8]
    assert (scores[6], scores[7]) == (0.0, -1.0)
    assert max(scores[:6]) < -1.0
    assert fields["tokenizer.ggml.token_type"].contents()[:4] == [2, 3, 6, 1]
    assert len(fields["tokenizer.ggml.tokens"].contents()) == SIZES["vocab_size"]


@needs_gguf
def test_half_precision_weights_keep_their_bytes(tmp_path, tokenizer):
    import gguf

    network = network_of("qwen2").to(torch.bfloat16)
    write_gguf(tmp_path / "model.gguf", network, tokenizer)
    found = {one.name: one for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    assert found["blk.0.attn_q.bias"].tensor_type == gguf.GGMLQuantizationType.F32
    weight = network.model.layers[1].mlp.up_proj.weight.detach()
    stored = found["blk.1.ffn_up.weight"]
    assert stored.tensor_type == gguf.GGMLQuantizationType.BF16
    np.testing.assert_array_equal(stored.data, weight.view(torch.uint8).numpy())


WINDOWS = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}


@needs_gguf
@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("llama", {"hidden_act": "gelu"}, "with hidden_act: 'gelu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
            "with linear rope",
        ),
        (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "default",
                    "partial_rotary_factor": 0.5,
                    "rope_theta": 1e4,
                }
            },
            "partial_rotary_factor",
        ),
        ("mistral", {"sliding_window": 8}, "with a sliding window of 8"),
        ("qwen2", WINDOWS, "with a sliding window of 8"),
        ("qwen3", WINDOWS, "with a sliding window of 8"),
        ("qwen3", {"attention_bias": True}, "with biases"),
    ],
)
def test_what_gguf_would_not_compute_the_same_is_refused(name, change, said):
    with pytest.raises(ModelError, match=said):
        check_gguf(MODELS[name](**change))


@needs_gguf
@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"sliding_window": 8}),
        ("qwen2", WINDOWS | {"max_window_layers": 2}),
    ],
)
def test_a_window_that_no_block_uses_is_no_hindrance(name, change):
    check_gguf(MODELS[name](**change))


def biased_llama():
    """A Llama whose output projections alone have biases that are not zero."""
    network = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            torch.nn.init.normal_(parameter, std=0.2)
    return network


@needs_gguf
def test_constants_of_a_pruned_llama_are_written(tmp_path, tokenizer):
    import gguf

    network = biased_llama()
    write_gguf(tmp_path / "model.gguf", network, tokenizer)
    names = [one.name for one in gguf.GGUFReader(tmp_path / "model.gguf").tensors]
    assert [name for name in names if name.startswith("blk.0.") and name.endswith(".bias")] == [
        "blk.0.attn_output.bias",
        "blk.0.ffn_down.bias",
    ]
    check_written(tmp_path / "model.gguf", network, tokenizer, [torch.arange(3, 40)[None]])
    # transformers' reader takes the switches from the caller, llama.cpp from the tensors
    read = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file="model.gguf", attention_bias=True, mlp_bias=True
    ).eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, network(ids).logits, atol=1e-5, rtol=0)


@needs_gguf
def test_a_granite_is_written_only_where_it_computes_what_llama_does(tmp_path, tokenizer):
    import gguf

    odd = {**SIZES, "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 8}
    plain = GraniteForCausalLM(GraniteConfig(**odd, attention_multiplier=8**-0.5))
    write_gguf(tmp_path / "model.gguf", plain, tokenizer)
    check_written(tmp_path / "model.gguf", plain, tokenizer, [torch.arange(3, 40)[None]])
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["general.architecture"].contents() == "llama"
    assert fields["llama.attention.head_count"].contents() == 3
    with pytest.raises(ModelError, match="granite model with multipliers of its own"):
        check_gguf(GraniteForCausalLM(GraniteConfig(**odd, logits_scaling=8.0)))


@needs_gguf
def test_biases_before_attention_are_refused():
    network = biased_llama()
    torch.nn.init.normal_(network.model.layers[1].self_attn.q_proj.bias)
    with pytest.raises(ModelError, match="with biases before attention or MLP"):
        check_gguf(network)


@needs_gguf
def test_other_models_and_unknown_tokenizers_are_refused(tmp_path):
    small = {name: SIZES[name] for name in list(SIZES)[:5]}
    with pytest.raises(
        ModelError, match="language models of llama, mistral, qwen2, qwen3, granite, got bert"
    ):
        check_gguf(BertForSequenceClassification(BertConfig(**small)))
    odd = Tokenizer(models.BPE({"a": 0}, []))
    odd.pre_tokenizer, odd.decoder = pre_tokenizers.Whitespace(), decoders.BPEDecoder()
    with pytest.raises(ModelError, match="no name for how this tokenizer splits text"):
        write_gguf(
            tmp_path / "x", network_of("llama"), PreTrainedTokenizerFast(tokenizer_object=odd)
        )


@needs_gguf
def test_only_special_added_tokens_are_control_tokens(tmp_path):
    import gguf

    mine = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    mine.add_tokens("<tool>")
    write_gguf(tmp_path / "model.gguf", network_of("llama"), mine)
    kinds = gguf.GGUFReader(tmp_path / "model.gguf").fields["tokenizer.ggml.token_type"].contents()
    assert kinds[mine.convert_tokens_to_ids("<tool>")] == gguf.TokenType.USER_DEFINED
    assert kinds[mine.convert_tokens_to_ids("<|user|>")] == gguf.TokenType.CONTROL


def test_no_one_is_told_to_install_what_would_not_help(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    small = {name: SIZES[name] for name in list(SIZES)[:5]}
    with pytest.raises(ModelError, match="got bert"):
        check_gguf(BertForSequenceClassification(BertConfig(**small)))


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'airtune\[gguf\]'"):
        check_gguf(network_of("llama"))


@needs_gguf
@pytest.mark.parametrize(
    ("name", "quantise"), [("llama", "f32"), ("llama", "f16"), ("qwen2", "f32")]
)
def test_an_adapter_added_to_the_files_of_the_base_gives_those_of_the_merged_model(
    tmp_path, tokenizer, workload_of, name, quantise
):
    import gguf

    base = base_of(network_of(name), tokenizer=tokenizer)
    adapters = init_adapters(base.shape, workload_of(base.shape), 0)
    stream = torch.Generator().manual_seed(1)
    adapters = {key: torch.randn(item.shape, generator=stream) for key, item in adapters.items()}
    whole = merged(base.network, base.family, adapters, scale=0.5)
    write_gguf(tmp_path / "base.gguf", base.network, tokenizer)
    write_gguf(tmp_path / "merged.gguf", whole, tokenizer)
    write_adapter_gguf(tmp_path / "lora.gguf", base, adapters, scale=0.5, quantise=quantise)
    files = [gguf.GGUFReader(tmp_path / f"{one}.gguf") for one in ("base", "merged", "lora")]
    plain, wanted, added = ({one.name: one.data for one in file.tensors} for file in files)
    fields = files[2].fields
    assert fields["general.type"].contents() == "adapter"
    assert fields["adapter.type"].contents() == "lora"
    alpha, adapted = (
        fields["adapter.lora.alpha"].contents(),
        {one.removesuffix(".lora_a") for one in added if one.endswith("lora_a")},
    )
    assert len(adapted) == 14
    assert {one.rpartition(".")[0] for one in added} == adapted
    for key in adapted:
        a, b = (added[f"{key}.lora_{part}"].astype(np.float64) for part in "ab")
        total = plain[key] + alpha / b.shape[1] * (b @ a)
        np.testing.assert_allclose(total, wanted[key], atol=2e-5 if quantise == "f32" else 2e-2)


@needs_gguf
def test_an_adapter_of_a_base_without_a_place_in_gguf_is_refused(tmp_path, tokenizer, workload_of):
    base = base_of(network_of("qwen2", **WINDOWS), tokenizer=tokenizer)
    adapters = init_adapters(base.shape, workload_of(base.shape), 0)
    with pytest.raises(ModelError, match="sliding window of 8"):
        write_adapter_gguf(tmp_path / "lora.gguf", base, adapters, scale=1.0)
