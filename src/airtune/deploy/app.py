"""airtune as a Flower app: the same run over Flower's SuperLink and SuperNodes, or its simulation.

Flower knows who is there, starts and stops the run, and carries tickets of a few hundred bytes; the
tasks, answers and steps go over the server app's own stream, as they do under `airtune server`.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from airtune.deploy.federation.orders import as_line
from airtune.errors import AirtuneError, DeploymentError
from airtune.wire.channel import RUN_KEY, Way, channel_credentials, server_credentials
from airtune.wire.post import Post, PostTransport, Ticket
from airtune.wire.tasks import fetch_task, send_answer

if TYPE_CHECKING:
    from airtune.deploy.agent.device import Device
    from airtune.engine.stream import StreamServer

client = ClientApp()
server = ServerApp()

__all__ = ["client", "server"]

_TICKET, _WHO, _SAID = "ticket", "who", "said"
_QUERY, _WAIT_S, _LOOK_S, _FRESH_S = "query", 60.0, 0.2, 2.0
_DEVICES: dict[str, Device] = {}
"""Kept as long as Flower keeps the process: its simulation keeps it for a run."""


@client.query()  # type: ignore[untyped-decorator]
def work(message: Message, context: Context) -> Message:
    """Do the task that a ticket names; the answer goes over the stream."""
    if _WHO in message.content:
        return _reply(message, _name(context))
    try:
        _do(Ticket.from_json(str(message.content[_TICKET]["json"])), context.node_config)
    except AirtuneError as error:
        return _reply(message, str(error))
    return _reply(message, "")


@server.main()  # type: ignore[untyped-decorator]
def run(grid: Grid, context: Context) -> None:
    """Run a recipe over the devices that this server reaches."""
    from airtune.deploy.federation.orders import order_of, told_errors
    from airtune.deploy.federation.run import run_federation

    config = context.run_config
    stream = _stream(config)
    nodes = GridNodes(
        grid, stream.post, _address(config, stream), say=lambda text: _tell(note=text)
    )
    try:
        with told_errors(_tell):
            run_federation(order_of(config, serve=lambda: (stream, "")), nodes, tell=_tell)
    finally:
        stream.close()


class GridNodes:
    """The devices that Flower reaches, by the names they call themselves."""

    def __init__(self, grid: Grid, post: Post, address: str, *, say: Callable[[str], None]) -> None:
        """Ask nobody yet.

        Args:
            grid: Flower's.
            post: where tasks are laid out.
            address: HOST:PORT where devices find them.
            say: told what is odd.
        """
        self._grid, self._post, self._address, self._say = grid, post, address, say
        self._names: dict[int, str] = {}
        self._seen_s, self._seen = -_FRESH_S, dict[str, int]()
        self._out: dict[str, str] = {}
        """Tokens of the tickets that are out, by Flower's number of the message."""
        self._lock = threading.Lock()

    def connected(self) -> Mapping[str, int]:
        """Return the node of every device that is online, by name."""
        with self._lock:
            self._look()
            if time.monotonic() - self._seen_s >= _FRESH_S:
                online = list(self._grid.get_node_ids())
                self._names |= self._asked([node for node in online if node not in self._names])
                self._seen = {}
                for node in online:
                    name = self._names.get(node)
                    if name and self._seen.setdefault(name, node) != node:
                        self._say(f"two nodes call themselves {name!r}; only the first is used")
                self._seen_s = time.monotonic()
            return dict(self._seen)

    def transport(self, locate: Callable[[], Mapping[int, int]]) -> PostTransport:
        """Return the way to devices; `locate` returns the node of each that is there."""
        return PostTransport(self._post, locate=locate, hand=self._hand, address=self._address)

    def _hand(self, node: int, ticket: Ticket) -> None:
        content = RecordDict({_TICKET: ConfigRecord({"json": ticket.to_json()})})
        with self._lock:
            [name] = self._grid.push_messages(
                [Message(content, dst_node_id=node, message_type=_QUERY)]
            )
            self._out[name] = ticket.token

    def _look(self) -> None:
        """Learn which tasks will not be answered."""
        for message in self._grid.pull_messages(list(self._out)) if self._out else ():
            token = self._out.pop(message.metadata.reply_to_message_id, "")
            why = _said(message)
            if why:
                self._post.fail(token, why)

    def _asked(self, nodes: Sequence[int]) -> dict[int, str]:
        """Return what new nodes call themselves."""
        messages = [
            Message(RecordDict({_WHO: ConfigRecord()}), dst_node_id=node, message_type=_QUERY)
            for node in nodes
        ]
        if not messages:
            return {}
        waiting = dict(zip(self._grid.push_messages(messages), nodes, strict=True))
        found: dict[int, str] = {}
        until = time.monotonic() + _WAIT_S
        while waiting and time.monotonic() < until:
            for message in self._grid.pull_messages(list(waiting)):
                node = waiting.pop(message.metadata.reply_to_message_id, None)
                if node is not None and not message.has_error():
                    found[node] = _said(message)
            time.sleep(_LOOK_S)
        return found


def _reply(message: Message, text: str) -> Message:
    return Message(RecordDict({_SAID: ConfigRecord({"text": text})}), reply_to=message)


def _said(message: Message) -> str:
    if message.has_error():
        reason = (message.error.reason or "no reason given").strip().splitlines()[-1]
        return f"the client process failed: {reason}"
    return str(message.content[_SAID]["text"])


def _do(ticket: Ticket, config: Mapping[str, Any]) -> None:
    """Do a task in this process, on a file of data, or on a share of the recipe's own."""
    from airtune.deploy.agent.device import Device, DeviceSettings
    from airtune.deploy.reading import OF_RECIPE

    data = str(config.get("data") or OF_RECIPE)
    if data not in _DEVICES:
        _DEVICES[data] = Device(
            DeviceSettings(data=data, compute="auto", any_path="partition-id" in config)
        )
    authority = config.get("ca")
    credentials = (
        None if authority is None else channel_credentials(Path(str(authority)).read_bytes())
    )
    way = Way(ticket.address, credentials, ((RUN_KEY, ticket.run),))
    send_answer(way, ticket, _DEVICES[data].handle(fetch_task(way, ticket), way))


def _stream(config: Mapping[str, Any]) -> StreamServer:
    """Start what serves the devices: on this machine alone, or with TLS where others reach it."""
    from airtune.engine.stream import StreamServer

    address, folder = str(config.get("stream-address") or ""), str(config.get("stream-tls") or "")
    if not address:
        return StreamServer("127.0.0.1:0")
    if not folder:
        raise DeploymentError(
            f"the stream at {address} needs TLS: name the folder of server.crt and server.key with "
            "stream-tls (airtune server start makes one)"
        )
    certificate, key = (Path(folder) / name for name in ("server.crt", "server.key"))
    credentials = server_credentials(certificate.read_bytes(), key.read_bytes())
    return StreamServer(f"0.0.0.0:{address.rpartition(':')[2]}", credentials=credentials)


def _address(config: Mapping[str, Any], stream: StreamServer) -> str:
    return str(config.get("stream-address") or f"127.0.0.1:{stream.port}")


def _name(context: Context) -> str:
    """Return what this device calls itself; in Flower's simulation, its number."""
    number = context.node_config.get("partition-id", context.node_id)
    return str(context.node_config.get("name", f"device-{number}"))


def _tell(**event: Any) -> None:
    """Write an event for whoever follows the run."""
    print(as_line(event), file=sys.stdout, flush=True)
