"""Integers of a table coded with a context: the most similar earlier row, and their channel.

Rows of a language model repeat: prompts begin alike, and a token's activation is near that of the same
token before. For each row the encoder looks for the nearest earlier one and sends how far back it is. A
number's context is then the number above it in that row (0 to 3, its sign divided out), how large its
channel's numbers are (quarters), and how near the two rows are (four grades). Each of the 64 contexts has
a table of frequencies in the payload, by which `airtune.codec.ans` codes the numbers. An equal row costs next to nothing. No more is lost than by any other lossless coder.

Rows are decoded in generations: first those that refer to none, then those that refer to these, and so
on, so that a whole generation is one array.

The contexts are ours.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from airtune.codec import ans
from airtune.errors import CodecError

STREAMS = 3
"""What is known of the rows and channels with the tables; the coded numbers; what exceeds the tables."""

_LARGEST = 16
"""Magnitudes from here on are coded as this one, and what they exceed it by beside."""
_SYMBOLS = 2 * _LARGEST + 1
_ABOVE, _QUARTERS, _GRADES = 4, 4, 4
_CONTEXTS = _ABOVE * _QUARTERS * _GRADES
_NEARER = (0.1, 0.35, 0.7)
"""Squared distance to the row referred to over the row's own square; beyond the last, and without a
row to refer to, the grade is 3."""
_BUCKETS, _BACK, _BLOCK = 32, 4096, 256
"""Numbers to which a row is reduced for the search; how far back it goes; rows searched at a time."""
_DEEPEST = 64
"""Most generations."""

Levels = NDArray[np.int16]


def to_streams(levels: Levels) -> tuple[bytes, bytes, bytes]:
    """Return integers of shape (rows, channels) as streams."""
    back, depth = _references(levels)
    above = _above(levels, back)
    grade, quarter = _grades(levels, above, back), _quarters(levels)
    folded = np.where(above < 0, -levels, levels)
    symbols = (np.clip(folded, -_LARGEST, _LARGEST) + np.int16(_LARGEST)).astype(np.uint8)
    keys = _keys(above, quarter, grade)
    tables = _frequencies(keys, symbols)
    parts = [(keys[rows].reshape(-1), symbols[rows].reshape(-1)) for rows in _generations(depth)]
    coded = ans.encode(ans.scaled(tables), parts, ans.lanes_of(levels.size))
    beyond = np.abs(folded) >= _LARGEST
    over = (np.abs(folded[beyond].astype(np.int32)) - _LARGEST).astype("<u2")
    head = (
        (back & 255).astype(np.uint8).tobytes(),
        (back >> 8).astype(np.uint8).tobytes(),
        grade.tobytes(),
        quarter.tobytes(),
        tables.tobytes(),
    )
    return b"".join(head), coded, over.tobytes()


def head_bytes(rows: int, channels: int) -> int:
    """Return the length of the first stream."""
    return 3 * rows + channels + _CONTEXTS * _SYMBOLS


def most_coded_bytes(elements: int) -> int:
    """Return what the second stream may take at most."""
    return 4 * elements + 64


def from_streams(head: bytes, coded: bytes, over: bytes, rows: int, channels: int) -> Levels:
    """Return the integers again.

    Args:
        head: `head_bytes` long.
        coded: at most `most_coded_bytes` long.
        over: as it came; its length is checked.
        rows: of the table.
        channels: of the table.

    Raises:
        CodecError: if a stream is damaged, or the numbers are not those that were coded.
    """
    values = np.frombuffer(head, np.uint8)
    low, high, grade, rest = np.split(values, (rows, 2 * rows, 3 * rows))
    back = low.astype(np.int64) | high.astype(np.int64) << 8
    quarter, tables = rest[:channels], rest[channels:].reshape(_CONTEXTS, _SYMBOLS)
    depth = _depths(back)
    if depth is None or (rows and grade.max() >= _GRADES) or quarter.max() >= _QUARTERS:
        raise CodecError("a row's reference or a channel's grade cannot be; ask for it again")
    decoder = ans.Decoder(ans.scaled(tables), coded, ans.lanes_of(rows * channels))
    levels = np.zeros((rows, channels), np.int16)
    for chosen in _generations(depth):
        refers = back[chosen] > 0
        above = np.zeros((len(chosen), channels), np.int16)
        above[refers] = levels[(chosen - back[chosen])[refers]]
        keys = _keys(above, quarter, grade[chosen])
        folded = decoder.take(keys.reshape(-1)).reshape(keys.shape).astype(np.int16) - _LARGEST
        levels[chosen] = np.where(above < 0, -folded, folded)
    decoder.check_end()
    _add_over(levels, over)
    return levels


def _add_over(levels: Levels, over: bytes) -> None:
    """Add to the largest magnitudes what exceeds the tables."""
    beyond = np.abs(levels) >= _LARGEST
    if len(over) != 2 * int(np.count_nonzero(beyond)):
        raise CodecError(
            f"{len(over)} bytes do not tell {int(np.count_nonzero(beyond))} large numbers; "
            "ask for it again"
        )
    more = np.frombuffer(over, "<u2").astype(np.int32)
    if more.size and int(more.max()) > np.iinfo(np.int16).max - _LARGEST:
        raise CodecError("a number exceeds 32767; ask for it again")
    levels[beyond] += (np.sign(levels[beyond]) * more).astype(np.int16)


def _references(levels: Levels) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how far back each row's reference is, 0 for none, and the rows' generations."""
    rows, channels = levels.shape
    channel = np.arange(channels)
    # each channel is added to one of a few sums, with a sign: distances are about kept
    mixed = (channel * 2654435761) >> 7
    projection = np.zeros((channels, _BUCKETS), np.float32)
    projection[channel, mixed % _BUCKETS] = np.where(mixed >> 8 & 1, 1.0, -1.0)
    reduced = levels.astype(np.float32) @ projection
    square = np.einsum("ij,ij->i", reduced, reduced)
    back = np.zeros(rows, np.int64)
    for start in range(0, rows, _BLOCK):
        end, first = min(start + _BLOCK, rows), max(0, start - _BACK)
        distance = square[None, first:end] - 2.0 * (reduced[start:end] @ reduced[first:end].T)
        here = np.arange(start, end)
        distance[np.arange(first, end)[None, :] >= here[:, None]] = np.inf
        nearest = distance.argmin(axis=1)
        is_near = distance[here - start, nearest] < -0.1 * square[start:end]
        back[start:end] = np.where(is_near, here - (nearest + first), 0)
    depth = np.zeros(rows, np.int64)
    for row, distance_back in enumerate(back.tolist()):
        if distance_back:
            above = depth[row - distance_back]
            if above + 1 < _DEEPEST:
                depth[row] = above + 1
            else:
                back[row] = 0
    return back, depth


