"""The device's end of a cut: its blocks, its adapters, what it sends and what it learns.

One end holds one device, or several that cut alike on one stacked half, as a process that plays many
devices has them.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch

from airtune.errors import CodecError
from airtune.keys import derive_seed
from airtune.model.batch import Batch
from airtune.model.cut import DeviceHalf
from airtune.model.lora import Adapters, Head
from airtune.model.loss import scored
from airtune.plan import Bools, Ints
from airtune.split.body import beside_of, get, kept_of, put
from airtune.split.context import SplitContext, SplitJob
from airtune.split.half import on_cpu, optimiser_of
from airtune.split.memory import Samples, agree
from airtune.split.message import Kind, StepMessage
from airtune.split.samples import put_samples
from airtune.work.batches import collate_examples, join_examples, round_batches
from airtune.work.gradients import clip_
from airtune.work.wire import packed


class DeviceEnd:
    """Devices of one cut, rank and number of steps: `send`, where labels stay `finish`, `learn`."""

    def __init__(
        self,
        context: SplitContext,
        jobs: Mapping[int, SplitJob],
        *,
        memory: Mapping[int, Samples] | None = None,
        refused: dict[int, str] | None = None,
    ) -> None:
        """Prepare the half and draw the batches.

        Args:
            context: The round's.
            jobs: By column; at least one.
            memory: By column, what each remembers of its samples, changed by the round; None =
                nothing.
            refused: By column, why a device is out; who breaks is added, who is in it does nothing.

        Raises:
            ModelError: if the cut is outside the model.
            DataError: if a device has no example.
        """
        self.context, self.jobs = context, dict(jobs)
        self.refused = {} if refused is None else refused
        self._memory = {index: {} for index in jobs} if memory is None else memory
        first = next(iter(jobs.values()))
        self.cut, self.steps = first.row.cut, first.row.local_steps
        state, work, seed, round = context.state, context.work, context.seed, context.round
        heads = [state.head] * len(jobs) if state.head else []
        self._half = DeviceHalf(
            context.base.network,
            context.base.family,
            [context.own_adapters(first.row)] * len(jobs),
            cut=self.cut,
            scale=context.settings.scale,
            dropout=0.0 if work.device_frozen else context.settings.dropout,
            seeds=[derive_seed(seed, "split", round, job.device) for job in jobs.values()],
            heads=heads if context.labels_stay else None,
        )
        self._half.lora.train()
        if work.device_frozen:
            self._half.body.requires_grad_(requires_grad=False)
        self._parameters = self._half.lora.parameters()
        self._optimiser = optimiser_of(self._parameters, context.settings)
        self._drawn = {
            index: round_batches(
                len(job.data),
                steps=self.steps,
                batch=context.workload.batch,
                seed=seed,
                round=round,
                device=job.device,
            )
            for index, job in jobs.items()
        }
        self._step = -1
        self._batch: Batch
        self._part = 0
        self._masks: list[torch.Tensor] = []
        self._kept: dict[tuple[int, int], Bools | None] = {}
        """By micro-batch and column."""

    @property
    def answer_bytes(self) -> int:
        """What all that is trained takes in single precision."""
        return 4 * sum(parameter.numel() for parameter in self._parameters)

    def active(self) -> list[int]:
        """Return the columns of the devices that are still in the round."""
        return [index for index in self.jobs if index not in self.refused]

    def agree(self, listed: bytes) -> None:
        """Forget the samples that the server, by its list, does not have as this end has them.

        Raises:
            CodecError: if it is no list.
        """
        for samples in self._memory.values():
            agree(samples, listed)

    @property
    def parts(self) -> int:
        """Micro-batches of a step over a stream; for a device alone."""
        [job] = self.jobs.values()
        return self.context.parts(job.row.codec)

    def send(self, step: int, *, part: int = 0, parts: int = 1) -> dict[int, StepMessage]:
        """Run the devices' blocks; return what each sends, by column.

        Args:
            step: Of the round.
            part: Which micro-batch; those of a step in order, before or between their gradients.
            parts: Into which the batch is divided.
        """
        if not part:
            self._step, self._kept, self._masks = step, {}, []
            self._half.forget()
        self._part, size = part, self.context.workload.batch // parts
        self._half.lora.set_step(step)
        mine = slice(part * size, (part + 1) * size)
        drawn = {index: rows[step][mine] for index, rows in self._drawn.items()}
        sent = {index: self._sent(index, numbers) for index, numbers in drawn.items()}
        self._batch = self._collated(drawn)
        self._masks.append(self._batch.attention_mask)
        batch, rows_of = self._passing(drawn, sent)
        activation = self.context.like.expand(*batch.attention_mask.shape, -1)
        if any(map(len, sent.values())):
            with torch.set_grad_enabled(not self.context.work.device_frozen):
                activation = self._half.forward(batch)
        found = {}
        for index in self.active():
            try:
                rows = torch.from_numpy(rows_of[index]).to(activation.device)
                beside, payload = self._coded(
                    index, drawn[index], sent[index], _taken(batch, rows), activation[rows]
                )
            except CodecError as error:
                self._refuse(index, f"activation refused: {error}")
                continue
            found[index] = self._message(Kind.ACTIVATION, index, payload, beside=beside)
        if parts == 1:
            return found
        whole = self._collated({index: rows[step] for index, rows in self._drawn.items()})
        share = _scored(self._batch) / max(_scored(whole), 1)
        return {index: replace(message, rows=size, share=share) for index, message in found.items()}

    def finish(self, hidden: Mapping[int, bytes]) -> dict[int, StepMessage]:
        """Where labels stay: compute the losses of the last hidden states that came.

        Returns:
            By column, the hidden state's gradient and the loss.
        """
        reads = self.context.reads(self._batch.attention_mask)
        whole, came = self._gathered(hidden, reads, "hidden")
        losses, gradient = self._half.finish(
            whole, self._batch, chunk=self.context.workload.loss_chunk
        )
        found = {}
        for number, index in enumerate(self.jobs):
            if index not in came:
                continue
            rows, stream = self._rows(index), self._stream(index, "hidden gradient")
            spec = self.context.codec(self.jobs[index].row.codec, "hidden gradient")
            try:
                payload = put(gradient[rows], reads[rows], spec, stream)
            except CodecError as error:
                self._refuse(index, f"gradient refused: {error}")
                continue
            found[index] = self._message(
                Kind.HIDDEN_GRADIENT, index, payload, loss=float(losses[number])
            )
        return found

    def learn(self, gradients: Mapping[int, bytes], *, part: int = 0, parts: int = 1) -> None:
        """Take the activations' gradients, none where this part is frozen; update what is trained.

        Args:
            gradients: By column.
            part: Of which micro-batch; after the last, what is trained is updated.
            parts: As for `send`.
        """
        self._part = part
        if not self.context.work.device_frozen:
            mask = self._masks[part]
            self._half.backward(self._gathered(gradients, mask, "gradient")[0])
        if self._optimiser is None or part < parts - 1:
            return
        norms = clip_(self._parameters, limit=self.context.settings.max_grad_norm)
        for index, is_finite in zip(self.jobs, torch.isfinite(norms).tolist(), strict=True):
            if not is_finite:
                self._refuse(
                    index,
                    f"a gradient was not finite in step {self._step}; lower the learning rate if "
                    "it happens again",
                )
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def adapters(self) -> dict[int, Adapters]:
        """Return the adapters of each device's blocks by column, on the CPU."""
        return dict(zip(self.jobs, map(on_cpu, self._half.lora.adapters()), strict=True))

    def heads(self) -> dict[int, Head]:
        """Return each device's trained head by column, {} where the server has it."""
        return dict(zip(self.jobs, map(on_cpu, self._half.lora.heads()), strict=True))

    def _sent(self, column: int, numbers: Ints) -> Ints:
        """Return the places in a batch of which something is sent: of a frozen part the new samples."""
        if not self.context.work.device_frozen:
            return np.arange(len(numbers))
        known = [int(number) in self._memory[column] for number in numbers]
        return np.flatnonzero(~np.array(known))

    def _passing(
        self, drawn: Mapping[int, Ints], sent: Mapping[int, Ints]
    ) -> tuple[Batch, dict[int, Ints]]:
        """Return the batch that is run, and which of its rows each device sends.

        Several devices share one pass, in which each must have as many rows; one alone runs what it
        sends and no more.
        """
        if len(drawn) > 1:
            size = self.context.workload.batch
            return self._batch, {
                column: number * size + sent[column] for number, column in enumerate(drawn)
            }
        [(column, numbers)] = drawn.items()
        is_part = 0 < len(sent[column]) < len(numbers)
        batch = self._collated({column: numbers[sent[column]]}) if is_part else self._batch
        return batch, {column: np.arange(len(sent[column]))}

    def _coded(
        self, column: int, numbers: Ints, sent: Ints, batch: Batch, activation: torch.Tensor
    ) -> tuple[bytes, bytes]:
        """Return what goes beside a device's activation, and its payload.

        Args:
            column: The device's column.
            numbers: Of the samples in its batch.
            sent: Places in its batch of which something is sent.
            batch: Those samples.
            activation: Of those, (rows, tokens, width).

        Raises:
            CodecError: if a value is not finite.
        """
        context, codec = self.context, self.jobs[column].row.codec
        spec, stream = context.codec(codec, "activation"), self._stream(column, "activation")
        beside = beside_of(batch, labels_stay=context.labels_stay)
        if not context.remembers(codec):
            payload = put(activation, batch.attention_mask, spec, stream)
            count = int(batch.attention_mask.sum()) * activation.shape[-1]
            self._kept[self._part, column] = kept_of(payload, count, spec, context.work)
            return beside, payload
        ends = batch.attention_mask.sum(1).cumsum(0)[:-1].tolist()
        pieces = np.split(packed(activation, batch.attention_mask), ends) if len(sent) else []
        told, payload = put_samples(
            numbers,
            dict(zip(sent.tolist(), pieces, strict=True)),
            self._memory[column],
            spec,
            stream,
            stamp=secrets.randbits(64),
            again=not context.work.device_frozen,
        )
        return told + beside, payload

    def _gathered(
        self, payloads: Mapping[int, bytes], mask: torch.Tensor, direction: str
    ) -> tuple[torch.Tensor, set[int]]:
        """Return what the server sent, zero for those who got nothing, and whose came whole."""
        like = self.context.like
        whole = like.new_zeros((*mask.shape, len(like)))
        came = set()
        for index, payload in payloads.items():
            if index not in self.jobs or index in self.refused:
                continue
            rows = self._rows(index)
            spec = self.context.codec(self.jobs[index].row.codec, direction)
            is_masked = direction == "gradient" and spec.kind == "topk"
            kept = self._kept.get((self._part, index)) if is_masked else None
            try:
                whole[rows], _ = get(payload, mask[rows], like, kept=kept)
            except CodecError as error:
                self._refuse(index, f"{direction} refused: {error}")
                continue
            came.add(index)
        return whole, came

    def _rows(self, column: int) -> slice:
        size = self.context.workload.batch
        start = list(self.jobs).index(column) * size
        return slice(start, start + size)

    def _collated(self, drawn: Mapping[int, Ints]) -> Batch:
        """Return one batch of all devices, one after the other."""
        joined = join_examples((self.jobs[index].data, rows) for index, rows in drawn.items())
        tokens, device = self.context.workload.tokens, self.context.base.device
        return collate_examples(joined, range(len(joined)), tokens=tokens, device=device)

    def _stream(self, column: int, direction: str) -> np.random.Generator:
        device = self.jobs[column].device
        return self.context.stream(self._step, device, direction, self._part)

    def _message(
        self,
        kind: Kind,
        column: int,
        payload: bytes,
        *,
        beside: bytes = b"",
        loss: float = float("nan"),
    ) -> StepMessage:
        return StepMessage(
            kind,
            0,
            self.context.round,
            self._step,
            self.jobs[column].device,
            rows=self.context.workload.batch,
            steps=self.steps,
            beside=beside,
            payload=payload,
            loss=loss,
        )

    def _refuse(self, column: int, reason: str) -> None:
        self.refused.setdefault(column, reason)


def _scored(batch: Batch) -> int:
    """Return how many positions, or texts, a batch's loss is the mean of."""
    return len(batch.labels) if batch.labels.dim() == 1 else int(scored(batch).sum())


def _taken(batch: Batch, rows: torch.Tensor) -> Batch:
    """Return some rows of a batch."""
    return Batch(batch.input_ids[rows], batch.attention_mask[rows], batch.labels[rows])
