"""The process of one run at a server: the round loop over the devices that call there.

    python -m airtune.deploy.federation.runner        started, fed and heard by `airtune.deploy.server.runs`

It serves its devices on a port of this machine alone; the server's front passes their calls on.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from airtune.deploy.federation.orders import as_plain, order_of, told_errors
from airtune.deploy.federation.run import run_federation
from airtune.engine.stream import StreamServer
from airtune.errors import AirtuneError
from airtune.loop import Laps
from airtune.wire.post import PostTransport, Ticket


class Attached:
    """The devices that are connected to the front, as it says."""

    def __init__(self, server: StreamServer, say: Callable[..., None], *, run: str) -> None:
        """Know of none yet."""
        self._server, self._say, self._run = server, say, run
        self._nodes: dict[str, int] = {}

    def hear(self, message: Mapping[str, Any]) -> None:
        """Take in what the front says."""
        if "present" in message:
            self._nodes = {str(name): int(node) for name, node in message["present"].items()}
        elif "failed" in message:
            self._server.post.fail(message["failed"]["token"], message["failed"]["why"])

    def connected(self) -> Mapping[str, int]:
        """Return the node of every device that is online, by name."""
        return self._nodes

    def transport(self, locate: Callable[[], Mapping[int, int]]) -> PostTransport:
        """Return the way to devices; `locate` returns the node of each that is there."""
        return PostTransport(
            self._server.post, locate=locate, hand=self._hand, name_of=self._name_of, run=self._run
        )

    def _hand(self, node: int, ticket: Ticket) -> None:
        self._say(node=node, ticket=json.loads(ticket.to_json()))

    def _name_of(self, node: int) -> str:
        return next((name for name, one in self._nodes.items() if one == node), "")


class _Line:
    """Lines of JSON to the front; written whole, whichever thread says them."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._lock = out, threading.Lock()

    def __call__(self, **message: Any) -> None:
        with self._lock:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()


def main() -> None:
    """Carry out the order that comes first."""
    say = _Line(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # whatever prints goes to the log
    said = json.loads(sys.stdin.readline())["order"]
    server = StreamServer("127.0.0.1:0")
    nodes = Attached(server, say, run=said["run"])
    say(port=server.port)

    def listen() -> None:
        for line in sys.stdin:
            nodes.hear(json.loads(line))
        os._exit(1)  # the front is gone; the checkpoint stands

    threading.Thread(target=listen, name="front", daemon=True).start()

    def tell(**event: Any) -> None:
        say(event=as_plain(event))

    # this process has read torch since it was asked for, which takes seconds
    laps = Laps(time.monotonic() - max(time.time() - said["asked_at"], 0.0))
    laps.lap("start_s")
    try:
        with told_errors(tell):
            order = order_of(said, serve=lambda: (server, ""))
            run_federation(order, nodes, tell=tell, laps=laps)
    except AirtuneError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    finally:
        server.close()


if __name__ == "__main__":
    main()
