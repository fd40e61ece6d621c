"""`airtune device`: which devices may connect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airtune.cli.console import print_json, print_line, print_note, print_table
from airtune.cli.options import AsJson, Ca, Key, Server, Where
from airtune.cli.server import State
from airtune.deploy import DEFAULT_STATE
from airtune.errors import DeploymentError
from airtune.units import parse_seconds

Labelled = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="A label of each, such as site=north; may be repeated."
    ),
]
app = typer.Typer(
    help="Add, enrol, label, list and revoke devices and their keys.", no_args_is_help=True
)


@app.command()
def add(
    names: Annotated[list[str] | None, typer.Argument(help="Names of devices.")] = None,
    *,
    state: State = DEFAULT_STATE,
    inventory: Annotated[
        Path | None,
        typer.Option(help="YAML or CSV file with a name a device, perhaps a public key each."),
    ] = None,
    public_key: Annotated[
        Path | None,
        typer.Option(help="Public key that one device made itself; otherwise keys are made here."),
    ] = None,
    label: Labelled = None,
    as_json: AsJson = False,
) -> None:
    """Add devices.

    Makes a folder to copy to each device: key, certificate and the server's ca.crt.

    Example: airtune device add gate-1 gate-2
    """
    from airtune.deploy.labels import read_labels
    from airtune.deploy.server.enroll import enroll, read_inventory

    wanted = dict.fromkeys(names or [], public_key)
    if inventory is not None:
        wanted |= read_inventory(inventory)
    if not wanted:
        raise DeploymentError("name a device, or an --inventory file")
    if public_key is not None and len(wanted) != 1:
        raise DeploymentError(f"--public-key is for one device, got {len(wanted)}")
    added = enroll(state, wanted, labels=read_labels(label or ()))
    if as_json:
        print_json(
            {
                "devices": [
                    {"name": device.name, "fingerprint": device.fingerprint, "folder": str(folder)}
                    for device, folder in added
                ]
            }
        )
        return
    for device, folder in added:
        print_line(f"{device.name}: key {device.fingerprint}, copy {folder} to the device")


@app.command("list")
def list_(*, state: State = DEFAULT_STATE, where: Where = None, as_json: AsJson = False) -> None:
    """List devices, their labels and the state of their keys."""
    from airtune.deploy.labels import format_labels, matches, read_labels
    from airtune.deploy.server.register import Register

    wanted = read_labels(where or ())
    devices = [one for one in Register(state).devices.values() if matches(one.labels, wanted)]
    if as_json:
        print_json(
            {
                "devices": [
                    {
                        "name": device.name,
                        "fingerprint": device.fingerprint,
                        "added": device.added,
                        "revoked": device.revoked or None,
                        "labels": dict(device.labels),
                    }
                    for device in devices
                ]
            }
        )
        return
    print_table(
        "",
        ["device", "key", "added", "revoked", "labels"],
        [
            [
                device.name,
                device.fingerprint,
                device.added,
                device.revoked or "-",
                format_labels(device.labels),
            ]
            for device in devices
        ],
    )


@app.command()
def label(
    name: Annotated[str, typer.Argument(help="Name of the device.")],
    labels: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY=VALUE | KEY-",
            help="Labels to set, such as site=north; site- takes one off.",
        ),
    ],
    *,
    state: State = DEFAULT_STATE,
) -> None:
    """Set labels of a device, by which runs choose it (airtune run --where)."""
    from airtune.deploy.labels import format_labels, read_labels
    from airtune.deploy.server.register import Register

    off = frozenset(word[:-1] for word in labels if "=" not in word and word.endswith("-"))
    wanted = read_labels(word for word in labels if word[:-1] not in off)
    print_line(f"{name}: {format_labels(Register(state).label(name, wanted, off))}")


@app.command()
def code(
    *,
    count: Annotated[int, typer.Option(help="How many devices it enrols.")] = 1,
    valid: Annotated[str, typer.Option(help="How long, such as 30min, 24h or 7d.")] = "24h",
    label: Labelled = None,
    state: State = DEFAULT_STATE,
    as_json: AsJson = False,
) -> None:
    """Make a code by which devices enrol themselves: airtune agent --enroll CODE.

    Each makes its key itself, and the server certifies it. The server's second port is open while
    a code is valid.

    Example: airtune device code --count 20 --valid 8h --label site=north
    """
    from datetime import timedelta

    from airtune.deploy.labels import read_labels
    from airtune.deploy.renew import await_enrolling
    from airtune.deploy.server.enroll import make_code
    from airtune.deploy.server.site import running

    try:
        span = timedelta(seconds=parse_seconds(valid))
    except (ValueError, OverflowError) as error:
        raise DeploymentError(f"--valid: {error}") from error
    settings = running(state)
    if settings.insecure:
        raise DeploymentError(
            "this server runs without TLS and needs no codes; start agents with --insecure --name NAME"
        )
    made, row = make_code(
        state, port=settings.enrol_port, count=count, valid=span, labels=read_labels(label or ())
    )
    await_enrolling(settings.address, made)
    if as_json:
        print_json(
            {
                "code": str(made),
                "name": row.name,
                "until": row.until,
                "count": row.left,
                "port": settings.enrol_port,
            }
        )
        return
    print_line(str(made))
    print_note(f"code {row.name} enrols {row.left} at port {settings.enrol_port} until {row.until}")


@app.command()
def codes(*, state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """List the codes that were made; the codes themselves are not kept."""
    from airtune.deploy.labels import format_labels
    from airtune.deploy.server.register import Register

    found = Register(state).codes
    if as_json:
        print_json(
            {
                "codes": [
                    {
                        "name": one.name,
                        "left": one.left,
                        "until": one.until,
                        "labels": dict(one.labels),
                    }
                    for one in found
                ]
            }
        )
        return
    print_table(
        "",
        ["code", "left", "until", "labels"],
        [[one.name, str(one.left), one.until, format_labels(one.labels)] for one in found],
    )


@app.command()
def cancel(
    name: Annotated[
        str, typer.Argument(help="Name of the code, as airtune device codes lists it.")
    ],
    *,
    state: State = DEFAULT_STATE,
) -> None:
    """Cancel a code; devices that it has enrolled stay."""
    from airtune.deploy.server.register import Register

    Register(state).cancel_code(name)
    print_line(f"code {name} is withdrawn and enrols no more devices")


@app.command()
def drain(
    name: Annotated[str, typer.Argument(help="Name of the device.")],
    *,
    state: State = DEFAULT_STATE,
    server: Server = None,
    ca: Ca = None,
    key: Key = None,
) -> None:
    """Let a device end its task and take no new one, until its agent is started again.

    Returns when it has ended; then update it and start its agent.
    """
    import time

    from airtune.cli.remote import link_to

    link = link_to(state, server, ca, key)
    link.call("Drain", device=name)
    while any(
        row["name"] == name and row["status"] == "draining" and row["tasks"]
        for row in link.call("List")["devices"]
    ):
        time.sleep(1.0)
    print_line(f"{name} has no task and gets none until its agent is started again")


@app.command()
def rotate(
    names: Annotated[list[str] | None, typer.Argument(help="Names of devices.")] = None,
    *,
    where: Where = None,
    state: State = DEFAULT_STATE,
) -> None:
    """Ask devices for new keys; they make them by themselves, at once or when they call next.

    The old key holds until the new one has been used, and an hour more for what is on its way.
    """
    from airtune.deploy.labels import read_labels
    from airtune.deploy.server.register import Register

    register = Register(state)
    chosen = names or [one.name for one in register.matching(read_labels(where or ())) if where]
    if not chosen:
        raise DeploymentError("name devices, or choose some that there are with --where KEY=VALUE")
    for name in chosen:
        register.ask_renewal(name)
    print_line(f"asked for new keys: {', '.join(chosen)}")


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the device.")],
    *,
    state: State = DEFAULT_STATE,
) -> None:
    """Refuse a device from now on; its key is not accepted again."""
    from airtune.deploy.server.register import Register

    device = Register(state).revoke(name)
    print_line(f"{name} is revoked (key {device.fingerprint}); its agent is refused from now on")
