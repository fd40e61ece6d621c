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
            run_number(task.run), task.round,
            tuple(SplitSession(row.device, place, row.local_steps, new_token(),
                       parts=self._end.micro_batches(place))
                  for place, row in enumerate(task.rows)),
            replace(task.timing, window_s=0.0) if task.work.server == "copies" else task.timing,
            largest_body_bytes(task.base.shape, task.workload), self._listed,
        )  # fmt: skip
        self._choice = self._chosen()

    @property
    def tokens(self) -> dict[int, str]:
        """What lets each device in; for that device's eyes only."""
        return {seat.device: seat.token for seat in self.table.seats}

    def run(self) -> ServerRound:
        """Serve until every device is done, out, or past its time."""
        failure = "the server's half failed; the round is void"
        try:
            while seats := gather(self.table, self._choice):
                self._serve(seats)
            failure = ""
        finally:
            self.table.close(failure)
        return self._result()

    def _listed(self, seat: SplitSession) -> bytes:
        """Return the list of what is remembered of a device, with which its stream begins."""
        if seat.is_done or seat.place not in self._memory:
            return b""
        listed = list_of(self._memory[seat.place])
        self._listed_bytes[seat.place] += len(listed)
        return listed

    def _chosen(self) -> Choice:
        """Return whom to serve when; a sequential server's order is drawn anew every round."""
        task, seats = self.task, self.table.seats
        if task.work.server != "sequential":
            return Batches()
        order = generator(task.seed, "split order", task.round).permutation(len(seats))
        return turns_of(seats, order.tolist())

    def _serve(self, seats: Sequence[SplitSession]) -> None:
        """Run one pass over the devices that have arrived, and move them on.

        Where their batches are divided, a pass has as many parts, each of those that sent the first.
        """
        taken = {seat.place: message for seat in seats if (message := self.table.take(seat))}
        went = [self.table.seats[place] for place in taken]
        parts = max((seat.parts for seat in went), default=0)
        for part in range(parts):
            link = StreamLink(self.table, part, self._clock)
            if part:
                taken = link.receive([seat.place for seat in went if seat.parts > part])
            self._compute(taken, link, part=part, more=part + 1 < parts)
        for seat in went:
            if seat.is_served:
                self.table.answer(seat, None)

    def _compute(
        self, taken: Mapping[int, StepMessage], link: StreamLink, *, part: int, more: bool
    ) -> None:
        """Run a pass, and divide its seconds among its devices by the blocks that each leaves it."""
        began_s = self._clock() - link.waited_s
        self._end.serve(taken, link, part=part, more=more)
        took_s = self._clock() - link.waited_s - began_s
        places, blocks = list(taken), self.task.base.shape.blocks
        left = np.array([blocks - (self.task.rows[place].cut or 0) for place in places])
        self._server_s[places] += took_s * left / max(left.sum(), 1)

    def _result(self) -> ServerRound:
        everyone, parts, log = self.table.seats, self._end.parts(), self._end.log
        log.refused |= {seat.place: seat.refused for seat in everyone if seat.refused}
        weights = {
            place: weight
            for place, weight in enumerate(self.task.weights)
            if place not in log.refused
        }
        return ServerRound(
            mean_by_weight(dict(enumerate(parts.servers)), weights),
            mean_by_weight(dict(enumerate(parts.heads)), weights), parts, log,
            steps=tuple(seat.step for seat in everyone),
            broken=tuple(seat.losses for seat in everyone),
            listed_bytes=self._listed_bytes, server_s=self._server_s, order=self._order(),
        )  # fmt: skip

    def _order(self) -> tuple[int, ...]:
        choice, places = self._choice, range(len(self.task.rows))
        began = choice.served if isinstance(choice, Turns) else []
        return (*began, *(place for place in places if place not in began))


class StreamLink:
    """The link to devices at the other ends of streams; see `split.server.Link`."""

    def __init__(self, table: SessionTable, part: int, clock: Callable[[], float]) -> None:
        """Carry for the devices of a table, which are at a micro-batch of their step."""
        self._table, self._part, self._clock = table, part, clock
        self.waited_s = 0.0
        """Seconds spent in `receive`."""

    def send(self, place: int, kind: Kind, payload: bytes, *, loss: float = float("nan")) -> bool:
        """Put a message behind what waits for a device; a gradient moves it on."""
        seat = self._table.seats[place]
        if kind is Kind.HIDDEN:
            return self._table.ask(seat, payload)
        return self._table.answer(seat, payload, loss, more=self._part + 1 < seat.parts)

    def refuse(self, place: int, reason: str) -> None:
        """End a device's stream, and its round."""
        self._table.end(self._table.seats[place], "refused", reason)

    def receive(self, places: Iterable[int]) -> dict[int, StepMessage]:
        """Wait for the gradients of hidden states, or micro-batches; who takes too long is let go."""
        table, seats = self._table, [self._table.seats[place] for place in places]
        until, began_s = time.monotonic() + table.timing.answer_s, self._clock()
        with table.changed:
            while any(seat.slot is None and seat.outbox is not None for seat in seats):
                left_s = min(until, table.ends_at) - time.monotonic()
                if left_s <= 0:
                    break
                table.changed.wait(left_s)
            late = [seat for seat in seats if seat.slot is None]
        for seat in late:
            table.end(
                seat, "lapsed", f"the rest of its step took longer than {table.timing.answer_s:g} s"
            )
        self.waited_s += self._clock() - began_s
        found = {seat.place: table.take(seat) for seat in seats}
        return {place: message for place, message in found.items() if message is not None}
