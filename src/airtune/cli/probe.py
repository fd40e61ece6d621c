"""`airtune probe`: what this device can do, measured in under two minutes and written as a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note
from airtune.cli.options import AsJson
from airtune.errors import DeploymentError
from airtune.units import format_bytes

if TYPE_CHECKING:
    from airtune.deploy.caller import ServerClient


def probe(
    output: Annotated[Path, typer.Argument(help="File to write.")] = Path("probe.json"),
    *,
    name: Annotated[str | None, typer.Option(help="Of the device; default: its host name.")] = None,
    server: Annotated[
        str | None, typer.Option(help="HOST[:PORT] of the server, to measure the link.")
    ] = None,
    key: Annotated[Path, typer.Option(help="This device's private key.")] = Path("device.key"),
    cert: Annotated[
        Path | None,
        typer.Option(
            help="The certificate of that key; default: device.crt beside it.", show_default=False
        ),
    ] = None,
    ca: Annotated[Path, typer.Option(help="The server's ca.crt.")] = Path("ca.crt"),
    insecure: Annotated[
        bool, typer.Option("--insecure", help="The server has no TLS and no keys.")
    ] = False,
    up_mbps: Annotated[
        float | None,
        typer.Option(min=0, help="Rate of the uplink, instead of measuring with --server."),
    ] = None,
    down_mbps: Annotated[
        float | None, typer.Option(min=0, help="Rate of the downlink, likewise.")
    ] = None,
    link: Annotated[
        str | None, typer.Option(help="Link that several devices share; same name, same link.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Model that will be trained: a known name, folder or hub id.")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 4,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens in a sequence.")] = 128,
    rank: Annotated[int, typer.Option(min=1, help="LoRA rank.")] = 8,
    memory: Annotated[
        float | None, typer.Option(min=0, help="Cap of a training process, in MB.")
    ] = None,
    reserve: Annotated[float, typer.Option(min=0, help="Memory the owner keeps, in MB.")] = 0.0,
    seconds: Annotated[
        float, typer.Option(min=0.1, help="How long the speed is measured; the link takes 8 s.")
    ] = 40.0,
    as_json: AsJson = False,
) -> None:
    """Measure this device: FLOP/s in training, memory, power, and the link to the server.

    Examples: airtune probe camera-3.json --server edge:9443 ·
    airtune probe --up-mbps 20 --down-mbps 50
    """
    client = _server_of(
        server, None if insecure else (ca, key, cert or key.with_suffix(".crt")), name
    )
    speeds = _link_speeds(client, up_mbps, down_mbps)
    own_name = name if client is None else client.call("Hello")["name"]
    from airtune.deploy.agent.probe import (
        Figures,
        device_name,
        measure_speed,
        probe_document,
        reference_of,
        training_memory_bytes,
        write_probe,
    )

    shape, workload = reference_of(model, batch=batch, tokens=tokens, rank=rank)
    cap_bytes = None if memory is None else memory * 1e6
    left_bytes = training_memory_bytes(cap_bytes, reserve_bytes=reserve * 1e6)
    print_note(f"measuring the speed for {seconds:g} s; leave the device alone meanwhile")
    figures = Figures(measure_speed(seconds=seconds), left_bytes, *speeds)
    document = probe_document(
        own_name or device_name(), figures, shape=shape, workload=workload, link=link
    )
    write_probe(output, document)
    if client is not None:
        client.call("Probe", **document)
    if as_json:
        print_json(document)
        return
    kept = "" if client is None else f"; the server keeps it as {document['name']}"
    print_line(f"{output}: {_said(document, left_bytes)}{kept}")


def _said(document: Mapping[str, Any], left_bytes: float) -> str:
    watt = document.get("power_w")
    return (
        f"{document['flops_per_s'] / 1e9:.1f} GFLOP/s in training, {format_bytes(left_bytes)} left "
        f"for it, up {document['up_mbps']:.1f} and down {document['down_mbps']:.1f} Mbit/s, "
        + (f"{watt:.1f} W" if watt else "power cannot be read here")
    )


def _server_of(
    server: str | None, files: tuple[Path, Path, Path] | None, name: str | None
) -> ServerClient | None:
    """Return how this device reaches the server, None where none is named."""
    if server is None:
        return None
    from airtune.deploy.agent.probe import device_name
    from airtune.deploy.caller import Proof, ServerClient, address_of
    from airtune.wire.channel import SERVER

    proof = None if files is None else Proof(*files)
    return ServerClient(address_of(server), proof, SERVER, name or device_name())


def _link_speeds(
    client: ServerClient | None, up_mbps: float | None, down_mbps: float | None
) -> tuple[float, float, float]:
    """Return uplink and downlink in bit/s and the round trip, measured or as told.

    Raises:
        DeploymentError: if neither a server nor speeds are given, or both.
    """
    if client is None:
        if not up_mbps or not down_mbps:
            raise DeploymentError(
                "the link is measured with --server HOST:PORT, or told with --up-mbps and "
                "--down-mbps above 0"
            )
        return up_mbps * 1e6, down_mbps * 1e6, float("nan")
    if up_mbps is not None or down_mbps is not None:
        raise DeploymentError("--server measures the link; leave --up-mbps and --down-mbps out")
    from airtune.wire.link import measure_link

    found = measure_link(client.way)
    return found.up_bps, found.down_bps, found.round_trip_s
