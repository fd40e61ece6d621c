"""The server's end of a cut: it takes apart what came, runs a pass, learns, answers and counts.

Who takes part in a pass, and how messages travel, is for others to say; this end answers over a
`Link`. The server is one of three:

    shared      one server model, all devices in one pass (SFT, SplitLoRA)
    copies      one copy a device, averaged with the round (SplitFed V1)
    sequential  one server model that serves the devices one after the other (SplitFed V2)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch

from airtune.cost.coded import bound_bytes
from airtune.errors import CodecError
from airtune.model.cut import Arrived
from airtune.model.lora import Adapters, Head
from airtune.plan import Assignment, Bools, CodecSpec
from airtune.split.body import get, kept_of, laid_out, put, read_beside
from airtune.split.context import SplitContext
from airtune.split.half import TrainedHalf
from airtune.split.log import StepLog
from airtune.split.memory import Samples
from airtune.split.message import Kind, StepMessage
from airtune.split.samples import take_samples
from airtune.work.wire import unpacked

_ROUNDING = 1e-3

Tensors = dict[int, torch.Tensor]
"""By column."""


class Link(Protocol):
    """What carries a server's messages to the devices of a pass, by column, and theirs to it."""

    def send(self, column: int, kind: Kind, payload: bytes, *, loss: float = float("nan")) -> bool:
        """Send a device what it awaits; False = it is not there any more, and nothing went out."""
        ...

    def receive(self, columns: Iterable[int]) -> Mapping[int, StepMessage]:
        """Return what those devices answer that are still there; waits for them."""
        ...

    def refuse(self, column: int, reason: str) -> None:
        """Put a device out of the round."""
        ...


@dataclass(frozen=True, slots=True)
class _Pass:
    """One pass of the server: to whom it answers, and at which step each is."""

    link: Link
    steps: Mapping[int, int]
    part: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class ServerParts:
    """What the server holds at the end of a round; columns are devices."""

    servers: tuple[Adapters, ...]
    """Of the half that served each device, on the blocks that half holds."""
    heads: tuple[Head, ...]
    """{} where labels stay or none is trained."""
    passes: int
    """Of all copies together."""
    skipped: int
    """Of these, those whose gradient was not finite and was not used."""


