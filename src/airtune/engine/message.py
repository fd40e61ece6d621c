"""What server and devices say to each other: a checked header and blobs of tensors, never a pickle.

    header   JSON: schema, kind, run, round, device, ticket, what the kind needs, and the
             name, length and CRC-32 of every blob that goes with it
    blobs    safetensors, or payloads of a codec

Everything of a message is checked before anything is made of it: the header's size, its schema and
types, the blobs' sizes against what may come, their checksums, and of safetensors every name, type
and shape before a tensor is made. A reply must name the run, round, device and ticket of the task it
answers, so one that is replayed, late or of another device is told apart and refused.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypeVar

import safetensors.torch
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError

from airtune.errors import CodecError, MismatchError
from airtune.plan import Assignment, Pace, Workload, WorkSpec
from airtune.wire.message import MAX_BLOBS, VERSION, Message
from airtune.wire.stage import Offer
from airtune.wire.versions import may_talk
from airtune.work.jobs import TrainSettings

SCHEMA = 2
MAX_HEADER_BYTES = 4 << 20
MAX_REPLY_BYTES = 1 << 30
"""Nothing longer is taken from a device, whatever it declares."""
_MAX_TENSORS = 100_000
_TYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip

Kind = Literal["join", "measure", "train", "evaluate"]
Tensors = Mapping[str, torch.Tensor]
Blobs = Mapping[str, bytes]


@dataclass(frozen=True, slots=True)
class RunSetup:
    """What stays the same in all rounds of a run."""

    recipe: str
    """The recipe as JSON. Of it a device takes the model and how to read data; its own path takes
    the place of the data's source, its own settings that of where to compute."""
    fingerprint: str
    """Hash of the base's weights at the server; a device with other weights is refused."""
    tokenizer: str
    """Hash of its tokenizer, or of how it wants images."""
    workload: Workload
    work: WorkSpec
    train: TrainSettings
    seed: int
    devices: int
    """How many there are in the run."""
    labels: tuple[str, ...] = ()
    threads: int = 0
    """Of torch on the device; 0 = as it likes."""
    parts: Mapping[str, str] = field(default_factory=dict)
    """Hash of each group of the base's tensors, where devices may hold a part of it."""
    version: str = VERSION


@dataclass(frozen=True, slots=True)
class SplitEndpoint:
    """Where a device finds the server's half of a split round, and what lets it in."""

    address: str
    """HOST:PORT, or :PORT of the server that the device knows."""
    token: str
    run: str
    """What the stream calls this run."""
    most_bytes: float | None = None
    """The most that all steps may take, both ways; None = there is no cap."""


@dataclass(frozen=True, slots=True)
class Task:
    """What the server asks of one device."""

    kind: Kind
    run: int
    round: int
    device: int
    """Its number in the run."""
    name: str
    ticket: str
    """Drawn anew for every task; the reply repeats it."""
    setup: RunSetup
    blocks: int | None = None
    """Of the base, which the device must hold, from the first on; None = all, 0 = no weights."""
    row: Assignment | None = None
    upload_bps: float | None = None
    """What the device's share of its link carries; None = not known."""
    is_paced: bool = True
    """The device keeps to that rate, as others share the link."""
    is_judging: bool = False
    """The device judges the model that it is given before it trains on it."""
    most_bytes: int | None = None
    """The most that the answer may take, so that the device's bytes of the month hold it."""
    counted: int = -1
    """The last round in which this device's update counted: what coding lost of it is settled."""
    pace: Pace | None = None
    """What the device settles for itself, in place of `row`'s steps and perhaps its arm."""
    way_s: float = 0.0
    """Seconds that the way to this device took last time, of those that the pace gives it."""
    endpoint: SplitEndpoint | None = None
    base: Offer | None = None
    """Where a device that lacks the base model may fetch it; None = it must have it."""
    order: tuple[str, ...] = ()
    """Names of the tensors in the order that sums and masks depend on."""
    data: str = ""
    """`Joined.data` of this device; "" = it has yet to say."""
    moments: str = ""
    """Hash of the second moments that slices are mended by, which come along where the device is not
    known to hold them; "" = none are needed."""
    schema: int = SCHEMA
    blobs: tuple[tuple[str, int, int], ...] = ()
    """Name, bytes and CRC-32 of what goes with it."""


