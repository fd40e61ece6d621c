"""`airtune server`: the server of real devices."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from airtune.cli.console import print_json, print_line, print_note, print_table
from airtune.cli.options import AsJson, Ca, Key, Server
from airtune.deploy import DEFAULT_PORT, DEFAULT_STATE
from airtune.errors import DeploymentError

if TYPE_CHECKING:
    from airtune.deploy.server.site import ServerSettings

app = typer.Typer(
    help="Run the server that real devices call: start, status, logs, stop, drain.",
    no_args_is_help=True,
)

State = Annotated[Path, typer.Option(help="Folder with keys, runs and state of the server.")]
_START_S, _SHOWN = 90.0, 20


@app.command()
def start(
    *,
    state: State = DEFAULT_STATE,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port that devices and commands call.")] = DEFAULT_PORT,
    name: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which devices call; may be repeated."),
    ] = None,
    enrol_port: Annotated[
        int | None,
        typer.Option(
            help="Port where devices enrol themselves, open while a code is valid; default: --port plus 1.",
            show_default=False,
        ),
    ] = None,
    insecure: Annotated[
        bool,
        typer.Option(
            "--insecure", help="No TLS and no keys: for a test bed that nobody else reaches."
        ),
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", help="Return once it is ready; it goes on in the background."),
    ] = False,
) -> None:
    """Start the server; it stays in the foreground and outlives runs.

    Example: airtune server start --name edge.example.org
    """
    from airtune.deploy.server import process as server
    from airtune.deploy.server.site import ServerSettings

    settings = ServerSettings(
        state, host, port, tuple(name or ()), insecure, enrol_port or port + 1
    )
    if detach:
        _detach(settings)
        return
    server.start(settings, say=print_note)


@app.command()
def status(
    *,
    state: State = DEFAULT_STATE,
    server: Server = None,
    ca: Ca = None,
    key: Key = None,
    as_json: AsJson = False,
) -> None:
    """Show a server's devices and runs, those that are queued too, and who was refused."""
    from airtune.cli.remote import link_to

    link = link_to(state, server, ca, key)
    said = link.call("List")
    if as_json:
        print_json({"address": link.address, "insecure": link.proof is None, **said})
        return
    where = f", state in {state}" if server is None else ""
    kind = "without TLS" if link.proof is None else "TLS and keys"
    print_line(f"server at {link.address}, {kind}{where}")
    _print_devices(said["devices"])
    _print_runs(said["runs"])
    for one in said["refused"]:
        times = f" ({one['count']} times since the start)" if one["count"] > 1 else ""
        print_line(one["reason"] + times)


def _print_devices(found: Sequence[Mapping[str, Any]]) -> None:
    from airtune.deploy.labels import format_labels

    names = ("name", "status", "since", "version")
    rows = [
        [*(row[name] for name in names), _number(row["run"]), format_labels(row["labels"])]
        for row in found
    ]
    print_table("", ["device", "status", "since", "version", "run", "labels"], rows)


def _print_runs(found: Sequence[Mapping[str, Any]]) -> None:
    from airtune.deploy.labels import format_labels

    def waiting(row: Mapping[str, Any]) -> str:
        return (
            f"queued, after {', '.join(map(str, row['waits_for']))}"
            if row["waits_for"]
            else row["status"]
        )

    print_table(
        "",
        ["run", "name", "status", "operator", "began", "devices", "where"],
        [
            [
                str(row["number"]),
                row["name"],
                waiting(row),
                row["operator"],
                row["began"],
                _number(None if row["devices"] is None else len(row["devices"])),
                format_labels(row["where"]),
            ]
            for row in found[:_SHOWN]
        ],
    )
    if len(found) > _SHOWN:
        print_line(f"and {len(found) - _SHOWN} earlier runs, all of them with --json")


def _number(value: int | None) -> str:
    return "-" if value is None else str(value)


@app.command()
def logs(
    *,
    state: State = DEFAULT_STATE,
    lines: Annotated[int, typer.Option(help="How many lines from the end.")] = 50,
    run: Annotated[int | None, typer.Option(help="Show the log of this run instead.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Stay and show new lines.")] = False,
) -> None:
    """Show what the server has logged, or one run."""
    path = state / "server.log" if run is None else state / "logs" / f"run-{run}.log"
    if not path.is_file():
        raise DeploymentError(f"there is no log at {path}; was it started from {state}?")
    with path.open(encoding="utf-8", errors="replace") as file:
        found = file.readlines()[-lines:]
        for line in found:
            print_line(line.rstrip("\n"))
        if not found and not follow:
            print_note(f"{path} is empty: no errors")
        while follow:
            line = file.readline()
            if line:
                print_line(line.rstrip("\n"))
            else:
                time.sleep(0.5)


@app.command()
def stop(
    *,
    state: State = DEFAULT_STATE,
    run: Annotated[
        int | None,
        typer.Option(help="Stop this run only, or take it off the queue; its checkpoint stands."),
    ] = None,
    server: Server = None,
    ca: Ca = None,
    key: Key = None,
) -> None:
    """Stop the server, or one run."""
    from airtune.cli.remote import link_to
    from airtune.deploy.server.process import stop as stop_server
    from airtune.deploy.submit import go_on

    if run is not None:
        link = link_to(state, server, ca, key)
        print_line(
            f"run {run} was stopped; {go_on(link.address, link.call('Stop', run=run)['folder'])}"
        )
        return
    if server is not None:
        raise DeploymentError(
            "stop a server on its own machine; with --server only a run can be stopped, by --run NUMBER"
        )
    print_line(f"stopped (process {stop_server(state)})")


