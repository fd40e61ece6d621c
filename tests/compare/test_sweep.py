"""Sweeps: any key, one study, resumable and extendable; what fails ends alone."""

import csv
import json

import pytest
from tests.compare.conftest import recipe

from airtune.compare import compare_methods, resume_comparison, sweep_recipe, swept
from airtune.compare.jobs import JobProcesses
from airtune.errors import CheckpointError, DataError, RecipeError, TrainingError
from airtune.records import read_run


def test_every_combination_has_a_label_of_the_keys_that_vary():
    entries, seeds = swept(
        recipe(),
        ["lora.r=4,8", "method.name=hetlora,./a/mine.py:Mine", "train.rounds=2", "seed=0,3"],
    )
    assert [entry.label for entry in entries] == [
        "r=4, hetlora",
        "r=4, Mine",
        "r=8, hetlora",
        "r=8, Mine",
    ]
    assert seeds == [0, 3]
    assert entries[0].recipe(recipe(), 3).lora.r == 4
    assert entries[0].recipe(recipe(), 3).train.rounds == 2


@pytest.mark.parametrize(
    ("over", "said"),
    [
        ("lora.rank=4,8", "--over: lora.rank: unknown key"),
        ("output=mine", "is for the whole study; give it by --set output=mine"),
        ("lora.r", "must be key=value,value"),
        ("lora.r=", "must be key=value,value"),
        ("lora.r=4,4", "is given twice"),
        ("seed=a", "must be whole numbers"),
        ("lora.r=[4", "not readable as YAML"),
    ],
)
def test_a_sweep_over_nothing_that_exists_is_refused_before_it_runs(over, said):
    with pytest.raises(RecipeError, match=said):
        swept(recipe(), [over])


def test_a_wrong_value_is_left_out_and_more_can_be_added(tmp_path):
    asked = recipe(f"output={tmp_path}")
    done = sweep_recipe(asked, ["lora.r=4,-1"], seeds=[0], folder=tmp_path / "s")
    assert list(done.summary.rows) == ["r=4"]
    assert [(one.label, one.exit_code) for one in done.left_out] == [("r=-1", 3)]
    assert not done.is_whole
    kept = (done.folder / "runs" / "r-4-s0" / "rounds.jsonl").stat().st_mtime_ns
    more = resume_comparison(done.folder, over=["lora.r=4,2"], seeds=[1])
    assert {(row.method, row.seeds) for row in more.summary.rows.values()} == {
        ("r=4", (0, 1)),
        ("r=2", (0, 1)),
    }
    assert (done.folder / "runs" / "r-4-s0" / "rounds.jsonl").stat().st_mtime_ns == kept
    longer = resume_comparison(done.folder, rounds=2)
    assert {len(run.record.rounds) for run in longer.study.runs} == {2}
    with pytest.raises(RecipeError, match="takes more rounds than the 2"):
        resume_comparison(done.folder, rounds=2)
    with (done.folder / "comparison.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert {(line["lora.r"], line["seed"]) for line in lines} == {
        ("4", "0"),
        ("4", "1"),
        ("2", "0"),
        ("2", "1"),
    }
    assert r"\begin{tabular}" in (done.folder / "comparison.tex").read_text()


def test_processes_end_as_one_process_does_and_one_that_fails_ends_alone(tmp_path):
    asked = recipe(f"output={tmp_path}")
    over = ["data.source=embedded:arithmetic,./none.jsonl", "lora.r=2,4"]
    done = sweep_recipe(asked, over, seeds=[0], folder=tmp_path / "p", jobs=2)
    assert {one.exit_code for one in done.left_out} == {DataError.exit_code}
    assert len(done.summary.rows) == 2
    plain = sweep_recipe(asked, over, seeds=[0], folder=tmp_path / "q")
    for one, other in zip(done.study.runs, plain.study.runs, strict=True):
        assert one.quality.tolist() == other.quality.tolist()


def test_a_process_that_dies_is_said_so(tmp_path, monkeypatch):
    monkeypatch.setattr("airtune.compare.jobs._heard", lambda ours: None)
    with pytest.raises(TrainingError, match=r"its process ended with code 0; .*resume"):
        JobProcesses().run(recipe("lora.r=500"), "x", tmp_path / "x")


def test_a_finished_sweep_is_read_back(tmp_path):
    asked = recipe(f"output={tmp_path}")
    done = sweep_recipe(asked, ["seed=0,1"], folder=tmp_path / "s")
    assert read_run(tmp_path / "s" / "runs" / "fedavg-lora-s1").header["seed"] == 1
    assert done.is_whole


def test_a_study_goes_on_from_another_folder_and_loses_no_run_that_had_rounds(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"{k} + 1 =", "completion": str(k + 1)} for k in range(60)]
    (tmp_path / "logs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "mine.py").write_text("from airtune.methods.whole_equal import WholeEqual as Mine")
    asked = recipe(f"output={tmp_path}", "data.source=logs.jsonl")
    done = compare_methods(asked, methods=["fedavg-lora", "./mine.py:Mine"], folder=tmp_path / "s")
    monkeypatch.chdir("/")
    more = resume_comparison(done.folder, seeds=[1], rounds=2)
    assert ([run.rounds for run in more.runs], more.left_out) == ([2] * 4, ())
    damaged = done.folder / "runs" / "Mine-s1"
    (damaged / "rounds.jsonl").unlink()
    with pytest.raises(CheckpointError, match=r"rounds\.jsonl cannot be read"):
        resume_comparison(done.folder)
    assert (damaged / "checkpoint").is_dir()
