"""`airtune run --server`: the same verb on real devices."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airtune.cli.console import print_json, print_line, print_note, print_quality
from airtune.deploy import DEFAULT_STATE
from airtune.deploy.caller import Proof, ServerClient, address_of, check_server
from airtune.deploy.labels import read_labels
from airtune.deploy.server.site import local_link, running
from airtune.deploy.submit import follow, submit
from airtune.errors import DeploymentError, RunInterruptedError
from airtune.recipe import load_recipe

_KEYS = ("local", "operator")
"""Names of an operator's key: of the server's own machine, of who was added."""


@dataclass(frozen=True, slots=True)
class RemoteTarget:
    """Where and how a recipe is to run."""

    server: str
    ca: Path | None = None
    key: Path | None = None
    insecure: bool = False
    replay: bool = False
    devices: int = 0
    resume: str | None = None
    rounds: int | None = None
    """With `resume`: more rounds than it had."""
    where: tuple[str, ...] = ()
    """Labels of the devices, KEY=VALUE."""

    def link(self) -> ServerClient:
        """Return the way to the server.

        Raises:
            DeploymentError: if certificate or key are not found.
        """
        proof = None if self.insecure else find_proof(self.ca, self.key)
        return ServerClient(address_of(self.server), proof)


def link_to(state: Path, server: str | None, ca: Path | None, key: Path | None) -> ServerClient:
    """Return the way to a server elsewhere, or to the one that runs from a state folder here.

    Raises:
        ConnectionFailedError: if none runs here, and none was named.
        DeploymentError: if certificate or key are not found.
    """
    return local_link(running(state)) if server is None else RemoteTarget(server, ca, key).link()


def find_proof(ca: Path | None, key: Path | None) -> Proof:
    """Return an operator's files: as named, beside the authority's, or where they usually are.

    Raises:
        DeploymentError: if they are nowhere.
    """
    usual = (DEFAULT_STATE / "tls" / "ca.crt", Path("ca.crt"))
    authority = ca or next((path for path in usual if path.is_file()), None)
    if authority is None:
        raise DeploymentError(
            "name the server's ca.crt with --ca; it is tls/ca.crt in the server's state folder"
        )
    if not authority.is_file():
        raise DeploymentError(
            f"there is no file {authority}; --ca names the server's ca.crt, which is in the folder "
            "that airtune operator add has made (in the server's own folder leave --ca out)"
        )
    beside = [authority.with_name(f"{name}.key") for name in _KEYS]
    found = key or next((path for path in beside if path.is_file()), None)
    if found is None:
        raise DeploymentError(
            f"there is no operator's key beside {authority}; name one with --key, or ask for "
            "airtune operator add at the server"
        )
    proof = Proof(authority, found, found.with_suffix(".crt"))
    proof.check()
    return proof


def run_remotely(
    wanted: RemoteTarget, source: str | None, changes: list[str], *, as_json: bool
) -> None:
    """Submit a recipe and follow it to its end.

    Raises:
        RunInterruptedError: on Ctrl-C; the run goes on at the server.
    """
    recipe = load_recipe(source, overrides=[] if wanted.resume else changes)
    link = wanted.link()
    check_server(link.address, None if link.proof is None else link.proof.authority)
    run = submit(
        link,
        recipe,
        resume=wanted.resume or "",
        rounds=wanted.rounds or 0,
        devices=wanted.devices,
        clock="replay" if wanted.replay else "real",
        where=read_labels(wanted.where),
    )
    if not as_json:
        print_note(f"run {run} at {link.address}")
    try:
        for event in follow(link, run):
            _show(event, as_json=as_json)
    except KeyboardInterrupt as error:
        raise RunInterruptedError(
            f"no longer following; run {run} goes on at the server (airtune server stop "
            f"--run {run} ends it there)"
        ) from error


def _show(event: Any, *, as_json: bool) -> None:
    if "result" in event:
        if as_json:
            print_json(event)
            return
        _print_result(event)
    elif as_json:
        return
    elif "stage" in event:
        print_note(event["stage"])
    elif "refused" in event:
        print_note(f"{event['device']} takes no part: {event['refused']}")
    elif "note" in event:
        print_note(event["note"])
    elif "round" in event:
        print_note(_round(event["round"]))


def _round(row: dict[str, Any]) -> str:
    counts = {name: count for name, count in row["counts"].items() if count}
    words = [
        f"round {row['round']}",
        f"{row['round_s']:.1f} s",
        ", ".join(f"{count} {name}" for name, count in counts.items()) or "nobody there",
    ]
    for name, value in (
        ("validation before", (row.get("validation_before") or {}).get("loss")),
        ("train loss", row["train_loss"]),
        ("validation", (row["validation"] or {}).get("loss")),
    ):
        if value is not None:
            words.append(f"{name} {value:.4f}")
    return " · ".join(words)


def _print_result(event: dict[str, Any]) -> None:
    print_quality(event["result"] or {})
    print_line(f"records at the server: {event['folder']}")
    print_line(f"report at the server: {event['report']}")
