"""A pruned run becomes files that ordinary tools load, with a manifest that says what they are."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, BertConfig, BertModel

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.errors import ModelError, RecipeError, RunExistsError
from airtune.recipe import load_recipe
from airtune.run import export_run, run_recipe
from airtune.run import replay as replay_module

TOLERANCE = 1e-4

PLAIN = """
import sys, torch, transformers
auto = getattr(transformers, sys.argv[2])
network = auto.from_pretrained(sys.argv[1]).eval()
words = transformers.AutoTokenizer.from_pretrained(sys.argv[1])("two red apples", return_tensors="pt")
assert not any(name.split(".")[0] == "airtune" for name in sys.modules)
with torch.no_grad():
    print(network.num_parameters(), *network(words["input_ids"]).logits.flatten()[:5].tolist())
"""
FEDSPINE = [
    "method.name=fedspine",
    "method.prune_every=2",
    "method.min_rank=2",
    "method.structures=ffn",
]
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
def dense(tmp_path_factory):
    """A run that prunes for a round only and keeps the dense base."""
    return run_of(tmp_path_factory.mktemp("dense"), method=["method.name=uniform-prune"])


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A run on an encoder with random weights and the shipped tokenizer."""
    folder = tmp_path_factory.mktemp("classifier")
    config = BertConfig(
        vocab_size=1024,
        hidden_size=48,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(EMBEDDED_MODEL).save_pretrained(folder / "base")
    return run_of(
        folder,
        f"model.source={folder / 'base'}",
        "data.source=embedded:topics",
        "data.task=classification",
        "data.max_length=32",
    )


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
    assert manifest["replay"]["logit_rms"] < TOLERANCE
    assert check["tensor_bytes"] < check["dense_tensor_bytes"]
    said = {"run": None, "classifier": "kept: a plain bert config cannot have fewer"}[which]
    assert manifest["slice"].get("heads") == said
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


@pytest.mark.parametrize("format", ["merged", "pruned"])
def test_a_cut_that_the_run_did_not_evaluate_needs_force(dense, tmp_path, format):
    with pytest.raises(
        ModelError, match=r"prune 0\.5 cuts into.*was not measured.*--force, or accept_worse=True"
    ):
        export_run(dense, format, output=tmp_path / "m", prune=0.5)
    assert not list(tmp_path.iterdir())
    place = export_run(dense, format, output=tmp_path / "m", prune=0.5, accept_worse=True)
    quality = json.loads((place / "airtune.json").read_text())["quality"]
    assert quality["untuned"]["loss"] > 0.0
    assert quality["tuned"] is None
    assert "what pruning by 0.5 left of the tuned model was not evaluated" in quality["measured_on"]


@pytest.mark.parametrize(
    ("format", "said"),
    [
        ("adapter", r"prune 0\.9 is for merged, pruned and gguf.*export pruned"),
        ("pruned", r"pruned the model for good, so prune 0\.9 .*leave prune out"),
    ],
)
def test_a_prune_that_would_do_nothing_is_refused(run, format, said):
    with pytest.raises(RecipeError, match=said):
        export_run(run, format, prune=0.9, accept_worse=True)


@pytest.mark.parametrize("format", ["merged", "gguf"])
def test_a_failed_self_check_leaves_what_was_there(dense, tmp_path, monkeypatch, format):
    if format == "gguf":
        pytest.importorskip("gguf", reason="needs the extra airtune[gguf]")
    monkeypatch.setattr(replay_module, "CLEAR_RMS", -1.0)
    monkeypatch.setattr(replay_module, "ROUNDING", 0.0)
    old = tmp_path / "m" / "airtune.json"
    old.parent.mkdir()
    old.write_text("precious")
    for place in (old.parent, tmp_path / "new"):
        with pytest.raises(ModelError, match="answers differently"):
            export_run(dense, format, output=place, overwrite=True, accept_worse=True)
    assert list(tmp_path.rglob("*")) == [old.parent, old]


def test_a_folder_that_is_no_export_is_not_replaced(dense, tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(RunExistsError, match="never replaced"):
        export_run(dense, "adapter", output=tmp_path, overwrite=True, accept_worse=True)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_weights_that_have_changed_since_the_run_are_refused(dense, monkeypatch):
    from airtune.run import export as export_module

    loaded = export_module.load_model

    def other(*args, **given):
        return replace(loaded(*args, **given), fingerprint="0" * 64)

    monkeypatch.setattr(export_module, "load_model", other)
    with pytest.raises(ModelError, match=r"embedded holds other weights now.*model\.revision"):
        export_run(dense, "adapter", accept_worse=True)


def manifest_of(run, place):
    return json.loads(
        (export_run(run, "adapter", output=place, accept_worse=True) / "airtune.json").read_text()
    )


def test_the_manifest_names_the_base_and_the_template_that_was_used(dense, tmp_path):
    said = manifest_of(dense, tmp_path / "m")
    header = json.loads((dense / "run.json").read_text())
    fingerprint = header["model"]["fingerprint"]
    assert said["base"] == {"source": "embedded", "revision": None, "fingerprint": fingerprint}
    assert said["template"] == AutoTokenizer.from_pretrained(EMBEDDED_MODEL).chat_template
    assert said["template_from"].startswith("the tokenizer's chat template")


def test_the_manifest_names_the_commit_of_a_base_from_the_hub(dense, tmp_path):
    """Its files lie in the hub's cache in a folder of that name."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    base = shutil.copytree(EMBEDDED_MODEL, tmp_path / "snapshots" / commit)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = None
    (base / "chat_template.jinja").unlink(missing_ok=True)
    tokenizer.save_pretrained(base)
    run = shutil.copytree(dense, tmp_path / "run")
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["model"] = {"source": str(base)}
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    header = json.loads((run / "run.json").read_text())
    header["recipe_hash"] = load_recipe(run / "recipe.yaml").digest()
    (run / "run.json").write_text(json.dumps(header))
    said = manifest_of(run, tmp_path / "m")
    assert said["base"]["revision"] == commit
    assert (said["template"], said["template_from"][:9]) == ("{prompt}\n{completion}", "airtune's")


def test_what_is_worse_than_untuned_needs_force(tmp_path):
    run = run_of(tmp_path, "train.learning_rate=0.3", method=["method.name=fedavg-lora"])
    for format in ("adapter", "merged"):
        with pytest.raises(
            ModelError,
            match=r"has a validation loss of .*, the untuned one .*--force, or accept_worse=True",
        ):
            export_run(run, format, output=tmp_path / format)
        assert not (tmp_path / format).exists()
    place = export_run(run, "adapter", output=tmp_path / "forced", accept_worse=True)
    quality = json.loads((place / "airtune.json").read_text())["quality"]
    assert quality["tuned"]["loss"] > quality["untuned"]["loss"]


@pytest.mark.parametrize(
    ("format", "quantise", "said"),
    [
        ("merged", "q8_0", "quantise q8_0 is for gguf and adapter-gguf"),
        ("gguf", "q4_0", "quantise of gguf must be one of f32, f16, q8_0, got 'q4_0'"),
        ("adapter-gguf", "q8_0", "quantise of adapter-gguf must be one of f32, f16"),
    ],
)
def test_a_type_of_numbers_that_a_format_has_not_is_refused(run, format, quantise, said):
    with pytest.raises(RecipeError, match=said):
        export_run(run, format, quantise=quantise)


@pytest.mark.skipif(find_spec("gguf") is None, reason="needs the extra airtune[gguf]")
def test_gguf_holds_the_pruned_model_and_answers_the_same(run, tmp_path):
    from transformers import AutoModelForCausalLM

    place = export_run(run, "gguf", output=tmp_path / "file", accept_worse=True)
    assert {path.name for path in place.iterdir()} == {"model.gguf", "airtune.json", "README.md"}
    check = json.loads((place / "airtune.json").read_text())["self_check"]
    assert check["token_s"] > 0.0
    assert check["dense_token_s"] > 0.0
    read = AutoModelForCausalLM.from_pretrained(
        place, gguf_file="model.gguf", attention_bias=True, mlp_bias=True
    ).eval()
    ids = AutoTokenizer.from_pretrained(EMBEDDED_MODEL)("two red apples", return_tensors="pt")
    with torch.no_grad():
        theirs = read(ids["input_ids"]).logits.flatten()[:5].numpy()
    np.testing.assert_allclose(theirs, memory_answer(run), atol=1e-3)
    with pytest.raises(RunExistsError, match=r"already there.*--force"):
        export_run(run, "gguf", output=tmp_path / "file", accept_worse=True)


def test_a_classifier_is_no_gguf(classifier, tmp_path):
    with pytest.raises(ModelError, match="language models of llama"):
        export_run(classifier, "gguf", output=tmp_path / "file", accept_worse=True)
