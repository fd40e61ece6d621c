"""A message's samples, where both ends remember them: which they are, and what is sent of each.

    beside     stamp u64, check u32, first u32 | numbers i4 | lengths i4 | labels i4
    payload    of samples that are new, of `first` bytes | of differences to what is known

A number n of the batch is that of a new sample where it is not negative; -1 - n says that both ends
know sample n. The check is the CRC-32 of the known samples' stamps in order, by which the server
sees that it has them from the same messages. Of a known sample nothing more is sent where the
device part is frozen, and its difference where the codec predicts; lengths and labels go with the
samples of which something is sent.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from airtune.codec import decode, encode
from airtune.errors import CodecError
from airtune.plan import Bools, CodecSpec, Ints, ModelShape, Workload
from airtune.split.body import decoded, read_lengths
from airtune.split.memory import Held, Samples
from airtune.split.message import StepMessage
from airtune.work.wire import Values

_HEAD = struct.Struct("<QII")
HEAD_BYTES = _HEAD.size
_NONE, _NOTHING = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)


@dataclass(frozen=True, slots=True)
class Taken:
    """A batch whose samples the server has taken in, in the batch's order."""

    rows: list[Values]
    """Each sample's activation at real tokens, (tokens, width)."""
    labels: Ints
    """One a token or one a sample, one after the other; none where they stay."""
    sent_values: tuple[int, ...]
    """Numbers in each payload that came."""
    computed: float
    """Fraction of the samples of which something came."""


def put_samples(
    numbers: Ints,
    rows: Mapping[int, Values],
    memory: Samples,
    spec: CodecSpec,
    stream: np.random.Generator,
    *,
    stamp: int,
    again: bool,
) -> tuple[bytes, bytes]:
    """Return what tells the samples apart and the payload; brings the device's memory up to date.

    Args:
        numbers: Of the batch's samples.
        rows: By place in the batch, (tokens, width), what is sent: samples that are not known, and
            with `again` the others too.
        memory: The device's.
        spec: The codec, without `predict`.
        stream: For stochastic rounding.
        stamp: Drawn for this message, 64 bits.
        again: A known sample is sent as its difference.

    Raises:
        CodecError: if a value is not finite.
    """
    known = np.array([int(number) in memory for number in numbers])
    check = _check_of(memory, numbers[known])
    payloads, found = [], {}
    for is_known in (False, True):
        places = [index for index in rows if known[index] == is_known]
        bases = [memory[int(numbers[index])].rows if is_known else None for index in places]
        pieces = [
            rows[index] if base is None else rows[index] - base
            for index, base in zip(places, bases, strict=True)
        ]
        payloads.append(encode(np.concatenate(pieces), spec, stream) if pieces else b"")
        if again and pieces:
            come = _apart(decode(payloads[-1], max_elements=sum(map(np.size, pieces))), pieces)
            pieces = _onto(bases, come)
        for index, piece in zip(places, pieces, strict=True):
            found[int(numbers[index])] = Held(stamp, piece if again else _NOTHING, _NONE)
    memory.update(found)
    told = np.where(known, -1 - numbers, numbers).astype("<i4").tobytes()
    return _HEAD.pack(stamp, check, len(payloads[0])) + told, b"".join(payloads)