@app.command()
def evict(
    device: Annotated[str, typer.Argument(help="Name of the device.")],
    *,
    run: Annotated[int, typer.Option(help="Number of the run.")],
    state: State = DEFAULT_STATE,
    server: Server = None,
    ca: Ca = None,
    key: Key = None,
) -> None:
    """Take a device out of a run; the run goes on without it, the device is free for others."""
    from airtune.cli.remote import link_to

    link_to(state, server, ca, key).call("Evict", run=run, device=device)
    print_line(f"{device} no longer takes part in run {run}")


@app.command()
def backup(
    file: Annotated[Path, typer.Argument(help="File to write, such as airtune.tar.gz.")],
    *,
    state: State = DEFAULT_STATE,
    keys: Annotated[
        bool, typer.Option("--keys/--without-keys", help="With private keys, or without.")
    ] = True,
) -> None:
    """Copy the server's folder to a file, also while the server runs.

    Example: airtune server backup /mnt/backup/airtune-2026-11-27.tar.gz
    """
    from airtune.deploy.server.backup import back_up

    count = back_up(state, file, keys=keys)
    print_line(f"{file}: {count} files{'' if keys else ', no private key among them'}")
    if keys:
        print_note(
            "the backup holds the authority's key: anyone who reads it can impersonate this server"
        )


@app.command()
def restore(
    file: Annotated[Path, typer.Argument(help="A file of airtune server backup.")],
    *,
    state: State = DEFAULT_STATE,
) -> None:
    """Restore a backup to a folder that does not exist yet."""
    from airtune.deploy.server.backup import restore as restore_backup

    said = restore_backup(file, state)
    print_line(f"{state} is as it was at {said['made']} (airtune {said['version']})")
    print_note(
        "keys revoked since the backup are valid again, and enrolment codes have their old counts: "
        "check airtune device list, device codes and operator list"
    )
    if not said["keys"]:
        print_note(
            f"it holds no private keys: put ca.key, and server.key if it is to stay, in {state}/tls"
        )


@app.command()
def check(
    *,
    state: State = DEFAULT_STATE,
    host: Annotated[str, typer.Option(help="As for start.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="As for start.")] = DEFAULT_PORT,
    name: Annotated[list[str] | None, typer.Option(help="As for start.")] = None,
    enrol_port: Annotated[int | None, typer.Option(help="As for start.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check beforehand: ports, modes, certificates, names, disk, memory, TLS."""
    from airtune.cli.findings import show
    from airtune.deploy.preflight import check_site
    from airtune.deploy.server.site import ServerSettings

    settings = ServerSettings(
        state, host, port, tuple(name or ()), enrol_port=enrol_port or port + 1
    )
    show(check_site(settings), as_json=as_json)


@app.command()
def rotate(
    *,
    state: State = DEFAULT_STATE,
    authority: Annotated[
        bool,
        typer.Option(
            "--authority",
            help="Begin to replace the authority; devices and operators follow by themselves or by airtune operator renew.",
        ),
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="Trust the new authority alone.")
    ] = False,
    force: Annotated[
        bool,
        typer.Option(
            "--force", help="With --finish: lock out devices and operators that have not followed."
        ),
    ] = False,
) -> None:
    """Replace the server's key and certificate, or its authority, while it runs."""
    from airtune.deploy.server.authority import (
        ServerFiles,
        finish_authority,
        replace_authority,
        replace_certificate,
    )
    from airtune.deploy.server.site import local_link, running

    files = ServerFiles(state / "tls")
    if authority:
        replace_authority(files)
        print_line(
            "the new authority signs; airtune server rotate --finish ends the change once all have followed"
        )
    elif finish:
        behind = [] if force else local_link(running(state)).call("List")["behind"]
        if behind:
            raise DeploymentError(
                f"{', '.join(behind)} would be locked out, as they have not called since the "
                "authority was replaced: start their agents (operators: airtune operator renew), "
                "revoke them, or add --force and give them the new ca.crt by hand"
            )
        finish_authority(files)
        print_line("the former authority is no longer trusted")
    else:
        replace_certificate(files)
        print_line("the server has a new key and certificate; connections that are open stay")


@app.command()
def drain(*, state: State = DEFAULT_STATE) -> None:
    """Take no new run, wait for those that run, then stop; queued runs wait for the next start."""
    from airtune.deploy.server import process as server
    from airtune.deploy.server.site import DRAINING, local_link, running

    link = local_link(running(state))
    (state / DRAINING).touch()
    while going := [row for row in link.call("List")["runs"] if row["status"] == "running"]:
        print_note(f"{len(going)} runs go on; the server stops after them")
        time.sleep(3.0)
    server.stop(state)
    print_line("drained and stopped")


def _detach(settings: ServerSettings) -> None:
    """Start the server as a process of its own and wait until it is ready."""
    from airtune.deploy.server.process import last_line
    from airtune.deploy.server.site import read_document

    words = [
        sys.executable,
        "-m",
        "airtune",
        "server",
        "start",
        "--state",
        str(settings.state),
        "--host",
        settings.host,
        "--port",
        str(settings.port),
        "--enrol-port",
        str(settings.enrol_port),
    ]
    words += [word for name in settings.names for word in ("--name", name)]
    words += ["--insecure"] if settings.insecure else []
    settings.state.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = settings.state / "supervisor.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            words,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    until = time.monotonic() + _START_S
    while (read_document(settings.state) or {}).get("pid") != process.pid:
        if process.poll() is not None:
            raise DeploymentError(last_line(log).removeprefix("error: "))
        if time.monotonic() > until:
            process.terminate()
            raise DeploymentError(f"the server is not ready after {_START_S:.0f} s; see {log}")
        time.sleep(0.1)
    print_line(f"the server is ready at {settings.host}:{settings.port} (process {process.pid})")
