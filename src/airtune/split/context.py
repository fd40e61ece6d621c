"""What both ends of a cut know of a round before it begins."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.batch import Sequences
from airtune.model.images import Images
from airtune.model.kept import keep_all
from airtune.model.lora import Adapters, take
from airtune.model.stages import head_positions, held_by_device
from airtune.model.state import GlobalState, current_base
from airtune.plan import Assignment, CodecSpec, ModelShape, Workload, WorkSpec
from airtune.work.jobs import TrainSettings


@dataclass(frozen=True, slots=True)
class SplitJob:
    """One device's work of a split round."""

    device: int
    row: Assignment
    data: Sequences | Images
    weight: float


@dataclass(frozen=True, slots=True)
class SplitContext:
    """What all of a round share, at either end."""

    base: BaseModel
    """With what has been merged into it; a device's may hold its own blocks alone."""
    state: GlobalState
    """What the round starts from."""
    settings: TrainSettings
    work: WorkSpec
    """`labels`, `device_frozen`, `server`, `gradient`, `reuse_mask` and `hand_over` are read."""
    workload: Workload
    """Batch and length; for images `tokens` is `image_tokens`."""
    seed: int
    round: int
    """Counted from 0."""

    @classmethod
    def of(
        cls,
        base: BaseModel,
        state: GlobalState,
        *,
        settings: TrainSettings,
        work: WorkSpec,
        workload: Workload,
        seed: int,
        round: int,
    ) -> SplitContext:
        """Return the context of a round that starts from a state."""
        return cls(current_base(base, state), state, settings, work, workload, seed, round)

    @property
    def shape(self) -> ModelShape:
        """The whole model."""
        return self.base.shape

    @property
    def labels_stay(self) -> bool:
        """The head and the loss are on the device."""
        return self.work.labels == "stay"

    @property
    def like(self) -> torch.Tensor:
        """Gives type and torch device of what crosses the cut, (width,)."""
        dtype = next(p.dtype for p in self.base.network.parameters() if p.is_floating_point())
        return torch.empty(self.base.shape.width, dtype=dtype, device=self.base.device)

    def own_adapters(self, row: Assignment) -> Adapters:
        """Return the adapters of a device's own blocks, at its rank, as the round starts."""
        held = held_by_device(self.state.adapters, row.cut)
        return take(held, self.shape, keep_all(self.shape), row.rank)

    def remembers(self, codec: CodecSpec) -> bool:
        """Return whether both ends remember the samples that cross by this codec."""
        return remembers(self.work, codec)

    def parts(self, codec: CodecSpec) -> int:
        """Return into how many micro-batches a device with this codec divides a batch over a stream."""
        return 1 if self.labels_stay or self.remembers(codec) else self.workload.micro_batches

    def codec(self, row_codec: CodecSpec, direction: str) -> CodecSpec:
        """Return the codec of one direction, of a device with this codec."""
        chosen = row_codec
        if direction != "activation" and self.work.gradient is not None:
            chosen = self.work.gradient
        return replace(chosen, predict=False)

    def stream(self, step: int, device: int, direction: str, part: int = 0) -> np.random.Generator:
        """Return the codec's randomness for one crossing, of one micro-batch."""
        named = f"{direction} {part}" if part else direction
        return generator(self.seed, "codec", self.round, step, device, named)

    def reads(self, mask: torch.Tensor) -> torch.Tensor:
        """Return the positions that the head reads, (batch, tokens)."""
        return head_positions(self.base.network, mask)


def remembers(work: WorkSpec, codec: CodecSpec) -> bool:
    """Return whether both ends of a cut remember the samples that cross it."""
    return work.device_frozen or codec.predict
