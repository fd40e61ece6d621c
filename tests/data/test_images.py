"""Images: generated ones, and those read from folders, arrays, parquet and CIFAR's files."""

import base64
import io

import datasets
import numpy as np
import pytest

from airtune.data import DataSpec, load_federated_images
from airtune.data.image_files import fit, fitted_pixels
from airtune.data.read import read_rows
from airtune.data.shapes import FIGURES, OTHER_FIGURES, draw
from airtune.data.table import table_from_rows
from airtune.errors import DataError, RecipeError
from airtune.model.frame import ImageFormat

FRAME = ImageFormat(8, 4)
TASK = {"task": "image-classification"}


def spec(**settings):
    return DataSpec(**{**TASK, "source": "embedded:shapes", **settings})


def read(source, **settings):
    """Return training rows and the first test set, None where there is none."""
    whole, tests = read_rows(spec(source=str(source), **settings), seed=0)
    return whole, next(iter(tests), None)


def picture(level, size=(9, 7)):
    image = pytest.importorskip("PIL.Image")
    data = io.BytesIO()
    image.fromarray(np.full((*size, 3), level, np.uint8)).save(data, "png")
    return data.getvalue()


@pytest.fixture
def classes(tmp_path):
    for part, count in (("train", 6), ("test", 2)):
        for name, level in (("dark", 20), ("light", 200)):
            folder = tmp_path / part / name
            folder.mkdir(parents=True)
            for place in range(count):
                (folder / f"{place}.png").write_bytes(picture(level))
    return tmp_path


