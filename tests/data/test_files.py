import bz2
import csv
import gzip
import io
import json
import lzma
import os
from decimal import Decimal
from pathlib import Path

import pyarrow
import pyarrow.feather
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from airtune.data.arrays import read_arrays
from airtune.data.decode import encoding_of
from airtune.data.files import read_file
from airtune.data.tabular import read_separated
from airtune.errors import DataError


def zstd(data):
    """Return data packed by Zstandard."""
    packed = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(packed, "zstd") as stream:
        stream.write(data)
    return packed.getvalue().to_pybytes()


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
    others = [write(f"a.{kind}", ROWS) for kind in ("ndjson", "jsonlines")]
    tables = ["a.csv", "a.parquet", "a.feather", "a.arrow"]
    pyarrow.feather.write_feather(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.feather")
    with pyarrow.ipc.new_stream(
        tmp_path / "a.arrow", pyarrow.Table.from_pylist(ROWS).schema
    ) as out:
        out.write(pyarrow.Table.from_pylist(ROWS))
    for path in (jsonl, *others, json_file, *(tmp_path / name for name in tables)):
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
        ("a.json", '{"a": 1}', "must hold a list of objects, .* got dict"),
        ("a.json", '[{"a": 1},\n}', r"a\.json:2: not valid JSON"),
        ("a.csv", "x,y\n1,2\n1\n", r"a\.csv:3: a row must have 2 values as the head has, got 1"),
        ("a.csv", "x,y\n1,2,3\n", r"a\.csv:2: a row must have 2 values as the head has, got 3"),
        ("a.parquet", "not parquet", "not a valid parquet file"),
        ("a.arrow", "not arrow", "not a valid arrow file"),
        ("a.jsonl", "\n", "holds no rows"),
        ("a.csv", "x,y\n", "holds no rows"),
        ("a.doc", "x", r"known kind.*\.jsonl"),
        ("a.csv", "x,y,x\n1,2,3\n", r"a\.csv:1: the head names 'x' in the columns 1, 3"),
        ("a.csv", 'x,y\n1,"2\n3,4\n', r"a\.csv:3: not valid CSV \(unexpected end"),
        ("a.csv", "a\0b\n", "NUL.*utf-16-le"),
        ("a.csv", "version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("a.jsonl", "[" * 99_999, r"a\.jsonl:1: JSON that cannot be read"),
    ],
)
def test_malformed_file_is_named_with_its_line(write, name, content, message):
    with pytest.raises(DataError, match=message):
        read_file(write(name, content))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no such file: .*none\.jsonl"):
        read_file(tmp_path / "none.jsonl")


def test_other_encoding_is_named_and_read_where_it_is_said(tmp_path):
    (tmp_path / "a.jsonl").write_bytes('{"a": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"not UTF-8 text \(byte 7\).*data\.encoding"):
        read_file(tmp_path / "a.jsonl")
    assert read_file(tmp_path / "a.jsonl", encoding="cp1252").columns == {"a": ["é"]}


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize(
    ("name", "content"), [("a.jsonl", '{"a": "é"}\n'), ("a.csv", "a,b\né,1\n"), ("a.txt", "é\n")]
)
def test_a_byte_order_mark_says_the_encoding(tmp_path, encoding, name, content):
    (tmp_path / name).write_bytes(content.encode(encoding))
    assert next(iter(read_file(tmp_path / name).columns.values()))[0] == "é"


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16-le"])
def test_an_encoding_is_proposed_where_the_default_does_not_read(encoding):
    data = "team,text\nnorth,Prüfstück fällt aus\n".encode(encoding)
    assert encoding_of(data) == encoding
    assert encoding_of("Prüfstück".encode()) is None


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
@pytest.mark.parametrize("sign", list(",;\t|"))
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["C"]), min_size=1)] * 2).filter(
            lambda row: any(map(str.strip, row))
        ),
        min_size=1,
    )
)
def test_values_come_back_whatever_separates_them(name, sign, rows):
    file = io.StringIO()
    writer = csv.writer(file, delimiter=sign, quoting=csv.QUOTE_ALL)
    writer.writerows([("text", "label"), *rows])
    columns = read_separated(
        file.getvalue(), Path(name), usual="," if "csv" in name else "\t"
    ).columns
    assert list(zip(columns["text"], columns["label"], strict=True)) == rows


