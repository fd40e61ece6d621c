"""A pruned run becomes files that ordinary tools load, with a manifest that says what they are."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer, BertConfig, BertModel

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.errors import ModelError, RunExistsError
from airtune.recipe import load_recipe
from airtune.run import export_run, run_recipe
from airtune.run.selfcheck import TOLERANCE

PLAIN = """
import sys, torch, transformers
auto = getattr(transformers, sys.argv[2])
network = auto.from_pretrained(sys.argv[1]).eval()
words = transformers.AutoTokenizer.from_pretrained(sys.argv[1])("two red apples", return_tensors="pt")
assert not any(name.split(".")[0] == "airtune" for name in sys.modules)
with torch.no_grad():
    print(network.num_parameters(), *network(words["input_ids"]).logits.flatten()[:5].tolist())
"""
FEDSPINE = ["method.name=fedspine", "method.prune_every=2", "method.min_rank=2"]
QUICK = [
    "train.rounds=2", "train.local_steps=2", "train.per_device_train_batch_size=4", "data.limit=120", "data.test_limit=20",
    "data.max_length=64", "fleet.devices=4", "threads=1",
]  # fmt: skip


def run_of(folder, *overrides, method=FEDSPINE):
    recipe = load_recipe(overrides=[*QUICK, *method, *overrides])
    return run_recipe(recipe, folder=folder / "run", reports=False).folder


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_of(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run on an encoder with random weights and the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    config = BertConfig(vocab_size=1024, hidden_size=48, intermediate_size=192, num_hidden_layers=2,
                        num_attention_heads=4, max_position_embeddings=64)  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder / "base")
    return run_of(
        folder, f"model.source={folder / 'base'}", "data.source=embedded:topics",
        "data.task=classification", "data.max_length=32",
    )  # fmt: skip


def memory_answer(run):
    """Return what the model in memory answers: the dense base, sliced, with its adapters."""
    from airtune.run import export as export_module
    from airtune.work.network import tuned_network

    trained = export_module._trained(run)
    tuned = tuned_network(trained.base, trained.state, scale=trained.scale, work=trained.work)
    ids = trained.base.tokenizer("two red apples", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return tuned.network(ids).logits.flatten()[:5].numpy()


@pytest.mark.parametrize(
    ("which", "auto"),
    [("run", "AutoModelForCausalLM"), ("classifier", "AutoModelForSequenceClassification")],
)
def test_a_pruned_run_is_loaded_by_plain_transformers_and_answers_the_same(which, auto, request):
    folder = request.getfixturevalue(which)
    place = export_run(folder, "pruned", accept_worse=True)
    manifest = json.loads((place / "airtune.json").read_text())
    check = manifest["self_check"]
    assert manifest["method"] == "fedspine"
    assert manifest["slice"]["pruned"] == pytest.approx(0.5, abs=0.02)
    assert check["logit_difference"] < TOLERANCE
    assert check["tensor_bytes"] < check["dense_tensor_bytes"]
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, str(place), auto], check=True, capture_output=True, text=True
    )
    count, *theirs = plain.stdout.splitlines()[-1].split()
    assert int(count) == check["parameters"] < check["dense_parameters"]
    ours = memory_answer(folder)
    spread = max(float(np.std(ours)), 1e-3)
    np.testing.assert_allclose(np.array(theirs, float), ours, atol=TOLERANCE * spread)


def test_the_adapters_of_a_pruned_model_are_no_adapters_of_the_base(run):
    with pytest.raises(ModelError, match="pruned the model for good"):
        export_run(run, "adapter", accept_worse=True)


def test_what_is_worse_than_untuned_needs_force(tmp_path):
    run = run_of(tmp_path, "train.learning_rate=0.3", method=["method.name=fedavg-lora"])
    for format in ("adapter", "merged"):
        with pytest.raises(
            ModelError, match=r"has a validation loss of .*, the untuned one .*--force"
        ):
            export_run(run, format, output=tmp_path / format)
        assert not (tmp_path / format).exists()
    place = export_run(run, "adapter", output=tmp_path / "forced", accept_worse=True)
    quality = json.loads((place / "airtune.json").read_text())["quality"]
    assert quality["tuned"]["loss"] > quality["untuned"]["loss"]


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs the extra airtune[gguf]")
def test_gguf_holds_the_pruned_model_and_answers_the_same(run, tmp_path):
    from transformers import AutoModelForCausalLM

    place = export_run(run, "gguf", output=tmp_path / "file", accept_worse=True)
    assert {path.name for path in place.iterdir()} == {"model.gguf", "airtune.json"}
    read = AutoModelForCausalLM.from_pretrained(place, gguf_file="model.gguf").eval()
    ids = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)("two red apples", return_tensors="pt")
    with torch.no_grad():
        theirs = read(ids["input_ids"]).logits.flatten()[:5].numpy()
    np.testing.assert_allclose(theirs, memory_answer(run), atol=1e-3)
    with pytest.raises(RunExistsError, match="already there"):
        export_run(run, "gguf", output=tmp_path / "file", accept_worse=True)


def test_a_classifier_is_no_gguf(classifier, tmp_path):
    pytest.importorskip("gguf", reason="needs the extra airtune[gguf]")
    with pytest.raises(ModelError, match="language models of llama"):
        export_run(classifier, "gguf", output=tmp_path / "file", accept_worse=True)
