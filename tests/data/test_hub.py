import datasets
import pytest

from airtune.data import DataSpec
from airtune.data.hub import is_saved, read_hub, read_saved
from airtune.data.read import read_rows
from airtune.errors import DataError

ROWS = {"text": ["good", "bad", "fine"], "label": [1, 0, 1]}


@pytest.fixture(autouse=True)
def quiet_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()


@pytest.fixture
def labelled():
    names = datasets.ClassLabel(names=["negative", "positive"])
    features = datasets.Features({"text": datasets.Value("string"), "label": names})
    return datasets.Dataset.from_dict(ROWS, features=features)


def test_library_loads_a_split(tmp_path, labelled):
    (tmp_path / "set").mkdir()
    labelled.to_json(tmp_path / "set" / "train.jsonl")
    table, tests = read_hub(str(tmp_path / "set"), split="train")
    assert table.columns == ROWS
    assert not list(tests)


def test_unknown_split_is_refused(tmp_path, labelled):
    (tmp_path / "set").mkdir()
    labelled.to_json(tmp_path / "set" / "train.jsonl")
    with pytest.raises(DataError, match=r"'dev' could not be loaded.*data\.split"):
        read_hub(str(tmp_path / "set"), split="dev")


def test_hub_out_of_reach_is_told(monkeypatch):
    def refuse(*args, **kwargs):
        raise ConnectionError("Couldn't reach 'owner/set' on the Hub\nmore")

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(DataError, match=r"Couldn't reach 'owner/set' on the Hub; check the name"):
        read_hub("owner/set", split="train")


def test_class_labels_bring_their_names(tmp_path, labelled):
    datasets.DatasetDict({"train": labelled}).save_to_disk(tmp_path / "saved")
    assert is_saved(tmp_path / "saved")
    table, _ = read_saved(tmp_path / "saved", split="train")
    assert table.columns["label_name"] == ["positive", "negative", "positive"]
    with pytest.raises(DataError, match="no split 'test'; it has train"):
        read_saved(tmp_path / "saved", split="test")


@pytest.mark.parametrize(
    ("others", "named", "found"),
    [
        (["test", "validation"], None, ["test", "validation"]),
        (["dev"], None, ["dev"]),
        (["extra"], None, []),
        (["test", "validation"], "validation", ["validation"]),
        (["extra"], "extra", ["extra"]),
    ],
)
def test_test_splits_are_found_by_their_names(tmp_path, labelled, others, named, found):
    datasets.DatasetDict(dict.fromkeys(["train", *others], labelled)).save_to_disk(tmp_path / "a")
    train, tests = read_saved(tmp_path / "a", split="train", test_split=named)
    assert [test.source for test in tests] == [f"{tmp_path / 'a'} ({name})" for name in found]
    assert len(train) == 3


def test_a_part_of_a_split_is_read_beside_the_test(tmp_path, labelled):
    (tmp_path / "set").mkdir()
    for name in ("train", "test"):
        labelled.to_json(tmp_path / "set" / f"{name}.jsonl")
    train, tests = read_hub(str(tmp_path / "set"), split="train[:2]")
    assert (len(train), [len(test) for test in tests]) == (2, [3])


def test_a_saved_set_of_a_test_alone_can_be_named_as_the_test(write, tmp_path, labelled):
    datasets.DatasetDict({"test": labelled}).save_to_disk(tmp_path / "a")
    path = write("a.jsonl", [{"text": f"t {n}", "label": n % 2} for n in range(20)])
    _, tests = read_rows(DataSpec(source=str(path), test=str(tmp_path / "a")), seed=0)
    assert [len(test) for test in tests] == [3]


def test_a_saved_set_with_a_split_without_rows_is_refused(tmp_path, labelled):
    parts = {"train": labelled, "test": labelled.select([])}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match="has a split without rows"):
        read_saved(tmp_path / "a", split="train")


def test_a_saved_set_without_splits_has_no_test_split(tmp_path, labelled):
    labelled.save_to_disk(tmp_path / "a")
    with pytest.raises(DataError, match="has no splits, got test_split 'test'"):
        read_saved(tmp_path / "a", split="train", test_split="test")


def test_a_saved_data_set_with_a_damaged_state_is_refused(tmp_path, labelled):
    labelled.save_to_disk(tmp_path / "set")
    (tmp_path / "set" / "state.json").write_text("{}")
    with pytest.raises(DataError, match="cannot be read"):
        read_saved(tmp_path / "set", split="train")
