"""The courier over Flower's Grid: the one place of the engines that knows Flower.

Messages are pushed and pulled in a loop of our own with our own deadline; Flower's
`send_and_receive` polls every three seconds and waits for ever. The blobs that all devices of a
round share are one object to Flower, pushed once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from airtune.engine.envelope import Arrival, Envelope, More
from airtune.errors import CodecError

FAULT = "fault"
WHO = "who"
"""Asks a device for its name, where no key says it."""
_PARTS = "parts"
_QUERY = "query"
POLL_S = 0.2
_GONE = {4: "this device left while it sent its answer", 5: "this device left while it worked"}
"""Flower's codes for an answer that never came whole, and for a node that is gone."""


def to_record(letter: Envelope) -> RecordDict:
    """Return a message as Flower carries it: bytes in arrays, which it cuts up as it likes."""
    parts = {
        f"{place:04d}": _array(part) for place, part in enumerate((letter.header, *letter.blobs))
    }
    return RecordDict({_PARTS: ArrayRecord(parts)})


def to_fault(text: str) -> RecordDict:
    """Return the sentence that stands for an answer."""
    return RecordDict({FAULT: ConfigRecord({"text": text})})


def from_record(content: RecordDict) -> Envelope:
    """Return what `to_record` was given.

    Raises:
        CodecError: if it is something else.
    """
    parts = content.get(_PARTS)
    if not isinstance(parts, ArrayRecord) or not parts:
        raise CodecError("the message holds no parts of airtune; it is refused")
    ordered = [parts[name] for name in sorted(parts)]
    header, *blobs = (bytes(part.data) for part in ordered)
    return Envelope(header, tuple(blobs))


class GridCourier:
    """Carries messages over Flower."""

    def __init__(self, grid: Grid, locate: Callable[[], Mapping[int, int]]) -> None:
        """Know how to reach devices.

        Args:
            grid: Flower's.
            locate: returns the node of every device that is online, by device.
        """
        self._grid, self._locate = grid, locate

    def online(self) -> frozenset[int]:
        """Return the numbers of the devices that can be reached now."""
        return frozenset(self._locate())

    def send(
        self, letters: Mapping[int, Envelope], *, deadline_s: float, more: More | None = None
    ) -> Mapping[int, Arrival]:
        """Carry a message to each device and wait for all answers, or until the deadline."""
        began = time.monotonic()
        nodes = self._locate()
        found = {
            device: Arrival(None, 0.0, "this device is not connected")
            for device in letters
            if device not in nodes
        }
        asked = [device for device in letters if device in nodes]
        messages = [
            Message(to_record(letters[device]), dst_node_id=nodes[device], message_type=_QUERY)
            for device in asked
        ]
        sent = list(self._grid.push_messages(messages)) if messages else []
        if len(sent) != len(asked):
            sent = [""] * len(asked)
        waiting = {name: device for name, device in zip(sent, asked, strict=True) if name}
        found |= {
            device: Arrival(None, 0.0, "the server could not queue the message")
            for name, device in zip(sent, asked, strict=True)
            if not name
        }
        while waiting and _goes_on(time.monotonic() - began, deadline_s, more):
            for message in self._grid.pull_messages(list(waiting)):
                device = waiting.pop(message.metadata.reply_to_message_id, None)
                if device is not None:
                    found[device] = _arrival(message, nodes[device], time.monotonic() - began)
            if waiting:
                time.sleep(POLL_S)
        waited_s = max(time.monotonic() - began, deadline_s) if more else deadline_s
        return found | {
            device: Arrival(None, waited_s, _late(waited_s), is_late=True)
            for device in waiting.values()
        }


def _goes_on(after_s: float, deadline_s: float, more: More | None) -> bool:
    """Return whether answers are still waited for."""
    if after_s < deadline_s or more is None:
        return after_s < deadline_s
    return after_s < deadline_s + more.most_s and more.is_needed()


def _arrival(message: Message, node: int, after_s: float) -> Arrival:
    if message.has_error():
        if message.error.code in _GONE:
            return Arrival(None, after_s, _GONE[message.error.code])
        reason = (message.error.reason or "no reason given").strip().splitlines()[-1]
        return Arrival(None, after_s, f"the client process failed: {reason}")
    if message.metadata.src_node_id != node:
        return Arrival(None, after_s, "the answer came from another device; it is refused")
    said = message.content.get(FAULT)
    if isinstance(said, ConfigRecord):
        return Arrival(None, after_s, str(said["text"]))
    try:
        return Arrival(from_record(message.content), after_s)
    except CodecError as error:
        return Arrival(None, after_s, str(error))


def _late(deadline_s: float) -> str:
    return f"not back by the deadline of {deadline_s:.4g} s"


def _array(content: bytes) -> Array:
    return Array("uint8", (len(content),), "bytes", content)
