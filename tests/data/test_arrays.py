import pickle
import zipfile

import numpy as np
import pytest

from airtune.data import DataSpec
from airtune.data.arrays import read_arrays
from airtune.data.image_files import fitted_pixels
from airtune.data.intake import take_in
from airtune.data.read import read_rows
from airtune.errors import DataError
from airtune.model.frame import ImageFormat

LEVELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), np.uint8)
LEVELS[0, 0, 0] = 0, 128, 255
CLASSES = np.arange(6) % 3
FRAME = ImageFormat(8, 4)


@pytest.fixture
def read(tmp_path):
    """Save arrays as one npz file; return pixels and labels of all its parts."""

    def _read(columns=None, **held):
        np.savez(tmp_path / "a.npz", **held)
        spec = DataSpec(
            source=str(tmp_path / "a.npz"), task="image-classification", columns=columns or {}
        )
        train, tests = read_rows(spec, seed=0)
        image, label = ((columns or {}).get(role, role) for role in ("image", "label"))
        return [
            (fitted_pixels(part, image, FRAME), list(part.columns[label]))
            for part in (train, *tests)
        ]

    return _read


@pytest.mark.parametrize(
    "names",
    [
        ("images", "labels"), ("arr_0", "arr_1"), ("X", "y"), ("x_train", "y_train"),
        ("Xtrain", "ytrain"), ("trainX", "trainY"), ("train_images", "train_labels"), ("data", "target"),
    ],
)  # fmt: skip
def test_images_and_labels_are_told_by_their_shapes(read, names):
    ((pixels, labels),) = read(**dict(zip(names, (LEVELS, CLASSES), strict=True)))
    assert np.array_equal(pixels, LEVELS.transpose(0, 3, 1, 2))
    assert labels == CLASSES.tolist()


def test_parts_are_known_by_their_names_the_test_before_the_validation(read):
    parts = {
        f"{part}_{name}": array[:count]
        for part, count in (("val", 2), ("test", 3), ("train", 6))
        for name, array in (("images", LEVELS), ("labels", CLASSES[:, None]))
    }
    assert [len(labels) for _, labels in read(**parts)] == [6, 3, 2]


@pytest.mark.parametrize(
    "images",
    [
        LEVELS.transpose(0, 3, 1, 2),
        LEVELS.astype(np.int64),
        LEVELS.astype(np.float32),
        LEVELS / 255,
        (LEVELS / 255).astype(np.float32),
        LEVELS.astype(np.uint16) * 257,
        LEVELS.astype(">i4"),
    ],
)
def test_any_usual_scale_and_order_gives_the_same_pixels(read, images):
    ((pixels, _),) = read(images=images, labels=CLASSES)
    assert np.array_equal(pixels, LEVELS.transpose(0, 3, 1, 2))


def test_all_parts_are_on_the_scale_of_the_brightest(read):
    dark = np.minimum(LEVELS, 1).astype(np.float32)
    _, (pixels, _) = read(
        x_train=LEVELS.astype(np.float32), y_train=CLASSES, x_test=dark, y_test=CLASSES
    )
    assert pixels.max() == 1


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (np.eye(3)[CLASSES], CLASSES.tolist()),
        (CLASSES.astype(np.float32), CLASSES.tolist()),
        (np.array([b"cat", b"dog"] * 3), ["cat", "dog"] * 3),
        (np.array(["cat", "dog"] * 3), ["cat", "dog"] * 3),
    ],
)
def test_labels_are_numbers_words_or_one_hot(read, labels, found):
    assert read(images=LEVELS, labels=labels)[0][1] == found


def test_one_hot_rows_are_such_to_the_last(read):
    images, labels = np.zeros((300, 4, 4), np.uint8), np.eye(3)[np.arange(300) % 3]
    assert read(images=images, labels=labels)[0][1] == (np.arange(300) % 3).tolist()
    for last in ([0, 0, 0], [0.5, 0.5, 0], [1, 1, 0]):
        labels[-1] = last
        with pytest.raises(DataError, match=r"must have an array of labels"):
            read(images=images, labels=labels)


def test_names_of_classes_beside_the_labels_are_no_labels(read):
    held = {"data": LEVELS.reshape(6, -1), "images": LEVELS, "target": CLASSES}
    ((_, labels),) = read(**held, target_names=np.array(["a", "b", "c"]), count=np.array(3))
    assert labels == CLASSES.tolist()


