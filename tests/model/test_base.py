import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

import airtune.model.base as base_module
from airtune.errors import MissingExtraError, ModelError
from airtune.model.base import fingerprint, load_base, load_shape
from airtune.model.kept import keep_all
from airtune.model.plain import plain_config


@pytest.fixture
def folder_of(tmp_path):
    def save(base) -> Path:
        place = tmp_path / "model"
        base.network.save_pretrained(place)
        words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
        PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place)
        return place

    return save


@pytest.fixture
def folder(folder_of, base) -> Path:
    return folder_of(base)


def test_a_saved_model_loads_frozen_and_equal(folder, base):
    loaded = load_base(folder, labels=base.shape.labels, device="cpu")
    assert loaded.shape == base.shape
    assert loaded.fingerprint == base.fingerprint
    assert not any(parameter.requires_grad for parameter in loaded.network.parameters())
    assert loaded.tokenizer is not None
    assert load_shape(folder, labels=base.shape.labels) == base.shape


def test_dropout_of_the_base_is_off(base):
    drops = [module.p for module in base.network.modules() if isinstance(module, nn.Dropout)]
    assert not any(drops)


def test_a_new_head_is_always_the_same_and_the_global_stream_is_untouched(make_base, tmp_path):
    network = make_base("bert").network
    place = tmp_path / "encoder"
    network.bert.save_pretrained(place)
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(place)
    torch.manual_seed(7)
    first = load_base(place, labels=4).network.classifier.weight
    drawn = torch.rand(1)
    torch.manual_seed(7)
    assert torch.equal(drawn, torch.rand(1))
    assert torch.equal(first, load_base(place, labels=4).network.classifier.weight)


def test_weights_of_another_architecture_are_refused(tmp_path):
    config = BertConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=20,
    )
    BertModel(config).save_pretrained(tmp_path / "m")
    other = BertConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=20,
    )
    other.save_pretrained(tmp_path / "m")
    words = Tokenizer(WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(tmp_path / "m")
    with pytest.raises(ModelError, match="lack 16 tensors of a bert model"):
        load_base(tmp_path / "m", labels=2)


@pytest.mark.parametrize("source", ["/nowhere/at-all", "no such model"])
def test_a_missing_model_says_what_was_looked_for(source, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ModelError, match=f"cannot load model '{source}'"):
        load_base(source)


def test_an_unsupported_family_is_refused_before_weights_are_read(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "opt"}')
    with pytest.raises(ModelError, match="model type 'opt' is not supported"):
        load_base(tmp_path)


def test_wrong_choices_are_named(folder, monkeypatch):
    with pytest.raises(ModelError, match="dtype must be one of float32, bfloat16, float16, got"):
        load_base(folder, dtype="int3")
    with pytest.raises(ModelError, match="device must be auto, cpu or cuda, got 'tpu'"):
        load_base(folder, device="tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ModelError, match="asks for a GPU and torch sees none"):
        load_base(folder, device="cuda")


def test_four_bits_without_the_extra_name_the_command(folder, monkeypatch, base):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'airtune\[quantised\]'"):
        load_base(folder, load_in_4bit=True, labels=base.shape.labels, device="cpu")


def test_the_fingerprint_sees_a_changed_weight(base):
    before = fingerprint(base.network)
    next(iter(base.network.parameters())).data.add_(1.0)
    assert fingerprint(base.network) != before
    assert base_module.fingerprint(base.network) == fingerprint(base.network)


def _says(**fields):
    def change(folder):
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **fields}))

    return change


def _writes(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _moves_into(name):
    def change(folder):
        shutil.copytree(folder, folder / name)
        (folder / "config.json").unlink()

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (_writes("adapter_config.json", b'{"base_model_name_or_path": "org/b"}'), r"\(org/b\)"),
        (_says(quantization_config={"quant_method": "gptq", "bits": 4}), r"quantised \(gptq\)"),
        (_writes("model.safetensors", b"version https://git-lfs.github.com/spec/v1"), "git lfs"),
        (_writes("model.safetensors", b"cut"), "header too small"),
        (_says(hidden_size=16, head_dim=8), "do not fit its config"),
        (_says(hidden_size="32"), "expected int, got str"),
        (
            _says(num_hidden_layers=1, layer_types=["full_attention"]),
            "hold 2 blocks, its config says 1",
        ),
        (_says(id2label=["a", "b"]), r"a name to each number, .*got \['a', 'b'\]"),
        (_says(id2label={"cat": 0, "dog": 1}), "a name to each number, .*got {'cat': 0, 'dog': 1}"),
        (_moves_into("checkpoint-9"), "set model.source to .*checkpoint-9"),
    ],
)
def test_a_folder_that_is_no_model_is_refused_with_what_to_do(make_base, folder_of, change, said):
    place = folder_of(make_base("qwen2"))
    change(place)
    with pytest.raises(ModelError, match=said):
        load_base(place, device="cpu")


def test_weights_whose_names_have_a_prefix_are_named(make_base, folder_of):
    place = folder_of(make_base("llama"))
    tensors = load_file(place / "model.safetensors")
    save_file({f"module.{k}": v for k, v in tensors.items()}, place / "model.safetensors")
    with pytest.raises(ModelError, match=r"and hold module\.model\."):
        load_base(place, device="cpu")


def test_code_that_a_config_names_is_neither_run_nor_exported(make_base, folder_of):
    place = folder_of(make_base("qwen2"))
    _says(auto_map={"AutoModelForCausalLM": "code.Model"})(place)
    loaded = load_base(place, device="cpu")
    assert "auto_map" not in plain_config(loaded, keep_all(loaded.shape)).to_dict()