def test_the_same_seed_draws_the_same_images():
    one, two, other = (draw(20, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(one[0], two[0])
    assert np.array_equal(one[1], two[1])
    assert not np.array_equal(one[0], other[0])


def test_the_base_model_has_seen_no_class_of_the_data():
    assert not set(FIGURES) & set(OTHER_FIGURES)
    for figure in (*FIGURES.values(), *OTHER_FIGURES.values()):
        v, u = np.mgrid[-1:1:33j, -1:1:33j]
        assert 0.05 < np.mean(figure(u, v) < 0) < 0.85


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_every_image_is_on_one_device(partition):
    data = load_federated_images(
        spec(limit=60, test_limit=10, partition=partition), frame=FRAME, devices=4, seed=0
    )
    assert sum(len(d.train) + len(d.validation) for d in data.devices) == 60
    assert data.labels == tuple(FIGURES)
    assert data.test.pixels.shape == (10, 3, 8, 8)
    again = load_federated_images(
        spec(limit=60, test_limit=10, partition=partition), frame=FRAME, devices=4, seed=0
    )
    assert np.array_equal(data.devices[3].train.pixels, again.devices[3].train.pixels)


def test_shards_make_devices_unlike():
    counts = load_federated_images(
        spec(limit=200, partition="shards", shards=2), frame=FRAME, devices=10, seed=0
    ).counts["device_groups"]
    assert np.mean(np.array(counts) > 0) < 0.45


def test_a_folder_of_classes_is_read_with_its_test_set(classes):
    data = load_federated_images(spec(source=str(classes)), frame=FRAME, devices=2, seed=0)
    assert data.labels == ("dark", "light")
    assert data.counts["rows"] == 12
    assert len(data.test) == 4
    assert set(data.test.pixels[data.test.targets == 1].ravel().tolist()) == {200}


def test_arrays_and_cifar_files_are_read(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = np.arange(12) % 3
    np.savez(
        tmp_path / "a.npz",
        x_train=pixels,
        y_train=labels[:, None],
        x_test=pixels[:3],
        y_test=labels[:3],
    )
    planes = pixels.transpose(0, 3, 1, 2).reshape(12, -1)
    rows = np.concatenate([labels[:, None].astype(np.uint8), planes], axis=1)
    (tmp_path / "cifar").mkdir()
    rows.tofile(tmp_path / "cifar" / "data_batch_1.bin")
    rows[:3].tofile(tmp_path / "cifar" / "test_batch.bin")
    frame = ImageFormat(32, 4)
    for source in ("a.npz", "cifar"):
        train, test = read(tmp_path / source)
        assert np.array_equal(fitted_pixels(train, "image", frame), pixels.transpose(0, 3, 1, 2))
        assert train.columns["label"] == labels.tolist()
        assert len(test) == 3


def test_parquet_as_datasets_writes_it_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = {
        "img": [{"bytes": picture(level), "path": None} for level in (10, 90)],
        "fine_label": [7, 4],
    }
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    train, test = read(tmp_path / "a.parquet")
    assert train.columns["fine_label"] == [7, 4]
    assert fitted_pixels(train, "img", FRAME)[1].max() == 90
    assert test is None


def test_an_image_is_fitted_to_the_model():
    grey = np.arange(16, dtype=np.uint8).reshape(4, 4)
    assert fit(grey, ImageFormat(4, 2)).shape == (3, 4, 4)
    assert np.array_equal(fit(grey, ImageFormat(4, 2, channels=1))[0], grey)
    halved = fit(np.full((8, 6, 4), 77, np.uint8), ImageFormat(4, 2))
    assert halved.shape == (3, 4, 4)
    assert set(halved.ravel().tolist()) == {77}


def test_what_is_no_image_is_refused(classes, tmp_path):
    (classes / "train" / "dark" / "0.png").write_bytes(b"\x89PNG nothing")
    with pytest.raises(DataError, match=r"0\.png is no picture that can be read"):
        fitted_pixels(read(classes)[0], "image", FRAME)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no training file.*one sub-folder a class"):
        read(tmp_path / "empty")
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.npz")
    (tmp_path / "short.bin").write_bytes(b"1" * 100)
    with pytest.raises(DataError, match="100 bytes, no whole number of CIFAR records"):
        read(tmp_path / "short.bin")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"task": "classification"}, "embedded:shapes is for image-classification, got task"),
        ({"source": "embedded:topics"}, "embedded:topics is for a task of texts, got task image"),
        ({"packing": True}, "packing is for causal-lm, got task image-classification"),
        ({"columns": {"text": "t"}}, "can name image, label, label_name, got 'text'"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(RecipeError, match=message):
        spec(**settings)


@pytest.mark.parametrize(
    ("train", "test"), [("Training", "Testing"), ("train", "dev"), ("data/train", "data/val")]
)
def test_folders_that_name_a_split_are_no_classes(classes, train, test):
    (classes / "data").mkdir()
    (classes / "train").rename(classes / train)
    (classes / "test").rename(classes / test)
    (classes / "classes.txt").write_text("dark light")
    pictures, apart = read(classes)
    assert set(pictures.columns["label"]) == {"dark", "light"}
    assert (len(pictures), len(apart)) == (12, 4)


def test_the_split_that_is_named_is_the_test(classes):
    (classes / "test").rename(classes / "val")
    for part in ("dark", "light"):
        (classes / "test" / part).mkdir(parents=True)
        (classes / "test" / part / "0.png").write_bytes(picture(7))
    assert len(read(classes)[1]) == 2
    assert len(read(classes, test_split="validation")[1]) == 4
    with pytest.raises(DataError, match="has no file for test_split 'extra'"):
        read(classes, test_split="extra")


def test_a_subset_is_a_sub_folder_of_pictures_too(classes):
    (classes / "one").mkdir()
    for part in ("train", "test"):
        (classes / part).rename(classes / "one" / part)
    (classes / "two" / "train" / "else").mkdir(parents=True)
    train, test = read(classes, subset="one")
    assert (set(train.columns["label"]), len(test)) == ({"dark", "light"}, 4)


@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1)])
def test_pixels_in_lists_are_an_image(axes):
    pixels = np.arange(64 * 3).reshape(8, 8, 3)
    rows = [{"image": pixels.transpose(axes).tolist()}, {"image": [[0, 1], [2]]}]
    table = table_from_rows(rows, source="a.jsonl")
    found = fitted_pixels(table.take(np.arange(1)), "image", FRAME)
    assert np.array_equal(found[0], pixels.transpose(2, 0, 1))
    with pytest.raises(DataError, match=r"a\.jsonl:2.*lists of whole numbers from 0 to 255"):
        fitted_pixels(table, "image", FRAME)


def test_pictures_are_not_fetched():
    table = table_from_rows([{"image": "https://example.org/1.png"}], source="a.jsonl")
    with pytest.raises(DataError, match=r"a\.jsonl:1: pictures are not fetched from https://ex"):
        fitted_pixels(table, "image", FRAME)


def test_one_of_cifars_files_is_read_whatever_it_is_called(tmp_path):
    np.zeros((3, 3073), np.uint8).tofile(tmp_path / "test_batch.bin")
    assert len(read(tmp_path / "test_batch.bin")[0]) == 3


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(picture(20))
    pictures, apart = read(tmp_path)
    assert (set(pictures.columns["label"]), apart) == ({"train", "bus"}, None)


