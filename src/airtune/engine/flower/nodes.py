"""Which of Flower's nodes is which device.

Where devices prove themselves by keys, the register knows. Where they do not (`--insecure`), each
new node is asked for its name, and is believed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from airtune.engine.flower.carrier import WHO, GridCourier

_WAIT_S = 60.0
FRESH_S = 2.0
"""How long the list of nodes is believed."""


class Nodes:
    """The devices that are connected, by name."""

    def __init__(
        self, grid: Grid, name_of: Callable[[int], str | None] | None, *,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        """Ask nobody yet.

        Args:
            grid: Flower's.
            name_of: returns the device that has the key of a node, None for one of no device;
                None where there are no keys, so that devices are asked for their names.
            say: told what is odd.
        """
        self._grid, self._name_of, self._say = grid, name_of, say
        self._names: dict[int, str] = {}
        self._seen_s = -FRESH_S
        self._seen: dict[str, int] = {}

    def connected(self) -> Mapping[str, int]:
        """Return the node of every device that is online, by name."""
        if time.monotonic() - self._seen_s < FRESH_S:
            return self._seen
        online = list(self._grid.get_node_ids())
        new = [node for node in online if node not in self._names]
        self._names |= self._named(new)
        found: dict[str, int] = {}
        for node in online:
            name = self._names.get(node)
            if name and found.setdefault(name, node) != node:
                self._say(f"two nodes call themselves {name!r}; only the first is used")
        self._seen_s, self._seen = time.monotonic(), found
        return found

    def courier(self, locate: Callable[[], Mapping[int, int]]) -> GridCourier:
        """Return the way to devices; `locate` returns the node of each that is there."""
        return GridCourier(self._grid, locate)

    def _named(self, nodes: Sequence[int]) -> dict[int, str]:
        if self._name_of is None:
            return self._asked(nodes)
        found = {}
        for node in nodes:
            name = self._name_of(node)
            if name is None:
                self._say(f"node {node} is no device of this server; it is not used")
            found[node] = name or ""
        return found

    def _asked(self, nodes: Sequence[int]) -> dict[int, str]:
        if not nodes:
            return {}
        messages = [
            Message(RecordDict({WHO: ConfigRecord()}), dst_node_id=node, message_type="query")
            for node in nodes
        ]
        waiting = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        found: dict[int, str] = {}
        until = time.monotonic() + _WAIT_S
        while waiting and time.monotonic() < until:
            for reply in self._grid.pull_messages(list(waiting)):
                node = waiting.pop(reply.metadata.reply_to_message_id, None)
                if node is not None and not reply.has_error():
                    said = reply.content.get(WHO)
                    found[node] = str(said["name"]) if isinstance(said, ConfigRecord) else ""
            time.sleep(0.2)
        return found
