"""Covariances of many inputs in few numbers: the main directions of their correlations, and variances.

    C ~ D^1/2 (F' F + diag(1 - F' F)) D^1/2

D are the variances, exact; F holds the leading eigenvectors of the correlations, scaled by the roots
of their eigenvalues, and is sent with each at 15 even levels of its own. What F leaves out counts as
noise of each input by itself, as in factor analysis, so the matrix stays positive. Eigenvectors are
found by subspace iteration (Halko, Martinsson and Tropp, arXiv 0909.4061, algorithm 4.4).

A level is .353 of a direction's root mean square: of even ones, what 15 levels of a normal
distribution lose least by (Max, Quantizing for Minimum Distortion, 1960); what is longer than seven
is cut.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

_BESIDE = 8
"""Directions sought beside those that are kept."""
_ITERATIONS = 2
_MOST_LEVEL = 7
_STEP = 0.353
"""Of the root mean square."""
_LEAST = torch.finfo(torch.float32).tiny


@dataclass(frozen=True, slots=True)
class Covariances:
    """One matrix a block: F is `levels` times `step`."""

    levels: torch.Tensor
    """(blocks, rank, inputs); -7 to 7 in int8 as sent."""
    step: torch.Tensor
    """(blocks, rank, 1)."""
    variance: torch.Tensor
    """(blocks, inputs)."""

    @property
    def factor(self) -> torch.Tensor:
        """F, (blocks, rank, inputs)."""
        return self.levels * self.step

    def matrix(self, block: int) -> torch.Tensor:
        """Return the covariance of a block's inputs, (inputs, inputs), double precision."""
        factor = self.levels[block].double() * self.step[block].double()
        scale = self.variance[block].double().sqrt()
        # levels can make an input's directions longer than all of its variance
        factor = factor / torch.clamp_min(factor.square().sum(0).sqrt(), 1.0)
        correlation = (factor.T @ factor).fill_diagonal_(1.0)
        return correlation * torch.outer(scale, scale)


def covariances(matrices: Sequence[torch.Tensor], *, rank: int) -> Covariances:
    """Return the nearest of a rank to one matrix a block; it is exact where the rank is the width.

    Args:
        matrices: (inputs, inputs) each, symmetric, no variance below zero but for rounding.
        rank: directions a block, at most.
    """
    return _made(len(matrices), lambda block: matrices[block], rank)


def pooled_covariances(
    parts: Sequence[tuple[float, Covariances, torch.Tensor]], *, rank: int
) -> Covariances:
    """Return the covariances of the union of what several have seen.

    Args:
        parts: weight, covariances, and the means they are about, (blocks, inputs).
        rank: directions a block, at most.
    """
    total = sum(weight for weight, _, _ in parts)
    mean = torch.stack([weight / total * one.double() for weight, _, one in parts]).sum(0)

    def matrix(block: int) -> torch.Tensor:
        found = torch.zeros(mean.shape[1], mean.shape[1], dtype=torch.float64)
        for weight, part, own in parts:
            apart = own[block].double() - mean[block]
            found += weight / total * (part.matrix(block) + torch.outer(apart, apart))
        return found

    return _made(len(mean), matrix, rank)


def as_sent(found: Covariances) -> Covariances:
    """Return covariances as the other end decodes them: each direction at its even levels."""
    factor = found.factor
    step = (factor.square().mean(2, keepdim=True).sqrt() * _STEP).clamp_min(_LEAST)
    levels = (factor / step).round().clamp(-_MOST_LEVEL, _MOST_LEVEL)
    return Covariances(levels.to(torch.int8), step, found.variance)


def _made(blocks: int, matrix: Callable[[int], torch.Tensor], rank: int) -> Covariances:
    found = [_leading(matrix(block), rank) for block in range(blocks)]
    factor, variance = (torch.stack(parts) for parts in zip(*found, strict=True))
    return Covariances(factor, torch.ones_like(factor[..., :1]), variance)


def _leading(covariance: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return F and D of one matrix."""
    variance = covariance.diagonal().double().clamp_min(_LEAST)
    scale = variance.rsqrt().float()
    correlation = covariance.float() * torch.outer(scale, scale)
    width = len(variance)
    count = min(rank, width)
    start = torch.randn(
        width, min(count + _BESIDE, width), generator=torch.Generator().manual_seed(0)
    )
    basis = torch.linalg.qr(correlation @ start).Q
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(correlation @ basis).Q
    values, vectors = torch.linalg.eigh(basis.T @ correlation @ basis)
    leading = basis @ vectors[:, -count:] * values[-count:].clamp_min(0.0).sqrt()
    return leading.T, variance.float()
