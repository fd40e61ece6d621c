"""The server's blocks with their optimiser: one for all devices of a round, or one a device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from airtune.keys import derive_seed
from airtune.model.cut import Arrived, ServerHalf
from airtune.model.lora import Adapters, Head
from airtune.split.context import SplitContext
from airtune.work.gradients import clip_
from airtune.work.jobs import TrainSettings


class TrainedHalf:
    """A server half that learns; every pass over it is one step of its optimiser."""

    def __init__(self, context: SplitContext, *, first: int, trains_from: int = 0) -> None:
        """Prepare the half.

        Args:
            context: The round's; where labels stay, the head does too.
            first: The smallest cut that it will serve.
            trains_from: Adapters of blocks before this one are used, but not trained.

        Raises:
            ModelError: if the cut is outside the model.
        """
        base, state, settings = context.base, context.state, context.settings
        self._chunk, self._limit = context.workload.loss_chunk, settings.max_grad_norm
        self._half = ServerHalf(
            base.network,
            base.family,
            state.adapters,
            first=first,
            scale=settings.scale,
            dropout=settings.dropout,
            seed=derive_seed(context.seed, "split server", context.round),
            head=None if context.labels_stay else state.head,
            trains_from=trains_from,
        )
        self._half.lora.train()
        self._parameters = self._half.lora.parameters()
        self._optimiser = optimiser_of(self._parameters, settings)
        self.passes = self.skipped = 0
        """Passes so far; of these, those whose gradient was not finite and was not used."""

    def step(
        self, arrived: Sequence[Arrived], *, learns: bool = True, total_weight: float | None = None
    ) -> tuple[dict[int, torch.Tensor], dict[int, float]]:
        """Run one pass and learn; return gradients and losses by column.

        A device whose loss is not finite has no gradient.

        Args:
            arrived: At least one.
            learns: False = more of the same step is to come, and gradients add up until then.
            total_weight: As for `ServerHalf.step`.
        """
        self._half.lora.set_step(self.passes)
        result = self._half.step(arrived, chunk=self._chunk, total_weight=total_weight)
        if learns:
            self._learn()
        columns = [part.device for part in arrived]
        gradients = {
            index: gradient
            for index, gradient in zip(columns, result.gradients, strict=True)
            if gradient is not None
        }
        return gradients, dict(zip(columns, map(float, result.losses), strict=True))

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

    def learn(self) -> None:
        """End a step of which nothing more has come."""
        self._learn()

    def _learn(self) -> None:
        """Take an optimiser step, unless the gradient is not finite, and forget the gradient."""
        self.passes += 1
        if self._optimiser is None:
            return
        is_finite = bool(torch.isfinite(clip_(self._parameters, limit=self._limit)).all())
        if is_finite:
            self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self.skipped += not is_finite


def optimiser_of(
    parameters: Sequence[nn.Parameter], settings: TrainSettings
) -> torch.optim.AdamW | None:
    """Return a fresh AdamW, None where nothing is trained."""
    if not parameters:
        return None
    return torch.optim.AdamW(
        parameters, lr=settings.learning_rate, weight_decay=settings.weight_decay
    )


def on_cpu(tensors: Mapping[str, torch.Tensor]) -> Adapters:
    """Return tensors by the same names on the CPU."""
    return {name: tensor.cpu() for name, tensor in tensors.items()}
