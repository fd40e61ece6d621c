"""The devices of a split round: their halves, what they send and what they make of the answer."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import nn

from airtune.errors import CodecError
from airtune.keys import derive_seed, generator
from airtune.model.base import BaseModel
from airtune.model.batch import Batch, Sequences, collate
from airtune.model.cut import Arrived, DeviceHalf
from airtune.model.images import Images, collate_images
from airtune.model.lora import Adapters
from airtune.model.stages import head_positions, held_by_device
from airtune.model.state import GlobalState
from airtune.plan import Assignment, Bools, Floats, Ints, Workload, WorkSpec
from airtune.work.batches import join, round_batches
from airtune.work.train import TrainSettings
from airtune.work.wire import (
    INTEGER_BYTES,
    Crossed,
    CutMemory,
    Sizes,
    Values,
    cross,
    cross_samples,
    packed,
    unpacked,
)


@dataclass(frozen=True, slots=True)
class SplitJob:
    """One device's work of a split round."""

    device: int
    row: Assignment
    data: Sequences | Images
    weight: float


@dataclass(frozen=True, slots=True)
class Here:
    """What all devices of a round share."""

    base: BaseModel
    state: GlobalState
    settings: TrainSettings
    work: WorkSpec
    workload: Workload
    memory: CutMemory
    seed: int
    round: int

    @property
    def labels_stay(self) -> bool:
        """The head and the loss are on the device."""
        return self.work.labels == "stay"

    def stream(self, step: int, device: int, direction: str) -> np.random.Generator:
        """Return the codec's randomness for one crossing."""
        return generator(self.seed, "codec", self.round, step, device, direction)


@dataclass(slots=True)
class StepLog:
    """What has happened so far, in columns of shape (steps, devices)."""

    losses: Floats
    """NaN where nothing was scored."""
    up_bytes: Floats
    """All that went up: payloads and what goes beside them; 0 = the device was out."""
    down_bytes: Floats
    beside_bytes: Floats
    """Of `up_bytes`: labels, lengths, numbers of samples."""
    up_bound_bytes: Floats
    """What the payloads would take at least, were their entries independent and normal."""
    down_bound_bytes: Floats
    computed: Floats
    """Fraction of the samples that the device had to compute; less than 1 only where its part is
    frozen and the server knows the others."""
    refused: dict[int, str] = field(default_factory=dict)
    """Column -> why the device is out."""
    lost_in: dict[int, int] = field(default_factory=dict)
    """Column -> the step in which the device vanished between forward and backward."""

    @classmethod
    def empty(cls, steps: int, devices: int) -> StepLog:
        """Return a ledger of a round that has not begun."""
        losses = np.full((steps, devices), np.nan)
        up, down, beside, up_bound, down_bound, computed = np.zeros((6, steps, devices))
        return cls(losses, up, down, beside, up_bound, down_bound, computed)

    def went_up(self, step: int, place: int, payload_bytes: int, bound_bytes: float) -> None:
        """Count a payload that a device sent."""
        self.up_bytes[step, place] += payload_bytes
        self.up_bound_bytes[step, place] += bound_bytes

    def went_beside(self, step: int, place: int, size_bytes: int) -> None:
        """Count what went up beside a payload."""
        self.up_bytes[step, place] += size_bytes
        self.beside_bytes[step, place] += size_bytes

    def went_down(self, step: int, place: int, payload_bytes: int, bound_bytes: float) -> None:
        """Count a payload that the server sent."""
        self.down_bytes[step, place] += payload_bytes
        self.down_bound_bytes[step, place] += bound_bytes

    def refuse(self, place: int, reason: str) -> None:
        """Put a device out of the round; the first reason stands."""
        self.refused.setdefault(place, reason)


