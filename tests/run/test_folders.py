"""Run folders are taken at once, files are known by their full paths, and runs go on from anywhere."""

import json

import pytest
from tests.run.conftest import recipe, rounds_of

from airtune.errors import CheckpointError, RecipeError, RunExistsError, RunInterruptedError
from airtune.records import held, read_run
from airtune.run import export_run, load_assets, new_folder, resume_run, run_recipe
from airtune.run.folders import claimed, places_of, resolved


def test_runs_of_one_second_get_folders_of_their_own(tmp_path):
    made = [new_folder(recipe(f"output={tmp_path}/läufe 1")) for _ in range(5)]
    assert len(set(made)) == 5
    assert all(place.is_dir() for place in made)


def test_a_folder_is_taken_by_one_and_given_back_where_it_fails(tmp_path):
    with claimed(recipe(), tmp_path / "run"), pytest.raises(RunExistsError, match="already there"):
        claimed(recipe(), tmp_path / "run").__enter__()
    with pytest.raises(RecipeError), claimed(recipe(), tmp_path / "bad" / "run"):
        raise RecipeError("no")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_a_run_that_goes_on_elsewhere_is_refused(tmp_path):
    with held(tmp_path), pytest.raises(RunExistsError, match="another process is at work"):
        resume_run(tmp_path)
    with pytest.raises(CheckpointError):  # let go of, and no run
        resume_run(tmp_path)


def test_files_are_known_by_their_full_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mein modell", "fleet"):
        (tmp_path / name).mkdir()
    (tmp_path / "dätä.jsonl").write_text("{}")
    (tmp_path / "mine.py").write_text("from airtune.methods.whole_equal import WholeEqual as Mine")
    asked = recipe(
        "model.source='mein modell'",
        "data.source=dätä.jsonl",
        "data.test=dätä.jsonl",
        "method.name=./mine.py:Mine",
    )
    assert places_of(asked) == {
        "model.source": f"{tmp_path}/mein modell",
        "data.source": f"{tmp_path}/dätä.jsonl",
        "data.test": f"{tmp_path}/dätä.jsonl",
        "method.name": f"{tmp_path}/mine.py:Mine",
    }
    full = resolved(asked)
    monkeypatch.chdir("/")
    assert places_of(full) == places_of(resolved(full)) == places_of(asked) | places_of(full)


def test_a_run_goes_on_from_another_folder_and_says_what_was_typed(tmp_path, monkeypatch, assets):
    rows = [{"prompt": f"{k} + 1 =", "completion": str(k + 1)} for k in range(60)]
    (tmp_path / "logs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    asked = recipe("data.source=logs.jsonl", "method.name=fedavg-lora", "train.rounds=1")
    loaded = load_assets(asked)  # by somebody who goes on to run it
    done = run_recipe(asked, folder=tmp_path / "run", assets=loaded, reports=False)
    header = read_run(done.folder).header
    assert header["data"]["source"] == "logs.jsonl"
    assert header["places"] == {"data.source": f"{tmp_path}/logs.jsonl"}
    monkeypatch.chdir("/")
    assert resume_run(tmp_path / "run", rounds=2, reports=False).rounds == 2


def test_more_rounds_are_those_of_a_run_that_had_them_from_the_start(tmp_path, assets):
    asked = recipe("method.name=fedavg-lora")
    run_recipe(asked, folder=tmp_path / "short", assets=assets, reports=False)
    resume_run(tmp_path / "short", rounds=3, assets=assets, reports=False)
    longer = recipe("method.name=fedavg-lora", "train.rounds=3")
    run_recipe(longer, folder=tmp_path / "long", assets=assets, reports=False)
    assert rounds_of(tmp_path / "short") == rounds_of(tmp_path / "long")
    assert read_run(tmp_path / "short").header["rounds"] == 3
    with pytest.raises(
        RecipeError, match=r"takes more rounds than the 3 of .*, got train.rounds=2"
    ):
        resume_run(tmp_path / "short", rounds=2, assets=assets)


def test_more_rounds_that_cannot_be_run_leave_the_run_as_it_was(tmp_path):
    data = tmp_path / "logs.jsonl"
    rows = [{"prompt": f"{k} + 1 =", "completion": str(k + 1)} for k in range(60)]
    data.write_text("\n".join(map(json.dumps, rows)))
    asked = recipe(f"data.source={data}", "method.name=fedavg-lora", "train.rounds=1")
    folder = run_recipe(asked, folder=tmp_path / "run", reports=False).folder
    results = read_run(folder).results
    text = data.read_text()
    for change, why in (
        (lambda: data.unlink(), r"data\.source of the run .* nothing is there now; .* ln -s WHERE"),
        (
            lambda: data.write_text(text[: len(text) // 2].rpartition("\n")[0]),
            "are not what they were",
        ),
    ):
        change()
        with pytest.raises(CheckpointError, match=why):
            resume_run(folder, rounds=2, reports=False)
        assert read_run(folder).results == results
    data.write_text(text)
    assert resume_run(folder, rounds=2, reports=False).rounds == 2


@pytest.mark.parametrize("go_on", [resume_run, lambda folder: export_run(folder, "merged")])
def test_a_run_whose_recipe_was_changed_or_lost_is_refused(tmp_path, assets, go_on):
    asked = recipe("method.name=fedavg-lora", "train.rounds=1")
    folder = run_recipe(asked, folder=tmp_path / "run", assets=assets, reports=False).folder
    saved = folder / "recipe.yaml"
    text = saved.read_text()
    saved.write_text(text.replace("lora_alpha: ", "lora_alpha: 9"))
    with pytest.raises(CheckpointError, match="not the recipe that the run was started with"):
        go_on(folder)
    saved.unlink()
    with pytest.raises(CheckpointError, match=r"has lost its recipe: put .*yaml back"):
        go_on(folder)


def test_a_file_in_the_way_is_called_no_run(tmp_path):
    (tmp_path / "notes").write_text("mine")
    with pytest.raises(RunExistsError, match=r"already there and no run; choose another name$"):
        run_recipe(recipe(), folder=tmp_path / "notes")


def test_an_interrupted_calibration_goes_on_where_it_was(tmp_path, assets, monkeypatch):
    from airtune.loop import rounds as loop

    saves, save = [], loop.save_checkpoint

    def then_interrupt(folder, checkpoint, **named):
        save(folder, checkpoint, **named)
        saves.append(folder)
        if len(saves) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "save_checkpoint", then_interrupt)
    asked = recipe(f"output={tmp_path}/a", "train.rounds=1")
    with pytest.raises(RunInterruptedError, match=r"before the first round; go on with: airtune"):
        run_recipe(asked, folder=tmp_path / "stopped", assets=assets, reports=False)
    resume_run(tmp_path / "stopped", assets=assets, reports=False)
    assert len(saves) == 5, "four short rounds and one of the run, none of them twice"
    assert not list(tmp_path.glob("a/cache/*.partial"))
    whole = recipe(f"output={tmp_path}/b", "train.rounds=1")
    run_recipe(whole, folder=tmp_path / "whole", assets=assets, reports=False)
    found = [read_run(tmp_path / name).header["measurements"] for name in ("stopped", "whole")]
    assert found[0] == found[1]
    assert rounds_of(tmp_path / "stopped") == rounds_of(tmp_path / "whole")
