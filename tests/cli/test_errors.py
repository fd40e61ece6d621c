"""What a user gets for a mistake: one sentence, a documented exit code, no traceback."""

import json
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

from airtune import errors

DOCS = Path(__file__).parents[2] / "docs" / "exit-codes.md"

MISTAKES = [
    (["run", "none.yaml"], 3, "there is no recipe 'none.yaml'; write one with airtune init"),
    (["plan", "model.gguf"], 3, "model.gguf is a model, not a recipe; to plan it, add --device"),
    (["run", "tiny.yaml", "train.ruonds=1"], 3, "did you mean rounds?"),
    (["run", "a.yaml", "b.yaml"], 3, "one recipe can be given, got a.yaml, b.yaml"),
    (["run", "--resume", "latest", "--name", "x"], 3, "only more rounds can be given"),
    (["run", "tiny.yaml", "--server", "x", "--folder", "out"], 3, "--folder has no meaning with --server"),
    (["run", "tiny.yaml", "--server", "x", "--track", "wandb"], 3, "--track has no meaning"),
    (["run", "tiny.yaml", "--ca", "ca.crt"], 3, "--ca is for runs on real devices"),
    (["run", "tiny.yaml", "--insecure"], 3, "--insecure is for runs on real devices"),
    (["run", "tiny.yaml", "--replay"], 3, "--replay is for runs on real devices"),
    (["run", "tiny.yaml", "--devices", "2"], 3, "--devices is for runs on real devices"),
    (["run", "tiny.yaml", "lora.r=500"], 3, "lora.r must be at most the model's width of"),
    (["run", "tiny.yaml", "lora.target_modules=[q_porj]"], 3, "no layer 'q_porj', did you mean q_proj?"),
    (["run", "tiny.yaml", "data.max_length=99999"], 3, "data.max_length must be at most"),
    (["run", "tiny.yaml", "data.source=missing.jsonl"], 4, "missing.jsonl"),
    (["run", "tiny.yaml", "fleet.devices=500"], 4, "empty partition"),
    (["run", "tiny.yaml", "model.source=./nothing"], 5, "there is no folder './nothing'"),
    (["run", "tiny.yaml", "fleet.source=pockt"], 6, "pocket"),
    (["run", "tiny.yaml", "fleet.source={base: pocket, devices: [{name: b, count: 3, link: cell, "
      "gflops_per_s: 1, memory_gib: 0.001, power_w: 1}]}"], 7, "no device of fleet"),
    (["plan", "embedded", "--device", "phone-low-4gb", "--tokens", "500000"], 7, "nothing fits"),
    (["plan", "embedded", "--device", "toaster"], 6, "toaster"),
    (["plan", "Qwen/Qwen2.5-0.5B"], 3, "to plan a model, add --device"),
    (["run", "--resume", "latest"], 8, "there is no run in runs"),
    (["report", "nowhere"], 8, "it holds no run.json or compare.json"),
    (["export", "nowhere"], 8, "nowhere is no run"),
    (["init", "tiny.yaml"], 9, "tiny.yaml is already there"),
    (["init", "x.yaml", "--task", "poetry"], 3, "data.task: must be causal-lm, classification"),
    (["init", "x.yaml", "--data", "nothing.jsonl"], 4, "nothing.jsonl; check `data.source`"),
    (["init", "x.yaml", "--data", "logs/*.csv"], 4, "patterns are not read; name the folder"),
    (["run", "tiny.yaml", "method.name=./none.py:Mine"], 3, "there is no file ./none.py"),
    (["check", "./none.py:Mine"], 11, "there is no file ./none.py"),
    (["check", "jcpba", "solver"], 3, "a setting must be key=value"),
    (["check", "jcpba", "solver=sqp"], 3, "solver: must be exact or bcd"),
    (["compare", "tiny.yaml", "--methods", "jcbpa"], 3, "did you mean jcpba?"),
    (["compare", "tiny.yaml", "--methods", "jcpba,jcpba"], 3, "'jcpba' is given twice"),
    (["compare", "tiny.yaml", "--seeds", "one"], 3, "--seeds must be whole numbers"),
    (["compare", "tiny.yaml", "compare.baseline=random"], 3, "compare.baseline must be one of"),
    (["runn"], 2, "No such command 'runn'"),
    (["run", "--folder"], 2, "requires an argument"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "code", "said"), MISTAKES, ids=lambda value: str(value)[:60])
def test_a_mistake_ends_with_its_code_and_one_message(place, airtune, words, code, said):
    got, out, err = airtune(*words)
    assert (got, said in err) == (code, True), err
    assert "Traceback" not in err
    assert not out
    assert sorted(path.name for path in place.iterdir()) == ["tiny.yaml"]


def test_json_errors_are_documents(place, airtune):
    code, out, err = airtune("run", "none.yaml", "--json")
    assert code == 3
    assert json.loads(out)["error"] == {
        "kind": "RecipeError",
        "message": "there is no recipe 'none.yaml'; write one with airtune init",
        "exit_code": 3,
    }
    assert not err


def test_debug_adds_the_traceback(place, airtune):
    _, _, err = airtune("run", "none.yaml", "--debug")
    assert "Traceback" in err


def test_an_unexpected_error_says_whose_fault_it_is(place, airtune, monkeypatch):
    def broken(*_, **__):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("airtune.run.run_recipe", broken)
    code, _, err = airtune("run", "tiny.yaml")
    assert code == 1
    assert "unexpected ZeroDivisionError: oops" in err
    assert "Traceback" not in err


def test_a_full_disk_is_said_so(place, airtune, monkeypatch):
    import errno

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device", "runs/x")

    monkeypatch.setattr("airtune.run.run_recipe", full)
    code, _, err = airtune("run", "tiny.yaml")
    assert (code, "runs/x: No space left on device" in err) == (10, True)


def test_every_exit_code_is_documented_and_used_once():
    tree = [value for value in vars(errors).values() if isinstance(value, type)]
    codes = {kind.exit_code: kind.__name__ for kind in tree}
    assert len(codes) == len(tree)
    text = DOCS.read_text(encoding="utf-8")
    for code, name in codes.items():
        assert f"## {code} · {name}" in text


@pytest.mark.parametrize("words", [["export"], ["run", "--resume"]])
def test_a_comparison_is_told_from_a_run(place, airtune, words):
    (place / "study").mkdir()
    (place / "study" / "compare.json").write_text("{}")
    code, _, err = airtune(*words, "study")
    assert code == 8
    assert "study is a comparison, not a run: its runs are in study/runs" in err


def test_an_interruption_while_the_program_loads_ends_it_without_a_traceback():
    interrupted = (
        "import sys, airtune.cli as cli\n"
        "class Interrupt:\n"
        "    def find_spec(self, name, *rest):\n"
        "        if name == 'airtune.cli.main': raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Interrupt())\n"
        "cli.main()"
    )
    found = subprocess.run([sys.executable, "-c", interrupted], capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (errors.RunInterruptedError.exit_code, b"")


def test_the_package_is_the_program():
    asked = [sys.executable, "-m", "airtune", "--version"]
    found = subprocess.run(asked, capture_output=True, text=True, check=True)
    assert found.stdout.strip() == version("airtune")
