"""How much of the inputs a server could read from what crosses a cut.

The server, or whoever listens, sees decoded activations. The attack measured here is a simple one:
ridge regression from the activation at a position to that position's input (the token's embedding,
or the pixels of a patch), fitted on examples the attacker owns and judged on others; for text the
nearest row of the embedding table to what it decodes is the token it believes in. It is a floor, not
a guarantee: a stronger attack recovers more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from airtune.errors import DataError
from airtune.keys import generator
from airtune.model.base import BaseModel
from airtune.model.batch import Batch, Sequences, collate
from airtune.model.cut import DeviceHalf
from airtune.model.images import Images, collate_images, image_tokens
from airtune.model.stages import ends_of
from airtune.plan import CodecSpec
from airtune.work.wire import cross, packed

RIDGE = 1e-3
"""Penalty, as a fraction of the mean variance of an activation's entry."""
PASS_EXAMPLES = 16
"""Examples whose activations are encoded as one payload."""


@dataclass(frozen=True, slots=True)
class Leakage:
    """What the attack recovers from one cut through one codec."""

    cut: int
    codec: CodecSpec
    explained: float
    """Fraction of the inputs' variance that the decoder explains on unseen examples: 1 = all of it,
    0 = no more than their mean, below 0 = it misleads."""
    token_recovery: float | None
    """Fraction of unseen tokens found again; None for images."""
    chance: float | None
    """Fraction found by always naming the commonest token of the attacker's examples."""
    distortion: float
    """Relative squared error of the codec, which tells what the protection costs in fidelity."""
    positions: int
    """Unseen positions judged."""


@dataclass(frozen=True, slots=True)
class _Positions:
    """Positions one after the other."""

    activation: torch.Tensor
    """(positions, width), as received; float64."""
    inputs: torch.Tensor
    """(positions, features), float64."""
    tokens: torch.Tensor | None
    """(positions,)."""
    distortion: float


def measure_leakage(
    base: BaseModel,
    own: Sequences | Images,
    unseen: Sequences | Images,
    *,
    cuts: Sequence[int],
    codecs: Sequence[CodecSpec],
    adapters: Mapping[str, torch.Tensor] | None = None,
    scale: float = 1.0,
    tokens: int = 512,
    seed: int = 0,
) -> list[Leakage]:
    """Attack every cut through every codec.

    Args:
        base: The model whose device part makes the activations.
        own: Examples that the attacker has with their inputs, to fit the decoder.
        unseen: Examples to judge it on.
        cuts: Blocks on the device.
        codecs: What the activations cross; `predict` is ignored, a first visit is attacked.
        adapters: Of the device part; None = none.
        scale: alpha / rank.
        tokens: Longest text.
        seed: For stochastic rounding.

    Returns:
        One figure a cut and codec, cuts outermost.

    Raises:
        DataError: if either set is empty.
        ModelError: if a cut is outside the model.
    """
    if len(own) == 0 or len(unseen) == 0:
        raise DataError(
            f"leakage needs examples to fit and to judge on, got {len(own)} and {len(unseen)}"
        )
    found = []
    for cut in cuts:
        half = DeviceHalf(base.network, base.family, [adapters or {}], cut=cut, scale=scale)
        for codec in codecs:
            seen = [
                _observe(base, half, data, codec, tokens=tokens, seed=seed + number)
                for number, data in enumerate((own, unseen))
            ]
            found.append(_attack(base, cut, codec, *seen))
    return found


@torch.no_grad()
def _observe(
    base: BaseModel,
    half: DeviceHalf,
    data: Sequences | Images,
    codec: CodecSpec,
    *,
    tokens: int,
    seed: int,
) -> _Positions:
    """Return what the server receives of these examples, beside what they are."""
    stream = generator(seed, "leakage", half.cut)
    activations, inputs, names = [], [], []
    lost = total = 0.0
    for batch in _batches(base, data, tokens):
        mask = _positions(base, batch)
        sent = packed(half.forward(batch), batch.attention_mask)
        received = cross(sent, codec, stream).values
        lost += float(np.square(sent - received, dtype=np.float64).sum())
        total += float(np.square(sent, dtype=np.float64).sum())
        where = mask[batch.attention_mask.bool()].cpu()
        activations.append(torch.from_numpy(received).double()[where])
        inputs.append(_inputs(base, batch, mask).double().cpu())
        if batch.input_ids.dim() == 2:
            names.append(batch.input_ids[mask].cpu())
    return _Positions(
        torch.cat(activations),
        torch.cat(inputs),
        torch.cat(names) if names else None,
        lost / total if total else 0.0,
    )


