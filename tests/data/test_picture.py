import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from airtune.data import DataSpec, load_federated_images
from airtune.data.image_files import fitted_pixels
from airtune.data.picture import decode_picture
from airtune.data.read import read_rows
from airtune.errors import DataError
from airtune.model.frame import ImageFormat

GRADIENT = (np.arange(48, dtype=np.uint8)[:, None, None] * 5).repeat(32, 1).repeat(3, 2)
FRAME = ImageFormat(8, 4)


def encoded(picture, kind="png", **options):
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_picture_is_upright_whatever_its_orientation(orientation):
    tag = Image.Exif()
    tag[0x0112] = orientation
    stored = Image.fromarray(GRADIENT)
    data = encoded(stored, "png", exif=tag)
    wanted = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    assert np.array_equal(decode_picture(data, "a.png"), wanted)


def test_sixteen_bits_keep_their_levels():
    wide = GRADIENT[:, :, 0].astype(np.uint16) * 257
    for data in (
        encoded(Image.fromarray(wide)),
        encoded(Image.fromarray(wide.astype(np.int32)), "ppm"),
    ):
        assert np.array_equal(decode_picture(data, "a"), GRADIENT)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_every_mode_gives_three_channels(mode):
    kind = "tiff" if mode == "CMYK" else "png"
    picture = Image.fromarray(GRADIENT).convert("L" if mode == "I;16" else mode)
    pixels = decode_picture(encoded(picture.convert(mode), kind), "a")
    assert (pixels.shape, pixels.dtype) == ((48, 32, 3), np.uint8)


def test_a_picture_of_fractions_is_refused():
    picture = Image.fromarray(np.full((4, 4), 0.5, np.float32))
    with pytest.raises(
        DataError, match=r"a\.tif is a picture of floating-point numbers.*8 or 16 bits"
    ):
        decode_picture(encoded(picture, "tiff"), "a.tif")


def test_a_picture_that_a_link_no_longer_finds_is_named(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "1.png").symlink_to(tmp_path / "gone.png")
    with pytest.raises(DataError, match=r"cat/1\.png cannot be read: .*remove it"):
        fitted_pixels(read(tmp_path)[0], "image", FRAME)


def test_a_palette_with_a_table_of_transparency_is_read():
    picture = Image.fromarray(GRADIENT).convert("P")
    data = encoded(picture, "png", transparency=bytes(range(256)))
    assert decode_picture(data, "a").shape == (48, 32, 3)


def test_the_first_frame_of_several_is_read():
    frames = [Image.fromarray(np.full((4, 4, 3), level, np.uint8)) for level in (250, 0)]
    data = encoded(frames[0], "gif", save_all=True, append_images=frames[1:])
    assert decode_picture(data, "a").min() > 240


@pytest.mark.parametrize(
    "data", [b"", b"\x00\x05\x16\x07", encoded(Image.fromarray(GRADIENT), "jpeg")[:300]]
)
def test_what_is_no_whole_picture_is_refused_by_name(data):
    with pytest.raises(DataError, match=r"^a\.png is no picture that can be read") as caught:
        decode_picture(data, "a.png")
    assert "BytesIO" not in str(caught.value)


def read(source):
    """Return training rows and the first test set, None where there is none."""
    spec = DataSpec(source=str(source), task="image-classification")
    whole, tests = read_rows(spec, seed=0)
    return whole, next(iter(tests), None)


@pytest.fixture
def folder(tmp_path):
    """Two classes of six pictures, and what other systems leave beside them."""
    for kind in ("left", "top"):
        (tmp_path / kind).mkdir()
        for place in range(6):
            pixels = np.random.default_rng(place).integers(0, 255, (8, 8, 3), np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{place}.png")
    for name in (
        "top/._3.png",
        "__MACOSX/top/._3.png",
        ".git/x/a.png",
        ".thumbnails/a.png",
        "top/Thumbs.db",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"\x00\x05\x16\x07")
    return tmp_path


def test_leavings_of_systems_are_no_pictures_and_no_classes(folder):
    train, test = read(folder)
    assert (len(train), set(train.columns["label"]), test) == (12, {"left", "top"}, None)


def test_classes_may_lie_alone_in_another_folder_and_no_picture_is_passed_over(folder, tmp_path):
    outer = tmp_path / "outer"
    (outer / "flowers").mkdir(parents=True)
    for kind in ("left", "top"):
        (folder / kind).rename(outer / "flowers" / kind)
    assert set(read(outer)[0].columns["label"]) == {"left", "top"}
    (outer / "flowers/top/a.heic").write_bytes(b"ftypheic")
    with pytest.raises(DataError, match=r"a\.heic is no picture that can be read"):
        fitted_pixels(read(outer)[0], "image", FRAME)


def test_the_test_share_of_pictures_is_drawn_by_class(folder):
    spec = DataSpec(source=str(folder), task="image-classification", test_share=0.5)
    data = load_federated_images(spec, frame=FRAME, devices=1, seed=0)
    assert sorted(data.test.targets.tolist()) == [0] * 3 + [1] * 3


def test_pictures_in_both_parts_are_counted(folder):
    spec = DataSpec(source=str(folder), task="image-classification", test=str(folder))
    data = load_federated_images(spec, frame=FRAME, devices=1, seed=0)
    assert (data.ledger.test.read, data.ledger.test.shared) == (12, 12)


def test_a_clone_with_pictures_in_parquet_is_read(tmp_path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"img": datasets.Image(), "fine_label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    pictures = [Image.fromarray(GRADIENT)] * 4
    rows = datasets.Dataset.from_dict(
        {"img": pictures, "fine_label": [0, 1, 0, 1]}, features=features
    )
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    rows.to_parquet(tmp_path / "data" / "test-00000-of-00001.parquet")
    train, test = read(tmp_path)
    assert train.columns["label_name"] == test.columns["label_name"] == ["cat", "dog"] * 2