def test_arrays_of_one_shape_are_told_by_the_columns_in_every_part(read):
    held = {"x_train": LEVELS, "fine_train": CLASSES, "coarse_train": CLASSES // 2}
    held |= {"x_test": LEVELS[:2], "fine_test": CLASSES[:2], "coarse_test": CLASSES[:2] + 7}
    with pytest.raises(
        DataError,
        match=r"several arrays that may be the labels, fine_train, coarse_train: name one",
    ):
        read(**held)
    train, test = read({"label": "coarse_train"}, **held)
    assert (train[1], test[1]) == ((CLASSES // 2).tolist(), [7, 8])


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (LEVELS / 128 - 1, CLASSES, "from 0 to 1 or 255, got -1 to"),
        (np.full((6, 8, 8), np.nan), CLASSES, "got nan to nan"),
        (LEVELS.astype(np.int64) * 1000, CLASSES, "got 0 to 255000"),
        (LEVELS, CLASSES[:4], "got 6 images and 4 labels"),
        (LEVELS[..., :2], CLASSES, r"1, 3 or 4 channels, got arrays of \(6, 8, 8, 2\)"),
        (
            LEVELS.reshape(6, -1),
            CLASSES,
            r"must have an array of images, .*it has images uint8 \(6, 192\)",
        ),
    ],
)
def test_what_cannot_be_images_is_refused_with_what_there_is(read, images, labels, message):
    with pytest.raises(DataError, match=message):
        read(images=images, labels=labels)


def test_a_mapped_array_that_is_not_there_is_refused_with_what_there_is(read):
    with pytest.raises(DataError, match=r"no array 'pics' for training; it has x_train uint8 \(6"):
        read({"image": "pics"}, x_train=LEVELS, y_train=CLASSES)


def test_a_file_of_test_data_alone_can_be_named_as_the_test(tmp_path):
    np.savez(tmp_path / "all.npz", x=LEVELS, y=CLASSES)
    np.savez(tmp_path / "test.npz", x_test=LEVELS[:2], y_test=CLASSES[:2])
    spec = DataSpec(
        source=str(tmp_path / "all.npz"),
        test=str(tmp_path / "test.npz"),
        task="image-classification",
    )
    found = take_in(spec, seed=0)
    assert (len(found.train), len(found.test)) == (6, 2)


def test_test_images_without_labels_are_no_test(tmp_path):
    np.savez(tmp_path / "a.npz", x_train=LEVELS, y_train=CLASSES, x_test=LEVELS[:2])
    spec = DataSpec(source=str(tmp_path / "a.npz"), task="image-classification", test_share=0.5)
    found = take_in(spec, seed=0)
    assert (len(found.train), len(found.test)) == (3, 3)
    assert any("(test) has a label, so it is not the test" in note for note in found.ledger.notes)


def test_files_of_a_folder_may_be_the_parts(tmp_path):
    for name, array in {"train_x": LEVELS, "train_y": CLASSES, "test_x": LEVELS[:2]}.items():
        np.save(tmp_path / f"{name}.npy", array)
    np.save(tmp_path / "test_y.npy", CLASSES[:2])
    paths = sorted(tmp_path.glob("*.npy"))
    train, tests = read_arrays(paths, {}, None, source=tmp_path)
    assert (len(train), [len(test) for test in tests]) == (6, [2])


def test_arrays_are_never_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", images=np.array([{"x": 1}], object), labels=np.zeros(1, int))
    (tmp_path / "b.npz").write_bytes(pickle.dumps([1]))
    for name in ("a.npz", "b.npz"):
        with pytest.raises(DataError, match="plain arrays"):
            read_arrays([tmp_path / name], {}, None, source=tmp_path)


def test_an_archive_unpacks_up_to_a_limit_unless_it_is_stored_as_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr("airtune.data.arrays.MOST_UNPACKED", 1000)
    held = {"images": LEVELS, "labels": CLASSES}
    np.savez(tmp_path / "a.npz", **held)
    np.savez_compressed(tmp_path / "b.npz", **held)
    assert len(read_arrays([tmp_path / "a.npz"], {}, None, source=tmp_path)[0]) == 6
    with pytest.raises(DataError, match=r"unpacks to \d+ bytes, at most 1000 .*numpy\.savez"):
        read_arrays([tmp_path / "b.npz"], {}, None, source=tmp_path)


def test_other_files_in_an_archive_are_no_arrays(tmp_path):
    np.savez(tmp_path / "a.npz", images=LEVELS, labels=CLASSES)
    with zipfile.ZipFile(tmp_path / "a.npz", "a") as archive:
        archive.writestr("readme.txt", "six images")
    assert len(read_arrays([tmp_path / "a.npz"], {}, None, source=tmp_path)[0]) == 6


@pytest.mark.parametrize(
    ("at", "value"),
    [(6, 1), (8, 77), (None, 255)],
    ids=["encrypted", "packed in an unknown way", "damaged"],
)
def test_an_archive_that_cannot_be_unpacked_is_refused(tmp_path, at, value):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=LEVELS, labels=CLASSES)
    data = bytearray(path.read_bytes())
    if at is None:
        data[200:300] = bytes([value]) * 100
    else:  # in the member's own head, and in the directory at the end, two bytes further
        data[data.find(b"PK\x03\x04") + at] = data[data.find(b"PK\x01\x02") + at + 2] = value
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.npz is not a valid npz file of plain arrays"):
        read_arrays([path], {}, None, source=path)


def test_an_array_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    with (tmp_path / "images.npy").open("wb") as file:
        shape = {"descr": "|u1", "fortran_order": False, "shape": (2**40, 28, 28)}
        np.lib.format.write_array_header_1_0(file, shape)
    with pytest.raises(DataError, match=r"images\.npy is not a valid npy file of plain arrays"):
        read_arrays([tmp_path / "images.npy"], {}, None, source=tmp_path)
