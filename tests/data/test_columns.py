import pytest

from airtune.data import DataSpec
from airtune.data.columns import propose_columns, resolve_columns
from airtune.data.nested import with_nested
from airtune.data.table import table_from_rows
from airtune.errors import DataError


def resolve(row, **settings):
    return resolve_columns(
        DataSpec(source="rows.jsonl", **settings), table_from_rows([row], source="rows.jsonl")
    )


def test_usual_names_are_found():
    assert resolve({"instruction": "", "input": "", "output": ""}) == {
        "prompt": "instruction",
        "completion": "output",
        "context": "input",
    }
    assert resolve({"text": "", "label": 0}) == {"text": "text"}
    assert resolve({"sentence1": "", "sentence2": "", "label": 0}, task="classification") == {
        "text": "sentence1",
        "text_pair": "sentence2",
        "label": "label",
    }


@pytest.mark.parametrize(
    "value", [{"role": ["user"]}, [{"speaker": "a", "text": "b"}], ["hi", "ho"]]
)
def test_conversations_of_an_unknown_form_are_refused_with_the_form(value):
    with pytest.raises(
        DataError, match=r"'messages' must be a list of messages with role and content"
    ):
        resolve({"messages": value})


def test_mapping_wins_and_brings_nothing_unasked():
    row = {"text": "", "text_pair": "", "label": 0, "topic": ""}
    roles = resolve(row, task="classification", columns={"label": "topic"})
    assert roles == {"label": "topic", "text": "text"}


@pytest.mark.parametrize("name", ["Message", " message ", "MESSAGE"])
def test_a_mapped_column_is_found_in_another_case(name):
    roles = resolve(
        {"message": "a", "Team": "b"},
        task="classification",
        columns={"text": name, "label": "team"},
    )
    assert roles == {"text": "message", "label": "Team"}


def test_a_mapped_column_stands_for_nothing_else():
    row = {"label": "a text", "topic": "b"}
    assert resolve(row, task="classification", columns={"text": "label"}) == {
        "text": "label",
        "label": "topic",
    }
    swapped = {"text": "label", "label": "text"}
    assert resolve({"text": 0, "label": ""}, task="classification", columns=swapped) == swapped


def test_a_name_that_fits_two_columns_is_refused():
    with pytest.raises(DataError, match="columns 'Text', 'TEXT'; write the one"):
        resolve({"Text": "", "TEXT": ""}, columns={"text": "text"})


def test_an_input_without_instruction_is_the_prompt():
    assert resolve({"input": "", "output": ""}) == {"prompt": "input", "completion": "output"}


def test_what_to_map_is_proposed_from_the_content():
    rows = [{"id": str(n), "news": f"a long text about {n}", "kind": "ab"[n % 2]} for n in range(9)]
    table = table_from_rows(rows, source="rows.jsonl")
    assert propose_columns("classification", table) == {"text": "news", "label": "kind"}
    assert propose_columns("causal-lm", table) == {"text": "news"}
    with pytest.raises(DataError, match=r"`data\.columns: \{text: news, label: kind\}`"):
        resolve_columns(DataSpec(source="rows.jsonl", task="classification"), table)


@pytest.mark.parametrize(
    ("row", "proposed"),
    [
        ({"prompt": "a", "rejected": "long text", "chosen": "b"}, {"completion": "chosen"}),
        ({"input": "a", "target": "b"}, {"prompt": "input", "completion": "target"}),
        ({"Q": "a", "A": "b"}, {"prompt": "Q", "completion": "A"}),
        ({"question": "a", "site": "", "said": "words"}, {"completion": "said"}),
        ({"id": "1", "article": "a", "highlights": "b"}, {"completion": "highlights"}),
        ({"id": "1", "article": "a b"}, {"text": "article"}),
        ({"chosen": [{"role": "user", "content": "a"}], "n": 1}, {"messages": "chosen"}),
        (
            {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [0]}},
            {"prompt": "question", "completion": "answers.text.0", "context": "context"},
        ),
    ],
)
def test_a_prompt_and_its_answer_are_proposed(row, proposed):
    table = table_from_rows([row], source="rows.jsonl")
    assert proposed.items() <= propose_columns("causal-lm", table).items()


def test_text_mapped_makes_language_modelling_of_a_question_set():
    assert resolve({"question": "", "answer": ""}, columns={"text": "answer"}) == {"text": "answer"}


def test_the_mapping_that_is_shown_fits_what_is_there():
    talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    with pytest.raises(DataError, match=r"\{messages: chosen\}"):
        resolve({"chosen": talk, "rejected": talk})


def test_absent_mapped_column_names_what_is_there():
    with pytest.raises(DataError, match=r"rows\.jsonl has no column 'q'; it has a, b"):
        resolve({"a": "", "b": ""}, columns={"prompt": "q", "completion": "b"})


def test_role_without_column_says_how_to_map_it():
    with pytest.raises(
        DataError, match=r"no column for 'completion'.*prompt: question, completion: reply"
    ):
        resolve({"question": "", "reply": ""})


NESTED = {
    "id": 3,
    "meta": {"Label": "cat", "source": {"site": "north"}},
    "answers": {"text": ["a", "b"]},
    "meta.site": "own",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("meta.Label", "cat"), ("meta.label", "cat"), ("meta.source.site", "north"),
        ("answers.text.1", "b"), ("meta.site", "own"), ("Meta.Site", None),
    ],
)  # fmt: skip
def test_a_dotted_name_is_a_column_of_that_name_else_what_objects_hold(name, value):
    table = with_nested(table_from_rows([NESTED, {}], source="a"), [name])
    assert table.columns.get(name) == (None if value is None else [value, None])


def test_an_unknown_dotted_name_lists_what_objects_hold():
    table = table_from_rows([NESTED], source="rows.jsonl")
    listed = r"it has id, meta\.Label, meta\.source\.site, answers\.text, meta\.site"
    for name in ("meta.lable", "answers.text.2", f"answers.text.{'9' * 5000}", "id.x"):
        with pytest.raises(DataError, match=listed):
            resolve_columns(
                DataSpec(source="a", columns={"text": name}), with_nested(table, [name])
            )
