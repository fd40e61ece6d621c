"""The server's side of a split round over streams: batch what has arrived, step, answer.

Each device advances at its own pace: a batch is whoever has arrived within a window of the first,
whatever step it is at. A device that dies between forward and backward has been learnt from, as in
`work.split`; the others never wait for it. It may come back in the same round and goes on at the
step after the last one the server has seen of it, with what it then has of its own adapters.

With an infinite window and no fault this is `work.split.split_round` with a shared server, number
for number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from airtune.cost.coded import bound_bytes
from airtune.engine.stream.body import (
    codec_of,
    codec_stream,
    get,
    kept_of,
    largest_body_bytes,
    put,
    read_beside,
    reads_of,
)
from airtune.engine.stream.message import Message, run_number
from airtune.engine.stream.seats import Seat, Table, Timing, new_token
from airtune.errors import CodecError, MethodError
from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived, ServerHalf
from airtune.model.lora import Adapters, Head
from airtune.model.state import GlobalState, current_base
from airtune.plan import Assignment, Bools, Floats, Workload, WorkSpec
from airtune.work.lanes import on_cpu, optimiser_of, step_if_finite
from airtune.work.train import TrainSettings


@dataclass(frozen=True, slots=True)
class SplitTask:
    """A split round as the server is given it."""

    run: str
    round: int
    base: BaseModel
    state: GlobalState
    rows: tuple[Assignment, ...]
    """One a device, each with a cut."""
    weights: tuple[float, ...]
    settings: TrainSettings
    work: WorkSpec
    workload: Workload
    seed: int
    timing: Timing = field(default_factory=Timing)


@dataclass(frozen=True, slots=True)
class ServerRound:
    """What the server has at the end of a round; columns follow the rows of the task."""

    adapters: Adapters
    """On the blocks from the smallest cut on."""
    head: Head
    losses: Floats
    """(steps, devices), NaN where a device took no step; of the server, so all NaN where labels
    stay and none came back."""
    up_bytes: Floats
    """(steps, devices), of messages without their headers."""
    down_bytes: Floats
    beside_bytes: Floats
    """Of `up_bytes`: labels and lengths."""
    up_bound_bytes: Floats
    """What the payloads would take at least, were their entries independent and normal."""
    down_bound_bytes: Floats
    steps: tuple[int, ...]
    """Steps each device has taken with the server."""
    refused: Mapping[int, str]
    """Device -> why the server put it out of the round."""
    broken: tuple[int, ...]
    """How often each device's stream broke."""
    batches: int
    """Passes the server has run."""
    skipped: int
    """Of these, those whose gradient was not finite and was not used."""


def check_task(task: SplitTask) -> None:
    """Refuse what the stream does not carry.

    Raises:
        MethodError: if the local work needs a server of another kind or a memory of samples.
    """
    work = task.work
    wrong = [
        text
        for is_wrong, text in (
            (work.server != "shared", f"server: {work.server} (shared is served)"),
            (work.device_frozen, "a frozen device part, whose samples both ends remember"),
            (any(row.codec.predict for row in task.rows), "a predictive codec"),
            (any(row.cut is None for row in task.rows), "a device without a cut"),
            (not task.rows, "no device"),
        )
        if is_wrong
    ]
    if wrong:
        raise MethodError(f"a split round over a network cannot have {'; '.join(wrong)}")


