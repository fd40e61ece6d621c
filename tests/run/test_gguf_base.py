"""A run on a GGUF file, and plain tools with everything that is exported of it."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.model.gguf.write import write_gguf
from airtune.recipe import load_recipe
from airtune.run import export_run, run_recipe

gguf = pytest.importorskip("gguf", reason="needs the extra airtune[gguf]")
TEXT = "Tom has two red apples"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that prunes for a round only, so that a pruned export can be cut from it."""
    folder = tmp_path_factory.mktemp("gguf")
    config = LlamaConfig(
        vocab_size=1024,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = LlamaForCausalLM(config).eval()
    write_gguf(folder / "base.gguf", network, AutoTokenizer.from_pretrained(EMBEDDED_MODEL))
    recipe = load_recipe(
        overrides=[
            f"model.source={folder / 'base.gguf'}",
            "method.name=uniform-prune",
            "train.rounds=1",
            "train.local_steps=2",
            "train.per_device_train_batch_size=4",
            "train.learning_rate=0.01",
            "data.limit=60",
            "data.test_limit=8",
            "data.max_length=48",
            "fleet.devices=2",
            "threads=1",
        ]
    )
    return run_recipe(recipe, folder=folder / "run", reports=False).folder


@pytest.fixture(scope="module")
def merged(run):
    return export_run(run, "merged", accept_worse=True)


@pytest.fixture(scope="module")
def file(run):
    return export_run(run, "gguf", quantise="f32", accept_worse=True)


@torch.no_grad()
def answer(folder, gguf_file=None, adapter=None):
    """Return the logits that plain transformers and peft have for a text, (tokens, vocabulary)."""
    where = {} if gguf_file is None else {"gguf_file": gguf_file}
    network = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **where)
    network = network if adapter is None else PeftModel.from_pretrained(network, adapter)
    ids = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)(TEXT, return_tensors="pt")["input_ids"]
    return network.eval()(input_ids=ids).logits[0]


def tensors(path):
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def test_the_merged_model_reads_texts_as_its_base_and_answers_otherwise(run, merged):
    wanted, read = (AutoTokenizer.from_pretrained(place) for place in (EMBEDDED_MODEL, merged))
    assert read(TEXT)["input_ids"] == wanted(TEXT)["input_ids"]
    assert (answer(merged) - answer(run.parent, "base.gguf")).abs().max() > 0.01


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")
def test_the_adapter_on_the_file_is_the_merged_model(run, merged):
    place = export_run(run, "adapter", accept_worse=True)
    found = answer(run.parent, "base.gguf", adapter=place)
    torch.testing.assert_close(found, answer(merged), atol=1e-4, rtol=0)


def test_the_pruned_model_is_smaller_and_loads(run):
    place = export_run(run, "pruned", prune=0.3, accept_worse=True)
    network = AutoModelForCausalLM.from_pretrained(place)
    assert network.config.intermediate_size < 64
    assert torch.isfinite(answer(place)).all()


def test_the_file_is_the_merged_model_and_a_quantised_one_nearly(run, merged, file, tmp_path):
    torch.testing.assert_close(answer(file, "model.gguf"), answer(merged), atol=1e-4, rtol=0)
    small = export_run(run, "gguf", output=tmp_path / "f", quantise="q8_0", accept_worse=True)
    torch.testing.assert_close(answer(small, "model.gguf"), answer(merged), atol=0.2, rtol=0)


def test_the_adapters_file_is_what_the_merged_file_has_more_than_the_base(run, file):
    place = export_run(run, "adapter-gguf", accept_worse=True)
    before, after = tensors(run.parent / "base.gguf"), tensors(file / "model.gguf")
    factors = tensors(place / "adapter.gguf")
    fields = gguf.GGUFReader(place / "adapter.gguf").fields
    alpha = fields[gguf.Keys.Adapter.LORA_ALPHA].contents()
    names = [name.removesuffix(".lora_a") for name in factors if name.endswith(".lora_a")]
    assert names
    for name in names:
        a, b = factors[f"{name}.lora_a"], factors[f"{name}.lora_b"]
        np.testing.assert_allclose(
            after[name] - before[name], alpha / a.shape[0] * b @ a, atol=1e-5
        )
