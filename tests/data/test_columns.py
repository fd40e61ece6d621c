import pytest

from airtune.data import DataSpec
from airtune.data.columns import resolve_columns
from airtune.data.table import table_from_rows
from airtune.errors import DataError


def resolve(row, **settings):
    return resolve_columns(DataSpec(source="rows.jsonl", **settings),
                           table_from_rows([row], source="rows.jsonl"))  # fmt: skip


def test_usual_names_are_found():
    assert resolve({"instruction": "", "input": "", "output": ""}) == {
        "prompt": "instruction", "completion": "output", "context": "input"}  # fmt: skip
    assert resolve({"text": "", "label": 0}) == {"text": "text"}
    assert resolve({"sentence1": "", "sentence2": "", "label": 0}, task="classification") == {
        "text": "sentence1", "text_pair": "sentence2", "label": "label"}  # fmt: skip


def test_mapping_wins_and_brings_nothing_unasked():
    row = {"text": "", "text_pair": "", "label": 0, "topic": ""}
    roles = resolve(row, task="classification", columns={"label": "topic"})
    assert roles == {"label": "topic", "text": "text"}


def test_text_mapped_makes_language_modelling_of_a_question_set():
    assert resolve({"question": "", "answer": ""}, columns={"text": "answer"}) == {"text": "answer"}


def test_absent_mapped_column_names_what_is_there():
    with pytest.raises(DataError, match=r"rows\.jsonl has no column 'q'; it has a, b"):
        resolve({"a": "", "b": ""}, columns={"prompt": "q", "completion": "b"})


def test_role_without_column_says_how_to_map_it():
    with pytest.raises(DataError, match=r"no column for 'completion'.*completion: COLUMN"):
        resolve({"question": "", "reply": ""})
