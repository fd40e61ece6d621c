"""The device's half of a split round: its blocks, its adapters, what it sends and what it learns.

It is `work.lanes.Lane` for one device whose other end is far away.
"""

from __future__ import annotations

import secrets

import numpy as np
import torch

from airtune.engine.stream.body import (
    beside_of,
    codec_of,
    codec_stream,
    get,
    kept_of,
    put,
    reads_of,
)
from airtune.engine.stream.memory import Samples, agree
from airtune.engine.stream.samples import put_samples
from airtune.engine.stream.task import remembers
from airtune.errors import TrainingError
from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.batch import Batch, collate
from airtune.model.cut import DeviceHalf
from airtune.model.images import Images, collate_images
from airtune.model.lora import Adapters, Head
from airtune.model.state import GlobalState, current_base
from airtune.plan import Bools, Ints, ModelShape, Workload, WorkSpec
from airtune.work.batches import round_batches
from airtune.work.lanes import SplitJob, clip_, on_cpu, optimiser_of
from airtune.work.train import TrainSettings
from airtune.work.wire import Values, packed


class DeviceEnd:
    """One device's half, stepwise: `send`, where labels stay `finish`, then `learn`."""

    def __init__(
        self, base: BaseModel, state: GlobalState, job: SplitJob, *, settings: TrainSettings,
        work: WorkSpec, workload: Workload, seed: int, round: int, memory: Samples | None = None,
    ) -> None:  # fmt: skip
        """Prepare the half and draw the batches.

        Args:
            base: The frozen model, or one with at least the device's blocks.
            state: What the round starts from.
            job: The device's number, row and data.
            settings: Learning rate and the like.
            work: Where labels are, whether this part learns, and the gradient's codec.
            workload: Batch and length.
            seed: Of the run.
            round: Counted from 0.
            memory: What it remembers of its samples, changed by the round; None = nothing.
        """
        self.job, self.steps = job, job.row.local_steps
        self._base, self._settings = current_base(base, state), settings
        self.workload, self.round, self._work, self._seed = workload, round, work, seed
        self.labels_stay = work.labels == "stay"
        self._memory: Samples = {} if memory is None else memory
        heads = [state.head] if state.head else []
        self._half = DeviceHalf(
            self._base.network, self._base.family, [state.adapters], cut=job.row.cut or 0,
            scale=settings.scale, dropout=0.0 if work.device_frozen else settings.dropout,
            seeds=[derive_seed(seed, "split", round, job.device)],
            heads=heads if self.labels_stay else None,
        )  # fmt: skip
        self._half.lora.train()
        if work.device_frozen:
            self._half.body.requires_grad_(requires_grad=False)
        self._parameters = self._half.lora.parameters()
        self._optimiser = optimiser_of(self._parameters, settings)
        self._drawn = round_batches(
            len(job.data), steps=self.steps, batch=workload.batch, seed=seed, round=round,
            device=job.device,
        )  # fmt: skip
        self._step = -1
        self._batch: Batch
        self._kept: Bools | None = None

    @property
    def shape(self) -> ModelShape:
        """The whole model."""
        return self._base.shape

    @property
    def rows(self) -> int:
        """Examples in a batch."""
        return self.workload.batch

    def agree(self, listed: bytes) -> None:
        """Forget the samples that the server, by its list, does not have as this end has them.

        Raises:
            CodecError: if it is no list.
        """
        agree(self._memory, listed)

    def send(self, step: int) -> tuple[bytes, bytes]:
        """Run the device's blocks; return what goes beside, and the activation's payload.

        Raises:
            CodecError: if the activation is not finite.
        """
        self._step, self._batch, self._kept = step, self._collated(self._drawn[step]), None
        self._half.lora.set_step(step)
        if remembers(self._work, self.job.row.codec):
            return self._send_samples(self._drawn[step])
        activation = self._half.forward(self._batch)
        mask, spec = self._batch.attention_mask, codec_of(self.job.row.codec, self._work, "activation")  # fmt: skip
        payload = put(activation, mask, spec, self._stream("activation"))
        count = int(mask.sum()) * activation.shape[-1]
        self._kept = kept_of(payload, count, spec, self._work)
        return beside_of(self._batch, labels_stay=self.labels_stay), payload

    def _send_samples(self, numbers: Ints) -> tuple[bytes, bytes]:
        """Send of each sample what the server does not know; of a frozen part that alone is run."""
        frozen, batch = self._work.device_frozen, self._batch
        places = np.arange(len(numbers))
        if frozen:
            places = np.array([p for p in places if int(numbers[p]) not in self._memory], np.int64)
        rows: dict[int, Values] = {}
        if len(places):
            batch = self._collated(numbers[places]) if frozen else batch
            with torch.set_grad_enabled(not frozen):
                values = packed(self._half.forward(batch), batch.attention_mask)
            ends = batch.attention_mask.sum(1).cumsum(0)[:-1].tolist()
            rows = dict(zip(places.tolist(), np.split(values, ends), strict=True))
        told, payload = put_samples(
            numbers, rows, self._memory, codec_of(self.job.row.codec, self._work, "activation"),
            self._stream("activation"), stamp=secrets.randbits(64), again=not frozen,
        )  # fmt: skip
        return told + (beside_of(batch, labels_stay=self.labels_stay) if rows else b""), payload

    def finish(self, payload: bytes) -> tuple[bytes, float]:
        """Where labels stay: return the gradient of the hidden state that came, and the loss.

        Raises:
            CodecError: if the payload is damaged, or the gradient not finite.
        """
        reads = reads_of(self._base, self._batch.attention_mask)
        hidden, _ = get(payload, reads, self._like())
        losses, gradient = self._half.finish(hidden, self._batch, chunk=self.workload.loss_chunk)
        spec = codec_of(self.job.row.codec, self._work, "hidden gradient")
        return put(gradient, reads, spec, self._stream("hidden gradient")), float(losses[0])

    def learn(self, payload: bytes) -> None:
        """Take the activation's gradient, none where this part is frozen; update what is trained.

        Raises:
            CodecError: if the payload is damaged.
            TrainingError: if a gradient is not finite.
        """
        if not self._work.device_frozen:
            spec = codec_of(self.job.row.codec, self._work, "gradient")
            kept = self._kept if spec.kind == "topk" else None
            gradient, _ = get(payload, self._batch.attention_mask, self._like(), kept=kept)
            self._half.backward(gradient)
        if self._optimiser is None:
            return
        norms = clip_(self._parameters, limit=self._settings.max_grad_norm)
        if not bool(torch.isfinite(norms).all()):
            raise TrainingError(
                f"a gradient of device {self.job.device} was not finite in step {self._step}; "
                "its round is void, lower the learning rate if it happens again"
            )
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)

    def adapters(self) -> Adapters:
        """Return the adapters of the device's blocks, on the CPU."""
        return on_cpu(self._half.lora.adapters()[0])

    def head(self) -> Head:
        """Return the trained head, {} where the server has it."""
        return on_cpu(self._half.lora.heads()[0])

    def _collated(self, rows: Ints) -> Batch:
        data, device = self.job.data, self._base.device
        tokens = self.workload.tokens
        if isinstance(data, Images):
            return collate_images(data, rows, tokens=tokens, device=device)
        longest = min(max(len(data.tokens[int(row)]) for row in rows), tokens)
        return collate(data, rows, padding=longest, device=device)

    def _like(self) -> torch.Tensor:
        return torch.empty(self._base.shape.width, device=self._base.device)

    def _stream(self, direction: str) -> np.random.Generator:
        return codec_stream(self._seed, (self.round, self._step, self.job.device), direction)
