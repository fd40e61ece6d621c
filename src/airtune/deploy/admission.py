"""Who may connect: the server's list of devices, and what SuperLink is told of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airtune.deploy.flower_cli import Link
from airtune.deploy.keys import fingerprint_of
from airtune.deploy.register import Register, Registered
from airtune.deploy.site import ServerSettings, running
from airtune.errors import ConnectionFailedError, DeploymentError
from airtune.records import storage


def list_nodes(link: Link) -> list[dict[str, Any]]:
    """Return Flower's list of devices that may connect or do."""
    return list(link.call(["supernode", "list", link.name])["nodes"])


def register_devices(settings: ServerSettings) -> None:
    """Tell SuperLink of every valid device that it does not know yet."""
    register = Register(settings.state)
    link = settings.link()
    known = {int(row["node-id"]) for row in list_nodes(link)}
    for device in register.valid():
        if device.node is None or device.node not in known:
            register.set_node(device.name, _tell(settings, link, device))


def add_device(state: Path, name: str, public: str) -> Registered:
    """Put a device on the list, and tell the server if it runs.

    A device that could not be told is not on the list afterwards, so that it may be added again.

    Raises:
        DeploymentError: if the name or the key is taken, or the server refuses it.
        ConnectionFailedError: if the server runs and does not answer.
    """
    register = Register(state)
    before = register.devices.get(name)
    device = register.add(Registered(name, public, fingerprint_of(public)))
    settings = _if_running(state)
    if settings is not None and not settings.insecure:
        try:
            register.set_node(name, _tell(settings, settings.link(), device))
        except (DeploymentError, ConnectionFailedError):
            register.put_back(name, before)
            raise
    return Register(state).devices[name]


def revoke_device(state: Path, name: str) -> Registered:
    """Take a device off the list; it is refused from now on.

    Raises:
        DeploymentError: if there is no such device.
    """
    device = Register(state).revoke(name)
    settings = _if_running(state)
    if settings is not None and device.node is not None:
        link = settings.link()
        link.call(["supernode", "unregister", str(device.node), link.name])
    return device


def _tell(settings: ServerSettings, link: Link, device: Registered) -> int:
    """Register a key with SuperLink; returns the node that it is known by."""
    folder = settings.state / "keys"
    with storage(folder):
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{device.name}.pub"
        path.write_text(device.public + "\n", encoding="utf-8")
    said = link.call(["supernode", "register", str(path), link.name, "--name", device.name])
    return int(said["node-id"])


def _if_running(state: Path) -> ServerSettings | None:
    try:
        return running(state)
    except ConnectionFailedError:
        return None