@dataclass(frozen=True, slots=True)
class Joined:
    """What a device says of itself when it joins a run; counts, no data."""

    rows: int
    held_out: int
    tokens: int
    truncated: int
    """Texts that were longer than the recipe allows and were cut."""
    longest: int
    """Tokens of its longest training text."""
    fingerprint: str
    tokenizer: str
    data: str = ""
    """A hash of its data in this run, so that it is seen where it comes back with others."""
    memory_bytes: float | None = None
    """Left for training; None = its owner has said nothing."""
    probe: Mapping[str, Any] = field(default_factory=dict)
    """Its probe file; {} where it was never probed."""


@dataclass(frozen=True, slots=True)
class Spent:
    """Where a device's time went, by its own clock, in seconds."""

    load_s: float = 0.0
    """Of model and data, where they were not at hand."""
    compute_s: float = 0.0
    """Of the work; in a split round, with what it waited for the server."""
    judging_s: float | None = None
    """Of judging a model before training on it; None = it judged none."""
    download_s: float = 0.0
    """From the first part of the task to the last."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What a device answers."""

    kind: Kind
    run: int
    round: int
    device: int
    name: str
    ticket: str
    status: Literal["ok", "refused", "failed"] = "ok"
    reason: str = ""
    """Why there is no result; one sentence."""
    figures: Mapping[str, float | None] = field(default_factory=dict)
    """Losses, counts; None = not finite."""
    rank_left: int = 0
    samples: int = 0
    spent: Spent = field(default_factory=Spent)
    peak_bytes: float = 0.0
    joined: Joined | None = None
    version: str = VERSION
    schema: int = SCHEMA
    blobs: tuple[tuple[str, int, int], ...] = ()


Header = TypeVar("Header", Task, Reply)
_TASK, _REPLY = TypeAdapter(Task), TypeAdapter(Reply)


def seal_task(task: Task, blobs: Blobs | None = None) -> Message:
    """Return a task as it travels."""
    return _sealed(task, _TASK, blobs or {})


def seal_reply(reply: Reply, blobs: Blobs | None = None) -> Message:
    """Return a reply as it travels."""
    return _sealed(reply, _REPLY, blobs or {})


def open_task(message: Message) -> tuple[Task, dict[str, bytes]]:
    """Return a task and its blobs, checked.

    Raises:
        MismatchError: if it is of another schema.
        CodecError: if it is damaged or lies about what it holds.
    """
    return _open(message, _TASK, "a task")


def open_reply(
    message: Message, task: Task, *, max_bytes: int = MAX_REPLY_BYTES
) -> tuple[Reply, dict[str, bytes]]:
    """Return the reply to a task and its blobs, checked.

    Args:
        message: as received.
        task: what was asked.
        max_bytes: the most that a legal answer to it can hold.

    Raises:
        MismatchError: if it is of another schema, run, round or device, or was seen before.
        CodecError: if it is damaged, too large, or lies about what it holds.
    """
    if message.size_bytes > max_bytes:
        raise CodecError(
            f"the reply of {task.name} has {message.size_bytes} bytes, at most {max_bytes} can "
            "answer this task; it is refused"
        )
    reply, blobs = _open(message, _REPLY, f"the reply of {task.name}")
    for what, got, wanted in (
        ("run", reply.run, task.run),
        ("round", reply.round, task.round),
        ("device", reply.device, task.device),
        ("name", reply.name, task.name),
        ("task", reply.kind, task.kind),
    ):
        if got != wanted:
            raise MismatchError(
                f"the reply of {task.name} is for {what} {got!r}, {wanted!r} was asked; it is "
                "refused"
            )
    if reply.ticket != task.ticket:
        raise MismatchError(
            f"the reply of {task.name} answers another task of round {task.round}; it was sent "
            "before and is refused"
        )
    return reply, blobs