def _attack(
    base: BaseModel, cut: int, codec: CodecSpec, own: _Positions, unseen: _Positions
) -> Leakage:
    decoded = _ridge(own.activation, own.inputs, unseen.activation)
    spread = (unseen.inputs - own.inputs.mean(0)).square().sum()
    explained = 1.0 - float((unseen.inputs - decoded).square().sum() / spread)
    recovery = chance = None
    if own.tokens is not None and unseen.tokens is not None:
        table = _table(base).double().cpu()
        recovery = float((_nearest(decoded, table) == unseen.tokens).double().mean())
        commonest = own.tokens.bincount().argmax()
        chance = float((unseen.tokens == commonest).double().mean())
    return Leakage(
        cut, codec, explained, recovery, chance, unseen.distortion, len(unseen.activation)
    )


def _ridge(x: torch.Tensor, y: torch.Tensor, queries: torch.Tensor) -> torch.Tensor:
    """Return predictions (queries, features) of y (n, features) from x (n, width)."""
    mean_x, mean_y = x.mean(0), y.mean(0)
    centred = x - mean_x
    gram = centred.T @ centred
    penalty = RIDGE * gram.diagonal().mean() + torch.finfo(gram.dtype).tiny
    eye = torch.eye(len(gram), dtype=gram.dtype)
    weight = torch.linalg.solve(gram + penalty * eye, centred.T @ (y - mean_y))
    return torch.as_tensor((queries - mean_x) @ weight + mean_y)


def _nearest(points: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Return the row of the table (vocab, width) nearest to each point (n, width)."""
    norms = table.square().sum(1)
    # |p - t|^2 without |p|^2, a chunk of points at a time
    return torch.cat([(norms - 2.0 * part @ table.T).argmin(1) for part in points.split(256)])  # type: ignore[no-untyped-call]


def _batches(base: BaseModel, data: Sequences | Images, tokens: int) -> Iterator[Batch]:
    for start in range(0, len(data), PASS_EXAMPLES):
        rows = range(start, min(start + PASS_EXAMPLES, len(data)))
        if isinstance(data, Images):
            count = image_tokens(base.network.config)
            yield collate_images(data, rows, tokens=count, device=base.device)
        else:
            longest = min(max(len(data.tokens[row]) for row in rows), tokens)
            yield collate(data, rows, padding=longest, device=base.device)


def _positions(base: BaseModel, batch: Batch) -> torch.Tensor:
    """Return the positions that stand for an input: real tokens, or patches without the class."""
    mask = batch.attention_mask.bool()
    if batch.input_ids.dim() != 2:
        mask = mask.clone()
        mask[:, 0] = False
    return mask


def _inputs(base: BaseModel, batch: Batch, mask: torch.Tensor) -> torch.Tensor:
    """Return the input at each position: a token's embedding, or a patch's pixels."""
    if batch.input_ids.dim() == 2:
        return _table(base)[batch.input_ids[mask]]
    size = int(base.network.config.patch_size)
    patches = torch.nn.functional.unfold(batch.input_ids, size, stride=size)
    return patches.transpose(1, 2).flatten(0, 1)


def _table(base: BaseModel) -> torch.Tensor:
    """Return the token embedding, (vocab, width)."""
    backbone = base.network.get_submodule(base.family.backbone)
    embedding = backbone.get_submodule(ends_of(base.family).embedding)
    words = getattr(embedding, "word_embeddings", embedding)
    return torch.as_tensor(words.weight).detach()
