"""Whom the server serves next: a batch of those that have arrived, or the device whose turn it is."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from airtune.engine.stream.sessions import SessionTable, SplitSession, StreamTiming


class Choice(Protocol):
    """A rule by which devices are served."""

    def choose(
        self, table: SessionTable, *, first_at: float, now: float
    ) -> list[SplitSession] | float:
        """Return whom to serve now, or until when to wait for others.

        Args:
            table: The round's, locked; at least one device has arrived.
            first_at: Since when one waits to be served, by `time.monotonic`.
            now: The time.
        """
        ...


def gather(table: SessionTable, choice: Choice) -> list[SplitSession]:
    """Return the devices of the next pass; none where the round has ended. Waits."""
    first_at: float | None = None
    with table.changed:
        while (now := time.monotonic()) < (end := table.ends_at):
            arrived = any(session.slot is not None for session in table.sessions)
            first_at = (first_at or now) if arrived else None
            if first_at is None:
                until = max(_may_come_until(table, session) for session in table.sessions)
                if until <= now:
                    return []
            else:
                chosen = choice.choose(table, first_at=first_at, now=now)
                if isinstance(chosen, list):
                    return chosen
                until = chosen
            table.changed.wait(max(min(end, until) - now, 0.0) + 1e-3)
    return []


class Batches:
    """All that arrive within a window of the first, in one pass.

    A device that a batch went without is not waited for again until something of it has come: one
    that crawls or is cut off costs the others one window, not one a step.
    """

    def choose(
        self, table: SessionTable, *, first_at: float, now: float
    ) -> list[SplitSession] | float:
        """Return those that have arrived once nobody is held back for, or the window is over."""
        awaited = [session for session in table.sessions if _is_awaited(table, session, now)]
        latest = first_at + table.timing.window_s
        if not awaited or now >= latest:
            for session in awaited:
                session.has_missed = True
            return [session for session in table.sessions if session.slot is not None]
        return min(latest, *(_patience(table, session) for session in awaited))


@dataclass(slots=True)
class Turns:
    """One device after the other, each for all its steps.

    While another device waits, who has the turn loses it at once when its stream breaks, after the
    window when it has yet to come, and when it takes longer over a step than an answer may take.
    It then goes behind the others, and the next has the turn by the same rule: who loses it is
    served later, and nothing of it is lost but its place.
    """

    queue: list[SplitSession]
    """Those that are not done, in order."""
    served: list[int] = field(default_factory=list)
    """Places in the order in which they were first served."""

    def choose(
        self, table: SessionTable, *, first_at: float, now: float
    ) -> list[SplitSession] | float:
        """Return the device whose turn it is, once it has arrived."""
        self.queue = [session for session in self.queue if not (session.is_done or session.refused)]
        while (holder := self.queue[0]).slot is None:
            late_at = _late_at(holder, table.timing, began_at=table.began_at, first_at=first_at)
            if now < late_at:
                return late_at
            self.queue = [*self.queue[1:], holder]
        if self.queue[0].column not in self.served:
            self.served.append(self.queue[0].column)
        return self.queue[:1]


def turns_of(sessions: Sequence[SplitSession], order: Sequence[int]) -> Turns:
    """Return the turns of a round, `order` being places of its sessions."""
    return Turns([sessions[index] for index in order])


def _late_at(
    session: SplitSession, timing: StreamTiming, *, began_at: float, first_at: float
) -> float:
    """Return when a device that another waits for loses its turn."""
    if session.outbox is not None:
        return first_at + timing.answer_s
    if session.has_joined:
        return first_at
    return min(first_at + timing.window_s, began_at + timing.join_s)


def _is_awaited(table: SessionTable, session: SplitSession, now: float) -> bool:
    """A batch is held back for it: it is connected, or has yet to connect for the first time."""
    if session.slot is not None or session.has_missed or session.refused or session.is_done:
        return False
    return session.outbox is not None or (
        not session.has_joined and now < _patience(table, session)
    )


def _patience(table: SessionTable, session: SplitSession) -> float:
    return table.began_at + table.timing.join_s if not session.has_joined else float("inf")


def _may_come_until(table: SessionTable, session: SplitSession) -> float:
    """Return until when the round stays open for a device that has nothing waiting."""
    if session.refused or session.has_left:
        return 0.0
    if session.outbox is not None:
        return float("inf")
    if not session.has_joined:
        return _patience(table, session)
    return session.gone_at + table.timing.rejoin_s