def pack_tensors(tensors: Tensors) -> bytes:
    """Return tensors as safetensors; their order is not kept."""
    return safetensors.torch.save(
        {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    )


def unpack_tensors(content: bytes) -> dict[str, torch.Tensor]:
    """Return tensors from safetensors, after a look at what they declare.

    Args:
        content: as received; nothing in it is trusted.

    Raises:
        CodecError: if names, types, shapes or lengths are not as they must be.
    """
    _check_declared(content)
    try:
        return safetensors.torch.load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise CodecError(f"tensors are damaged: {error}") from error


def _check_declared(content: bytes) -> None:
    """Refuse a blob whose declared types and shapes are not its length."""
    if len(content) < 8:
        raise CodecError(f"tensors are truncated: {len(content)} bytes are no safetensors")
    length = int.from_bytes(content[:8], "little")
    if length > min(MAX_HEADER_BYTES, len(content) - 8):
        raise CodecError(
            f"tensors are truncated: a header of {length} bytes does not fit {len(content)}"
        )
    try:
        entries = json.loads(content[8 : 8 + length])
        named = {name: entry for name, entry in entries.items() if name != "__metadata__"}
        sizes = [
            _TYPES[entry["dtype"]].itemsize * math.prod(map(_size, entry["shape"]))
            for entry in named.values()
        ]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CodecError(f"tensors are damaged: their header cannot be read ({error})") from error
    if len(sizes) > _MAX_TENSORS or sum(sizes) != len(content) - 8 - length:
        raise CodecError(
            f"tensors lie about their size: {len(sizes)} of together {sum(sizes)} bytes are "
            f"declared, {len(content) - 8 - length} came"
        )


def _size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no size")
    return value


def _sealed(header: Header, adapter: TypeAdapter[Header], blobs: Blobs) -> Message:
    listed = tuple((name, len(blob), zlib.crc32(blob)) for name, blob in blobs.items())
    return Message(adapter.dump_json(replace(header, blobs=listed)), tuple(blobs.values()))


def _open(
    message: Message, adapter: TypeAdapter[Header], what: str
) -> tuple[Header, dict[str, bytes]]:
    header = _read(message.header, adapter, what)
    listed: Sequence[tuple[str, int, int]] = header.blobs
    if len(listed) != len(message.blobs) or len(listed) > MAX_BLOBS:
        raise CodecError(
            f"{what} lists {len(listed)} parts and has {len(message.blobs)}; it is refused"
        )
    found: dict[str, bytes] = {}
    for (name, size, checksum), blob in zip(listed, message.blobs, strict=True):
        if len(blob) != size:
            raise CodecError(
                f"{what} is truncated: part {name!r} has {len(blob)} of {size} bytes; it is refused"
            )
        if zlib.crc32(blob) != checksum or name in found:
            raise CodecError(f"{what} is damaged: the checksum of part {name!r} does not match")
        found[name] = blob
    return header, found


def _read(content: bytes, adapter: TypeAdapter[Header], what: str) -> Header:
    if len(content) > MAX_HEADER_BYTES:
        raise CodecError(
            f"{what} has a header of {len(content)} bytes, at most {MAX_HEADER_BYTES} are taken"
        )
    try:
        said = json.loads(content)
        schema = said.get("schema")
        other = said.get("version") or said["setup"]["version"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CodecError(f"{what} is damaged: its header cannot be read") from error
    if schema != SCHEMA or not may_talk(VERSION, str(other)):
        raise MismatchError(
            f"{what} was written by airtune {other} with schema {schema}, this is airtune "
            f"{VERSION} with schema {SCHEMA}; install the same version on server and devices"
        )
    try:
        return adapter.validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        at = ".".join(map(str, first["loc"]))
        raise CodecError(f"{what} is malformed: {at}: {first['msg']}; it is refused") from error
