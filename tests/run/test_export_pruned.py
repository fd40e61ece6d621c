"""A pruned run becomes files that ordinary tools load, with a manifest that says what they are."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch

from airtune.errors import ModelError
from airtune.recipe import load_recipe
from airtune.run import export_run, run_recipe
from airtune.run.export import _check_better

PLAIN = """
import sys, torch
from transformers import AutoModelForCausalLM
network = AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
assert not any(name.split(".")[0] == "airtune" for name in sys.modules)
with torch.no_grad():
    print(network(torch.arange(5, 25)[None]).logits[0, -1, :5].tolist())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    recipe = load_recipe(overrides=[
        "method.name=fedspine", "method.prune_every=2", "method.min_rank=2", "train.rounds=2",
        "train.local_steps=2", "train.per_device_train_batch_size=4", "data.limit=120",
        "data.max_length=64", "fleet.devices=4", "threads=1",
    ])  # fmt: skip
    return run_recipe(recipe, folder=tmp_path_factory.mktemp("runs") / "run", reports=False).folder


def test_a_pruned_run_is_loaded_by_plain_transformers_and_answers_the_same(run):
    place = export_run(run, "pruned", accept_worse=True)
    manifest = json.loads((place / "airtune.json").read_text())
    check = manifest["self_check"]
    assert manifest["method"] == "fedspine"
    assert manifest["slice"]["pruned"] == pytest.approx(0.5, abs=0.02)
    assert check["logit_difference"] < 1e-3
    assert check["parameters"] < check["dense_parameters"]
    assert check["tensor_bytes"] < check["dense_tensor_bytes"]
    plain = subprocess.run(
        [sys.executable, "-c", PLAIN, str(place)], check=True, capture_output=True, text=True
    )
    theirs = json.loads(plain.stdout.splitlines()[-1])
    from transformers import AutoModelForCausalLM

    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(place)(torch.arange(5, 25)[None]).logits
    np.testing.assert_allclose(theirs, ours[0, -1, :5].numpy(), atol=1e-4)


def test_the_adapters_of_a_pruned_model_are_no_adapters_of_the_base(run):
    with pytest.raises(ModelError, match="pruned the model for good"):
        export_run(run, "adapter", accept_worse=True)


def test_what_is_worse_than_untuned_needs_force(run):
    worse = {"untuned": {"loss": 1.0}, "tuned": {"loss": 1.5}}
    with pytest.raises(ModelError, match=r"loss of 1\.5, the untuned one 1; .*--force"):
        _check_better(run, worse)
    _check_better(run, {"untuned": {"loss": 1.0}, "tuned": {"loss": 1.0}})
    _check_better(run, {"untuned": None, "tuned": None})
