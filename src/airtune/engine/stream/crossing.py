"""What crosses between the server and each device of a round: taken apart, put together, counted."""

from __future__ import annotations

import torch

from airtune.cost.coded import bound_bytes
from airtune.engine.stream.body import codec_of, codec_stream, get, kept_of, put, read_beside
from airtune.engine.stream.message import Message
from airtune.engine.stream.seats import Seat
from airtune.engine.stream.task import SplitTask
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived
from airtune.plan import Bools
from airtune.work.lanes import Ledger


class Crossing:
    """The server's end of what crosses, and the ledger of it."""

    def __init__(self, task: SplitTask, base: BaseModel) -> None:
        """Begin with nothing crossed; `base` with what has been merged into it."""
        self._task, self._base = task, base
        self._stay = task.work.labels == "stay"
        self.ledger = Ledger.empty(max(row.local_steps for row in task.rows), len(task.rows))

    def activation(self, seat: Seat, message: Message) -> tuple[Arrived, Bools | None]:
        """Take an activation apart; every size is checked before memory is taken.

        Returns:
            What arrived, and the positions that both ends know of it, None where unused.

        Raises:
            CodecError: if it is not a batch of this round.
        """
        task, shape, device = self._task, self._base.shape, self._base.device
        row = task.rows[seat.place]
        mask, labels = read_beside(
            message.beside, message.rows, shape, task.workload, labels_stay=self._stay
        )
        activation, values = get(message.payload, mask, torch.empty(shape.width, device=device))
        spec = codec_of(row.codec, task.work, "activation")
        bound = bound_bytes(values.size, spec)
        self.ledger.went_up(seat.step, seat.place, len(message.payload), bound)
        self.ledger.went_beside(seat.step, seat.place, len(message.beside))
        mask = mask.to(device)
        labels = None if labels is None else labels.to(device)
        part = Arrived(seat.place, row.cut or 0, activation, mask, labels, task.weights[seat.place])
        return part, kept_of(values, spec, task.work)

    def hidden_gradient(self, seat: Seat, message: Message, reads: torch.Tensor) -> torch.Tensor:
        """Return the gradient of a last hidden state, at the positions (batch, tokens) that are read.

        Raises:
            CodecError: if it is damaged or of another shape.
        """
        like = torch.empty(self._base.shape.width, device=self._base.device)
        gradient, values = get(message.payload, reads, like)
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
