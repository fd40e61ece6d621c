"""Images through the whole product: run, resume, export, split, leakage."""

import json

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from airtune.errors import RecipeError
from airtune.planner import plan_recipe
from airtune.recipe import load_recipe
from airtune.records import read_run
from airtune.report import write_report
from airtune.run import load_assets, run_recipe
from airtune.run.export import export_run

TINY = [
    "data={source: 'embedded:shapes', task: image-classification, limit: 60, test_limit: 20}",
    "fleet.devices=3",
    "train.rounds=2",
    "train.local_steps=2",
    "threads=1",
    "train.per_device_train_batch_size=4",
    "target={metric: accuracy, value: 0.9}",
]

CUTTER = """
from dataclasses import dataclass, replace
import numpy as np
from airtune.methods.whole_equal import WholeEqual
from airtune.plan import CodecSpec

@dataclass(frozen=True)
class Cutter(WholeEqual):
    may_cut = True

    def plan(self, problem, state, observation):
        plan, state = super().plan(problem, state, observation)
        told = plan.assignments
        cut = 2 + np.arange(len(told)) % 2
        codecs = (CodecSpec("deadzone"),)
        return replace(plan, assignments=replace(told, cut=cut, codecs=codecs)), state
"""


def recipe(*overrides):
    return load_recipe(overrides=[*TINY, *overrides])


@pytest.fixture(scope="module")
def assets():
    return load_assets(recipe())


@pytest.fixture(scope="module")
def trained(assets, tmp_path_factory):
    folder = tmp_path_factory.mktemp("vision") / "run"
    run_recipe(recipe("method.name=uniform-prune"), folder=folder, assets=assets, reports=False)
    return folder


def test_images_are_priced_at_all_their_tokens(trained):
    header = read_run(trained).header
    assert header["workload"]["tokens"] == 37
    assert header["workload"]["trains_head"]
    assert header["data"]["labels"][0] == "checker"
    assert plan_recipe(recipe("method.name=fedavg-lora")).round_s > 0.0


def test_every_export_answers_in_plain_transformers(trained, assets):
    pixels = torch.randn(2, 3, 24, 24)
    for form in ("merged", "pruned"):
        place = export_run(
            trained, form, prune=0.25 if form == "pruned" else None, accept_worse=True
        )
        network = AutoModelForImageClassification.from_pretrained(place).eval()
        assert network(pixel_values=pixels).logits.shape == (2, 10)
        said = json.loads((place / "preprocessor_config.json").read_text())
        assert said["size"] == {"height": 24, "width": 24}
        dense = assets.base.network.num_parameters()
        assert (network.num_parameters() < dense) == (form == "pruned")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_the_adapter_is_loaded_by_peft(trained):
    peft = pytest.importorskip("peft")
    place = export_run(trained, "adapter", accept_worse=True)
    base = load_assets(recipe()).base.network
    with torch.no_grad():
        tuned = peft.PeftModel.from_pretrained(base, place).eval()
        batch = torch.randn(2, 3, 24, 24)
        merged = AutoModelForImageClassification.from_pretrained(trained / "export-merged").eval()
        assert torch.allclose(
            tuned(pixel_values=batch).logits, merged(pixel_values=batch).logits, atol=1e-4
        )


def test_a_split_run_says_what_its_cut_gives_away(assets, tmp_path):
    (tmp_path / "cutter.py").write_text(CUTTER)
    mine = recipe(f"method.name={tmp_path}/cutter.py:Cutter", "evaluation.leakage=true")
    run_recipe(mine, folder=tmp_path / "run", assets=assets, reports=False)
    record = read_run(tmp_path / "run")
    assert set(record.devices["cut"].tolist()) == {2, 3}
    assert set(record.devices["codec"].tolist()) == {"deadzone 0.75"}
    found = record.results["leakage"]
    assert {2, 3} <= {one["cut"] for one in found}
    plain = {one["cut"]: one["explained"] for one in found if one["codec"] == "identity"}
    assert plain[1] > plain[5]  # an early cut gives away more than a late one
    page = write_report([tmp_path / "run"], tmp_path / "out").read_text()
    assert "Privacy: what the activations reveal" in page
    assert "The first step" in page


def test_an_image_processor_reads_the_shipped_preprocessor(assets):
    pytest.importorskip("PIL.Image")
    processor = AutoImageProcessor.from_pretrained(assets.base.source, use_fast=False)
    pixels = np.full((30, 40, 3), 255, np.uint8)
    assert processor(pixels, return_tensors="pt")["pixel_values"].shape == (1, 3, 24, 24)


def test_a_model_of_images_is_not_held_in_4_bits():
    with pytest.raises(RecipeError, match="load_in_4bit is for models of texts"):
        recipe("model.load_in_4bit=true")
