"""The server's side of a split round over streams: batch what has arrived, step, answer.

Each device advances at its own pace: a batch is whoever has arrived within a window of the first,
whatever step it is at. A device that dies between forward and backward has been learnt from, as in
`split.rounds`; the others never wait for it. It may come back in the same round and goes on at the
step after the last one the server has seen of it, with what it then has of its own adapters.

Where each device has a copy of the server, no pass waits for who has not arrived; where labels stay,
those that have wait for one another's heads. A sequential server takes them one after the other.

With an infinite window and no fault this is `split.split_round`, number for number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from airtune.engine.stream.gather import Batches, Choice, Turns, gather, turns_of
from airtune.engine.stream.memory import ServerMemory
from airtune.engine.stream.message import run_number
from airtune.engine.stream.sessions import SessionTable, SplitSession, new_token
from airtune.engine.stream.task import ServerRound, SplitTask, check_task
from airtune.keys import generator
from airtune.split.body import largest_body_bytes
from airtune.split.memory import list_of
from airtune.split.message import Kind, StepMessage
from airtune.split.server import ServerEnd, mean_by_weight


class SplitRound:
    """One round: a table that streams put into, and the loop that takes from it."""

    def __init__(
        self, task: SplitTask, memory: ServerMemory, *, clock: Callable[[], float]
    ) -> None:
        """Prepare the server's half, or one a device.

        Args:
            task: The round.
            memory: What is remembered of samples; the round adds to it.
            clock: By which the server's computing is measured, in seconds.

        Raises:
            MethodError: if the stream does not carry this work.
            ModelError: if a cut is outside the model.
        """
        check_task(task)
        self.task = task
        self._memory = memory.begin(task)
        self._end = ServerEnd(
            task.context, task.rows, task.weights, memory=self._memory, examples=task.samples
        )
        self._listed_bytes, self._server_s = np.zeros((2, len(task.rows)))
        self._clock = clock
        self.table = SessionTable(
            run_number(task.run),
            task.round,
            tuple(
                SplitSession(
                    row.device,
                    index,
                    row.local_steps,
                    new_token(),
                    parts=self._end.micro_batches(index),
                )
                for index, row in enumerate(task.rows)
            ),
            replace(task.timing, window_s=0.0) if task.work.server == "copies" else task.timing,
            largest_body_bytes(task.base.shape, task.workload),
            self._listed,
        )
        self._choice = self._chosen()

    @property
    def tokens(self) -> dict[int, str]:
        """What lets each device in; for that device's eyes only."""
        return {session.device: session.token for session in self.table.sessions}

    def run(self) -> ServerRound:
        """Serve until every device is done, out, or past its time."""
        failure = "the server's half failed; the round is void"
        try:
            while sessions := gather(self.table, self._choice):
                self._serve(sessions)
            failure = ""
        finally:
            self.table.close(failure)
        return self._result()

    def _listed(self, session: SplitSession) -> bytes:
        """Return the list of what is remembered of a device, with which its stream begins."""
        if session.is_done or session.column not in self._memory:
            return b""
        listed = list_of(self._memory[session.column])
        self._listed_bytes[session.column] += len(listed)
        return listed

    def _chosen(self) -> Choice:
        """Return whom to serve when; a sequential server's order is drawn anew every round."""
        task, sessions = self.task, self.table.sessions
        if task.work.server != "sequential":
            return Batches()
        order = generator(task.seed, "split order", task.round).permutation(len(sessions))
        return turns_of(sessions, order.tolist())

    def _serve(self, sessions: Sequence[SplitSession]) -> None:
        """Run one pass over the devices that have arrived, and move them on.

        Where their batches are divided, a pass has as many parts, each of those that sent the first.
        """
        taken = {
            session.column: message for session in sessions if (message := self.table.take(session))
        }
        went = [self.table.sessions[index] for index in taken]
        parts = max((session.parts for session in went), default=0)
        for part in range(parts):
            link = StreamLink(self.table, part, self._clock)
            if part:
                taken = link.receive([session.column for session in went if session.parts > part])
            self._compute(taken, link, part=part, more=part + 1 < parts)
        for session in went:
            if session.is_served:
                self.table.answer(session, None)

    def _compute(
        self, taken: Mapping[int, StepMessage], link: StreamLink, *, part: int, more: bool
    ) -> None:
        """Run a pass, and divide its seconds among its devices by the blocks that each leaves it."""
        began_s = self._clock() - link.waited_s
        self._end.serve(taken, link, part=part, more=more)
        took_s = self._clock() - link.waited_s - began_s
        places, blocks = list(taken), self.task.base.shape.blocks
        left = np.array([blocks - (self.task.rows[index].cut) for index in places])
        self._server_s[places] += took_s * left / max(left.sum(), 1)

    def _result(self) -> ServerRound:
        everyone, parts, log = self.table.sessions, self._end.parts(), self._end.log
        log.refused |= {session.column: session.refused for session in everyone if session.refused}
        weights = {
            index: weight
            for index, weight in enumerate(self.task.weights)
            if index not in log.refused
        }
        return ServerRound(
            mean_by_weight(dict(enumerate(parts.servers)), weights),
            mean_by_weight(dict(enumerate(parts.heads)), weights),
            parts,
            log,
            steps=tuple(session.step for session in everyone),
            broken=tuple(session.losses for session in everyone),
            listed_bytes=self._listed_bytes,
            server_s=self._server_s,
            order=self._order(),
        )

    def _order(self) -> tuple[int, ...]:
        choice, places = self._choice, range(len(self.task.rows))
        began = choice.served if isinstance(choice, Turns) else []
        return (*began, *(index for index in places if index not in began))


class StreamLink:
    """The link to devices at the other ends of streams; see `split.server.Link`."""

    def __init__(self, table: SessionTable, part: int, clock: Callable[[], float]) -> None:
        """Carry for the devices of a table, which are at a micro-batch of their step."""
        self._table, self._part, self._clock = table, part, clock
        self.waited_s = 0.0
        """Seconds spent in `receive`."""

    def send(self, column: int, kind: Kind, payload: bytes, *, loss: float = float("nan")) -> bool:
        """Put a message behind what waits for a device; a gradient moves it on."""
        session = self._table.sessions[column]
        if kind is Kind.HIDDEN:
            return self._table.ask(session, payload)
        return self._table.answer(session, payload, loss, more=self._part + 1 < session.parts)

    def refuse(self, column: int, reason: str) -> None:
        """End a device's stream, and its round."""
        self._table.end(self._table.sessions[column], "refused", reason)

    def receive(self, places: Iterable[int]) -> dict[int, StepMessage]:
        """Wait for the gradients of hidden states, or micro-batches; who takes too long is let go."""
        table, sessions = self._table, [self._table.sessions[index] for index in places]
        until, began_s = time.monotonic() + table.timing.answer_s, self._clock()
        with table.changed:
            while any(session.slot is None and session.outbox is not None for session in sessions):
                left_s = min(until, table.ends_at) - time.monotonic()
                if left_s <= 0:
                    break
                table.changed.wait(left_s)
            late = [session for session in sessions if session.slot is None]
        for session in late:
            table.end(
                session,
                "lapsed",
                f"the rest of its step took longer than {table.timing.answer_s:g} s",
            )
        self.waited_s += self._clock() - began_s
        found = {session.column: table.take(session) for session in sessions}
        return {index: message for index, message in found.items() if message is not None}
