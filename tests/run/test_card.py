"""The model card says what was tuned, how good it is and how to load it, and names no folder."""

import re
from dataclasses import replace

import pytest

from airtune.data.embedded import EMBEDDED_MODEL
from airtune.recipe import load_recipe
from airtune.run import export_run, run_recipe
from airtune.run.card import _cell, _fenced, named


@pytest.fixture(scope="module")
def writer(tmp_path_factory):
    """A run of a language model on the shipped data."""
    recipe = load_recipe(
        overrides=[
            "train.rounds=1",
            "train.local_steps=1",
            "data.limit=60",
            "data.test_limit=12",
            "data.max_length=64",
            "fleet.devices=2",
            "method.name=fedavg-lora",
            "threads=1",
        ]
    )
    folder = tmp_path_factory.mktemp("writer") / "run"
    run_recipe(recipe, folder=folder, reports=False)
    return folder


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("format", ["adapter", "merged"])
@pytest.mark.parametrize("which", ["sentiment", "writer"])
def test_the_cards_program_loads_the_model_and_its_texts_name_no_folder(
    which, format, request, tmp_path, monkeypatch, capsys
):
    run = request.getfixturevalue(which)
    place = export_run(run, format, output=tmp_path / "out", accept_worse=True)
    card = (place / "README.md").read_text(encoding="utf-8")
    for folder in (str(tmp_path), str(run.parent), str(run.parent.parent), str(EMBEDDED_MODEL)):
        assert folder not in card
    assert card.count("Prompt:") == 5
    program = re.search(r"```python\n(.*?)\n```", card, re.DOTALL)[1]
    monkeypatch.chdir(place)
    exec(compile(program, "card", "exec"), {})
    said = capsys.readouterr().out.strip().splitlines()[-1:]
    if which == "sentiment":
        assert "Answer:\n\n```text\n" + said[0] in card


def test_a_card_has_quality_by_class_and_the_data_ledger(sentiment, tmp_path):
    card = (export_run(sentiment, "merged", output=tmp_path / "m") / "README.md").read_text()
    assert re.search(r"\| very negative \| 3 \| 1 \| 1 \|", card)
    assert "`rows.jsonl`: 81 rows on 2 devices, 9 test rows." in card
    assert "are also training rows" in card
    assert "Its files name no licence" in card


def test_a_round_that_was_not_tested_shows_no_test_figures(sentiment, tmp_path, monkeypatch):
    from airtune.run import export as export_module

    loaded = export_module._trained
    monkeypatch.setattr(
        export_module, "_trained", lambda *given: replace(loaded(*given), is_last=False)
    )
    card = (export_run(sentiment, "adapter", output=tmp_path / "m") / "README.md").read_text()
    assert "recall" not in card
    assert "test set" not in card.partition("## Sample")[0]


def test_the_bases_licence_is_named(sentiment, encoder, tmp_path):
    (encoder / "README.md").write_text("---\nlicense: apache-2.0\n---\nA base.\n")
    try:
        card = (export_run(sentiment, "adapter", output=tmp_path / "m") / "README.md").read_text()
    finally:
        (encoder / "README.md").unlink()
    assert "\nlicense: apache-2.0\n" in card.partition("# ")[0]
    assert "names the licence apache-2.0" in card


def test_texts_that_hold_marks_stay_what_they_are():
    assert _fenced("a ``` b", "text") == "````text\na ``` b\n````"
    assert _cell("a|b\nc") == "a\\|b\\nc"
    assert named("C:\\models\\tiny\\") == "tiny"