class Lane:
    """Devices that cut alike and take equally many steps, on one stacked half."""

    def __init__(self, here: Here, ledger: StepLog, jobs: Mapping[int, SplitJob]) -> None:
        """Prepare the half and draw the batches; `jobs` by column of the ledger."""
        adapters = here.state.adapters
        self._here, self._ledger, self._jobs = here, ledger, dict(jobs)
        first = next(iter(jobs.values()))
        self.cut, self.steps = first.row.cut or 0, first.row.local_steps
        heads = [here.state.head] * len(jobs) if here.state.head else []
        self.half = DeviceHalf(
            here.base.network, here.base.family, [adapters] * len(jobs), cut=self.cut,
            scale=here.settings.scale,
            dropout=0.0 if here.work.device_frozen else here.settings.dropout,
            seeds=[derive_seed(here.seed, "split", here.round, j.device) for j in jobs.values()],
            heads=heads if here.labels_stay else None,
        )  # fmt: skip
        self.half.lora.train()
        if here.work.device_frozen:
            self.half.body.requires_grad_(requires_grad=False)
        self._parameters = self.half.lora.parameters()
        self._optimiser = optimiser_of(self._parameters, here.settings)
        self._stamp = _stamp(self.cut, adapters, frozen=here.work.device_frozen)
        self._drawn = [
            round_batches(
                len(job.data), steps=self.steps, batch=here.workload.batch,
                seed=here.seed, round=here.round, device=job.device,
            )
            for job in jobs.values()
        ]  # fmt: skip
        self._batch: Batch
        self._kept: dict[int, Bools] = {}

    def active(self) -> list[int]:
        """Return the columns of the devices that are still in the round."""
        return [place for place in self._jobs if place not in self._ledger.refused]

    def send(self, step: int) -> list[Arrived]:
        """Run the devices' blocks and return what the server has of it."""
        here = self._here
        self.half.lora.set_step(step)
        self._kept = {}
        self._batch = _batch(here, list(self._jobs.values()), [rows[step] for rows in self._drawn])
        with torch.set_grad_enabled(not here.work.device_frozen):
            activation = self.half.forward(self._batch)
        arrived = []
        for place in self.active():
            rows, job = self._rows(place), self._jobs[place]
            mask = self._batch.attention_mask[rows]
            try:
                values = self._send_one(step, place, packed(activation[rows], mask))
            except CodecError as error:
                self._ledger.refuse(place, f"activation refused: {error}")
                continue
            labels = None if here.labels_stay else self._batch.labels[rows]
            received = unpacked(values, mask, activation)
            arrived.append(Arrived(place, self.cut, received, mask, labels, job.weight))
        return arrived

    def finish(self, step: int, hidden: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Where labels stay: compute the losses, return the hidden states' gradients as sent."""
        here = self._here
        reads = head_positions(here.base.network, self._batch.attention_mask)
        mine = {place: hidden[place] for place in self._jobs if place in hidden}
        whole = self._gathered(step, mine, reads, direction="hidden")
        losses, gradient = self.half.finish(whole, self._batch, chunk=here.workload.loss_chunk)
        returned = {}
        for number, place in enumerate(self._jobs):
            if place not in mine or place in self._ledger.refused:
                continue
            self._ledger.losses[step, place] = float(losses[number])
            rows = self._rows(place)
            try:
                crossed = self._cross(
                    step, place, packed(gradient[rows], reads[rows]), "hidden gradient"
                )
            except CodecError as error:
                self._ledger.refuse(place, f"gradient refused: {error}")
                continue
            self._ledger.went_up(step, place, crossed.payload_bytes, crossed.bound_bytes)
            returned[place] = unpacked(crossed.values, reads[rows], gradient)
        return returned

    def learn(self, step: int, gradients: Mapping[int, torch.Tensor]) -> None:
        """Take the gradients of the activations and update the devices' adapters and heads."""
        if not self._here.work.device_frozen:
            mine = {place: gradients[place] for place in self._jobs if place in gradients}
            self.half.backward(
                self._gathered(step, mine, self._batch.attention_mask, direction="gradient")
            )
        if self._optimiser is not None:
            norms = clip_(self._parameters, limit=self._here.settings.max_grad_norm)
            for place, is_finite in zip(self._jobs, torch.isfinite(norms).tolist(), strict=True):
                if not is_finite:
                    self._ledger.refuse(place, f"a gradient was not finite in step {step}")
            self._optimiser.step()
            self._optimiser.zero_grad(set_to_none=True)

    def adapters(self) -> dict[int, Adapters]:
        """Return each device's adapters by column, on the CPU."""
        return dict(zip(self._jobs, map(on_cpu, self.half.lora.adapters()), strict=True))

    def heads(self) -> dict[int, Adapters]:
        """Return each device's trained head by column, {} where the server has it."""
        return dict(zip(self._jobs, map(on_cpu, self.half.lora.heads()), strict=True))

    def _rows(self, place: int) -> slice:
        size = self._here.workload.batch
        start = list(self._jobs).index(place) * size
        return slice(start, start + size)

    def _send_one(self, step: int, place: int, values: Values) -> Values:
        """Encode and count one device's activation with what goes beside it."""
        here, job = self._here, self._jobs[place]
        samples = self._drawn[list(self._jobs).index(place)][step]
        lengths = self._batch.attention_mask[self._rows(place)].sum(1).cpu().numpy()
        is_new = np.ones(len(samples), bool)
        numbered = here.work.device_frozen or job.row.codec.predict
        if numbered:
            held = here.memory.of(job.device, self._stamp)
            if here.work.device_frozen:
                is_new = np.array([int(sample) not in held for sample in samples])
            received, sizes = cross_samples(
                np.split(values, np.cumsum(lengths)[:-1]), samples, job.row.codec,
                here.stream(step, job.device, "activation"), held=held,
                again=not here.work.device_frozen,
            )  # fmt: skip
            result = np.concatenate(received)
        else:
            crossed = self._cross(step, place, values, "activation")
            result, sizes = crossed.values, Sizes(crossed.payload_bytes, crossed.bound_bytes)
            if crossed.kept is not None:
                self._kept[place] = crossed.kept
        beside = _beside(here, self._batch.labels.dim() == 1, lengths[is_new])
        self._ledger.went_up(step, place, sizes.payload_bytes, sizes.bound_bytes)
        self._ledger.went_beside(
            step, place, beside + (INTEGER_BYTES * len(samples) if numbered else 0)
        )
        self._ledger.computed[step, place] = is_new.mean()
        return result

    def _gathered(
        self, step: int, parts: Mapping[int, torch.Tensor], mask: torch.Tensor, *, direction: str
    ) -> torch.Tensor:
        """Return what the server sends each device, as it arrives, zero for the others."""
        width = self._here.base.shape.width
        like = next(iter(parts.values())) if parts else torch.zeros(0, device=mask.device)
        whole = torch.zeros((*mask.shape, width), dtype=like.dtype, device=mask.device)
        for place, tensor in parts.items():
            if place in self._ledger.refused:
                continue
            rows = self._rows(place)
            values = packed(tensor, mask[rows])
            try:
                crossed = self._cross(step, place, values, direction)
            except CodecError as error:
                self._ledger.refuse(place, f"{direction} refused: {error}")
                continue
            self._ledger.went_down(step, place, crossed.payload_bytes, crossed.bound_bytes)
            whole[rows] = unpacked(crossed.values, mask[rows], whole)
        return whole

    def _cross(self, step: int, place: int, values: Values, direction: str) -> Crossed:
        here, job = self._here, self._jobs[place]
        spec = job.row.codec
        if direction != "activation" and here.work.gradient is not None:
            spec = here.work.gradient
        reused = self._kept.get(place) if here.work.reuse_mask else None
        return cross(
            values, spec, here.stream(step, job.device, direction),
            kept=reused if direction == "gradient" else None,
        )  # fmt: skip


def optimiser_of(
    parameters: Sequence[nn.Parameter], settings: TrainSettings
) -> torch.optim.AdamW | None:
    """Return a fresh AdamW, None where nothing is trained."""
    if not parameters:
        return None
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def clip_(parameters: Sequence[nn.Parameter], *, limit: float) -> torch.Tensor:
    """Scale each device's gradient, along the first axis, to the limit; return norms (devices,)."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return torch.zeros(parameters[0].shape[0])
    norms = torch.stack([item.flatten(1).square().sum(1) for item in gradients]).sum(0).sqrt()
    if limit > 0:
        factor = (limit / (norms + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.reshape(-1, *[1] * (gradient.dim() - 1)))
    return norms


def step_if_finite(
    optimiser: torch.optim.Optimizer, parameters: Sequence[nn.Parameter], *, limit: float
) -> bool:
    """Clip, take a step and forget the gradients; return False where they were not finite."""
    is_finite = bool(torch.isfinite(clip_(parameters, limit=limit)).all())
    if is_finite:
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return is_finite


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> Adapters:
    """Return tensors by the same names on the CPU."""
    return {name: tensor.cpu() for name, tensor in tensors.items()}


def _batch(here: Here, jobs: Sequence[SplitJob], drawn: Sequence[Ints]) -> Batch:
    """Return one batch of all devices of a lane, one after the other."""
    device, tokens = here.base.device, here.workload.tokens
    texts, images = [], []
    for job, rows in zip(jobs, drawn, strict=True):
        if isinstance(job.data, Images):
            images.append(collate_images(job.data, rows, tokens=tokens, device=device))
        else:
            texts.append((job.data, rows))
    if images:
        return Batch(
            torch.cat([part.input_ids for part in images]),
            torch.cat([part.attention_mask for part in images]),
            torch.cat([part.labels for part in images]),
        )
    joined = join(texts)
    longest = min(max(map(len, joined.tokens)), tokens)
    return collate(joined, range(len(joined)), padding=longest, device=device)


def _beside(here: Here, classifies: bool, lengths: Ints) -> int:
    """Return the bytes of lengths and labels that go with new samples."""
    labels = 0 if here.labels_stay else (len(lengths) if classifies else int(lengths.sum()))
    return INTEGER_BYTES * (len(lengths) + labels)


def _stamp(cut: int, adapters: Adapters, *, frozen: bool) -> str:
    """Return what a remembered activation depends on, the adapters below a frozen cut included."""
    if not frozen:
        return str(cut)
    digest = 0
    for tensor in held_by_device(adapters, cut).values():
        digest = zlib.crc32(tensor.detach().float().cpu().contiguous().numpy().tobytes(), digest)
    return f"{cut}-{digest:08x}"
