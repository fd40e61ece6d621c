"""The server's side of a split round over streams: batch what has arrived, step, answer.

Each device advances at its own pace: a batch is whoever has arrived within a window of the first,
whatever step it is at. A device that dies between forward and backward has been learnt from, as in
`work.split`; the others never wait for it. It may come back in the same round and goes on at the
step after the last one the server has seen of it, with what it then has of its own adapters.

Where each device has a copy of the server, no pass waits for who has not arrived; where labels stay,
those that have wait for one another's heads. A sequential server takes them one after the other.

With an infinite window and no fault this is `work.split.split_round`, number for number.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from airtune.engine.stream.body import largest_body_bytes, reads_of
from airtune.engine.stream.crossing import Crossing
from airtune.engine.stream.gather import Batches, Choice, Turns, gather, turns_of
from airtune.engine.stream.memory import ServerMemory
from airtune.engine.stream.message import Message, run_number
from airtune.engine.stream.seats import Seat, Table, new_token
from airtune.engine.stream.task import ServerRound, SplitTask, check_task
from airtune.errors import CodecError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived
from airtune.model.state import current_base
from airtune.plan import Bools
from airtune.work.half import TrainedHalf
from airtune.work.split import mean_by_weight

Group = tuple[TrainedHalf, list[Arrived]]
"""A half, and what it serves in one pass."""
Learnt = tuple[dict[int, torch.Tensor], dict[int, float]]
"""Gradients of activations and losses, by column."""


class SplitRound:
    """One round: a table that streams put into, and the loop that takes from it."""

    def __init__(self, task: SplitTask, memory: ServerMemory) -> None:
        """Prepare the server's half, or one a device.

        Args:
            task: The round.
            memory: What is remembered of samples; the round adds to it.

        Raises:
            MethodError: if the stream does not carry this work.
            ModelError: if a cut is outside the model.
        """
        check_task(task)
        self.task = task
        self._base = current_base(task.base, task.state)
        self._stay = task.work.labels == "stay"
        self._halves = _halves(task, self._base)
        self._crossing = Crossing(task, self._base, memory.begin(task))
        self.table = Table(
            run_number(task.run), task.round,
            tuple(Seat(row.device, place, row.local_steps, new_token())
                  for place, row in enumerate(task.rows)),
            replace(task.timing, window_s=0.0) if task.work.server == "copies" else task.timing,
            largest_body_bytes(self._base.shape, task.workload), self._crossing.listed,
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

    def _chosen(self) -> Choice:
        """Return whom to serve when; a sequential server's order is drawn anew every round."""
        task, seats = self.task, self.table.seats
        if task.work.server != "sequential":
            return Batches()
        order = generator(task.seed, "split order", task.round).permutation(len(seats))
        return turns_of(seats, order.tolist())

    def _result(self) -> ServerRound:
        everyone, ledger = self.table.seats, self._crossing.ledger
        halves = dict.fromkeys(self._halves)
        held = {half: (half.adapters(), half.head()) for half in halves}
        servers, heads = zip(*(held[half] for half in self._halves), strict=True)
        weights = {
            seat.place: self.task.weights[seat.place] for seat in everyone if not seat.refused
        }
        return ServerRound(
            mean_by_weight(dict(enumerate(servers)), weights),
            mean_by_weight(dict(enumerate(heads)), weights), servers, heads,
            ledger.losses, ledger.up_bytes, ledger.down_bytes, ledger.beside_bytes,
            ledger.up_bound_bytes, ledger.down_bound_bytes,
            steps=tuple(seat.step for seat in everyone),
            refused={seat.device: seat.refused for seat in everyone if seat.refused},
            broken=tuple(seat.losses for seat in everyone),
            batches=sum(half.passes for half in halves),
            skipped=sum(half.skipped for half in halves),
            computed=ledger.computed, listed_bytes=self._crossing.listed_bytes,
            order=self._order(),
        )  # fmt: skip

    def _order(self) -> tuple[int, ...]:
        choice, places = self._choice, range(len(self.task.rows))
        began = choice.served if isinstance(choice, Turns) else []
        return (*began, *(place for place in places if place not in began))

    def _serve(self, seats: Sequence[Seat]) -> None:
        """Run one pass over the devices that have arrived, of each half, and answer them."""
        joined: dict[int, Seat] = {}
        arrived: list[Arrived] = []
        kept: dict[int, Bools | None] = {}
        for seat in seats:
            message = self.table.take(seat)
            if message is None:
                continue
            try:
                part, kept[seat.place] = self._crossing.activation(seat, message)
            except CodecError as error:
                self.table.end(seat, "refused", f"activation refused: {error}")
                continue
            arrived.append(part)
            joined[seat.place] = seat
        groups = self._groups(arrived)
        gradients, losses = self._relay(groups, joined) if self._stay else self._step(groups)
        for part in arrived:
            seat, loss = joined[part.device], losses.get(part.device, float("nan"))
            self._crossing.ledger.losses[seat.step, seat.place] = loss
            gradient, payload = gradients.get(part.device), None
            if gradient is not None and self.task.work.device_frozen:
                payload = b""
            elif gradient is not None:
                payload = self._coded(
                    seat, gradient, part.attention_mask, "gradient", kept=kept[part.device]
                )
            elif not self._stay:
                self.table.end(seat, "refused", f"the loss was {loss} in step {seat.step}")
            self.table.answer(seat, payload, loss)

    def _groups(self, arrived: Sequence[Arrived]) -> list[Group]:
        """Return what arrived by the half that serves it."""
        groups: dict[TrainedHalf, list[Arrived]] = {}
        for part in arrived:
            groups.setdefault(self._halves[part.device], []).append(part)
        return list(groups.items())

    def _step(self, groups: Sequence[Group]) -> Learnt:
        gradients: dict[int, torch.Tensor] = {}
        losses: dict[int, float] = {}
        for half, arrived in groups:
            found, seen = half.step(arrived)
            gradients |= found
            losses |= seen
        return gradients, losses

    def _relay(self, groups: Sequence[Group], joined: Mapping[int, Seat]) -> Learnt:
        """Where labels stay: hidden states out, their gradients back."""
        reads: dict[int, torch.Tensor] = {}
        for half, arrived in groups:
            states = half.forward(arrived)
            for part in arrived:
                place, seat = part.device, joined[part.device]
                reads[place] = reads_of(self._base, part.attention_mask)
                payload = self._coded(seat, states[place], reads[place], "hidden")
                if payload is not None:
                    self.table.ask(seat, payload)
        returned: dict[int, torch.Tensor] = {}
        losses: dict[int, float] = {}
        for place, message in self._returned(joined).items():
            seat = joined[place]
            try:
                returned[place] = self._crossing.hidden_gradient(seat, message, reads[place])
            except CodecError as error:
                self.table.end(seat, "refused", f"gradient refused: {error}")
                continue
            losses[place] = message.loss
        gradients: dict[int, torch.Tensor] = {}
        for half, arrived in groups:
            mine = {part.device for part in arrived} & returned.keys()
            gradients |= half.backward({place: returned[place] for place in mine})
        return gradients, losses

    def _returned(self, joined: Mapping[int, Seat]) -> dict[int, Message]:
        """Wait for the gradients of the hidden states; who takes too long is let go."""
        table = self.table
        until = time.monotonic() + table.timing.answer_s
        with table.changed:
            while any(seat.slot is None and seat.outbox is not None for seat in joined.values()):
                left_s = min(until, table.ends_at) - time.monotonic()
                if left_s <= 0:
                    break
                table.changed.wait(left_s)
            late = [seat for seat in joined.values() if seat.slot is None]
        for seat in late:
            table.end(seat, "lapsed", f"the head took longer than {table.timing.answer_s:g} s")
        found = {place: self.table.take(seat) for place, seat in joined.items()}
        return {place: message for place, message in found.items() if message is not None}

    def _coded(
        self, seat: Seat, tensor: torch.Tensor, mask: torch.Tensor, direction: str,
        *, kept: Bools | None = None,
    ) -> bytes | None:  # fmt: skip
        """Return what goes to a device; None if its numbers cannot be coded and it is refused."""
        try:
            return self._crossing.coded(seat, tensor, mask, direction, kept=kept)
        except CodecError as error:
            self.table.end(seat, "refused", f"{direction} refused: {error}")
            return None


def _halves(task: SplitTask, base: BaseModel) -> tuple[TrainedHalf, ...]:
    """Return the half that serves each row: the same for all, or a copy each."""
    cuts = [row.cut or 0 for row in task.rows]
    trains_from = max(cuts) if task.work.device_frozen else 0
    made = partial(
        TrainedHalf, base, task.state, settings=task.settings, work=task.work,
        workload=task.workload, seed=task.seed, round=task.round, trains_from=trains_from,
    )  # fmt: skip
    if task.work.server == "copies":
        return tuple(made(first=cut) for cut in cuts)
    return (made(first=min(cuts)),) * len(cuts)