class ServerEnd:
    """The server's half of a round, or one a device, and the log of what crossed."""

    def __init__(
        self,
        context: SplitContext,
        rows: Sequence[Assignment],
        weights: Sequence[float],
        *,
        memory: Mapping[int, Samples],
        examples: Sequence[int],
    ) -> None:
        """Prepare the server's half; a device's copy is made when it first comes.

        Args:
            context: The round's.
            rows: One a device, each with a cut.
            weights: One a device, positive; only the ratios count.
            memory: By column, what is remembered of the devices' samples, changed by the round.
            examples: How many each device has, where samples are remembered.

        Raises:
            ModelError: if a cut is outside the model.
        """
        self.context, self._rows, self._weights = context, tuple(rows), tuple(weights)
        self._memory, self._examples = memory, tuple(examples)
        self.log = StepLog.empty(max(row.local_steps for row in rows), len(rows))
        cuts = [row.cut for row in rows]
        self._trains_from = max(cuts) if context.work.device_frozen else 0
        self._firsts = cuts if context.work.server == "copies" else [min(cuts)] * len(cuts)
        self._halves: dict[int, TrainedHalf] = {}
        self._done: dict[int, ServerParts] = {}
        self._kept: dict[int, Bools | None] = {}
        self._shares: dict[int, float] = {}
        self._totals: dict[TrainedHalf, float] = {}
        if context.work.server != "copies":
            self._half(0)

    def micro_batches(self, column: int) -> int:
        """Return into how many parts a device divides its batch over a stream."""
        return self.context.parts(self._rows[column].codec)

    def serve(
        self, messages: Mapping[int, StepMessage], link: Link, *, part: int = 0, more: bool = False
    ) -> None:
        """Run a pass over the activations that came, of each half, and answer.

        A device whose message, loss or gradient is unusable is put out of the round, alone.

        Args:
            messages: By column; nothing in them is trusted but kind and step.
            link: To these devices.
            part: Which micro-batches of the step these are.
            more: Some device has another; the server learns from all of them together.
        """
        arrived = []
        if not part:
            self._shares, self._totals = {}, {}
        for column, message in messages.items():
            try:
                arrived.append(self._arrived(column, message))
            except CodecError as error:
                link.refuse(column, f"activation refused: {error}")
        going = _Pass(link, {one.device: messages[one.device].step for one in arrived}, part, more)
        groups: dict[TrainedHalf, list[Arrived]] = {}
        for one in arrived:
            groups.setdefault(self._half(one.device), []).append(one)
        learn = self._relay if self.context.labels_stay else self._learn
        gradients, losses = learn(groups, going)
        for one in arrived:
            column, loss = one.device, losses.get(one.device, float("nan"))
            if one.share and not self.context.labels_stay:
                loss *= one.share
            before = self.log.losses[going.steps[column], column] if part else 0.0
            self.log.losses[going.steps[column], column] = before + (loss if one.share else 0.0)
            if column in gradients:
                self._send(
                    going,
                    column,
                    Kind.GRADIENT,
                    gradients[column],
                    one.attention_mask,
                    loss=loss if one.share else 0.0,
                )
            elif not self.context.labels_stay:
                link.refuse(column, f"the loss was {loss} in step {going.steps[column]}")

    def parts(self, column: int | None = None) -> ServerParts:
        """Return what the server holds of a device, or of all; a copy that was asked for is let go."""
        columns = range(len(self._rows)) if column is None else (column,)
        held = [self._held(one) for one in columns]
        each = {id(item): item for item in held}.values()
        return ServerParts(
            tuple(item.servers[0] for item in held),
            tuple(item.heads[0] for item in held),
            sum(item.passes for item in each),
            sum(item.skipped for item in each),
        )

    def _half(self, column: int) -> TrainedHalf:
        """Return the half that serves a device: the same for all, or a copy each."""
        key = column if self.context.work.server == "copies" else 0
        if key not in self._halves:
            self._halves[key] = TrainedHalf(
                self.context, first=self._firsts[key], trains_from=self._trains_from
            )
        return self._halves[key]

    def _held(self, column: int) -> ServerParts:
        key = column if self.context.work.server == "copies" else 0
        if key not in self._done:
            half = self._half(key)
            self._done[key] = ServerParts(
                (half.adapters(),), (half.head(),), half.passes, half.skipped
            )
            del self._halves[key]
        return self._done[key]

    def _learn(
        self, groups: Mapping[TrainedHalf, list[Arrived]], going: _Pass
    ) -> tuple[Tensors, dict[int, float]]:
        """Where labels travel: losses, and the gradients of the activations."""
        gradients: Tensors = {}
        losses: dict[int, float] = {}
        for half, arrived in groups.items():
            if not going.part:
                self._totals[half] = sum(one.weight for one in arrived)
            found, seen = half.step(
                arrived, learns=not going.more, total_weight=self._totals.get(half)
            )
            gradients |= found
            losses |= seen
        if going.part and not going.more:
            for half in self._totals.keys() - groups.keys():
                half.learn()
        return gradients, losses

    def _relay(
        self, groups: Mapping[TrainedHalf, list[Arrived]], going: _Pass
    ) -> tuple[Tensors, dict[int, float]]:
        """Where labels stay: last hidden states out, their gradients back."""
        reads: Tensors = {}
        for half, arrived in groups.items():
            states = half.forward(arrived)
            for part in arrived:
                column, read = part.device, self.context.reads(part.attention_mask)
                if self._send(going, column, Kind.HIDDEN, states[column], read):
                    reads[column] = read
        returned: Tensors = {}
        losses: dict[int, float] = {}
        for column, message in going.link.receive(reads).items():
            try:
                returned[column] = self._hidden_gradient(column, message, reads[column])
            except CodecError as error:
                going.link.refuse(column, f"gradient refused: {error}")
                continue
            losses[column] = message.loss
        gradients: Tensors = {}
        for half, arrived in groups.items():
            mine = [part.device for part in arrived if part.device in returned]
            gradients |= half.backward({column: returned[column] for column in mine})
        return gradients, losses

    def _arrived(self, column: int, message: StepMessage) -> Arrived:
        """Take an activation apart; every size is checked before memory is taken.

        Raises:
            CodecError: if it is not a batch of this round.
        """
        context, row = self.context, self._rows[column]
        spec = context.codec(row.codec, "activation")
        self._kept[column] = None
        if context.remembers(row.codec):
            activation, mask, labels = self._samples(column, message, spec)
        else:
            size = context.workload.batch // context.parts(row.codec)
            mask, labels = read_beside(
                message.beside,
                message.rows,
                context.shape,
                replace(context.workload, batch=size),
                labels_stay=context.labels_stay,
            )
            activation, values = get(message.payload, mask, context.like)
            self._kept[column] = kept_of(message.payload, values.size, spec, context.work)
            self._went_up(column, message, bound_bytes(values.size, spec))
        return Arrived(
            column,
            row.cut,
            activation,
            mask.to(activation.device),
            None if labels is None else labels.to(activation.device),
            self._weights[column],
            self._share(column, message),
        )

    def _share(self, column: int, message: StepMessage) -> float:
        """Return the part of a step's loss that a micro-batch makes up.

        Raises:
            CodecError: if it is none, or more than what is left of the step.
        """
        before = self._shares.get(column, 0.0)
        if not (message.share >= 0.0 and before + message.share <= 1.0 + _ROUNDING):
            raise CodecError(
                f"micro-batches make up 1 of a step's loss together, got {message.share:g} after "
                f"{before:g}; it is refused"
            )
        self._shares[column] = before + message.share
        return message.share

    def _samples(
        self, column: int, message: StepMessage, spec: CodecSpec
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Take an activation apart where both ends remember samples; return it, mask and labels."""
        context, stay = self.context, self.context.labels_stay
        taken = take_samples(
            message,
            self._memory[column],
            examples=self._examples[column],
            shape=context.shape,
            workload=context.workload,
            labels_stay=stay,
            again=not context.work.device_frozen,
        )
        bound = sum(bound_bytes(size, spec) for size in taken.sent_values)
        self._went_up(column, message, bound, computed=taken.computed)
        lengths = np.array([len(rows) for rows in taken.rows])
        mask, labels = laid_out(lengths, taken.labels, context.shape, labels_stay=stay)
        return unpacked(np.concatenate(taken.rows), mask, context.like), mask, labels

    def _went_up(
        self, column: int, message: StepMessage, bound: float, *, computed: float = 1.0
    ) -> None:
        self.log.went_up(message.step, column, len(message.payload), bound, len(message.beside))
        self.log.computed[message.step, column] = computed

    def _hidden_gradient(
        self, column: int, message: StepMessage, reads: torch.Tensor
    ) -> torch.Tensor:
        """Return the gradient of a last hidden state, at the positions (batch, tokens) that are read.

        Raises:
            CodecError: if it is damaged or of another shape.
        """
        gradient, values = get(message.payload, reads, self.context.like)
        spec = self.context.codec(self._rows[column].codec, "hidden gradient")
        bound = bound_bytes(values.size, spec)
        self.log.went_up(message.step, column, message.body_bytes, bound)
        return gradient

    def _send(
        self,
        going: _Pass,
        column: int,
        kind: Kind,
        tensor: torch.Tensor,
        mask: torch.Tensor,
        *,
        loss: float = float("nan"),
    ) -> bool:
        """Send a device a tensor at marked positions; False if it got nothing.

        A device whose numbers cannot be coded is put out of the round.
        """
        context, row, link, step = self.context, self._rows[column], going.link, going.steps[column]
        if kind is Kind.GRADIENT and context.work.device_frozen:
            return link.send(column, kind, b"", loss=loss)
        direction = kind.name.lower()
        spec = context.codec(row.codec, direction)
        is_masked = kind is Kind.GRADIENT and spec.kind == "topk"
        kept = self._kept[column] if is_masked else None
        try:
            stream = context.stream(step, row.device, direction, going.part)
            payload = put(tensor, mask, spec, stream, kept=kept)
        except CodecError as error:
            link.refuse(column, f"{direction} refused: {error}")
            return False
        if not link.send(column, kind, payload, loss=loss):
            return False
        size = int(mask.sum()) * tensor.shape[-1]
        bound = bound_bytes(size, spec, known_mask=kept is not None)
        self.log.went_down(step, column, len(payload), bound)
        return True


def mean_by_weight(servers: Mapping[int, Adapters], weights: Mapping[int, float]) -> Adapters:
    """Return the weighted mean over servers, each tensor over those that hold it.

    Args:
        servers: By column.
        weights: By column, of those that count; {} = all count alike.
    """
    chosen = {index: servers[index] for index in weights} or dict(servers)
    if len({id(tensors) for tensors in chosen.values()}) == 1:
        return next(iter(chosen.values()))
    mean: Adapters = {}
    for name in dict.fromkeys(name for tensors in chosen.values() for name in tensors):
        holders = {index: item[name] for index, item in chosen.items() if name in item}
        total = sum(weights.get(index, 1.0) for index in holders)
        parts = [item * (weights.get(index, 1.0) / total) for index, item in holders.items()]
        mean[name] = torch.stack(parts).sum(0)
    return mean
