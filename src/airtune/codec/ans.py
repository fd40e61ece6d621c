"""An asymmetric numeral system with a table of frequencies for each context, many lanes at once.

A lane's state is an integer x in [2^16, 2^32). Of a symbol with frequency f out of 4096 and the sum c of
those before it, coding makes

    x  ->  4096 (x // f) + x mod f + c,    and back    x  ->  f (x // 4096) + x mod 4096 - c

with 16 bits moved to or from the words where x would leave its range. Symbols are dealt to the lanes in
turn, so that every step is an array; all is in integers, so any two machines agree. At the end of
decoding all states must be 2^16 again, which tells nearly every damage.

Source: Duda (arXiv 1311.2540); lanes after Giesen (arXiv 1402.3392). Packages that do this have no builds for
the devices' processors.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.errors import CodecError

_BITS = 12
_TOTAL = 1 << _BITS
_START = np.uint32(1 << 16)
_WORD = np.uint32(16)
_SYMBOLS_A_LANE, _MOST_LANES = 512, 4096

Counts = NDArray[np.int64]
Symbols = NDArray[np.uint8]


def lanes_of(symbols: int) -> int:
    """Return the lanes for so many symbols."""
    return min(max(symbols // _SYMBOLS_A_LANE, 1), _MOST_LANES)


def scaled(tables: NDArray[np.uint8]) -> Counts:
    """Return frequencies that sum to 4096 in every row that is not empty, at least 1 where not 0.

    Args:
        tables: at most 64 symbols a row, whose commonest has 255.
    """
    total = np.maximum(tables.sum(axis=1, dtype=np.int64, keepdims=True), 1)
    counts = np.where(tables > 0, np.maximum(tables * np.int64(_TOTAL) // total, 1), 0)
    rows = np.flatnonzero(tables.any(axis=1))
    largest = counts[rows].argmax(axis=1)
    counts[rows, largest] += _TOTAL - counts[rows].sum(axis=1)
    return counts


def encode(counts: Counts, parts: list[tuple[Symbols, Symbols]], lanes: int) -> bytes:
    """Return the coded symbols.

    Args:
        counts: of `scaled`.
        parts: context and symbol of each, flat, as they will be asked for.
        lanes: of `lanes_of`.
    """
    # f, c, and the largest x that stays in its range
    most = (np.maximum(counts, 1) << (32 - _BITS)) - 1
    tables = [table.astype(np.uint32).ravel() for table in (counts, _below(counts), most)]
    state = np.full(lanes, _START, np.uint32)
    words: list[NDArray[np.uint16]] = []
    for context, symbol in reversed(parts):
        place = context * np.int64(counts.shape[1]) + symbol
        count, first, full = (table[place] for table in tables)
        apart = np.uint32(_TOTAL) - count
        for start in reversed(range(0, len(symbol), lanes)):
            lane = slice(start, start + lanes)
            f = count[lane]
            x = state[: len(f)]
            is_full = x > full[lane]
            words.append(x[is_full].astype(np.uint16))
            np.right_shift(x, _WORD, out=x, where=is_full)
            x += x // f * apart[lane] + first[lane]
    written = np.concatenate([np.empty(0, np.uint16), *reversed(words)])
    return state.astype("<u4").tobytes() + written.astype("<u2").tobytes()


def _below(counts: Counts) -> Counts:
    """Return the sums of the frequencies before each symbol."""
    return np.asarray(np.cumsum(counts, axis=1) - counts, np.int64)


class Decoder:
    """Gives back, part by part, what `encode` was given."""

    def __init__(self, counts: Counts, coded: bytes, lanes: int) -> None:
        """Take the tables and the coded symbols.

        Raises:
            CodecError: if there are too few bytes.
        """
        if len(coded) < 4 * lanes or len(coded) % 2:
            raise CodecError(
                f"{len(coded)} bytes of coded numbers do not hold {lanes} states; ask for it again"
            )
        self._state = np.frombuffer(coded[: 4 * lanes], "<u4").astype(np.uint32)
        self._words = np.frombuffer(coded[4 * lanes :], "<u2").astype(np.uint32)
        self._next = 0
        self._is_known = np.any(counts > 0, axis=1)
        # for every context and every x mod 4096: the symbol, its f, and x mod 4096 - c
        self._symbol = np.zeros((len(counts), _TOTAL), np.uint8)
        symbols = np.arange(counts.shape[1], dtype=np.uint8)
        for row in np.flatnonzero(self._is_known):
            self._symbol[row] = np.repeat(symbols, counts[row])
        self._count, first = (
            np.take_along_axis(table, self._symbol, axis=1).astype(np.uint16).ravel()
            for table in (counts, _below(counts))
        )
        self._rest = np.tile(np.arange(_TOTAL, dtype=np.uint16), len(counts)) - first

    def take(self, context: Symbols) -> Symbols:
        """Return the symbols of the next part, given the contexts.

        Raises:
            CodecError: if a context has no table, or the words end.
        """
        if not self._is_known[context].all():
            raise CodecError("a context is used and has no table; ask for it again")
        place = context.astype(np.uint32) << np.uint32(_BITS)
        lanes = len(self._state)
        for start in range(0, len(context), lanes):
            here = place[start : start + lanes]
            x = self._state[: len(here)]
            here |= x & np.uint32(_TOTAL - 1)
            x >>= np.uint32(_BITS)
            x *= self._count[here]
            x += self._rest[here]
            is_low = x < _START
            low = x[is_low]
            words = self._words[self._next : self._next + len(low)]
            if len(words) < len(low):
                raise CodecError("the coded numbers end too early; ask for it again")
            x[is_low] = low << _WORD | words
            self._next += len(low)
        return np.asarray(self._symbol.ravel()[place], np.uint8)

    def check_end(self) -> None:
        """Refuse what does not end as encoding began.

        Raises:
            CodecError: if a state or a word is left.
        """
        if self._next != len(self._words) or np.any(self._state != _START):
            raise CodecError("the coded numbers are damaged; ask for it again")
