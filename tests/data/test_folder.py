import gzip
import json

import pytest

from airtune.data.folder import read_folder, read_test_folder, subset_of, visible_files
from airtune.errors import DataError


@pytest.fixture
def tree(tmp_path):
    """Write files with one row each, whose value is the file's name."""

    def _tree(*names):
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            plain = path.suffix in (".txt", ".log") or ".log." in name
            path.write_text(name if plain else json.dumps({"text": name}) + "\n")
        return tmp_path

    return _tree


def read(folder, **options):
    train, test = read_folder(folder, **options)
    found = [part.columns["text"] for part in test]
    return train.columns["text"], found[0] if found else None


def test_training_files_are_joined_and_test_and_validation_are_known(tree):
    folder = tree(
        "train-0.jsonl", "train-1.jsonl", "test.jsonl", "validation.jsonl", "latest.jsonl"
    )
    assert read(folder) == (["latest.jsonl", "train-0.jsonl", "train-1.jsonl"], ["test.jsonl"])
    assert read_folder(folder)[0].place(2).endswith("train-1.jsonl:1")


@pytest.mark.parametrize(
    ("names", "train", "test"),
    [
        (
            [
                "data/train-00000-of-00001.jsonl",
                "data/test-00000-of-00001.jsonl",
                "data/validation-00000-of-00001.jsonl",
                "dataset_infos.json",
                "vocab.txt",
            ],
            ["data/train-00000-of-00001.jsonl"],
            ["data/test-00000-of-00001.jsonl"],
        ),
        (
            ["data/train/0000.jsonl", "data/test/0000.jsonl"],
            ["data/train/0000.jsonl"],
            ["data/test/0000.jsonl"],
        ),
        (["train/a.log", "test/b.log", "README.txt"], ["train/a.log"], ["test/b.log"]),
        (
            ["north/app.log", "north/app.log.1", "south/app.log"],
            ["north/app.log", "north/app.log.1", "south/app.log"],
            None,
        ),
        (["part-0.jsonl", "notes.txt", "more/part-1.jsonl"], ["part-0.jsonl"], None),
        (
            [".git/train.jsonl", "__MACOSX/train.jsonl", "._a.jsonl", ".cache/x.jsonl", "a.jsonl"],
            ["a.jsonl"],
            None,
        ),
        (["test.jsonl", "sub/train.jsonl"], ["sub/train.jsonl"], ["test.jsonl"]),
    ],
)
def test_the_layout_of_a_folder_is_known(tree, names, train, test):
    assert read(tree(*names)) == (train, test)


def test_a_subset_is_a_sub_folder(tree):
    folder = tree("cola/train.jsonl", "sst2/train.jsonl", "sst2/test.jsonl")
    assert read(subset_of(folder, "sst2")) == (["sst2/train.jsonl"], ["sst2/test.jsonl"])
    with pytest.raises(DataError, match=r"no sub-folder 'mnli'; check `data\.subset`"):
        subset_of(folder, "mnli")


def test_the_test_split_of_a_folder_can_be_its_validation_files(tree):
    folder = tree("train.jsonl", "test.jsonl", "dev.jsonl")
    assert read(folder, test_split="validation")[1] == ["dev.jsonl"]
    with pytest.raises(DataError, match="no file for test_split 'holdout'"):
        read(folder, test_split="holdout")


def test_a_folder_named_as_test_set_is_read_whatever_its_files_are_called(tree):
    assert read_test_folder(tree("test-0.jsonl", "test-1.jsonl")).columns["text"] == [
        "test-0.jsonl",
        "test-1.jsonl",
    ]


def test_one_file_in_two_formats_is_refused(tree):
    folder = tree("train.jsonl")
    (folder / "train.csv").write_text("text\na\n")
    with pytest.raises(DataError, match="one file in two formats"):
        read_folder(folder)


def test_a_file_without_rows_among_others_is_passed_over(tree):
    folder = tree("a.jsonl", "b.jsonl")
    (folder / "b.jsonl").write_text("")
    assert read(folder) == (["a.jsonl"], None)
    (folder / "a.jsonl").write_text("\n")
    with pytest.raises(DataError, match=r"holds no rows in a\.jsonl, b\.jsonl"):
        read(folder)


def test_a_file_that_is_there_packed_and_not_is_refused(tree):
    folder = tree("train.jsonl", "app.log", "app.log.1", "app.log.2")
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((folder / "train.jsonl").read_bytes()))
    with pytest.raises(DataError, match="one file in two formats"):
        read_folder(folder)


def test_a_folder_with_unlike_files_is_refused(tree):
    folder = tree("a.jsonl")
    (folder / "b.jsonl").write_text('{"b": 1}\n')
    with pytest.raises(DataError, match="has the columns b but"):
        read_folder(folder)


def test_a_file_may_lack_columns_that_another_has(tree):
    folder = tree("a.jsonl", "b.jsonl", "c.jsonl")
    (folder / "b.jsonl").write_text('{"id": 1, "text": "b"}\n')
    assert read_folder(folder)[0].columns == {
        "id": [None, 1, None],
        "text": ["a.jsonl", "b", "c.jsonl"],
    }


@pytest.mark.parametrize("names", ["{}Data.jsonl", "{}Set.jsonl", "{}set.jsonl", "my_{}.jsonl"])
def test_words_that_are_joined_to_the_name_of_a_part_hide_it_not(tree, names):
    train, test = (names.format(part) for part in ("train", "test"))
    assert read(tree(train, test)) == ([train], [test])


def test_a_folder_without_data_says_what_it_holds(tree):
    folder = tree("a.jsonl")
    (folder / "a.jsonl").rename(folder / "a.doc")
    with pytest.raises(DataError, match=r"holds no training file.*it holds a\.doc"):
        read_folder(folder)


def test_a_link_to_a_folder_that_it_lies_in_is_not_followed(tmp_path):
    inner = tmp_path / "logs"
    inner.mkdir()
    (inner / "a.jsonl").write_text("{}")
    (inner / "up").symlink_to(tmp_path)
    assert [path.name for path in visible_files(tmp_path)] == ["a.jsonl"]


def test_a_folder_is_walked_once_however_many_links_lead_to_it(tmp_path):
    for name, other in (("a", "b"), ("b", "a")):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.jsonl").write_text("{}")
        for number in range(20):
            (tmp_path / name / f"to-{number}").symlink_to(tmp_path / other)
    assert visible_files(tmp_path) == [tmp_path / "a" / "a.jsonl", tmp_path / "b" / "b.jsonl"]


def test_a_link_to_a_folder_elsewhere_is_followed(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "a.jsonl").write_text("{}")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train").symlink_to(tmp_path / "elsewhere")
    assert visible_files(tmp_path / "data") == [tmp_path / "data" / "train" / "a.jsonl"]