def test_spreadsheet_habits_are_read(write):
    text = 'sep=;\n Text ;Label;;\n"a; ""b""\nc";1;;\n;;;\n\nd,e;2;;\n'
    table = read_file(write("a.csv", text))
    assert table.columns == {"Text": ['a; "b"\nc', "d,e"], "Label": ["1", "2"]}
    assert table.place(1).endswith("a.csv:7")


def test_an_index_without_a_name_is_a_column(write):
    assert read_file(write("a.csv", ",text\n0,a\n")).columns == {"column 1": ["0"], "text": ["a"]}


def test_a_value_may_be_long(write):
    assert len(read_file(write("a.csv", f'a,b\n"{"x" * 200_000}",1\n')).columns["a"][0]) == 200_000


def test_tab_separated_values_may_hold_stray_quotes(write):
    assert read_file(write("a.tsv", 'a\tb\n"Good" film\t1\n"x\t0\n')).columns == {
        "a": ['"Good" film', '"x'],
        "b": ["1", "0"],
    }


def test_json_is_a_list_or_holds_one_or_is_lines(write):
    rows = '[{"a": 1}, {"a": 2}]'
    for name, content in (
        ("a.json", rows),
        ("b.json", f'{{"version": 1, "data": {rows}}}'),
        ("c.jsonl", rows),
        ("d.json", '{"a": 1}\n{"a": 2}\n'),
        ("e.jsonl", '{"a": 1}\r\n{"a": 2}'),
    ):
        assert read_file(write(name, content)).columns == {"a": [1, 2]}


def test_line_separators_inside_json_end_no_line(write):
    assert read_file(write("a.jsonl", '{"a": "x\u2028y\x85z"}\n')).columns == {
        "a": ["x\u2028y\x85z"]
    }


def test_plain_text_is_a_line_or_a_paragraph_each(write):
    text = "\n one\ntwo \n\n \nthree\n"
    assert read_file(write("a.txt", text)).columns == {"text": ["one\ntwo", "three"]}
    assert read_file(write("b.txt", "one\r\ntwo\n\n")).columns == {"text": ["one", "two"]}
    log = read_file(write("a.log.2", text))
    assert (log.columns, log.place(2)[-2:]) == ({"text": ["one", "two", "three"]}, ":6")


def test_packed_files_are_unpacked(tmp_path):
    row = b'{"a": 1}\n'
    held = {
        "gz": gzip.compress(row),
        "bz2": bz2.compress(row),
        "xz": lzma.compress(row),
        "zst": zstd(row),
    }
    for kind, data in held.items():
        path = tmp_path / f"a.jsonl.{kind}"
        path.write_bytes(data)
        assert read_file(path).columns == {"a": [1]}
        path.write_bytes(data[:-9])
        with pytest.raises(DataError, match=r"cannot be read|not valid JSON"):
            read_file(path)
        path.write_bytes(b"version https://git-lfs.github.com/spec/v1")
        with pytest.raises(DataError, match="Git LFS pointer"):
            read_file(path)


def test_half_characters_in_names_of_columns_are_replaced(write):
    path = write("a.jsonl", '{"a \\ud83d": 1}\n')
    assert read_file(path).columns == {"a \ufffd": [1]}


def test_class_names_of_a_hub_file_are_kept(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])}
    )
    rows = datasets.Dataset.from_dict({"text": ["a", "b"], "label": [1, -1]}, features=features)
    rows.to_parquet(tmp_path / "train.parquet")
    assert read_file(tmp_path / "train.parquet").columns == {
        "text": ["a", "b"],
        "label": [1, None],
        "label_name": ["yes", None],
    }


@pytest.mark.parametrize(
    "text",
    [
        '{"text": ["a", "b"], "label": [0, 1]}',
        '{"text": {"0": "a", "1": "b"}, "label": {"0": 0, "1": 1}}',
    ],
)
def test_json_by_columns_is_read(write, text):
    assert read_file(write("a.json", text)).columns == {"text": ["a", "b"], "label": [0, 1]}


