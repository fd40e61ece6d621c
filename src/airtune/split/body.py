"""What a message of a split step holds, and how it becomes tensors again at the other end."""

from __future__ import annotations

import numpy as np
import torch

from airtune.codec import decode, encode, kept_positions
from airtune.cost.split import INTEGER_BYTES
from airtune.errors import CodecError
from airtune.model.batch import IGNORED, Batch
from airtune.plan import Bools, CodecSpec, Ints, ModelShape, Workload, WorkSpec
from airtune.work.wire import Values, packed, unpacked

_SLACK_BYTES = 4096
"""Of payloads' frames, of streams that entropy coding could not shrink, and of a message's stamp."""


def largest_body_bytes(shape: ModelShape, workload: Workload) -> int:
    """Return the most that a legal message of this workload can hold."""
    tokens = workload.batch * workload.tokens
    values = 4 * tokens * shape.width + tokens // 2 * shape.width
    return values + INTEGER_BYTES * (2 * workload.batch + tokens) + _SLACK_BYTES


def beside_of(batch: Batch, *, labels_stay: bool) -> bytes:
    """Return lengths and, where they travel, labels of a batch as they cross."""
    numbers = [batch.attention_mask.sum(1)]
    if not labels_stay:
        is_class = batch.labels.dim() == 1
        numbers.append(batch.labels if is_class else batch.labels[batch.attention_mask.bool()])
    return np.asarray(torch.cat(numbers).cpu().numpy(), "<i4").tobytes()


def read_beside(
    beside: bytes, rows: int, shape: ModelShape, workload: Workload, *, labels_stay: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return mask (rows, tokens) and labels as in `Batch`.

    Raises:
        CodecError: if lengths or labels are not those of a batch of this workload.
    """
    if rows != workload.batch or len(beside) % 4 or len(beside) < 4 * rows:
        raise CodecError(
            f"a batch of this run has {workload.batch} examples, the message declares {rows} and "
            f"{len(beside)} bytes beside it; it is refused"
        )
    numbers = np.frombuffer(beside, "<i4").astype(np.int64)
    lengths, labels = read_lengths(numbers, rows, shape, workload, labels_stay=labels_stay)
    return laid_out(lengths, labels, shape, labels_stay=labels_stay)


def read_lengths(
    numbers: Ints, rows: int, shape: ModelShape, workload: Workload, *, labels_stay: bool
) -> tuple[Ints, Ints]:
    """Return lengths (rows,) and labels, one example's after the other, of the numbers of examples.

    Raises:
        CodecError: if they are not those of as many examples of this workload.
    """
    lengths, labels = numbers[:rows], numbers[rows:]
    if len(lengths) != rows or (
        rows and not 1 <= lengths.min() <= lengths.max() <= workload.tokens
    ):
        raise CodecError(
            f"lengths must be {rows} between 1 and {workload.tokens} tokens, got {lengths.tolist()}"
        )
    count = 0 if labels_stay else rows if shape.labels > 0 else int(lengths.sum())
    if len(labels) != count:
        raise CodecError(f"{count} labels belong to this batch, got {len(labels)}; it is refused")
    _check_labels(labels, shape)
    return lengths, labels


def laid_out(
    lengths: Ints, labels: Ints, shape: ModelShape, *, labels_stay: bool
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return mask (rows, tokens) and labels as in `Batch`, None where they stay."""
    mask = torch.from_numpy((np.arange(lengths.max()) < lengths[:, None]).astype(np.int64))
    if labels_stay:
        return mask, None
    flat = torch.from_numpy(labels)
    if shape.labels > 0:
        return mask, flat
    return mask, torch.full(mask.shape, IGNORED).masked_scatter(mask.bool(), flat)


def _check_labels(labels: Ints, shape: ModelShape) -> None:
    highest = (shape.labels or shape.vocab) - 1
    known = labels[labels != IGNORED] if not shape.labels else labels
    if known.size and (known.min() < 0 or known.max() > highest):
        raise CodecError(
            f"labels must be between 0 and {highest}, got {known.min()} to {known.max()}"
        )


def kept_of(payload: bytes, elements: int, spec: CodecSpec, work: WorkSpec) -> Bools | None:
    """Return the positions that both ends know of an activation's payload, None where unused."""
    if not work.reuse_mask or spec.kind != "topk":
        return None
    return kept_positions(payload, max_elements=elements)


def put(
    tensor: torch.Tensor,
    mask: torch.Tensor,
    spec: CodecSpec,
    stream: np.random.Generator,
    *,
    kept: Bools | None = None,
) -> bytes:
    """Return the payload of a tensor's rows at marked positions.

    Raises:
        CodecError: if a value is not finite.
    """
    known = kept if spec.kind == "topk" else None
    return encode(packed(tensor, mask), spec, stream, mask=known)


def get(
    payload: bytes, mask: torch.Tensor, like: torch.Tensor, *, kept: Bools | None = None
) -> tuple[torch.Tensor, Values]:
    """Return a payload as a tensor (batch, tokens, width), zero elsewhere, and as it came.

    Args:
        payload: From the other end; nothing in it is trusted.
        mask: (batch, tokens), where its rows belong.
        like: (width,), gives width, type and torch device.
        kept: Positions that the payload leaves out, where its codec does.

    Raises:
        CodecError: if it is damaged or of another shape.
    """
    values = decoded(payload, (int(mask.sum()), like.shape[-1]), kept=kept)
    return unpacked(values, mask, like), values


def decoded(payload: bytes, wanted: tuple[int, int], *, kept: Bools | None = None) -> Values:
    """Return the tensor of a payload that must have a shape.

    Raises:
        CodecError: if it is damaged or of another shape.
    """
    values = decode(payload, max_elements=wanted[0] * wanted[1], mask=kept)
    if values.shape != wanted:
        raise CodecError(
            f"the message holds a tensor of shape {values.shape}, {wanted} belongs to its batch"
        )
    return values