class SplitRound:
    """One round: a table that streams put into, and the loop that takes from it."""

    def __init__(self, task: SplitTask) -> None:
        """Prepare the server's half.

        Raises:
            MethodError: if the stream does not carry this work.
            ModelError: if a cut is outside the model.
        """
        check_task(task)
        self.task = task
        shape = (max(row.local_steps for row in task.rows), len(task.rows))
        self._losses = np.full(shape, np.nan)
        self._up, self._down, self._beside, self._up_bound, self._down_bound = np.zeros((5, *shape))
        self._base = current_base(task.base, task.state)
        self._stay = task.work.labels == "stay"
        self._half = ServerHalf(
            self._base.network, self._base.family, task.state.adapters,
            first=min(row.cut or 0 for row in task.rows), scale=task.settings.scale,
            dropout=task.settings.dropout,
            seed=derive_seed(task.seed, "split server", task.round),
            head=None if self._stay else task.state.head,
        )  # fmt: skip
        self._half.lora.train()
        self._parameters = self._half.lora.parameters()
        self._optimiser = optimiser_of(self._parameters, task.settings)
        self._batches = self._skipped = 0
        self.table = Table(
            run_number(task.run), task.round,
            tuple(Seat(row.device, place, row.local_steps, new_token())
                  for place, row in enumerate(task.rows)),
            task.timing, largest_body_bytes(self._base.shape, task.workload),
        )  # fmt: skip

    @property
    def tokens(self) -> dict[int, str]:
        """What lets each device in; for that device's eyes only."""
        return {seat.device: seat.token for seat in self.table.seats}

    def run(self) -> ServerRound:
        """Serve until every device is done, out, or past its time."""
        failure = "the server's half failed; the round is void"
        try:
            while seats := self.table.gather():
                self._serve(seats)
            failure = ""
        finally:
            self.table.close(failure)
        everyone = self.table.seats
        return ServerRound(
            on_cpu(self._half.adapters()), on_cpu(self._half.head()),
            self._losses, self._up, self._down, self._beside, self._up_bound, self._down_bound,
            steps=tuple(seat.step for seat in everyone),
            refused={seat.device: seat.refused for seat in everyone if seat.refused},
            broken=tuple(seat.losses for seat in everyone),
            batches=self._batches, skipped=self._skipped,
        )  # fmt: skip

    def _serve(self, seats: Sequence[Seat]) -> None:
        """Run one pass over the devices that have arrived and answer them."""
        joined: dict[int, Seat] = {}
        arrived: list[Arrived] = []
        kept: dict[int, Bools | None] = {}
        for seat in seats:
            message = self.table.take(seat)
            if message is None:
                continue
            try:
                part, kept[seat.place] = self._arrived(seat, message)
            except CodecError as error:
                self.table.end(seat, "refused", f"activation refused: {error}")
                continue
            arrived.append(part)
            joined[seat.place] = seat
        if not arrived:
            return
        self._half.lora.set_step(self._batches)
        gradients, losses = self._relay(arrived, joined) if self._stay else self._step(arrived)
        self._update()
        for part in arrived:
            seat, loss = joined[part.device], losses.get(part.device, float("nan"))
            self._losses[seat.step, seat.place] = loss
            gradient, payload = gradients.get(part.device), None
            if gradient is not None:
                payload = self._coded(
                    seat, gradient, part.attention_mask, "gradient", kept=kept[part.device]
                )
            elif not self._stay:
                self.table.end(seat, "refused", f"the loss was {loss} in step {seat.step}")
            self.table.answer(seat, payload, loss)

    def _arrived(self, seat: Seat, message: Message) -> tuple[Arrived, Bools | None]:
        """Take an activation apart; every size is checked before memory is taken.

        Raises:
            CodecError: if it is not a batch of this round.
        """
        task, shape, device = self.task, self._base.shape, self._base.device
        row = task.rows[seat.place]
        mask, labels = read_beside(
            message.beside, message.rows, shape, task.workload, labels_stay=self._stay
        )
        like = torch.empty(shape.width, device=device)
        activation, values = get(message.payload, mask, like)
        spec = codec_of(row.codec, task.work, "activation")
        here = seat.step, seat.place
        self._up[here], self._beside[here] = message.body_bytes, len(message.beside)
        self._up_bound[here] = bound_bytes(values.size, spec)
        mask = mask.to(device)
        labels = None if labels is None else labels.to(device)
        part = Arrived(seat.place, row.cut or 0, activation, mask, labels, task.weights[seat.place])
        return part, kept_of(values, spec, task.work)

    def _step(self, arrived: Sequence[Arrived]) -> tuple[dict[int, torch.Tensor], dict[int, float]]:
        result = self._half.step(arrived, chunk=self.task.workload.loss_chunk)
        losses = {
            part.device: float(loss) for part, loss in zip(arrived, result.losses, strict=True)
        }
        gradients = {
            part.device: gradient
            for part, gradient in zip(arrived, result.gradients, strict=True)
            if gradient is not None
        }
        return gradients, losses

    def _relay(
        self, arrived: Sequence[Arrived], joined: Mapping[int, Seat]
    ) -> tuple[dict[int, torch.Tensor], dict[int, float]]:
        """Where labels stay: hidden states out, their gradients back."""
        states = self._half.forward(arrived)
        reads = {part.device: reads_of(self._base, part.attention_mask) for part in arrived}
        for part, state in zip(arrived, states, strict=True):
            seat = joined[part.device]
            payload = self._coded(seat, state, reads[part.device], "hidden")
            if payload is not None:
                self.table.ask(seat, payload)
        returned: dict[int, torch.Tensor] = {}
        losses: dict[int, float] = {}
        for place, message in self._returned(joined).items():
            seat = joined[place]
            try:
                returned[place], values = get(message.payload, reads[place], states[0].new_empty(self._base.shape.width))  # fmt: skip
            except CodecError as error:
                self.table.end(seat, "refused", f"gradient refused: {error}")
                continue
            self._up[seat.step, place] += message.body_bytes
            spec = codec_of(self.task.rows[place].codec, self.task.work, "hidden gradient")
            self._up_bound[seat.step, place] += bound_bytes(values.size, spec)
            losses[place] = message.loss
        return self._half.backward(returned), losses

    def _returned(self, joined: Mapping[int, Seat]) -> dict[int, Message]:
        """Wait for the gradients of the hidden states; who takes too long is let go."""
        table = self.table
        with table.changed:
            table.changed.wait_for(
                lambda: all(seat.slot or seat.outbox is None for seat in joined.values()),
                timeout=table.timing.answer_s,
            )
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
        task, row = self.task, self.task.rows[seat.place]
        place = task.round, seat.step, seat.device
        spec = codec_of(row.codec, task.work, direction)
        try:
            payload = put(tensor, mask, spec, codec_stream(task.seed, place, direction), kept=kept)
        except CodecError as error:
            self.table.end(seat, "refused", f"{direction} refused: {error}")
            return None
        here = seat.step, seat.place
        self._down[here] += len(payload)
        values = int(mask.sum()) * tensor.shape[-1]
        known = kept is not None and spec.kind == "topk"
        self._down_bound[here] += bound_bytes(values, spec, known_mask=known)
        return payload

    def _update(self) -> None:
        """Take an optimiser step, unless the gradient is not finite."""
        self._batches += 1
        if self._optimiser is None:
            return
        limit = self.task.settings.max_grad_norm
        self._skipped += not step_if_finite(self._optimiser, self._parameters, limit=limit)
