"""A GGUF file is a base like a folder, or refused before a weight is read."""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM
from transformers.utils import logging

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.errors import MissingExtraError, ModelError
from airtune.model.base import load_base, load_shape
from airtune.model.gguf.write import write_gguf
from airtune.model.kept import keep_all
from airtune.model.lora import init_adapters
from airtune.model.plain import plain_config
from airtune.model.save import save_pruned
from airtune.model.source import load_tokenizer
from airtune.plan import Workload

gguf = pytest.importorskip("gguf", reason="needs the extra airtune[gguf]")
SIZES = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MODELS = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SIZES)),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SIZES, tie_word_embeddings=True)),
}
TEXTS = ("What is 12345 + 678?", "it isn't  so, é 漢", "<|user|>add 3<|end|>")


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


@pytest.fixture(scope="module")
def files(tmp_path_factory, tokenizer):
    """A file of each family, and the network that is in it."""
    made = {}
    for name, build in MODELS.items():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            network = build().eval()
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.2)
        path = tmp_path_factory.mktemp(name) / "model.gguf"
        write_gguf(path, network, tokenizer)
        made[name] = path, network
    return made


def rewritten(path, target, *, settings=(), drop=(), rename=(), kinds=()):
    """Copy a GGUF file with other settings or without some tensors."""
    reader = gguf.GGUFReader(path)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(target, dict(rename).get(architecture, architecture))
    for key, field in reader.fields.items():
        if key.startswith("GGUF.") or key == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        writer.add_key_value(key, dict(settings).get(key, field.contents()), kind, sub_type=inner)
    for key, value in settings:
        if key not in reader.fields:
            add = writer.add_string if isinstance(value, str) else writer.add_uint32
            add(key, value)
    for tensor in reader.tensors:
        if tensor.name not in drop:
            writer.add_tensor(tensor.name, np.array(tensor.data), raw_dtype=tensor.tensor_type)
    for name in kinds:
        writer.add_tensor(name, np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


@pytest.mark.parametrize("name", MODELS)
def test_the_base_answers_as_the_model_in_the_file_and_can_be_saved(files, name):
    path, network = files[name]
    base = load_base(path, device="cpu")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.network(ids).logits, network(ids).logits, atol=1e-5, rtol=0)
    assert not getattr(base.network, "is_quantized", False)
    assert "quantization_config" not in plain_config(base, keep_all(base.shape)).to_dict()
    assert load_shape(path) == base.shape


def test_nothing_is_drawn_on_the_screen(files, capfd, monkeypatch, tmp_path):
    monkeypatch.setattr(logging, "_tqdm_active", True)
    base = load_base(files["llama"][0], device="cpu")
    workload = Workload(1, 8, local_steps=1, rank=2, lora_targets=("q_proj",))
    save_pruned(
        tmp_path / "plain",
        base,
        keep_all(base.shape),
        init_adapters(base.shape, workload, 0),
        scale=1.0,
    )
    assert capfd.readouterr() == ("", "")
    assert logging.is_progress_bar_enabled()


def test_constants_of_a_pruned_model_are_read(tmp_path, tokenizer):
    network = LlamaForCausalLM(LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True)).eval()
    for name, parameter in network.named_parameters():
        if name.endswith(("o_proj.bias", "down_proj.bias")):
            torch.nn.init.normal_(parameter)
    write_gguf(tmp_path / "m.gguf", network, tokenizer)
    base = load_base(tmp_path / "m.gguf", device="cpu")
    ids = torch.arange(3, 40)[None]
    with torch.no_grad():
        torch.testing.assert_close(base.network(ids).logits, network(ids).logits, atol=1e-5, rtol=0)


def test_a_classifier_starts_from_a_file_too(files):
    assert load_base(files["llama"][0], labels=3, device="cpu").shape.labels == 3


def test_the_files_tokenizer_is_the_one_written_and_has_no_token_without_an_embedding(
    files, tokenizer
):
    read = load_tokenizer(files["llama"][0])
    assert len(read) == len(tokenizer) == 1024
    assert read.chat_template == tokenizer.chat_template
    assert (read.eos_token, read.pad_token) == (tokenizer.eos_token, tokenizer.pad_token)
    for text in TEXTS:
        assert read(text)["input_ids"] == tokenizer(text)["input_ids"]
        assert read.decode(read(text)["input_ids"]) == tokenizer.decode(
            tokenizer(text)["input_ids"]
        )


def test_digits_are_split_where_the_file_says_so(files, tmp_path):
    path = rewritten(
        files["llama"][0], tmp_path / "m.gguf", settings=[("tokenizer.ggml.pre", "smollm")]
    )
    pieces = load_tokenizer(path).backend_tokenizer.pre_tokenizer.pre_tokenize_str("a 12")
    assert [piece for piece, _ in pieces] == ["a", "Ġ", "1", "2"]


REFUSED = {
    "architecture": ({"rename": [("llama", "mamba")]}, "architecture 'mamba'; a GGUF file is read of"),
    "rope": ({"settings": [("llama.rope.scaling.type", "yarn")]}, "rope.scaling.type = 'yarn'"),
    "window": ({"settings": [("llama.attention.sliding_window", 8)]}, "sliding_window = 8"),
    "experts": ({"settings": [("llama.expert_count", 4)]}, "expert_count = 4"),
    "split": ({"settings": [("tokenizer.ggml.pre", "hunyuan")]}, "by the rule 'hunyuan'"),
    "missing": ({"drop": ["blk.1.ffn_up.weight"]}, "lacks 1 tensor of a llama model, blk.1.ffn_up"),
    "scaling tensor": ({"kinds": ["rope_freqs.weight"]}, "rope_freqs.weight for one"),
    "width": ({"settings": [("llama.embedding_length", 64)]}, "numbers and its settings ask for|damaged"),
    "heads": ({"settings": [("llama.attention.key_length", 4)]}, "only heads that are turned whole"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_be_read_otherwise_is_refused_before_the_weights(files, tmp_path, case):
    change, said = REFUSED[case]
    path = rewritten(files["llama"][0], tmp_path / "m.gguf", **change)
    with pytest.raises(ModelError, match=said):
        load_shape(path)


@pytest.mark.parametrize("share", [0.0, 0.0001, 0.2, 0.9])
def test_a_file_cut_short_is_a_damaged_one(files, tmp_path, share):
    content = files["llama"][0].read_bytes()
    path = tmp_path / "m.gguf"
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(ModelError, match="damaged or cut short"):
        load_shape(path)


def test_a_type_of_numbers_that_cannot_be_restored_is_named(files, monkeypatch):
    def refuse(data, kind):
        raise NotImplementedError

    monkeypatch.setattr(gguf, "dequantize", refuse)
    from airtune.model.gguf import source as gguf_source

    gguf_source._checked_config.cache_clear()
    with pytest.raises(ModelError, match=r"stores .* as F32, which the gguf package cannot"):
        load_shape(files["llama"][0])


def test_a_missing_file_and_a_missing_package_are_said(files, monkeypatch, tmp_path):
    with pytest.raises(ModelError, match="there is no file"):
        load_shape(tmp_path / "none.gguf")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'airtune\[gguf\]'"):
        load_shape(files["llama"][0])
