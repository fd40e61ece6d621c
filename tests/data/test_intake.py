import json

import pytest

from airtune.data import TOPICS, DataSpec
from airtune.data.intake import take_in
from airtune.data.read import read_rows
from airtune.errors import DataError


def classified(path, **more):
    return DataSpec(source=str(path), task="classification", **more)


@pytest.mark.parametrize("settings", [{}, {"limit": 12}, {"test_share": 0.5}])
def test_classes_do_not_depend_on_what_is_drawn(write, settings):
    rows = [{"text": f"text {n}", "label": "rare" if n == 0 else "ab"[n % 2]} for n in range(40)]
    path = write("a.jsonl", rows)
    for seed in range(6):
        found = take_in(classified(path, **settings), seed=seed)
        assert list(found.classes) == ["a", "b", "rare"]
        assert "rare" not in found.test.columns["label"]


def test_few_embedded_rows_have_all_their_classes_in_either_part():
    spec = DataSpec(source=TOPICS, task="classification", limit=6, test_limit=40)
    found = take_in(spec, seed=0)
    assert {*found.train.columns["label"], *found.test.columns["label"]} == set(found.classes)


def test_rows_without_text_or_label_are_left_out_and_counted(write):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    rows += [
        {"text": None, "label": 1},
        {"text": " ", "label": 1},
        {"label": 0},
        {"text": "a", "label": None},
        {"text": "b", "label": ""},
        {"text": None},
    ]
    path = write("a.jsonl", rows)
    found = take_in(classified(path, test=str(path)), seed=0)
    counts = found.ledger.train
    assert (counts.read, counts.blank, counts.unlabelled, len(found.train)) == (26, 4, 2, 20)


def test_a_missing_second_text_is_empty_and_counted(write):
    rows = [
        {"text": f"text {n}", "text_pair": None if n == 3 else "b", "label": n % 2}
        for n in range(20)
    ]
    path = write("a.jsonl", rows)
    found = take_in(classified(path, test=str(path)), seed=0)
    assert found.ledger.train.filled == 1
    assert found.train.texts("text_pair")[3] == ""


def test_half_characters_are_replaced_and_counted(write):
    rows = [
        {"text": f"text {n}" + "\ud83d" * (n < 3), "label": "ab"[n % 2] + "\ude00"}
        for n in range(20)
    ]
    path = write("a.jsonl", rows)
    found = take_in(classified(path, test=str(path)), seed=0)
    assert found.ledger.train.unreadable == 20
    assert found.train.texts("text")[2] == "text 2\ufffd"
    assert list(found.classes) == ["a\ufffd", "b\ufffd"]


def test_rows_in_both_parts_are_counted_whatever_their_label(write):
    rows = [{"text": f"text {n}", "label": n % 2} for n in range(20)]
    test = [{"text": " text 3 ", "label": 0}, {"text": "new", "label": 0}]
    spec = classified(write("a.jsonl", rows), test=str(write("b.jsonl", test)))
    ledger = take_in(spec, seed=0).ledger
    assert (ledger.test.read, ledger.test.shared, ledger.train.shared) == (2, 1, 0)
    assert any(line.warns and "also training rows" in line.text for line in ledger.lines())


def test_numbers_of_a_csv_are_the_labels_of_a_jsonl(write):
    path = write("a.csv", "text,label\n" + "".join(f"text {n},{n % 2}.0\n" for n in range(20)))
    test = write("b.jsonl", [{"text": "new", "label": 1}])
    found = take_in(classified(path, test=str(test)), seed=0)
    assert list(found.classes) == ["0", "1"]


def test_a_part_without_a_usable_row_is_refused(write):
    path = write("a.jsonl", [{"text": f"t {n}", "label": n % 2} for n in range(20)])
    test = write("b.jsonl", [{"text": "new", "label": None}])
    with pytest.raises(DataError, match=r"every row of .*b\.jsonl is blank in text or label"):
        take_in(classified(path, test=str(test)), seed=0)


def test_rows_that_are_all_of_tools_say_so(write):
    asked, called = {"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": [{}]}
    path = write("a.jsonl", [{"messages": [asked, called]} for _ in range(20)])
    with pytest.raises(DataError, match="or has a turn of a tool"):
        take_in(DataSpec(source=str(path)), seed=0)


@pytest.mark.parametrize("withheld", [{"label": None}, {}])
def test_a_test_file_without_labels_is_no_test_unless_it_is_named(write, withheld):
    path = write("train.jsonl", [{"text": f"t {n}", "label": n % 2} for n in range(20)]).parent
    write("test.jsonl", [{"text": "new", **withheld}] * 3)
    found = take_in(classified(path), seed=0)
    assert (len(found.train), len(found.test)) == (18, 2)
    assert any("no row of" in note and "(test)" in note for note in found.ledger.notes)
    write("dev.jsonl", [{"text": "new", "label": 1}] * 3)
    assert len(take_in(classified(path), seed=0).test) == 3
    with pytest.raises(DataError, match="label"):
        take_in(classified(path, test_split="test"), seed=0)


@pytest.mark.parametrize("parts", [[""], ["train", "test"], ["inner/train", "inner/dev"]])
def test_texts_in_a_sub_folder_a_class_are_read_whole(tmp_path, parts):
    for part in parts:
        for n in range(20):
            path = tmp_path / part / ("good", "bad")[n % 2] / f"{n}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"text {n}\n\nof {part}")
    found = take_in(classified(tmp_path, test_share=0.5), seed=0)
    assert list(found.classes) == ["bad", "good"]
    assert (len(found.train), len(found.test)) == ((20, 20) if len(parts) > 1 else (10, 10))
    assert all(text.count("\n\n") == 1 for text in found.train.texts("text"))
    assert len(read_rows(DataSpec(source=str(tmp_path)), seed=0)[0]) >= 20  # as texts alone


def test_objects_are_mapped_by_dotted_names(write):
    rows = [{"meta": {"label": n % 2, "said": f"text {n}"}} for n in range(20)]
    columns = {"text": "meta.said", "label": "meta.label"}
    found = take_in(classified(write("a.jsonl", rows), columns=columns), seed=0)
    assert found.columns == columns
    assert set(found.train.columns["meta.label"]) == {0, 1}


def test_a_record_of_the_ledger_is_plain(write):
    path = write("a.jsonl", [{"text": f"t {n}", "label": n % 2} for n in range(20)])
    assert json.dumps(take_in(classified(path), seed=0).ledger.as_document())


def test_numbers_are_texts_where_texts_are_wanted(write):
    path = write("a.jsonl", [{"prompt": f"{n} + 1", "completion": n + 1.0} for n in range(20)])
    found = take_in(DataSpec(source=str(path)), seed=0)
    rows = zip(found.train.texts("prompt"), found.train.texts("completion"), strict=True)
    assert all(int(asked.split()[0]) + 1 == int(said) for asked, said in rows)


def test_turns_without_content_are_named(write):
    turns = [{"role": "user", "text": "a"}, {"role": "assistant", "text": "b"}]
    path = write("a.jsonl", [{"talk": turns}] * 20)
    with pytest.raises(DataError, match="must be a list of messages with role and content"):
        take_in(DataSpec(source=str(path), columns={"messages": "talk"}), seed=0)
