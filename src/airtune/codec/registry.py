"""The codecs by name, and the two functions everyone calls."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from airtune.codec import deadzone, frame, outliers, plain, positions, rows, topk
from airtune.errors import CodecError
from airtune.plan import CodecSpec

CODECS: dict[str, int] = {"identity": 0, "fp16": 1, "topk": 2, "deadzone": 3}
"""Name of a codec and the number that stands for it in a payload."""

_BY_LEVELS = ("topk", "deadzone")
"""Codecs whose levels are those of a whole tensor, which rows that stand out would set."""
_FLAGS = {
    0: 0,
    1: 0,
    2: frame.GIVEN_MASK | positions.GAPS | outliers.ROWS_APART | rows.BY_ROW | rows.CENTRED,
    3: positions.GAPS | deadzone.APART | deadzone.WIDE | deadzone.BY_CONTEXT | outliers.ROWS_APART,
}
"""By the codec's number, the flags that its payloads can have."""


def encode(
    tensor: NDArray[np.float32],
    spec: CodecSpec,
    generator: np.random.Generator,
    *,
    mask: NDArray[np.bool_] | None = None,
) -> bytes:
    """Return the payload of a float32 tensor of any shape with at least one entry.

    Args:
        tensor: finite values.
        spec: the codec and its settings.
        generator: drives stochastic rounding; untouched by the deterministic codecs.
        mask: for `topk`, positions that both ends already know (a gradient may reuse those of
            the activation); the same shape.

    Raises:
        CodecError: if the tensor is empty or not finite, or a setting is out of range.
    """
    _check(tensor, spec, mask)
    chosen = outliers.outlying_rows(tensor) if spec.kind in _BY_LEVELS else None
    if chosen is None:
        return frame.pack(_to_frame(tensor, spec, generator, mask))
    rest = tensor.reshape(-1, tensor.shape[-1])[~chosen]
    coded = _to_frame(rest, spec, generator, _of_rest(mask, chosen))
    return frame.pack(outliers.with_rows(coded, tensor, chosen))


def decode(
    payload: bytes, *, max_elements: int, mask: NDArray[np.bool_] | None = None
) -> NDArray[np.float32]:
    """Return the tensor of a payload, checking all it declares before memory is taken.

    Raises:
        CodecError: if the payload is truncated, altered, too large, or lies about itself.
    """
    envelope = _opened(payload, max_elements, mask)
    header = envelope.frame
    if not header.flags & outliers.ROWS_APART:
        return _from_envelope(envelope, mask)
    apart = outliers.open_rows(envelope)
    others = _from_envelope(apart.rest, _of_rest(mask, apart.chosen))
    return apart.with_others(others).reshape(header.shape)


def kept_positions(payload: bytes, *, max_elements: int) -> NDArray[np.bool_]:
    """Return which entries of a `topk` payload arrive with a level of their own, in its shape.

    They are what a `mask` of a later payload may be. Rows that are sent apart are kept whole.

    Raises:
        CodecError: as `decode`, or if the payload is of another codec.
    """
    envelope = _opened(payload, max_elements, None)
    header = envelope.frame
    if header.kind != CODECS["topk"]:
        raise CodecError(f"only topk keeps some positions, got codec {header.kind}")
    if not header.flags & outliers.ROWS_APART:
        return topk.positions_of(envelope, mask=None).reshape(header.shape)
    apart = outliers.open_rows(envelope)
    whole = np.ones((apart.chosen.size, header.shape[-1]), np.bool_)
    whole[~apart.chosen] = topk.positions_of(apart.rest, mask=None).reshape(-1, header.shape[-1])
    return whole.reshape(header.shape)


def _opened(payload: bytes, max_elements: int, mask: NDArray[np.bool_] | None) -> frame.Envelope:
    """Return a payload's checked header."""
    envelope = frame.unpack(payload, max_elements=max_elements)
    header = envelope.frame
    if header.kind not in _FLAGS or header.flags & ~_FLAGS[header.kind]:
        raise CodecError(
            f"the payload's codec must be one of {sorted(_FLAGS)} with its own flags, got "
            f"{header.kind} with {header.flags:#x}; update the older end"
        )
    if mask is not None and mask.size != header.elements:
        raise CodecError(
            f"the mask has {mask.size} entries and the payload {header.elements}; ask for it again"
        )
    return envelope


def _to_frame(
    tensor: NDArray[np.float32],
    spec: CodecSpec,
    generator: np.random.Generator,
    mask: NDArray[np.bool_] | None,
) -> frame.Frame:
    kind = CODECS[spec.kind]
    if spec.kind == "topk":
        return topk.to_frame(tensor, spec, generator, kind=kind, mask=mask)
    if spec.kind == "deadzone":
        return deadzone.to_frame(tensor, spec, kind=kind)
    return plain.to_frame(tensor, np.float16 if spec.kind == "fp16" else np.float32, kind=kind)


def _from_envelope(envelope: frame.Envelope, mask: NDArray[np.bool_] | None) -> NDArray[np.float32]:
    kind = envelope.frame.kind
    if kind == CODECS["topk"]:
        return topk.from_envelope(envelope, mask=mask)
    if kind == CODECS["deadzone"]:
        return deadzone.from_envelope(envelope)
    return plain.from_envelope(envelope, np.float16 if kind == CODECS["fp16"] else np.float32)


def _of_rest(mask: NDArray[np.bool_] | None, chosen: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """Return a mask of the rows that are not sent apart."""
    return None if mask is None else mask.reshape(chosen.size, -1)[~chosen]


def _check(tensor: NDArray[np.float32], spec: CodecSpec, mask: NDArray[np.bool_] | None) -> None:
    if spec.kind not in CODECS:
        raise CodecError(f"codec must be one of {', '.join(CODECS)}, got {spec.kind!r}")
    if spec.predict:
        raise CodecError(
            "predict needs the memory of earlier reconstructions; code the difference instead"
        )
    if tensor.dtype != np.float32 or tensor.size == 0:
        raise CodecError(
            f"a codec takes a float32 tensor with entries, got {tensor.dtype} of shape {tensor.shape}"
        )
    if not np.all(np.isfinite(tensor)):
        raise CodecError("the tensor holds NaN or infinity; refuse the batch that made it")
    if spec.kind == "topk" and not (0.0 < spec.keep <= 1.0 and 2 <= spec.bits <= 8):
        raise CodecError(
            f"topk needs keep in (0, 1] and bits in [2, 8], got keep {spec.keep:g} and bits {spec.bits}"
        )
    if spec.kind == "deadzone" and not 0.0 < spec.step <= 100.0:
        raise CodecError(
            f"deadzone needs a step in (0, 100] standard deviations, got {spec.step:g}"
        )
    if mask is not None and (spec.kind != "topk" or mask.shape != tensor.shape):
        raise CodecError(
            f"a mask is for topk and of the tensor's shape {tensor.shape}, got {spec.kind} and {mask.shape}"
        )