def take_samples(
    message: StepMessage,
    memory: Samples,
    *,
    examples: int,
    shape: ModelShape,
    workload: Workload,
    labels_stay: bool,
    again: bool,
) -> Taken:
    """Return the samples of a message; brings the server's memory up to date.

    Args:
        message: As it came; nothing in it is trusted.
        memory: Of this device.
        examples: How many the device has.
        shape: The whole model.
        workload: Batch and length.
        labels_stay: No labels travel.
        again: A known sample is sent as its difference; otherwise nothing is sent of it.

    Raises:
        CodecError: if it is not a batch of this workload, or both ends do not know the same.
    """
    stamp, check, first, numbers, known, rest = _opened(message, examples, workload)
    keys = list(map(int, numbers))
    if not all(keys[index] in memory for index in np.flatnonzero(known)) or (
        check != _check_of(memory, numbers[known])
    ):
        raise CodecError(
            "the message leaves out samples that this end does not have from the same message; it "
            "is refused, the next stream begins with what is known"
        )
    sent = np.ones_like(known) if again else ~known
    lengths = np.array(
        [
            len(memory[key].rows) if is_known else 0
            for key, is_known in zip(keys, known, strict=True)
        ]
    )
    came, flat = read_lengths(rest, int(sent.sum()), shape, workload, labels_stay=labels_stay)
    if again and not np.array_equal(came[known], lengths[known]):
        raise CodecError("a known sample has come with another length; the message is refused")
    lengths[sent] = came
    groups = [np.flatnonzero(~known), np.flatnonzero(known & sent)]
    payloads = message.payload[:first], message.payload[first:]
    rows = [
        memory[key].rows if is_known else _NOTHING
        for key, is_known in zip(keys, known, strict=True)
    ]
    for places, payload in zip(groups, payloads, strict=True):
        pieces = _read(payload, lengths[places], shape.width)
        bases = [rows[index] if known[index] else None for index in places]
        for index, piece in zip(places, _onto(bases, pieces), strict=True):
            rows[index] = piece
    labels = _labels(keys, sent, flat, memory, came, per_token=shape.labels == 0)
    for index in np.flatnonzero(sent):
        memory[keys[index]] = Held(stamp, rows[index], _NONE if again else labels[index])
    sizes = tuple(int(lengths[places].sum()) * shape.width for places in groups if len(places))
    return Taken(rows, np.concatenate(labels), sizes, float(sent.mean()))


def _opened(
    message: StepMessage, examples: int, workload: Workload
) -> tuple[int, int, int, Ints, Bools, Ints]:
    """Return stamp, check, bytes of the first payload, numbers, which are known, and what follows.

    Raises:
        CodecError: if the message is too short, or names samples that there are not.
    """
    beside, count = message.beside, workload.batch
    if message.rows != count or len(beside) % 4 or len(beside) < HEAD_BYTES + 4 * count:
        raise CodecError(
            f"a batch of this run has {count} numbered examples, the message declares "
            f"{message.rows} and {len(beside)} bytes beside it; it is refused"
        )
    stamp, check, first = _HEAD.unpack_from(beside)
    told = np.frombuffer(beside, "<i4", offset=HEAD_BYTES).astype(np.int64)
    numbers, known = np.where(told < 0, -1 - told, told)[:count], told[:count] < 0
    if numbers.max() >= examples:
        raise CodecError(
            f"sample {numbers.max()} has come of a device that has {examples}; have it join again"
        )
    if first > len(message.payload):
        raise CodecError(
            f"the message declares {first} bytes of new samples and has {len(message.payload)}"
        )
    return stamp, check, first, numbers, known, told[count:]


def _check_of(memory: Samples, numbers: Ints) -> int:
    stamps = np.array([memory[int(number)].stamp for number in numbers], "<u8")
    return zlib.crc32(stamps.tobytes())


def _read(payload: bytes, lengths: Ints, width: int) -> list[Values]:
    """Return the samples of one payload, (tokens, width) each.

    Raises:
        CodecError: if it is damaged or of another shape.
    """
    if not len(lengths):
        if payload:
            raise CodecError(f"{len(payload)} bytes have come of samples that are not sent")
        return []
    values = decoded(payload, (int(lengths.sum()), width))
    return np.split(values, np.cumsum(lengths)[:-1])


def _apart(values: Values, like: Sequence[Values]) -> list[Values]:
    return np.split(values, np.cumsum([len(piece) for piece in like])[:-1])


def _onto(bases: Sequence[Values | None], pieces: Sequence[Values]) -> list[Values]:
    """Return what both ends have of samples that came whole, or as differences to a base."""
    return [
        piece.copy() if base is None else base + piece  # a view would hold the whole batch
        for base, piece in zip(bases, pieces, strict=True)
    ]


def _labels(
    keys: Sequence[int], sent: Bools, flat: Ints, memory: Samples, came: Ints, *, per_token: bool
) -> list[Ints]:
    """Return each sample's labels, those that came and those that are remembered."""
    places = np.flatnonzero(sent)
    if not flat.size:
        pieces = [_NONE] * len(places)
    else:
        pieces = np.split(flat, np.cumsum(came if per_token else np.ones_like(came))[:-1])
    fresh = dict(zip(places.tolist(), pieces, strict=True))
    return [
        fresh[index] if index in fresh else memory[key].labels for index, key in enumerate(keys)
    ]
