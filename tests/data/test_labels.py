import math

import pytest

from airtune.data.labels import class_ids, label_keys, label_map, spelling_ledger
from airtune.data.table import table_from_rows
from airtune.errors import DataError


def table(*labels, names=None):
    rows = [{"label": label} for label in labels]
    for row, name in zip(rows, names or (), strict=bool(names)):
        row["name"] = name
    return table_from_rows(rows, source="rows.jsonl")


def mapped(rows, **options):
    return label_map(rows, "label", **({"name_column": None, "labels": ()} | options))


def test_map_does_not_depend_on_the_order_of_rows():
    assert (
        mapped(table("b", "a", "c"))
        == mapped(table("c", "b", "a"))
        == {"a": "a", "b": "b", "c": "c"}
    )


def test_numbers_sort_by_size_whatever_they_are_written_as():
    assert list(mapped(table(10, 2.0, "1"))) == ["1", "2", "10"]
    assert class_ids(table("2", 10), "label", mapped(table(10, 2.0, 1))).tolist() == [1, 2]


def test_names_come_from_their_column():
    rows = table(1, 0, 1, names=["good", "bad", "good"])
    assert mapped(rows, name_column="name") == {"0": "bad", "1": "good"}


def test_given_labels_fix_the_ids_by_name_or_value():
    rows = table(1, 0, names=["good", "bad"])
    assert list(mapped(rows, name_column="name", labels=("good", "bad", "odd"))) == [
        "1",
        "0",
        "odd",
    ]
    assert list(mapped(rows, labels=("1.0", "0"))) == ["1", "0"]


def test_labels_that_are_numbers_are_places_in_given_names():
    by_place = {"0": "no", "1": "yes", "2": "odd"}
    assert mapped(table(1, "0", 1.0), labels=("no", "yes", "odd")) == by_place
    assert mapped(table("yes", "no"), labels=("no", "yes", "odd")) == {
        n: n for n in by_place.values()
    }
    with pytest.raises(DataError, match="has the label '3'"):
        mapped(table(0, 3), labels=("no", "yes", "odd"))
    with pytest.raises(DataError, match="has the label '0'"):
        mapped(table(0), labels=("1", "2"))


def test_a_label_is_one_whatever_kind_of_file_holds_it():
    for same in ([1, 1.0, "1", "1.0", " 1 "], [True, "true"], ["a", " a"], [-2, "-2.00"]):
        assert len(set(label_keys(table(*same), "label"))) == 1
    assert label_keys(table(None, "", " ", math.nan, 0), "label") == [None] * 4 + ["0"]


def test_spellings_are_counted_and_named_but_not_merged():
    ledger = spelling_ledger(["A b", "a_b", "a_b", "a_b", "c", None], ["A b", "ａ_b"])
    assert (ledger.train.respelt, ledger.test.respelt) == (1, 2)
    assert ledger.notes[0] == "labels 'A b' and 'a_b' are two classes"


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        (table("a", None, ""), {}, r"at least 2 labels, rows.jsonl has a in"),
        (table("a", 0.5), {}, r"no measure: rows.jsonl:2 has 0.5"),
        (table("a", "a"), {}, "at least 2 labels, rows.jsonl has a in"),
        (
            table("a", "b"),
            {"labels": ("a",)},
            r"label 'b', which `data.labels` does not list \(a\)",
        ),
        (table(1, 0), {"labels": ("1", "1.0", "0")}, "names one label twice: 1, 1.0, 0"),
        (table(1, 1, names=["x", "y"]), {"name_column": "name"}, "'y' here and 'x' elsewhere"),
    ],
)
def test_bad_labels_are_named(rows, options, message):
    with pytest.raises(DataError, match=message):
        mapped(rows, **options)


def test_label_that_training_never_saw_is_named():
    with pytest.raises(DataError, match=r"seen in training \(a, b\): rows.jsonl:1 has 'z'"):
        class_ids(table("z"), "label", {"a": "a", "b": "b"})
