import csv

import pyarrow
import pyarrow.parquet
import pytest

from airtune.data.files import read_file, read_folder
from airtune.errors import DataError

ROWS = [{"question": "one, two?", "answer": "é"}, {"question": "line\nfeed", "answer": '"x"'}]


def test_every_format_gives_the_same_rows(write, tmp_path):
    jsonl = write("a.jsonl", ROWS)
    json_file = write("a.json", "[" + ",".join(jsonl.read_text().splitlines()) + "]")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, ["question", "answer"])
        writer.writeheader()
        writer.writerows(ROWS)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    wanted = {"question": ["one, two?", "line\nfeed"], "answer": ["é", '"x"']}
    for path in (jsonl, json_file, tmp_path / "a.csv", tmp_path / "a.parquet"):
        assert read_file(path).columns == wanted


def test_tsv_is_split_at_tabs(write):
    assert read_file(write("a.tsv", "x\ty\n1,5\t2\n")).columns == {"x": ["1,5"], "y": ["2"]}


def test_blank_lines_are_skipped_and_lines_still_count(write):
    table = read_file(write("a.jsonl", '{"a": 1}\n\n{"a": 2}\n'))
    assert table.place(1).endswith("a.jsonl:3")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl:2: not valid JSON"),
        ("a.jsonl", "[1, 2]\n", r"a\.jsonl:1: each line must be one object, got list"),
        ("a.json", '{"a": 1}', "must hold a list of objects, got dict"),
        ("a.json", '[{"a": 1},\n}', r"a\.json:2: not valid JSON"),
        ("a.csv", "x,y\n1,2\n1\n", r"a\.csv:3: a row must have 2 values as the head has, got 1"),
        ("a.csv", "x,y\n1,2,3\n", r"a\.csv:2: a row must have 2 values as the head has, got 3"),
        ("a.parquet", "not parquet", "not a valid parquet file"),
        ("a.jsonl", "\n", "holds no rows"),
        ("a.csv", "x,y\n", "holds no rows"),
        ("a.txt", "x", r"known kind.*\.jsonl"),
    ],
)
def test_malformed_file_is_named_with_its_line(write, name, content, message):
    with pytest.raises(DataError, match=message):
        read_file(write(name, content))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*none\.jsonl"):
        read_file(tmp_path / "none.jsonl")


def test_other_encoding_is_named(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 7\)"):
        read_file(tmp_path / "a.jsonl")


def test_folder_joins_training_files_and_knows_test_and_validation(write, tmp_path):
    for name, value in (("train-0.jsonl", 0), ("train-1.jsonl", 1), ("test.jsonl", 2),
                        ("validation.jsonl", 3), ("latest.jsonl", 4)):  # fmt: skip
        write(name, [{"a": value}])
    train, test = read_folder(tmp_path)
    assert (train.columns["a"], test.columns["a"]) == ([4, 0, 1], [2])
    assert train.place(2).endswith("train-1.jsonl:1")


def test_folder_with_unlike_files_is_refused(write, tmp_path):
    write("a.jsonl", [{"a": 1}])
    write("b.jsonl", [{"b": 1}])
    with pytest.raises(DataError, match="has the columns b but"):
        read_folder(tmp_path)


def test_folder_without_data_is_refused(tmp_path):
    with pytest.raises(DataError, match="holds no training file"):
        read_folder(tmp_path)