@pytest.mark.parametrize(
    "text",
    [
        '{"train": [{"text": "a"}], "test": [{"text": "b"}]}',
        '{"text": ["a", "b"], "label": [0]}',
        '{"text": "a"}',
    ],
)
def test_json_that_is_neither_rows_nor_columns_is_refused_with_its_keys(write, text):
    with pytest.raises(DataError, match=r"got dict with (train, test|text, label|text); parts"):
        read_file(write("a.json", text))


def test_packed_files_are_known_by_how_they_begin(tmp_path):
    rows = b"text,label\na,1\n"
    for name, data in (
        ("a.csv", gzip.compress(rows)),
        ("b.csv.gz", rows),
        ("c.csv", bz2.compress(rows)),
        ("d.csv", b"BZh,label\na,1\n"),
    ):
        (tmp_path / name).write_bytes(data)
        assert read_file(tmp_path / name).columns["label"] == ["1"]
    (tmp_path / "a.csv").write_bytes(gzip.compress(rows)[:-9])
    with pytest.raises(DataError, match=r"a\.csv cannot be read: .*ended before"):
        read_file(tmp_path / "a.csv")


def test_decimal_numbers_of_databases_are_plain_numbers(tmp_path):
    values = pyarrow.array([Decimal(1), Decimal(0), None]).cast(pyarrow.decimal128(38, 0))
    parts = pyarrow.array([Decimal("0.5")] * 3)
    pyarrow.parquet.write_table(
        pyarrow.table({"label": values, "part": parts}), tmp_path / "a.parquet"
    )
    assert read_file(tmp_path / "a.parquet").columns == {"label": [1, 0, None], "part": [0.5] * 3}


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd])
def test_a_packed_file_is_unpacked_up_to_a_limit(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("airtune.data.decode.MOST_UNPACKED", 10_000)
    row = b'{"a": 1}\n'
    (tmp_path / "a.jsonl").write_bytes(pack(row * 1000))
    assert len(read_file(tmp_path / "a.jsonl")) == 1000
    (tmp_path / "a.jsonl").write_bytes(pack(row * 2000))
    with pytest.raises(DataError, match="it unpacks to more than 10000 bytes; unpack it"):
        read_file(tmp_path / "a.jsonl")


def test_a_pipe_is_not_waited_for(tmp_path):
    for name, read in (
        ("a.jsonl", read_file),
        ("a.npy", lambda path: read_arrays([path], {}, None, source=path)),
    ):
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=rf"{name} .*: .*it is no regular file"):
            read(tmp_path / name)


@pytest.mark.parametrize("signs", ["[]", ["{'a':", "}"]])
def test_values_that_are_nested_too_deeply_are_refused_with_their_row(write, signs):
    opened, closed = (sign.replace("'", '"') for sign in signs)
    text = "".join(f'{{"a": {opened * n}1{closed * n}}}\n' for n in (64, 65))
    with pytest.raises(DataError, match=r"'a' must hold at most 64 lists .*: \S*a\.jsonl:2 has"):
        read_file(write("a.jsonl", text))


@pytest.mark.parametrize(
    "said",
    [
        {"info": [1]}, {"info": {"features": [1]}}, {"info": None}, [1],
        {"info": {"features": {"label": {"names": [1, 2]}}}},
    ],
)  # fmt: skip
def test_strange_metadata_of_a_hub_file_name_no_classes(tmp_path, said):
    rows = pyarrow.table({"label": [0, 1]})
    rows = rows.replace_schema_metadata({b"huggingface": json.dumps(said).encode()})
    pyarrow.parquet.write_table(rows, tmp_path / "a.parquet")
    assert read_file(tmp_path / "a.parquet").columns == {"label": [0, 1]}


def test_text_in_parquet_that_is_no_utf8_is_refused(tmp_path):
    held = pyarrow.array([b"\xff\xfe"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 1, held.buffers())
    pyarrow.parquet.write_table(pyarrow.table({"text": text}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet is not a valid parquet file: .*utf-8"):
        read_file(tmp_path / "a.parquet")
