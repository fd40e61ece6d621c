"""The virtual clock's transfers: how long bytes take over links that change from slot to slot.

A round is cut into slots that start with it; slot k spans `[k * slot_s, (k + 1) * slot_s)`. Within
a slot every rate is constant, so a transfer is an exact piecewise-linear integral, with no time step
to choose. A rate of zero (an outage) only lets time pass.

What shares a link keeps step slot by slot: a transfer is a process that yields each slot before it
asks for its rates, and `in_step` lets the one that is furthest behind go on. Within a slot rates are
given, so the order does not matter there.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from airtune.plan import Floats
from airtune.units import BITS_PER_BYTE

RatesAt = Callable[[int, Floats], Floats]
"""(slot, remaining bytes of each device (n,)) -> rates in bit/s (n,)."""

Result = TypeVar("Result")
Other = TypeVar("Other")

Process = Generator[int, None, Result]
"""Something that passes in time: yields each slot that it comes to, returns what came of it."""

MAX_SLOTS = 100_000
"""Slots after which a transfer counts as never ending."""


@dataclass(frozen=True, slots=True)
class Transfer:
    """Transfers of n devices within a round; every column has shape (n,)."""

    finish_s: Floats
    """Seconds after the start of the round; inf where it did not end in time."""
    sent_bytes: Floats
    """Bytes that crossed the air by then, or until the transfer was given up."""


def transfer(
    rates_at: RatesAt,
    *,
    start_s: Floats,
    size_bytes: Floats,
    slot_s: float | None,
    until_s: float = float("inf"),
) -> Transfer:
    """Integrate transfers over slots, with nobody to keep step with.

    `finish` solves `integral from start to finish of rate(t) dt = 8 * size`.

    Args:
        rates_at: called once for each slot in which anybody may send, in order.
        start_s: when each device begins, seconds after the start of the round, shape (n,); inf
            for one that never does.
        size_bytes: what each device sends, shape (n,).
        slot_s: length of a slot in seconds; None = one slot without end.
        until_s: nothing is sent after this.

    Returns:
        When each transfer ends and what it sent.

    >>> rates = lambda slot, remaining: np.array([8.0 if slot % 2 else 0.0])
    >>> done = transfer(rates, start_s=np.zeros(1), size_bytes=np.array([1.5]), slot_s=1.0)
    >>> float(done.finish_s[0])
    3.5
    """
    return alone(
        passing(rates_at, start_s=start_s, size_bytes=size_bytes, slot_s=slot_s, until_s=until_s)
    )


def passing(
    rates_at: RatesAt,
    *,
    start_s: Floats,
    size_bytes: Floats,
    slot_s: float | None,
    until_s: float = float("inf"),
    tell: Callable[[Floats], None] = lambda remaining: None,
) -> Process[Transfer]:
    """Integrate transfers over slots; see `transfer`.

    Args:
        rates_at: as there, and the others of its names.
        start_s: likewise.
        size_bytes: likewise.
        slot_s: likewise.
        until_s: likewise.
        tell: told the remaining bytes of each device before each slot and at the end.
    """
    finish = np.where(size_bytes > 0, np.inf, start_s).astype(np.float64)
    remaining = np.where(np.isfinite(start_s), size_bytes, 0.0).astype(np.float64)
    waiting = remaining > 0
    if not np.any(waiting):
        return Transfer(finish, size_bytes - remaining)
    first = 0 if slot_s is None else int(np.min(start_s[waiting]) // slot_s)
    for slot in range(first, first + MAX_SLOTS):
        begin = 0.0 if slot_s is None else slot * slot_s
        end = until_s if slot_s is None else min(begin + slot_s, until_s)
        if begin >= until_s or not np.any(waiting):
            break
        tell(remaining)
        yield slot
        rate = rates_at(slot, remaining) / BITS_PER_BYTE
        _advance(finish, remaining, rate=rate, begin_s=np.maximum(start_s, begin), end_s=end)
        waiting = remaining > 0
        if slot_s is None:
            break
    tell(remaining)
    sent = np.where(np.isfinite(start_s), size_bytes - remaining, 0.0)
    return Transfer(finish, sent)


def alone(process: Process[Result]) -> Result:
    """Let a process pass that has nobody to keep step with."""
    while True:
        try:
            next(process)
        except StopIteration as end:
            found: Result = end.value
            return found


def in_step(one: Process[Result], other: Process[Other]) -> tuple[Result, Other]:
    """Let two processes pass that share links: whichever is at the earlier slot goes on."""
    processes: tuple[Process[Any], Process[Any]] = (one, other)
    reached: dict[int, int] = {}
    found: dict[int, Any] = {}

    def go_on(number: int) -> None:
        try:
            reached[number] = next(processes[number])
        except StopIteration as end:
            reached.pop(number, None)
            found[number] = end.value

    go_on(0)
    go_on(1)
    while reached:
        go_on(min(reached, key=reached.__getitem__))
    return found[0], found[1]


def _advance(
    finish: Floats, remaining: Floats, *, rate: Floats, begin_s: Floats, end_s: float
) -> None:
    """Let one slot pass; writes into `finish` and `remaining`."""
    active = (remaining > 0) & (begin_s < end_s) & (rate > 0)
    room = np.zeros(rate.shape)
    room[active] = rate[active] * (end_s - begin_s[active])
    # this comparison decides both ways, so that what is left over is never rounded to nothing
    done = active & (remaining <= room)
    finish[done] = begin_s[done] + remaining[done] / rate[done]
    remaining[done] = 0.0
    partly = active & ~done
    remaining[partly] -= room[partly]
