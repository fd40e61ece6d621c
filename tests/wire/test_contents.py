"""A base goes out as one file a group of tensors, however it is stored, and is then as it was."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from airtune.errors import ModelError
from airtune.wire.contents import INDEX, Content, contents_of
from airtune.wire.stage import CHUNK_BYTES, pack_chunk, stage_base

NAME = "c" * 64


def group_of(name: str) -> str:
    return name.partition(".")[0]


def tensors() -> dict[str, torch.Tensor]:
    stream = torch.Generator().manual_seed(0)
    sizes = {"front.a": 3, "0.a": CHUNK_BYTES // 2, "0.b": 1, "1.a": 7, "10.a": 5}
    drawn = {name: torch.rand(size, generator=stream) for name, size in sizes.items()}
    return drawn | {"front.b": torch.zeros((), dtype=torch.bfloat16), "1.none": torch.zeros(0, 4)}


@pytest.fixture(params=[1, 2], ids=["one file", "two shards"])
def source(request, tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    held = tensors()
    if request.param == 1:
        save_file(held, folder / "model.safetensors", {"format": "pt"})
        return folder
    places = {}
    for number, names in enumerate([sorted(held)[:3], sorted(held)[3:]], 1):
        file = f"model-{number:05d}-of-00002.safetensors"
        save_file({name: held[name] for name in names}, folder / file)
        places |= dict.fromkeys(names, file)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def asking(contents: tuple[Content, ...], asked: list[tuple[str, int]]):
    def ask(number, offset):
        asked.append((contents[number].group, offset))
        for piece in contents[number].chunks(offset):
            yield pack_chunk(offset, piece)
            offset += len(piece)

    return ask


def staged(source: Path, cache: Path, asked: list[tuple[str, int]], **groups):
    contents = contents_of(source, group_of)
    files = tuple(content.described() for content in contents)
    return stage_base(cache, NAME, files, asking(contents, asked), **groups)


def test_whoever_has_saved_it_it_goes_out_as_the_same_files(source: Path) -> None:
    files = [content.described() for content in contents_of(source, group_of)]
    weights = [file for file in files if file.group]
    assert [file.group for file in weights] == ["0", "1", "10", "front"]
    assert len({file.sha256 for file in files}) == len(files)
    assert weights[0].name == "model-00001-of-00004.safetensors"


def test_all_of_it_is_the_model_as_it_was(source: Path, tmp_path: Path) -> None:
    folder = staged(source, tmp_path / "cache", [])
    places = json.loads((folder / INDEX).read_text())["weight_map"]
    assert places.keys() == tensors().keys()
    for name, tensor in tensors().items():
        torch.testing.assert_close(load_file(folder / places[name])[name], tensor, rtol=0, atol=0)


def test_a_part_is_fetched_alone_and_grows_by_what_it_lacks(source: Path, tmp_path: Path) -> None:
    asked: list[tuple[str, int]] = []
    cache = tmp_path / "cache"
    folder = staged(source, cache, asked, groups=frozenset({"front", "0"}))
    assert {group for group, _ in asked} == {"", "0", "front"}
    assert len(list(folder.glob("*.safetensors"))) == 2
    asked.clear()
    staged(source, cache, asked, groups=frozenset({"front"}))
    assert asked == []
    staged(source, cache, asked, groups=frozenset({"front", "0", "1"}))
    assert asked == [("1", 0)]
    staged(source, cache, asked)
    assert asked[1:] == [("10", 0)]


@pytest.mark.parametrize("offset", [0, 1, 300, CHUNK_BYTES + 7, 2 * CHUNK_BYTES])
def test_it_goes_on_from_any_byte(source: Path, offset: int) -> None:
    [content] = [item for item in contents_of(source, group_of) if item.group == "0"]
    whole = b"".join(content.chunks())
    assert len(whole) == content.size_bytes
    assert b"".join(content.chunks(offset)) == whole[offset:]
    assert all(len(chunk) <= CHUNK_BYTES for chunk in content.chunks(offset))


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: [path.unlink() for path in folder.glob("*.safetensors")],
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "model.safetensors").write_bytes(b"short"),
        lambda folder: (folder / "model.safetensors").write_bytes(b"\xff" * 64),
    ],
)
def test_what_is_no_whole_model_is_not_handed_out(tmp_path: Path, harm) -> None:
    (tmp_path / "config.json").write_text("{}")
    save_file(tensors(), tmp_path / "model.safetensors")
    harm(tmp_path)
    with pytest.raises(ModelError, match=r"cannot be handed out .* weights in safetensors"):
        contents_of(tmp_path, group_of)
