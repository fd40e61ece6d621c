"""Who takes part in a split round: one session a device, its stream, and what waits on it."""

from __future__ import annotations

import hmac
import queue
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

from airtune.engine.stream.message import Expected
from airtune.split.message import Kind, StepMessage

Ending = Literal["done", "refused", "lapsed", "taken"]
"""Why the server ends a stream: the round is over · the device broke a rule · it took too long ·
its session is held by another stream."""


class Outbox:
    """What the server has for one stream, in order; at most a few messages, as devices wait."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[StepMessage | tuple[Ending, str]] = queue.SimpleQueue()

    def send(self, message: StepMessage) -> None:
        """Put a message behind what waits."""
        self._queue.put(message)

    def end(self, ending: Ending, reason: str = "") -> None:
        """End the stream behind what waits."""
        self._queue.put((ending, reason))

    def take(self) -> StepMessage | tuple[Ending, str]:
        """Return the next message, or how the stream ends; waits."""
        return self._queue.get()


@dataclass(slots=True)
class SplitSession:
    """One device of a round. Everything but `token` is guarded by the table's lock."""

    device: int
    column: int
    """Column of the round's figures."""
    steps: int
    token: str
    outbox: Outbox | None = None
    """Of the stream that holds the session."""
    slot: StepMessage | None = None
    """What has come and is not yet taken."""
    awaits: Kind | None = Kind.ACTIVATION
    """What may come now; None = nothing, the server has yet to answer."""
    step: int = 0
    """Steps done, and so the next one."""
    parts: int = 1
    """Micro-batches of a step."""
    part: int = 0
    """Which comes next."""
    is_served: bool = False
    """What it sent is in a pass of the server's."""
    has_missed: bool = False
    """A batch has gone without it, and nothing has come of it since."""
    has_joined: bool = False
    has_left: bool = False
    """It has closed its stream in order, after its last step."""
    gone_at: float = 0.0
    """When its stream broke."""
    refused: str = ""
    losses: int = 0
    """How often its stream broke."""

    @property
    def is_done(self) -> bool:
        """It has taken all its steps."""
        return self.step >= self.steps


@dataclass(frozen=True, slots=True)
class StreamTiming:
    """How long a round waits for whom."""

    window_s: float = 5.0
    """From the first arrival of a batch until it goes without those that are missing; infinite =
    a barrier, which waits for every device that is connected. With a sequential server: how long a
    device that has yet to connect is waited for in its turn."""
    join_s: float = 60.0
    """How long a device that has not connected yet is waited for."""
    rejoin_s: float = 20.0
    """How long one whose stream broke may come back once the others are done."""
    answer_s: float = 60.0
    """Where labels stay: how long a device may take over its head. With a sequential server: over a
    step, when another waits for its turn."""
    deadline_s: float = 3600.0
    """Of the whole round."""

    def within(self, deadline_s: float) -> StreamTiming:
        """Return it for a round of so many seconds: one that hangs takes a part of them only.

        >>> StreamTiming().within(30.0).window_s
        3.0
        """
        return replace(
            self,
            window_s=min(self.window_s, 0.1 * deadline_s),
            answer_s=min(self.answer_s, 0.25 * deadline_s),
            deadline_s=deadline_s,
        )


