"""From the bytes of a file to its text: compression, byte order marks, encodings."""

from __future__ import annotations

import bz2
import codecs
import errno
import gzip
import io
import lzma
import stat
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, cast

from airtune.errors import DataError
from airtune.model.refusals import LFS_POINTER

MOST_UNPACKED = 2**31
"""Bytes of one packed file once unpacked; a few kilobytes can claim any number."""
_CHUNK = 2**20
_MARKS: Mapping[bytes, str] = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16, whose mark it begins with
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def unpacked_name(path: Path) -> str:
    """Return a file's name without the suffix that says how it is packed.

    >>> unpacked_name(Path("data/train.jsonl.ZST")), unpacked_name(Path("train.csv"))
    ('train.jsonl', 'train.csv')
    """
    return path.stem if path.suffix.lower() in _SUFFIXES else path.name


def read_bytes(path: Path) -> bytes:
    """Return what a file holds, unpacked where it begins as gzip, bzip2, xz or Zstandard do.

    Raises:
        DataError: if it is missing, cannot be read, unpacks to more than `MOST_UNPACKED` bytes, or
            only points to a file that was not fetched.
    """
    try:
        data = stored_bytes(path)
        open_packed = next((how for mark, how in _PACKED.items() if data.startswith(mark)), None)
        data = data if open_packed is None else _unpacked(open_packed(io.BytesIO(data)))
    except FileNotFoundError as error:
        raise no_such_file(path) from error
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"{path} cannot be read: {reason}") from error
    if data.startswith(LFS_POINTER):
        raise DataError(
            f"{path} is a Git LFS pointer and not the data; run git lfs pull in its folder"
        )
    return data


def stored_bytes(path: Path) -> bytes:
    """Return what a file holds, as it is stored.

    Raises:
        OSError: if it cannot be read or is no regular file.
    """
    check_regular(path)
    return path.read_bytes()


def check_regular(path: Path) -> None:
    """Refuse a folder, a pipe and a device, whose reading may never end.

    Raises:
        OSError: if it is one of these, or cannot be found.
    """
    if not stat.S_ISREG(path.stat().st_mode):
        raise OSError(errno.EINVAL, "it is no regular file")


def no_such_file(path: Path, *keys: str) -> DataError:
    """Return the error of a path at which nothing is; a pattern is answered with what is read.

    Args:
        path: as it was given.
        keys: of the recipe that may have named it; none = `data.source` and `data.test`.

    >>> str(no_such_file(Path("/data/part-*.csv"))).partition("; ")[2]
    'patterns are not read; name the folder /data in its place, whose data files are all read'
    """
    way = f"check {' and '.join(f'`{key}`' for key in keys or ('data.source', 'data.test'))}"
    if any(sign in path.name for sign in "*?["):
        way = (
            f"patterns are not read; name the folder {path.absolute().parent} in its place, whose "
            "data files are all read"
        )
    return DataError(f"no such file: {path.absolute()}; {way}")


def _unpacked(stream: IO[bytes]) -> bytes:
    held = io.BytesIO()
    with stream:
        while chunk := stream.read(_CHUNK):
            held.write(chunk)
            if held.tell() > MOST_UNPACKED:
                raise ValueError(
                    f"it unpacks to more than {MOST_UNPACKED} bytes; unpack it beforehand if it should"
                )
    return held.getvalue()


def _open_zst(packed: IO[bytes]) -> IO[bytes]:
    import pyarrow  # type: ignore[import-untyped]  # slow to import, and few need it

    return cast("IO[bytes]", pyarrow.CompressedInputStream(packed, "zstd"))


_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
_PACKED: Mapping[bytes, Callable[[IO[bytes]], IO[bytes]]] = {
    b"\x1f\x8b": lambda packed: cast("IO[bytes]", gzip.GzipFile(fileobj=packed)),
    **dict.fromkeys((b"BZh%d1AY&SY" % level for level in range(1, 10)), bz2.open),
    b"\xfd7zXZ\0": lzma.open,
    b"\x28\xb5\x2f\xfd": _open_zst,
}
"""How a packed file begins, whatever it is called; no text begins so."""


def decode(data: bytes, path: Path, encoding: str | None) -> str:
    """Return text; a byte order mark says more than `encoding`, and without both it is UTF-8.

    Raises:
        DataError: if the bytes are not of that encoding.
    """
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    name = marked or encoding or "utf-8"
    try:
        text = data.decode(name)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not {name.upper().removesuffix('-SIG')} text (byte {error.start}); say "
            "what it is, `data.encoding: cp1252` for instance, or convert it"
        ) from error
    if "\0" in text:
        raise DataError(
            f"{path} holds the character NUL, as text in UTF-16 without a mark does; say "
            "`data.encoding: utf-16-le` if it is that, or convert it"
        )
    return text


def encoding_of(data: bytes) -> str | None:
    """Return a `data.encoding` that reads the bytes where the default does not; else None.

    What is neither UTF-8 nor marked is taken for Windows-1252, the usual one in the West; it is a
    guess, and for a person to confirm.
    """
    try:
        decode(data, Path(), None)
    except DataError:
        for name in ("utf-16-le", "cp1252", "latin-1"):
            if _fits(data, name):
                return name
    return None


def _fits(data: bytes, name: str) -> bool:
    try:
        text = data.decode(name)
    except UnicodeDecodeError:
        return False
    # every even number of bytes is UTF-16; only Latin letters make it so with a NUL in most
    return "\0" not in text and (name != "utf-16-le" or data.count(0) > len(data) / 4)
