"""The verbs, as a user types them, on a run that takes a second."""

import json
import shutil
import signal
from importlib.metadata import version
from pathlib import Path

import pytest

from airtune.errors import DataError, RecipeError
from airtune.records import read_run


def test_run_leaves_records_and_report(finished):
    names = {path.name for path in finished.iterdir()}
    assert {
        "run.json",
        "rounds.jsonl",
        "devices.csv",
        "rounds.csv",
        "result.json",
        "recipe.yaml",
        "report.html",
        "checkpoint",
    } <= names
    record = read_run(finished)
    assert len(record.rounds) == 2
    assert record.header["data"]["truncated"] > 0
    assert record.header["method"]["name"] == "fedavg-lora"


def test_a_finished_run_is_not_run_again(place, airtune, finished):
    before = (finished / "rounds.jsonl").read_bytes()
    code, out, _ = airtune("run", "--resume", finished)
    assert code == 0
    assert "report:" in out
    assert "cut at data.max_length" in out
    assert (finished / "rounds.jsonl").read_bytes() == before


def test_an_existing_folder_is_left_alone(place, airtune, finished):
    before = (finished / "run.json").read_bytes()
    code, _, err = airtune("run", "tiny.yaml", "--folder", finished)
    assert code == 9
    assert f"airtune run --resume {finished}" in err
    assert (finished / "run.json").read_bytes() == before


@pytest.mark.parametrize("file", ["run.json", "rounds.jsonl", "recipe.yaml"])
def test_damaged_records_are_refused(place, airtune, finished, file):
    copy = shutil.copytree(finished, place / "copy")
    (copy / "result.json").unlink()
    content = (copy / file).read_bytes()
    half = len(content) // 3
    (copy / file).write_bytes(content[:half] + b"#\x00{" + content[half:])
    before = {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}
    code, _, err = airtune("run", "--resume", copy)
    assert (code, "Traceback" in err) == (8, False), err
    assert file in err
    assert before == {path.name: path.read_bytes() for path in copy.iterdir() if path.is_file()}


def test_a_damaged_checkpoint_is_refused(place, airtune, finished):
    copy = shutil.copytree(finished, place / "copy")
    (copy / "result.json").unlink()
    newest = sorted((copy / "checkpoint").iterdir())[-1] / "tensors.safetensors"
    newest.write_bytes(newest.read_bytes()[:-4] + b"abcd")
    code, _, err = airtune("run", "--resume", copy)
    assert code == 8
    assert "is damaged" in err


def test_a_changed_recipe_does_not_resume(place, airtune, finished):
    copy = shutil.copytree(finished, place / "copy")
    (copy / "result.json").unlink()
    text = (copy / "recipe.yaml").read_text().replace("local_steps: 1", "local_steps: 2")
    (copy / "recipe.yaml").write_text(text)
    code, _, err = airtune("run", "--resume", copy)
    assert code == 8
    assert "is not the recipe that the run was started with" in err


def test_ctrl_c_saves_and_says_how_to_go_on(place, airtune, monkeypatch):
    from airtune.loop import rounds as loop

    save = loop.save_checkpoint

    def then_interrupt(folder, checkpoint, **named):
        save(folder, checkpoint, **named)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(loop, "save_checkpoint", then_interrupt)
    # A process started in the background ignores the signal unless told otherwise.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        code, _, err = airtune("run", "tiny.yaml", "--folder", "stopped")
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert code == 130
    assert "airtune run --resume stopped" in err
    code, out, _ = airtune("run", "--resume", "stopped", "--json")
    assert (code, json.loads(out)["rounds"]) == (0, 2)


def test_export_adapter_and_merged_load_elsewhere(place, airtune, finished):
    from transformers import AutoModelForCausalLM

    code, out, _ = airtune("export", finished, "--output", place / "adapter", "--json")
    assert (code, json.loads(out)["format"]) == (0, "adapter")
    assert (place / "adapter" / "adapter_model.safetensors").is_file()
    assert airtune("export", finished, "--output", place / "adapter")[0] == 9
    assert airtune("export", finished, "--format", "merged", "--output", place / "m")[0] == 0
    assert AutoModelForCausalLM.from_pretrained(place / "m").num_parameters() > 0


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--format", "pruned"], 3, "prune 0.3 for instance"),
        (["--format", "pruned", "--prune", "1.5"], 3, "prune must be above 0 and below 1"),
        (["--format", "pruned", "--prune", "0.5"], 5, "measured no importance to prune by"),
    ],
)
def test_what_cannot_be_exported_is_said(place, airtune, finished, words, code, said):
    got, _, err = airtune("export", finished, *words)
    assert (got, said in err) == (code, True), err


def test_init_writes_a_recipe_that_plans(place, airtune):
    assert airtune("init", "mine.yaml")[0] == 0
    code, out, _ = airtune("plan", "mine.yaml", "method.name=fedavg-lora", "--json")
    plan = json.loads(out)
    assert code == 0
    assert len(plan["devices"]) == 10
    assert "train.rounds of the recipe" in plan["rounds_source"]


