"""What stands for the structures that a slice lacks: nothing, their mean, or least squares.

An output projection W reads the kept inputs x_K and the removed ones x_R. With mu the means and S
the second moments of its inputs,

    mean            W_K x_K + W_R mu_R
    least squares   (W_K + dW) x_K + db,   dW = W_R S_RK (S_KK + .03 v I)^-1,   db = W_R mu_R - dW mu_K

where S is centred, C = S - mu mu', v is the mean of its kept diagonal, and the ridge keeps the
system regular where fewer tokens were seen than there are inputs. A projection that can hold no
constant takes S as it is and db = 0. What is measured is measured on the dense model, and told in
few numbers (`airtune.model.covariance`).

Source: the mean is FLAP's (arXiv 2312.11983); least squares is optimal brain surgery for a group
of inputs (arXiv 2203.07259, 2302.04089), reconstructed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from airtune.cost import GRAM_RANK
from airtune.errors import ModelError
from airtune.model.base import BaseModel
from airtune.model.batch import Batch
from airtune.model.covariance import Covariances, as_sent, covariances, pooled_covariances
from airtune.model.families import family_of
from airtune.model.importance import Means
from airtune.model.kept import Kept, axis_index, removed_index
from airtune.model.weights import bias_of
from airtune.plan import Floats, Linear, ModelShape

RIDGE = 0.03
"""Of the mean kept variance."""
_PLACES = ("attention", "ffn")


@dataclass(frozen=True, slots=True)
class Grams:
    """Second moments of what the output projections read, about their means."""

    attention: Covariances
    """Of heads * head_dim inputs a block."""
    ffn: Covariances
    means: Means
    """Of the same tokens."""


def gram_tensors(grams: Grams) -> dict[str, torch.Tensor]:
    """Return what `grams_of` makes the same again of."""
    return {
        f"{index}/{name}": tensor
        for index in _PLACES
        for name, tensor in (
            ("levels", getattr(grams, index).levels),
            ("step", getattr(grams, index).step),
            ("variance", getattr(grams, index).variance),
            ("mean", torch.from_numpy(getattr(grams.means, index))),
        )
    }


def grams_of(tensors: Mapping[str, torch.Tensor]) -> Grams | None:
    """Return second moments from their tensors; None for {}.

    Raises:
        KeyError: if one is missing.
    """
    if not tensors:
        return None
    attention, ffn = (
        Covariances(*(tensors[f"{index}/{name}"] for name in ("levels", "step", "variance")))
        for index in _PLACES
    )
    return Grams(attention, ffn, Means(*(tensors[f"{index}/mean"].numpy() for index in _PLACES)))


def pooled_grams(reports: Sequence[Grams], weights: Sequence[float]) -> Grams:
    """Return the second moments of what several devices have seen, each with its weight, as sent."""
    attention, ffn = (
        as_sent(
            pooled_covariances(
                [
                    (weight, getattr(one, index), torch.from_numpy(getattr(one.means, index)))
                    for weight, one in zip(weights, reports, strict=True)
                ],
                rank=GRAM_RANK,
            )
        )
        for index in _PLACES
    )
    return Grams(
        attention,
        ffn,
        Means(
            *(
                np.average([getattr(one.means, index) for one in reports], axis=0, weights=weights)
                for index in _PLACES
            )
        ),
    )


@dataclass(frozen=True, slots=True)
class Mending:
    """How a slice makes up for what it lacks."""

    means: Means
    grams: Grams | None = None
    """None = by the mean alone; their own means count then."""
    biased: frozenset[str] = frozenset()
    """Output projections that may hold a constant; the others are mended without one, or not at
    all by the mean alone."""


def biased_layers(base: BaseModel, *, saved: bool) -> frozenset[str]:
    """Return the output projections that may hold a constant.

    Args:
        base: The unpruned model.
        saved: Only those whose constant a plain config of the family can say.
    """
    outputs = (base.family.attention_output, base.family.ffn_output)
    return frozenset(name for name in outputs if not saved or can_hold_bias(base, name))


def can_hold_bias(base: BaseModel, name: str) -> bool:
    """Return whether a layer has a bias, or a plain config of the family can give it one."""
    module = base.family.linear(base.network, 0, name)
    return bias_of(module) is not None or name in base.family.bias_switches


@torch.no_grad()
def measure_grams(network: nn.Module, shape: ModelShape, batches: Iterable[Batch]) -> Grams:
    """Return second moments of the inputs of a dense network's output projections, as sent.

    Args:
        network: The dense model.
        shape: What it is made of.
        batches: At least one; padding does not count.

    Raises:
        ModelError: if there is no batch, or what the layers read is not finite.
    """
    family = family_of(network.config)
    watched = {
        index: [(family.linear(network, block, name), _Second()) for block in range(shape.blocks)]
        for index, name in zip(_PLACES, (family.attention_output, family.ffn_output), strict=True)
    }
    both = [pair for pairs in watched.values() for pair in pairs]
    handles = [module.register_forward_pre_hook(second) for module, second in both]
    backbone = network.get_submodule(family.backbone)
    try:
        for batch in batches:
            for _, second in both:
                second.mask = batch.attention_mask.bool()
            backbone(**batch.inputs)
    finally:
        for handle in handles:
            handle.remove()
    if not both[0][1].count:
        raise ModelError("a Gram matrix is measured on data and got no batch; give at least one")
    attention, ffn = ([second for _, second in watched[index]] for index in _PLACES)
    if not all(bool(second.total.isfinite().all()) for second in (*attention, *ffn)):
        raise ModelError(
            "a Gram matrix is not finite: the model overflows on these data; check the model, or "
            "set train.mend to mean"
        )
    return Grams(_told(attention), _told(ffn), Means(_means(attention), _means(ffn)))


class _Second:
    """Covariance of a layer's inputs at real tokens, batch by batch (Chan's update)."""

    def __init__(self) -> None:
        self.mask: torch.Tensor | None = None
        self.count = 0
        self.mean = torch.zeros(())
        self.total = torch.zeros(())

    def __call__(self, module: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        """Take in one batch, (batch, tokens, in); a forward pre-hook."""
        values = inputs[0].detach()
        if self.mask is not None:
            values = values[self.mask]
        values = values.reshape(-1, values.shape[-1]).float()
        mean = values.double().mean(0).cpu()
        apart, count = mean - self.mean, self.count + len(values)
        values = values - mean.to(values)
        between = torch.outer(apart, apart) * (self.count * len(values) / count)
        self.total = self.total + (values.T @ values).cpu() + between.float()
        self.mean = self.mean + apart * (len(values) / count)
        self.count = count


def _told(seconds: Sequence[_Second]) -> Covariances:
    measured = [second.total / second.count for second in seconds]
    return as_sent(covariances(measured, rank=GRAM_RANK))


def _means(seconds: Sequence[_Second]) -> Floats:
    return torch.stack([second.mean for second in seconds]).numpy()


def mended(
    weight: torch.Tensor,
    mending: Mending,
    linear: Linear,
    *,
    shape: ModelShape,
    kept: Kept,
    block: int,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return what is added to a projection's kept columns, and its constant.

    Args:
        weight: Of the dense projection, (out, in).
        mending: What was measured, and how to use it.
        linear: Which layer it is.
        shape: The unpruned model.
        kept: What stays of it.
        block: The layer's.

    Returns:
        (out, kept), None by the mean alone; and (out,), None where the projection can hold no
        constant. Both are None where it loses nothing.

    Raises:
        ModelError: if the Gram matrix cannot be solved for.
    """
    stays = axis_index(shape, linear.in_axis, kept, block)
    goes = removed_index(shape, linear.in_axis, kept, block)
    if stays is None or goes is None:
        return None, None
    is_attention = linear.in_axis == "query"
    means = mending.means if mending.grams is None else mending.grams.means
    mean = (means.attention if is_attention else means.ffn)[block]
    has_bias = linear.name in mending.biased
    stay, go = (torch.from_numpy(rows).to(weight.device) for rows in (stays, goes))
    average = torch.from_numpy(np.nan_to_num(mean)).double().to(weight.device)
    lost = weight[:, go].double()
    constant = lost @ average[go] if has_bias else None
    if mending.grams is None:
        return None, constant
    grams = mending.grams.attention if is_attention else mending.grams.ffn
    second = grams.matrix(block).to(weight.device)
    if not has_bias:
        second = second + torch.outer(average, average)
    change = _solved(second, lost, stay, go, layer=f"{linear.name} of block {block}")
    if constant is not None:
        constant = constant - change @ average[stay]
    return change, constant


def _solved(
    second: torch.Tensor, lost: torch.Tensor, stay: torch.Tensor, go: torch.Tensor, *, layer: str
) -> torch.Tensor:
    """Return `W_R S_RK (S_KK + ridge)^-1`, (out, kept)."""
    inner, cross = second[stay][:, stay], second[go][:, stay]
    spread = inner.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny)
    ridged = inner + RIDGE * spread * torch.eye(len(stay), dtype=inner.dtype, device=inner.device)
    factor, fault = torch.linalg.cholesky_ex(ridged)
    if int(fault) or not bool(ridged.isfinite().all()):
        raise ModelError(
            f"the Gram matrix of {layer} is singular, so least squares has no answer there; "
            "measure it on more data, or set train.mend to mean"
        )
    return torch.cholesky_solve((lost @ cross).T, factor).T