@dataclass(slots=True)
class SessionTable:
    """The sessions of a round. Streams put in, the round takes out; one lock for all."""

    run: int
    round: int
    sessions: tuple[SplitSession, ...]
    timing: StreamTiming
    max_body_bytes: int
    listed: Callable[[SplitSession], bytes] = lambda session: b""
    """What a device is told when it joins of the samples that the server has."""
    began_at: float = field(default_factory=time.monotonic)
    is_open: bool = True
    changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def ends_at(self) -> float:
        """When the round ends, whoever is missing; by `time.monotonic`."""
        return self.began_at + self.timing.deadline_s

    def seat_of(self, token: str) -> SplitSession | None:
        """Return the session of a token; takes as long for any token."""
        found = None
        for session in self.sessions:
            if hmac.compare_digest(session.token.encode(), token.encode()):
                found = session
        return found

    def join(self, session: SplitSession, outbox: Outbox) -> str:
        """Give a stream its session and tell the device where to go on; return why not, or ""."""
        with self.changed:
            # What its earlier stream sent may be in a pass just now; its step moves after that.
            self.changed.wait_for(lambda: not session.is_served or not self.is_open)
            if not self.is_open:
                return "the round is over; wait for the next"
            if session.refused:
                return f"device {session.device} is out of this round: {session.refused}"
            if session.outbox is not None:
                return f"device {session.device} is connected already; one stream a token"
            session.outbox, session.has_joined, session.has_left = outbox, True, False
            session.slot, session.awaits, session.part = None, Kind.ACTIVATION, 0
            welcome = self._message(session, Kind.WELCOME, beside=self.listed(session))
            outbox.send(replace(welcome, left_s=max(self.ends_at - time.monotonic(), 0.0)))
            self.changed.notify_all()
        return ""

    def expected(self, session: SplitSession) -> Expected:
        """Return what may come from a device now."""
        with self.changed:
            kinds = (
                frozenset()
                if session.is_done or session.awaits is None
                else frozenset({session.awaits})
            )
            if Kind.ACTIVATION in kinds and not session.part:
                kinds |= {Kind.STOP}
            return Expected(
                kinds, self.run, self.round, session.device, session.step, self.max_body_bytes
            )

    def put(self, session: SplitSession, outbox: Outbox, message: StepMessage) -> bool:
        """Leave a message and wait until it is taken; False where the stream is not to go on.

        A device's next message is not read before this one is taken, so nothing piles up.
        """
        with self.changed:
            if session.outbox is not outbox or not self.is_open:
                return False
            session.slot, session.has_missed = message, False
            self.changed.notify_all()
            self.changed.wait_for(
                lambda: (
                    session.slot is not message or session.outbox is not outbox or not self.is_open
                )
            )
            return session.outbox is outbox and self.is_open

    def stop(self, session: SplitSession, outbox: Outbox) -> None:
        """Take the steps that a device has done for all that it does."""
        with self.changed:
            if session.outbox is outbox:
                session.steps = session.step
                self.changed.notify_all()

    def take(self, session: SplitSession) -> StepMessage | None:
        """Take what a device has sent; until it is answered, nobody else may take its session."""
        with self.changed:
            message, session.slot = session.slot, None
            if message is not None:
                session.is_served, session.awaits = True, None
                session.part = (session.part + 1) % session.parts
                if session.part:
                    session.awaits = Kind.ACTIVATION  # it does not wait for its gradient
            self.changed.notify_all()
        return message

    def ask(self, session: SplitSession, payload: bytes) -> bool:
        """Send a last hidden state and await its gradient; False where nobody is there."""
        with self.changed:
            if session.outbox is None:
                return False
            session.awaits = Kind.HIDDEN_GRADIENT
            session.outbox.send(self._message(session, Kind.HIDDEN, payload))
            return True

    def answer(
        self,
        session: SplitSession,
        payload: bytes | None,
        loss: float = float("nan"),
        *,
        more: bool = False,
    ) -> bool:
        """Send the gradient, if there is one and the device is there, and move it on.

        With `more`, another micro-batch of the step is to come, and it stays where it is.
        """
        with self.changed:
            message = self._message(session, Kind.GRADIENT, payload or b"", loss=loss)
            # The next message may come as soon as this one is out, so the step moves first.
            if not more:
                session.step, session.part, session.is_served = session.step + 1, 0, False
                session.awaits = Kind.ACTIVATION
            is_sent = session.outbox is not None and payload is not None
            if session.outbox is not None and payload is not None:
                session.outbox.send(message)
            self.changed.notify_all()
            return is_sent

    def leave(self, session: SplitSession, outbox: Outbox, *, in_order: bool) -> None:
        """Free the session when its stream has ended, if the stream still holds it."""
        with self.changed:
            if session.outbox is outbox:
                session.has_left = in_order and session.is_done
                self._free(session, is_broken=not session.has_left)

    def end(
        self, session: SplitSession, ending: Ending, reason: str, *, held_by: Outbox | None = None
    ) -> None:
        """End a device's stream: refused for the round, or lapsed, when it may come back.

        Args:
            session: The device's.
            ending: How.
            reason: What both sides are told.
            held_by: Only if this stream still holds the session.
        """
        with self.changed:
            if held_by is not None and session.outbox is not held_by:
                return
            if ending == "refused":
                session.refused, session.is_served = session.refused or reason, False
            if session.outbox is not None:
                session.outbox.end(ending, reason)
                self._free(session, is_broken=True)
            self.changed.notify_all()

    def _free(self, session: SplitSession, *, is_broken: bool) -> None:
        session.outbox, session.slot, session.gone_at = None, None, time.monotonic()
        session.losses += is_broken
        self.changed.notify_all()

    def _message(
        self,
        session: SplitSession,
        kind: Kind,
        payload: bytes = b"",
        *,
        beside: bytes = b"",
        loss: float = float("nan"),
    ) -> StepMessage:
        return StepMessage(
            kind,
            self.run,
            self.round,
            session.step,
            session.device,
            steps=session.steps,
            beside=beside,
            payload=payload,
            loss=loss,
        )

    def close(self, failure: str = "") -> None:
        """End every stream: the round is over, or the server has failed."""
        with self.changed:
            self.is_open = False
            for session in self.sessions:
                if session.outbox is not None:
                    session.outbox.end("lapsed" if failure else "done", failure)
            self.changed.notify_all()


def new_token() -> str:
    """Return what lets one device take its session in one round."""
    return secrets.token_urlsafe(32)
