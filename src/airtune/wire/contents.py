"""What a server hands out of a base model: its files, the weights regrouped so that parts can be had.

However a model's weights are stored, they go out as one safetensors file a group of tensors (what
surrounds the blocks, each block, the output layer) and an index of them, as `save_pretrained` would
have sharded them. Nothing is copied: such a file is a header, and spans of the files on the disk.
A device fetches the files of the groups that it holds and can read them as any model's.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.errors import ModelError
from airtune.records import storage
from airtune.wire.stage import CHUNK_BYTES, BaseFile, is_base_file

INDEX, WHOLE = "model.safetensors.index.json", "model.safetensors"
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100 << 20


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a file on the disk."""

    path: Path
    offset: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Content:
    """A file as it goes out."""

    name: str
    head: bytes
    """With which it begins."""
    spans: tuple[Span, ...]
    """What follows, in order."""
    group: str = ""
    """As in `BaseFile`."""

    @property
    def size_bytes(self) -> int:
        """Of the whole file."""
        return len(self.head) + sum(span.size_bytes for span in self.spans)

    def chunks(self, offset: int = 0) -> Iterator[bytes]:
        """Yield it from a byte on, `CHUNK_BYTES` at most at a time.

        Raises:
            OSError: if a file cannot be read, or has become shorter.
        """
        for index in range(offset, len(self.head), CHUNK_BYTES):
            yield self.head[index : index + CHUNK_BYTES]
        skip = max(offset - len(self.head), 0)
        for span in self.spans:
            if skip < span.size_bytes:
                yield from _read(span, skip)
            skip = max(skip - span.size_bytes, 0)

    def described(self) -> BaseFile:
        """Return what a device is told of it; reads all of it for its hash."""
        digest = hashlib.sha256()
        with storage(Path(self.name)):
            for chunk in self.chunks():
                digest.update(chunk)
        return BaseFile(self.name, self.size_bytes, digest.hexdigest(), self.group)


def contents_of(folder: Path, group_of: Callable[[str], str]) -> tuple[Content, ...]:
    """Return the files of a base as they are handed out; of weights, headers alone are read.

    Args:
        folder: With a config, and weights in safetensors.
        group_of: Returns the group of a tensor, by its name.

    Raises:
        ModelError: if the folder holds no config or no whole weights in safetensors.
    """
    beside = [path for path in sorted(folder.iterdir()) if is_base_file(path.name)]
    beside = [path for path in beside if path.is_file() and not _is_weights(path.name)]
    try:
        tensors = _tensors(folder)
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise _unfit(folder, str(error)) from error
    if not any(path.name == "config.json" for path in beside):
        raise _unfit(folder, "config.json is missing")
    plain = (Content(path.name, b"", (Span(path, 0, path.stat().st_size),)) for path in beside)
    return (*plain, *_weights(tensors, group_of))


def _unfit(folder: Path, why: str) -> ModelError:
    return ModelError(
        f"the base in {folder} cannot be handed out ({why}): it needs config.json and weights in "
        "safetensors; save it by save_pretrained, or set model.stage to none"
    )


def _is_weights(name: str) -> bool:
    return name == INDEX or name.endswith(".safetensors")


@dataclass(frozen=True, slots=True)
class _Tensor:
    dtype: str
    shape: tuple[int, ...]
    span: Span


def _tensors(folder: Path) -> dict[str, _Tensor]:
    """Return where each tensor of a model lies."""
    index = folder / INDEX
    if not index.is_file():
        return _header(folder / WHOLE)
    places: Mapping[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    headers = {name: _header(folder / Path(name).name) for name in sorted(set(places.values()))}
    return {name: headers[file][name] for name, file in places.items()}


def _header(path: Path) -> dict[str, _Tensor]:
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > _MAX_HEADER_BYTES:
            raise ValueError(f"{path.name} declares a header of {length} bytes")
        entries: Mapping[str, Any] = json.loads(file.read(length))
    start, size = _LENGTH.size + length, path.stat().st_size
    found = {}
    for name, entry in entries.items():
        if name == "__metadata__":
            continue
        first, last = entry["data_offsets"]
        if not 0 <= first <= last <= size - start:
            raise ValueError(f"{name} lies outside {path.name}")
        span = Span(path, start + first, last - first)
        found[name] = _Tensor(entry["dtype"], tuple(entry["shape"]), span)
    return found


def _weights(tensors: Mapping[str, _Tensor], group_of: Callable[[str], str]) -> list[Content]:
    """Return a file a group, and their index where there are several."""
    groups: dict[str, dict[str, _Tensor]] = {}
    for name in sorted(tensors):
        groups.setdefault(group_of(name), {})[name] = tensors[name]
    # numbers first and by their size, so that a model is the same files whoever has saved it
    order = sorted(groups, key=lambda group: (not group.isdecimal(), group.zfill(6)))
    if len(order) == 1:
        return [_file(WHOLE, order[0], groups[order[0]])]
    count = len(order)
    files = [
        _file(f"model-{index:05d}-of-{count:05d}.safetensors", group, groups[group])
        for index, group in enumerate(order, 1)
    ]
    places = {name: file.name for file in files for name in groups[file.group]}
    total = sum(tensor.span.size_bytes for tensor in tensors.values())
    document = {"metadata": {"total_size": total}, "weight_map": places}
    return [*files, Content(INDEX, json.dumps(document, sort_keys=True).encode(), ())]


def _file(name: str, group: str, tensors: Mapping[str, _Tensor]) -> Content:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for key, tensor in tensors.items():
        entries[key] = {
            "dtype": tensor.dtype,
            "shape": tensor.shape,
            "data_offsets": (end, end + tensor.span.size_bytes),
        }
        end += tensor.span.size_bytes
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % _LENGTH.size)
    spans = tuple(tensor.span for tensor in tensors.values())
    return Content(name, _LENGTH.pack(len(text)) + text, spans, group)


def _read(span: Span, skip: int) -> Iterator[bytes]:
    with span.path.open("rb") as file:
        file.seek(span.offset + skip)
        left = span.size_bytes - skip
        while left:
            content = file.read(min(CHUNK_BYTES, left))
            if not content:
                raise OSError(f"{span.path.name} has become shorter")
            left -= len(content)
            yield content
