"""`airtune status`: the progress of the newest run at a server."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from airtune.cli.console import print_json, print_note
from airtune.cli.folders import find_run
from airtune.cli.options import AsJson
from airtune.cli.server import State
from airtune.deploy import DEFAULT_STATE
from airtune.errors import AirtuneError, DeploymentError
from airtune.units import format_bytes, format_seconds

_LAST_ROUNDS = 8


def status(
    *,
    state: State = DEFAULT_STATE,
    run: Annotated[str, typer.Option(help="Folder of the run; latest = the newest.")] = "latest",
    watch: Annotated[bool, typer.Option("--watch", help="Stay and show what changes.")] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Serve devices and all runs for Prometheus there; without HOST on this machine alone.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show devices, rounds, bytes, stragglers and quality of a run."""
    if metrics is not None:
        _serve(state, metrics)
        return
    folder = find_run(run, root=state / "runs", marks=("run.json",))
    if as_json:
        from airtune.deploy.server.watching import summary

        print_json(summary(folder))
        return
    console = Console(emoji=False)
    if not watch:
        console.print(_view(folder))
        return
    with Live(_view(folder), console=console, refresh_per_second=2) as live:
        try:
            while True:
                live.update(_view(folder))
                time.sleep(1.0)
        except KeyboardInterrupt:
            return


def _serve(state: Path, address: str) -> None:
    from airtune.deploy.server.metrics import metrics_server

    host, _, port = address.rpartition(":")
    if not port.isdecimal():
        raise DeploymentError(f"--metrics must be [HOST:]PORT, got {address!r}")
    with metrics_server(state, host.strip("[]") or "127.0.0.1", int(port)) as server:
        print_note(f"metrics at http://{host or '127.0.0.1'}:{port}/metrics")
        server.serve_forever()


def _view(folder: Path) -> Group:
    from airtune.deploy.server.watching import summary

    try:
        said = summary(folder)
    except AirtuneError as error:  # between two writes of a round
        return Group(str(error))
    head = (
        f"{said['name']} · {said['method']} · round {said['done']} of {said['rounds']} · "
        f"{format_bytes(said['upload_bytes'])} up, {format_bytes(said['download_bytes'])} down · "
        f"{'finished' if said['finished'] else 'running'}"
    )
    return Group(head, _rounds(said), _devices(said))


def _rounds(said: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("round", "took", "ok", "lost", "train loss", "validation"):
        table.add_column(name, justify="right")
    for row in said["last_rounds"][-_LAST_ROUNDS:]:
        table.add_row(
            str(row["round"]),
            format_seconds(row["round_s"]),
            str(row["ok"]),
            str(row["lost"]),
            _figure(row["train_loss"]),
            _figure(row["validation"]),
        )
    return table


def _devices(said: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False)
    for name in ("device", "status", "took", "compute", "upload", "up", "memory", "why"):
        table.add_column(name, justify="left" if name in ("device", "status", "why") else "right")
    for row in said["devices"]:
        mark = " (slowest)" if row["slowest"] else ""
        table.add_row(
            row["name"] + mark,
            row["status"],
            _seconds(row["finish_s"]),
            _seconds(row["compute_s"]),
            _seconds(row["upload_s"]),
            format_bytes(row["upload_bytes"]),
            format_bytes(row["peak_bytes"]),
            row["why"],
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else format_seconds(value)
