"""`airtune agent`: let this device take part."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Annotated

import typer

from airtune.cli.console import print_note
from airtune.cli.options import AsJson
from airtune.errors import DeploymentError, RecipeError
from airtune.units import parse_bytes


def agent(
    action: Annotated[
        str,
        typer.Argument(
            metavar="[check]", help="check: only look for what would go wrong.", show_default=False
        ),
    ] = "",
    *,
    server: Annotated[str, typer.Option(help="HOST[:PORT] of the server.")],
    data: Annotated[
        str,
        typer.Option(
            help="File or folder of this device's data, or recipe: its share of the recipe's own."
        ),
    ],
    key: Annotated[Path, typer.Option(help="This device's private key.")] = Path("device.key"),
    cert: Annotated[
        Path | None,
        typer.Option(
            help="The certificate of that key; default: device.crt beside it.", show_default=False
        ),
    ] = None,
    ca: Annotated[Path, typer.Option(help="The server's ca.crt.")] = Path("ca.crt"),
    enroll: Annotated[
        str,
        typer.Option(
            "--enroll",
            "--enrol",
            metavar="CODE",
            help="A code from airtune device code: makes a key here, which the server certifies.",
        ),
    ] = "",
    name: Annotated[
        str,
        typer.Option(
            help="With --enroll or --insecure: what this device calls itself; default: its host name.",
            show_default=False,
        ),
    ] = "",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="The server has no TLS and no keys.")
    ] = False,
    model: Annotated[
        str | None, typer.Option(help="Folder of the base model here; default: as the recipe says.")
    ] = None,
    compute: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    memory: Annotated[
        str | None,
        typer.Option(
            help="Most memory that training may take, 700MB for instance; kept by the system."
        ),
    ] = None,
    reserve: Annotated[
        str | None, typer.Option(help="Memory left to the device's owner, 1.5GB for instance.")
    ] = None,
    when: Annotated[
        str | None,
        typer.Option(help="Local hours in which the device takes part, for example 22:00-05:00."),
    ] = None,
    probe: Annotated[
        Path | None, typer.Option(help="This device's probe file, from airtune probe.")
    ] = None,
    cache: Annotated[
        Path | None,
        typer.Option(
            help="Where base models from the server are kept; default: $XDG_CACHE_HOME/airtune.",
            show_default=False,
        ),
    ] = None,
    give_up: Annotated[
        float, typer.Option(help="Seconds for which an unreachable server is tried; 0 = for ever.")
    ] = 0.0,
    patience: Annotated[
        float, typer.Option(help="Seconds for which a refused key is tried.")
    ] = 100.0,
    as_json: AsJson = False,
) -> None:
    """Take part in runs of a server until stopped; reconnects by itself and opens no port.

    Example: airtune agent --server edge.example.org:9443 --data ./logs.jsonl
    """
    from airtune.deploy.agent.agent import Agent
    from airtune.deploy.agent.settings import AgentSettings, read_hours
    from airtune.deploy.caller import Proof, address_of

    settings = AgentSettings(
        server=address_of(server),
        data=data,
        name=name or socket.gethostname(),
        code=enroll,
        proof=None if insecure else Proof(ca, key, cert or key.with_suffix(".crt")),
        model=model,
        compute=compute,
        memory_bytes=_bytes("memory", memory),
        reserve_bytes=_bytes("reserve", reserve),
        hours=None if when is None else read_hours(when),
        probe=_read_probe(probe),
        give_up_s=give_up or float("inf"),
        refused_s=patience,
        cache=(cache or _cache()).absolute(),
    )
    if action not in ("", "check"):
        raise DeploymentError(
            f"the only word after airtune agent is check, got {action!r}; options begin with --"
        )
    if action:
        from airtune.cli.findings import show
        from airtune.deploy.preflight import check_agent

        show(check_agent(settings), as_json=as_json)
        return
    if insecure:
        print_note(
            "INSECURE: no TLS and no key; anyone on the network path can read and change updates"
        )
    Agent(settings, say=print_note).run()


def _cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(home) / "airtune"


def _read_probe(path: Path | None) -> dict[str, object]:
    if path is None:
        return {}
    from airtune.fleet.probe import read_probe

    read_probe(path)  # refuses what the server could not read
    found = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise DeploymentError(f"{path} is no probe file; airtune probe writes one")
    return found


def _bytes(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else parse_bytes(text)
    except ValueError as error:
        raise RecipeError(f"--{name}: {error}") from error