def _depths(back: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """Return the rows' generations; None where a reference cannot be."""
    if np.any(back > np.arange(len(back))):
        return None
    depth = [0] * len(back)
    for row, distance in enumerate(back.tolist()):
        if distance:
            depth[row] = depth[row - distance] + 1
    found = np.array(depth, np.int64)
    return None if found.max(initial=0) >= _DEEPEST else found


def _generations(depth: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for generation in range(int(depth.max(initial=-1)) + 1):
        yield np.flatnonzero(depth == generation)


def _above(levels: Levels, back: NDArray[np.int64]) -> Levels:
    above: Levels = levels[np.arange(len(levels)) - back]
    above[back == 0] = 0
    return above


def _grades(levels: Levels, above: Levels, back: NDArray[np.int64]) -> NDArray[np.uint8]:
    wide = levels.astype(np.float32)
    own = np.einsum("ij,ij->i", wide, wide)
    off = wide - above
    distance = np.einsum("ij,ij->i", off, off) / np.maximum(own, 1.0)
    return np.where(back > 0, np.digitize(distance, _NEARER), _GRADES - 1).astype(np.uint8)


def _quarters(levels: Levels) -> NDArray[np.uint8]:
    order = np.argsort(np.abs(levels).sum(axis=0, dtype=np.int64), kind="stable")
    quarter = np.empty(len(order), np.uint8)
    quarter[order] = np.arange(len(order)) * _QUARTERS // len(order)
    return quarter


def _keys(above: Levels, quarter: NDArray[np.uint8], grade: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return each number's context."""
    near = np.minimum(np.abs(above), _ABOVE - 1).astype(np.uint8)
    return np.asarray((near * _QUARTERS + quarter) * np.uint8(_GRADES) + grade[:, None], np.uint8)


def _frequencies(keys: NDArray[np.uint8], symbols: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the contexts' tables, in 255ths of the commonest symbol; a symbol that is used has 1."""
    joined = keys.reshape(-1).astype(np.int64) * _SYMBOLS + symbols.reshape(-1)
    counts = np.bincount(joined, minlength=_CONTEXTS * _SYMBOLS).reshape(_CONTEXTS, _SYMBOLS)
    most = np.maximum(counts.max(axis=1, keepdims=True), 1)
    return np.asarray(-(-255 * counts // most), np.uint8)
