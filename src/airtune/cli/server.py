"""`airtune server`: the server of real devices."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from airtune.cli.console import print_json, print_line, print_note, print_table
from airtune.cli.options import AsJson
from airtune.deploy import DEFAULT_PORT, DEFAULT_STATE
from airtune.errors import DeploymentError

if TYPE_CHECKING:
    from airtune.deploy.site import ServerSettings

app = typer.Typer(
    help="Run the server that real devices call: start, status, logs, stop, drain.",
    no_args_is_help=True,
)

State = Annotated[Path, typer.Option(help="Folder with keys, runs and state of the server.")]
_START_S = 90.0


@app.command()
def start(
    *,
    state: State = DEFAULT_STATE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port that devices and commands call.")] = DEFAULT_PORT,
    name: Annotated[list[str] | None, typer.Option(help="Name or address under which devices call; may be repeated.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="No TLS and no keys: for a test bed that nobody else reaches.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Return once it is ready; it goes on in the background.")] = False,
) -> None:  # fmt: skip
    """Start the server; it stays in the foreground and outlives runs.

    Example: airtune server start --name edge.example.org
    """
    from airtune.deploy import server
    from airtune.deploy.site import ServerSettings

    settings = ServerSettings(state, host, port, tuple(name or ()), insecure)
    if detach:
        _detach(settings)
        return
    server.start(settings, say=print_note)


@app.command()
def status(*, state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """Show whether the server runs, its devices and its runs."""
    from airtune.deploy.admission import list_nodes
    from airtune.deploy.server import list_runs
    from airtune.deploy.site import running
    from airtune.deploy.turned_away import refused_keys

    settings = running(state)
    link = settings.link()
    nodes, runs = list_nodes(link), list_runs(link)
    names, refused = _names_of(state), refused_keys(state)
    if as_json:
        print_json({"address": settings.address, "insecure": settings.insecure,
                    "devices": [{**row, "name": names.get(int(row["node-id"]))} for row in nodes],
                    "runs": runs, "refused": [asdict(one) for one in refused]})  # fmt: skip
        return
    kind = "without TLS" if settings.insecure else "TLS and device keys"
    print_line(f"server at {settings.host}:{settings.port}, {kind}, state in {state}")
    print_table("", ["device", "status", "since"],
                [[names.get(int(row["node-id"]), row["node-id"]), row["status"], row["online-at"]]
                 for row in nodes])  # fmt: skip
    print_table("", ["run", "status", "elapsed s"],
                [[row["run-id"], row["status"], f"{row['elapsed']:.0f}"] for row in runs])  # fmt: skip
    for one in refused:
        times = f" ({one.count} times since the start)" if one.count > 1 else ""
        print_line(one.reason + times)


@app.command()
def logs(
    *,
    state: State = DEFAULT_STATE,
    lines: Annotated[int, typer.Option(help="How many lines from the end.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what is written.")] = False,
) -> None:
    """Show what the server has logged."""
    from airtune.deploy.register import Register
    from airtune.deploy.turned_away import as_sentence

    path, register = state / "server.log", Register(state)
    if not path.is_file():
        raise DeploymentError(f"there is no log at {path}; no server was started from {state}")
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file.readlines()[-lines:]:
            print_line(as_sentence(line, register) or line.rstrip("\n"))
        while follow:
            line = file.readline()
            if line:
                print_line(as_sentence(line, register) or line.rstrip("\n"))
            else:
                time.sleep(0.5)


@app.command()
def stop(
    *,
    state: State = DEFAULT_STATE,
    run: Annotated[int | None, typer.Option(help="Stop this run only; its checkpoint stands.")] = None,
) -> None:  # fmt: skip
    """Stop the server, or one run."""
    from airtune.deploy import server
    from airtune.deploy.site import running

    if run is not None:
        server.stop_run(running(state).link(), run)
        print_line(f"run {run} was stopped; airtune run --resume goes on from its last checkpoint")
        return
    print_line(f"stopped (process {server.stop(state)})")


@app.command()
def drain(*, state: State = DEFAULT_STATE) -> None:
    """Take no new run, wait for those that run, then stop."""
    from airtune.deploy import server

    server.drain(state, say=print_note)
    print_line("drained and stopped")


def _detach(settings: ServerSettings) -> None:
    """Start the server as a process of its own and wait until it is ready."""
    from airtune.deploy.server import last_line

    words = [sys.executable, "-m", "airtune.cli", "server", "start", "--state", str(settings.state),
             "--host", settings.host, "--port", str(settings.port)]  # fmt: skip
    words += [word for name in settings.names for word in ("--name", name)]
    words += ["--insecure"] if settings.insecure else []
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = settings.state / "supervisor.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            words, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
    is_ready = (settings.state / "server.json").is_file
    until = time.monotonic() + _START_S
    while not is_ready():
        if process.poll() is not None:
            raise DeploymentError(last_line(log).removeprefix("error: "))
        if time.monotonic() > until:
            raise DeploymentError(f"the server is not ready after {_START_S:.0f} s; see {log}")
        time.sleep(0.1)
    print_line(f"the server is ready at {settings.host}:{settings.port} (process {process.pid})")


def _names_of(state: Path) -> dict[int, str]:
    from airtune.deploy.register import Register

    return {device.node: device.name for device in Register(state).valid() if device.node}
