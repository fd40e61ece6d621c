"""The server's blocks with their optimiser: one for all devices of a round, or one a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from airtune.engine.stream.task import SplitTask
from airtune.keys import derive_seed
from airtune.model.base import BaseModel
from airtune.model.cut import Arrived, ServerHalf
from airtune.model.lora import Adapters, Head
from airtune.work.lanes import on_cpu, optimiser_of, step_if_finite


class TrainedHalf:
    """A server half that learns; every pass over it is one step of its optimiser."""

    def __init__(
        self, task: SplitTask, base: BaseModel, *, first: int, trains_from: int = 0
    ) -> None:
        """Prepare the half.

        Args:
            task: The round.
            base: With what has been merged into it.
            first: The smallest cut that it will serve.
            trains_from: Adapters of blocks before this one are used, but not trained.

        Raises:
            ModelError: if the cut is outside the model.
        """
        self._task = task
        self._half = ServerHalf(
            base.network, base.family, task.state.adapters, first=first,
            scale=task.settings.scale, dropout=task.settings.dropout,
            seed=derive_seed(task.seed, "split server", task.round),
            head=None if task.work.labels == "stay" else task.state.head, trains_from=trains_from,
        )  # fmt: skip
        self._half.lora.train()
        self._parameters = self._half.lora.parameters()
        self._optimiser = optimiser_of(self._parameters, task.settings)
        self.passes = self.skipped = 0
        """Passes so far; of these, those whose gradient was not finite and was not used."""

    def step(self, arrived: Sequence[Arrived]) -> tuple[dict[int, torch.Tensor], dict[int, float]]:
        """Run one pass and learn; return gradients and losses by column.

        A device whose loss is not finite has no gradient.
        """
        self._half.lora.set_step(self.passes)
        result = self._half.step(arrived, chunk=self._task.workload.loss_chunk)
        self._learn()
        places = [part.device for part in arrived]
        gradients = {
            place: gradient
            for place, gradient in zip(places, result.gradients, strict=True)
            if gradient is not None
        }
        return gradients, dict(zip(places, map(float, result.losses), strict=True))

    def forward(self, arrived: Sequence[Arrived]) -> dict[int, torch.Tensor]:
        """Return last hidden states by column, where labels stay; `backward` must follow."""
        self._half.lora.set_step(self.passes)
        states = self._half.forward(arrived)
        return {part.device: state for part, state in zip(arrived, states, strict=True)}

    def backward(self, returned: Mapping[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Learn from the hidden states' gradients that came; return those of the activations."""
        gradients = self._half.backward(returned)
        self._learn()
        return gradients

    def adapters(self) -> Adapters:
        """Return the server's adapters, on the CPU."""
        return on_cpu(self._half.adapters())

    def head(self) -> Head:
        """Return the trained head, {} where there is none, on the CPU."""
        return on_cpu(self._half.head())

    def _learn(self) -> None:
        """Take an optimiser step, unless the gradient is not finite."""
        self.passes += 1
        if self._optimiser is None:
            return
        limit = self._task.settings.max_grad_norm
        self.skipped += not step_if_finite(self._optimiser, self._parameters, limit=limit)


def halves_of(task: SplitTask, base: BaseModel) -> tuple[TrainedHalf, ...]:
    """Return the half that serves each row: the same for all, or a copy each.

    Raises:
        ModelError: if a cut is outside the model.
    """
    cuts = [row.cut or 0 for row in task.rows]
    trains_from = max(cuts) if task.work.device_frozen else 0
    if task.work.server == "copies":
        return tuple(TrainedHalf(task, base, first=cut, trains_from=trains_from) for cut in cuts)
    return (TrainedHalf(task, base, first=min(cuts), trains_from=trains_from),) * len(cuts)