def test_a_saved_data_set_of_pictures_is_read_by_its_full_path(tmp_path):
    rows = {"image": [picture(20), picture(200)], "label": ["dark", "light"]}
    datasets.Dataset.from_dict(rows).save_to_disk(tmp_path / "saved")
    pictures, _ = read(tmp_path / "saved")
    assert pictures.columns["label"] == ["dark", "light"]


def test_images_without_label_or_picture_are_left_out_and_counted(tmp_path):
    cells = [picture(20), picture(90)] * 8 + [None, b"", picture(7), picture(8)]
    labels = ["dark", "light"] * 8 + ["dark", "dark", None, " "]
    rows = {"image": [{"bytes": cell, "path": None} for cell in cells], "label": labels}
    datasets.Dataset.from_dict(rows).to_parquet(tmp_path / "a.parquet")
    whole = {"source": str(tmp_path / "a.parquet"), "test": str(tmp_path / "a.parquet")}
    data = load_federated_images(spec(**whole), frame=FRAME, devices=1, seed=0)
    counts = data.ledger.train
    assert (counts.read, counts.blank, counts.unlabelled, data.counts["rows"]) == (20, 2, 2, 16)
    assert data.labels == ("dark", "light")


def test_a_table_may_hold_the_paths_of_pictures(classes):
    names = [f"train/{kind}/{n}.png" for n in range(6) for kind in ("dark", "light")]
    table = "".join(f"{name},{name.split('/')[1]}\n" for name in names)
    (classes / "labels.csv").write_text(f"file_name,label\n{table}nowhere.png,dark\n")
    train, _ = read(classes / "labels.csv")
    assert fitted_pixels(train.take(np.arange(12)), "file_name", FRAME)[1].max() == 200
    with pytest.raises(DataError, match=r"nowhere\.png cannot be read.*labels\.csv:14"):
        fitted_pixels(train, "file_name", FRAME)


def test_a_table_of_metadata_beside_pictures_has_their_labels(tmp_path):
    for part, count in (("train", 4), ("test", 2)):
        (tmp_path / part).mkdir()
        names = [f"{n}.png" for n in range(count)]
        for name in names:
            (tmp_path / part / name).write_bytes(picture(70))
        rows = "".join(f"{name},{'ab'[n % 2]}\n" for n, name in enumerate(names))
        (tmp_path / part / "metadata.csv").write_text(f"file_name,label\n{rows}")
    train, test = read(tmp_path)
    assert (train.columns["label"], test.columns["label"]) == (["a", "b"] * 2, ["a", "b"])
    assert fitted_pixels(test, "file_name", FRAME).max() == 70


@pytest.mark.parametrize("before", ["", "data:image/png;base64,"])
def test_pictures_in_base64_are_read_and_a_long_path_is_shortened(before):
    text = before + base64.b64encode(picture(70)).decode()
    rows = table_from_rows([{"image": text}, {"image": "no/picture." * 100}], source="a.jsonl")
    assert fitted_pixels(rows.take(np.arange(1)), "image", FRAME).max() == 70
    with pytest.raises(DataError, match=r"cannot be read.*a\.jsonl:2") as caught:
        fitted_pixels(rows, "image", FRAME)
    assert len(str(caught.value)) < 350


@pytest.mark.parametrize("is_absolute", [False, True])
def test_files_of_a_folder_name_only_pictures_in_it(classes, is_absolute):
    own = classes / "own"
    own.mkdir()
    (own / "a.png").write_bytes(picture(70))
    outside = str(classes / "train/dark/0.png") if is_absolute else "../train/dark/0.png"
    table = own / "metadata.csv"
    table.write_text(f"file_name,label\na.png,a\n../own/a.png,b\n{outside},b\n")

    def load(source):
        held = spec(source=str(source), test=str(source), held_out=0.0)
        return load_federated_images(held, frame=FRAME, devices=1, seed=0)

    with pytest.raises(DataError, match=r"metadata\.csv:4 names a picture outside "):
        load(own)
    assert load(table).counts["rows"] == 3


def test_a_picture_that_is_no_file_is_not_waited_for():
    table = table_from_rows([{"image": "/dev/zero"}], source="a.jsonl")
    with pytest.raises(DataError, match=r"/dev/zero cannot be read: it is no regular file"):
        fitted_pixels(table, "image", FRAME)


def test_a_picture_may_be_in_a_file_whose_name_could_be_base64(tmp_path):
    (tmp_path / "abcd").write_bytes(picture(70))
    table = table_from_rows([{"image": "abcd"}], source=str(tmp_path / "a.jsonl"))
    assert fitted_pixels(table, "image", FRAME).max() == 70
