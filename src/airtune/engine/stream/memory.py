"""What both ends of a cut remember of samples from round to round, and how they agree on it.

Every message that carries samples bears a number drawn for it, its stamp, and either end keeps with
a sample the stamp of the last message that carried it. A sample is known where both stamps are the
same. When a stream begins, the server lists what it has, and the device forgets whatever is not
so at its own end. An end that has started anew, or a message that never came, thus costs sending
samples anew and nothing else. The server alone drops what was made with another cut or, where the
device part is frozen, with other adapters below it.

    the list    number of a sample u32, stamp u64; one a sample
"""

from __future__ import annotations

import threading
import zlib
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch

from airtune.cost.most import LISTED_BYTES
from airtune.engine.stream.task import SplitTask, remembers
from airtune.errors import CodecError
from airtune.model.stages import held_by_device
from airtune.plan import Assignment, Ints
from airtune.work.wire import Values

_ENTRY = np.dtype([("number", "<u4"), ("stamp", "<u8")])


@dataclass(frozen=True, slots=True)
class Held:
    """A sample as one end remembers it."""

    stamp: int
    """Of the message that carried it last."""
    rows: Values
    """Its last reconstruction, (tokens, width); none at a frozen device, which needs no more than
    the stamp."""
    labels: Ints
    """At the server, where the device part is frozen and labels travel: one a token, or its class."""


Samples: TypeAlias = dict[int, Held]
"""By number: the place of a sample among its device's data."""


def list_of(samples: Samples) -> bytes:
    """Return the list with which the server begins a stream."""
    entries = [(number, held.stamp) for number, held in samples.items()]
    return np.array(entries, _ENTRY).tobytes()


def agree(samples: Samples, listed: bytes) -> None:
    """Forget the samples that the server does not have from the same message.

    Args:
        samples: The device's, changed.
        listed: As it came.

    Raises:
        CodecError: if it is no list.
    """
    if len(listed) % LISTED_BYTES:
        raise CodecError(
            f"a list of samples has {LISTED_BYTES} bytes each, got {len(listed)} bytes; it is refused"
        )
    entries = np.frombuffer(listed, _ENTRY)
    stamps = dict(zip(entries["number"].tolist(), entries["stamp"].tolist(), strict=True))
    for number in [n for n, held in samples.items() if stamps.get(n) != held.stamp]:
        del samples[number]


class ServerMemory:
    """What a server remembers of all devices' samples, for one run at a time.

    It grows with the samples seen, by `tokens * width` numbers each.
    """

    def __init__(self) -> None:
        """Begin with nothing."""
        self._run = ""
        self._devices: dict[int, tuple[str, Samples]] = {}
        self._lock = threading.Lock()

    def begin(self, task: SplitTask) -> dict[int, Samples]:
        """Return what is remembered of the devices of a round, for this round to change.

        What a round that was given up still does is lost on the next. What belongs to another run
        is dropped.

        Returns:
            By device, those whose samples are remembered.
        """
        found: dict[int, Samples] = {}
        with self._lock:
            if task.run != self._run:
                self._run, self._devices = task.run, {}
            for row in task.rows:
                if not remembers(task.work, row.codec):
                    continue
                made_with = _made_with(task, row)
                before, samples = self._devices.get(row.device, ("", {}))
                found[row.device] = dict(samples) if before == made_with else {}
                self._devices[row.device] = made_with, found[row.device]
        return found


def _made_with(task: SplitTask, row: Assignment) -> str:
    """Return what a remembered activation depends on, as `work.lanes` has it."""
    cut = row.cut or 0
    if not task.work.device_frozen:
        return str(cut)
    digest = 0
    for tensors in (task.state.adapters, task.state.merged):
        for name, tensor in sorted(held_by_device(tensors, cut).items()):
            values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
            digest = zlib.crc32(values.tobytes(), zlib.crc32(name.encode(), digest))
    return f"{cut}-{digest:08x}"
