"""`airtune device`: which devices may connect."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from airtune.cli.console import print_json, print_line, print_table
from airtune.cli.options import AsJson
from airtune.cli.server import State
from airtune.deploy import DEFAULT_STATE
from airtune.errors import DeploymentError

app = typer.Typer(help="Add, list and revoke devices and their keys.", no_args_is_help=True)


@app.command()
def add(
    names: Annotated[list[str] | None, typer.Argument(help="Names of devices.")] = None,
    *,
    state: State = DEFAULT_STATE,
    inventory: Annotated[Path | None, typer.Option(help="YAML or CSV file with a name a device, perhaps a public key each.")] = None,
    public_key: Annotated[Path | None, typer.Option(help="Public key that one device made itself; otherwise keys are made here.")] = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Let devices connect.

    For each a folder is made with what belongs on the device: its key, the certificate of that key,
    and the server's ca.crt.

    Example: airtune device add gate-1 gate-2
    """
    from airtune.deploy.enroll import enroll, read_inventory

    wanted = dict.fromkeys(names or [], public_key)
    if inventory is not None:
        wanted |= read_inventory(inventory)
    if not wanted:
        raise DeploymentError("name a device, or an --inventory file")
    if public_key is not None and len(wanted) != 1:
        raise DeploymentError(f"--public-key is for one device, got {len(wanted)}")
    added = enroll(state, wanted)
    if as_json:
        print_json({"devices": [{"name": device.name, "fingerprint": device.fingerprint,
                                 "folder": str(folder)}
                                for device, folder in added]})  # fmt: skip
        return
    for device, folder in added:
        print_line(f"{device.name}: key {device.fingerprint}, copy {folder} to the device")


@app.command("list")
def list_(*, state: State = DEFAULT_STATE, as_json: AsJson = False) -> None:
    """List devices and the state of their keys."""
    from airtune.deploy.register import Register

    devices = Register(state).devices.values()
    if as_json:
        print_json({"devices": [{"name": device.name, "fingerprint": device.fingerprint,
                                 "added": device.added, "revoked": device.revoked or None}
                                for device in devices]})  # fmt: skip
        return
    print_table("", ["device", "key", "added", "revoked"],
                [[device.name, device.fingerprint, device.added, device.revoked or "-"]
                 for device in devices])  # fmt: skip


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="Name of the device.")],
    *,
    state: State = DEFAULT_STATE,
) -> None:
    """Refuse a device from now on; its key is not accepted again."""
    from airtune.deploy.register import Register

    device = Register(state).revoke(name)
    print_line(f"{name} is revoked (key {device.fingerprint}); its agent is refused from now on")
