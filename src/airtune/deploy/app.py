"""The two Flower apps: a server app that runs the round loop, and a client app that only carries.

A client process lives for one message, so the client app hands it on to the agent's worker and
imports nothing heavy. Where no agent runs (Flower's own simulation), it does the work
itself, with the model kept for as long as the process lives.
"""

from __future__ import annotations

from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from airtune.deploy import hatch, inside
from airtune.engine.flower.carrier import WHO, from_record, to_fault, to_record
from airtune.errors import AirtuneError

WAIT_S = 120.0
"""How long a worker may take to be there; it loads torch when it starts."""

client = ClientApp()
server = ServerApp()

__all__ = ["client", "server"]


@client.query()  # type: ignore[untyped-decorator]
def carry(message: Message, context: Context) -> Message:
    """Hand a message to the worker and its answer back."""
    return Message(_carried(message.content, context), reply_to=message)


@server.main()  # type: ignore[untyped-decorator]
def run(grid: Grid, context: Context) -> None:
    """Run a recipe over the devices that this server reaches."""
    from airtune.deploy.serverside import run_here
    from airtune.engine.flower.nodes import Nodes

    run_here(context.run_config, lambda name_of, say: Nodes(grid, name_of, say=say))


def _carried(content: RecordDict, context: Context) -> RecordDict:
    settings = context.node_config
    if WHO in content:
        return RecordDict({WHO: ConfigRecord({"name": _name(context)})})
    try:
        letter = from_record(content)
        if "socket" not in settings:
            return to_record(inside.handle(letter, _text(settings.get("data"))))
        token = Path(str(settings["token"])).read_bytes()
        return to_record(hatch.ask(Path(str(settings["socket"])), token, letter, wait_s=WAIT_S))
    except AirtuneError as error:
        return to_fault(str(error))


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _name(context: Context) -> str:
    """Return what this device calls itself; in Flower's simulation, its number."""
    number = context.node_config.get("partition-id", context.node_id)
    return str(context.node_config.get("name", f"device-{number}"))
