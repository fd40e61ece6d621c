"""What is written as GGUF is read back by an independent reader and answers the same."""

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
from airtune.model.gguf import check_gguf, write_gguf

needs_gguf = pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None, reason="needs the extra airtune[gguf]"
)
SIZES = {"vocab_size": 1030, "hidden_size": 32, "intermediate_size": 72, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}  # fmt: skip
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "mistral": lambda: MistralForCausalLM(MistralConfig(**SIZES, sliding_window=None)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    # what transformers reads of a Qwen3 file always has the published 128
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SIZES, head_dim=128)),
}


def network_of(name, **settings):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = MODELS[name]().eval()
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
    read = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf").eval()
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(read(ids).logits, network(ids).logits, atol=1e-5, rtol=0)


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
        {piece: place for place, piece in enumerate(pieces)}, [("a", "b"), ("▁", "ab")],
        byte_fallback=True, unk_token="<unk>",
    )  # fmt: skip
    plain = Tokenizer(model)
    content = json.loads(plain.to_str()) | {"normalizer": {"type": "Sequence", "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]}}  # fmt: skip
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


@needs_gguf
@pytest.mark.parametrize(
    ("change", "said"),
    [({"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}}, "with linear rope")],
)  # fmt: skip
def test_a_llama_that_gguf_would_not_compute_the_same_is_refused(change, said):
    with pytest.raises(ModelError, match=said):
        check_gguf(LlamaForCausalLM(LlamaConfig(**SIZES, **change)))


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
