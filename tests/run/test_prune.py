"""`airtune prune`: a smaller base, which runs take as their model."""

import json

import pytest
import torch
from tests.run.conftest import recipe
from transformers import AutoModelForCausalLM, AutoTokenizer

from airtune.cli.main import invoke
from airtune.errors import RecipeError, RunExistsError, RunInterruptedError
from airtune.run import load_assets, prune_base, run_recipe
from airtune.work.evaluate import evaluate


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return prune_base(recipe(), 0.3, steps=3, output=tmp_path_factory.mktemp("small") / "base")


def test_plain_transformers_loads_it_with_the_loss_that_is_told(small, assets):
    network = AutoModelForCausalLM.from_pretrained(small.folder).eval()
    assert sum(one.numel() for one in network.parameters()) == small.check.parameters
    assert small.check.parameters < small.check.dense_parameters
    assert evaluate(network, assets.data.test).loss == pytest.approx(small.written, rel=1e-5)
    assert evaluate(assets.base.network, assets.data.test).loss == pytest.approx(small.dense)
    tokenizer = AutoTokenizer.from_pretrained(small.folder)
    with torch.no_grad():
        assert network(**tokenizer("1 + 1", return_tensors="pt")).logits.isfinite().all()
    told = json.loads((small.folder / "airtune.json").read_text())
    assert told["slice"]["pruned"] == pytest.approx(0.3, abs=0.02)
    assert told["quality"]["loss"]["written"] == small.written
    assert told["self_check"]["tensor_bytes"] < told["self_check"]["dense_tensor_bytes"]


def test_a_run_tunes_it(small, tmp_path):
    changed = recipe(f"model.source={small.folder}", f"output={tmp_path}", "method=fedavg-lora")
    assert load_assets(changed).base.shape.ffn < load_assets(recipe()).base.shape.ffn
    found = run_recipe(changed).results
    assert found["validation_best"]["loss"] < found["initial"]["loss"]


def test_distilling_changes_what_is_mended(small, tmp_path):
    mended = prune_base(recipe(), 0.3, steps=0, output=tmp_path / "mended")
    assert mended.written == pytest.approx(mended.mended, rel=1e-5)
    assert mended.mended == pytest.approx(small.mended)
    assert mended.written != pytest.approx(small.written, rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "fraction", "steps", "said"),
    [
        ([], 1.2, 1, "must be above 0 and below 1, got 1.2"),
        ([], 0.3, -1, "steps must be 0 or more, got -1"),
        (
            ["data={source: topics, task: classification}"],
            0.3,
            1,
            "got classification: a classifier",
        ),
        (["data=devices"], 0.3, 1, "rows of this machine; name a file"),
        ([], 0.001, 0, "pruning 0.001 removes less than the constants"),
        ([], 0.9999, 0, "would leave nothing of a block; the most is"),
    ],
)
def test_what_cannot_be_pruned_is_refused_and_nothing_is_written(
    tmp_path, changes, fraction, steps, said
):
    with pytest.raises(RecipeError, match=said):
        prune_base(recipe(*changes), fraction, steps=steps, output=tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced_where_it_is_asked_and_was_written_by_airtune(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(RunExistsError):
        prune_base(recipe(), 0.3, steps=0, output=tmp_path / "mine")
    with pytest.raises(RunExistsError, match="no export of airtune"):
        prune_base(recipe(), 0.3, steps=0, output=tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "notes.txt").read_text() == "mine"


def test_ctrl_c_leaves_nothing(tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("airtune.run.prune.distil_", stop)
    with pytest.raises(RunInterruptedError, match="nothing was written"):
        prune_base(recipe(), 0.3, steps=1, output=tmp_path / "small")
    assert not list(tmp_path.iterdir())


def test_the_command_says_what_is_left(tmp_path, capsys):
    words = "prune --by 0.5 --steps 1 --output small --set data.limit=60 data.test_limit=10 "
    words += "data.max_length=40 fleet.devices=3 train.per_device_train_batch_size=2 threads=1"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        assert invoke(words.split()) == 0
    said = capsys.readouterr().out
    assert "of 918,656 parameters are left" in said
    assert "use it with model.source=small" in said
