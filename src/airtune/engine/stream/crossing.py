"""What crosses between the server and each device of a round: taken apart, put together, counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch

from airtune.cost.coded import bound_bytes
from airtune.engine.stream.body import (
    codec_of,
    codec_stream,
    get,
    kept_of,
    laid_out,
    put,
    read_beside,
)
from airtune.engine.stream.memory import Samples, list_of
from airtune.engine.stream.message import Message
from airtune.engine.stream.samples import take_samples
from airtune.engine.stream.seats import Seat
from airtune.engine.stream.task import SplitTask
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived
from airtune.plan import Bools, CodecSpec
from airtune.work.lanes import StepLog
from airtune.work.wire import unpacked


class Crossing:
    """The server's end of what crosses, and the ledger of it."""

    def __init__(self, task: SplitTask, base: BaseModel, memory: Mapping[int, Samples]) -> None:
        """Begin with nothing crossed.

        Args:
            task: The round.
            base: With what has been merged into it.
            memory: Samples by device, of those whose samples are remembered.
        """
        self._task, self._base, self._memory = task, base, memory
        self._stay = task.work.labels == "stay"
        self.ledger = StepLog.empty(max(row.local_steps for row in task.rows), len(task.rows))
        self.listed_bytes = np.zeros(len(task.rows))
        """Of the lists with which streams began, by place; in no figure of the ledger."""

    def listed(self, seat: Seat) -> bytes:
        """Return the list of what is remembered of a device, with which its stream begins."""
        if seat.is_done or seat.device not in self._memory:
            return b""
        listed = list_of(self._memory[seat.device])
        self.listed_bytes[seat.place] += len(listed)
        return listed

    def activation(self, seat: Seat, message: Message) -> tuple[Arrived, Bools | None]:
        """Take an activation apart; every size is checked before memory is taken.

        Returns:
            What arrived, and the positions that both ends know of it, None where unused.

        Raises:
            CodecError: if it is not a batch of this round.
        """
        task, shape = self._task, self._base.shape
        spec = codec_of(task.rows[seat.place].codec, task.work, "activation")
        if seat.device in self._memory:
            return self._samples(seat, message, spec), None
        mask, labels = read_beside(
            message.beside, message.rows, shape, task.workload, labels_stay=self._stay
        )
        activation, values = get(message.payload, mask, self._like())
        self._went_up(seat, message, bound_bytes(values.size, spec))
        part = self._arrived(seat, activation, mask, labels)
        return part, kept_of(message.payload, values.size, spec, task.work)

    def _samples(self, seat: Seat, message: Message, spec: CodecSpec) -> Arrived:
        """Take an activation apart where both ends remember samples."""
        task, shape = self._task, self._base.shape
        taken = take_samples(
            message, self._memory[seat.device], examples=task.samples[seat.place], shape=shape,
            workload=task.workload, labels_stay=self._stay, again=not task.work.device_frozen,
        )  # fmt: skip
        bound = sum(bound_bytes(size, spec) for size in taken.sent_values)
        self._went_up(seat, message, bound, computed=taken.computed)
        lengths = np.array([len(rows) for rows in taken.rows])
        mask, labels = laid_out(lengths, taken.labels, shape, labels_stay=self._stay)
        activation = unpacked(np.concatenate(taken.rows), mask, self._like())
        return self._arrived(seat, activation, mask, labels)

    def _arrived(
        self, seat: Seat, activation: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor | None
    ) -> Arrived:
        task, device = self._task, self._base.device
        return Arrived(
            seat.place, task.rows[seat.place].cut or 0, activation, mask.to(device),
            None if labels is None else labels.to(device), task.weights[seat.place],
        )  # fmt: skip

    def _went_up(
        self, seat: Seat, message: Message, bound: float, *, computed: float = 1.0
    ) -> None:
        here = seat.step, seat.place
        self.ledger.went_up(*here, len(message.payload), bound)
        self.ledger.went_beside(*here, len(message.beside))
        self.ledger.computed[here] = computed

    def _like(self) -> torch.Tensor:
        return torch.empty(self._base.shape.width, device=self._base.device)

    def hidden_gradient(self, seat: Seat, message: Message, reads: torch.Tensor) -> torch.Tensor:
        """Return the gradient of a last hidden state, at the positions (batch, tokens) that are read.

        Raises:
            CodecError: if it is damaged or of another shape.
        """
        gradient, values = get(message.payload, reads, self._like())
        spec = codec_of(self._task.rows[seat.place].codec, self._task.work, "hidden gradient")
        bound = bound_bytes(values.size, spec)
        self.ledger.went_up(seat.step, seat.place, message.body_bytes, bound)
        return gradient

    def coded(
        self, seat: Seat, tensor: torch.Tensor, mask: torch.Tensor, direction: str,
        *, kept: Bools | None = None,
    ) -> bytes:  # fmt: skip
        """Return what goes to a device of a tensor, at marked positions.

        Raises:
            CodecError: if its numbers are not finite.
        """
        task, row = self._task, self._task.rows[seat.place]
        stream = codec_stream(task.seed, (task.round, seat.step, seat.device), direction)
        spec = codec_of(row.codec, task.work, direction)
        payload = put(tensor, mask, spec, stream, kept=kept)
        known = kept is not None and spec.kind == "topk"
        bound = bound_bytes(int(mask.sum()) * tensor.shape[-1], spec, known_mask=known)
        self.ledger.went_down(seat.step, seat.place, len(payload), bound)
        return payload
