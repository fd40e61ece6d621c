"""The layers of a network that carries the trained parts of n devices at once.

The batch holds the devices one after the other; every layer splits it into n parts, and part i
meets the parameters of device i.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import nn

from airtune.model.loss import AutogradContext
from airtune.model.quantised import is_4bit
from airtune.model.weights import bias_of, weight_of


class _LoraContext(AutogradContext, Protocol):
    """It keeps the scale of the adapters too."""

    scale: float


class _LoraLinear(torch.autograd.Function):
    """`y = x W' + bias + s (x A') B'` with W frozen, accumulated in place.

    Autograd on the written-out formula would make two more tensors of y's size and one of x's;
    with narrow layers that costs as much as the products.
    """

    @staticmethod
    def forward(  # noqa: PLR0917 - torch passes them in order
        ctx: _LoraContext,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """Return (rows, out) of x (rows, in), weight (out, in), a (n, rank, in), b (n, out, rank)."""
        y = x @ weight.T if bias is None else torch.addmm(bias, x, weight.T)
        narrow = _times(x, a.transpose(1, 2))  # (rows, rank)
        _add_times_(y, narrow, b.transpose(1, 2), scale)
        ctx.save_for_backward(x, weight, a, b, narrow)
        ctx.scale = scale
        return y

    @staticmethod
    def backward(ctx: _LoraContext, *outer: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of x, a and b; the base is frozen."""
        x, weight, a, b, narrow = ctx.saved_tensors
        g = outer[0].contiguous()
        back = _times(g, b).mul_(ctx.scale)  # (rows, rank)
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = g @ weight
            _add_times_(grad_x, back, a, 1.0)
        grad_a = _gram(back, x, a.shape[0])
        grad_b = _gram(g, narrow, a.shape[0]).mul_(ctx.scale)
        return grad_x, None, None, grad_a, grad_b, None


def _lora_linear(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, *factors: torch.Tensor | float
) -> torch.Tensor:
    rows = x.reshape(-1, x.shape[-1])
    y: torch.Tensor = _LoraLinear.apply(rows, weight, bias, *factors)  # type: ignore[no-untyped-call]
    return y.view(*x.shape[:-1], -1)


def _times(rows: torch.Tensor, factor: torch.Tensor) -> torch.Tensor:
    """Multiply each device's rows (n * m, k) by its factor (n, k, l)."""
    count = factor.shape[0]
    if count == 1:
        return rows @ factor[0]
    return torch.bmm(rows.view(count, -1, rows.shape[1]), factor).flatten(0, 1)


def _add_times_(
    total: torch.Tensor, rows: torch.Tensor, factor: torch.Tensor, scale: float
) -> None:
    """Add the scaled product of each device's rows and factor to `total` (n * m, l)."""
    count = factor.shape[0]
    if count == 1:
        total.addmm_(rows, factor[0], alpha=scale)
    else:
        parts = rows.view(count, -1, rows.shape[1])
        total.view(count, -1, total.shape[1]).baddbmm_(parts, factor, alpha=scale)


def _gram(left: torch.Tensor, right: torch.Tensor, count: int) -> torch.Tensor:
    """Return each device's left' right (n, k, l) of left (n * m, k) and right (n * m, l)."""
    if count == 1:
        return (left.T @ right)[None]
    parts = left.view(count, -1, left.shape[1]).transpose(1, 2)
    return torch.bmm(parts, right.view(count, -1, right.shape[1]))


class StackedLora(nn.Module):
    """A frozen linear layer with the adapters of n devices."""

    def __init__(self, base: nn.Module, a: torch.Tensor, b: torch.Tensor, scale: float) -> None:
        """Wrap `base`; a (n, rank, in), b (n, out, rank)."""
        super().__init__()
        self.base = base
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale = scale
        self.dropout = 0.0
        self.seeds: tuple[int, ...] = ()
        """One a device for the next forward pass; masks depend on nothing else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n * batch, ..., in) to (n * batch, ..., out), devices one after the other."""
        is_dropping = self.training and self.dropout > 0.0
        is_plain = not is_4bit(self.base) and x.dtype == self.a.dtype
        if is_plain and not is_dropping and weight_of(self.base).dtype == x.dtype:
            weight, bias = weight_of(self.base), bias_of(self.base)
            return _lora_linear(x, weight, bias, self.a, self.b, self.scale)
        plain: torch.Tensor = self.base(x)
        count = self.a.shape[0]
        rows = x.reshape(count, -1, x.shape[-1]).to(self.a.dtype)
        if is_dropping:
            rows = rows * self._mask(rows)
        narrow = torch.bmm(rows, self.a.transpose(1, 2))
        wide = self.scale * torch.bmm(narrow, self.b.transpose(1, 2))
        return plain + wide.to(plain.dtype).reshape(plain.shape)

    def _mask(self, rows: torch.Tensor) -> torch.Tensor:
        """Return dropout factors (n, rows, in); each device's own stream, so company is no matter.

        Drawn from a seed and not from a running stream: a recomputed forward pass (gradient
        checkpointing) gets the same mask.
        """
        mask = torch.empty_like(rows)
        for index, seed in enumerate(self.seeds):
            stream = torch.Generator(rows.device).manual_seed(seed)
            mask[index].bernoulli_(1.0 - self.dropout, generator=stream)
        return mask.div_(1.0 - self.dropout)


class StackedHead(nn.Module):
    """The trained linear layer of n devices' task heads."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        """Hold weight (n, out, in) and bias (n, out)."""
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (n * batch, ..., in) to (n * batch, ..., out)."""
        count, width, _ = self.weight.shape
        rows = x.reshape(count, -1, x.shape[-1]).to(self.weight.dtype)
        wide = torch.bmm(rows, self.weight.transpose(1, 2))
        if self.bias is not None:
            wide = wide + self.bias[:, None, :]
        return wide.reshape(*x.shape[:-1], width)