def test_plan_of_a_model_needs_no_weights(place, airtune):
    code, out, _ = airtune("plan", "Qwen/Qwen2.5-0.5B", "--device", "orin-nano-8gb")
    assert code == 0
    assert "494,032,768 parameters" in out
    assert "4-bit + checkpointing" in out


@pytest.mark.parametrize(
    ("kind", "name"),
    [("methods", "jcpba"), ("fleets", "pocket"), ("devices", "orin-nano-8gb"), ("models", "gpt2")],
)
def test_list(place, airtune, kind, name):
    code, out, _ = airtune("list", kind)
    assert (code, name in out) == (0, True)
    assert kind in json.loads(airtune("list", kind, "--json")[1])


def test_list_runs(place, airtune, finished):
    shutil.copytree(finished, place / "runs" / "one")
    rows = json.loads(airtune("list", "runs", "--json")[1])["runs"]
    assert rows == [
        {"folder": "runs/one", "methods": "fedavg-lora", "rounds": "2", "finished": "1 of 1"}
    ]
    (place / "runs" / "one" / "run.json").write_text("{")
    assert "damaged" in airtune("list", "runs")[1]


def test_report_of_two_runs_stands_where_asked(place, airtune, finished):
    other = shutil.copytree(finished, place / "other")
    code, out, _ = airtune("report", finished, other, "--output", place / "ab.html", "--json")
    assert (code, json.loads(out)["report"]) == (0, str(place / "ab.html"))
    assert (place / "ab.html").stat().st_size > 10_000


def test_compare_with_controls_can_be_resumed(place, airtune):
    words = [
        "compare",
        "tiny.yaml",
        "--methods",
        "fedavg-lora,untuned,local-only,pooled",
        "--seeds",
        "0",
        "train.rounds=1",
        "--json",
    ]
    code, out, _ = airtune(*words)
    done = json.loads(out)
    assert code == 0
    assert set(done["methods"]) == {"fedavg-lora", "untuned", "local-only", "pooled"}
    lost = place / done["folder"] / "runs" / "untuned-s0"
    kept = place / done["folder"] / "runs" / "pooled-s0" / "rounds.jsonl"
    before = kept.stat().st_mtime_ns
    shutil.rmtree(lost)
    code, out, _ = airtune("compare", "--resume", done["folder"], "--json")
    assert (code, (lost / "result.json").is_file()) == (0, True)
    assert kept.stat().st_mtime_ns == before
    assert json.loads(out)["methods"] == done["methods"]


@pytest.mark.parametrize(
    ("settings", "ends"),
    [("name: sft, cut: 9, codec: none", 0), ("name: fedspine, sparsity: 0.99", 19)],
)
def test_a_method_without_an_answer_is_left_out_of_a_comparison(place, airtune, settings, ends):
    methods = f"[fedavg-lora, {{{settings}, label: deep}}]"
    words = ["compare", "tiny.yaml", f"compare.methods={methods}", "train.rounds=1", "--json"]
    code, out, _ = airtune(*words)
    done = json.loads(out)
    assert (code, set(done["methods"])) == (ends, {"fedavg-lora"})
    assert [(found["label"], found["seed"]) for found in done["left_out"]] == [("deep", 0)]
    assert not (place / done["folder"] / "runs" / "deep-s0").exists()


def test_settings_may_follow_set_or_stand_alone():
    from airtune.cli.options import split_words

    assert split_words(["r.yaml", "b=2"], ["a=1"]) == ("r.yaml", ["a=1", "b=2"])
    assert split_words(None, None) == (None, [])
    with pytest.raises(RecipeError):
        split_words(["a", "b"], None)


def test_help_shows_every_verb(place, airtune):
    _, out, _ = airtune("--help")
    for verb in ("init", "run", "plan", "compare", "report", "export", "demo", "list"):
        assert verb in out


def test_the_demo_is_the_shipped_recipe():
    from airtune.cli.demo import RECIPE

    shipped = Path(__file__).parents[2] / "recipes" / "demo.yaml"
    assert RECIPE.read_text() == shipped.read_text()


def test_the_version_is_that_of_the_package(place, airtune):
    code, out, _ = airtune("--version")
    assert (code, out.strip()) == (0, version("airtune"))


@pytest.mark.parametrize(
    "path",
    sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml")),
    ids=lambda path: path.stem,
)
def test_every_shipped_recipe_is_right(path):
    from airtune.recipe import load_recipe

    assert load_recipe(path).label


@pytest.mark.parametrize("key", ["data.source", "data.test"])
def test_a_plan_refuses_data_that_are_not_there(place, airtune, key):
    (place / "rows.jsonl").write_text("{}")
    words = ["data.source=./rows.jsonl", f"{key}=./nowhere.jsonl"]
    code, _, err = airtune("plan", "tiny.yaml", *words)
    assert code == DataError.exit_code
    assert "nowhere.jsonl" in err
    assert key in err
